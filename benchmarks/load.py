"""Time from a file of weights to weights in their places, beside `safetensors.torch.load_file`.

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
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.report import parser, publish
from benchmarks.timing import highest, take_turns
from kontext.device import synchronize
from kontext.offload.pieces import Piece, places
from kontext.weights.checkpoint import build_on_meta, load_weights
from kontext.weights.reading import CHUNK_BYTES, Reader, default_threads

LAYERS, WIDTH = 12, 8192
CPU = torch.device("cpu")
LOOKS_EVERY_SECONDS = 0.002


def main() -> None:
    command = parser(__doc__, repetitions=5)
    command.add_argument("--device", default="cpu", help="default: %(default)s")
    command.add_argument("--folder", type=Path, help="folder of the file; default: that for temporary files")
    command.add_argument("--way", choices=[*WAYS, *CUDA_WAYS], help=argparse.SUPPRESS)  # one measurement, of a file
    command.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = command.parse_args()
    if options.way:
        sys.stdout.write(json.dumps(measure(options.way, options.file, torch.device(options.device))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(random_weights(), path)
        figures = measure_all(path, options.device, options.repetitions)
    publish("load", {"file_bytes": 2 * LAYERS * WIDTH**2, "repetitions": options.repetitions, **figures})


def random_weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {f"{i}.weight": torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.bfloat16) for i in range(LAYERS)}


def measure_all(path: Path, device: str, repetitions: int) -> dict[str, Any]:
    ways = [*WAYS, *(CUDA_WAYS if device.startswith("cuda") else ())]
    runs = take_turns({way: partial(measure_apart, way, path, device) for way in ways}, 1 + repetitions)
    # The first round brings the file into the page cache.
    medians = {
        way: {name: round(median(run[name] for run in found[1:]), 3) for name in found[0]}
        for way, found in runs.items()
    }
    return {"threads": default_threads(), "ways": medians}


def measure_apart(way: str, path: Path, device: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--way", way, "--file", str(path), "--device", device]
    figures: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return figures


def measure(way: str, path: Path, device: torch.device) -> dict[str, float]:
    """Seconds from the file's name to the last of its weights, and the memory that it took at most beyond the start."""
    load = (WAYS | CUDA_WAYS)[way]
    network = build_on_meta(lambda: nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    before = resident_bytes()
    with highest(resident_bytes, LOOKS_EVERY_SECONDS) as most:
        started = time.perf_counter()
        kept = load(network, path, device)
        synchronize(device)
        seconds = time.perf_counter() - started
    del kept
    memory = {f"{kind}_gb": (most[kind] - before[kind]) / 1e9 for kind in most}
    return {"seconds": seconds, "gigabytes_per_second": path.stat().st_size / seconds / 1e9, **memory}


def read_once(network: nn.Module) -> nn.Module:
    """Read one number of every page."""
    for weight in network.parameters():
        weight.view(-1).view(torch.int64)[::512].max()
    return network


def by_load_file(network: nn.Module, path: Path, device: torch.device, convert: Convert) -> nn.Module:
    weights = {name: convert(weight) for name, weight in load_file(path, device=str(device)).items()}
    network.load_state_dict(weights, assign=True)
    return network


def ours_resident(network: nn.Module, path: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """As `kontext.load` does with resident weights."""
    reader = Reader(device)
    load_weights(network, [path], dtype, convert=reader.convert)
    for place in places(network.modules()):
        place.move(device, reader.fill)
    with reader.reading():
        return network


def ours_copied(network: nn.Module, path: Path, device: torch.device) -> nn.Module:
    """As `kontext.load` does with weights that offload streams."""
    reader = Reader(device)
    load_weights(network, [path], torch.bfloat16, convert=reader.convert)
    for name, layer in network.named_children():
        piece = Piece(name, layer)
        piece.pack(torch.empty(piece.nbytes, dtype=torch.uint8), reader.fill)
    with reader.reading():
        return network


def positioned_reads(network: nn.Module, path: Path, device: torch.device) -> object:
    """The bytes of the file into one buffer, by as many threads: the bound of a reader without a mapping."""
    buffer = torch.empty(path.stat().st_size, dtype=torch.uint8).numpy().data

    def read(start: int) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            file.readinto(buffer[start : start + CHUNK_BYTES])

    with ThreadPoolExecutor(default_threads()) as pool:
        list(pool.map(read, range(0, len(buffer), CHUNK_BYTES)))
    return buffer


Convert = Callable[[Tensor], Tensor]
Load = Callable[[nn.Module, Path, torch.device], object]
WAYS: dict[str, Load] = {
    "load_file, mapped": lambda network, path, _: read_once(by_load_file(network, path, CPU, lambda weight: weight)),
    "ours, mapped": lambda network, path, _: ours_resident(network, path, CPU, torch.bfloat16),
    "load_file, copied": lambda network, path, _: by_load_file(network, path, CPU, Tensor.clone),
    "ours, copied": lambda network, path, _: ours_copied(network, path, CPU),
    "positioned reads": positioned_reads,
    "load_file, to float32": lambda network, path, _: by_load_file(network, path, CPU, Tensor.float),
    "ours, to float32": lambda network, path, _: ours_resident(network, path, CPU, torch.float32),
}
CUDA_WAYS: dict[str, Load] = {
    "load_file, on the device": partial(by_load_file, convert=lambda weight: weight),
    "ours, on the device": partial(ours_resident, dtype=torch.bfloat16),
}


def resident_bytes() -> dict[str, int]:
    """This process's memory by Linux: its own, and pages of files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        kind: 1024 * int(fields[field].split()[0])
        for kind, field in (("own_memory", "RssAnon"), ("file_pages", "RssFile"))
    }


if __name__ == "__main__":
    main()
