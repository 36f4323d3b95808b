"""The life of a job, on a real Redis, with a clock that the tests move."""

from __future__ import annotations

import pytest
import redis

from jobs.errors import ErrorCode, JobNotFound
from jobs.ledger import Claim, Ledger, Outbox, Progress, Refusal, Submission
from jobs.ledger.life import CALL_CHARACTERS, JOBS_PER_CALL, _calls
from jobs.schema import EditJob, JobState, Outcome
from tests.clock import ManualClock
from tests.jobs.lives import DONE, FAILED, LEASE_SECONDS, OUTPUT_ROOT, begun, claimed, edit_job, fail, submit


def test_a_submitted_job_waits_with_seed_and_output_filled_in(ledger: Ledger) -> None:
    assert submit(ledger, edit_job("a", batch="spring")) == ["created"]

    record = ledger.get("a")
    assert record.state is JobState.QUEUED
    assert record.job.output == "s3://out/edits/spring/a.png"
    assert record.job.params.seed is not None
    assert ledger.queue_counts() == {"queued": 1, "delayed": 0, "running": 0, "callbacks": 0}
    assert ledger.position("a") == 0


def test_the_same_job_twice_is_one_job_and_another_job_under_its_id_is_a_conflict(ledger: Ledger) -> None:
    submit(ledger, edit_job("a"))
    seed = ledger.get("a").job.params.seed

    assert submit(ledger, edit_job("a"), edit_job("a", prompt="make it rain")) == ["exists", "conflict"]

    assert ledger.get("a").job.prompt == "make it snow"
    assert ledger.get("a").job.params.seed == seed


def test_a_full_queue_refuses_and_says_how_many_wait(ledger: Ledger) -> None:
    submissions = list(ledger.submit([edit_job("a"), edit_job("b"), edit_job("c")], OUTPUT_ROOT, max_queued=2))

    assert [submission.verdict for submission in submissions] == ["created", "created", "full"]
    assert submissions[-1].detail == "2"
    with pytest.raises(JobNotFound):
        ledger.get("c")


def test_jobs_that_are_submitted_together_are_queued_all_or_none(ledger: Ledger) -> None:
    submit(ledger, edit_job("here"), edit_job("other", tenant="shop"))
    cases: list[tuple[list[EditJob], int, int, list[Submission]]] = [
        ([edit_job("a"), edit_job("here", prompt="rain")], 0, 0, [Submission("here", "conflict", "queued")]),
        ([edit_job("a"), edit_job("b")], 3, 0, [Submission("b", "full", "2")]),
        ([edit_job("a"), edit_job("b", tenant="shop")], 0, 1, [Submission("a", "tenant_full", "1")]),
    ]
    for jobs, most, most_of_tenant, refused in cases:
        assert ledger.submit_together(jobs, OUTPUT_ROOT, most, most_of_tenant) == refused
        assert ledger.get_many(["a", "b"]) == [None, None]
        assert ledger.queue_counts()["queued"] == 2

    together = ledger.submit_together([edit_job("here"), edit_job("a", batch="x")], OUTPUT_ROOT, 3, 2)

    assert [item.verdict for item in together] == ["exists", "created"]
    assert ledger.batch_counts("x")[JobState.QUEUED] == 1
    with pytest.raises(ValueError, match="different ids"):
        ledger.submit_together([edit_job("c"), edit_job("c")], OUTPUT_ROOT)


