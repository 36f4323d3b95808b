"""Content-Encoding of stored objects: bytes unpacked as they come, never more of them than may be read.

A request asks for no compression; what is packed here was stored so, as buckets and CDNs allow.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from jobs.errors import ErrorCode, RejectJob
from storage.limits import too_large
from storage.uris import show_uri

PIECE_BYTES = 2**18
"""Most bytes that are unpacked at a time: a few packed bytes may stand for gigabytes."""

PACKED_PIECE_BYTES = 2**12
"""What is taken of the packed bytes at a time: what follows the end of a gzip member is copied once for each member."""

GZIP, GZIP_OR_ZLIB = zlib.MAX_WBITS | 16, zlib.MAX_WBITS | 32


def unpacked(chunks: Iterable[bytes], encoding: str | None, uri: str, max_bytes: int) -> Iterable[bytes]:
    """Unpack an object as its Content-Encoding says: `gzip`, `deflate`, `br`; none leaves it as it is.

    Args:
        max_bytes: of the packed ones, which may stand for nothing; whoever takes the unpacked ones counts those.
    Raises:
        RejectJob: another encoding, bytes that are not packed so, or too many of them.
    """
    match (encoding or "").strip().lower():
        case "" | "identity" | "aws-chunked":
            return chunks
        case "gzip" | "x-gzip" | "deflate":
            return _inflated(_at_most(max_bytes, chunks, uri), uri)
        case "br":
            return _unbrotlied(_at_most(max_bytes, chunks, uri), uri)
        case other:
            raise RejectJob(
                ErrorCode.INPUT_NOT_AN_IMAGE,
                f"{show_uri(uri)}: stored with Content-Encoding {other[:40]!r}; store it as it is, or as gzip or br",
            )


def _at_most(max_bytes: int, chunks: Iterable[bytes], uri: str) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise too_large(uri, f"more than {max_bytes}", max_bytes)
        yield chunk


def _inflated(chunks: Iterable[bytes], uri: str) -> Iterator[bytes]:
    """Unpack one zlib stream, or the members of a gzip file one after the other (RFC 1952, 2.2)."""
    unpacker = zlib.decompressobj(GZIP_OR_ZLIB)
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), PACKED_PIECE_BYTES):
                rest = chunk[start : start + PACKED_PIECE_BYTES]
                while rest:
                    if unpacker.eof:
                        rest = rest.lstrip(b"\0")  # some tools fill up to a whole block
                        if not rest:
                            break
                        unpacker = zlib.decompressobj(GZIP)
                    yield unpacker.decompress(rest, PIECE_BYTES)
                    rest = unpacker.unconsumed_tail or unpacker.unused_data
        yield unpacker.flush()
    except zlib.error as error:
        raise _damaged(uri, "gzip") from error
    if not unpacker.eof:
        raise _damaged(uri, "gzip")


def _unbrotlied(chunks: Iterable[bytes], uri: str) -> Iterator[bytes]:
    import brotli  # type: ignore[import-untyped]

    unpacker = brotli.Decompressor()
    try:
        for chunk in chunks:
            yield unpacker.process(chunk, output_buffer_limit=PIECE_BYTES)
            while not unpacker.can_accept_more_data():
                yield unpacker.process(b"", output_buffer_limit=PIECE_BYTES)
    except brotli.error as error:
        raise _damaged(uri, "br") from error
    if not unpacker.is_finished():
        raise _damaged(uri, "br")


def _damaged(uri: str, encoding: str) -> RejectJob:
    return RejectJob(
        ErrorCode.INPUT_NOT_AN_IMAGE,
        f"{show_uri(uri)}: its Content-Encoding says {encoding}, but its bytes are not, or are cut short; "
        "store it again",
    )
