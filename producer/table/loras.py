"""LoRAs of cells and options: URIs, and files of this machine."""

from __future__ import annotations

from typing import Any

from jobs.loras import parse_loras
from producer.table.cells import CellProblem
from producer.table.paths import LocalFiles


def read_loras(cell: Any, files: LocalFiles) -> list[Any]:
    """LoRAs as the schema takes them; paths become `file://` URIs.

    Args:
        cell: `URI@SCALE`, several separated by blanks or in a list, or JSON objects with `uri` and `scale`.
        files: of the folder that relative paths start from.
    Raises:
        CellProblem: a path leads to no file, or the cell begins like JSON and is none.
    """
    try:
        loras = parse_loras(cell)
    except ValueError as error:
        raise CellProblem(cell, str(error)) from error
    if not isinstance(loras, list | tuple):
        raise CellProblem(cell, "should be URI@SCALE, several separated by blanks, or a JSON list of objects")
    return [{**lora, "uri": files.uri_of(str(lora["uri"]))} if _names_a_file(lora) else lora for lora in loras]


def _names_a_file(lora: Any) -> bool:
    return isinstance(lora, dict) and isinstance(lora.get("uri"), str) and bool(lora["uri"])
