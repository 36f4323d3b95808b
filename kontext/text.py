"""Text encoders: T5 returns one vector per token of a prompt, CLIP one pooled vector.

Networks and tokenizers come from `transformers`. Ids are padded to full length and no attention mask is passed:
the model was trained with encoders that attend to their padding.
"""

# mypy: disable-error-code="no-any-return"
# To the type checker, calling an nn.Module returns Any; the annotations of `forward` state the type.

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from kontext.weights.encoders import EncoderFiles
from kontext.weights.files import read_weights
from kontext.weights.key_names import Arrange, Weights, part_of
from kontext.weights.reading import Convert, convert_now
from kontext.weights.stored import Weight

# T5's embedding table is rounded up to a multiple of 128 rows; 32,100 pieces lie in 32,128 rows.
MOST_UNUSED_ROWS = 127
CLIP_L_WIDTH = 768


class TextEncoder(nn.Module):
    """Tokenizer and network of transformers, and the output to return.

    Args:
        output: name of the output, "last_hidden_state" for T5 and "pooler_output" for CLIP.
        forms: number formats less exact than bfloat16 in which the files hold weights.
    """

    def __init__(
        self, network: nn.Module, tokenizer: PreTrainedTokenizerBase, output: str, forms: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.forms = forms
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
    config = _load_config(T5Config, files) or _config_by_shapes(files, t5_names, t5_config)
    network = build_on_meta(lambda: T5EncoderModel(config))
    del network.encoder.embed_tokens  # second name of the table `shared`: load it once, then restore the name
    forms = load_weights(network, files.weights, dtype, t5_names, convert)
    network.encoder.embed_tokens = network.shared
    return TextEncoder(network, _load_tokenizer(T5Tokenizer, files, config.vocab_size), "last_hidden_state", forms)


def load_clip(files: EncoderFiles, dtype: torch.dtype, convert: Convert = convert_now) -> TextEncoder:
    """Load CLIP's text encoder, from its own checkpoint or that of a whole CLIP.

    Raises:
        CheckpointError: the weights or the tokenizer do not fit the encoder.
    """
    config = _load_config(CLIPTextConfig, files) or _config_by_shapes(files, clip_names, clip_config)
    network = build_on_meta(lambda: CLIPTextModel(config))
    forms = load_weights(network, files.weights, dtype, clip_names, convert)
    # Not a weight: no checkpoint holds this buffer, and on the meta device it was built without values.
    positions = torch.arange(config.max_position_embeddings).unsqueeze(0)
    network.embeddings.register_buffer("position_ids", positions, persistent=False)
    return TextEncoder(network, _load_tokenizer(CLIPTokenizer, files, config.vocab_size), "pooler_output", forms)


def t5_names(weights: Weights) -> dict[str, Weight]:
    """The encoder's weights of a T5, whole or not."""
    found = part_of(weights, "t5")
    ours = {
        name: weight for name, weight in found.items() if not name.startswith(("decoder.", "lm_head.", "logit_scale"))
    }
    alias = ours.pop("encoder.embed_tokens.weight", None)
    return ours if alias is None else {"shared.weight": alias} | ours


def clip_names(weights: Weights) -> dict[str, Weight]:
    """The text encoder's weights of a CLIP, whole or not."""
    found = part_of(weights, "clip")
    ours = {name.removeprefix("text_model."): weight for name, weight in found.items()}
    others = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "embeddings.position_ids")
    return {name: weight for name, weight in ours.items() if not name.startswith(others)}


def _load_config(kind: Any, files: EncoderFiles) -> Any:
    """The configuration in an encoder's folder; None where there is no file of it."""
    if not (files.config / "config.json").is_file():
        return None
    try:
        return kind.from_pretrained(files.config, local_files_only=True)
    except Exception as error:  # transformers raises a different type for each wrong field
        raise CheckpointError(f"{files.config / 'config.json'} does not describe a text encoder: {error}") from error


def _config_by_shapes(files: EncoderFiles, arrange: Arrange, configure: Callable[[dict[str, Weight]], Any]) -> Any:
    """The configuration that the shapes of an encoder's weights imply."""
    try:
        return configure(arrange(read_weights(files.weights)))
    except (KeyError, ZeroDivisionError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{files.weights[0]} is not the text encoder that is expected there ({error}); "
            f"put a config.json with its sizes into {files.config}"
        ) from error


def t5_config(weights: dict[str, Weight]) -> T5Config:
    """Sizes of a T5 v1.1 encoder by its weights."""
    first = "encoder.block.0.layer"
    buckets, heads = weights[f"{first}.0.SelfAttention.relative_attention_bias.weight"].shape
    vocabulary, width = weights["shared.weight"].shape
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=weights[f"{first}.0.SelfAttention.q.weight"].shape[0] // heads,
        d_ff=weights[f"{first}.1.DenseReluDense.wi_0.weight"].shape[0],
        num_layers=_count(weights, "encoder.block"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        use_cache=False,
    )


def clip_config(weights: dict[str, Weight]) -> CLIPTextConfig:
    """Sizes of CLIP-L's text encoder; of another one the shapes do not tell the number of heads.

    Raises:
        ValueError: it is another one.
    """
    vocabulary, width = weights["embeddings.token_embedding.weight"].shape
    if width != CLIP_L_WIDTH:
        raise ValueError(f"CLIP-L has width {CLIP_L_WIDTH}, this one {width}")
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_count(weights, "encoder.layers"),
        num_attention_heads=width // 64,
        max_position_embeddings=weights["embeddings.position_embedding.weight"].shape[0],
        hidden_act="quick_gelu",
    )


def _count(weights: dict[str, Weight], layers: str) -> int:
    return len({name[len(layers) + 1 :].partition(".")[0] for name in weights if name.startswith(f"{layers}.")})


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
