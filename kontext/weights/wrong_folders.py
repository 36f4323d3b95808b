"""Folders that hold no Kontext model, described so that people find the one that does."""

from __future__ import annotations

from pathlib import Path

from kontext.weights.naming import UNFINISHED_SUFFIXES, find_unfinished

WANTED = "put flux1-kontext-dev.safetensors there"


def describe_wrong_folder(folder: Path) -> str:
    """Say in one line what a folder without *kontext* weights holds, and what to give instead."""
    lacking = f"{folder} has no *kontext*.safetensors"
    if snapshots := sorted((folder / "snapshots").glob("*")) or sorted(folder.parent.glob("snapshots/*")):
        repository = _repository_of(snapshots[-1])
        return f"{lacking}: it is part of the Hugging Face cache; give {repository}, or the folder {snapshots[-1]}"
    if below := [path.parent for path in folder.glob("*/*kontext*.safetensors") if "lora" not in path.name.lower()]:
        return f"{lacking}; did you mean {below[0]}?"
    if folder.name in ("transformer", "vae", "text_encoder", "text_encoder_2") and folder.parent != folder:
        return f"{lacking}: it is a part of a model; give the folder above, {folder.parent}"
    names = sorted(path.name for path in folder.glob("*") if path.is_file())
    if unfinished := [name for name in names if "kontext" in name.lower() and name.endswith(UNFINISHED_SUFFIXES)]:
        return f"{lacking}; {unfinished[0]} is a download that did not end: go on with it, or fetch it again"
    if hidden := find_unfinished(folder / "flux1-kontext-dev.safetensors"):
        return f"{lacking}; {hidden} is a download that did not end: go on with it, or fetch it again"
    if pickles := [name for name in names if name.endswith((".ckpt", ".pt", ".pth", ".bin"))]:
        return f"{lacking}; {pickles[0]} is not read, since pickles can run code: {WANTED}"
    if others := [name for name in names if name.endswith((".safetensors", ".gguf")) and not name.startswith("ae.")]:
        return f"{lacking}; {', '.join(others[:3])} may be another model's, or lack kontext in the name: {WANTED}"
    return f"{lacking}; {WANTED}"


def _repository_of(snapshot: Path) -> str:
    return snapshot.parent.parent.name.removeprefix("models--").replace("--", "/")
