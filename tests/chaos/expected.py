"""What is expected of a job."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.schema import JobState

SUCCEEDED = frozenset({JobState.SUCCEEDED})


@dataclass(frozen=True)
class Expected:
    """How a job may end, and the seed by which its picture is known.

    `may_be_spent`: faults may use up its attempts; it then fails, saying so.
    """

    seed: int
    states: frozenset[JobState] = SUCCEEDED
    may_be_spent: bool = False
