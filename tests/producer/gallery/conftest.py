"""What the gallery's tests share: a folder with images, and rows about them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from producer.report import Ending, ReportRow

FORBIDDEN = "input_forbidden: file:///data/cat.png: not below an allowed folder"
HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with `in/cat.png`, red, and `out/ä b.png`, blue."""
    for name, colour in (("in/cat.png", "red"), ("out/ä b.png", "blue")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (640, 480), colour).save(tmp_path / name)
    return tmp_path


def edit_rows(images: Path, count: int = 6) -> list[ReportRow]:
    """Rows that repeat: done, forbidden, done with a hostile prompt, cancelled, queued, refused."""
    cat, out = (images / "in/cat.png").as_uri(), (images / "out/ä b.png").as_uri()
    kinds = [
        (
            (cat,),
            "make it blue " * 30,
            Ending("succeeded", out, 2**64 - 1, 1, 4.25, "", "one"),
            "native flux1-tiny-kontext",
        ),
        (("file:///data/cat.png",), "make it snow", Ending("failed", "", 5, 1, 0.1, FORBIDDEN, "two"), ""),
        ((cat, "https://example.org/a.png?x='\"><b>"), HOSTILE, Ending("succeeded", out, 7, 1, 2.0, "", "three"), ""),
        ((cat,), "rain", Ending("cancelled", "", 5, 0, None, "cancelled: cancelled on request", "four"), ""),
        (("s3://bucket/a.png",), "hail", Ending("queued", job_id="five"), ""),
        ((), "", Ending("refused", error="image 'x.png': no such file"), ""),
    ]
    return [ReportRow({}, *kinds[place % len(kinds)]) for place in range(count)]
