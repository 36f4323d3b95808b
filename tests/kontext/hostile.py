"""Pictures that attack whoever decodes them, each with the words of its refusal."""

from __future__ import annotations

import struct
import zlib

ORIENTATION_6 = (0x0112, 3, 1, b"\6\0\0\0")
SHORT, ASCII = 3, 2  # types of TIFF fields


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes, width: int = 4, height: int = 4, colour_type: int = 2, rows: bytes | None = None) -> bytes:
    """A PNG of 8 bits a channel with these chunks before its pixels."""
    if rows is None:
        rows = (b"\0" + bytes(width * (3 if colour_type == 2 else 1))) * height
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def exif(*fields: tuple[int, int, int, bytes]) -> bytes:
    entries = b"".join(struct.pack("<HHI4s", *field) for field in fields)
    return chunk(b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + bytes(4))


PALETTE = chunk(b"PLTE", bytes(6))
HOSTILE = {
    "an eXIf chunk that is no TIFF": (png(chunk(b"eXIf", b"garbage")), "EXIF data is damaged"),
    "an eXIf chunk of 4 bytes": (png(chunk(b"eXIf", b"II*\0")), "EXIF data is damaged"),
    "a resolution that is text": (png(exif(ORIENTATION_6, (0x011A, ASCII, 2, b"a\0\0\0"))), "EXIF data is damaged"),
    "a width that is text": (png(exif((0x0100, ASCII, 2, b"a\0\0\0"), ORIENTATION_6)), "EXIF data is damaged"),
    "bits that are text": (png(exif((0x0102, ASCII, 2, b"a\0\0\0"), ORIENTATION_6)), "EXIF data is damaged"),
    "tRNS longer than any palette": (png(PALETTE, chunk(b"tRNS", bytes(257)), colour_type=3), "PNG picture is damaged"),
    "tRNS of 100 kB": (png(PALETTE, chunk(b"tRNS", bytes(100_000)), colour_type=3), "PNG picture is damaged"),
    "no rows": (png(rows=b""), "damaged or cut short"),
    "no width": (png(width=0), "cannot be read|damaged|not a picture"),
    "a broken checksum": (png()[:29] + b"\0\0\0\0" + png()[33:], "cannot be read as PNG"),
    "one column of 64 million rows": (png(width=1, height=64_000_000, rows=b"\0"), "a side over 65535 pixels"),
    "4 billion rows": (png(width=1, height=2**31 - 1, rows=b"\0"), "over 64000000 pixels"),
    "a text chunk that unpacks to 70 MB": (
        png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70_000_000), level=1))),
        "cannot be read|damaged",
    ),
}
