"""Models of any size with random weights, as networks and as folders that every engine loads."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from kontext.autoencoder import Autoencoder
from kontext.config import AutoencoderConfig, ModelConfig, Resolution, TransformerConfig
from kontext.transformer import Transformer
from kontext.weights.checkpoint import build_on_meta
from kontext.weights.layout import bundled_model
from training.export import T5_ALIAS, WEIGHTS, write_config

CPU = torch.device("cpu")
HEADS = ((4, (8, 28, 28)), (5, (16, 24, 24)), (2, (16, 56, 56)), (3, (32, 40, 56)))  # number of heads, axes of one
T5_WIDTH, CLIP_WIDTH = 128, 64  # of the bundled model's encoders, which random models use


def model_config(
    name: str, size: Resolution, text_tokens: int, autoencoder: AutoencoderConfig, **transformer: Any
) -> ModelConfig:
    """A model with the bundled text encoders, for images of one size; `transformer`: its sizes by name."""
    return ModelConfig(
        name=name,
        transformer=TransformerConfig(context_in_dim=T5_WIDTH, vec_in_dim=CLIP_WIDTH, **transformer),
        autoencoder=autoencoder,
        max_sequence_length=text_tokens,
        preferred_resolutions=(size,),
    )


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


def random_weights(
    network: nn.Module, seed: int, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Weights in host memory, drawn on a device, that keep activations near unit size and zero no branch."""
    draw = torch.Generator(device).manual_seed(seed)

    def weight(name: str, shape: torch.Size) -> Tensor:
        values = torch.randn(shape, generator=draw, device=device, dtype=dtype)
        if len(shape) > 1:
            return values / math.sqrt(math.prod(shape[1:]))
        if name.endswith(".scale"):  # of queries and keys: sharp attention, so that a wrong position shows
            return 2 + 0.2 * values
        return 1 + 0.2 * values if name.endswith(".weight") else 0.2 * values

    return {name: weight(name, meta.shape).cpu() for name, meta in sorted(network.state_dict().items())}


def write_random_model(
    folder: Path,
    config: ModelConfig,
    seed: int,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    encoders: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> Path:
    """Write a model folder with random transformer and autoencoder and the bundled text encoders.

    Args:
        device: draws the weights; a GPU makes 12 billion of them in seconds.
        dtype: of all weights but the autoencoder's, which are float32.
        encoders: "t5" and "clip" for random ones too: differences of their sizes from the bundled config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks: dict[str, tuple[nn.Module, torch.dtype]] = {
        "transformer": (build_on_meta(lambda: Transformer(config.transformer)), dtype),
        "autoencoder": (build_on_meta(lambda: Autoencoder(config.autoencoder)), torch.float32),
    }
    files = {part: f"{part}.safetensors" for part in networks}
    for part, (network, kept_as) in networks.items():
        save_file(random_weights(network, seed, device, kept_as), folder / files[part])
    for part in ("t5", "clip"):
        files[part] = str(bundled_model() / part)  # an absolute path stays one when it is joined to the folder's
        if part in encoders:
            files[part] = part
            _write_encoder(folder / part, encoders[part], seed, device, dtype)
    write_config(config, folder / "config.json", files)
    return folder


def is_written(folder: Path) -> bool:
    """True for a complete model: its description is written last."""
    return (folder / "config.json").exists()


def text_encoder(part: str, sizes: Mapping[str, Any]) -> nn.Module:
    """T5 ("t5") or CLIP ("clip") on the meta device, as the bundled one but for these sizes."""
    config = {**_bundled_config(part), **sizes}
    if part == "clip":
        return build_on_meta(lambda: CLIPTextModel(CLIPTextConfig(**config)))
    network: nn.Module = build_on_meta(lambda: T5EncoderModel(T5Config(**config)))
    return network


def _write_encoder(folder: Path, sizes: Mapping[str, Any], seed: int, device: torch.device, dtype: torch.dtype) -> None:
    """The bundled tokenizer with an encoder of other sizes."""
    without_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(bundled_model() / folder.name, folder, ignore=without_weights, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**_bundled_config(folder.name), **sizes}))
    weights = random_weights(text_encoder(folder.name, sizes), seed, device, dtype)
    weights.pop(T5_ALIAS, None)
    save_file(weights, folder / WEIGHTS)


def _bundled_config(part: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((bundled_model() / part / "config.json").read_text())
    return config
