"""What an exception from the engine means for the job and for the process."""

from __future__ import annotations

from jobs.errors import AbortJob, EditFailure, ErrorCode, RejectJob, RetryJob, StopWorker
from kontext import ModelLost, RequestError
from worker.device_errors import device_is_lost, is_out_of_device_memory

CPU_REFUSAL = "can't allocate memory"
"""What torch says, in a plain RuntimeError, when the machine has no memory left for it."""

FAULTS_OF_THE_DEVICE = frozenset({ErrorCode.ENGINE_FAILED, ErrorCode.OUT_OF_MEMORY, ErrorCode.WORKER_LOST})
MOST_FAULTS_IN_A_ROW = 3


class FaultStreak:
    """Counts the different jobs in a row that failed in the engine: a sign that the device is to blame.

    One job that fails again and again, as a job that cannot work does, counts once.
    """

    def __init__(self) -> None:
        self._job_ids: set[str] = set()

    @property
    def length(self) -> int:
        return len(self._job_ids)

    @property
    def is_suspicious(self) -> bool:
        """True when the worker should try itself with an edit that is known to work."""
        return self.length >= MOST_FAULTS_IN_A_ROW

    def note(self, job_id: str, failure: EditFailure | None) -> None:
        """Note how a run ended; None is a success. What is not the engine's doing neither counts nor clears."""
        if failure is None:
            self.clear()
        elif failure.code in FAULTS_OF_THE_DEVICE and not isinstance(failure, AbortJob):
            is_hosts_memory = failure.code is ErrorCode.OUT_OF_MEMORY and failure.retryable
            if not is_hosts_memory:
                self._job_ids.add(job_id)

    def clear(self) -> None:
        self._job_ids.clear()


def classify(error: Exception, device: str = "") -> EditFailure:
    """Say what the worker should do about an exception that a run raised.

    Args:
        device: of the engine, to be tried where the exception leaves open whether it is lost.
    """
    if isinstance(error, EditFailure):
        return error
    if isinstance(error, ModelLost):
        return StopWorker(ErrorCode.WORKER_LOST, _first_line(error))
    if device_is_lost(error, device):
        return StopWorker(ErrorCode.WORKER_LOST, f"the device is broken: {_first_line(error)}")
    if _is_out_of_host_memory(error):
        return RetryJob(ErrorCode.OUT_OF_MEMORY, "the machine's memory was not enough for this job and its neighbours")
    if is_out_of_memory(error):
        return RejectJob(
            ErrorCode.OUT_OF_MEMORY,
            "the device's memory was not enough, even with all weights streamed through it: ask for a smaller picture",
        )
    if isinstance(error, RequestError):
        return RejectJob(ErrorCode.INVALID_JOB, _first_line(error))
    if isinstance(error, OSError):
        return RetryJob(ErrorCode.INTERNAL, f"{type(error).__name__}: {_first_line(error)}")
    return RetryJob(ErrorCode.ENGINE_FAILED, f"{type(error).__name__}: {_first_line(error)}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device's memory, or the machine's, was not enough."""
    return _is_out_of_host_memory(error) or is_out_of_device_memory(error)


def _is_out_of_host_memory(error: Exception) -> bool:
    # Whoever asks for a little while a neighbour takes all fails too: so this is no reason to reject a job.
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and CPU_REFUSAL in str(error))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:500]
