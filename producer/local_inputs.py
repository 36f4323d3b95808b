"""Local inputs of a table, and whether the workers that are up may read them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jobs.registry import WorkerInfo, WorkerState
from jobs.schema import EditJob
from producer.files import local_path
from producer.terminal import plural, say

MOST_FOLDERS = 1000
"""More folders of inputs than this are judged by those that came first."""


def local_files(job: EditJob) -> set[Path]:
    """The files that a job reads from `file://`: inputs and LoRAs."""
    uris = (*job.image, *(lora.uri for lora in job.params.loras))
    return {path for uri in uris if (path := local_path(uri)) is not None}


class LocalInputs:
    """Folders of `file://` inputs and LoRAs, with the number of jobs that read there."""

    def __init__(self) -> None:
        self._jobs: Counter[Path] = Counter()

    def note(self, job: EditJob) -> None:
        """Take the inputs of one job into account."""
        for folder in {path.parent for path in local_files(job)}:
            if folder in self._jobs or len(self._jobs) < MOST_FOLDERS:
                self._jobs[folder] += 1

    def closed_to(self, workers: list[WorkerInfo]) -> Counter[Path]:
        """Folders that none of the workers may read, with their jobs; empty when no worker is up."""
        living = [worker for worker in workers if worker.state is not WorkerState.BROKEN]
        if not living:
            return Counter()
        closed = {folder for folder in self._jobs if not any(worker.may_read(folder.resolve()) for worker in living)}
        return Counter({folder: count for folder, count in self._jobs.items() if folder in closed})


def warn_of_closed(local: LocalInputs, workers: list[WorkerInfo]) -> None:
    """Say before anything is queued that no worker may read some of the local inputs, and what to do."""
    closed = local.closed_to(workers)
    if not closed:
        return
    folder, _ = closed.most_common(1)[0]
    others = f" and {plural(len(closed) - 1, 'other folder')}" if len(closed) > 1 else ""
    roots = sorted({root for worker in workers for root in worker.file_roots or ()})
    say(
        f"warning: no worker that is up may read {folder}{others}; {plural(sum(closed.values()), 'job')} will fail "
        f"with input_forbidden (DG_FILE_ROOTS there: {', '.join(roots) or 'none'})"
    )
    say(f"  start the workers with DG_FILE_ROOTS={folder}, or submit with --upload s3://bucket/prefix")
