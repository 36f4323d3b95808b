"""Logs on stderr: one line per event, `event key=value ...` for people and grep, or one JSON object for collectors."""

from __future__ import annotations

import json
import logging
import warnings
from datetime import UTC, datetime
from typing import Any

from celery.exceptions import SecurityWarning
from celery.signals import setup_logging

from jobs.shown import cut, hide_secrets, one_line
from worker.settings import Settings

TEXT_FORM = "%(asctime)s %(levelname)s %(name)s %(message)s"

MOST_TRACE_LINES = 200

QUIET_LOGGERS = (
    *("celery.app.trace", "celery.worker.strategy", "celery.pool"),
    *("httpx2", "httpcore2", "botocore", "boto3", "s3transfer", "urllib3"),
)
"""They say per job or per request what our own lines say better, and without prompts and signatures."""


class OneLineFormatter(logging.Formatter):
    """Writes a record on one line and a trace on indented ones, so that no text in them can forge a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        return one_line(hide_secrets(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = _last_lines(super().formatException(ei))
        return "\n".join(f"    {one_line(hide_secrets(line))}" for line in lines)


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `worker`; `event` and its fields with the
    job's `batch` and `trace`, or a library's `message`.

    Args:
        worker: name of this worker.
    """

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        event = getattr(record, "event", None)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "worker": self._worker,
            **({"message": record.getMessage()} if event is None else {"event": event.name, **event.facts()}),
            **getattr(record, "origin", {}),
        }
        shown = {key: _shown(value) for key, value in line.items()}
        if record.exc_info:
            shown["exception"] = "\n".join(_shown(text) for text in _last_lines(self.formatException(record.exc_info)))
        return json.dumps(shown, default=str)


def set_up_logs(settings: Settings) -> None:
    """Send logs to stderr, and keep Celery from arranging them its own way."""
    setup_logging.connect(_leave_logging_alone, dispatch_uid="logs")
    handler = logging.StreamHandler()
    is_json = settings.log_format == "json"
    handler.setFormatter(JsonLines(settings.worker_name) if is_json else OneLineFormatter(TEXT_FORM))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Celery warns of root because pickled messages could run code; ours are JSON, and containers often run as root.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # What becomes of running tasks at a lost connection is decided (`jobs/celery_app.py`). Not by a filter of
    # warnings, as Celery puts one of its own before it.
    logging.getLogger("py.warnings").addFilter(lambda record: "CPendingDeprecationWarning" not in record.getMessage())


def _shown(value: Any) -> Any:
    """A field's value without secrets, and no longer than a line of the other form; JSON escapes the rest."""
    return cut(hide_secrets(value)) if isinstance(value, str) else value


def _last_lines(trace: str) -> list[str]:
    """The end of a trace, where its reason stands."""
    return trace.splitlines()[-MOST_TRACE_LINES:]


def _leave_logging_alone(**_: object) -> None:
    """Celery arranges no logs when somebody listens to this signal."""
