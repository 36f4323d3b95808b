"""Repositories of the Hugging Face hub and its cache. With HF_HUB_OFFLINE=1 only the cache is used."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from kontext.errors import CheckpointError

T5_REPOSITORY = "google/t5-v1_1-xxl"
CLIP_REPOSITORY = "openai/clip-vit-large-patch14"

# Files to download from a repository, without its other formats of the same weights. No GGUF: their repositories hold
# a dozen quantisations of the same model.
ENCODER_PATTERNS = ("text_encoder*/*", "tokenizer*/*")
KONTEXT_PATTERNS = ("config.json", "*kontext*.safetensors", "ae.safetensors", *ENCODER_PATTERNS)
DIFFUSERS_PATTERNS = ("transformer/*.json", "transformer/*.safetensors", "vae/*.json", "vae/*.safetensors")
TOKENIZER_PATTERNS = ("tokenizer*.json", "special_tokens_map.json", "spiece.model", "vocab.json", "merges.txt")
VOCABULARY_PATTERNS = ("config.json", *TOKENIZER_PATTERNS)
T5_PATTERNS = (*VOCABULARY_PATTERNS, "model*.safetensors*", "pytorch_model*.bin*")
CLIP_PATTERNS = (*VOCABULARY_PATTERNS, "model*.safetensors*")


def hub_folder(repository: str, patterns: tuple[str, ...], instead_of: Path | None = None) -> Path:
    """Folder of a hub repository in the cache; downloads missing files if the hub may be used.

    Args:
        instead_of: where its files may lie as well, for the message.
    Raises:
        CheckpointError: neither the cache nor the hub gives it; the message says what to do.
    """
    beside = f", or put its files into {instead_of}" if instead_of else ""
    page = f"https://huggingface.co/{repository}"
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept the licence on the model's page {page} and log in with `hf auth login` "
            f"(or set HF_TOKEN), then start again{beside}"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the Hugging Face hub does not show {repository}: correct the name; if it is private, log in with "
            f"`hf auth login` (or set HF_TOKEN){beside}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{repository} is not in the Hugging Face cache, or not whole, and the hub cannot be reached; "
            f"run `hf download {repository}` where it can{beside}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"the Hugging Face hub does not give {repository}: {reason}{beside}") from error
