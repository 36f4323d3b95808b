"""Output: data on stdout, one JSON object a line with --json, messages for people on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

from jobs.shown import NOT_SHOWN, escape_controls

NEW_LINE = "\n"


def say(words: str) -> None:
    """Write a message for people."""
    sys.stderr.write(f"{escape_controls(words, kept=NEW_LINE)}\n")
    sys.stderr.flush()


def put(line: str) -> None:
    """Write one line of data."""
    sys.stdout.write(f"{escape_controls(line)}\n")
    sys.stdout.flush()


def put_json(**fields: Any) -> None:
    """Write one line of data as a JSON object."""
    put_json_text(json.dumps(fields, ensure_ascii=False, default=str))


def put_json_text(text: str) -> None:
    """Write one line of JSON; what a terminal would obey is written as JSON's own escapes."""
    put(NOT_SHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def people_console() -> Console:
    """The terminal that people look at."""
    return Console(stderr=True)


def plural(count: int, noun: str) -> str:
    """Count things in words: "1 row", "12,000 rows"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """A time span in two units at most: "42 s", "3 min 20 s", "5 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
