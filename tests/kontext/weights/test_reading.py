"""Weights read by several threads: every byte where it belongs, in the dtype asked for, and progress on the way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import kontext
from kontext.offload.copies import ThreadCopies
from kontext.pipeline import Kontext
from kontext.weights import reading
from kontext.weights.reading import Reader
from kontext.weights.stored import join
from tests.kontext.golden import MODEL, PICTURE
from tests.kontext.models import copy_model

CPU = torch.device("cpu")
MODEL_BYTES = sum(
    sum(tensor.nbytes for tensor in load_file(path).values())
    for path in (MODEL / "flow.safetensors", MODEL / "ae.safetensors", *MODEL.glob("*/model.safetensors"))
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few numbers, so that a small tensor has many."""
    monkeypatch.setattr(reading, "CHUNK_BYTES", 4096)


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Tensor]:
    """Mapped tensors of odd sizes: a number, one chunk and a bit, many chunks."""
    draw = torch.Generator().manual_seed(1)
    shapes = {"number": (), "row": (2051,), "table": (301, 97), "convolution": (8, 4, 3, 3)}
    save_file(
        {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in shapes.items()},
        tmp_path / "weights.safetensors",
    )
    return load_file(tmp_path / "weights.safetensors")


def read(reader: Reader, stored: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    targets = {name: torch.full_like(tensor, torch.nan, dtype=dtype) for name, tensor in stored.items()}
    for name, tensor in stored.items():
        reader.fill(targets[name], tensor)
    with reader.reading():
        pass
    return targets


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_staged", [False, True])
def test_every_value_arrives(stored: dict[str, Tensor], threads: int, dtype: torch.dtype, is_staged: bool) -> None:
    # A slow bus: a buffer that is filled again before it was copied from would be seen in the values.
    stage = (lambda: ThreadCopies(CPU, bytes_per_second=5e6)) if is_staged else None

    targets = read(Reader(CPU, threads=threads, stage=stage), stored, dtype)

    assert all(torch.equal(targets[name], tensor.to(dtype)) for name, tensor in stored.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_value_arrives_on_a_gpu(stored: dict[str, Tensor], dtype: torch.dtype) -> None:
    reader = Reader(torch.device("cuda"))
    targets = {name: torch.empty_like(tensor, dtype=dtype, device="cuda") for name, tensor in stored.items()}
    for name, tensor in stored.items():
        reader.fill(targets[name], tensor)

    with reader.reading():
        pass

    assert all(torch.equal(targets[name].cpu(), tensor.to(dtype)) for name, tensor in stored.items())


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("chunk", [1_000, 100_000])
def test_tensors_that_do_not_lie_in_one_row_are_read_too(
    is_turned: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", chunk)
    source = torch.arange(6_000.0).reshape(60, 100).t()
    target = torch.empty(60, 100).t() if is_turned else torch.empty(100, 60)
    reader = Reader(CPU, stage=lambda: ThreadCopies(CPU))
    reader.fill(target, source)

    with reader.reading():
        pass

    assert torch.equal(target, source)


def test_a_weight_in_its_place_stays_mapped_and_another_dtype_is_filled_in(stored: dict[str, Tensor]) -> None:
    reader = Reader(CPU)
    kept, converted = reader.convert(stored["row"], torch.bfloat16), reader.convert(stored["table"], torch.float32)
    for tensor in (kept, converted):
        reader.fill(tensor, tensor)

    with reader.reading():
        pass

    assert kept is stored["row"]
    assert torch.equal(converted, stored["table"].float())


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors with an entry for each row, of other dtypes, and the thread that computed them."""
    computing_threads.add(threading.current_thread().name.split("_")[0])
    return (x / 2).to(torch.float8_e4m3fn), x.float().amax(dim=1, keepdim=True)


computing_threads: set[str] = set()


@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.parametrize(
    ("device", "is_staged", "thread"),
    [
        ("cpu", False, "reader"),
        ("cpu", True, "copies"),
        ("cuda", True, "copies"),  # computed there for weights that stay in host memory, as streamed ones do
    ],
)
def test_what_is_derived_from_a_weight_is_computed_on_the_device_row_by_row(
    stored: dict[str, Tensor], device: str, is_staged: bool, thread: str, is_joined: bool
) -> None:
    stage = (lambda: ThreadCopies(CPU, bytes_per_second=5e6)) if is_staged else None
    reader = Reader(torch.device(device), threads=4, stage=stage)
    weight = reader.convert(join([stored["table"]] * 2) if is_joined else stored["table"].float(), torch.bfloat16)
    outputs = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(len(weight), 1)
    targets = tuple(map(torch.zeros_like, outputs))
    computing_threads.clear()
    reader.derive(weight, outputs, halves)
    assert not computing_threads  # before it is read
    for target, output in zip(targets, outputs, strict=True):
        reader.fill(target, output)

    with reader.reading():
        pass

    assert computing_threads == {thread}
    expected = halves(torch.cat([stored["table"]] * 2) if is_joined else stored["table"])
    assert all(torch.equal(t.float(), e.float()) for t, e in zip(targets, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_what_is_derived_on_a_gpu_is_what_a_cpu_computes(stored: dict[str, Tensor], place: str) -> None:
    reader = Reader(torch.device("cuda"))
    outputs = torch.empty(stored["table"].shape, dtype=torch.float8_e4m3fn), torch.empty(len(stored["table"]), 1)
    targets = tuple(torch.zeros_like(output, device=place) for output in outputs)
    reader.derive(stored["table"], outputs, halves)
    for target, output in zip(targets, outputs, strict=True):
        reader.fill(target, output)

    with reader.reading():
        pass

    expected = halves(stored["table"])
    assert all(torch.equal(t.cpu().float(), e.float()) for t, e in zip(targets, expected, strict=True))


def test_progress_grows_to_the_bytes_of_the_files(stored: dict[str, Tensor]) -> None:
    seen: list[tuple[int, int]] = []

    read(Reader(CPU, lambda done, total: seen.append((done, total)), threads=4), stored, torch.float32)

    total = sum(tensor.nbytes for tensor in stored.values())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {all_bytes for _, all_bytes in seen} == {total}
    assert seen[-1] == (total, total)


def test_what_progress_raises_ends_the_reading(stored: dict[str, Tensor]) -> None:
    calls = []

    def refuse(done: int, total: int) -> None:
        calls.append(done)
        threading.Event().wait(0.01)  # time for the others to be called off
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        read(Reader(CPU, refuse, threads=1), stored, torch.float32)

    assert len(calls) < 10  # of 31


def test_work_beside_the_reading_begins_before_it_ends(stored: dict[str, Tensor]) -> None:
    began = threading.Event()
    target = torch.empty_like(stored["table"])
    reader = Reader(CPU, lambda done, total: began.wait(10), threads=1)
    reader.fill(target, stored["table"])

    with reader.reading():
        began.set()

    assert torch.equal(target, stored["table"])


def test_an_error_beside_the_reading_ends_it(stored: dict[str, Tensor]) -> None:
    reader = Reader(CPU)
    reader.fill(torch.empty_like(stored["table"]), stored["table"])

    with pytest.raises(RuntimeError, match="no compiler"), reader.reading():
        raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    "options", [{}, {"offload": True, "vram_budget_bytes": 16 * 2**20}, {"dtype": torch.float32}], ids=str
)
def test_loading_a_model_reports_all_of_its_bytes(options: dict[str, Any]) -> None:
    seen: list[tuple[int, int]] = []

    model = kontext.load(MODEL, device="cpu", on_progress=lambda *bytes_read: seen.append(bytes_read), **options)

    assert seen[-1][0] == seen[-1][1] == pytest.approx(MODEL_BYTES, rel=0.01)
    assert np.array_equal(edit(model), edit(kontext.load(MODEL, device="cpu", dtype=options.get("dtype"))))


def edit(model: Kontext) -> np.ndarray:
    return np.asarray(model.edit(PICTURE, "Remove the logo", num_inference_steps=2, seed=5))


def test_fp8_is_made_of_converted_weights(tmp_path: Path) -> None:
    # A checkpoint in float32: what is quantised is the bfloat16 weight, not the file's.
    folder = copy_model(tmp_path / "model")
    weights = load_file(folder / "flow.safetensors")
    (folder / "flow.safetensors").unlink()
    save_file({name: tensor.float() for name, tensor in weights.items()}, folder / "flow.safetensors")

    ours, expected = (kontext.load(path, device="cpu", precision="fp8") for path in (folder, MODEL))

    assert np.array_equal(edit(ours), edit(expected))
