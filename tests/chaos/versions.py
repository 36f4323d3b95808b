"""A version to come: its jobs have a field, its results and workers say things, that ours has never heard of."""

from __future__ import annotations

import json
from typing import Any

from jobs import registry
from jobs.ledger import Ledger, life
from jobs.ledger.scripts import Scripts
from jobs.queue import EditQueue
from jobs.schema import EditJob, parse_job

NEW_FIELD = "sharpness"


def submit_of_newer(ledger: Ledger, job: EditJob, output_root: str) -> None:
    """Submit a job as a newer producer would: with a field that only newer workers understand."""
    newer = {**json.loads(job.completed(output_root).model_dump_json(exclude_defaults=True)), NEW_FIELD: 3}
    events = ",".join(job.callback.events) if job.callback else ""
    ledger.scripts.run(
        *("submit", 0, 0, 0, 0),
        *(job.id, json.dumps(newer), job.id, job.batch or "", events, job.priority, job.tenant or ""),
    )
    EditQueue(ledger.redis).send([job.id])


def become_newer() -> None:
    """Make this process a worker of a newer version: it takes such jobs, and writes more than ours reads."""
    run = Scripts.run

    def run_newer(self: Scripts, name: str, *arguments: Any) -> Any:
        if name == "finish":
            job_id, token, state, outcome, *rest = arguments
            arguments = (job_id, token, state, json.dumps({**json.loads(outcome), "beauty": 1}), *rest)
        return run(self, name, *arguments)

    def parse_newer(raw: Any) -> EditJob:
        return parse_job({name: value for name, value in raw.items() if name != NEW_FIELD})

    def beat_of_newer(report: dict[str, Any]) -> str:
        return json.dumps({**report, "aura": "blue"})

    for owner, name, replacement in (
        (Scripts, "run", run_newer),
        (life, "parse_job", parse_newer),
        (registry, "dumps", beat_of_newer),
    ):
        setattr(owner, name, replacement)
