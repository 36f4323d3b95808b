"""The full-size model with random weights on this machine's GPU: correctness, speed and memory.

    python -m benchmarks.gpu --minutes 9
    python -m benchmarks.gpu --only resident,offload_16 --folder /dev/shm --keep
    python -m benchmarks.gpu --vs official --vs diffusers

Writes the model (34 GB) to a folder, then measures, each in a process of its own, in the order of docs/performance.md.
Needs no network, and of libraries PyTorch, safetensors, einops, transformers, sentencepiece, protobuf, Pillow, numpy;
for `--vs diffusers` that package too, for `--vs official` the code in third_party/flux1.

The result goes to benchmarks/results and is written anew after every measurement; beside it lies a folder with the log
of each. `python -m benchmarks.gpu.table` brings results into the documentation. Ends with 1 when something failed.

`--tiny --device cpu` tries all of it out in a minute or two; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.gpu.measurement import Place
from benchmarks.gpu.plan import MODEL, RIVALS, SCALES, Measurement, make_plan
from benchmarks.gpu.series import TimeBudget, measure_series
from kontext.device import choose_device
from kontext.errors import DeviceError

MODEL_BYTES = 36e9


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    budget = TimeBudget(options.minutes)
    # As Ctrl-C does: end the measured process and take the model away.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    run = report.describe_run(options.commit, device=torch.device(options.device))
    name = free_name(options.results, run["machine"].get("gpu", options.device))
    with (
        workplace(options.folder, f"kontext-benchmark-{options.scale}", options.keep) as folder,
        # Not beside the model: programs cannot be run from a /dev/shm that is mounted as containers have it.
        workplace(None, "kontext-benchmark-compiled", options.keep) as compiled,
    ):
        if options.scale == "full":
            check_room(folder, options.plan)
        place = Place(options.scale, options.device, folder, compiled, options.results / f"{name}-logs")
        write = partial(report.write_result, name, folder=options.results, run=run)
        figures = measure_series(options.plan, SCALES[options.scale], place, budget, write)
    report.publish(name, figures, options.results, run)
    end(figures)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = report.parser(__doc__)
    parser.prog = "python -m benchmarks.gpu"
    names = [measurement.name for measurement in make_plan(SCALES["full"], rivals=RIVALS)]
    add = parser.add_argument
    add("--device", default="cuda", help="default: %(default)s")
    add("--tiny", dest="scale", action="store_const", const="tiny", default="full", help="a tiny model, to try it out")
    add("--only", default="", help=f"names with commas between, of: {', '.join(names)}")
    add("--minutes", type=float, help="skip what does not fit into this time; default: no limit")
    add("--vs", action="append", choices=[*RIVALS], default=[], help="measure this too")
    add("--folder", type=Path, help="where the model is written; default: that for temporary files")
    add("--keep", action="store_true", help="leave model and compiled code, and use what is there")
    add("--results", type=Path, default=report.RESULTS, help="where the result goes")
    add("--commit", help="what is measured, where there is no .git; default: BENCHMARK_COMMIT")
    options = parser.parse_args(arguments)
    options.results = options.results.absolute()
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    try:
        options.device = str(choose_device(options.device))
        options.plan = make_plan(SCALES[options.scale], only, options.vs)
    except (DeviceError, ValueError) as error:
        parser.error(str(error))
    return options


@contextmanager
def workplace(parent: Path | None, name: str, is_kept: bool) -> Iterator[Path]:
    """A folder in another, or in that for temporary files; removed afterwards unless it is kept."""
    if is_kept:
        folder = (parent or Path(tempfile.gettempdir())).absolute() / name
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{name}-") as made:
        yield Path(made).absolute()


def check_room(folder: Path, plan: list[Measurement]) -> None:
    """Exit with a message if the model is to be written and does not fit."""
    is_written = (folder / "full" / "config.json").exists()
    free = shutil.disk_usage(folder).free
    if free < MODEL_BYTES and not is_written and MODEL in [measurement.name for measurement in plan]:
        raise SystemExit(
            f"{folder} has {free / 1e9:.0f} GB free, the model takes {MODEL_BYTES / 1e9:.0f}; give --folder another"
        )


def free_name(results: Path, machine: str) -> str:
    """`<gpu>-<date>`, with a number behind if there is such a result already."""
    name = f"{re.sub('[^a-z0-9]+', '-', machine.lower()).strip('-')}-{datetime.now(UTC):%Y-%m-%d}"
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(name for name in names if not (results / f"{name}.json").exists())


def end(figures: dict[str, Any]) -> None:
    """Report what was skipped and what failed; a failure is the exit status too."""
    for title, found in {**figures, **figures["modes"]}.items():
        if isinstance(found, dict) and "skipped" in found:
            sys.stderr.write(f"skipped {title}: {found['skipped']}\n")
    if figures["failed"]:
        raise SystemExit("\n".join(f"failed {title}: {reason}" for title, reason in figures["failed"].items()))


if __name__ == "__main__":
    main()
