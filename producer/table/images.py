"""The pictures of a row, in whatever form its cells have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from producer.table.cells import CellProblem, means_blank
from producer.table.embedded_images import EmbeddedImages
from producer.table.lists import split_names
from producer.table.paths import WORKING_FOLDER, LocalFiles


class RowImages:
    """Reads cells that name pictures or hold them.

    Args:
        files: of the folder that relative paths start from.
        embedded: gives those a URI that stand in the table itself.
    """

    def __init__(self, files: LocalFiles, embedded: EmbeddedImages) -> None:
        self._files = files
        self._embedded = embedded

    def read(self, cell: Any) -> list[str]:
        """The URIs of a cell's pictures; a path becomes `file://`.

        Args:
            cell: a URI or path, several between separators, a list in any usual form, bytes, or objects of bytes and
                path.
        Raises:
            CellProblem: nothing there, not a list of names, or a path without a file.
        """
        if cell is None or means_blank(cell):
            raise CellProblem(cell or "", "is empty; give the URI or path of a picture")
        items = split_names(cell, self._files.has) if isinstance(cell, str) else cell
        if isinstance(items, Mapping | bytes):
            items = [items]
        if not isinstance(items, list) or not items:
            raise CellProblem(cell, 'should be a URI, several separated by commas, or a JSON list such as ["a.png"]')
        return [self._uri_of(item, cell) for item in items]

    def _uri_of(self, item: Any, cell: Any) -> str:
        try:
            name = self._embedded.name_of(item)
        except CellProblem as problem:
            raise CellProblem(cell, problem.remedy) from problem
        if not name:
            raise CellProblem(cell, "has a blank name; give the URI or path of a picture")
        return self._files.uri_of(name)


def parse_images(text: str) -> list[str]:
    """Read pictures as a command line names them; relative paths start from the working directory.

    Raises:
        CellProblem: as of `RowImages.read`.
    """
    return RowImages(LocalFiles(Path.cwd(), WORKING_FOLDER), EmbeddedImages("", None)).read(text)
