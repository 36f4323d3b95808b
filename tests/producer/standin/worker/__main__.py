"""A worker without a model: it takes what waits in the ledger and answers with a copy of the input.

A prompt of one word names how it behaves: `fail` fails the job, `die` ends the process, `hang` never finishes.
`STANDIN_BROKEN` makes it end at once, as a worker does that finds no model; `STANDIN_NOTES` is a folder where each
leaves the variables that it was started with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jobs.errors import ErrorCode
from jobs.ledger import Claim, Ledger
from jobs.registry import WorkerInfo, WorkerRegistry, WorkerState
from jobs.schema import ErrorInfo, JobState, Outcome
from jobs.settings import BrokerSettings, load_settings

POLL_SECONDS = 0.01


class Settings(BrokerSettings):
    """What this stand-in needs of the worker's variables; the package of that name is not the real one here."""

    worker_name: str = "stand-in"
    lease_seconds: float = 30


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = load_settings(Settings)
    if "STANDIN_NOTES" in os.environ:
        (Path(os.environ["STANDIN_NOTES"]) / settings.worker_name).write_text(json.dumps(dict(os.environ)))
    if "STANDIN_BROKEN" in os.environ:
        sys.exit("no model at /models/kontext: give its folder in DG_FLUX_KONTEXT_MODEL")
    ledger = Ledger.from_settings(settings)
    registry = WorkerRegistry(ledger.redis, settings.key_prefix)
    while True:
        registry.beat(WorkerInfo(settings.worker_name, WorkerState.READY))
        for job_id in ledger.oldest_queued(10):
            claim = ledger.claim(job_id, settings.worker_name, settings.lease_seconds)
            if isinstance(claim, Claim):
                answer(ledger, claim, settings)
        time.sleep(POLL_SECONDS)


def answer(ledger: Ledger, claim: Claim, settings: Settings) -> None:
    job = claim.job
    if job.prompt == "die":
        sys.stderr.write("CUDA error: an illegal memory access was encountered\n")
        os._exit(70)
    if job.prompt == "hang":
        time.sleep(3600)
    if job.prompt == "fail":
        error = ErrorInfo(code=ErrorCode.INPUT_NOT_AN_IMAGE, message="not a picture")
        ledger.finish(claim.job_id, claim.token, JobState.FAILED, Outcome(error=error))
        return
    output = job.output or ""
    if output.startswith("file://"):
        target = path_of(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path_of(job.image[0]), target)
    ledger.finish(claim.job_id, claim.token, JobState.SUCCEEDED, Outcome(output=output))


def path_of(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


if __name__ == "__main__":
    main()
