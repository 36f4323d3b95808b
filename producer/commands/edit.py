"""`producer edit`: one picture."""

from __future__ import annotations

import base64
import mimetypes
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.ledger import JobRecord
from jobs.schema import EditJob, EditResult, JobState, parse_job
from producer.client import Client
from producer.commands import options
from producer.embedded.local_service import LocalService, local_service
from producer.embedded.private_redis import private_folder
from producer.errors import TableError
from producer.exit_codes import ExitCode
from producer.files import local_path
from producer.table.cells import CellProblem, check_output_suffix, parse_images
from producer.table.plan import RowDefaults
from producer.terminal import people_console, put, say

POLL_SECONDS = 0.1
LARGEST_SENT_BYTES = 8 * 2**20
"""Limit for an image inside a job, which occupies Redis until the job expires."""


@options.takes_params
def edit(
    image: Annotated[str, options.argument("IMAGE", help="Path or URI; several separated by commas.")],
    prompt: Annotated[str, options.argument("PROMPT", help="What to change in the picture.")],
    output: Annotated[
        str | None,
        options.option("-o", "--output", help="File; with --remote a URI. [default: IMAGE-edited.png]"),
    ] = None,
    remote: Annotated[
        bool,
        options.option("--remote", help="Let the workers on DG_BROKER_URL do it. [default: off]"),
    ] = False,
    params: options.Params = None,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """Edit one picture and print where it is.

    By default this machine does it, as in `producer run`. With --remote the running workers do it; a local picture
    travels inside the job, and the output stays where they put it.

    \b
    Example: producer edit cat.png "make it snow" -o snow.png
    """
    defaults = RowDefaults.read(
        **params or {},
    )
    images = _images(image)
    _check_output(output)
    if remote:
        target = output if output is None or "://" in output else _refuse_local(output)
        result = _edit_remotely(_job([_inline(uri) for uri in images], prompt, target, defaults), broker_url)
    else:
        suffix = defaults.given.get("output_format", "png")
        path = Path(output or f"{_stem(image)}-edited.{suffix}").expanduser().resolve()
        result = _edit_here(_job(images, prompt, path.as_uri(), defaults))
    _tell(result, as_json)
    raise typer.Exit(ExitCode.OK if result.state is JobState.SUCCEEDED else ExitCode.INCOMPLETE)


def _edit_here(job: EditJob) -> EditResult:
    with private_folder() as folder, local_service(folder.as_uri(), folder / "worker.log") as service:
        service.client.submit(job)
        with people_console().status("starting a worker") as status:
            while not (record := service.client.get(job.id)).state.is_terminal:
                service.check()
                status.update(_describe(record, service))
                time.sleep(POLL_SECONDS)
        return record.result


def _edit_remotely(job: EditJob, broker_url: str | None) -> EditResult:
    client = Client(settings=options.settings_with(broker_url))
    job_id = client.submit(job)
    say(f"job {job_id} is queued; waiting (Ctrl-C leaves it there)")
    try:
        return client.wait(job_id)
    except KeyboardInterrupt:
        say(f"the job goes on; see it with: producer status {job_id}")
        raise


def _job(images: list[str], prompt: str, output: str | None, defaults: RowDefaults) -> EditJob:
    params = defaults.params().model_dump()
    return parse_job({"image": images, "prompt": prompt, "output": output, "params": params})


def _images(image: str) -> list[str]:
    try:
        return parse_images(image, Path.cwd())
    except CellProblem as problem:
        raise TableError(f"{problem.value}: {problem.remedy}") from problem


def _check_output(output: str | None) -> None:
    try:
        check_output_suffix(output or "")
    except CellProblem as problem:
        raise TableError(f"-o {problem.value}: {problem.remedy}") from problem


def _inline(uri: str) -> str:
    path = local_path(uri)
    if path is None:
        return uri
    if path.stat().st_size > LARGEST_SENT_BYTES:
        raise TableError(f"{path}: larger than {LARGEST_SENT_BYTES:,} bytes; give a URI that the workers can read")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _refuse_local(output: str) -> str:
    raise TableError(f"-o {output}: with --remote the workers write it; give an s3:// or file:// URI, or leave it out")


def _stem(image: str) -> str:
    return "picture" if image.startswith("data:") else Path(image.split(",")[0]).stem or "picture"


def _describe(record: JobRecord, service: LocalService) -> str:
    progress = record.progress
    if progress is not None:
        return f"{progress.stage} {progress.step} of {progress.total_steps}" if progress.total_steps else progress.stage
    return next((str(worker.state) for worker in service.client.registry.workers()), "starting a worker")


def _tell(result: EditResult, as_json: bool) -> None:
    if result.error is not None:
        say(f"{result.error.code}: {result.error.message}")
    if as_json:
        put(result.model_dump_json())
    elif result.state is JobState.SUCCEEDED and result.output is not None:
        say(f"seed {result.seed}")
        put(str(local_path(result.output) or result.output))
