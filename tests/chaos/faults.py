"""Faults by name. Each begins when its `with` block is entered and is over when the block is left.

What a fault hits, where there is a choice, the bench's random numbers decide.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from jobs.queue import QUEUE
from jobs.schema import EditJob
from tests.chaos.bench import HOOK, LEASE_SECONDS, MAX_ATTEMPTS, Bench
from tests.chaos.expected import Expected
from tests.chaos.narrow import fill
from tests.chaos.proxy import TcpProxy
from tests.chaos.script_cut import kill_in_the_middle
from tests.hostile.messages import hostile_messages, valid_message
from tests.hostile.mutations import mutated
from tests.servers.http import Answer
from tests.servers.worker import WorkerProcess

Fault = Callable[[Bench], AbstractContextManager[None]]

DELAY_SECONDS = 0.3
JUMP_SECONDS = 5 * 3600.0
MOST_DOUBLED = 200
"""Else the messages of a long queue would be many thousands after a few times."""

FULL_BYTES = 1  # less than Redis needs to live: it refuses every write that could make it larger

FAULTS: dict[str, Fault] = {}
"""Every fault by its name."""


def fault(act: Callable[[Bench], Iterator[None]]) -> Fault:
    """Make a context manager of what happens before and after `yield`, and enter it in `FAULTS`."""
    FAULTS[act.__name__] = contextmanager(act)
    return FAULTS[act.__name__]


# Workers


@fault
def worker_killed(bench: Bench) -> Iterator[None]:
    """SIGKILL."""
    _any_worker(bench).kill()
    yield


@fault
def worker_terminated(bench: Bench) -> Iterator[None]:
    """SIGTERM, as at a deploy."""
    _any_worker(bench).signal(signal.SIGTERM)
    yield


@fault
def worker_frozen(bench: Bench) -> Iterator[None]:
    """SIGSTOP; the zombie comes back with SIGCONT."""
    worker = _any_worker(bench)
    worker.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        if worker.process.poll() is None:
            worker.signal(signal.SIGCONT)


# The network between one worker and Redis


@fault
def worker_cut_off(bench: Bench) -> Iterator[None]:
    """Connections are reset and new ones refused."""
    line = _any_line(bench)
    line.cut()
    yield
    line.mend()


@fault
def line_frozen(bench: Bench) -> Iterator[None]:
    """Nothing passes, nothing closes."""
    line = _any_line(bench)
    line.freeze()
    yield
    line.mend()


@fault
def line_slow(bench: Bench) -> Iterator[None]:
    """Every piece is held up."""
    line = _any_line(bench)
    line.delay_seconds = DELAY_SECONDS
    yield
    line.mend()


@fault
def line_half_closed(bench: Bench) -> Iterator[None]:
    """Redis seems to have hung up; what the worker still sends arrives."""
    _any_line(bench).half_close()
    yield


# Redis


@fault
def redis_restarted(bench: Bench) -> Iterator[None]:
    """SIGKILL, and a new start on the append-only file."""
    bench.redis.kill()
    yield
    bench.redis.start()


@fault
def redis_frozen(bench: Bench) -> Iterator[None]:
    """SIGSTOP: connections stay open and nothing answers."""
    bench.redis.pause()
    yield
    bench.redis.resume()


@fault
def connections_killed(bench: Bench) -> Iterator[None]:
    """CLIENT KILL of everybody, while Redis stays up."""
    with bench.redis.client() as redis:
        redis.execute_command("CLIENT", "KILL", "SKIPME", "yes", "TYPE", "normal")
    yield


@fault
def redis_full(bench: Bench) -> Iterator[None]:
    """`maxmemory` is reached, with the policy that a queue needs: writes are refused."""
    with bench.redis.client() as redis:
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", FULL_BYTES)
        yield
        redis.config_set("maxmemory", 0)


def _redis_clock(seconds: float) -> Fault:
    @contextmanager
    def clock_jumps(bench: Bench) -> Iterator[None]:
        assert bench.redis.clock is not None, "this Redis runs by the machine's clock"
        bench.redis.clock.set_ahead(seconds)
        yield
        bench.redis.clock.set_ahead(0)

    return clock_jumps


redis_clock_ahead = _redis_clock(JUMP_SECONDS)
redis_clock_behind = _redis_clock(-JUMP_SECONDS)
"""Not among `FAULTS`: while the clock is wrong, receivers that look at it may refuse what is signed."""


@fault
def message_lost(bench: Bench) -> Iterator[None]:
    """A message disappears, as when a worker dies between taking and reading it."""
    with bench.redis.client() as redis:
        redis.rpop(QUEUE)
    yield


@fault
def messages_doubled(bench: Bench) -> Iterator[None]:
    """Messages that wait are there twice."""
    with bench.redis.client() as redis:
        messages = redis.lrange(QUEUE, -MOST_DOUBLED, -1)
        if messages:
            redis.lpush(QUEUE, *messages)
    yield


@fault
def messages_malformed(bench: Bench) -> Iterator[None]:
    """Many messages that are none of ours lie before and among the good ones."""
    valid = valid_message(bench.redis.url)
    forms = [message for message, _ in hostile_messages(valid).values()]
    hostile = bench.random.sample(forms, 20) + [mutated(valid, bench.random) for _ in range(20)]
    with bench.redis.client() as redis:
        redis.lpush(QUEUE, *hostile[:20])
        redis.rpush(QUEUE, *hostile[20:])
    yield


@fault
def redis_killed_in_a_script(bench: Bench) -> Iterator[None]:
    """SIGKILL while a script of the ledger is half done, and a new start."""
    fields = {"id": f"cut-{time.time_ns()}", "image": bench.input, "prompt": "make it snow", "params": {"seed": 7}}
    job = EditJob.model_validate(fields)
    operation, arguments = bench.random.choice(
        (
            ("submit", ([job], bench.settings.output_uri)),
            ("claim_best", ("ghost", LEASE_SECONDS)),
            ("expire", (MAX_ATTEMPTS,)),
            ("promote", ()),
            ("take_turn", (0.0,)),
        )
    )
    kill_in_the_middle(bench.redis, bench.random.randint(1, 12), operation, arguments)
    yield
    bench.redis.start()
    bench.client.submit(job)  # as the client does whose call was cut, if it was this one
    bench.sent[job.id] = Expected(7, may_be_spent=True)


# The machine


@fault
def disk_of_health_full(bench: Bench) -> Iterator[None]:
    """No byte is left where the workers' health files are; where the bench has no disk for them, nothing happens."""
    filler = bench.runtime / "filler"
    if bench.runtime.is_mount():
        fill(filler)
    yield
    filler.unlink(missing_ok=True)