def test_jobs_that_share_a_call_of_the_script_are_judged_one_by_one_and_keep_their_order(ledger: Ledger) -> None:
    jobs = [
        edit_job(f"{number:03}", batch="odd" if number % 2 else "even", tenant="lab" if number % 3 else None)
        for number in range(2 * JOBS_PER_CALL + 3)
    ]
    submit(ledger, jobs[5])

    verdicts = submit(ledger, *jobs, jobs[0], edit_job("000", prompt="make it rain"))

    assert verdicts == ["exists" if job is jobs[5] else "created" for job in jobs] + ["exists", "conflict"]
    odd = [job.id for job in jobs if job.batch == "odd" and job is not jobs[5]]
    assert [*ledger.batch_job_ids("odd")] == [jobs[5].id, *odd]
    assert ledger.batch_counts("even")[JobState.QUEUED] == len(jobs) - len(odd) - 1
    assert sum(counts["queued"] for counts in ledger.tenant_counts().values()) == len(jobs)
    taken = [claim.job_id for _ in jobs if isinstance(claim := ledger.claim_best("w", LEASE_SECONDS), Claim)]
    for tenant in ("lab", None):  # the tenants take turns
        own = [job.id for job in jobs if job.tenant == tenant]
        assert [job_id for job_id in taken if job_id in own] == sorted(own, key=lambda name: (name != "005", name))


def test_a_call_of_the_script_carries_no_more_than_its_bytes() -> None:
    large = ["id", "x" * CALL_CHARACTERS]

    assert [*_calls([large, large, ["a", "{}"], ["b", "{}"]])] == [large, large, ["a", "{}", "b", "{}"]]


def test_of_two_claims_one_is_refused(ledger: Ledger) -> None:
    submit(ledger, edit_job("a"))

    claim = claimed(ledger, "a", "w1")

    assert claim.attempt == 1
    assert ledger.claim("a", "w2", LEASE_SECONDS) == Refusal("running")
    assert ledger.claim("unheard-of", "w2", LEASE_SECONDS) == Refusal("unknown")
    assert ledger.get("a").worker == "w1"


def test_a_claim_whose_answer_was_lost_can_be_repeated_with_its_token(ledger: Ledger) -> None:
    submit(ledger, edit_job("a"))
    first = ledger.claim("a", "w1", LEASE_SECONDS, token="t")

    again = ledger.claim("a", "w1", LEASE_SECONDS, token="t")

    assert isinstance(first, Claim)
    assert isinstance(again, Claim)
    assert again.attempt == 1


def test_a_claim_tells_how_long_the_job_waited(ledger: Ledger, clock: ManualClock) -> None:
    submit(ledger, edit_job("a"))
    clock.advance(12)

    assert claimed(ledger, "a").queued_seconds == pytest.approx(12, abs=0.001)


def test_a_finished_job_has_its_result_its_history_and_its_callback(ledger: Ledger) -> None:
    submit(ledger, edit_job("a", callback={"url": "https://example.org/hook"}, metadata={"order": 7}))
    claim = claimed(ledger, "a")

    assert ledger.finish("a", claim.token, JobState.SUCCEEDED, DONE)

    record = ledger.get("a")
    assert record.result.state is JobState.SUCCEEDED
    assert record.result.output == DONE.output
    assert record.result.metadata == {"order": 7}
    assert [attempt.reason for attempt in record.history] == ["succeeded"]
    assert record.callback == "pending"
    assert [due.webhook_id for due in Outbox(ledger).take(10, hide_seconds=60)] == ["msg_a_succeeded"]
    assert record.event().type == "edit.succeeded"


def test_a_terminal_state_never_changes_by_itself(ledger: Ledger) -> None:
    submit(ledger, edit_job("a"))
    claim = claimed(ledger, "a")
    ledger.finish("a", claim.token, JobState.SUCCEEDED, DONE)

    assert ledger.finish("a", claim.token, JobState.SUCCEEDED, DONE)  # repeated: the first answer may have been lost
    assert not ledger.finish("a", claim.token, JobState.FAILED, FAILED)
    assert ledger.requeue("a", claim.token, "retry") == "lost"
    assert ledger.cancel("a") is JobState.SUCCEEDED
    assert ledger.claim("a", "w2", LEASE_SECONDS) == Refusal("succeeded")
    assert ledger.get("a").state is JobState.SUCCEEDED


