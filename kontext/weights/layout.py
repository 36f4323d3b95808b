"""Layouts of a model's files.

Recognised in this order:
1. a folder with a `config.json` of model_type "flux-kontext", which gives the sizes and may name the parts;
2. one file of the transformer, any `*kontext*` of safetensors or GGUF, in the folder or where ComfyUI keeps it
   (diffusion_models/, unet/, checkpoints/), with `ae.safetensors` beside it or in vae/. A whole model in one file has
   all parts in it. Where a config.json as above lies beside it or in the folder, sizes and other parts come from there;
3. diffusers' folders transformer/ and vae/.
Text encoders lie in text_encoder_2/ and text_encoder/ with their tokenizers (the model's own repository, diffusers), as
single files in text_encoders/ (ComfyUI), or in the Hugging Face cache. A hub id stands for its folder in the cache.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kontext.config import ModelConfig
from kontext.errors import CheckpointError
from kontext.weights.diffusers_config import config_from_diffusers
from kontext.weights.encoders import CLIP, T5, EncoderFiles, find_encoder, in_folder, one_of, present
from kontext.weights.header import read_header
from kontext.weights.hub import DIFFUSERS_PATTERNS, KONTEXT_PATTERNS, hub_folder
from kontext.weights.key_names import PREFIXES
from kontext.weights.wrong_folders import describe_wrong_folder

TRANSFORMER_FOLDERS = ("", "diffusion_models", "unet", "checkpoints")
SUFFIXES = (".safetensors", ".sft", ".gguf")
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
AUTOENCODERS = ("ae.safetensors", "ae.sft", "vae/ae.safetensors", "vae/ae.sft", f"vae/{DIFFUSERS_WEIGHTS}")


@dataclass(frozen=True)
class ModelFiles:
    """Files of all parts of a model, checked to exist; the index of shards stands for them."""

    config: ModelConfig
    transformer: Path
    autoencoder: Path
    t5: EncoderFiles
    clip: EncoderFiles


def find_model(model: str | Path | None) -> ModelFiles:
    """Find the files of a model.

    Args:
        model: a folder, its `*kontext*` file, a hub id like "black-forest-labs/FLUX.1-Kontext-dev", or None for the
            bundled tiny model.
    Raises:
        CheckpointError: a file is missing; the message says what to put where.
    """
    if model is not None and (file := Path(model).expanduser()).is_file():
        return _model_of_file(file)
    folder = model_folder(model)
    if (described := _description(folder)) is not None:
        return _described_model(folder, described, None)
    return _discovered_model(folder, _only_transformer(folder), None)


def model_folder(model: str | Path | None) -> Path:
    """Folder of a path, of a hub id, or of the bundled model (None)."""
    if model is None:
        return bundled_model()
    folder = Path(model).expanduser()
    if folder.is_dir():
        # The folder that ComfyUI is installed in, instead of its models.
        return folder / "models" if (folder / "models" / "diffusion_models").is_dir() else folder
    if isinstance(model, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        return _hub_model(model)
    raise CheckpointError(f"there is no folder {folder}; give a folder with Kontext weights or a hub id")


def bundled_model() -> Path:
    """Folder of the bundled tiny model: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    places = (package / "bundled" / "tiny", package.parent / "models" / "tiny")
    for place in places:
        if place.is_dir():
            return place
    raise CheckpointError(f"the bundled tiny model is not at {places[0]} nor {places[1]}; install the package again")


def _hub_model(repository: str) -> Path:
    """Folder of a repository, without the second copy of the weights that the model's own repository holds."""
    folder = hub_folder(repository, KONTEXT_PATTERNS)
    has_weights = any(folder.glob("*kontext*.*")) or (folder / "config.json").is_file()
    return folder if has_weights else hub_folder(repository, (*KONTEXT_PATTERNS, *DIFFUSERS_PATTERNS))


