"""The jobs of the soak: good ones, and every kind of bad neighbour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from jobs.schema import EditJob, JobState
from tests.chaos.bench import Bench
from tests.chaos.expected import SUCCEEDED, Expected
from tests.chaos.versions import submit_of_newer
from tests.servers.http import Answer

FAILED = frozenset({JobState.FAILED})
COLLIDING_BATCHES = ("a", "a:jobs", "a:jobs:jobs", "jobs", None)
TENANTS = ("lab", "lab:queued", "shop", None)
PRIORITIES = ("high", "normal", "normal", "low")
STALL_SECONDS = "2"
"""`DG_INPUT_STALL_SECONDS` of the soak."""

SILENT = Answer(delay_seconds=3600)


@dataclass(frozen=True)
class Kind:
    """A kind of job: how often it comes, how it may end, and what is special about it.

    `make` gives its fields, when they differ from job to job.
    """

    weight: float
    states: frozenset[JobState] = SUCCEEDED
    fields: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Bench, Random, str], dict[str, Any]] = lambda bench, random, job_id: {}
    steps: tuple[int, int] = (1, 12)
    is_newer: bool = False


def silent(bench: Bench, random: Random, job_id: str) -> dict[str, Any]:
    """An input whose host accepts and says nothing."""
    return {"image": bench.receiver.answer(f"/silent/{job_id}", SILENT)}


def silent_at_first(bench: Bench, random: Random, job_id: str) -> dict[str, Any]:
    """… the first time."""
    picture = Answer(body=bench.input_bytes, headers={"Content-Type": "image/png"})
    return {"image": bench.receiver.answer(f"/late/{job_id}", SILENT, picture)}


def in_bucket(bench: Bench, random: Random, job_id: str) -> dict[str, Any]:
    return {"output": bench.bucket_uri(f"{job_id}.png")}


KINDS = {
    "ordinary": Kind(30),
    "stored": Kind(30, make=in_bucket),
    "large": Kind(5, fields={"prompt": "noise"}, make=in_bucket),
    "long": Kind(4, steps=(60, 120)),
    "cancelled": Kind(8, frozenset({JobState.SUCCEEDED, JobState.CANCELLED})),
    "raising": Kind(5, FAILED, {"prompt": "raise"}),
    "poison": Kind(0.8, FAILED, {"prompt": "die"}),
    "late-death": Kind(0.8, FAILED, {"prompt": "die late"}),
    "silent": Kind(2, FAILED, make=silent),
    "silent-cancelled": Kind(1, frozenset({JobState.FAILED, JobState.CANCELLED}), make=silent),
    "silent-deadline": Kind(1, FAILED, {"timeout_seconds": 1}, silent),
    "silent-at-first": Kind(3, make=silent_at_first),
    "newer": Kind(2, is_newer=True),
}
"""By name; a name that ends in `cancelled` is cancelled soon after its submission."""


def draw(bench: Bench, random: Random, number: int) -> tuple[str, EditJob, Expected]:
    """A random kind, a job of it, and what is expected of that job."""
    name = random.choices(list(KINDS), [kind.weight for kind in KINDS.values()])[0]
    kind, seed = KINDS[name], random.randrange(2**16)
    job_id = f"{name}-{number}{random.choice(('', '', '', ':jobs'))}"
    size = {"width": 768, "height": 768} if name == "large" else {}
    fields: dict[str, Any] = {
        "id": job_id,
        "image": bench.input,
        "prompt": "make it snow",
        "params": {"num_inference_steps": random.randint(*kind.steps), "seed": seed, **size},
        "batch": random.choice(COLLIDING_BATCHES),
        "tenant": random.choice(TENANTS),
        "priority": random.choice(PRIORITIES),
        "callback": {"url": bench.hook},
        **kind.fields,
        **kind.make(bench, random, job_id),
    }
    return name, EditJob.model_validate(fields), Expected(seed, kind.states, may_be_spent=True)


def send(bench: Bench, name: str, job: EditJob) -> None:
    """Submit a job of that kind, as a producer of its version does."""
    if KINDS[name].is_newer:
        submit_of_newer(bench.ledger, job, bench.settings.output_uri)
    else:
        bench.client.submit(job)


def backlog(bench: Bench, random: Random, name: str, count: int) -> list[tuple[EditJob, Expected]]:
    """A table of short jobs that somebody submits at once."""
    priority = random.choice(PRIORITIES)
    made = []
    for number in range(count):
        seed = random.randrange(2**16)
        fields = {
            "id": f"{name}-{number}",
            "image": bench.input,
            "prompt": "make it snow",
            "params": {"num_inference_steps": random.randint(1, 3), "seed": seed},
            "batch": name,
            "tenant": "table",
            "priority": priority,
        }
        made.append((EditJob.model_validate(fields), Expected(seed, may_be_spent=True)))
    return made
