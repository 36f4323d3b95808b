"""Pictures that lie on a sheet of an Excel workbook: each belongs to the cell under its upper left corner.

openpyxl reads them only with the whole workbook in memory; here the drawing's list is read, and a picture when its row
comes. Source: ECMA-376, part 1, 20.5, SpreadsheetML drawing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import ZipFile

MOST_COLUMNS = 16_384
ANCHORS = ("twoCellAnchor", "oneCellAnchor")
RELATIONSHIP = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


class DrawnImages:
    """The pictures of one sheet, by the places of their cells; a context that holds the workbook open.

    Args:
        path: of the workbook.
        sheet: path of the sheet in it, such as `xl/worksheets/sheet1.xml`.
    """

    def __init__(self, path: Path, sheet: str) -> None:
        self._packed = ZipFile(path)
        self._places: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for drawing in self._targets(sheet, "drawing").values():
            for row, column, name in self._listed(drawing):
                if column < MOST_COLUMNS:
                    self._places[row][column].append(name)

    def __enter__(self) -> DrawnImages:
        return self

    def __exit__(self, *error: object) -> None:
        self._packed.close()

    def laid_in(self, row: int, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The values of a row, with the pictures that lie on its blank cells; several on one cell are a list.

        Args:
            row: its place in the sheet, 0 for the first.
        """
        if row not in self._places:
            return values
        places = self._places[row]
        filled = list(values) + [None] * (max(places) + 1 - len(values))
        for column, names in places.items():
            if filled[column] is None:
                images = [self._packed.read(name) for name in names]
                filled[column] = images[0] if len(images) == 1 else images
        return tuple(filled)

    def _listed(self, drawing: str) -> Iterator[tuple[int, int, str]]:
        """(row, column, path in the workbook) of every picture in a drawing."""
        images = self._targets(drawing, "image")
        for anchor in _parsed(self._packed.read(drawing)):
            parts = {_tag(part): part for part in anchor.iter()}
            name = images.get(parts["blip"].get(f"{{{RELATIONSHIP}}}embed") if "blip" in parts else None)
            if _tag(anchor) in ANCHORS and name is not None and name in self._packed.NameToInfo:
                corner = {_tag(part): int(part.text) for part in parts["from"] if _tag(part) in ("row", "col")}
                yield corner["row"], corner["col"], name

    def _targets(self, path: str, kind: str) -> dict[str | None, str]:
        """Paths of what a part of the workbook refers to, by the names it has for them."""
        relationship = import_module("openpyxl.packaging.relationship")
        listed = relationship.get_rels_path(path).lstrip("/")
        if listed not in self._packed.NameToInfo:
            return {}
        found = relationship.get_dependents(self._packed, listed)
        return {
            item.Id: item.Target for item in found if item.Type.endswith(f"/{kind}") and item.TargetMode != "External"
        }


def _parsed(content: bytes) -> Any:
    return import_module("openpyxl.xml.functions").fromstring(content)


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
