"""What a host means by its refusal, and what it says in the body."""

from __future__ import annotations

import html
import re
from contextlib import suppress
from http import HTTPStatus

import httpx2

PASSING = {408, 421, 423, 425, 429}
"""With all from 500: the same request may do later."""

MOST_BYTES_READ = 4096
MOST_CHARACTERS = 160
TEXT = ("text/", "application/json", "application/xml", "application/problem+json")

STORE_ERROR = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)")
"""Of an S3 store; what follows it repeats the request, with parts of its signature."""

NO_WORDS = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def passes(status: int) -> bool:
    """True for the status of an answer after which the same request may do later."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in PASSING


def words_of(response: httpx2.Response) -> str:
    """The words of an answer that has not been read yet, in one short line; nothing when it is no plain text."""
    kind = response.headers.get("content-type", "")
    if not kind.startswith(TEXT) or response.headers.get("content-encoding"):
        return ""
    text = _beginning(response).decode("utf-8", "replace")
    error = STORE_ERROR.search(text)
    words = f"{error[1]}: {error[2]}" if error else html.unescape(NO_WORDS.sub(" ", text))
    line = " ".join("".join(character if character.isprintable() else " " for character in words).split())
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."


def _beginning(response: httpx2.Response) -> bytes:
    data = b""
    with suppress(httpx2.HTTPError):  # the refusal itself has arrived
        for chunk in response.iter_raw(MOST_BYTES_READ):
            data += chunk
            if len(data) >= MOST_BYTES_READ:
                break
    return data[:MOST_BYTES_READ]
