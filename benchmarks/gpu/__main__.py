"""The full-size model with random weights on this machine's GPU: is it right, how fast is it, what memory does it take.

    python -m benchmarks.gpu --minutes 9
    python -m benchmarks.gpu --only resident,offload_16 --folder /dev/shm --keep
    python -m benchmarks.gpu --vs official --vs diffusers

Writes the model (34 GB) to a folder, then measures, each in a process of its own, in this order: the speed of large
products; edits with all weights resident; loading again; offload at 16, 12 and 8 GiB; fp8; edits of a shallow model
against a CPU; offload at 24 GiB; edits without compiling; others' engines. Pictures of all modes are compared. Needs
PyTorch, safetensors, einops, transformers, sentencepiece, protobuf, Pillow, numpy, and no network; for `--vs diffusers`
that package too, for `--vs official` the code in third_party/flux1.

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
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu.measurement import Place
from benchmarks.gpu.plan import MODEL, RIVALS, Measurement, make_plan
from benchmarks.gpu.scale import SCALES, Scale
from benchmarks.gpu.series import TimeBudget, measure_series
from kontext.device import choose_device
from kontext.errors import DeviceError

MODEL_BYTES = 36e9


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    budget = TimeBudget(options.minutes)
    # As Ctrl-C does: end the measured process and take the model away.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    key = scale_key(options)
    scale = SCALES[key]
    run = report.describe_run(options.commit)
    name = free_name(options.results, run["machine"].get("gpu", options.device))
    with (
        workplace(options.folder, f"kontext-benchmark-{key}", options.keep) as folder,
        # Not beside the model: programs cannot be run from a /dev/shm that is mounted as containers have it.
        workplace(None, "kontext-benchmark-compiled", options.keep) as compiled,
    ):
        check_room(folder, scale, options.plan)
        place = Place(key, options.device, folder, compiled, options.results / f"{name}-logs")
        figures = measure_series(
            options.plan,
            scale,
            place,
            budget,
            write=lambda figures: report.write_result(name, figures, options.results, run),
        )
    path = options.results / f"{name}.json"
    sys.stdout.write(f"{path.read_text()}{path}\n")
    end(figures)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [measurement.name for measurement in make_plan(SCALES["full"], rivals=RIVALS)]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the benchmark out")
    parser.add_argument("--only", type=split, default=[], help=f"names with commas between, of: {', '.join(names)}")
    parser.add_argument("--minutes", type=float, help="skip what does not fit into this time; default: no limit")
    parser.add_argument("--vs", action="append", choices=[*RIVALS], default=[], help="measure this too")
    parser.add_argument("--folder", type=Path, help="where the model is written; default: that for temporary files")
    parser.add_argument("--keep", action="store_true", help="leave model and compiled code, and use what is there")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where the result goes")
    parser.add_argument("--commit", help="what is measured, where there is no .git; default: BENCHMARK_COMMIT")
    options = parser.parse_args(arguments)
    options.results = options.results.absolute()
    try:
        options.device = str(choose_device(options.device))
        options.plan = make_plan(SCALES[scale_key(options)], options.only, options.vs)
    except (DeviceError, ValueError) as error:
        parser.error(str(error))
    return options


def split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def scale_key(options: argparse.Namespace) -> str:
    return "tiny" if options.tiny else "full"


@contextmanager
def workplace(parent: Path | None, name: str, is_kept: bool) -> Iterator[Path]:
    """A folder in another, or in that for temporary files; taken away afterwards unless it is kept."""
    if is_kept:
        folder = (parent or Path(tempfile.gettempdir())).absolute() / name
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{name}-") as made:
        yield Path(made).absolute()


def check_room(folder: Path, scale: Scale, plan: list[Measurement]) -> None:
    is_written = (folder / "full" / "config.json").exists()
    if scale.name != SCALES["full"].name or is_written or MODEL not in [measurement.name for measurement in plan]:
        return
    free = shutil.disk_usage(folder).free
    if free < MODEL_BYTES:
        raise SystemExit(
            f"{folder} has {free / 1e9:.0f} GB free, the model takes {MODEL_BYTES / 1e9:.0f}; give --folder another"
        )


def free_name(results: Path, machine: str) -> str:
    """`<gpu>-<date>`, with a number behind where there is such a result already."""
    name = f"{re.sub('[^a-z0-9]+', '-', machine.lower()).strip('-')}-{datetime.now(UTC):%Y-%m-%d}"
    number = 1
    while (results / f"{numbered(name, number)}.json").exists():
        number += 1
    return numbered(name, number)


def numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def end(figures: dict[str, Any]) -> None:
    """Say what was skipped and what failed; the latter is the exit status too."""
    for title, found in {**figures, **figures["modes"]}.items():
        if isinstance(found, dict) and "skipped" in found:
            sys.stderr.write(f"skipped {title}: {found['skipped']}\n")
    if figures["failed"]:
        raise SystemExit("\n".join(f"failed {title}: {reason}" for title, reason in figures["failed"].items()))


if __name__ == "__main__":
    main()