# The store


@fault
def store_failing(bench: Bench) -> Iterator[None]:
    """HTTP 503."""
    bench.store.status = bench.random.choice((500, 503))
    yield
    bench.store.status = None


@fault
def store_slow(bench: Bench) -> Iterator[None]:
    """Each request takes a second more."""
    bench.store.delay_seconds = 1
    yield
    bench.store.delay_seconds = 0


@fault
def store_hanging_up(bench: Bench) -> Iterator[None]:
    """Answers break off in their middle."""
    bench.store.status = 0
    yield
    bench.store.status = None


@fault
def store_cut_off(bench: Bench) -> Iterator[None]:
    """Connections are reset and new ones refused."""
    bench.store_line.cut()
    yield
    bench.store_line.mend()


# The receiver of callbacks


@fault
def receiver_down(bench: Bench) -> Iterator[None]:
    """Connections are refused."""
    bench.receiver_line.cut()
    yield
    bench.receiver_line.mend()


def _receiver_answering(name: str, answer: Answer) -> Fault:
    def receiver_answers(bench: Bench) -> Iterator[None]:
        bench.receiver.answer(HOOK, answer)
        yield
        bench.receiver.answer(HOOK, Answer(204))

    receiver_answers.__name__ = name
    return fault(receiver_answers)


receiver_failing = _receiver_answering("receiver_failing", Answer(500))
receiver_redirecting = _receiver_answering("receiver_redirecting", Answer.redirect("/elsewhere"))
receiver_silent = _receiver_answering("receiver_silent", Answer(delay_seconds=30))
receiver_hanging_up = _receiver_answering("receiver_hanging_up", Answer(dropped=True))


def _any_worker(bench: Bench) -> WorkerProcess:
    living = [worker for worker in bench.workers.values() if worker.process.poll() is None]
    return bench.random.choice(living)


def _any_line(bench: Bench) -> TcpProxy:
    return bench.lines[bench.random.choice(sorted(bench.lines))]
