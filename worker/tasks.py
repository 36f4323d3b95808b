"""The Celery task. Everything that it does stands in `run_edit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery

from jobs.errors import BrokerError, StopWorker
from jobs.queue import TASK
from worker.events import RunAbandoned

if TYPE_CHECKING:
    from worker.edit_worker import EditWorker


def register(app: Celery, worker: EditWorker) -> None:
    """Give the application its one task, `worker.tasks.edit`.

    It takes the id of a job in the ledger or, from any Celery client, the job itself: as one argument, or its fields as
    keyword arguments.
    """

    @app.task(name=TASK, bind=True, ignore_result=True)
    def edit(task: Any, /, *arguments: Any, **fields: Any) -> None:
        # Whatever the arguments, the call must arrive here: the gate stays shut until `ended`.
        message = arguments[0] if len(arguments) == 1 and not fields else list(arguments) or fields
        try:
            worker.runner.run_message(message, task.request.id)
        except StopWorker as error:
            worker.stop_process(error.message)
        except BrokerError as error:
            worker.events.send(RunAbandoned(task.request.id, str(error)))
        finally:
            worker.admission.ended(task.request.id)
