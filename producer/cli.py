"""The command `producer`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.errors import Error
from jobs.version import program_version
from producer.commands.callbacks import callbacks
from producer.commands.change import cancel, retry
from producer.commands.dead_letters import dead_letters
from producer.commands.download import download
from producer.commands.edit import edit
from producer.commands.look import batches, status, watch
from producer.commands.results import gallery, results
from producer.commands.run import run
from producer.commands.serve import serve
from producer.commands.submit import submit
from producer.exit_codes import exit_code_of
from producer.terminal import put, say

app = typer.Typer(
    name="producer",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # The known command lines write --num_inference_steps where we write --num-inference-steps.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "max_content_width": 110,
    },
)
COMMANDS = (
    *(
        submit,
        run,
        edit,
        serve,
        status,
        watch,
        batches,
        results,
        download,
        gallery,
        cancel,
        retry,
        callbacks,
        dead_letters,
    ),
)
for command in COMMANDS:
    app.command()(command)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        put(f"producer {program_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Put FLUX.1 Kontext edits into the queue and bring their results back.

    \b
    Example: producer run examples/data.csv --output-dir out
    """


def main() -> None:
    """Entry point: every error that a person can mend ends in one line and its exit code."""
    try:
        app(prog_name="producer")
    except Error as error:
        say(f"error: {error}")
        sys.exit(exit_code_of(error))
