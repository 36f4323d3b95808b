"""`producer submit`: a table into the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from jobs.errors import BrokerUnavailable
from jobs.ledger import PIPELINE_LENGTH, Submission
from jobs.ledger.scripts import chunks
from jobs.schema import JobState
from producer.client import FULL, Client
from producer.commands import options
from producer.commands.intake import TableCheck, check_table, next_batch, show_understanding, tell_placed_images
from producer.csv_style import CsvStyle
from producer.errors import QueueFull, TableError
from producer.exit_codes import ExitCode
from producer.failures import group_failures, tell_failures
from producer.local_inputs import warn_of_closed
from producer.progress import watch
from producer.report import table_report
from producer.result_files import Layout, write_results
from producer.table.columns import ColumnNames
from producer.table.placing import ImagePlacer
from producer.table.plan import Plan, RowDefaults
from producer.table.selection import ALL_ROWS, RowSelection
from producer.table.table import Table, open_table
from producer.terminal import people_console, plural, put, put_json, say
from producer.upload import Uploader


@options.takes_params
def submit(
    source: options.TableArgument,
    batch: Annotated[
        str, options.option("--batch", help="Name. [default: the table's, and a hash of its content]")
    ] = "",
    output: Annotated[
        str | None,
        options.option("--output", help="s3://bucket/prefix or folder. [env: DG_OUTPUT_URI] [default: ./output]"),
    ] = None,
    params: options.Params = None,
    image_column: options.ImageColumn = None,
    prompt_column: options.PromptColumn = None,
    output_column: options.OutputColumn = None,
    images_to: Annotated[
        str | None,
        options.option(
            "--images-to",
            help="Bucket or folder for images that stand in the table. [default: --upload, else inputs at the output]",
        ),
    ] = None,
    callback_url: Annotated[
        str | None,
        options.option("--callback-url", help="Where to report each job's end. [default: nowhere]"),
    ] = None,
    callback_events: Annotated[
        str | None,
        options.option(
            "--callback-events",
            help="What to report: started, progress, succeeded, failed, cancelled. [default: the three ends]",
        ),
    ] = None,
    priority: Annotated[
        str | None,
        options.option("--priority", help="high, normal or low. [default: normal]"),
    ] = None,
    tenant: Annotated[
        str | None,
        options.option("--tenant", help="Whom the jobs are for; tenants take turns. [default: nobody in particular]"),
    ] = None,
    store_profile: Annotated[
        str | None,
        options.option("--store-profile", help="The workers' access to buckets, by its name. [default: their own]"),
    ] = None,
    rows: options.Rows = None,
    force: Annotated[
        bool,
        options.option("--force", help="Do what was queued before again, as batch NAME-2, NAME-3, ... [default: off]"),
    ] = False,
    strict: Annotated[
        bool, options.option("--strict", help="Queue nothing when any row is wrong. [default: off]")
    ] = False,
    dry_run: Annotated[
        bool, options.option("--dry-run", help="Show what was understood, queue nothing. [default: off]")
    ] = False,
    upload: Annotated[
        str | None,
        options.option("--upload", help="s3://bucket/prefix for local inputs and LoRAs. [default: nowhere]"),
    ] = None,
    wait_for_room: Annotated[
        bool,
        options.option("--wait-for-room", help="When DG_MAX_QUEUED jobs wait, wait until fewer do. [default: off]"),
    ] = False,
    wait: Annotated[
        bool, options.option("--wait", help="Show progress until the batch has ended. [default: off]")
    ] = False,
    results: Annotated[
        Path | None,
        options.option("--results", help="With --wait: write results.csv here. [default: none]"),
    ] = None,
    bom: options.Bom = False,
    keep_formulas: options.KeepFormulas = False,
    delimiter: options.Delimiter = None,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """Queue a table of edits and print the batch's name.

    Options are for rows whose own cell is blank. The same table again queues nothing twice, and goes on where an
    interrupted submit stopped.

    \b
    Example: producer submit data.csv --output s3://pictures/spring --wait --results results.csv
    """
    if results is not None and not wait:
        raise typer.BadParameter("--results needs --wait; or write them later with: producer results BATCH")
    client = Client(settings=options.settings_with(broker_url, output))
    defaults = RowDefaults.read(
        **params or {},
        callback_url=callback_url,
        callback_events=callback_events,
        priority=priority,
        tenant=tenant,
        store_profile=store_profile,
    )
    with open_table(source, ColumnNames.chosen(image_column, prompt_column, output_column)) as table:
        if callback_events is not None and callback_url is None and "callback_url" not in table.meaning.of_role:
            raise typer.BadParameter("--callback-events needs --callback-url, or a column callback_url")
        plan = _plan(client, table, defaults, batch, options.folder_uri(images_to or upload), rows, force)
        check = check_table(table, plan, as_json)
        if rows is not None:
            say(f"{plural(check.rows, 'row')} selected")
        if dry_run:
            show_understanding(table, plan, check, as_json)
        if check.good == 0:
            raise TableError(f"{source}: no row that could be queued")
        if strict and check.refused:
            say(f"{plural(check.refused, 'row')} of {check.rows:,} refused; nothing was queued")
            raise typer.Exit(ExitCode.BAD_INPUT)
        if dry_run:
            _tell_plan(client, table, plan, check, as_json)
            raise typer.Exit(ExitCode.INCOMPLETE if check.refused else ExitCode.OK)
        tell_placed_images(check, plan)
        uploader = None if upload is None else Uploader(upload)
        if uploader is None:
            warn_of_closed(check.local, client.registry.workers())
        tally = _queue(client, table, plan, check, uploader, wait_for_room, as_json)
        is_complete = not check.refused and not tally["conflict"]
        if wait:
            is_complete &= _wait(client, table, plan, results, CsvStyle.chosen(bom, keep_formulas, delimiter), as_json)
    raise typer.Exit(ExitCode.OK if is_complete else ExitCode.INCOMPLETE)


def _plan(
    client: Client, table: Table, defaults: RowDefaults, batch: str, images_root: str, rows: str | None, force: bool
) -> Plan:
    """The batch and what belongs into it; with `force` a batch that the ledger does not have."""
    selection = ALL_ROWS if rows is None else RowSelection.parse(rows, "--rows")
    plan = table.plan(client.settings.output_uri, defaults, batch, images_root)
    if force and (free := next_batch(client, plan.batch)) != plan.batch:
        plan = table.plan(client.settings.output_uri, defaults, free, images_root)
        say(f"again, as batch {plan.batch}; to go on with it: --batch {plan.batch}, without --force")
    return replace(plan, selection=selection)


def _tell_plan(client: Client, table: Table, plan: Plan, check: TableCheck, as_json: bool) -> None:
    """Say what a submit would do, and what is there already when Redis can be asked."""
    say(f"{plural(check.good, 'row')} of {check.rows:,} would be queued as batch {plan.batch}")
    try:
        states = _states(client, table, plan)
    except BrokerUnavailable as error:
        states = None
        say(f"what of it is done already is not known: {error}")
    if states:
        there = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
        say(f"of these {plural(states.total(), 'row')} there already: {there}")
        if states[JobState.FAILED]:
            say(f"failed ones are taken up with: producer retry {plan.batch}")
    if as_json:
        there_already = None if states is None else {state: states[state] for state in JobState}
        planned = {"batch": plan.batch, "rows": check.rows, "refused": check.refused}
        to_queue = None if states is None else check.good - states.total()
        put_json(event="planned", **planned, to_queue=to_queue, already_there=there_already)


def _states(client: Client, table: Table, plan: Plan) -> Counter[JobState]:
    """Number of the table's jobs that the ledger has, by state."""
    states: Counter[JobState] = Counter()
    for page in chunks((row for row in table.rows(plan) if row.job is not None), PIPELINE_LENGTH):
        states.update(record.state for record in client.ledger.get_many([row.job_id for row in page]) if record)
    return states


