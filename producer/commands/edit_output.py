"""Local outputs of `producer edit`: `-o` names a file, or a folder in which outputs are called after their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from jobs.schema import FORMAT_OF_SUFFIX
from producer.errors import TableError
from producer.files import local_path
from producer.table.cells import CellProblem, check_output_suffix


@dataclass(frozen=True)
class LocalOutput:
    """An absolute path, and True for `is_folder` when outputs go into it."""

    path: Path
    is_folder: bool

    @property
    def has_suffix(self) -> bool:
        """True if it names a file of a format that we write."""
        return not self.is_folder and self.path.suffix.lower() in FORMAT_OF_SUFFIX


def read_local_output(output: str | None) -> LocalOutput:
    """Read `-o`: a path or `file://`; a folder when it ends in / or is one, and the current one when absent.

    Raises:
        TableError: it is empty, a URI that only workers write, or names a kind of file that we do not write.
    """
    if output is None:
        return LocalOutput(Path.cwd(), is_folder=True)
    if not output.strip():
        raise TableError("-o: is empty; name a file or a folder")
    named = Path(output) if "://" not in output else _path_of_uri(output)
    try:
        path = named.expanduser().resolve()
        is_folder = output.endswith("/") or path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such home, a NUL
        raise TableError(f"-o {output[:80]!r}: is no path ({error}); name a file or a folder") from error
    if not is_folder:
        check_output(output)
    return LocalOutput(path, is_folder)


def check_output(output: str) -> None:
    """Check the suffix of an output's path or URI.

    Raises:
        TableError: it is that of a kind of file that we do not write.
    """
    try:
        check_output_suffix(output)
    except CellProblem as problem:
        raise TableError(f"-o {problem.value}: {problem.remedy}") from problem


def _path_of_uri(uri: str) -> Path:
    path = local_path(uri)
    if path is None:
        raise TableError(f"-o {uri}: needs --remote; without it name a file or a folder of this machine")
    if urlsplit(uri).netloc not in ("", "localhost"):
        raise TableError(f"-o {uri}: does not have the form file:///absolute/path")
    return path
