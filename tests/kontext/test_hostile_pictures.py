"""Whatever a picture does while it is read is an `ImageError`: nothing of it may look like a fault of the engine."""

from __future__ import annotations

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from kontext import ImageError, ImageOptions, decode_image
from tests.kontext.hostile import HOSTILE, png


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_picture_is_refused_in_one_line(case: str) -> None:
    data, complaint = HOSTILE[case]

    with pytest.raises(ImageError, match=complaint) as error:
        decode_image(data)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trouble", [RecursionError, struct.error, OverflowError, MemoryError, KeyError, SystemError])
@pytest.mark.parametrize("stage", ["open", "load", "convert"])
def test_whatever_a_decoder_raises_the_picture_is_to_blame(
    stage: str, trouble: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decoder(Image.Image):
        """A picture that raises at one stage."""

        def __init__(self, file: io.BytesIO, name: str) -> None:
            super().__init__()
            self._size, self.format = (4, 4), "PNG"
            self.reach("open")

        def reach(self, now: str) -> None:
            if now == stage:
                raise trouble("from inside")

        def load(self) -> None:  # type: ignore[override]
            self.reach("load")

        def convert(self, *_: object) -> Image.Image:  # type: ignore[override]
            self.reach("convert")
            return Image.new("RGB", self.size)

    Image.init()
    monkeypatch.setitem(Image.OPEN, "PNG", (Decoder, lambda prefix: prefix.startswith(b"\x89PNG")))

    with pytest.raises(ImageError, match="from inside"):
        decode_image(png(), options=ImageOptions(apply_exif_orientation=False))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that is damaged; a worker only logs it
def test_a_picture_with_changed_bytes_is_read_or_refused_and_nothing_else(format_: str) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 90).save(buffer, format_)
    whole = buffer.getvalue()
    random = np.random.default_rng(7)

    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(0, min(len(data), 400), 3):
            data[place] = random.integers(0, 256)
        with suppress(ImageError):
            assert decode_image(bytes(data), max_pixels=1_000_000).mode == "RGB"
