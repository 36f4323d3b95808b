"""A worker that cannot start leaves nothing behind: Celery stops only what has started."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kontext import KontextError
from worker.events import Event, Events
from worker.lifecycle import EXIT_NO_MODEL, ServiceStep


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
    ("error", "raised", "said"),
    [
        (KontextError("there is no folder /models"), SystemExit, ["model_not_loaded", "stopped"]),
        (ZeroDivisionError("an engine's own fault"), ZeroDivisionError, ["stopped"]),
    ],
)
def test_a_worker_that_cannot_load_its_model_ends_its_threads_first(
    error: BaseException, raised: type[BaseException], said: list[str]
) -> None:
    worker = Unable(error)
    pool = SimpleNamespace(__module__="celery.concurrency.thread")
    controller = SimpleNamespace(app=SimpleNamespace(edit_worker=worker, steps={}), pool_cls=pool)

    with pytest.raises(raised) as ended:
        ServiceStep(controller).start(controller)

    assert worker.said == said
    if isinstance(ended.value, SystemExit):
        assert ended.value.code == EXIT_NO_MODEL