def _queue(
    client: Client,
    table: Table,
    plan: Plan,
    check: TableCheck,
    uploader: Uploader | None,
    wait_for_room: bool,
    as_json: bool,
) -> Counter[str]:
    """Submit the good rows, then say what was queued, what was there before, and what was refused."""
    tally: Counter[str] = Counter()
    failed_before = 0
    refused: Submission | None = None
    try:
        for submission in _submit_rows(client, table, plan, check, uploader, wait_for_room):
            tally[submission.verdict] += 1
            failed_before += submission.verdict == "exists" and submission.detail == JobState.FAILED
            if submission.verdict == "conflict":
                _tell_conflict(submission.job_id, tally["conflict"], as_json)
            if submission.verdict in FULL:
                refused = submission
                break
    except KeyboardInterrupt:
        say(f"stopped after {plural(tally.total(), 'row')}; submit the same table again to go on")
        raise
    if uploader is not None:
        say(f"{plural(uploader.sent, 'input')} uploaded, {uploader.there_before:,} there before")
    _tell_tally(plan, check, tally, as_json)
    if failed_before:
        say(f"{failed_before:,} of those already there have failed; take them up with: producer retry {plan.batch}")
    if refused is not None:
        said = f"{client.describe_full(refused)} after {plural(tally['created'], 'row')}"
        raise QueueFull(f"{said}; go on later, or with --wait-for-room")
    return tally


