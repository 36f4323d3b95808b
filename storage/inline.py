"""`data:` URIs: the picture is in the job itself (RFC 2397)."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from jobs.errors import ErrorCode, RejectJob
from storage.limits import too_large
from storage.settings import StorageSettings
from storage.store import Source
from storage.uris import show_uri


class Inline(Source):
    """Decodes base64 and percent-encoding; blanks and line breaks in base64 do no harm."""

    def __init__(self, settings: StorageSettings) -> None:
        self._max_bytes = settings.max_input_bytes

    def read(self, uri: str) -> bytes:
        header, comma, payload = uri.partition(",")
        if not comma:
            raise _rejection(uri, "has no comma; expected data:image/png;base64,...")
        is_base64 = re.search(r";\s*base64\s*$", header, re.IGNORECASE) is not None
        # At worst base64 takes 4 characters for 3 bytes and each of them is written as %XX.
        if len(payload) > self._max_bytes * (4 if is_base64 else 3) + 4096:
            raise too_large(uri, f"more than {self._max_bytes}", self._max_bytes)
        data = unquote_to_bytes(payload)
        if is_base64:
            data = self._decode(uri, b"".join(data.split()))
        if len(data) > self._max_bytes:
            raise too_large(uri, len(data), self._max_bytes)
        return data

    def _decode(self, uri: str, encoded: bytes) -> bytes:
        digits = encoded.rstrip(b"=")
        if len(digits) * 3 // 4 > self._max_bytes:
            raise too_large(uri, len(digits) * 3 // 4, self._max_bytes)
        try:
            # Padding is often lost on the way; the length implies it.
            return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
        except binascii.Error as error:
            raise _rejection(uri, f"is not base64 ({error}); encode the file's bytes with base64") from error


def _rejection(uri: str, reason: str) -> RejectJob:
    return RejectJob(ErrorCode.INPUT_NOT_AN_IMAGE, f"{show_uri(uri)} {reason}")