def _model_of_file(file: Path) -> ModelFiles:
    """The model whose transformer is this file; a config.json beside it or in its model's folder gives the rest."""
    folder = _folder_of(file)
    for place in (file.parent, folder):
        if (described := _description(place)) is not None:
            return _described_model(place, described, file)
    return _discovered_model(folder, file, None)


def _folder_of(file: Path) -> Path:
    """The model folder that a file of the transformer belongs to."""
    if "kontext" not in file.name.lower() or file.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{file} is a file; give the folder that holds it and ae.safetensors, or its *kontext* file"
        )
    return file.parent.parent if file.parent.name in TRANSFORMER_FOLDERS else file.parent


def _description(folder: Path) -> dict[str, Any] | None:
    """What the folder's config.json says of a model of ours, if it does."""
    path = folder / "config.json"
    content = _read_json(path) if path.is_file() else {}
    return content if content.get("model_type") == "flux-kontext" else None


def _described_model(folder: Path, described: dict[str, Any], transformer: Path | None) -> ModelFiles:
    """Files of a folder whose config.json gives the sizes, and may name the parts; a given transformer wins."""
    try:
        config = ModelConfig.from_json(described)
        if "files" not in described:
            return _discovered_model(folder, transformer or _only_transformer(folder), config)
        named = described["files"] if transformer is None else {**described["files"], "transformer": transformer.name}
        names = {part: str(named[part]) for part in ("transformer", "autoencoder", "t5", "clip")}
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'}: files.{error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model: {error}") from error
    return ModelFiles(
        config=config,
        transformer=transformer or present(folder / names["transformer"], "the flow transformer's weights"),
        autoencoder=present(folder / names["autoencoder"], "the autoencoder's weights"),
        t5=in_folder(T5, folder / names["t5"]),
        clip=in_folder(CLIP, folder / names["clip"]),
    )


def _discovered_model(folder: Path, transformer: Path, config: ModelConfig | None) -> ModelFiles:
    """Files of a folder with published weights, or with someone's copy of them."""
    inside = _parts_inside(transformer)
    if config is None and transformer.parent.name == "transformer":
        config = config_from_diffusers(folder)
    return ModelFiles(
        config=config or ModelConfig(name=transformer.stem),
        transformer=transformer,
        autoencoder=transformer if "autoencoder" in inside else _autoencoder(folder),
        t5=find_encoder(T5, folder, transformer if "t5" in inside else None),
        clip=find_encoder(CLIP, folder, transformer if "clip" in inside else None),
    )


def _parts_inside(transformer: Path) -> set[str]:
    """Parts beside the transformer in the file of a whole model."""
    if transformer.suffix not in (".safetensors", ".sft"):
        return set()
    names = read_header(transformer).tensors
    return {part for part, prefixes in PREFIXES.items() if any(name.startswith(prefixes) for name in names)}


def _autoencoder(folder: Path) -> Path:
    found = next((folder / name for name in AUTOENCODERS if (folder / name).is_file()), None)
    return found or present(folder / AUTOENCODERS[0], "the autoencoder's weights")


def _only_transformer(folder: Path) -> Path:
    found = [
        path for place in TRANSFORMER_FOLDERS for path in sorted((folder / place).glob("*")) if _is_transformer(path)
    ]
    transformer = one_of(found, folder, "*kontext*.safetensors") or _diffusers_transformer(folder)
    if transformer is None:
        raise CheckpointError(describe_wrong_folder(folder))
    return transformer


def _is_transformer(path: Path) -> bool:
    name = path.name.lower()
    return "kontext" in name and "lora" not in name and path.suffix in SUFFIXES and path.is_file()


def _diffusers_transformer(folder: Path) -> Path | None:
    weights = folder / "transformer" / DIFFUSERS_WEIGHTS
    index = weights.with_name(f"{weights.name}.index.json")
    return next((path for path in (weights, index) if path.is_file()), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content
