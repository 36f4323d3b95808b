"""Logs for people and for grep: one line per event, `event key=value ...`, on stderr."""

from __future__ import annotations

import logging

QUIET_LOGGERS = ("celery.app.trace", "celery.worker.strategy", "httpx", "botocore", "boto3", "s3transfer", "urllib3")
"""They say per job or per request what our own lines say better."""


def set_up_logs(level: str) -> None:
    """Send logs to stderr."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
