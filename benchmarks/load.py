"""How fast weights get from a file into their places, beside `safetensors.torch.load_file`.

    python -m benchmarks.load [--repetitions 5] [--device cpu]

A file of 1.6 GB of random bfloat16 weights, in the page cache. `load_file` maps a file and reads nothing, so that every
way ends when each page of every weight was read once. Measured are weights that stay mapped (all weights on a CPU),
weights copied into one buffer per layer (what offload streams from), weights converted to float32, and on a GPU weights
in its memory; beside them positioned reads of the bare bytes. Every measurement has a process of its own, which also
says what memory it took at most: its own, and the file's pages, which the system may take back. The ways take turns;
figures are medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.report import write_result
from kontext.device import synchronize
from kontext.offload.pieces import Piece, places
from kontext.weights.checkpoint import build_on_meta, load_weights
from kontext.weights.reading import CHUNK_BYTES, Reader, default_threads

LAYERS, WIDTH = 12, 8192
CPU = torch.device("cpu")
LOOKS_EVERY_SECONDS = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the file is written; default: that for temporary files")
    parser.add_argument("--way", choices=[*WAYS, *CUDA_WAYS], help=argparse.SUPPRESS)  # one measurement, of a file
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        sys.stdout.write(json.dumps(measure(options.way, options.file, torch.device(options.device))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(random_weights(), path)
        figures = measure_all(path, options.device, options.repetitions)
    result = write_result("load", {"file_bytes": 2 * LAYERS * WIDTH**2, "repetitions": options.repetitions, **figures})
    sys.stdout.write(f"{result.read_text()}{result}\n")


def random_weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {f"{i}.weight": torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.bfloat16) for i in range(LAYERS)}


def measure_all(path: Path, device: str, repetitions: int) -> dict[str, Any]:
    ways = [*WAYS, *(CUDA_WAYS if device.startswith("cuda") else ())]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(1 + repetitions):
        for way in ways:
            command = [sys.executable, "-m", __spec__.name, "--way", way, "--file", str(path), "--device", device]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[way].append(json.loads(ended.stdout))
    # The first round brings the file into the page cache.
    medians = {
        way: {name: round(median(run[name] for run in found[1:]), 3) for name in found[0]}
        for way, found in runs.items()
    }
    return {"threads": default_threads(), "ways": medians}


def measure(way: str, path: Path, device: torch.device) -> dict[str, float]:
    """Seconds from the file's name to the last of its weights, and the memory that it took at most beyond the start."""
    load = (WAYS | CUDA_WAYS)[way]
    network = build_on_meta(lambda: nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    with memory_peak() as peak:
        started = time.perf_counter()
        kept = load(network, path, device)
        synchronize(device)
        seconds = time.perf_counter() - started
    del kept
    return {"seconds": seconds, "gigabytes_per_second": path.stat().st_size / seconds / 1e9, **peak}


def load_file_mapped(network: nn.Module, path: Path, device: torch.device) -> object:
    network.load_state_dict(load_file(path), assign=True)
    return [read_once(weight) for weight in network.parameters()]


def ours_mapped(network: nn.Module, path: Path, device: torch.device) -> object:
    return ours_on(network, path, CPU)


def load_file_copied(network: nn.Module, path: Path, device: torch.device) -> object:
    network.load_state_dict({name: weight.clone() for name, weight in load_file(path).items()}, assign=True)
    return network


def ours_copied(network: nn.Module, path: Path, device: torch.device) -> object:
    reader = Reader(CPU)
    load_weights(network, [path], torch.bfloat16, convert=reader.convert)
    for name, layer in network.named_children():
        piece = Piece(name, layer)
        piece.pack(torch.empty(piece.nbytes, dtype=torch.uint8), reader.fill)
    with reader.reading():
        return network


def positioned_reads(network: nn.Module, path: Path, device: torch.device) -> object:
    """The bytes of the file into one buffer, by as many threads: what a reader without a mapping could reach."""
    buffer = memoryview(torch.empty(path.stat().st_size, dtype=torch.uint8).numpy())

    def read(start: int) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            file.readinto(buffer[start : start + CHUNK_BYTES])

    with ThreadPoolExecutor(default_threads()) as pool:
        list(pool.map(read, range(0, len(buffer), CHUNK_BYTES)))
    return buffer


def load_file_converted(network: nn.Module, path: Path, device: torch.device) -> object:
    network.load_state_dict({name: weight.float() for name, weight in load_file(path).items()}, assign=True)
    return network


def ours_converted(network: nn.Module, path: Path, device: torch.device) -> object:
    return ours_on(network, path, CPU, torch.float32)


def load_file_on_device(network: nn.Module, path: Path, device: torch.device) -> object:
    network.load_state_dict(load_file(path, device=str(device)), assign=True)
    return network


def ours_on(network: nn.Module, path: Path, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> object:
    """As `kontext.load` does with resident weights."""
    reader = Reader(device)
    load_weights(network, [path], dtype, convert=reader.convert)
    for place in places(network.modules()):
        place.move(device, reader.fill)
    with reader.reading():
        return network


def read_once(weight: Tensor) -> int:
    """One number of every page."""
    return int(weight.view(-1).view(torch.int64)[::512].max())


Load = Callable[[nn.Module, Path, torch.device], object]
WAYS: dict[str, Load] = {
    "load_file, mapped": load_file_mapped,
    "ours, mapped": ours_mapped,
    "load_file, copied": load_file_copied,
    "ours, copied": ours_copied,
    "positioned reads": positioned_reads,
    "load_file, to float32": load_file_converted,
    "ours, to float32": ours_converted,
}
CUDA_WAYS: dict[str, Load] = {"load_file, on the device": load_file_on_device, "ours, on the device": ours_on}


@contextmanager
def memory_peak() -> Iterator[dict[str, float]]:
    """Watch the process's own memory and that of mapped files, in GB beyond the start; filled in when it ends."""
    peak: dict[str, float] = {}
    start = resident_bytes()
    most = dict(start)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOKS_EVERY_SECONDS):
            for kind, value in resident_bytes().items():
                most[kind] = max(most[kind], value)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak.update({f"{kind}_gb": (most[kind] - start[kind]) / 1e9 for kind in most})


def resident_bytes() -> dict[str, int]:
    """Linux tells what of a process is in memory: its own, and pages of files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        kind: 1024 * int(fields[field].split()[0])
        for kind, field in (("own_memory", "RssAnon"), ("file_pages", "RssFile"))
    }


if __name__ == "__main__":
    main()
