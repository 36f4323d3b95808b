"""Text from outside made fit for logs, errors and terminals: on one line, of bounded length, without secrets in URLs.

Whoever sends a job, serves an input or receives a callback chooses ids, field names, reasons and URLs. Shown as they
are they could forge a line of the log, move a terminal's cursor, fill a disk, or carry a password to a receiver.
"""

from __future__ import annotations

import re

LONGEST_LINE = 2000
"""Characters of a line of the log, or of an error."""

NOT_SHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: line ends, escape sequences
    "\u2028\u2029"  # ends of lines and paragraphs
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\ud800-\udfff]"  # halves of characters, which no output can write
)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s\"'<>]+")
LOGIN = re.compile(r"[^\s/\"'<>:@]{0,64}:[^\s/\"'<>@]{1,256}@")
"""User and password of something that is not quite a URL."""

SECRET = re.compile(r"whsec_[A-Za-z0-9+/=_-]+")
LONGEST_READ = 5 * LONGEST_LINE
"""Characters of a text in which secrets are looked for; what comes after is not shown anyway."""

FILE_NAMES = frozenset({"file", "s3"})
"""Schemes whose `?` and `#` belong to a name."""


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Write text on one line of at most `longest` characters; control characters are written as escapes."""
    return cut(escape_controls(cut(text, longest)), longest)


def cut(text: str, longest: int = LONGEST_LINE) -> str:
    """The text, or its beginning and dots where it has more than `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def escape_controls(text: str, kept: str = "") -> str:
    """Write control characters as escapes, such as `\\x1b`; those in `kept` stay."""
    return NOT_SHOWN.sub(lambda found: found[0] if found[0] in kept else _escape(found[0]), text)


def hide_secrets(text: str) -> str:
    """Take the secrets out of every URL in a text, and every `whsec_...`; of a very long text the rest is cut off."""
    if len(text) > LONGEST_READ:
        text = re.sub(r"\S*$", "...", text[:LONGEST_READ])  # a word that was cut may be half of a secret
    without_urls = URL.sub(lambda found: hide_in_url(found[0]), text)
    return SECRET.sub("whsec_***", LOGIN.sub("***@", without_urls))


def hide_in_url(url: str) -> str:
    """Take user, password, query and fragment out of a URL: presigned links carry their signature there.

    Of several URLs joined by `;`, as Sentinels are, each is treated so.
    """
    scheme, separator, rest = url.partition("://")
    if scheme.lower() == "sentinel":
        return ";".join(_hide(*part.partition("://")) for part in url.split(";"))
    return _hide(scheme, separator, rest)


def _hide(scheme: str, separator: str, rest: str) -> str:
    if scheme.lower() in FILE_NAMES:
        return scheme + separator + rest
    address, mark, tail = _split(rest, "?#")
    host, slash, path = _split(address, "/\\")
    is_plain = re.fullmatch(r"[^:@]*(:\d*)?|\[[^]@]*\](:\d*)?", host.rpartition("@")[2])
    shown = host.rpartition("@")[2] + slash + path if is_plain else address.rpartition("@")[2]  # a / in the password
    hidden = mark + tail if tail.startswith("...") else "?..." if tail else ""
    return scheme + separator + shown + hidden


def _split(text: str, marks: str) -> tuple[str, str, str]:
    found = re.search(f"[{re.escape(marks)}]", text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
