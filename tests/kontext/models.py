"""Model folders in the layouts that people have, made from the golden model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.kontext.golden import MODEL


def copy_model(folder: Path) -> Path:
    """The golden model in a folder of its own, to damage at will."""
    return Path(shutil.copytree(MODEL, folder))


def published_layout(folder: Path) -> Path:
    """As in the model's own repository, T5 in two shards."""
    weights_alone(folder, "flux1-kontext-dev.safetensors")
    _split(MODEL / "clip", folder / "text_encoder", folder / "tokenizer")
    _split(MODEL / "t5", folder / "text_encoder_2", folder / "tokenizer_2")
    shard(folder / "text_encoder_2")
    return folder


def weights_alone(folder: Path, transformer: str) -> Path:
    """The two files of weights and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODEL / "flow.safetensors", folder / transformer)
    shutil.copy(MODEL / "ae.safetensors", folder)
    return folder


def hub_cache(cache: Path, repository: str, source: Path) -> Path:
    """Put a copy of a folder where the Hugging Face cache would hold a repository."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    entry = cache / f"models--{repository.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(source, entry / "snapshots" / commit))


def shard(encoder: Path) -> None:
    """Replace model.safetensors by two shards and their index."""
    weights = load_file(encoder / "model.safetensors")
    keys = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, part in halves.items():
        save_file({key: weights[key] for key in part}, encoder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in halves.items() for key in part}}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    (encoder / "model.safetensors").unlink()


def _split(source: Path, encoder: Path, tokenizer: Path) -> None:
    """Weights and tokenizer lie in separate folders in a published repository."""
    encoder.mkdir()
    tokenizer.mkdir()
    for path in source.iterdir():
        shutil.copy(path, encoder if path.name in ("config.json", "model.safetensors") else tokenizer)
