"""URIs as people may see them."""

from __future__ import annotations

from jobs.shown import hide_in_url, one_line

SHOWN_CHARACTERS = 200
SHOWN_DATA_CHARACTERS = 32


def scheme_of(uri: str) -> str:
    return uri.partition(":")[0].lower()


def show_uri(uri: str) -> str:
    """Write a URI for messages and logs: one line, bounded length, no secrets (`jobs/shown.py`)."""
    if scheme_of(uri) == "data":
        return one_line(f"{uri[:SHOWN_DATA_CHARACTERS]}... ({len(uri)} characters)")
    return one_line(hide_in_url(uri), SHOWN_CHARACTERS)
