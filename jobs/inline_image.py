"""A local image inside a job, as a `data:` URI, for workers that cannot read this machine's files."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path

LARGEST_INLINE_BYTES = 8 * 2**20
"""Limit for an image inside a job, which occupies Redis until the job expires."""


def inline_image(path: Path) -> str:
    """Read a file into a `data:` URI.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `LARGEST_INLINE_BYTES`.
    """
    if path.stat().st_size > LARGEST_INLINE_BYTES:
        raise ValueError(f"{path}: larger than {LARGEST_INLINE_BYTES:,} bytes; give a URI that the workers can read")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
