"""Decoding in a helper process: the same pixels, and nothing that an image does reaches the worker."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from PIL import ExifTags, Image

from jobs.errors import Cancelled
from kontext import ImageError, ImageOptions, decode_with_warnings
from kontext.images.serving import Landing, Server
from tests.waiting import eventually, stretched
from worker.decoding import SOCKET_KIND, Decoder

MEBIBYTE = 2**20
CASES = Path(__file__).parents[1] / "cases" / "pictures"


def never() -> None:
    """No reason to end."""


def encoded(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name)
    return buffer.getvalue()


def gradient(size: tuple[int, int]) -> Image.Image:
    return Image.merge("RGB", [Image.linear_gradient("L").resize(size).rotate(angle) for angle in (0, 90, 180)])


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(4_000_000, max_seconds=60, max_memory_bytes=1024 * MEBIBYTE)
    yield decoder
    decoder.close()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (641, 479), (2000, 2000)])
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_pixels_and_warnings_are_those_of_decoding_here(decoder: Decoder, size: tuple[int, int], name: str) -> None:
    data = encoded(gradient(size), name)

    there, here = decoder.decode(data, never), decode_with_warnings(data)

    assert (there.image.mode, there.image.size) == ("RGB", size)
    assert there.image.tobytes() == here.image.tobytes()
    assert there.warnings == here.warnings
    assert there.image.resize((7, 7)).tobytes() == here.image.resize((7, 7)).tobytes()


def test_an_image_outlives_its_helper_and_can_be_changed() -> None:
    decoder = Decoder(4_000_000, 60, 0)
    image = decoder.decode(encoded(gradient((64, 48)), "PNG"), never).image
    decoder.close()

    image.putpixel((0, 0), (1, 2, 3))

    assert image.getpixel((0, 0)) == (1, 2, 3)


def turned(image: Image.Image) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


KINDS_OF_JPEG = {
    "ordinary": encoded(gradient((120, 90)), "JPEG"),
    "grey": encoded(gradient((120, 90)).convert("L"), "JPEG"),
    "turned by EXIF": turned(gradient((120, 90))),
    "without its end": encoded(gradient((256, 256)), "JPEG")[:-2],
    "with a profile": (CASES / "display_p3.jpg").read_bytes(),
    "CMYK": (CASES / "cmyk_inks.jpg").read_bytes(),
}


@pytest.mark.parametrize("kind", KINDS_OF_JPEG)
def test_memory_of_an_earlier_image_shows_nothing_of_it(decoder: Decoder, kind: str) -> None:
    data = KINDS_OF_JPEG[kind]
    decoder.decode(encoded(Image.effect_noise((1500, 1000), 90).convert("RGB"), "JPEG"), never)

    there, here = decoder.decode(data, never), decode_with_warnings(data)

    assert there.image.size == here.image.size
    assert there.image.tobytes() == here.image.tobytes()
    assert there.warnings == here.warnings


def test_rows_that_a_decoder_left_out_are_noticed() -> None:
    landing = Landing(None)
    canvas = landing.canvas((40, 30))
    canvas.paste("red", (0, 0, 40, 30))
    landing.take(canvas)

    for hole in (0, 17, 29):
        canvas = landing.canvas((40, 30))
        for row in {*range(30)} - {hole}:
            canvas.paste("blue", (0, row, 40, row + 1))
        with pytest.raises(ImageError, match="left rows out"):
            landing.take(canvas)
    landing.discard()


def test_half_a_jpeg_is_refused_and_the_next_image_is_whole(decoder: Decoder) -> None:
    data = encoded(gradient((640, 480)), "JPEG")
    with pytest.raises(ImageError):
        decoder.decode(data[: len(data) // 2], never)

    assert decoder.decode(data, never).image.tobytes() == decode_with_warnings(data).image.tobytes()


def test_a_jpeg_without_its_end_keeps_its_warning(decoder: Decoder) -> None:
    data = encoded(gradient((256, 256)), "JPEG")[:-2]

    assert decoder.decode(data, never).warnings == ("the JPEG picture lacks its end; what there is of it was used",)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 100])
def test_what_is_no_image_says_what_it_says_here(decoder: Decoder, data: bytes) -> None:
    with pytest.raises(ImageError) as here:
        decode_with_warnings(data)
    with pytest.raises(ImageError) as there:
        decoder.decode(data, never)

    assert str(there.value) == str(here.value)


def test_an_image_that_needs_too_much_memory_is_refused_and_the_next_one_decoded() -> None:
    decoder = Decoder(100_000_000, 60, 150 * MEBIBYTE)
    with pytest.raises(ImageError, match=r"more memory to decode than 150 MiB \(DG_DECODE_MEMORY\)"):
        decoder.decode(encoded(Image.new("RGB", (8000, 8000)), "PNG"), never)

    assert decoder.decode(encoded(gradient((64, 48)), "PNG"), never).image.size == (64, 48)
    decoder.close()


def test_an_image_that_takes_too_long_is_refused_and_the_next_one_decoded() -> None:
    decoder = Decoder(100_000_000, 0.0, 0)

    with pytest.raises(ImageError, match=r"took longer than 0 s to decode \(DG_DECODE_SECONDS\)"):
        decoder.decode(encoded(gradient((6000, 6000)), "PNG"), never)

    decoder.close()


def test_a_cancel_ends_the_decoding_at_once(decoder: Decoder) -> None:
    started = time.monotonic()

    def cancelled() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        Decoder(100_000_000, 600, 0).decode(encoded(gradient((8000, 8000)), "PNG"), cancelled)

    assert time.monotonic() - started < stretched(60)


def test_a_decoder_that_crashes_ends_its_image_only(decoder: Decoder) -> None:
    decoder.decode(encoded(gradient((64, 48)), "PNG"), never)
    (helper,) = decoder._idle
    os.kill(helper._process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(decoder.decode, encoded(gradient((64, 48)), "PNG"), never)
        eventually(lambda: helper.is_at_work)
        os.kill(helper._process.pid, signal.SIGKILL)

        with pytest.raises(ImageError, match=r"ended its decoder \(SIGKILL\)"):
            waiting.result()

    assert decoder.decode(encoded(gradient((64, 48)), "PNG"), never).image.size == (64, 48)


def test_a_helper_knows_no_secrets_and_leaves_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("DG_CALLBACK_SECRET", "whsec_x")
    decoder = Decoder(4_000_000, 60, 0)
    decoder.decode(encoded(gradient((64, 48)), "PNG"), never)
    (helper,) = decoder._idle
    with suppress(FileNotFoundError):  # where there is no /proc
        with open(f"/proc/{helper._process.pid}/environ", "rb") as file:
            names = {item.partition(b"=")[0] for item in file.read().split(b"\0")}
        assert not names & {b"AWS_SECRET_ACCESS_KEY", b"DG_CALLBACK_SECRET"}

    helper._connection.close()

    eventually(lambda: not helper.is_alive)
    decoder.close()


def test_images_at_the_same_time_have_a_helper_each(decoder: Decoder) -> None:
    data = encoded(gradient((1500, 1500)), "PNG")
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(lambda _: decoder.decode(data, never).image, range(4)))

    assert len({image.tobytes() for image in images}) == 1
    assert len(decoder._idle) <= 2


def test_memory_is_used_again_only_when_nobody_looks_at_the_image_any_more() -> None:
    decoder = Decoder(4_000_000, 60, 0)
    red, blue, green = (encoded(Image.new("RGB", (640, 480), name), "PNG") for name in ("red", "blue", "green"))
    first = decoder.decode(red, never).image
    alias = first._new(first.im)  # as Pillow shares pixels between images
    del first
    second = decoder.decode(blue, never).image

    assert (alias.getpixel((9, 9)), second.getpixel((9, 9))) == ((255, 0, 0), (0, 0, 255))
    del alias
    third = decoder.decode(green, never).image

    assert (second.getpixel((9, 9)), third.getpixel((9, 9))) == ((0, 0, 255), (0, 128, 0))
    assert len(decoder._buffers._buffers) == 2, "the third lies where the first did"
    decoder.close()
    assert third.getpixel((0, 0)) == (0, 128, 0)


def test_many_images_take_a_bounded_number_of_buffers() -> None:
    decoder = Decoder(4_000_000, 60, 0)
    data = [encoded(Image.new("RGB", (100 * number, 100), (number, 0, 0)), "PNG") for number in range(1, 9)]

    images = [decoder.decode(item, never).image for item in data]

    assert [image.getpixel((0, 0)) for image in images] == [(number, 0, 0) for number in range(1, 9)]
    assert len(decoder._buffers._buffers) == 4
    del images
    again = [decoder.decode(item, never).image.getpixel((0, 0)) for item in data]
    assert again == [(number, 0, 0) for number in range(1, 9)]
    decoder.close()


def test_a_warm_helper_imports_nothing_for_its_first_image() -> None:
    script = """
import io, sys
from PIL import Image
from kontext.images import serving

serving.warm_up()
known = set(sys.modules)
for kind in ("PNG", "JPEG", "WEBP"):
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, kind)
    serving.decode_with_warnings(file.getvalue())
print(sorted(set(sys.modules) - known))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ended.stdout == "[]\n"


def test_an_image_that_cannot_be_read_costs_no_helper() -> None:
    decoder = Decoder(4_000_000, 60, 0)
    decoder.decode(encoded(gradient((64, 48)), "PNG"), never)
    before = decoder._idle[0]._process.pid

    with pytest.raises(ImageError):
        decoder.decode(b"no image", never)

    assert decoder._idle[0]._process.pid == before
    decoder.close()


def test_a_decoder_whose_worker_has_died_ends_without_a_word() -> None:
    parent, child = socket.socketpair(socket.AF_UNIX, SOCKET_KIND)
    request = {"bytes": 0, "max_pixels": 1, "options": asdict(ImageOptions()), "buffer": None}
    parent.send(json.dumps(request).encode())
    parent.close()

    with child, TemporaryFile() as source:
        Server(child, source.fileno()).serve()
