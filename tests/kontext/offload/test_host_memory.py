"""Host memory of streamed weights: of their size, locked once it is filled, and given back."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import kontext
from kontext.compile import compile_ahead
from kontext.loading import place
from kontext.networks import load_networks
from kontext.offload.copies import StreamCopies
from kontext.offload.host_memory import available_host_bytes, before_return, host_pages
from kontext.offload.memory import Resident, Streamed
from kontext.offload.pieces import Piece, places
from kontext.offload.streaming import StreamedPiece, Streamer
from kontext.offload.workload import native_workload
from kontext.weights.layout import find_model
from kontext.weights.reading import Reader
from kontext.weights.values import Values
from tests.kontext.golden import MODEL, PICTURE
from tests.kontext.offload.standin_device import CPU, FAST, AsPlanned, DestructiveCopies, load

ODD = 3_000_001


class LockedCopies(DestructiveCopies):
    """Notes which host buffers are locked, and what they held when they were."""

    def __init__(self) -> None:
        super().__init__(FAST)
        self.buffers: list[Tensor] = []
        self.held: dict[int, Tensor] = {}

    def host_buffer(self, nbytes: int) -> Tensor:
        self.buffers.append(super().host_buffer(nbytes))
        return self.buffers[-1]

    def lock(self, buffer: Tensor) -> None:
        self.held[buffer.data_ptr()] = buffer.clone()

    def unlock(self, buffer: Tensor) -> None:
        del self.held[buffer.data_ptr()]


def streaming(copies: LockedCopies) -> AsPlanned:
    memory = AsPlanned(lambda name: True)
    memory.copies = memory._copies = copies
    return memory


def permissions(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        ends, permissions = line.split()[:2]
        if address in range(*(int(end, 16) for end in ends.split("-"))):
            return permissions
    raise AssertionError(f"{address:x} is not mapped")


def mapped_memory() -> list[range]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [range(*(int(end, 16) for end in line.split()[0].split("-"))) for line in lines]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_pages_go_back_to_the_system_with_their_last_tensor_and_not_before_the_last_call() -> None:
    said: list[bool] = []
    buffer = host_pages(ODD)
    address = buffer.data_ptr()
    before_return(buffer, lambda: said.append(any(address in pages for pages in mapped_memory())))
    view = buffer[100:200].view(torch.uint8).fill_(7)
    del buffer
    gc.collect()
    assert (said, int(view.sum())) == ([], 700)

    del view
    gc.collect()

    assert said == [True]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_pages_are_private_so_that_they_may_be_large() -> None:
    buffer = host_pages(ODD)

    assert permissions(buffer.data_ptr()) == "rw-p"


def test_a_last_call_that_was_made_earlier_is_not_made_again() -> None:
    said: list[str] = []
    buffer = host_pages(ODD)
    last_call = before_return(buffer, lambda: said.append("bye"))

    last_call()
    del buffer
    gc.collect()

    assert said == ["bye"]


class Cuda(SimpleNamespace):
    """The two calls of CUDA's library."""

    def __init__(self, error: int = 0) -> None:
        super().__init__(calls=[], error=error)

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        self.calls.append(("lock", address, nbytes))
        return self.error

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.calls.append(("unlock", address))
        return 0


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cuda], StreamCopies]:
    def made(cuda: Cuda) -> StreamCopies:
        monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        return StreamCopies(torch.device("cuda:1"))

    return made


def test_a_buffer_is_locked_in_its_own_size_and_unlocked_once(on_cuda: Callable[[Cuda], StreamCopies]) -> None:
    cuda = Cuda()
    copies = on_cuda(cuda)
    kept, dropped = copies.host_buffer(ODD), copies.host_buffer(ODD)
    first, second = kept.data_ptr(), dropped.data_ptr()
    for buffer in (kept, dropped):
        copies.lock(buffer)
    del buffer

    copies.unlock(kept)
    copies.unlock(kept)
    del kept, dropped  # a model that nobody released: CUDA must not think that other memory there is locked
    gc.collect()

    assert cuda.calls == [("lock", first, ODD), ("lock", second, ODD), ("unlock", first), ("unlock", second)]


