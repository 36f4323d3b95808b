"""Models of any size with random weights, as networks and as folders that both engines load."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kontext.autoencoder import Autoencoder
from kontext.config import AutoencoderConfig, ModelConfig, TransformerConfig
from kontext.transformer import Transformer
from kontext.weights.layout import bundled_model

HEADS = ((4, (8, 28, 28)), (5, (16, 24, 24)), (2, (16, 56, 56)), (3, (32, 40, 56)))  # number of heads, axes of one
T5_WIDTH, CLIP_WIDTH = 128, 64  # of the bundled model's encoders, which random models use


def random_transformer_config(seed: int) -> TransformerConfig:
    """Hidden size 256 to 384, one to three blocks of each kind; the same seed gives the same sizes."""
    choose = random.Random(seed)
    num_heads, axes_dim = choose.choice(HEADS)
    return TransformerConfig(
        hidden_size=num_heads * sum(axes_dim),
        num_heads=num_heads,
        axes_dim=axes_dim,
        mlp_ratio=choose.choice((2.0, 3.5, 4.0)),
        depth=choose.randint(1, 3),
        depth_single_blocks=choose.randint(1, 3),
        theta=choose.choice((10_000, 5_000)),
        qkv_bias=choose.choice((True, False)),
        context_in_dim=T5_WIDTH,
        vec_in_dim=CLIP_WIDTH,
    )


def random_autoencoder_config(seed: int) -> AutoencoderConfig:
    """Two to three residual blocks per level, widths that grow unevenly."""
    choose = random.Random(seed)
    return AutoencoderConfig(
        ch=choose.choice((32, 64)),
        ch_mult=choose.choice(((1, 2, 2, 2), (1, 1, 3, 2), (2, 1, 2, 4))),
        num_res_blocks=choose.choice((1, 2)),
        scale_factor=choose.uniform(0.3, 0.7),
        shift_factor=choose.uniform(-0.2, 0.2),
    )


def random_weights(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights that keep activations near unit size, far from any initialisation that zeroes a branch."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _random_weight(name, weight.shape, generator) for name, weight in sorted(network.state_dict().items())
    }


def _random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    if name.endswith(".scale"):  # of queries and keys: sharp attention, so that a wrong position is seen in the output
        return 2 + 0.2 * values
    return 1 + 0.2 * values if name.endswith(".weight") else 0.2 * values


def write_random_model(folder: Path, config: ModelConfig, seed: int) -> Path:
    """Write a model folder: random transformer and autoencoder, the bundled text encoders."""
    with torch.device("meta"):
        networks = {"transformer": Transformer(config.transformer), "autoencoder": Autoencoder(config.autoencoder)}
    folder.mkdir(parents=True, exist_ok=True)
    files = {part: f"{part}.safetensors" for part in networks}
    for part, network in networks.items():
        save_file(random_weights(network, seed), folder / files[part])
    # An absolute path stays one when it is joined to the folder's.
    files |= {part: str(bundled_model() / part) for part in ("t5", "clip")}
    described = {"model_type": "flux-kontext", "files": files, "text": {"clip_max_length": config.clip_max_length}}
    (folder / "config.json").write_text(json.dumps(asdict(config) | described))
    return folder
