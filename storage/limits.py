"""Limits on an input's size and time, counted while it arrives, because announced sizes need not be true."""

from __future__ import annotations

import time
from collections.abc import Iterable

from jobs.errors import ErrorCode, RejectJob, RetryJob
from storage.transfer import check_not_left
from storage.uris import show_uri

DOWNLOAD_SECONDS = 120.0
"""For one whole input: 64 MiB at 4.5 Mbit/s. A slower source would hold one of the few threads that feed the GPU."""

CHUNK_BYTES = 2**18


class Deadline:
    """The end of a time span that begins now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()


def collect(chunks: Iterable[bytes], uri: str, max_bytes: int, deadline: Deadline) -> bytes:
    """Join the chunks of an input; the deadline is looked at between two of them.

    Raises:
        TransferLeft: nobody waits for it any more.
        RejectJob: there are more than `max_bytes`.
        RetryJob: the deadline has passed.
    """
    data = bytearray()
    for chunk in chunks:
        check_not_left()
        data += chunk
        if len(data) > max_bytes:
            raise too_large(uri, f"more than {max_bytes}", max_bytes)
        if deadline.seconds_left <= 0:
            raise too_slow(uri, deadline)
    return bytes(data)


def too_large(uri: str, size_bytes: int | str, max_bytes: int) -> RejectJob:
    return RejectJob(
        ErrorCode.INPUT_TOO_LARGE,
        f"{show_uri(uri)}: {size_bytes} bytes, but DG_MAX_INPUT_BYTES is {max_bytes}",
        "send a smaller file or raise it",
    )


def too_slow(uri: str, deadline: Deadline) -> RetryJob:
    return RetryJob(
        ErrorCode.INPUT_UNREACHABLE, f"{show_uri(uri)}: not here within {deadline.seconds:g} s; a later try may do"
    )
