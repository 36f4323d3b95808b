"""`producer results` and `gallery`: how every row ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from producer.client import Client
from producer.commands import options
from producer.commands.look import counts_of
from producer.csv_style import CsvStyle
from producer.gallery import write_gallery
from producer.report import ReportRow, batch_columns, batch_report, job_report, table_report
from producer.result_files import STREAMS, Layout, write_results
from producer.table.columns import ColumnNames
from producer.table.plan import RowDefaults
from producer.table.table import open_table
from producer.terminal import put

NAME = options.argument("BATCH|JOB", help="Name of a batch, or id of a job.")
TableOption = Annotated[
    str | None,
    options.option("--table", help="The table submitted: all its rows, in its order. [default: the ledger's jobs]"),
]


class Format(StrEnum):
    """Kind of a results file."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def results(
    name: Annotated[str, NAME],
    output: Annotated[Path | None, options.option("-o", "--output", help="File. [default: stdout]")] = None,
    chosen: Annotated[
        Format | None, options.option("--format", help="csv, jsonl or parquet. [default: by the file's name, else csv]")
    ] = None,
    table: TableOption = None,
    image_column: options.ImageColumn = None,
    prompt_column: options.PromptColumn = None,
    output_column: options.OutputColumn = None,
    bom: options.Bom = False,
    keep_formulas: options.KeepFormulas = False,
    delimiter: options.Delimiter = None,
    broker_url: options.BrokerUrl = None,
    as_json: Annotated[bool, options.option("--json", help="The same as --format jsonl. [default: off]")] = False,
) -> None:
    """Write how every row of a batch stands, or one job.

    \b
    Example: producer results spring-2026 --table data.csv -o results.csv
    """
    suffix = output.suffix.lstrip(".").lower() if output is not None else ""
    by_name = Format(suffix) if suffix in set(Format) else Format.CSV
    chosen = chosen or (Format.JSONL if as_json else by_name)
    if output is None and chosen is Format.PARQUET:
        raise typer.BadParameter("--format parquet needs a file: add -o results.parquet")
    style = CsvStyle.chosen(bom, keep_formulas, delimiter)
    client = Client(settings=options.settings_with(broker_url))
    with _report(client, name, table, ColumnNames.chosen(image_column, prompt_column, output_column)) as (
        columns,
        rows,
    ):
        if output is not None:
            write_results(output, Layout(columns, output.resolve().parent, style=style), rows, chosen.value)
            put(str(output))
        else:
            STREAMS[chosen](sys.stdout, Layout(columns, Path.cwd(), style=style), rows)


def gallery(
    name: Annotated[str, NAME],
    output: Annotated[
        str, options.option("-o", "--output", help="HTML file, or s3://bucket/x.html. [default: gallery.html]")
    ] = "gallery.html",
    sheet: Annotated[
        Path | None, options.option("--sheet", help="Write a contact sheet, a PNG, too. [default: none]")
    ] = None,
    fetch: Annotated[
        bool, options.option("--fetch", help="Show inputs at http(s):// too, read once now. [default: off]")
    ] = False,
    table: TableOption = None,
    image_column: options.ImageColumn = None,
    prompt_column: options.PromptColumn = None,
    output_column: options.OutputColumn = None,
    broker_url: options.BrokerUrl = None,
) -> None:
    """Write a page that shows every edit of a batch, or one job: input beside output.

    \b
    Example: producer gallery spring-2026 -o gallery.html
    """
    client = Client(settings=options.settings_with(broker_url))
    with _report(client, name, table, ColumnNames.chosen(image_column, prompt_column, output_column)) as (_, rows):
        write_gallery(output, name, rows, batch=name, sheet=sheet, fetch=fetch)
    put(output)
    put(str(sheet)) if sheet is not None else None


@contextmanager
def _report(
    client: Client, name: str, source: str | None, accepted: ColumnNames
) -> Iterator[tuple[tuple[str, ...], Iterator[ReportRow]]]:
    record = client.ledger.get_many([name])[0]
    if record is not None:
        if source is not None:
            raise typer.BadParameter(f"--table goes with a batch, and {name} is one job")
        row = job_report(record)
        yield tuple(row.cells), iter([row])
        return
    counts_of(client, name)
    if source is None:
        yield batch_columns(name, client.ledger), batch_report(name, client.ledger)
        return
    with open_table(source, accepted) as table:
        plan = table.plan(client.settings.output_uri, RowDefaults(), name)
        yield table.columns, table_report(table, plan, client.ledger.get_many)
