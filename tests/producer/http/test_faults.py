"""Errors of the door: all of them are documented, and none tells callers what only operators can do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import ErrorCode, Outage, RejectJob
from producer.http.faults import fault_of
from storage.limits import too_large

ROOT = Path(__file__).parents[3]
CODE_ARGUMENT = {"HttpFault": 1, "later": 1, "wrong": 2}
"""Which argument of each is the code; of `wrong` it may be left out."""


def raised_codes() -> Iterator[str]:
    """The codes that stand in the door's own source."""
    for path in (ROOT / "producer" / "http").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CODE_ARGUMENT:
                for argument in node.args[CODE_ARGUMENT[node.func.id] :][:1]:
                    if isinstance(argument, ast.Constant):
                        yield str(argument.value)


def test_the_page_lists_every_code_of_the_door_and_no_other() -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    rows = re.findall(r"^\| (4\d\d|5\d\d) \| (.*?) \|", page, re.MULTILINE)
    listed = {code for _, codes in rows for code in re.findall("`([a-z_]+)`", codes)}
    by_the_router = {"not_found", "method_not_allowed", "invalid_value"}

    assert listed - set(ErrorCode) == ({*raised_codes()} | by_the_router) - set(ErrorCode)


def test_callers_are_told_what_is_wrong_and_not_what_operators_can_do() -> None:
    refused = "https://a.example/cat.png: HTTP 403 Forbidden"
    for error, said in [
        (RejectJob(ErrorCode.INPUT_FORBIDDEN, refused, "its host may want to know who asks: set DG_CONTACT"), refused),
        (too_large("cat.png", 9, 5), "cat.png: 9 bytes, but DG_MAX_INPUT_BYTES is 5"),
        (Outage(ErrorCode.OUTPUT_UNAVAILABLE, "no space left", "make room"), "no space left"),
    ]:
        assert str(fault_of(error)) == said
        assert error.message == f"{said}; {error.remedy}"
