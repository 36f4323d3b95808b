"""`producer edit --remote`: what goes to the workers with a job, and what comes back from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.inline_image import inline_image
from jobs.ledger import JobRecord
from jobs.schema import EditJob, EditParams, EditResult
from producer.client import Client
from producer.commands import options
from producer.commands.edit_output import check_output
from producer.download import Downloader
from producer.errors import TableError
from producer.files import local_path
from producer.terminal import say
from producer.waiting import wait_for


def run_remotely(broker_url: str | None) -> Callable[[list[EditJob]], Iterator[JobRecord]]:
    client = Client(settings=options.settings_with(broker_url))

    def run(jobs: list[EditJob]) -> Iterator[JobRecord]:
        for job in jobs:
            client.submit(job)
            say(f"job {job.id} is queued; waiting (Ctrl-C leaves it there)")
        for job in jobs:
            try:
                yield wait_for(client, job.id)
            except KeyboardInterrupt:
                say(f"the job goes on; see it with: producer status {job.id}")
                raise

    def with_inputs(jobs: list[EditJob]) -> Iterator[JobRecord]:
        return run([job.model_copy(update={"image": tuple(map(_inline, job.image))}) for job in jobs])

    return with_inputs


def is_workers(output: str | None) -> bool:
    """True if `-o` leaves the place to the workers, or names one by a URI; otherwise it is fetched to a place here."""
    return output is None or "://" in output


def check_remote_output(output: str | None, several: bool) -> None:
    if output is not None and ("://" not in output or several):
        said = "give an s3:// or file:// URI for one edit, or leave it out"
        raise TableError(f"-o {output}: with --remote the workers write it; {said}")
    check_output(output or "")


def refuse_local_loras(params: EditParams) -> None:
    for lora in params.loras:
        if (path := local_path(lora.uri)) is not None:
            said = "is on this machine, and --remote workers read hf://, https:// or s3://"
            raise TableError(f"--loras {path}: {said}; put it there, or edit without --remote")


def without_output(job: EditJob) -> EditJob:
    """The job of an output that is fetched afterwards: the workers choose its place, and its name here the format."""
    chosen = job.params.output_format or job.implied_format
    return job.model_copy(update={"output": None, "params": job.params.model_copy(update={"output_format": chosen})})


def fetched(result: EditResult, path: Path) -> EditResult:
    """The result with its output at `path`, where it has one.

    Raises:
        TableError: it cannot be had; it stays where the workers have put it.
    """
    if result.error is not None or result.output is None:
        return result
    file = Downloader().fetch(result.output, path)
    if file.problem:
        raise TableError(f"{file.uri}: {file.problem}")
    return result.model_copy(update={"output": path.as_uri()})


def _inline(uri: str) -> str:
    path = local_path(uri)
    try:
        return uri if path is None else inline_image(path)
    except (OSError, ValueError) as error:
        raise TableError(str(error)) from error