def test_renewing_keeps_the_lease_notes_progress_and_brings_the_cancel(ledger: Ledger, clock: ManualClock) -> None:
    submit(ledger, edit_job("a"))
    claim = claimed(ledger, "a")
    clock.advance(20)

    assert ledger.renew("a", claim.token, LEASE_SECONDS, Progress("sampling", 3, 30)) == "held"
    clock.advance(20)
    assert ledger.expire(max_attempts=3) == ([], [], [])
    assert ledger.get("a").progress == Progress("sampling", 3, 30)

    assert ledger.cancel("a") is JobState.RUNNING
    assert ledger.get("a").cancel_requested
    assert ledger.renew("a", claim.token, LEASE_SECONDS) == "cancel"


def test_a_silent_workers_job_goes_back_and_what_the_worker_writes_later_is_refused(
    ledger: Ledger, clock: ManualClock
) -> None:
    submit(ledger, edit_job("a"))
    zombie = begun(ledger, "a", "w1")
    clock.advance(LEASE_SECONDS + 1)

    assert ledger.expire(max_attempts=3) == (["a"], [], [])

    heir = claimed(ledger, "a", "w2")
    assert heir.attempt == 2
    assert ledger.renew("a", zombie.token, LEASE_SECONDS) == "lost"
    assert not ledger.finish("a", zombie.token, JobState.SUCCEEDED, DONE)
    assert ledger.finish("a", heir.token, JobState.SUCCEEDED, DONE)
    assert [(attempt.worker, attempt.reason) for attempt in ledger.get("a").history] == [
        ("w1", "worker_lost"),
        ("w2", "succeeded"),
    ]


def test_a_late_worker_may_still_finish_while_nobody_has_taken_its_job(ledger: Ledger, clock: ManualClock) -> None:
    submit(ledger, edit_job("a"))
    claim = claimed(ledger, "a")
    clock.advance(LEASE_SECONDS + 1)

    assert ledger.finish("a", claim.token, JobState.SUCCEEDED, DONE)
    assert ledger.expire(max_attempts=3) == ([], [], [])


def test_a_job_that_loses_every_worker_fails_with_that_reason_and_calls_back(
    ledger: Ledger, clock: ManualClock
) -> None:
    submit(ledger, edit_job("a", callback={"url": "https://example.org/hook"}))
    for _ in range(2):
        begun(ledger, "a")
        clock.advance(LEASE_SECONDS + 1)
        assert ledger.expire(max_attempts=3) == (["a"], [], [])
    begun(ledger, "a")
    clock.advance(LEASE_SECONDS + 1)

    assert ledger.expire(max_attempts=3) == ([], ["a"], [])

    result = ledger.get("a").result
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert result.error.code is ErrorCode.WORKER_LOST
    assert result.error.message == "the worker died or went silent in the last of 3 attempts"
    assert result.attempts == 3
    assert [due.event for due in Outbox(ledger).take(10, hide_seconds=60)] == ["failed"]


def test_a_cancelled_job_whose_worker_died_is_cancelled_not_run_again(ledger: Ledger, clock: ManualClock) -> None:
    submit(ledger, edit_job("a"))
    claimed(ledger, "a")
    ledger.cancel("a")
    clock.advance(LEASE_SECONDS + 1)

    assert ledger.expire(max_attempts=3) == ([], [], ["a"])
    assert ledger.get("a").state is JobState.CANCELLED


def test_a_queued_job_is_cancelled_at_once(ledger: Ledger) -> None:
    submit(ledger, edit_job("a", callback={"url": "https://example.org/hook"}))

    assert ledger.cancel("a") is JobState.QUEUED

    assert ledger.get("a").state is JobState.CANCELLED
    assert ledger.claim("a", "w1", LEASE_SECONDS) == Refusal("cancelled")
    assert [due.event for due in Outbox(ledger).take(10, hide_seconds=60)] == ["cancelled"]
    with pytest.raises(JobNotFound, match="'b'"):
        ledger.cancel("b")


