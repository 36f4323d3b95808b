"""The help of every command and its page in the documentation say the same as the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from producer.cli import app
from producer.exit_codes import ExitCode
from producer.result_files import RESULT_COLUMNS
from producer.table.columns import IMAGE_COLUMNS, JOB_COLUMNS, PROMPT_COLUMNS
from tests.producer.conftest import Command

PAGE = (Path(__file__).parent.parent.parent / "docs" / "producer.md").read_text()
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands


def section(name: str) -> str:
    """The part of the page about one command."""
    return PAGE.partition(f"### `producer {name}`\n")[2].partition("\n### ")[0].partition("\n## ")[0]


def options_of(name: str) -> set[str]:
    return {option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("-")} - {
        "--help",
        "-h",
    }


def test_the_page_has_a_section_for_every_command_and_no_other() -> None:
    assert re.findall(r"### `producer ([\w-]+)`", PAGE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_names_the_options_a_command_has_and_no_others(name: str) -> None:
    rows = [line.split("|")[1] for line in section(name).splitlines() if line.startswith("| `-")]

    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(rows))) == options_of(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_a_pasteable_example(name: str, producer: Command) -> None:
    for flag in ("-h", "--help"):
        ended = producer(name, flag)

        assert ended.returncode == 0
        assert re.search(rf"^  Example: producer {name} ", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for_and_what_holds_without_it(name: str) -> None:
    for parameter in COMMANDS[name].params:
        if parameter.name != "help":
            assert parameter.help, parameter.name
            assert parameter.required or "[default: " in parameter.help, parameter.name
        if "--broker-url" in parameter.opts:
            assert "[env: DG_BROKER_URL]" in parameter.help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_on_the_page_are_command_lines_that_parse(name: str) -> None:
    (example,) = re.findall(rf"^producer {name} (.*)$", section(name), re.MULTILINE)

    COMMANDS[name].make_context(name, shlex.split(example)).close()


def test_the_page_has_the_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, re.MULTILINE)

    assert rows == [(str(code.value), code.name) for code in ExitCode]


def test_the_page_names_every_column_that_is_read_or_written() -> None:
    for column in (*IMAGE_COLUMNS, *PROMPT_COLUMNS, *JOB_COLUMNS, *RESULT_COLUMNS):
        assert f"`{column}`" in PAGE
