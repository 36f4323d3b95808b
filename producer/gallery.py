"""A page that shows every edit: what went in, what came out, what was asked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from producer.files import local_path, replacing
from producer.report import ReportRow

LONGEST_INLINE_CHARACTERS = 200_000
"""A data: URI longer than this is named, not shown: the page would grow by every input."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; --bad: #c33; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
main { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
article { border: 1px solid var(--line); border-radius: 8px; padding: .8rem; content-visibility: auto;
  contain-intrinsic-size: 21rem 17rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; align-items: start; }
figure { margin: 0; }
img { width: 100%; height: auto; border-radius: 4px; background: #8882; display: block; }
figcaption, .facts { color: var(--quiet); font-size: .8rem; margin: .2rem 0 0; overflow-wrap: anywhere; }
.prompt { margin: .6rem 0 .2rem; overflow-wrap: anywhere; }
.bad { color: var(--bad); }
.empty { display: grid; place-items: center; aspect-ratio: 1; border: 1px dashed var(--line); border-radius: 4px;
  color: var(--quiet); }
"""


def write_gallery(path: Path, title: str, rows: Iterable[ReportRow]) -> None:
    """Write the page; pictures are linked relative to it, so the folder can be moved as a whole."""
    with replacing(path) as file:
        file.write(_head(title))
        file.writelines(_article(number, row, path.parent) for number, row in enumerate(rows, start=1))
        file.write("</main>\n</body>\n</html>\n")


def _head(title: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n<main>\n"
    )


def _article(number: int, row: ReportRow, folder: Path) -> str:
    ending = row.ending
    inputs = "".join(_figure(uri, "before", folder) for uri in row.images) or _empty("no picture")
    output = _figure(ending.output, "after", folder) if ending.state == "succeeded" else _empty(ending.state)
    facts = [f"row {number}", ending.state, f"seed {ending.seed}" if ending.seed is not None else ""]
    facts.append(f"{ending.seconds:.1f} s" if ending.seconds is not None else "")
    error = f'<p class="facts bad">{escape(ending.error)}</p>\n' if ending.error else ""
    return (
        f'<article>\n<div class="pair">{inputs}{output}</div>\n<p class="prompt">{escape(row.prompt)}</p>\n'
        f'<p class="facts">{escape(" · ".join(fact for fact in facts if fact))}</p>\n{error}</article>\n'
    )


def _figure(uri: str, caption: str, folder: Path) -> str:
    source = _source(uri, folder)
    if source is None:
        return f"<figure>{_empty(caption)}<figcaption>{escape(uri[:200])}</figcaption></figure>"
    link = escape(source)
    return (
        f'<figure><a href="{link}"><img src="{link}" alt="{caption}" loading="lazy"></a>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _empty(words: str) -> str:
    return f'<div class="empty">{escape(words)}</div>'


def _source(uri: str, folder: Path) -> str | None:
    """Address that a browser can load from a page in `folder`; None if there is none, as for `s3://`."""
    path = local_path(uri)
    if path is not None:
        return quote(os.path.relpath(path, folder.resolve()))
    is_shown = uri.startswith(("https://", "http://")) or (
        uri.startswith("data:image/") and len(uri) <= LONGEST_INLINE_CHARACTERS
    )
    return uri if is_shown else None