@pytest.mark.parametrize(("state", "outcome"), [(JobState.SUCCEEDED, DONE), (JobState.FAILED, FAILED)])
def test_a_cancel_that_comes_before_the_end_is_written_wins(ledger: Ledger, state: JobState, outcome: Outcome) -> None:
    submit(ledger, edit_job("a", callback={"url": "https://example.org/hook"}))
    claim = claimed(ledger, "a")
    ledger.cancel("a")

    assert ledger.finish("a", claim.token, state, outcome) is JobState.CANCELLED
    assert ledger.finish("a", claim.token, state, outcome) is JobState.CANCELLED, "asked again, the answer got lost"

    record = ledger.get("a")
    assert (record.state, record.result.output) == (JobState.CANCELLED, None)
    assert [attempt.reason for attempt in record.history] == ["cancelled"]
    assert [due.event for due in Outbox(ledger).take(10, hide_seconds=60)] == ["cancelled"]


def test_a_job_in_back_off_is_not_claimed_before_its_time(ledger: Ledger, clock: ManualClock) -> None:
    submit(ledger, edit_job("a"))
    claim = claimed(ledger, "a")

    assert ledger.requeue("a", claim.token, "input_unreachable", delay_seconds=60) == "delayed"

    assert ledger.claim("a", "w1", LEASE_SECONDS) == Refusal("delayed")
    assert ledger.promote() == []
    clock.advance(61)
    assert ledger.promote() == ["a"]
    assert claimed(ledger, "a").attempt == 2


def test_a_drained_workers_run_does_not_count_as_an_attempt(ledger: Ledger) -> None:
    submit(ledger, edit_job("a"))
    claim = claimed(ledger, "a")

    assert ledger.requeue("a", claim.token, "worker_lost", spent="nothing") == "queued"

    assert claimed(ledger, "a").attempt == 1


def test_outages_are_counted_apart_from_attempts_and_forgotten_by_a_retry(ledger: Ledger) -> None:
    submit(ledger, edit_job("a"))
    for outages in range(5):
        claim = claimed(ledger, "a")
        assert (claim.attempt, claim.outages) == (1, outages)
        ledger.requeue("a", claim.token, "output_unavailable", spent="outage")
    fail(ledger, "a")
    ledger.retry("a")

    assert claimed(ledger, "a").outages == 0


@pytest.mark.parametrize("delay_seconds", [0, 60])
def test_a_job_that_is_to_be_cancelled_ends_when_it_is_given_back(ledger: Ledger, delay_seconds: float) -> None:
    submit(ledger, edit_job("a", callback={"url": "https://example.org/hook"}))
    claim = claimed(ledger, "a")
    ledger.cancel("a")

    assert ledger.requeue("a", claim.token, "input_unreachable", delay_seconds) == "cancelled"

    assert ledger.get("a").state is JobState.CANCELLED
    assert [due.event for due in Outbox(ledger).take(10, hide_seconds=60)] == ["cancelled"]


