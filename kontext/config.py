"""Configuration of a model: sizes of the networks, text lengths, preferred resolutions.

The defaults are FLUX.1 Kontext [dev], 12 billion parameters. Another model states its sizes in its `config.json`.
Field names follow the published parameter tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

Resolution = tuple[int, int]  # width, height in pixels

LATENT_CHANNELS = 16
PIXELS_PER_LATENT = 8
PIXELS_PER_TOKEN = 16  # a token is a patch of 2x2 latents
LEAST_MOST_PIXELS = PIXELS_PER_TOKEN**2
SHORTEST_TEXT, LONGEST_TEXT = 64, 1024  # T5 tokens

# Sizes Kontext was trained on, about a megapixel each, from tall to wide.
PREFERRED_RESOLUTIONS: tuple[Resolution, ...] = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the flow transformer."""

    in_channels: int = LATENT_CHANNELS * 4
    out_channels: int = LATENT_CHANNELS * 4
    vec_in_dim: int = 768  # CLIP's pooled vector
    context_in_dim: int = 4096  # T5's token vectors
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    num_heads: int = 24
    depth: int = 19  # double-stream blocks
    depth_single_blocks: int = 38
    axes_dim: tuple[int, ...] = (16, 56, 56)  # channels of a head that turn with image index, row, column
    theta: int = 10_000
    qkv_bias: bool = True
    guidance_embed: bool = True

    def __post_init__(self) -> None:
        if min(self.num_heads, self.hidden_size, self.in_channels, self.out_channels) < 1:
            raise ValueError("hidden_size, num_heads, in_channels and out_channels must be at least 1")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if sum(self.axes_dim) != self.head_dim:
            raise ValueError(f"axes_dim {list(self.axes_dim)} must sum to hidden_size / num_heads = {self.head_dim}")
        if not self.guidance_embed:
            raise ValueError("guidance_embed must be true: Kontext is guided by an embedded scale")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder, and the statistics that bring its latents to about unit variance."""

    resolution: int = 256  # of its training; nothing is computed from it
    in_channels: int = 3
    ch: int = 128
    out_ch: int = 3
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = LATENT_CHANNELS
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    def __post_init__(self) -> None:
        if 2 ** (len(self.ch_mult) - 1) != PIXELS_PER_LATENT:
            raise ValueError(f"ch_mult {list(self.ch_mult)} must have 4 levels, which make latents 8 times smaller")

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Width of every level, from full resolution down."""
        return tuple(self.ch * multiplier for multiplier in self.ch_mult)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that differs between one Kontext model and another, apart from the weights."""

    name: str = "flux1-kontext-dev"
    transformer: TransformerConfig = TransformerConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    max_sequence_length: int = 512  # T5 tokens
    clip_max_length: int = 77
    preferred_resolutions: tuple[Resolution, ...] = PREFERRED_RESOLUTIONS
    most_pixels: int | None = None  # of a target that is sampled as asked; None: twice the usual area

    @property
    def usual_area(self) -> int:
        """Pixels of the preferred resolution that is nearest to a square: a megapixel for the 12B model."""
        width, height = min(self.preferred_resolutions, key=lambda size: max(size) / min(size))
        return width * height

    @property
    def largest_area(self) -> int:
        """Pixels up to which a target is sampled at the size asked for: 2 megapixels (2 * 2^20) for the 12B model."""
        return self.most_pixels or 2 * self.usual_area

    @classmethod
    def from_json(cls, described: dict[str, Any]) -> ModelConfig:
        """Read the content of a model folder's `config.json`; what it leaves out is as in the 12B model.

        Raises:
            ValueError, TypeError: a field is unknown, or its value cannot be.
        """
        default = cls()
        resolutions = described.get("preferred_resolutions", default.preferred_resolutions)
        most_pixels = described.get("most_pixels")
        return cls(
            name=str(described.get("name", default.name)),
            transformer=_read(TransformerConfig, described.get("transformer", {})),
            autoencoder=_read(AutoencoderConfig, described.get("autoencoder", {})),
            max_sequence_length=int(described.get("max_sequence_length", default.max_sequence_length)),
            clip_max_length=int(described.get("text", {}).get("clip_max_length", default.clip_max_length)),
            preferred_resolutions=tuple((int(width), int(height)) for width, height in resolutions),
            most_pixels=None if most_pixels is None else int(most_pixels),
        )


Config = TypeVar("Config", TransformerConfig, AutoencoderConfig)


def _read(kind: type[Config], fields: dict[str, Any]) -> Config:
    """JSON has lists where frozen dataclasses want tuples."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return kind(**values)
