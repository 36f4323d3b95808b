"""Files that are no honest image: the code is `input_not_an_image` wherever a case names no other."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib

from PIL import Image

from jobs.errors import ErrorCode
from jobs.schema import JobState
from tests.kontext.hostile import HOSTILE, chunk, png

PNG = png()
Wanted = ErrorCode | JobState
NO_IMAGE, FINE = ErrorCode.INPUT_NOT_AN_IMAGE, JobState.SUCCEEDED


def encoded(kind: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).save(buffer, kind, **options)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("cat.png", bytes(5_000_000))
    return buffer.getvalue()


def with_height(jpeg: bytes, height: int) -> bytes:
    frame = jpeg.index(b"\xff\xc0")
    return jpeg[: frame + 5] + struct.pack(">H", height) + jpeg[frame + 7 :]


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + bytes(4)


def ppm(width: int, height: int, rest: bytes = b"") -> bytes:
    return b"P6 %d %d 255\n" % (width, height) + rest


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('/tmp/kontext-edits-was-here', 'w')",)


JPEG, WEBP, GIF = encoded("JPEG"), encoded("WEBP", lossless=True), encoded("GIF")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://169.254.169.254/"/></svg>'
LAUGHS = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><svg>&b;</svg>'
XXE = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><l>&x;</l>'

IMAGES: dict[str, tuple[bytes, Wanted, str]] = {
    **{name: (data, NO_IMAGE, said) for name, (data, said) in HOSTILE.items()},
    # other things than images
    "nothing": (b"", NO_IMAGE, "0 bytes"),
    "one byte": (b"\x89", NO_IMAGE, "not a picture that can be read"),
    "zeros": (bytes(5000), NO_IMAGE, "5000 zero bytes"),
    "a web page": (b"<html>", NO_IMAGE, "start like a web page"),
    "SVG with a link inside": (SVG, NO_IMAGE, "an SVG drawing: export it as PNG"),
    "SVG of a billion laughs": (LAUGHS, NO_IMAGE, "an SVG drawing"),
    "XML that names a file": (XXE, NO_IMAGE, "an XML document"),
    "PDF": (b"%PDF-1.7\n/JS (app.alert(1))", NO_IMAGE, "a PDF document"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file", NO_IMAGE, "a PostScript"),
    "PostScript behind a preview": (b"\xc5\xd0\xd3\xc6" + bytes(60), NO_IMAGE, "not a picture that can be read"),
    "ImageMagick's script": (b"push graphic-context\nfill 'url(https://x|id)'", NO_IMAGE, "not a picture"),
    "a pickle": (pickle.dumps(Exploit()), NO_IMAGE, "not a picture that can be read"),
    "a NumPy array of objects": (b"\x93NUMPY\x01\0v\0{'descr': '|O'}", NO_IMAGE, "a NumPy array"),
    "a ZIP bomb": (archive(), NO_IMAGE, "a ZIP archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), NO_IMAGE, "gzip data"),
    "a program": (b"\x7fELF" + bytes(60), NO_IMAGE, "not a picture that can be read"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", NO_IMAGE, "git lfs pull"),
    "a shell script": (b"#!/bin/sh\nid\n", NO_IMAGE, "not a picture that can be read"),
    "an icon": (b"\0\0\1\0\1\0" + bytes(30), NO_IMAGE, "an icon"),
    "Photoshop": (b"8BPS" + bytes(60), NO_IMAGE, "a Photoshop document"),
    "a film": (b"\0\0\0\x18ftypmp42" + bytes(40), NO_IMAGE, "a video"),
    "FLI, which Pillow reads": (struct.pack("<IH", 128, 0xAF11) + bytes(122), NO_IMAGE, "not a picture that can be"),
    "XBM, which Pillow reads": (b"#define a_width 9\n#define a_height 9\n", NO_IMAGE, "not a picture that can be"),
    "a store's error": (b"<?xml?><Error><Code>AccessDenied</Code></Error>", NO_IMAGE, "AccessDenied"),
    # damage
    "PNG, the head alone": (PNG[:8], NO_IMAGE, "cannot be read as PNG"),
    "PNG cut in its pixels": (encoded("PNG")[:-500], NO_IMAGE, "damaged or cut short"),
    "PNG of 16,384 chunks": (png(*[chunk(b"abCd", b"")] * 16_384), FINE, ""),
    "PNG with a chunk of 2 GB": (PNG[:33] + b"\x7f\xff\xff\xffIDAT" + PNG[41:], FINE, ""),
    "PNG with a bad profile": (png(chunk(b"iCCP", b"k\0\0" + zlib.compress(b"x" * 200))), FINE, ""),
    "PNG with a profile of 60 MB": (
        png(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(60_000_000)))),
        NO_IMAGE,
        "cannot be read as PNG",
    ),
    "JPEG cut in half": (JPEG[: len(JPEG) // 2], NO_IMAGE, "cut short"),
    "JPEG, the head alone": (b"\xff\xd8\xff\xe0", NO_IMAGE, "cannot be read as JPEG"),
    "JPEG without its Huffman tables": (JPEG.replace(b"\xff\xc4", b"\xff\xec"), FINE, ""),
    "JPEG of no height": (with_height(JPEG, 0), NO_IMAGE, "cannot be read|damaged"),
    "JPEG and a script": (JPEG + b"<script>alert(1)</script>", FINE, ""),
    "WebP cut": (WEBP[:200], NO_IMAGE, "cannot be read as WEBP|damaged or cut short"),
    "WebP of a huge frame": (b"RIFF\xff\xff\xff\x7fWEBPVP8L" + WEBP[16:], NO_IMAGE, "cannot be read|damaged"),
    "GIF cut": (GIF[:100], NO_IMAGE, "cannot be read as GIF"),
    "GIF of one line end": (b"GIF89a" + bytes(7) + b"\n", NO_IMAGE, "cannot be read as GIF|damaged"),
    "TIFF whose fields lie in themselves": (tiff((256, 4, 2**31, 8)), NO_IMAGE, "cannot be read as TIFF|damaged"),
    "TIFF of strips beyond its end": (
        tiff((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 2**31), (279, 4, 1, 4096)),
        NO_IMAGE,
        "damaged|cannot be read",
    ),
    "TIFF without a size": (tiff((258, 3, 1, 8)), NO_IMAGE, "cannot be read as TIFF"),
    "BMP of a negative width": (b"BM" + bytes(8) + struct.pack("<IIiiHHII", 54, 40, -9, 9, 1, 24, 0, 0), NO_IMAGE, ""),
    "BMP of 2 GB": (
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIIIII", 54, 40, 30_000, 30_000, 1, 24, *[0] * 6),
        NO_IMAGE,
        "too large",
    ),
    "AVIF garbage": (b"\0\0\0\x18ftypavif" + bytes(60), NO_IMAGE, "cannot be read as AVIF"),
    "HEIC garbage": (b"\0\0\0\x18ftypheic" + bytes(60), NO_IMAGE, "cannot be read as HEIF"),
    "PPM of a word": (b"P6 many 9 255\n", NO_IMAGE, "cannot be read as PPM"),
    "PPM without pixels": (ppm(9, 9), NO_IMAGE, "damaged or cut short"),
    # more than fits
    "PPM of 10^18 pixels": (ppm(10**9, 10**9), NO_IMAGE, "over 64000000 pixels"),
    "PPM of 40 digits": (ppm(10**40, 1), NO_IMAGE, "cannot be read as PPM|over 64000000 pixels"),
    "64 million and a few pixels": (png(width=8001, height=8000, rows=b"\0"), NO_IMAGE, "over 64000000 pixels"),
    "a line of 70,000": (png(width=70_000, height=1, rows=b"\0"), NO_IMAGE, "a side over 65535 pixels"),
    "GIF of 65,535 squared": (b"GIF89a\xff\xff\xff\xff" + GIF[10:], NO_IMAGE, "over 64000000 pixels"),
    # strange, and fine
    "PNG of one pixel": (png(width=1, height=1), FINE, ""),
    "PNG after which comes another": (PNG + PNG, FINE, ""),
    "GIF of noise": (GIF, FINE, ""),
    "grey JPEG": (JPEG, FINE, ""),
}
