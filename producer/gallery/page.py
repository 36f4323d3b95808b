"""The gallery's page, written as its rows come."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.errors import ErrorCode
from producer.failures import REMEDIES
from producer.files import name_output, replacing
from producer.gallery.shown_images import ShownImages
from producer.images import pillow, write_sheet
from producer.report import ReportRow
from producer.upload import put_folder

ROWS_AT_ONCE = 64
THREADS = 4
SHEET_ROWS = 48
SHOWN_CHARACTERS = 200
"""Of the name of an input, which may be a whole image as a `data:` URI."""


def write_gallery(
    target: str | Path,
    title: str,
    rows: Iterable[ReportRow],
    batch: str | None = None,
    sheet: Path | None = None,
    fetch: bool = False,
) -> None:
    """Write the page, and small images in a folder beside it; both can be moved together.

    Args:
        target: path of the page, or its place in a bucket, `s3://bucket/prefix/gallery.html`.
        batch: name under which what failed can be retried; None where the same command again does it.
        fetch: read inputs at `http(s)://` to show them small; otherwise there is a link only.
        sheet: a PNG with the first `SHEET_ROWS` results to write as well.
    Raises:
        TableError: something cannot be written.
    """
    if sheet is not None:
        pillow()  # now rather than at the end
    with _local(str(target)) as page:
        images = ShownImages(page, str(target), fetch)
        pairs: list[tuple[Path | None, Path | None]] = []
        with replacing(page) as file:
            head, tail = _template().split("%ROWS%")
            file.write(head + '{"title": ' + _script_json(title) + ', "rows": [\n')
            codes: Counter[str] = Counter()
            for number, row in enumerate(_described(rows, images, page.parent, batch), start=1):
                codes[row["code"]] += 1
                if row["state"] == "succeeded" and len(pairs) < SHEET_ROWS:
                    pairs.append(images.small_files(row))
                file.write((",\n" if number > 1 else "") + _script_json({"n": number, **row}))
            file.write('\n], "failures": ' + _script_json(list(_failures(codes, batch))) + "}" + tail)
        if sheet is not None:
            write_sheet(pairs, sheet)


@contextmanager
def _local(target: str) -> Iterator[Path]:
    """A local path to write to; for a bucket a temporary one, of which everything is put there at the end."""
    if not target.startswith("s3://"):
        yield Path(target)
        return
    with tempfile.TemporaryDirectory(prefix="gallery-") as folder:
        yield Path(folder) / target.rpartition("/")[2]
        put_folder(Path(folder), target.rpartition("/")[0])


def _described(
    rows: Iterable[ReportRow], images: ShownImages, folder: Path, batch: str | None
) -> Iterator[dict[str, Any]]:
    """Rows as the page reads them; their small images are made side by side."""
    remaining = iter(rows)
    with ThreadPoolExecutor(THREADS) as threads:
        while some := list(islice(remaining, ROWS_AT_ONCE)):
            yield from threads.map(lambda row: _describe(row, images, folder, batch), some)


def _describe(row: ReportRow, images: ShownImages, folder: Path, batch: str | None) -> dict[str, Any]:
    ending = row.ending
    is_done = ending.state == "succeeded"
    is_retried = batch is not None and ending.state in ("failed", "cancelled")
    return {
        "state": ending.state,
        "prompt": row.prompt,
        "inputs": [name_output(uri, folder)[:SHOWN_CHARACTERS] for uri in row.images],
        "links": [images.link(uri) for uri in row.images],
        "before": [shown for uri in row.images if (shown := images.show(uri)) is not None],
        "output": name_output(ending.output, folder) if is_done else "",
        "after": images.show(ending.output) if is_done else None,
        "seed": None if ending.seed is None else str(ending.seed),  # JavaScript's numbers end at 2^53
        "seconds": ending.seconds,
        "engine": row.engine,
        "error": ending.error,
        "code": ending.code,
        "job_id": ending.job_id,
        "retry": f"producer retry {ending.job_id}" if is_retried else "",
    }


def _failures(codes: Counter[str], batch: str | None) -> Iterator[dict[str, Any]]:
    for code, count in codes.most_common():
        if code:
            again = f"producer retry {batch} --code {code}" if batch else "the same command again"
            yield {"code": code, "count": count, "remedy": REMEDIES[ErrorCode(code)], "retry": again}


def _template() -> str:
    """The page with its content security policy, which allows its own style and script by their hashes."""
    text = (resources.files("producer.gallery") / "page.html").read_text(encoding="utf-8")
    style, script = (_hashed(text, rf"<{tag}>(.*?)</{tag}>") for tag in ("style", "script"))
    images = "img-src 'self' file: data:"
    policy = (
        f"default-src 'none'; {images}; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'"
    )
    return text.replace("%CSP%", policy)


def _hashed(text: str, pattern: str) -> str:
    (content,) = re.findall(pattern, text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
