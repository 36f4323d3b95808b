"""A model folder of any size with seeded random weights, made on the device and written as people have theirs."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.gpu.scale import Scale
from kontext.autoencoder import Autoencoder
from kontext.config import ModelConfig
from kontext.transformer import Transformer
from kontext.weights.checkpoint import build_on_meta
from kontext.weights.layout import bundled_model

NORMS_AND_BIASES = 0.05  # standard deviation: weights with one dimension are near 1 or 0


def write_full_model(folder: Path, scale: Scale, device: torch.device) -> None:
    """Write the model that is timed; every network in bfloat16 but the autoencoder, as published."""
    _make_empty(folder)
    _write_networks(folder, scale.model, device)
    _write_encoder(folder / "t5", _t5, scale.t5, device)
    _write_encoder(folder / "clip", CLIPTextModel, scale.clip, device)
    _describe(folder, scale.model, encoders=Path())


def write_shallow_model(folder: Path, scale: Scale, device: torch.device) -> None:
    """Write the model that is compared with a CPU: few blocks, and the bundled text encoders."""
    _make_empty(folder)
    _write_networks(folder, scale.shallow, device)
    _describe(folder, scale.shallow, encoders=bundled_model())  # an absolute path stays one when it is joined


def is_written(folder: Path) -> bool:
    """Whether a model is there as a whole: its description is written last."""
    return (folder / "config.json").exists()


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what was begun and not ended
    folder.mkdir(parents=True)


def _write_networks(folder: Path, config: ModelConfig, device: torch.device) -> None:
    transformer = build_on_meta(lambda: Transformer(config.transformer))
    save_file(random_weights(transformer, device, torch.bfloat16, seed=1), folder / "transformer.safetensors")
    autoencoder = build_on_meta(lambda: Autoencoder(config.autoencoder))
    save_file(random_weights(autoencoder, device, torch.float32, seed=2), folder / "autoencoder.safetensors")


def _write_encoder(folder: Path, build: Any, sizes: dict[str, Any], device: torch.device) -> None:
    """The bundled tokenizer with an encoder of other sizes."""
    source = bundled_model() / folder.name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | sizes))
    config_class = T5Config if folder.name == "t5" else CLIPTextConfig
    network = build_on_meta(lambda: build(config_class.from_pretrained(folder)))
    save_file(random_weights(network, device, torch.bfloat16, seed=3), folder / "model.safetensors")


def _t5(config: T5Config) -> nn.Module:
    network = T5EncoderModel(config)
    del network.encoder.embed_tokens  # `shared` under a second name
    return network


def _describe(folder: Path, config: ModelConfig, encoders: Path) -> None:
    files = {part: f"{part}.safetensors" for part in ("transformer", "autoencoder")}
    files |= {part: str(encoders / part) for part in ("t5", "clip")}
    described = {"model_type": "flux-kontext", "files": files, "text": {"clip_max_length": config.clip_max_length}}
    (folder / "config.json").write_text(json.dumps(asdict(config) | described))


@torch.inference_mode()
def random_weights(network: nn.Module, device: torch.device, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Weights in host memory that keep activations near unit size."""
    draw = torch.Generator(device).manual_seed(seed)

    def weight(name: str, shape: torch.Size) -> Tensor:
        values = torch.randn(shape, generator=draw, device=device, dtype=dtype)
        if len(shape) > 1:
            return values / math.sqrt(math.prod(shape[1:]))
        return NORMS_AND_BIASES * values + (0 if name.endswith("bias") else 1)

    return {name: weight(name, meta.shape).cpu() for name, meta in sorted(network.state_dict().items())}
