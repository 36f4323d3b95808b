"""A whole table on this machine: pictures, `results.csv`, `gallery.html` and `worker.log` in one folder.

A run goes on where an earlier one in the same folder stopped. A row is done when the folder's `results.csv` shows it as
succeeded under the same job id and its picture is there; the id follows from the row's place and cells and from the
values for all rows, so a changed row is done again. `results.csv` is written at the end, on Ctrl-C, SIGTERM and
errors, and once a minute, so a power cut costs the pictures of a minute.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from jobs.ledger import JobRecord
from jobs.schema import EditJob, JobState
from producer.csv_style import CsvStyle
from producer.embedded.folder_lock import only_run_in
from producer.embedded.gpus import choose_gpus
from producer.embedded.local_service import LocalService, local_service
from producer.embedded.remote_changes import last_changes, remote_inputs
from producer.failures import group_failures, tell_failures
from producer.files import local_path, naming_what_is_written
from producer.gallery import write_gallery
from producer.local_inputs import local_files
from producer.progress import watch
from producer.report import NOT_QUEUED, Ending, LookUp, ReportRow, table_report
from producer.result_files import Layout, read_earlier, write_results
from producer.table.placing import ImagePlacer
from producer.table.plan import Plan, RowDefaults
from producer.table.rows import TableRow
from producer.table.selection import ALL_ROWS, RowSelection
from producer.table.table import Table

REPORT_SECONDS = 60.0


@dataclass(frozen=True)
class RunOptions:
    """What a run does otherwise than usual.

    `results` is another path for results.csv, `result_names` are other names of its columns; `variables` are settings
    for the workers, and `gpus` is how many of them run, one for each visible GPU when None. `style` is that of
    results.csv. With `check_inputs` the servers of inputs are asked whether these have changed since.
    """

    overwrite: bool = False
    selection: RowSelection = ALL_ROWS
    results: Path | None = None
    result_names: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    gpus: int | None = None
    style: CsvStyle = field(default_factory=CsvStyle)
    check_inputs: bool = False


@dataclass(frozen=True)
class RunFiles:
    """Files of a run, in the folder of its output images unless `results` was named."""

    folder: Path
    results: Path

    @property
    def gallery(self) -> Path:
        return self.folder / "gallery.html"

    @property
    def worker_log(self) -> Path:
        return self.folder / "worker.log"


class EmbeddedRun:
    """One run of a table into a folder.

    Attributes:
        plan: the batch and the values for all rows.
        files: the paths of what is written.
        options: what is done otherwise than usual.
        done_before: number of the selected rows that an earlier run has done and this one does not do again.
        changed_since: number of those that it does again, since an input is newer than their output.
        undated: number of inputs whose servers were asked and told no date.

    Raises:
        SettingsError: fewer GPUs are visible than were asked for.
    """

    def __init__(self, table: Table, folder: Path, defaults: RowDefaults, options: RunOptions) -> None:
        folder = folder.expanduser().resolve()
        self._table = table
        self.options = options
        self._layout = Layout(table.columns, folder, options.result_names, options.style)
        self.files = RunFiles(folder, (options.results or folder / "results.csv").expanduser().resolve())
        self.plan: Plan = table.plan_for_folder(folder.as_uri(), defaults)
        self._gpus = choose_gpus(options.gpus, {**os.environ, **options.variables})
        self._earlier: Mapping[str, Ending] = {}
        self.done_before = self.changed_since = self.undated = 0

    def jobs(self) -> Iterator[EditJob]:
        """The jobs that are still to be done."""
        return self._unfinished(self._table.rows(self.plan, self.options.selection))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, see that files can be written there, and let no other run in for the length of a block.

        Raises:
            TableError: they cannot, another run is at work there, or its results.csv cannot be read.
        """
        with naming_what_is_written(self.files.folder):
            self.files.folder.mkdir(parents=True, exist_ok=True)
            self.files.worker_log.touch()
        with only_run_in(self.files.folder):
            self._earlier = self._read_earlier()
            self.done_before = self._count_done_before()
            yield

    def _read_earlier(self) -> dict[str, Ending]:
        options = self.options
        if options.overwrite and options.selection == ALL_ROWS:
            return {}
        earlier = read_earlier(self.files.results, self._layout)
        for row in self._table.rows(self.plan, options.selection) if earlier else ():
            if options.overwrite:
                earlier.pop(row.job_id, None)
            elif row.job is not None and row.job_id in earlier and self._has_changed(row.job, earlier[row.job_id]):
                del earlier[row.job_id]
                self.changed_since += 1
        if options.check_inputs:
            self._forget_changed_elsewhere(earlier)
        return earlier

    def _forget_changed_elsewhere(self, earlier: dict[str, Ending]) -> None:
        """Take out the rows that have an input on the web or in a bucket which is newer than their output."""
        rows = self._table.rows(self.plan, self.options.selection) if earlier else ()
        inputs = {row.job_id: remote_inputs(row.job) for row in rows if row.job is not None and row.job_id in earlier}
        asked = set(chain.from_iterable(inputs.values()))
        changed_at = last_changes(asked)
        self.undated = len(asked) - len(changed_at)
        for job_id, uris in inputs.items():
            made_at = _made_at(earlier[job_id])
            if made_at is not None and any(changed_at.get(uri, 0.0) > made_at for uri in uris):
                del earlier[job_id]
                self.changed_since += 1

    def _has_changed(self, job: EditJob, ending: Ending) -> bool:
        """True if a local input is newer than the output that was made of it."""
        made_at = _made_at(ending)
        if made_at is None:
            return False
        # Images that stand in the table are named after their content.
        inputs = [path for path in local_files(job) if not path.as_uri().startswith(f"{self.plan.images_root}/")]
        return any(path.stat().st_mtime > made_at for path in inputs if path.exists())

    def _count_done_before(self) -> int:
        rows = self._table.rows(self.plan, self.options.selection) if self._earlier else ()
        return sum(row.job is not None and self._is_done(row.job_id) for row in rows)

    def _is_done(self, job_id: str) -> bool:
        return job_id in self._earlier and self._earlier[job_id].is_done

    def start(self, as_json: bool) -> dict[JobState, int]:
        """Do the jobs, show how far they are, write the reports, and return how many ended in which state.

        The folder is ours: this stands in a block of `alone`.

        Raises:
            SetupError: this machine lacks a part.
            WorkerFailed: the worker stopped; the reports say what was done.
        """
        variables = self.options.variables
        with local_service(self.plan.output_root, self.files.worker_log, self._gpus, variables) as service:
            try:
                self._submit(service)
                counts = watch(service.client, self.plan.batch, as_json, hints=False, tick=self._ticker(service)).counts
                tell_failures(group_failures(service.client.ledger, self.plan.batch), as_json, name=None)
                return counts
            finally:
                self.report(service.client.ledger.get_many)

    def _submit(self, service: LocalService) -> None:
        with ImagePlacer.open(self.plan.images_root) as placer:
            rows = placer.when_placed(self._table.rows(self.plan, self.options.selection, placer.put))
            for _ in service.client.submit_many(self._unfinished(rows)):
                pass

    def _unfinished(self, rows: Iterable[TableRow]) -> Iterator[EditJob]:
        return (row.job for row in rows if row.job is not None and not self._is_done(row.job.id))

    def report(self, look_up: LookUp) -> None:
        """Write `results.csv` and the gallery."""
        self._write_results(look_up)
        touched = (row for row in self._rows(look_up) if row.ending.state != NOT_QUEUED)
        write_gallery(self.files.gallery, self._table.name, touched)

    def _write_results(self, look_up: LookUp) -> None:
        write_results(self.files.results, self._layout, self._rows(look_up))

    def _rows(self, look_up: LookUp) -> Iterator[ReportRow]:
        return table_report(self._table, self.plan, look_up, self._earlier)

    def _ticker(self, service: LocalService) -> Callable[[], None]:
        written_at = time.monotonic()

        def tick() -> None:
            nonlocal written_at
            service.check()
            if time.monotonic() - written_at >= REPORT_SECONDS:
                self._write_results(service.client.ledger.get_many)
                written_at = time.monotonic()

        return tick


def nothing_known(job_ids: Sequence[str]) -> list[JobRecord | None]:
    """Look up jobs where there is no ledger."""
    return [None] * len(job_ids)


def _made_at(ending: Ending) -> float | None:
    """When the output of a done row was written, seconds since 1970."""
    output = local_path(ending.output) if ending.is_done else None
    return None if output is None else output.stat().st_mtime
