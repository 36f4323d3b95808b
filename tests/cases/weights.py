"""The bundled model's weights, rewritten into the forms in which people have the 12B model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kontext.weights.layout import bundled_model

Weights = dict[str, Tensor]

TRANSFORMER, AUTOENCODER = "flux1-tiny-kontext.safetensors", "ae.safetensors"


def transformer_weights() -> Weights:
    return load_file(bundled_model() / TRANSFORMER)


def is_wide(name: str, weight: Tensor) -> bool:
    """The matrices of the blocks, which people's tools quantise."""
    return weight.dim() == 2 and "_blocks." in name


def plain_fp8(weights: Weights, dtype: torch.dtype = torch.float8_e4m3fn) -> Weights:
    return {name: weight.to(dtype) if is_wide(name, weight) else weight for name, weight in weights.items()}


def scaled_fp8(weights: Weights, suffix: str = "scale_weight", per_row: bool = False) -> Weights:
    """float8 weights with a scale beside each, as ComfyUI's `fp8_scaled` files have them."""
    result: Weights = {}
    for name, weight in weights.items():
        if not is_wide(name, weight):
            result[name] = weight
            continue
        wide = weight.float()
        scale = (wide.abs().amax(dim=1, keepdim=True) if per_row else wide.abs().max()) / 448
        result[name] = (wide / scale).to(torch.float8_e4m3fn)
        result[f"{name.removesuffix('weight')}{suffix}"] = scale
    return result


def comfy_scaled_fp8(weights: Weights) -> Weights:
    inputs = {
        f"{name.removesuffix('weight')}scale_input": torch.ones(()) for name, w in weights.items() if is_wide(name, w)
    }
    return scaled_fp8(weights) | inputs | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def comfy_noted_fp8(weights: Weights, format_name: str = "float8_e4m3fn") -> Weights:
    note = torch.tensor(list(json.dumps({"format": format_name}).encode()), dtype=torch.uint8)
    notes = {
        f"{name.removesuffix('weight')}comfy_quant": note.clone() for name, w in weights.items() if is_wide(name, w)
    }
    return scaled_fp8(weights, "weight_scale") | notes


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": weight for name, weight in weights.items()}


def model_with(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """The bundled model with another form of the transformer's file."""
    shutil.copytree(bundled_model(), folder)
    (folder / TRANSFORMER).unlink()
    save_file(change(transformer_weights()), folder / TRANSFORMER)
    return folder


def sizes_alone(folder: Path) -> None:
    """The bundled model's config.json without its list of files, so that the layout is discovered."""
    content = json.loads((bundled_model() / "config.json").read_text())
    del content["files"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))


def tokenizers(folder: Path) -> None:
    """Vocabularies and sizes of both encoders, without weights."""
    for source, target in (("t5", "tokenizer_2"), ("clip", "tokenizer")):
        shutil.copytree(bundled_model() / source, folder / target, ignore=shutil.ignore_patterns("*.safetensors"))


def comfyui_folder(root: Path) -> Path:
    """ComfyUI's folder of models; returns the folder in which it is installed."""
    folder = root / "models"
    sizes_alone(folder)
    tokenizers(folder)
    for name in ("diffusion_models", "vae", "text_encoders", "loras"):
        (folder / name).mkdir()
    save_file(
        comfy_scaled_fp8(transformer_weights()), folder / "diffusion_models" / "flux1-kontext_fp8_scaled.safetensors"
    )
    shutil.copy(bundled_model() / AUTOENCODER, folder / "vae")
    t5 = {name: weight.half() for name, weight in load_file(bundled_model() / "t5" / "model.safetensors").items()}
    save_file(t5, folder / "text_encoders" / "t5xxl_fp16.safetensors")
    shutil.copy(bundled_model() / "clip" / "model.safetensors", folder / "text_encoders" / "clip_l.safetensors")
    return root


def whole_model_in_one_file(folder: Path) -> Path:
    sizes_alone(folder)
    tokenizers(folder)
    clip = load_file(bundled_model() / "clip" / "model.safetensors")
    parts = {
        "model.diffusion_model.": transformer_weights(),
        "vae.": load_file(bundled_model() / AUTOENCODER),
        "text_encoders.t5xxl.transformer.": load_file(bundled_model() / "t5" / "model.safetensors"),
        "text_encoders.clip_l.transformer.": clip | {"text_projection.weight": torch.zeros(64, 64)},
    }
    whole = {f"{prefix}{name}": weight for prefix, part in parts.items() for name, weight in part.items()}
    marks = {"text_encoders.t5xxl.logit_scale": torch.zeros(()), "text_encoders.clip_l.logit_scale": torch.zeros(())}
    save_file(whole | marks, folder / "flux1-kontext-all-in-one.safetensors")
    return folder