def test_memory_that_cannot_be_locked_is_used_as_it_is(
    on_cuda: Callable[[Cuda], StreamCopies], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = Cuda(error=2)
    copies = on_cuda(cuda)
    blamed: list[torch.device] = []
    monkeypatch.setattr("kontext.offload.copies._forget_error", blamed.append)
    buffer = copies.host_buffer(ODD)

    with caplog.at_level(logging.WARNING, "kontext"):
        copies.lock(buffer)
    copies.unlock(buffer)

    assert [call[0] for call in cuda.calls] == ["lock"]
    assert blamed == [torch.device("cuda:1")]
    assert "host_memory_not_locked bytes=3000001 cuda_error=2" in caplog.text


def test_streamed_weights_take_their_own_size_and_are_locked_when_they_are_there() -> None:
    copies = LockedCopies()
    memory = streaming(copies)
    reader = Reader(CPU, threads=1)
    model = unplaced(memory, reader)

    place(model, reader)
    assert not copies.held  # nothing is read yet
    with reader.reading():
        pass

    pieces = [piece for stage in native_workload(model).stages for piece in (*stage.once, *stage.loop)]
    assert sorted(buffer.nbytes for buffer in copies.buffers) == sorted(piece.nbytes for piece in pieces)
    assert all(torch.equal(copies.held[buffer.data_ptr()], buffer) for buffer in copies.buffers)


def test_a_released_model_points_to_its_files_again_and_its_host_memory_is_given_back() -> None:
    copies = LockedCopies()
    memory = streaming(copies)
    reader = Reader(CPU)
    model = unplaced(memory, reader)
    mapped = {id(tensor): address for tensor, address in addresses(model)}
    place(model, reader)
    with reader.reading():
        pass
    assert {id(tensor): address for tensor, address in addresses(model)} != mapped

    memory.release()

    assert {id(tensor): address for tensor, address in addresses(model)} == mapped
    assert copies.held == {}


def test_an_edit_that_did_not_fit_reads_its_weights_from_the_files_again() -> None:
    seen: list[int] = []
    model = kontext.load(MODEL, device="cpu", dtype=torch.float32, on_progress=lambda done, total: seen.append(done))
    images, read = [edit(model)], len(seen)

    with model.spare_memory():
        assert isinstance(model.memory, Streamed)
        images.append(edit(model))
    images.append(edit(model))

    assert isinstance(model.memory, Resident)
    assert all(np.array_equal(image, images[0]) for image in images)
    assert len(seen) == read  # the worker is not loading again


def test_what_a_failed_hold_has_recorded_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = kontext.load(MODEL, device="cpu", dtype=torch.float32)
    assert isinstance(model.values, Reader)
    read = model.values._total
    take, taken = Streamer.take, list[str]()

    def take_three(streamer: Streamer, piece: Piece, values: Values) -> StreamedPiece:
        if len(taken) == 3:
            raise torch.OutOfMemoryError("DefaultCPUAllocator: can't allocate memory")
        taken.append(piece.name)
        return take(streamer, piece, values)

    monkeypatch.setattr(Streamer, "take", take_three)
    with pytest.raises(torch.OutOfMemoryError), model.spare_memory():
        pass

    assert len(taken) == 3
    assert model.values._total == read > 0


def test_compiling_before_the_weights_are_read_copies_nothing_to_the_device() -> None:
    memory = AsPlanned(lambda name: True)
    model = load(memory)
    expected = edit(model)
    memory.copies.sizes.clear()

    with memory.dry():
        compile_ahead(model)
    assert sum(memory.copies.sizes) == 0

    assert np.array_equal(edit(model), expected)


@pytest.mark.parametrize(
    ("limit", "used", "cached", "shared", "available"),
    [
        ("max", 0, 0, 0, 8_000),  # no limit: the machine's
        (6_000, 1_000, 400, 0, 5_400),  # what is cached of files gives way
        (6_000, 1_000, 400, 300, 5_100),  # shared memory, counted among them, does not
        (64_000, 1_000, 0, 0, 8_000),
    ],
)
def test_the_host_has_what_machine_and_container_both_allow(
    tmp_path: Path, limit: int | str, used: int, cached: int, shared: int, available: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  16384 kB\nMemAvailable:  8000 kB\nHugePages_Total:  0\n")
    (tmp_path / "memory.max").write_text(str(limit if limit == "max" else 1024 * int(limit)))
    (tmp_path / "memory.current").write_text(str(1024 * used))
    (tmp_path / "memory.stat").write_text(f"anon 5\nfile {1024 * cached}\nshmem {1024 * shared}\n")

    assert available_host_bytes(meminfo, tmp_path) == 1024 * available
    assert available_host_bytes(tmp_path / "none", tmp_path / "none") is None


def test_too_little_host_memory_is_said_before_the_system_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kontext.offload.memory.available_host_bytes", lambda: 2**20)

    with caplog.at_level(logging.WARNING, "kontext"):
        load(AsPlanned(lambda name: True))

    assert "host_memory_is_short" in caplog.text


def unplaced(memory: Streamed, reader: Reader) -> kontext.Kontext:
    files = find_model(MODEL)
    return kontext.Kontext(
        load_networks(files, torch.float32, reader.convert),
        files.config,
        fingerprint="",
        memory=memory,
        seam_dtype=torch.bfloat16,
        max_sequence_length=64,
        image_options=kontext.ImageOptions(),
        values=reader,
    )


def addresses(model: kontext.Kontext) -> list[tuple[Tensor, int]]:
    modules = (module for network in model.networks for module in network.modules())
    return [(place.tensor, place.tensor.data_ptr()) for place in places(modules)]


def edit(model: kontext.Kontext) -> np.ndarray:
    return np.asarray(model.edit(PICTURE, "Remove the logo", num_inference_steps=2, seed=5))
