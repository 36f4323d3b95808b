"""Puts edits into the queue and brings their results back."""

from jobs.errors import BrokerUnavailable, Error, JobNotFound, SettingsError
from jobs.schema import Callback, EditJob, EditParams, EditResult, JobState
from producer.client import Client
from producer.errors import JobConflict, QueueFull, TableError

__all__ = [
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "Callback",
    "Client",
    "EditJob",
    "EditParams",
    "EditResult",
    "Error",
    "JobConflict",
    "JobNotFound",
    "JobState",
    "QueueFull",
    "SettingsError",
    "TableError",
]
