"""Bytes that are no readable picture, named by what they are, with the remedy."""

from __future__ import annotations

import re

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LISTED = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC or PNM"

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    # offset, bytes, and what they are with what to do
    (0, b"version https://git-lfs", "a Git LFS pointer and not the file it stands for: run `git lfs pull`"),
    (0, b"%PDF-", "a PDF document: export the page as PNG or JPEG"),
    (0, b"%!PS", "a PostScript drawing: export it as PNG"),
    (
        0,
        b"PK\x03\x04",
        "a ZIP archive (or a document made of one, such as .docx): unpack it and give the picture inside",
    ),
    (0, b"\x1f\x8b", "gzip data: unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it and give the picture inside"),
    (0, b"Rar!", "a RAR archive: unpack it and give the picture inside"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard data: unpack it first"),
    (257, b"ustar", "a tar archive: unpack it and give the picture inside"),
    (0, b"\x1a\x45\xdf\xa3", "a video (WebM or Matroska): take one frame as PNG or JPEG"),
    (8, b"AVI ", "a video (AVI): take one frame as PNG or JPEG"),
    (0, b"\x00\x00\x01\xba", "a video (MPEG): take one frame as PNG or JPEG"),
    (8, b"WAVE", "a sound file (WAV)"),
    (0, b"ID3", "a sound file (MP3)"),
    (0, b"8BPS", "a Photoshop document (PSD): export it as PNG or JPEG"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture: save it as PNG or TIFF"),
    (0, b"\xff\x0a", "a JPEG XL picture: save it as PNG or JPEG"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture: save it as PNG or JPEG"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture: save it as PNG or JPEG"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture: save it as PNG or JPEG"),
    (0, b"\x00\x00\x01\x00", "an icon (ICO): save it as PNG"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file: develop it to JPEG or TIFF"),
    (128, b"DICM", "a DICOM file: export it as PNG or TIFF"),
    (0, b"\x93NUMPY", "a NumPy array: save it as PNG or TIFF"),
    (0, b"/9j/", "a JPEG picture in base64: decode it, or give it as data:image/jpeg;base64,…"),
    (0, b"iVBORw0KGgo", "a PNG picture in base64: decode it, or give it as data:image/png;base64,…"),
    (0, b"data:image/", "the text of a data: URI: give it as the image's address"),
)
"""Files that people give instead of pictures, by their first bytes."""

BRANDS = {
    "a HEIC picture: install pi-heif (it comes with `kontext-edits[worker]`), or save it as JPEG": (
        *(b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"),
    ),
    "an AVIF picture, which this build of Pillow does not read: save it as PNG or JPEG": (b"avif", b"avis"),
    "a camera's raw file (CR3): develop it to JPEG or TIFF": (b"crx ",),
}
"""Kinds of ISO media files by their major brand; every other brand is a video or sound."""


def name_what_it_is(data: bytes) -> str:
    """Describe bytes that no decoder accepts, in a few words, with the remedy."""
    if data[4:8] == b"ftyp":
        return next((kind for kind, brands in BRANDS.items() if data[8:12] in brands), _video(data))
    for offset, signature, kind in SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return kind
    return _name_text(data) or f"{len(data)} bytes that start with {data[:12]!r}, expected {LISTED}"


def _video(data: bytes) -> str:
    return f"a video (ISO media file, brand {data[8:12]!r}): take one frame as PNG or JPEG"


def _name_text(data: bytes) -> str | None:
    """Name of a text format: markup, JSON or plain text; None for other bytes."""
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes: the file was not written to its end; upload it again"
    start = data[:4096].removeprefix(BYTE_ORDER_MARK).lstrip()
    lower = start.lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return f"bytes that start like a web page (HTML), {start[:24]!r}: give the picture's own address, not a page's"
    if b"<svg" in lower and start.startswith(b"<"):
        return "an SVG drawing: export it as PNG"
    if start.startswith(b"<"):
        code = re.search(rb"<Code>([A-Za-z0-9]{1,60})</Code>", start)
        answer = f"an error of the store, {code[1].decode()}" if code else "an XML document"
        return f"{answer} ({start[:24]!r}): check the address and its rights"
    if re.match(rb'[{\[]\s*["{\[\]}]', start):
        return f"JSON, {start[:24]!r}, as an error's answer often is: check the address and its rights"
    return None
