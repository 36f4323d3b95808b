"""The header of a safetensors file is a stranger's word: whatever stands there ends in one line."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kontext.errors import CheckpointError
from kontext.weights.files import read_weights
from kontext.weights.header import LARGEST_HEADER_BYTES, read_header


def write(path: Path, header: Any, data: bytes = bytes(8), length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def tensor(begin: Any = 0, end: Any = 8, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_good_header_gives_tensors_and_notes(tmp_path: Path) -> None:
    save_file({"b": torch.zeros(3), "a": torch.ones(2, 2).half()}, tmp_path / "a.safetensors", {"made": "here"})

    header = read_header(tmp_path / "a.safetensors")

    assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == {
        "b": ("F32", (3,)),
        "a": ("F16", (2, 2)),
    }
    assert header.metadata == {"made": "here"}


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({"a": tensor(end=16)}, "offsets do not fit the shape"),
        ({"a": tensor(begin=-8, end=0)}, "not a whole number"),
        ({"a": tensor(shape=[-2])}, "not a whole number"),
        ({"a": tensor(shape=[2.0])}, "not a whole number"),
        ({"a": tensor(shape=[True, 2])}, "not a whole number"),
        ({"a": tensor(shape=[2**62, 2**62])}, "offsets do not fit the shape"),
        ({"a": tensor(dtype="Q4")}, "unknown dtype 'Q4'"),
        ({"a": tensor(dtype=["F32"])}, "is damaged"),
        ({"a": tensor(), "b": tensor()}, "overlaps another tensor"),
        ({"a": tensor(), "b": tensor(16, 24)}, "overlaps another tensor, or there is a hole"),
        ({"a": tensor(4, 12)}, "a hole before it"),
        ({"a": [1, 2]}, "is damaged"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]}}, "is damaged"),
        ({"__metadata__": 5, "a": tensor()}, "is damaged"),
        (b'{"a": {}, "a": {}}', "twice"),
        (b"[1]", "no safetensors file"),
        (b"{" + b'"a":{' * 5000, "is damaged"),
        (b"{\xff\xfe", "is damaged"),
        ({"a": tensor(0, 4, shape=[1])}, "has .* bytes where its header says"),
        ({"a": tensor(0, 80, shape=[20])}, "the download stopped at"),
    ],
)
def test_a_header_that_cannot_be_is_refused_in_one_line(tmp_path: Path, header: Any, complaint: str) -> None:
    path = write(tmp_path / "a.safetensors", header)

    with pytest.raises(CheckpointError, match=rf"a\.safetensors .*{complaint}") as error:
        read_header(path)

    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_header_longer_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", b"{", length=LARGEST_HEADER_BYTES + 1)
    with path.open("r+b") as file:
        file.truncate(2 * LARGEST_HEADER_BYTES)  # sparse: as large as it claims, and nothing on the disk

    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_header(path)


@settings(max_examples=300, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 400)),
)
def test_damage_anywhere_is_one_line_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_file({"a": torch.ones(4, 4), "b": torch.zeros(3).half()}, path, {"made": "here"})
    content = bytearray(path.read_bytes()[:cut])
    for place, value in flips:
        if place < len(content):
            content[place] = value
    path.write_bytes(content)

    with suppress(CheckpointError):
        assert all(weight.nbytes >= 0 for weight in read_weights([path]).values())
