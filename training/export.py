"""Networks to a model folder, as `kontext.load` reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from kontext.config import ModelConfig
from kontext.networks import Networks
from kontext.weights.layout import ModelFiles

TRANSFORMER, AUTOENCODER, T5, CLIP = "flux1-tiny-kontext.safetensors", "ae.safetensors", "t5", "clip"
FILES = {"transformer": TRANSFORMER, "autoencoder": AUTOENCODER, "t5": T5, "clip": CLIP}
WEIGHTS = "model.safetensors"  # of either text encoder
T5_ALIAS = "encoder.embed_tokens.weight"  # the same table as shared.weight


def export(networks: Networks, files: ModelFiles, folder: Path) -> None:
    """Write weights, sizes and vocabularies.

    Args:
        files: where sizes and vocabularies come from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export_weights(networks.transformer, folder / TRANSFORMER, torch.bfloat16)
    export_weights(networks.autoencoder, folder / AUTOENCODER, torch.bfloat16)
    for name, encoder, origin in ((T5, networks.t5, files.t5), (CLIP, networks.clip, files.clip)):
        (folder / name).mkdir(exist_ok=True)
        for file in {*origin.config.glob("*.json"), *origin.tokenizer.glob("*")}:
            if file.suffix != ".safetensors" and not (folder / name / file.name).exists():
                shutil.copy(file, folder / name)
        export_weights(encoder.network, folder / name / WEIGHTS, torch.float32)
    write_config(files.config, folder / "config.json")


def export_weights(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    weights = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in network.state_dict().items()
        if key != T5_ALIAS
    }
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # it is written for its owner alone


def write_config(config: ModelConfig, path: Path, files: Mapping[str, str] = FILES) -> None:
    """Write `config.json` under the field names of the published parameter tables.

    Args:
        files: paths of the four networks, relative to the folder.
    """
    described = {
        "name": config.name,
        "model_type": "flux-kontext",
        "files": dict(files),
        "transformer": vars(config.transformer),
        "autoencoder": vars(config.autoencoder),
        "text": {"t5_max_length": config.max_sequence_length, "clip_max_length": config.clip_max_length},
        "max_sequence_length": config.max_sequence_length,
        "preferred_resolutions": config.preferred_resolutions,
        "preferred_resolutions_order": "width, height",
        **({"most_pixels": config.most_pixels} if config.most_pixels else {}),
    }
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
