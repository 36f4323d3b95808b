"""Jobs in every state, for tests of the ledger and of what reads it."""

from __future__ import annotations

from jobs.errors import ErrorCode
from jobs.ledger import Claim, Ledger
from jobs.schema import EditJob, ErrorInfo, JobState, Outcome

OUTPUT_ROOT = "s3://out/edits"
LEASE_SECONDS = 30
DONE = Outcome(output="s3://out/edits/cat.png", width=256, height=256)
FAILED = Outcome(error=ErrorInfo(code=ErrorCode.INPUT_NOT_FOUND, message="s3://in/cat.png: no such object"))
HOOK = {"url": "https://example.org/hook"}


def edit_job(job_id: str, **fields: object) -> EditJob:
    return EditJob.model_validate({"id": job_id, "image": "s3://in/cat.png", "prompt": "make it snow", **fields})


def submit(ledger: Ledger, *jobs: EditJob) -> list[str]:
    return [submission.verdict for submission in ledger.submit(jobs, OUTPUT_ROOT)]


def claimed(ledger: Ledger, job_id: str, worker: str = "w1") -> Claim:
    claim = ledger.claim(job_id, worker, LEASE_SECONDS)
    assert isinstance(claim, Claim)
    return claim


def begun(ledger: Ledger, job_id: str, worker: str = "w1") -> Claim:
    """A run that has begun to work on its job."""
    claim = claimed(ledger, job_id, worker)
    assert ledger.spend(job_id, claim.token)
    return claim


def fail(ledger: Ledger, job_id: str, code: ErrorCode = ErrorCode.INPUT_NOT_FOUND) -> Claim:
    claim = claimed(ledger, job_id)
    outcome = Outcome(error=ErrorInfo(code=code, message="it ended"))
    assert ledger.finish(job_id, claim.token, JobState.FAILED, outcome)
    return claim
