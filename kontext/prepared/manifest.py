"""The manifest of a prepared folder: what it is for, what was chosen, which files belong to it, and its proof."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kontext.errors import KontextError
from kontext.prepared.private_folder import PrivateFolder

MANIFEST, FORMAT, MOST_MANIFEST_BYTES = "manifest.json", 1, 2**20
COMPILED, MOST_COMPILED_BYTES = "compiled.zip", 2**32


class Unusable(KontextError):
    """Raised when a prepared folder is not whole; the message says of what and why."""


@dataclass(frozen=True)
class Choices:
    """What was measured at a first start, so that all later ones choose alike."""

    attention: str  # kernel, as `attention_kernels.choose_backend` returns it
    products: str  # library of float32 products on a CPU, as `matmul.choose_products` returns it


@dataclass(frozen=True)
class Manifest:
    """A prepared folder in words."""

    facts: Mapping[str, str]
    choices: Choices
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of each its bytes and SHA-256
    proof: Mapping[str, Any] | None = None  # what a second process has shown: seconds and images

    def encoded(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def key_of(facts: Mapping[str, str]) -> str:
    """Name of the folder for these facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def entry_of(content: bytes) -> dict[str, Any]:
    """A file's entry among the files of a manifest."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_manifest(folder: PrivateFolder) -> Manifest:
    """Read what a folder is for.

    Raises:
        NotPrivate: others can have written it.
        Unusable: it is no manifest of this format.
        OSError: there is none.
    """
    written = folder.read(MANIFEST, MOST_MANIFEST_BYTES)
    try:
        content = json.loads(written)
        if content.pop("format") != FORMAT:
            raise Unusable(f"its manifest has another format than {FORMAT}")
        return Manifest(**{**content, "choices": Choices(**content["choices"])})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unusable(f"its manifest cannot be read ({type(error).__name__}: {error})") from error


def read_prepared(path: Path, facts: Mapping[str, str]) -> tuple[Manifest, bytes]:
    """Read a prepared folder: its manifest, and the packed files of the compilers, empty without any.

    Args:
        facts: for which it has to be.
    Raises:
        FileNotFoundError: there is no such folder.
        NotPrivate: others can have written it.
        Unusable: it is not whole, or for other facts.
        OSError: it cannot be read.
    """
    with PrivateFolder(path) as folder:
        manifest = read_manifest(folder)
        if different := [name for name in {**manifest.facts, **facts} if manifest.facts.get(name) != facts.get(name)]:
            raise Unusable(f"it is for another start; different: {', '.join(different)}")
        return manifest, _read_compiled(folder, manifest)


def _read_compiled(folder: PrivateFolder, manifest: Manifest) -> bytes:
    if COMPILED not in manifest.files:
        return b""
    try:
        content = folder.read(COMPILED, MOST_COMPILED_BYTES)
    except FileNotFoundError:
        raise Unusable(f"{COMPILED} is missing") from None
    if entry_of(content) != manifest.files[COMPILED]:
        raise Unusable(f"{COMPILED} is not what its manifest says (SHA-256)")
    return content
