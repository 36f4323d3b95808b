"""Names of local files as people write them: of Windows, of another home, with accents in another form."""

from __future__ import annotations

import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from producer.table.cells import URI, CellProblem, shorten

DRIVE = re.compile(r"[A-Za-z]:[\\/]")
WORKING_FOLDER = "the folder that you are in"
"""What the command line's relative paths start from, in messages."""

MOST_LISTED = 20_000
"""Entries of a folder that are compared with a name that is not there."""


class LocalFiles:
    """Finds the files that cells name.

    Args:
        folder: what relative paths start from.
        called: that folder, in messages.
        kind: what the files are, in messages.
    """

    def __init__(self, folder: Path, called: str = "the table's folder", kind: str = "picture") -> None:
        self._folder = folder
        self._called, self._kind = called, kind
        self._names_in = lru_cache(maxsize=64)(_names_in)

    def uri_of(self, name: str) -> str:
        """The URI that a cell names: its own, or the `file://` one of a path.

        Raises:
            CellProblem: there is no such file.
        """
        if URI.match(name) and not DRIVE.match(name):
            return name
        path = self.find(name)
        if path is None:
            raise CellProblem(name, self._why_not(name))
        return path.as_uri()

    def has(self, name: str) -> bool:
        """True if there is a file of this name."""
        return self.find(name) is not None

    def find(self, name: str) -> Path | None:
        """The file, by its name as it stands, or as it is written on another system."""
        if not name or "\0" in name:
            return None
        for path in self._candidates(name):
            if _is_file(path):
                return path.absolute()
        path = self._folder / name.replace("\\", "/")
        return self._in_another_form(path) if not name.isascii() else None

    def _candidates(self, name: str) -> list[Path]:
        found = [self._folder / name]
        if name.startswith("~"):
            found += [path] if (path := _of_home(name)) else []
        if "\\" in name:
            found.append(self._folder / name.replace("\\", "/"))
        return found

    def _in_another_form(self, path: Path) -> Path | None:
        """The path with each part's accents composed or decomposed as they are on the disk."""
        found = Path(path.anchor)
        for part in path.parts[1:] if path.anchor else path.parts:
            if _exists(found / part):
                found /= part
                continue
            same = self._names_in(found).get(_folded(part), [])
            exact = [there for there in same if _composed(there) == _composed(part)]
            if not exact:
                return None
            found /= exact[0]
        return found.absolute() if _is_file(found) else None

    def _why_not(self, name: str) -> str:
        if DRIVE.match(name) or name.startswith("\\\\"):
            return f"is a path of Windows, which is not on this machine; copy the {self._kind} here, or give a URI"
        path = self._folder / name.replace("\\", "/")
        if _is_folder(path):
            return f"is a folder; name a {self._kind} in it: {shorten(path)}"
        if len(name) > 4096 or any(len(part.encode(errors="replace")) > 255 for part in path.parts):
            base64 = "; is it a picture in base64? Then begin it with data:" if self._kind == "picture" else ""
            return f"no such file, and too long for the name of one{base64}"
        close = self._names_in(path.parent).get(_folded(path.name), [])
        decoded = unquote(path.name)
        if decoded != path.name and _is_file(path.with_name(decoded)):
            close = [decoded]
        if close:
            return f"no such file, but there is {shorten(close[0])!r}; write it so"
        return f"no such file: {shorten(path)}; relative paths start from {self._called}"


def place_of(uri: str) -> str:
    """A URI so that two for one file are the same: of `file://` the path, its folder without links and `..`."""
    if not uri.startswith("file://"):
        return uri
    folder, _, name = unquote(uri.removeprefix("file://")).rpartition("/")
    return f"{_resolved(folder)}/{name}"


@lru_cache(maxsize=1024)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


def _of_home(name: str) -> Path | None:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user
        return None


def _names_in(folder: Path) -> dict[str, list[str]]:
    """The names in a folder by how they look without case and form of accents; nothing for a very large one."""
    names: dict[str, list[str]] = {}
    try:
        for number, entry in enumerate(folder.iterdir()):
            if number == MOST_LISTED:
                return {}
            names.setdefault(_folded(entry.name), []).append(entry.name)
    except (OSError, ValueError):  # a name too long, or half of a character
        return {}
    return names


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or half of a character
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
