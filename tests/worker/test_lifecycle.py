"""A worker that cannot start leaves nothing behind: Celery stops only what has started."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from kontext import DeviceTaken, KontextError
from worker.edit_worker import EXIT_BROKEN
from worker.events import Event, Events
from worker.lifecycle import EXIT_NO_MODEL, SWITCH_SECONDS, ServiceStep
from worker.standin import out_of_memory


class Unable:
    """A worker that raises at its start and says what happens to it."""

    def __init__(self, error: BaseException) -> None:
        self.said = list[str]()
        self.events = Events(self._note)
        self._error = error

    def start(self) -> None:
        raise self._error

    def stop(self) -> None:
        self.said.append("stopped")

    def _note(self, event: Event) -> None:
        self.said.append(event.name)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KontextError("there is no folder /models"), EXIT_NO_MODEL, ["model_not_loaded", "stopped"]),
        (DeviceTaken("other programs leave 10 MiB"), EXIT_BROKEN, ["model_not_loaded", "stopped"]),
        (out_of_memory(), EXIT_BROKEN, ["model_not_loaded", "stopped"]),
        (ZeroDivisionError("an engine's own fault"), None, ["stopped"]),
    ],
)
def test_a_worker_that_cannot_load_its_model_ends_its_threads_first(
    error: BaseException, code: int | None, said: list[str]
) -> None:
    worker = Unable(error)
    pool = SimpleNamespace(__module__="celery.concurrency.thread")
    controller = SimpleNamespace(app=SimpleNamespace(edit_worker=worker, steps={}), pool_cls=pool)

    with pytest.raises(type(error) if code is None else SystemExit) as ended:
        ServiceStep(controller).start(controller)

    assert worker.said == said
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS), "an upload would keep Python from the GPU's thread"
    if isinstance(ended.value, SystemExit):
        assert ended.value.code == code
