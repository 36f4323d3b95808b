"""Layouts of a model's files.

Three layouts are recognised, in this order:
1. a folder with a `config.json` of model_type "flux-kontext", which names its parts;
2. the layout of the model's own repository, black-forest-labs/FLUX.1-Kontext-dev: `flux1-kontext-dev.safetensors` and
   `ae.safetensors` beside text_encoder/ and tokenizer/ (CLIP), text_encoder_2/ and tokenizer_2/ (T5);
3. the two weight files alone, any `*kontext*.safetensors`, with T5 and CLIP from the Hugging Face cache.
A hub id stands for its folder in the cache. With HF_HUB_OFFLINE=1 only the cache is used.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from kontext.config import ModelConfig
from kontext.errors import CheckpointError

T5_REPOSITORY = "google/t5-v1_1-xxl"
CLIP_REPOSITORY = "openai/clip-vit-large-patch14"

# Files to download from a repository, without its other formats of the same weights.
TOKENIZER_PATTERNS = ("tokenizer*.json", "special_tokens_map.json", "spiece.model", "vocab.json", "merges.txt")
KONTEXT_PATTERNS = ("config.json", "*kontext*.safetensors", "ae.safetensors", "text_encoder*/*", "tokenizer*/*")
T5_PATTERNS = ("config.json", "model*.safetensors*", "pytorch_model*.bin*", *TOKENIZER_PATTERNS)
CLIP_PATTERNS = ("config.json", "model*.safetensors*", *TOKENIZER_PATTERNS)

# Sets of files, each enough for a tokenizer. Without any, transformers silently creates an empty tokenizer.
T5_TOKENIZER_FILES = (("tokenizer.json",), ("spiece.model",))
CLIP_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


@dataclass(frozen=True)
class EncoderFiles:
    """Files of a text encoder: the folder of its config.json, its weight files, the folder of its tokenizer."""

    config: Path
    weights: tuple[Path, ...]
    tokenizer: Path


@dataclass(frozen=True)
class ModelFiles:
    """Files of all parts of a model, checked to exist."""

    config: ModelConfig
    transformer: Path
    autoencoder: Path
    t5: EncoderFiles
    clip: EncoderFiles


def find_model(model: str | Path | None) -> ModelFiles:
    """Find the files of a model.

    Args:
        model: a folder, a hub id like "black-forest-labs/FLUX.1-Kontext-dev", or None for the bundled tiny model.
    Raises:
        CheckpointError: a file is missing; the message says what to put where.
    """
    folder = model_folder(model)
    described = folder / "config.json"
    if described.is_file() and _read_json(described).get("model_type") == "flux-kontext":
        return _described_model(folder, _read_json(described))
    return _discovered_model(folder)


def model_folder(model: str | Path | None) -> Path:
    """Folder of a path, of a hub id, or of the bundled model (None)."""
    if model is None:
        return bundled_model()
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds it and ae.safetensors")
    if isinstance(model, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        return _hub_folder(model, KONTEXT_PATTERNS)
    raise CheckpointError(f"there is no folder {folder}; give a folder with Kontext weights or a hub id")


def bundled_model() -> Path:
    """Folder of the bundled tiny model: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    places = (package / "bundled" / "tiny", package.parent / "models" / "tiny")
    for place in places:
        if place.is_dir():
            return place
    raise CheckpointError(f"the bundled tiny model is not at {places[0]} nor {places[1]}; install the package again")


def _described_model(folder: Path, described: dict[str, Any]) -> ModelFiles:
    """Files of a folder whose config.json names the parts."""
    try:
        config = ModelConfig.from_json(described)
        names = {part: str(described["files"][part]) for part in ("transformer", "autoencoder", "t5", "clip")}
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'}: files.{error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model: {error}") from error
    return ModelFiles(
        config=config,
        transformer=_present(folder / names["transformer"], "the flow transformer's weights"),
        autoencoder=_present(folder / names["autoencoder"], "the autoencoder's weights"),
        t5=_t5_files(folder / names["t5"]),
        clip=_clip_files(folder / names["clip"]),
    )


