"""`producer run`: a table from beginning to end on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import Error
from jobs.schema import JobState
from producer.commands import options
from producer.commands.intake import check_table
from producer.csv_style import CsvStyle
from producer.embedded.run import EmbeddedRun, RunOptions, nothing_known
from producer.errors import TableError
from producer.exit_codes import ExitCode
from producer.table.columns import ColumnNames
from producer.table.plan import RowDefaults
from producer.table.selection import ALL_ROWS, RowSelection
from producer.table.table import open_table
from producer.terminal import plural, put, put_json, say


@options.takes_params
def run(
    source: options.TableArgument,
    output_dir: Annotated[
        Path | None,
        options.option("--output-dir", help="Where images and results go. [default: output/NAME-OF-THE-TABLE]"),
    ] = None,
    params: options.Params = None,
    image_column: options.ImageColumn = None,
    prompt_column: options.PromptColumn = None,
    output_column: options.OutputColumn = None,
    rows: options.Rows = None,
    num_gpus: Annotated[
        int | None, options.option("--num-gpus", help="Workers, one for each GPU. [default: every visible GPU]")
    ] = None,
    strict: Annotated[
        bool, options.option("--strict", help="Do nothing when any row is wrong. [default: off]")
    ] = False,
    overwrite: Annotated[
        bool, options.option("--overwrite", help="Do rows again that are done. [default: off]")
    ] = False,
    check_inputs: Annotated[
        bool,
        options.option(
            "--check-inputs",
            help="Ask where inputs lie (http, s3) whether they are newer than their outputs. [default: off]",
        ),
    ] = False,
    bom: options.Bom = False,
    keep_formulas: options.KeepFormulas = False,
    delimiter: options.Delimiter = None,
    as_json: options.AsJson = False,
) -> None:
    """Do a whole table on this machine, with no server to set up.

    Starts a private Redis and a worker, waits, writes results.csv and gallery.html, and stops them. The model is that
    of DG_FLUX_KONTEXT_MODEL [default: the bundled tiny model]. The same command again goes on where it stopped.

    \b
    Example: producer run examples/data.csv --output-dir out
    """
    selection = ALL_ROWS if rows is None else RowSelection.parse(rows, "--rows")
    run_table(
        source,
        output_dir or default_folder(source),
        RowDefaults.read(
            **params or {},
        ),
        RunOptions(
            overwrite,
            selection,
            gpus=num_gpus,
            style=CsvStyle.chosen(bom, keep_formulas, delimiter),
            check_inputs=check_inputs,
        ),
        ColumnNames.chosen(image_column, prompt_column, output_column),
        strict=strict,
        as_json=as_json,
    )


def default_folder(source: str) -> Path:
    """Folder for the outputs of a table when none is named: in the current folder, called after the table."""
    return Path("output") / ("stdin" if source == "-" else Path(source).expanduser().resolve().stem)


def run_table(
    source: str,
    folder: Path,
    defaults: RowDefaults,
    run_options: RunOptions,
    accepted: ColumnNames | None = None,
    strict: bool = False,
    as_json: bool = False,
) -> None:
    """Do a table on this machine, tell how it went, and end the program with its exit code.

    Args:
        accepted: other names of the table's columns than usual.
        strict: do nothing when any row is wrong.
    Raises:
        typer.Exit: always, with one of `ExitCode`.
        TableError: no row can be done, the folder cannot be written, or another run is at work there.
    """
    with open_table(source, accepted) as table:
        embedded = EmbeddedRun(table, folder, defaults, run_options)
        check = check_table(table, embedded.plan, as_json, run_options.selection)
        if run_options.selection is not ALL_ROWS:
            say(f"{plural(check.rows, 'row')} selected")
        if check.good == 0:
            raise TableError(f"{source}: no row that could be done")
        if strict and check.refused:
            say(f"{plural(check.refused, 'row')} of {check.rows:,} refused; nothing was done")
            raise typer.Exit(ExitCode.BAD_INPUT)
        with embedded.alone():
            counts = _do(embedded, as_json)
    _tell(embedded, counts, check.refused, as_json)
    failed = counts[JobState.FAILED] + counts[JobState.CANCELLED] + check.refused
    raise typer.Exit(ExitCode.INCOMPLETE if failed else ExitCode.OK)


def _do(embedded: EmbeddedRun, as_json: bool) -> dict[JobState, int]:
    if embedded.done_before:
        say(f"{plural(embedded.done_before, 'row')} done before; --overwrite does them again")
    if embedded.changed_since:
        say(f"{plural(embedded.changed_since, 'row')} done again: an input is newer than the output made of it")
    if embedded.undated:
        say(f"{plural(embedded.undated, 'input')} whose server tells no date of its last change: taken as unchanged")
    if next(embedded.jobs(), None) is None:
        embedded.report(nothing_known)
        return dict.fromkeys(JobState, 0)
    say(f"starting a private Redis and a worker; its log: {embedded.files.worker_log}")
    try:
        return embedded.start(as_json)
    except (KeyboardInterrupt, Error):
        say("stopped; the same command again goes on from here")
        raise


def _tell(embedded: EmbeddedRun, counts: dict[JobState, int], refused: int, as_json: bool) -> None:
    done = counts[JobState.SUCCEEDED] + embedded.done_before
    failed = counts[JobState.FAILED] + counts[JobState.CANCELLED]
    say(f"{done:,} done, {failed:,} failed, {refused:,} refused; pictures in {embedded.files.folder}")
    if as_json:
        counted = {"succeeded": done, "failed": failed, "refused": refused}
        put_json(event="finished", **counted, results=embedded.files.results, gallery=embedded.files.gallery)
    else:
        put(str(embedded.files.results))
        put(str(embedded.files.gallery))
