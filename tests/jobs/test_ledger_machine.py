"""The ledger against a model of itself: random lives of a few jobs, each step compared, on a real Redis.

The model is what the ledger promises, in plain Python. Steps are what workers, users and accidents do in any
order: messages get lost and doubled, workers go silent and come back with old tokens, answers get lost and are asked
for again, the clock is set back.
`make test` walks a few lives, `make test-slow` many; `LEDGER_EXAMPLES=2000` looks deeper.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, cast, get_args

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.ledger import Claim, Ledger, Outbox, Progress, Refusal, Spent, Verdict
from jobs.ledger.repairs import MOST_LOSSES
from jobs.queue import QUEUE, EditQueue, count_messages, next_messages
from jobs.schema import EditJob, ErrorInfo, JobState, Outcome
from tests.clock import ManualClock
from tests.servers.redis import RedisServer
from worker.events import Events
from worker.reconciler import GRACE_SECONDS, TURN_SECONDS, Reconciler

FEW_EXAMPLES = 15
EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "150"))
STEPS = 80

SECOND = 1_000_000
LEASE_SECONDS = 30
HIDE_SECONDS = 60
MAX_ATTEMPTS = 3
RENEWAL_US = 2 * SECOND
"""What a lease has left at least when the clock was set back."""

A_FEW_US = 100
"""The clock moves by one at each question, and one tick of the reconciler asks a few times."""

JOBS: dict[str, dict[str, Any]] = {
    "alone": {},
    "told": {"callback": {"url": "https://example.org/hook"}},
    "first": {"batch": "spring", "callback": {"url": "https://example.org/hook", "events": ["failed"]}},
    "second": {"batch": "spring", "tenant": "x"},
    "third": {"tenant": "x"},
    "fourth": {"tenant": "y", "priority": "normal"},
    "urgent": {"tenant": "y", "priority": "high"},
    "whenever": {"priority": "low"},
}
ids = st.sampled_from(sorted(JOBS))
claims_ago = st.integers(0, 3)
terminal_states = st.sampled_from([state for state in JobState if state.is_terminal])


def edit_job(job_id: str, prompt: str) -> EditJob:
    return EditJob.model_validate({"id": job_id, "image": "s3://in/cat.png", "prompt": prompt, **JOBS[job_id]})


@dataclass
class ModelJob:
    """What the ledger should know about one job."""

    job: EditJob
    sent_us: int
    place: int
    state: JobState = JobState.QUEUED
    attempts: int = 0
    token: str = ""
    lease_ends_us: int = 0
    due_us: int | None = None
    outages: int = 0
    losses: int = 0
    is_spent: bool = False
    is_suspect: bool = False
    is_first: bool = False
    is_to_be_cancelled: bool = False
    progress: Progress | None = None
    retries: int = 0
    reasons: list[str] = field(default_factory=list)

    def is_held_by(self, token: str) -> bool:
        return self.state is JobState.RUNNING and self.token == token

    @property
    def is_in_queue(self) -> bool:
        return self.state is JobState.QUEUED and self.due_us is None

    @property
    def tenant(self) -> str:
        return self.job.tenant or ""

    def leave_run(self, now_us: int) -> None:
        self.state, self.sent_us, self.due_us, self.progress = JobState.QUEUED, now_us, None, None
        self.is_spent = self.is_first = False


class LedgerMachine(RuleBasedStateMachine):
    """Does each step to the ledger and to the model, and compares."""

    callbacks = Bundle("callbacks")

    def __init__(self, server: RedisServer, queue: EditQueue) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.redis = server.client()
        self.queue = queue
        self.ledger = Ledger(self.redis, clock=self.clock)
        self.jobs: dict[str, ModelJob] = {}
        self.messages = 0
        self.places = count(1)
        self.claims_made = 0
        self.turns: dict[str, dict[str, int]] = {"high": {}, "normal": {}, "low": {}}
        self.short: tuple[int, int] | None = None  # since when messages are too few, and by how many at least
        self.claims: list[tuple[str, str]] = []  # job and token, those that have lost their job too
        self.outbox: dict[str, tuple[int, int]] = {}  # webhook id -> when it is due, attempts
        self.turn_us = 0
        self.tokens = (f"token-{number}" for number in count())

    # Users

    @initialize(job_ids=st.sets(ids))
    def submit_some(self, job_ids: set[str]) -> None:
        self.reconcile()
        for job_id in sorted(job_ids):
            self.submit(job_id, "snow", max_queued=0, is_sent=True)

    @rule(
        job_id=ids, prompt=st.sampled_from(["snow", "rain"]), max_queued=st.sampled_from([0, 2]), is_sent=st.booleans()
    )
    def submit(self, job_id: str, prompt: str, max_queued: int, is_sent: bool) -> None:
        """A producer that may die between the record and the message."""
        known = self.jobs.get(job_id)
        waiting = sum(job.state is JobState.QUEUED for job in self.jobs.values())
        if known is not None:
            expected = "exists" if known.job.prompt == prompt else "conflict"
        else:
            expected = "full" if max_queued and waiting >= max_queued else "created"

        job = edit_job(job_id, prompt)
        (submission,) = self.ledger.submit([job], "s3://out", max_queued)

        assert submission.verdict == expected
        if expected == "created":
            self.jobs[job_id] = ModelJob(job, self.clock.last_us, next(self.places))
            self.join_line(self.jobs[job_id])
            if is_sent:
                self.send(job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]

        assert self.ledger.cancel(job_id) is job.state

        if job.state is JobState.QUEUED:
            self.end(job_id, JobState.CANCELLED)
        elif job.state is JobState.RUNNING:
            job.is_to_be_cancelled = True

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), is_sent=st.booleans())
    def retry(self, data: st.DataObject, is_sent: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]

        assert self.ledger.retry(job_id) is job.state

        if job.state in (JobState.FAILED, JobState.CANCELLED):
            job.attempts, job.outages, job.token, job.is_to_be_cancelled = 0, 0, "", False
            job.retries += 1
            job.leave_run(self.clock.last_us)
            job.place = next(self.places)
            self.join_line(job)
            if is_sent:
                self.send(job_id)

    # Workers

    @precondition(lambda self: self.messages)
    @rule()
    def deliver(self) -> None:
        """A worker takes the next message and claims the best job."""
        self.take(next(self.tokens), self.pop())

    @rule(job_id=ids)
    def claim_by_id(self, job_id: str) -> None:
        """A worker of an older version claims the job that its message names."""
        token = next(self.tokens)
        if self.claim(job_id, token):
            self.claims.append((job_id, token))

    @precondition(lambda self: self.claims)
    @rule(back=claims_ago)
    def claim_again(self, back: int) -> None:
        """The answer got lost on its way, so the same worker asks again, soon or much later."""
        job_id, token = self.claimed(back)
        if self.jobs[job_id].is_held_by(token):
            answer = self.ledger.claim_best("w1", LEASE_SECONDS, token)
            self.compare_claim(answer, job_id, token)
        elif not any(job.is_held_by(token) for job in self.jobs.values()):
            self.take(token, job_id)

    @precondition(lambda self: self.claims)
    @rule(back=claims_ago)
    def spend(self, back: int) -> None:
        job_id, token = self.claimed(back)
        job = self.jobs[job_id]

        assert self.ledger.spend(job_id, token) == job.is_held_by(token)

        job.is_spent = job.is_spent or job.is_held_by(token)

    @precondition(lambda self: self.claims)
    @rule(back=claims_ago, step=st.integers(0, 3))
    def renew(self, back: int, step: int) -> None:
        job_id, token = self.claimed(back)
        job = self.jobs[job_id]
        progress = Progress("sampling", step, 30) if step else None

        answer = self.ledger.renew(job_id, token, LEASE_SECONDS, progress)

        if not job.is_held_by(token):
            assert answer == "lost"
            return
        assert answer == ("cancel" if job.is_to_be_cancelled else "held")
        job.lease_ends_us = self.clock.last_us + LEASE_SECONDS * SECOND
        job.progress = progress or job.progress

    @precondition(lambda self: self.claims)
    @rule(back=claims_ago, state=terminal_states)
    def finish(self, back: int, state: JobState) -> None:
        job_id, token = self.claimed(back)
        job = self.jobs[job_id]
        ending = JobState.CANCELLED if job.is_to_be_cancelled else state
        is_repeat = job.state is ending and job.token == token

        ended = self.ledger.finish(job_id, token, state, outcome_of(state))

        assert ended == (ending if job.is_held_by(token) or is_repeat else None)
        if job.is_held_by(token):
            outcome = outcome_of(ending)
            job.reasons.append(outcome.error.code if outcome.error else ending)
            self.end(job_id, ending)

    @precondition(lambda self: self.claims)
    @rule(back=claims_ago, delay_seconds=st.sampled_from([0, 20]), spent=st.sampled_from(get_args(Spent)))
    def requeue(self, back: int, delay_seconds: int, spent: Spent) -> None:
        """Back-off after a failure, of the job or of its store, or a draining worker's hand-back."""
        job_id, token = self.claimed(back)
        job = self.jobs[job_id]
        if job.attempts == MAX_ATTEMPTS and spent == "attempt":  # a worker would fail the job
            spent = "nothing"

        answer = self.ledger.requeue(job_id, token, "given_back", delay_seconds, spent)

        if not job.is_held_by(token):
            assert answer == "lost"
            return
        job.reasons.append("given_back")
        job.attempts -= spent != "attempt"
        job.outages += spent == "outage"
        if job.is_to_be_cancelled:
            assert answer == "cancelled"
            self.end(job_id, JobState.CANCELLED)
            return
        assert answer == ("delayed" if delay_seconds else "queued")
        job.leave_run(self.clock.last_us)
        if delay_seconds:
            job.due_us = self.clock.last_us + delay_seconds * SECOND
        else:
            job.is_first = True
            self.send(job_id)

    @precondition(lambda self: self.overtaken())
    @rule(state=terminal_states, delay_seconds=st.sampled_from([0, 20]))
    def come_back(self, state: JobState, delay_seconds: int) -> None:
        """A worker that had gone silent wakes up while another one runs its job, and can change nothing."""
        job_id, token = self.overtaken()[-1]

        assert self.ledger.renew(job_id, token, LEASE_SECONDS) == "lost"
        assert self.ledger.requeue(job_id, token, "given_back", delay_seconds) == "lost"
        assert not self.ledger.finish(job_id, token, state, outcome_of(state))

    # Accidents and time

    @precondition(lambda self: self.messages)
    @rule()
    def lose_message(self) -> None:
        """A worker takes a message and dies."""
        self.pop()

    @rule(job_id=ids)
    def double_message(self, job_id: str) -> None:
        self.send(job_id)

    @rule(seconds=st.sampled_from([1, 6, 20, 31, 61]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([2.13, 25.37, 3600.71]))  # no sums that end at the moment when something is due
    def set_clock_back(self, seconds: float) -> None:
        self.clock.set_back(seconds)

    # The reconciler

    @rule()
    def reconcile(self) -> None:
        now_us = self.clock.last_us + 1
        if 0 <= now_us - self.turn_us < TURN_SECONDS * SECOND:
            Reconciler(self.ledger, self.queue, MAX_ATTEMPTS, Events()).tick()
            return
        latest_us = max(self.turn_us, *(job.sent_us for job in self.jobs.values() if job.is_in_queue), 0)
        if now_us < latest_us:
            self.move_back(latest_us - now_us, now_us)
        self.turn_us = now_us
        silent = sorted(
            ((job_id, job) for job_id, job in self.jobs.items() if self.is_silent(job)),
            key=lambda item: (item[1].lease_ends_us, item[0]),
        )
        due = [job for job in self.jobs.values() if job.due_us is not None and job.due_us <= now_us]

        Reconciler(self.ledger, self.queue, MAX_ATTEMPTS, Events()).tick()

        for job_id, job in silent:
            self.expire(job_id, job)
        for job in due:
            job.leave_run(self.clock.last_us)
            self.join_line(job)
            self.messages += 1
        self.send_missing()

    # Callbacks

    @rule(target=callbacks)
    def take_callbacks(self) -> Any:
        waiting = dict(self.outbox)

        taken = Outbox(self.ledger).take(10, HIDE_SECONDS)

        # The question itself moves the clock, so what is due is known only afterwards.
        due = {webhook: attempts for webhook, (due_us, attempts) in waiting.items() if due_us <= self.clock.last_us}
        assert {callback.webhook_id: callback.attempts for callback in taken} == due
        for callback in taken:
            assert callback.webhook_id.startswith(f"msg_{callback.job_id}_{callback.event}")
            assert Outbox(self.ledger).ending(callback).event().type == f"edit.{callback.event}"
            self.outbox[callback.webhook_id] = (self.clock.last_us + HIDE_SECONDS * SECOND, callback.attempts)
        return multiple(*due)

    @rule(webhook=consumes(callbacks), is_delivered=st.booleans())
    def settle_callback(self, webhook: str, is_delivered: bool) -> None:
        if webhook not in self.outbox:  # taken twice, and the other sender delivered it
            return
        verdict: Verdict = "delivered" if is_delivered else "pending"
        Outbox(self.ledger).settle(webhook, verdict, "HTTP", delay_seconds=20)

        _, attempts = self.outbox.pop(webhook)
        if not is_delivered:
            self.outbox[webhook] = (self.clock.last_us + 20 * SECOND, attempts + 1)

    # What holds after every step

    @invariant()
    def records_are_as_the_model_has_them(self) -> None:
        records = self.ledger.get_many(list(JOBS))
        for job_id, record in zip(JOBS, records, strict=True):
            job = self.jobs.get(job_id)
            if job is None or record is None:
                assert job is None
                assert record is None
                continue
            assert (record.state, record.attempts, record.progress) == (job.state, job.attempts, job.progress), job_id
            assert record.retries == job.retries
            assert [attempt.reason for attempt in record.history] == job.reasons
            assert self.ledger.position(job_id) == self.position(job)
            assert record.cancel_requested == job.is_to_be_cancelled
            assert job.attempts <= MAX_ATTEMPTS

    @invariant()
    def indexes_agree_with_the_states(self) -> None:
        queued = {job_id: job.sent_us for job_id, job in self.jobs.items() if job.is_in_queue}
        running = {job_id: job.lease_ends_us for job_id, job in self.jobs.items() if job.state is JobState.RUNNING}
        delayed = {job_id: job.due_us for job_id, job in self.jobs.items() if job.due_us is not None}
        for name, expected in (("queued", queued), ("running", running), ("delayed", delayed)):
            found = self.scores(name)
            assert found.keys() == expected.keys(), name
            assert all(abs(found[job_id] - expected[job_id]) < A_FEW_US for job_id in found), (name, found, expected)

    @invariant()
    def batches_count_their_jobs_and_age_once_all_have_ended(self) -> None:
        states = Counter(job.state for job in self.jobs.values() if job.job.batch)
        counted = self.redis.hgetall("dg:batch:spring")
        assert {state: int(number) for state, number in counted.items() if number != "0"} == dict(states)
        is_open = bool(states[JobState.QUEUED] + states[JobState.RUNNING])
        assert self.is_kept("dg:batch:spring") == is_open
        assert self.is_kept("dg:batch:spring:jobs") == is_open
        for job_id, job in self.jobs.items():
            assert self.is_kept(f"dg:job:{job_id}") == (not job.state.is_terminal)

    @invariant()
    def the_outbox_holds_what_is_to_be_told(self) -> None:
        found = self.scores("outbox")
        assert found.keys() == self.outbox.keys()
        assert all(abs(found[webhook] - self.outbox[webhook][0]) < A_FEW_US for webhook in found)

    @invariant()
    def the_queue_holds_the_messages(self) -> None:
        assert count_messages(self.redis) == self.messages

    @invariant()
    def tenants_are_counted(self) -> None:
        counts: dict[str, dict[str, int]] = {}
        for job in self.jobs.values():
            if not job.state.is_terminal:
                counts.setdefault(job.tenant, {"queued": 0, "running": 0})[job.state] += 1
        assert self.ledger.tenant_counts() == counts

    # At the end of every life

    def teardown(self) -> None:
        """No accepted job is lost: with workers that work, every one ends soon."""
        try:
            # Leases may lie as far ahead as time went by without a reconciler before the clock was set back.
            for _ in range(2 * STEPS):
                self.clock.advance(LEASE_SECONDS + 1)
                self.reconcile()
                while self.messages:
                    if self.take(next(self.tokens), self.pop()):
                        self.finish(0, JobState.SUCCEEDED)
                if all(job.state.is_terminal for job in self.jobs.values()):
                    break
            assert [job_id for job_id, job in self.jobs.items() if not job.state.is_terminal] == []
            self.records_are_as_the_model_has_them()
            self.batches_count_their_jobs_and_age_once_all_have_ended()
            self.the_outbox_holds_what_is_to_be_told()
        finally:
            self.redis.delete(
                QUEUE, *self.redis.keys("dg:*")
            )  # what kombu has declared stays, for it is not declared again
            self.redis.close()

    # The model's own steps

    def take(self, token: str, hint: str) -> bool:
        """Claim the best job, compare, and tell whether there was one."""
        expected = self.first_of([job for job in self.jobs.values() if job.is_in_queue], self.turns)
        answer = self.ledger.claim_best("w1", LEASE_SECONDS, token, hint)
        if expected is None:
            assert answer == self.refusal(hint)
            return False
        if not expected.is_first:
            self.claims_made += 1
            self.turns[expected.job.priority][expected.tenant] = self.claims_made
        self.compare_claim(answer, expected.job.id, token)
        self.claims.append((expected.job.id, token))
        return True

    def claim(self, job_id: str, token: str) -> bool:
        """Claim this job, compare, and tell whether it could be had."""
        job = self.jobs.get(job_id)
        answer = self.ledger.claim(job_id, "w1", LEASE_SECONDS, token)
        if job is None or not job.is_in_queue:
            assert answer == self.refusal(job_id)
            return False
        self.compare_claim(answer, job_id, token)
        return True

    def refusal(self, job_id: str) -> Refusal:
        job = self.jobs.get(job_id)
        return Refusal("unknown" if job is None else "delayed" if job.due_us is not None else job.state)

    def compare_claim(self, answer: Claim | Refusal, job_id: str, token: str) -> None:
        job = self.jobs[job_id]
        if job.is_in_queue:
            job.state, job.token, job.attempts = JobState.RUNNING, token, job.attempts + 1
            self.leave_line(job)
        job.lease_ends_us = self.clock.last_us + LEASE_SECONDS * SECOND
        assert isinstance(answer, Claim)
        assert (answer.job_id, answer.attempt, answer.outages) == (job_id, job.attempts, job.outages)
        assert (answer.job.prompt, answer.is_suspect) == (job.job.prompt, job.is_suspect)

    def first_of(self, waiting: list[ModelJob], turns: dict[str, dict[str, int]]) -> ModelJob | None:
        """The job to take next, if these wait and tenants had their last turns like that."""

        def rank(job: ModelJob) -> tuple[Any, ...]:
            if job.is_first:
                return (0, job.place)
            priority = job.job.priority
            return (1, list(turns).index(priority), turns[priority][job.tenant], job.tenant, job.place)

        return min(waiting, key=rank, default=None)

    def position(self, job: ModelJob) -> int | None:
        """Jobs taken before this one, when all that wait are taken in turn and none comes."""
        if not job.is_in_queue:
            return None
        waiting = [other for other in self.jobs.values() if other.is_in_queue]
        turns = {priority: dict(stamps) for priority, stamps in self.turns.items()}
        for stamp in count(self.claims_made + 1):
            following = self.first_of(waiting, turns)
            if following is job:
                return stamp - self.claims_made - 1
            assert following is not None
            if not following.is_first:
                turns[following.job.priority][following.tenant] = stamp
            waiting.remove(following)
        raise AssertionError("unreachable")

    def join_line(self, job: ModelJob) -> None:
        self.turns[job.job.priority].setdefault(job.tenant, self.claims_made)

    def leave_line(self, job: ModelJob) -> None:
        priority, tenant = job.job.priority, job.tenant
        stays = any(
            other.is_in_queue and not other.is_first and (other.job.priority, other.tenant) == (priority, tenant)
            for other in self.jobs.values()
        )
        if not stays:
            self.turns[priority].pop(tenant, None)

    def send_missing(self) -> None:
        missing = sum(job.is_in_queue for job in self.jobs.values()) - self.messages
        if missing <= 0:
            self.short = None
            return
        now_us = self.clock.last_us
        since_us, least = self.short or (now_us, missing)
        least = min(least, missing)
        if now_us - since_us < GRACE_SECONDS * SECOND:
            self.short = (min(since_us, now_us), least)
            return
        self.short = None
        self.messages += least

    def claimed(self, back: int) -> tuple[str, str]:
        """One of the latest claims: of old ones almost all have lost their jobs, which soon teaches nothing new."""
        return self.claims[-1 - back % len(self.claims)]

    def overtaken(self) -> list[tuple[str, str]]:
        """Claims whose jobs others run now."""
        running = {job_id: job.token for job_id, job in self.jobs.items() if job.state is JobState.RUNNING}
        return [(job_id, token) for job_id, token in self.claims if running.get(job_id, token) != token]

    def is_silent(self, job: ModelJob) -> bool:
        return job.state is JobState.RUNNING and job.lease_ends_us <= self.clock.last_us

    def move_back(self, back_us: int, now_us: int) -> None:
        """What a turn does that finds itself before the last one."""

        def moved(moment_us: int, earliest_us: int) -> int:
            return max(moment_us - back_us, earliest_us) if moment_us > now_us else moment_us

        for job in self.jobs.values():
            job.sent_us -= back_us
            job.lease_ends_us = moved(job.lease_ends_us, now_us + RENEWAL_US)
            job.due_us = None if job.due_us is None else moved(job.due_us, now_us)
        self.outbox = {webhook: (moved(due, now_us), attempts) for webhook, (due, attempts) in self.outbox.items()}

    def expire(self, job_id: str, job: ModelJob) -> None:
        job.reasons.append("worker_lost")
        is_again = job.is_spent and job.is_suspect
        if job.is_spent:
            job.is_suspect = True
            may_run_again = job.attempts < MAX_ATTEMPTS
        else:
            job.losses += 1
            may_run_again = job.losses <= MOST_LOSSES
            job.attempts -= may_run_again
        if job.is_to_be_cancelled:
            self.end(job_id, JobState.CANCELLED)
        elif not may_run_again:
            self.end(job_id, JobState.FAILED)
        else:
            job.leave_run(self.clock.last_us)
            job.is_first = not is_again
            if is_again:
                job.place = next(self.places)
                self.join_line(job)
            self.messages += 1

    def end(self, job_id: str, state: JobState) -> None:
        job = self.jobs[job_id]
        job.state, job.due_us, job.progress = state, None, None
        job.is_spent = job.is_first = job.is_suspect = False
        job.losses = 0
        self.leave_line(job)
        if job.job.callback and state in job.job.callback.events:
            suffix = f"_{job.retries + 1}" if job.retries else ""
            self.outbox[f"msg_{job_id}_{state}{suffix}"] = (self.clock.last_us, 0)

    def send(self, job_id: str) -> None:
        self.queue.send([job_id])
        self.messages += 1

    def pop(self) -> str:
        (job_id,) = next_messages(self.redis, 1)
        self.redis.rpop(QUEUE)
        self.messages -= 1
        return job_id

    def scores(self, index: str) -> dict[str, int]:
        """A sorted set of the ledger."""
        found = cast("list[tuple[str, float]]", self.redis.zrange(f"dg:{index}", 0, -1, withscores=True))
        return {member: int(score) for member, score in found}

    def is_kept(self, key: str) -> bool:
        forever = -1
        return bool(self.redis.ttl(key) == forever)


def outcome_of(state: JobState) -> Outcome:
    if state is JobState.SUCCEEDED:
        return Outcome(output="s3://out/cat.png")
    code = "cancelled" if state is JobState.CANCELLED else "input_not_an_image"
    return Outcome(error=ErrorInfo.model_validate({"code": code, "message": "it ended", "retryable": False}))


@pytest.mark.parametrize(
    "examples", [pytest.param(FEW_EXAMPLES, marks=pytest.mark.long), pytest.param(EXAMPLES, marks=pytest.mark.slow)]
)
def test_the_ledger_does_what_its_model_does_whatever_happens_in_whatever_order(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, examples: int
) -> None:
    caplog.set_level(logging.ERROR)  # thousands of lost messages are not worth telling
    queue = EditQueue(redis_server.client())
    run_state_machine_as_test(
        partial(LedgerMachine, redis_server, queue),  # type: ignore[arg-type]  # it calls it, no more
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="CI" in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
