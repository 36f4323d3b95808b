"""Sizes of a model as diffusers' folders state them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kontext.config import AutoencoderConfig, ModelConfig, TransformerConfig
from kontext.errors import CheckpointError


def config_from_diffusers(folder: Path) -> ModelConfig:
    """Read transformer/config.json and vae/config.json; what they leave out is as in the 12B model.

    Raises:
        CheckpointError: a value cannot be, or the model is none that this engine computes.
    """
    try:
        return ModelConfig(
            name=folder.name,
            transformer=_transformer(_read(folder / "transformer" / "config.json")),
            autoencoder=_autoencoder(_read(folder / "vae" / "config.json")),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: config.json of transformer or vae does not describe a model: {error}"
        ) from error


def _transformer(theirs: dict[str, Any]) -> TransformerConfig:
    usual = TransformerConfig()
    heads = int(theirs.get("num_attention_heads", usual.num_heads))
    in_channels = int(theirs.get("in_channels", usual.in_channels))
    return TransformerConfig(
        in_channels=in_channels,
        out_channels=int(theirs.get("out_channels") or in_channels),
        vec_in_dim=int(theirs.get("pooled_projection_dim", usual.vec_in_dim)),
        context_in_dim=int(theirs.get("joint_attention_dim", usual.context_in_dim)),
        hidden_size=heads * int(theirs.get("attention_head_dim", usual.head_dim)),
        num_heads=heads,
        depth=int(theirs.get("num_layers", usual.depth)),
        depth_single_blocks=int(theirs.get("num_single_layers", usual.depth_single_blocks)),
        axes_dim=tuple(int(axis) for axis in theirs.get("axes_dims_rope", usual.axes_dim)),
        guidance_embed=bool(theirs.get("guidance_embeds", True)),
    )


def _autoencoder(theirs: dict[str, Any]) -> AutoencoderConfig:
    usual = AutoencoderConfig()
    widths = [int(width) for width in theirs.get("block_out_channels", usual.level_channels)]
    narrowest = widths[0]
    if any(width % narrowest for width in widths):
        raise ValueError(f"block_out_channels {widths} are no multiples of the first")
    return AutoencoderConfig(
        ch=narrowest,
        ch_mult=tuple(width // narrowest for width in widths),
        num_res_blocks=int(theirs.get("layers_per_block", usual.num_res_blocks)),
        z_channels=int(theirs.get("latent_channels", usual.z_channels)),
        scale_factor=float(theirs.get("scaling_factor", usual.scale_factor)),
        shift_factor=float(theirs.get("shift_factor", usual.shift_factor)),
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    return dict(content)