def _submit_rows(
    client: Client, table: Table, plan: Plan, check: TableCheck, uploader: Uploader | None, wait_for_room: bool
) -> Iterator[Submission]:
    console = people_console()
    with (
        Progress(console=console, disable=not console.is_terminal, transient=True) as progress,
        ImagePlacer.open(plan.images_root, check.placed_images) as placer,
    ):
        rows = placer.when_placed(table.rows(plan, put=placer.put))
        jobs = (row.job for row in rows if row.job is not None)
        ready = jobs if uploader is None else uploader.jobs(jobs)
        task = progress.add_task("queueing", total=check.good)
        for count, submission in enumerate(client.submit_many(ready, wait_for_room), start=1):
            if count % PIPELINE_LENGTH == 0:  # an update per row would take longer than the row
                progress.update(task, completed=count)
            yield submission


def _tell_conflict(job_id: str, count: int, as_json: bool) -> None:
    if as_json:
        put_json(event="conflict", job_id=job_id)
    elif count == 1:
        say(f"job {job_id} exists and asks for something else; use another --batch, or another id in the table")


def _tell_tally(plan: Plan, check: TableCheck, tally: Counter[str], as_json: bool) -> None:
    words = [f"{tally['created']:,} queued", f"{tally['exists']:,} already there", f"{check.refused:,} refused"]
    if tally["conflict"]:
        words.append(f"{tally['conflict']:,} in conflict with other jobs")
    say(f"batch {plan.batch}: {', '.join(words)}")
    if as_json:
        counts = {"queued": tally["created"], "already_there": tally["exists"], "conflicts": tally["conflict"]}
        put_json(event="submitted", batch=plan.batch, rows=check.rows, refused=check.refused, **counts)
    else:
        put(plan.batch)


def _wait(client: Client, table: Table, plan: Plan, results: Path | None, style: CsvStyle, as_json: bool) -> bool:
    """Follow the batch to its end, write the results, and tell whether every job has succeeded."""
    try:
        snapshot = watch(client, plan.batch, as_json)
    except KeyboardInterrupt:
        say(f"the jobs stay in the queue; watch them with: producer watch {plan.batch}")
        raise
    if results is not None:
        write_results(
            results,
            Layout(table.columns, results.resolve().parent, style=style),
            table_report(table, plan, client.ledger.get_many),
        )
        say(f"results: {results}")
    tell_failures(group_failures(client.ledger, plan.batch), as_json, plan.batch)
    return not snapshot.failed
