"""Files that lie where weights should, named by what they are, with the remedy."""

from __future__ import annotations

import re
from pathlib import Path

START_BYTES = 4096
UNFINISHED_SUFFIXES = (".incomplete", ".part", ".crdownload", ".download", ".tmp", ".aria2", ".!qB")
"""What downloads are called before they end (hf, curl and wget, browsers, aria2, torrents)."""

LFS_POINTER = b"version https://git-lfs"
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
NO_PICKLE = "only safetensors are read, since a pickle can run code: fetch the .safetensors file, or convert it once"


def name_what_it_is(path: Path, size: int) -> str:
    """Complete a sentence that begins with the file's name: what it is instead of safetensors, and what to do."""
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(LFS_POINTER):
        return (
            "is a Git LFS pointer and not the file it stands for: run `git lfs install && git lfs pull` "
            f"in {path.parent}, or fetch the file again with `hf download`"
        )
    if re.match(rb"<!doctype html|<html|<head|<body", text, re.IGNORECASE):
        return (
            "is a web page (HTML), as a page for signing in is, and no safetensors file: accept the licence on the "
            "model's page, run `hf auth login`, and fetch the file again with `hf download`"
        )
    if text.startswith(b"<"):
        return f"is an XML document, as a store's error is ({_shown(text)}): check the address, then fetch it again"
    if text.startswith((b"{", b"[", b'"')):
        return f"is JSON, as an error's answer is ({_shown(text)}), and no safetensors file; fetch it again"
    if start.startswith(b"GGUF"):
        return "is a GGUF file: give it a name that ends in .gguf"
    if start.startswith(PICKLES):
        return f"is a pickle (.ckpt, .pt, .bin) or ZIP archive: {NO_PICKLE}"
    if size and not start.strip(b"\0"):
        return f"({size} bytes) begins with zero bytes only, so its download did not end; fetch it again"
    return f"({size} bytes) is cut short or no safetensors file; fetch it again"


def find_unfinished(path: Path) -> Path | None:
    """The unfinished download of a file that is missing, if one lies there."""
    if not path.parent.is_dir():
        return None
    beside = [path.with_name(path.name + suffix) for suffix in UNFINISHED_SUFFIXES]
    # `hf download --local-dir` keeps its unfinished files here, under a hash after the name's own.
    hidden = path.parent / ".cache" / "huggingface" / "download"
    return next((found for found in (*beside, *sorted(hidden.glob("*.incomplete"))) if found.is_file()), None)


def _shown(text: bytes) -> str:
    return ascii(" ".join(text[:120].decode("utf-8", "replace").split()))
