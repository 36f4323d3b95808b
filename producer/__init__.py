"""Puts edits into the queue and brings their results back."""

from jobs.errors import BrokerError, BrokerRefused, BrokerUnavailable, Error, JobNotFound, SettingsError
from jobs.ledger import JobRecord, Progress, Submission
from jobs.schema import Callback, EditJob, EditParams, EditResult, JobEvent, JobState
from producer.async_client import AsyncClient
from producer.client import Client
from producer.errors import CallbackRefused, JobConflict, QueueFull, TableError
from producer.receiving import verify_callback

__all__ = [
    "AsyncClient",
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "Callback",
    "CallbackRefused",
    "Client",
    "EditJob",
    "EditParams",
    "EditResult",
    "Error",
    "JobConflict",
    "JobEvent",
    "JobNotFound",
    "JobRecord",
    "JobState",
    "Progress",
    "QueueFull",
    "SettingsError",
    "Submission",
    "TableError",
    "verify_callback",
]
