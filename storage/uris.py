"""URIs as people may see them."""

from __future__ import annotations

from urllib.parse import urlsplit

SHOWN_CHARACTERS = 200
SHOWN_DATA_CHARACTERS = 32


def scheme_of(uri: str) -> str:
    return uri.partition(":")[0].lower()


def show_uri(uri: str) -> str:
    """Write a URI for messages and logs: one line, bounded length, no secrets.

    Of web addresses user, password, query and fragment are cut, since presigned links carry their signature there.
    """
    scheme = scheme_of(uri)
    if scheme == "data":
        return _printable(f"{uri[:SHOWN_DATA_CHARACTERS]}... ({len(uri)} characters)")
    if scheme in ("http", "https"):
        uri = _without_secrets(uri)
    shown = uri if len(uri) <= SHOWN_CHARACTERS else f"{uri[:SHOWN_CHARACTERS]}..."
    return _printable(shown)


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an unclosed bracket
        return f"{scheme_of(url)}://..."
    cut = "?..." if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{cut}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
