"""Outputs that would be written over inputs: of the same row, or of another one."""

from __future__ import annotations

import hashlib

from jobs.schema import EditJob
from producer.table.paths import place_of


class InputsAndOutputs:
    """Remembers what the rows so far read and write, 8 bytes each, as far as the two can meet.

    Args:
        output_root: URI under which outputs go.
        are_chosen: whether rows name their outputs, which then may lie in any bucket.
    """

    def __init__(self, output_root: str, are_chosen: bool) -> None:
        self._root = place_of(output_root)
        self._are_chosen = are_chosen
        self._inputs: set[bytes] = set()
        self._outputs: set[bytes] = set()

    def add(self, job: EditJob) -> tuple[str, str, str] | None:
        """Remember a row, or tell what would be overwritten: the role of the cell, its value, and the remedy."""
        output = place_of(job.output or "")
        inputs = [place_of(uri) for uri in job.image if uri.startswith(("file:", "s3:"))]
        if output in inputs:
            return "output", output, "would overwrite the image that it is made of; use another name or --output"
        if _digest(output) in self._inputs:
            return "output", output, "would overwrite the image of a row above; use another name or --output"
        near = [place for place in inputs if self._may_meet(place)]
        for place in near:
            if _digest(place) in self._outputs:
                return "image", place, "is overwritten by the output of a row above; use another --output"
        self._inputs.update(map(_digest, near))
        if self._are_chosen or output.startswith("/"):
            self._outputs.add(_digest(output))
        return None

    def _may_meet(self, place: str) -> bool:
        return place.startswith(self._root) or (self._are_chosen and place.startswith("s3:"))


def _digest(place: str) -> bytes:
    return hashlib.blake2b(place.encode(errors="surrogateescape"), digest_size=8).digest()
