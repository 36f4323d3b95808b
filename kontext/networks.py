"""The four networks of a model, read from its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kontext.autoencoder import Autoencoder
from kontext.text import TextEncoder, load_clip, load_t5
from kontext.transformer import Transformer
from kontext.weights.checkpoint import build_on_meta, load_weights
from kontext.weights.key_names import autoencoder_names, transformer_names
from kontext.weights.layout import ModelFiles
from kontext.weights.reading import Convert, convert_now


@dataclass(frozen=True)
class Networks:
    """The four networks of a model, in the dtypes they run in.

    Args:
        approximations: what their files hold less exactly than in bfloat16.
    """

    transformer: Transformer
    autoencoder: Autoencoder
    t5: TextEncoder
    clip: TextEncoder
    approximations: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.transformer, self.autoencoder, self.t5, self.clip))


def load_networks(files: ModelFiles, dtype: torch.dtype, convert: Convert = convert_now) -> Networks:
    """Map all weights into host memory: the autoencoder in float32, everything else in dtype."""
    transformer = build_on_meta(lambda: Transformer(files.config.transformer))
    autoencoder = build_on_meta(lambda: Autoencoder(files.config.autoencoder))
    return assemble(transformer, autoencoder, files, dtype, convert)


def assemble(
    transformer: Any, autoencoder: Any, files: ModelFiles, dtype: torch.dtype, convert: Convert = convert_now
) -> Networks:
    """Load a model's weights into a transformer and an autoencoder on the meta device, and its text encoders."""
    t5, clip = load_t5(files.t5, dtype, convert), load_clip(files.clip, dtype, convert)
    forms = {
        "transformer": load_weights(transformer, [files.transformer], dtype, transformer_names, convert),
        "autoencoder": load_weights(autoencoder, [files.autoencoder], torch.float32, autoencoder_names, convert),
        "T5": t5.forms,
        "CLIP": clip.forms,
    }
    stored = tuple(f"{part} stored in {' and '.join(names)}" for part, names in forms.items() if names)
    return Networks(transformer, autoencoder, t5, clip, stored)
