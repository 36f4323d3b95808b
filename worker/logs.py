"""Logs for people and for grep: one line per event, `event key=value ...`, on stderr."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from celery.exceptions import SecurityWarning
from celery.signals import setup_logging

from jobs.shown import hide_secrets, one_line

QUIET_LOGGERS = ("celery.app.trace", "celery.worker.strategy", "httpx2", "botocore", "boto3", "s3transfer", "urllib3")
"""They say per job or per request what our own lines say better."""


class OneLineFormatter(logging.Formatter):
    """Writes a record on one line and a trace on indented ones, so that no text in them can forge a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        return one_line(hide_secrets(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {one_line(hide_secrets(line))}" for line in lines)


def set_up_logs(level: str) -> None:
    """Send logs to stderr, and keep Celery from arranging them its own way."""
    setup_logging.connect(_leave_logging_alone, dispatch_uid="logs")
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Celery warns of root because pickled messages could run code; ours are JSON, and containers often run as root.
    warnings.filterwarnings("ignore", category=SecurityWarning)


def _leave_logging_alone(**_: object) -> None:
    """Celery arranges no logs when somebody listens to this signal."""