def _discovered_model(folder: Path) -> ModelFiles:
    """Files of a folder with published weights."""
    transformer = _only_transformer(folder)
    return ModelFiles(
        config=ModelConfig(name=transformer.stem),
        transformer=transformer,
        autoencoder=_present(folder / "ae.safetensors", "the autoencoder's weights"),
        t5=_published_t5(folder),
        clip=_published_clip(folder),
    )


def _only_transformer(folder: Path) -> Path:
    found = sorted(path for path in folder.glob("*kontext*.safetensors") if "lora" not in path.name.lower())
    if not found:
        hint = "; transformer/ is diffusers' layout, which is not read" if (folder / "transformer").is_dir() else ""
        raise CheckpointError(f"{folder} has no *kontext*.safetensors; put flux1-kontext-dev.safetensors there{hint}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{folder} has several *kontext*.safetensors ({names}); leave the one to be used")
    return found[0]


def _published_t5(folder: Path) -> EncoderFiles:
    if (folder / "text_encoder_2").is_dir():
        return _t5_files(folder / "text_encoder_2", folder / "tokenizer_2")
    return _t5_files(_hub_folder(T5_REPOSITORY, T5_PATTERNS, instead_of=folder / "text_encoder_2"))


def _published_clip(folder: Path) -> EncoderFiles:
    if (folder / "text_encoder").is_dir():
        return _clip_files(folder / "text_encoder", folder / "tokenizer")
    return _clip_files(_hub_folder(CLIP_REPOSITORY, CLIP_PATTERNS, instead_of=folder / "text_encoder"))


def _t5_files(folder: Path, tokenizer: Path | None = None) -> EncoderFiles:
    return _encoder_files("T5", folder, tokenizer or folder, T5_TOKENIZER_FILES)


def _clip_files(folder: Path, tokenizer: Path | None = None) -> EncoderFiles:
    return _encoder_files("CLIP", folder, tokenizer or folder, CLIP_TOKENIZER_FILES)


def _encoder_files(
    name: str, folder: Path, tokenizer: Path, tokenizer_files: tuple[tuple[str, ...], ...]
) -> EncoderFiles:
    _present(folder / "config.json", f"the configuration of {name}")
    if not any(all((tokenizer / file).is_file() for file in files) for files in tokenizer_files):
        either = ", or ".join(" and ".join(files) for files in tokenizer_files)
        raise CheckpointError(f"{tokenizer} lacks the tokenizer of {name}: put {either} there")
    return EncoderFiles(config=folder, weights=_encoder_weights(name, folder), tokenizer=tokenizer)


def _encoder_weights(name: str, folder: Path) -> tuple[Path, ...]:
    """Weight file of an encoder, or the shards that its index lists; safetensors before pickles."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (folder / whole).is_file():
            return (folder / whole,)
        index = folder / f"{whole}.index.json"
        if index.is_file():
            shards = sorted(set(_read_json(index)["weight_map"].values()))
            return tuple(_present(folder / shard, f"a shard of {name} that {index.name} lists") for shard in shards)
    raise CheckpointError(
        f"{folder} lacks the weights of {name}: put model.safetensors, or shards and their index, there"
    )


def _hub_folder(repository: str, patterns: tuple[str, ...], instead_of: Path | None = None) -> Path:
    """Folder of a hub repository in the cache; downloads missing files if the hub may be used."""
    beside = f", or put its files into {instead_of}" if instead_of else ""
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{repository} is not in the Hugging Face cache and the hub cannot be reached; "
            f"run `hf download {repository}` where it can{beside}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"the Hugging Face hub does not give {repository}: {reason}{beside}") from error


def _present(path: Path, what: str) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: put {what} there")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content
