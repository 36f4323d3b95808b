"""Text encoders: T5 returns one vector per token of a prompt, CLIP one pooled vector.

Networks and tokenizers come from `transformers`. Ids are padded to full length and no attention mask is passed:
the model was trained with encoders that attend to their padding.
"""

# mypy: disable-error-code="no-any-return"
# To the type checker, calling an nn.Module returns Any; the annotations of `forward` state the type.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from kontext.errors import CheckpointError
from kontext.weights.checkpoint import build_on_meta, load_weights
from kontext.weights.layout import EncoderFiles
from kontext.weights.reading import Convert, convert_now

# T5's embedding table is rounded up to a multiple of 128 rows; 32,100 pieces lie in 32,128 rows.
MOST_UNUSED_ROWS = 127


class TextEncoder(nn.Module):
    """Tokenizer and network of transformers, and the output to return.

    Args:
        output: name of the output, "last_hidden_state" for T5 and "pooler_output" for CLIP.
    """

    def __init__(self, network: nn.Module, tokenizer: PreTrainedTokenizerBase, output: str) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.output = output

    def forward(self, prompt: str, max_length: int) -> Tensor:
        """Encode a prompt, truncated or padded to max_length tokens.

        Returns:
            T5: (1, max_length, width). CLIP: the state at the end-of-text token, (1, width).
        """
        ids = self.token_ids(prompt, max_length).to(next(self.network.parameters()).device)
        return getattr(self.network(input_ids=ids), self.output)

    def token_ids(self, prompt: str | Sequence[str], max_length: int) -> Tensor:
        """Token ids of one prompt, shape (1, max_length), or of several, one per row."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        encoded = self.tokenizer(
            prompts, truncation=True, max_length=max_length, padding="max_length", return_tensors="pt"
        )
        return encoded["input_ids"]

    def token_count(self, prompt: str) -> int:
        """Number of tokens of the whole prompt before truncation, including the end-of-text token."""
        return len(self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"])


def load_t5(files: EncoderFiles, dtype: torch.dtype, convert: Convert = convert_now) -> TextEncoder:
    """Load the T5 encoder, from its own checkpoint or that of a whole T5.

    Raises:
        CheckpointError: the weights or the tokenizer do not fit the encoder.
    """
    config = _load_config(T5Config, files)
    network = build_on_meta(lambda: T5EncoderModel(config))
    del network.encoder.embed_tokens  # second name of the table `shared`: load it once, then restore the name
    load_weights(network, files.weights, dtype, _t5_key, convert)
    network.encoder.embed_tokens = network.shared
    return TextEncoder(network, _load_tokenizer(T5Tokenizer, files, config.vocab_size), "last_hidden_state")


def load_clip(files: EncoderFiles, dtype: torch.dtype, convert: Convert = convert_now) -> TextEncoder:
    """Load CLIP's text encoder, from its own checkpoint or that of a whole CLIP.

    Raises:
        CheckpointError: the weights or the tokenizer do not fit the encoder.
    """
    config = _load_config(CLIPTextConfig, files)
    network = build_on_meta(lambda: CLIPTextModel(config))
    load_weights(network, files.weights, dtype, _clip_key, convert)
    # Not a weight: no checkpoint holds this buffer, and on the meta device it was built without values.
    positions = torch.arange(config.max_position_embeddings).unsqueeze(0)
    network.embeddings.register_buffer("position_ids", positions, persistent=False)
    return TextEncoder(network, _load_tokenizer(CLIPTokenizer, files, config.vocab_size), "pooler_output")


def _t5_key(key: str) -> str | None:
    if key.startswith(("decoder.", "lm_head.")):
        return None
    return "shared.weight" if key == "encoder.embed_tokens.weight" else key


def _clip_key(key: str) -> str | None:
    name = key.removeprefix("text_model.")
    if name.startswith(("vision_model.", "visual_projection.", "text_projection.")):
        return None
    return None if name in ("logit_scale", "embeddings.position_ids") else name


def _load_config(kind: Any, files: EncoderFiles) -> Any:
    try:
        return kind.from_pretrained(files.config, local_files_only=True)
    except Exception as error:  # transformers raises a different type for each wrong field
        raise CheckpointError(f"{files.config / 'config.json'} does not describe a text encoder: {error}") from error


def _load_tokenizer(kind: Any, files: EncoderFiles, embedding_rows: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer and check its size: transformers may silently return an empty one."""
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(files.tokenizer, local_files_only=True)
    except Exception as error:  # each vocabulary format raises types of its own
        raise CheckpointError(f"the tokenizer in {files.tokenizer} cannot be read: {error}") from error
    if not embedding_rows - MOST_UNUSED_ROWS <= len(tokenizer) <= embedding_rows:
        raise CheckpointError(
            f"the tokenizer in {files.tokenizer} knows {len(tokenizer)} tokens but the encoder in {files.config} "
            f"has {embedding_rows}; put the vocabulary of this encoder there"
        )
    return tokenizer
