"""What is measured, in which order, and about how long each takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from benchmarks.gpu.scale import GIB, Scale

RIVALS = {"official": ("official",), "diffusers": ("diffusers", "diffusers_compiled")}  # what each `--vs` adds
RESIDENT = "resident"  # the mode that others are compared with
WARM_LOAD = "warm_load"
MODEL = "model"


@dataclass(frozen=True)
class Mode:
    """A way of running the model."""

    engine: str = "native"  # or "official", "diffusers"
    jobs: int = 2
    budget_bytes: int | None = None  # of device memory, with offload; None for all weights resident
    compile: bool | None = None  # None for what the engine does by itself
    precision: str = "bf16"
    attention: str = "auto"


@dataclass(frozen=True)
class Measurement:
    """One of the things measured, each in a process of its own."""

    name: str  # for the command line, its log and its picture
    title: str  # in results
    seconds: float  # that it takes, estimated: it is skipped when less is left
    mode: Mode | None = None  # where edits are run


def make_plan(scale: Scale, only: Collection[str] = (), rivals: Iterable[str] = ()) -> list[Measurement]:
    """The measurements in their order: what tells most comes first, should time run out.

    Args:
        only: names of those to take, all native ones when empty.
        rivals: keys of `RIVALS` that are measured besides.
    Raises:
        ValueError: there is no measurement of such a name.
    """
    everything = _everything(scale)
    names = [measurement.name for measurement in everything]
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"there is no {', '.join(unknown)}; choose from {', '.join(names)}")
    added = {name for rival in rivals for name in RIVALS[rival]}
    usual = set(names) - {name for group in RIVALS.values() for name in group}
    wanted = (set(only) or usual) | added
    chosen = [measurement for measurement in everything if measurement.name in wanted]
    first = next((i for i, measurement in enumerate(chosen) if needs_model(measurement)), None)
    if first is None or MODEL in wanted:
        return chosen
    return [*chosen[:first], *(one for one in everything if one.name == MODEL), *chosen[first:]]


def needs_model(measurement: Measurement) -> bool:
    """Whether it runs the full model, which must have been written then."""
    return measurement.mode is not None


def _everything(scale: Scale) -> list[Measurement]:
    few = scale.few_jobs

    def take(name: str, title: str, mode: Mode | None = None) -> Measurement:
        return Measurement(name, title, scale.estimated_seconds.get(name, scale.usual_seconds), mode)

    def offload(budget_bytes: int) -> Measurement:
        gib = f"{budget_bytes / GIB:.0f}"
        return take(f"offload_{gib}", f"offload {gib} GiB", Mode(jobs=few, budget_bytes=budget_bytes))

    return [
        take("ceiling", "ceiling"),
        take(MODEL, MODEL),
        take(RESIDENT, "resident", Mode(jobs=scale.jobs)),
        take(WARM_LOAD, WARM_LOAD, Mode(jobs=0)),
        *map(offload, scale.budgets_bytes),
        take("fp8", "fp8", Mode(jobs=few, precision="fp8")),
        take("check", "check"),
        *map(offload, scale.roomy_budgets_bytes),
        take("not_compiled", "resident, not compiled", Mode(jobs=few, compile=False)),
        take("official", "official", Mode("official", jobs=few)),
        take("diffusers", "diffusers", Mode("diffusers", jobs=few, compile=False)),
        take("diffusers_compiled", "diffusers, blocks compiled", Mode("diffusers", jobs=few, compile=True)),
    ]
