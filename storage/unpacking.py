"""Content-Encoding of stored objects: bytes unpacked as they come, never more of them than may be read.

A request asks for no compression; what is packed here was stored so, as buckets and CDNs allow.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from jobs.errors import ErrorCode, RejectJob
from storage.uris import show_uri

PIECE_BYTES = 2**18
"""Most bytes that are unpacked at a time: a few packed bytes may stand for gigabytes."""


def unpacked(chunks: Iterable[bytes], encoding: str | None, uri: str) -> Iterable[bytes]:
    """Unpack an object as its Content-Encoding says: `gzip`, `deflate`, `br`; none leaves it as it is.

    Raises:
        RejectJob: another encoding, or bytes that are not packed so.
    """
    match (encoding or "").strip().lower():
        case "" | "identity" | "aws-chunked":
            return chunks
        case "gzip" | "x-gzip" | "deflate":
            return _inflated(chunks, uri)
        case "br":
            return _unbrotlied(chunks, uri)
        case other:
            raise RejectJob(
                ErrorCode.INPUT_NOT_AN_IMAGE,
                f"{show_uri(uri)}: stored with Content-Encoding {other[:40]!r}; store it as it is, or as gzip or br",
            )


def _inflated(chunks: Iterable[bytes], uri: str) -> Iterator[bytes]:
    either = zlib.MAX_WBITS | 32  # gzip or zlib, by the header
    unpacker = zlib.decompressobj(either)
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                yield unpacker.decompress(rest, PIECE_BYTES)
                rest = unpacker.unconsumed_tail
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
