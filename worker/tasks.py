"""The Celery task. Everything it does stands in `run_edit`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import Celery

from jobs.errors import BrokerUnavailable, StopWorker
from jobs.queue import TASK
from worker.run_edit import run_message

if TYPE_CHECKING:
    from worker.edit_worker import EditWorker

log = logging.getLogger(__name__)


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
            run_message(message, task.request.id, worker.services)
        except StopWorker as error:
            worker.stop_process(error.message)
        except BrokerUnavailable as error:
            log.error("run_abandoned task=%s reason=%s", task.request.id, error)
        finally:
            worker.admission.ended(task.request.id)
