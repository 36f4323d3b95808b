"""`producer results` and `gallery`: how every row ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from producer.client import Client
from producer.commands import options
from producer.gallery import write_gallery
from producer.report import (
    ReportRow,
    batch_columns,
    batch_report,
    name_beside,
    stream_results,
    table_report,
    write_results,
)
from producer.table.plan import RowDefaults
from producer.table.table import open_table
from producer.terminal import put, put_json

BatchArgument = Annotated[str, options.argument("BATCH", help="Name of a batch.")]
TableOption = Annotated[
    str | None,
    options.option("--table", help="The table submitted: all its rows, in its order. [default: the ledger's jobs]"),
]


def results(
    batch: BatchArgument,
    output: Annotated[Path | None, options.option("-o", "--output", help="CSV file. [default: stdout]")] = None,
    table: TableOption = None,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """Write how every row of a batch stands, as CSV.

    \b
    Example: producer results spring-2026 --table data.csv -o results.csv
    """
    client = Client(settings=options.settings_with(broker_url))
    with _report(client, batch, table) as (columns, rows):
        if as_json:
            name = name_beside(columns, "result")
            for row in rows:
                put_json(**{**row.cells, name: vars(row.ending)})
        elif output is not None:
            write_results(output, columns, rows)
            put(str(output))
        else:
            stream_results(sys.stdout, columns, rows, Path.cwd())


def gallery(
    batch: BatchArgument,
    output: Annotated[Path, options.option("-o", "--output", help="HTML file. [default: gallery.html]")] = Path(
        "gallery.html"
    ),
    table: TableOption = None,
    broker_url: options.BrokerUrl = None,
) -> None:
    """Write a page that shows every edit of a batch, input beside output.

    \b
    Example: producer gallery spring-2026 -o gallery.html
    """
    client = Client(settings=options.settings_with(broker_url))
    with _report(client, batch, table) as (_, rows):
        write_gallery(output, batch, rows)
    put(str(output))


@contextmanager
def _report(client: Client, batch: str, source: str | None) -> Iterator[tuple[tuple[str, ...], Iterator[ReportRow]]]:
    client.status(batch)
    if source is None:
        yield batch_columns(batch, client.ledger), batch_report(batch, client.ledger)
        return
    with open_table(source) as table:
        plan = table.plan(client.settings.output_uri, RowDefaults(), batch)
        yield table.columns, table_report(table, plan, client.ledger.get_many)
