"""Files of the text encoders: a folder as transformers writes it, or one file as ComfyUI's users keep it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kontext.errors import CheckpointError
from kontext.weights.files import shards_of
from kontext.weights.hub import (
    CLIP_PATTERNS,
    CLIP_REPOSITORY,
    T5_PATTERNS,
    T5_REPOSITORY,
    VOCABULARY_PATTERNS,
    hub_folder,
)
from kontext.weights.naming import find_unfinished

FOLDERS_OF_SINGLE_FILES = ("", "text_encoders", "clip")


@dataclass(frozen=True)
class EncoderFiles:
    """Files of a text encoder: the folder of its config.json, its weight files, the folder of its tokenizer.

    Without a config.json the sizes follow from the weights.
    """

    config: Path
    weights: tuple[Path, ...]
    tokenizer: Path


@dataclass(frozen=True)
class Encoder:
    """A text encoder and where its files are looked for.

    Args:
        folder, tokenizer: in the model's own repository.
        single_files: patterns of its name where it is one file.
        tokenizer_files: sets of files, each enough for a tokenizer. Without any, transformers silently creates an empty
            one.
    """

    name: str
    folder: str
    tokenizer: str
    single_files: tuple[str, ...]
    tokenizer_files: tuple[tuple[str, ...], ...]
    repository: str
    patterns: tuple[str, ...]


T5 = Encoder(
    name="T5",
    folder="text_encoder_2",
    tokenizer="tokenizer_2",
    single_files=("*t5xxl*.safetensors", "*t5xxl*.gguf", "*t5-v1_1-xxl*.gguf", "*t5-v1_1-xxl*.safetensors"),
    tokenizer_files=(("tokenizer.json",), ("spiece.model",)),
    repository=T5_REPOSITORY,
    patterns=T5_PATTERNS,
)
CLIP = Encoder(
    name="CLIP",
    folder="text_encoder",
    tokenizer="tokenizer",
    single_files=("*clip_l*.safetensors", "*clip-l*.safetensors"),
    tokenizer_files=(("tokenizer.json",), ("vocab.json", "merges.txt")),
    repository=CLIP_REPOSITORY,
    patterns=CLIP_PATTERNS,
)


def find_encoder(encoder: Encoder, folder: Path, whole_model: Path | None) -> EncoderFiles:
    """Find the files of an encoder that belongs to the model in a folder.

    Args:
        whole_model: a file that holds the encoder's weights beside others, or None.
    Raises:
        CheckpointError: a file is missing.
    """
    if whole_model is None and (folder / encoder.folder).is_dir():
        return in_folder(encoder, folder / encoder.folder, folder / encoder.tokenizer)
    single = whole_model or _single_file(encoder, folder)
    if single is not None:
        tokenizer = _tokenizer_of_single_file(encoder, folder)
        return EncoderFiles(config=tokenizer, weights=(single,), tokenizer=tokenizer)
    return in_folder(encoder, hub_folder(encoder.repository, encoder.patterns, instead_of=folder / encoder.folder))


def in_folder(encoder: Encoder, folder: Path, tokenizer: Path | None = None) -> EncoderFiles:
    """Files of an encoder in a folder as transformers writes it.

    Raises:
        CheckpointError: a file is missing.
    """
    tokenizer = tokenizer or folder
    present(folder / "config.json", f"the configuration of {encoder.name}")
    if not _has_tokenizer(encoder, tokenizer):
        raise CheckpointError(f"{tokenizer} lacks the tokenizer of {encoder.name}: {_tokenizer_advice(encoder)} there")
    return EncoderFiles(config=folder, weights=_weights(encoder, folder), tokenizer=tokenizer)


def present(path: Path, what: str) -> Path:
    """The path of a file that has to be there.

    Raises:
        CheckpointError: it is not there; the message says what to put there.
    """
    if path.is_file():
        return path
    if unfinished := find_unfinished(path):
        raise CheckpointError(f"{path} is missing; {unfinished.name} is a download that did not end: go on with it")
    raise CheckpointError(f"{path} is missing: put {what} there")


def one_of(found: list[Path], place: Path, what: str) -> Path | None:
    """The one file found, or None.

    Raises:
        CheckpointError: there are several.
    """
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(place)) for path in found)
        raise CheckpointError(f"{place} has several {what} ({names}); leave the one to be used")
    return found[0] if found else None


def _weights(encoder: Encoder, folder: Path) -> tuple[Path, ...]:
    """Weight file of an encoder, or the shards that its index lists; safetensors before pickles."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (folder / whole).is_file():
            return (folder / whole,)
        index = folder / f"{whole}.index.json"
        if index.is_file():
            return tuple(shards_of(index))
    raise CheckpointError(
        f"{folder} lacks the weights of {encoder.name}: put model.safetensors, or shards and their index, there"
    )


def _single_file(encoder: Encoder, folder: Path) -> Path | None:
    found = {
        path
        for place in FOLDERS_OF_SINGLE_FILES
        for pattern in encoder.single_files
        for path in (folder / place).glob(pattern)
    }
    return one_of(sorted(found), folder, f"files of {encoder.name}")


def _tokenizer_of_single_file(encoder: Encoder, folder: Path) -> Path:
    """Single files hold no vocabulary; it lies beside them, or in the hub's cache."""
    places = (folder / encoder.tokenizer, folder / encoder.folder, folder / encoder.name.lower())
    for place in places:
        if _has_tokenizer(encoder, place):
            return place
    found = hub_folder(encoder.repository, VOCABULARY_PATTERNS, instead_of=places[0])
    if not _has_tokenizer(encoder, found):
        raise CheckpointError(f"{places[0]} lacks the tokenizer of {encoder.name}: {_tokenizer_advice(encoder)} there")
    return found


def _has_tokenizer(encoder: Encoder, folder: Path) -> bool:
    has: Callable[[str], bool] = lambda name: (folder / name).is_file()  # noqa: E731
    return any(all(map(has, names)) for names in encoder.tokenizer_files)


def _tokenizer_advice(encoder: Encoder) -> str:
    return "put " + ", or ".join(" and ".join(names) for names in encoder.tokenizer_files)
