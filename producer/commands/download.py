"""`producer download`: the outputs of a batch or a job, in a folder or as links."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from jobs.ledger import PIPELINE_LENGTH, JobRecord
from jobs.schema import JobState
from producer.client import Client
from producer.commands import options
from producer.commands.look import counts_of
from producer.download import Downloader, Fetched, link_seconds
from producer.exit_codes import ExitCode
from producer.terminal import people_console, plural, put, put_json, say

MOST_PROBLEMS_SAID = 10


@dataclass
class Outputs:
    """What there is of a batch or a job: the id of a job for each URI, and how many jobs have not ended yet."""

    job_ids: dict[str, str]
    open_count: int


def download(
    name: Annotated[str, options.argument("BATCH|JOB", help="Name of a batch, or id of a job.")],
    folder: Annotated[
        Path | None, options.argument("DIR", help="Folder. [default: one with the name of batch or job]")
    ] = None,
    links: Annotated[
        str | None,
        options.option("--links", help="Print addresses that anybody may read for 24h, 7d, ... [default: off]"),
    ] = None,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """Fetch the outputs of a batch, or of one job, into a folder; the same command again fetches what is missing.

    \b
    Example: producer download spring-2026 out
    Example: producer download spring-2026 --links 24h
    """
    seconds = None if links is None else link_seconds(links)
    if seconds is not None and folder is not None:
        raise typer.BadParameter("--links prints addresses and fetches nothing: leave DIR out")
    client = Client(settings=options.settings_with(broker_url))
    outputs = _outputs(client, name)
    if seconds is not None:
        problems = _put_links(outputs, seconds, as_json)
    else:
        problems = _fetch(outputs, folder or Path(name.replace("/", "_")), as_json)
    if outputs.open_count:
        say(f"{plural(outputs.open_count, 'job')} not done yet: the same command again fetches what they make")
    raise typer.Exit(ExitCode.INCOMPLETE if problems or outputs.open_count else ExitCode.OK)


def _outputs(client: Client, name: str) -> Outputs:
    found = Outputs({}, 0)
    for record in _records(client, name):
        if record.state is JobState.SUCCEEDED and record.result.output:
            found.job_ids[record.result.output] = record.job.id
        found.open_count += not record.state.is_terminal
    return found


def _records(client: Client, name: str) -> Iterator[JobRecord]:
    (single,) = client.ledger.get_many([name])
    if single is not None:
        yield single
        return
    counts_of(client, name)
    job_ids = client.ledger.batch_job_ids(name)
    while page := list(islice(job_ids, PIPELINE_LENGTH)):
        yield from (record for record in client.ledger.get_many(page) if record is not None)


def _fetch(outputs: Outputs, folder: Path, as_json: bool) -> int:
    """Fetch, tell, and return how many outputs are not here."""
    ended: list[Fetched] = []
    problems = 0
    with Progress(console=people_console(), transient=True, disable=as_json) as bar:
        task = bar.add_task("downloading", total=len(outputs.job_ids))
        for file in Downloader().fetch_all(outputs.job_ids, folder):
            bar.advance(task)
            ended.append(file)
            problems += bool(file.problem)
            if as_json:
                _put_file(file, outputs.job_ids[file.uri])
            elif file.problem and problems <= MOST_PROBLEMS_SAID:
                bar.console.print(f"{file.uri}: {file.problem}", markup=False, highlight=False, soft_wrap=True)
    there = sum(file.was_there for file in ended)
    fetched = len(ended) - there - problems
    if as_json:
        put_json(event="downloaded", fetched=fetched, there_before=there, missing=problems, open=outputs.open_count)
        return problems
    missing = f", {problems:,} not to be had" if problems else ""
    say(f"{fetched:,} fetched, {there:,} there before{missing}")
    put(str(folder))
    return problems


def _put_file(file: Fetched, job_id: str) -> None:
    path = None if file.problem else str(file.path)
    put_json(event="file", job_id=job_id, output=file.uri, path=path, problem=file.problem or None)


def _put_links(outputs: Outputs, seconds: int, as_json: bool) -> int:
    """Print a link for each output, and return how many have none."""
    downloader, problems = Downloader(), 0
    for uri, job_id in outputs.job_ids.items():
        link = downloader.link(uri, seconds)
        problems += link is None
        if as_json:
            put_json(event="link", job_id=job_id, output=uri, link=link)
        elif link is not None:
            put(link)
    if problems:
        say(f"{plural(problems, 'output')} not in a bucket, and without a link")
    return problems