def test_a_retried_job_waits_again_under_its_id_with_all_its_attempts_and_its_history(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    submit(ledger, edit_job("a", batch="spring"))
    seed = ledger.get("a").job.params.seed
    zombie = fail(ledger, "a")

    assert ledger.retry("a") is JobState.FAILED

    record = ledger.get("a")
    assert (record.state, record.attempts, record.retries, record.job.params.seed) == (JobState.QUEUED, 0, 1, seed)
    assert record.outcome.error is None
    assert ledger.batch_counts("spring")[JobState.QUEUED] == 1
    assert ledger.batch_counts("spring")[JobState.FAILED] == 0
    forever = -1
    assert [redis_client.ttl(key) for key in ("dg:job:a", "dg:batch:spring", "dg:batch:spring:jobs")] == [forever] * 3
    assert not ledger.finish("a", zombie.token, JobState.FAILED, FAILED)
    assert ledger.finish("a", claimed(ledger, "a", "w2").token, JobState.SUCCEEDED, DONE)
    runs = [(run.worker, run.reason, run.retries) for run in ledger.get("a").history]
    assert runs == [("w1", "input_not_found", 0), ("w2", "succeeded", 1)]
    assert ledger.get("a").result.attempts == 1


def test_only_what_failed_or_was_cancelled_is_retried(ledger: Ledger) -> None:
    submit(ledger, *(edit_job(name) for name in ("queued", "running", "succeeded", "cancelled")))
    claimed(ledger, "running")
    ledger.finish("succeeded", claimed(ledger, "succeeded").token, JobState.SUCCEEDED, DONE)
    ledger.cancel("cancelled")

    for name in ("queued", "running", "succeeded", "cancelled"):
        assert ledger.retry(name) == name

    after = {name: ledger.get(name).state for name in ("queued", "running", "succeeded", "cancelled")}
    assert after == {"queued": "queued", "running": "running", "succeeded": "succeeded", "cancelled": "queued"}
    assert not ledger.get("cancelled").cancel_requested
    with pytest.raises(JobNotFound, match="'nowhere'"):
        ledger.retry("nowhere")


def test_of_a_batch_the_failed_jobs_are_retried_or_those_with_the_codes_that_are_named(ledger: Ledger) -> None:
    submit(ledger, *(edit_job(f"{number:04}", batch="spring") for number in range(600)))
    for number in range(560):
        fail(ledger, f"{number:04}", ErrorCode.WORKER_LOST if number % 2 else ErrorCode.INPUT_NOT_FOUND)
    ledger.cancel("0599")

    lost = [name for page in ledger.retry_batch("spring", [ErrorCode.WORKER_LOST]) for name in page]
    others = [name for page in ledger.retry_batch("spring") for name in page]
    cancelled = [name for page in ledger.retry_batch("spring", [ErrorCode.CANCELLED]) for name in page]

    assert (len(lost), len(others), cancelled) == (280, 280, ["0599"])
    assert ledger.batch_counts("spring")[JobState.QUEUED] == 600
    with pytest.raises(JobNotFound, match="'autumn'"):
        next(ledger.retry_batch("autumn"))


def test_a_batch_counts_its_jobs_by_state_and_lists_them_in_order(ledger: Ledger) -> None:
    names = [f"job-{number}" for number in (3, 1, 2)]
    submit(ledger, *(edit_job(name, batch="spring") for name in names))
    ledger.finish("job-1", claimed(ledger, "job-1").token, JobState.FAILED, FAILED)
    claimed(ledger, "job-2")

    counts = ledger.batch_counts("spring")

    assert counts == {"queued": 1, "running": 1, "succeeded": 0, "failed": 1, "cancelled": 0}
    assert list(ledger.batch_job_ids("spring")) == names
    with pytest.raises(JobNotFound, match="'autumn'"):
        ledger.batch_counts("autumn")


def test_a_batch_is_kept_while_a_job_is_open_and_ages_when_the_last_has_ended(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    submit(ledger, edit_job("a", batch="spring"), edit_job("b", batch="spring"))
    ledger.finish("a", claimed(ledger, "a").token, JobState.SUCCEEDED, DONE)
    forever, missing = -1, -2
    assert redis_client.ttl("dg:batch:spring") == forever
    assert redis_client.ttl("dg:job:b") == forever

    ledger.finish("b", claimed(ledger, "b").token, JobState.SUCCEEDED, DONE)

    for key in ("dg:batch:spring", "dg:batch:spring:jobs", "dg:job:a", "dg:job:b"):
        assert redis_client.ttl(key) not in (forever, missing)


def test_something_that_is_not_a_job_is_kept_and_says_so_when_it_is_claimed(ledger: Ledger) -> None:
    ledger.adopt("task-1", {"prompt": "make it snow", "callback": {"url": "https://example.org/hook"}}, OUTPUT_ROOT)

    claim = claimed(ledger, "task-1")

    with pytest.raises(Exception, match="image: missing"):
        _ = claim.job
    ledger.finish("task-1", claim.token, JobState.FAILED, FAILED)
    assert ledger.get("task-1").result.error == FAILED.error
    assert len(Outbox(ledger).take(10, hide_seconds=60)) == 1
