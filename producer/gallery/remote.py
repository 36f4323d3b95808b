"""Images of a gallery that lie elsewhere, read once to make small ones of them."""

from __future__ import annotations

import threading
from collections import Counter
from urllib.parse import urlsplit

from jobs.errors import EditFailure, Error
from jobs.settings import load_settings
from producer.terminal import say
from storage.settings import StorageSettings
from storage.store import Source

FETCH_SECONDS = 20.0
"""For one image at an address; somebody waits for the page."""
MOST_REFUSALS = 3
"""A bucket or host that refused as many in a row is not asked again."""


class RemoteImages:
    """Reads from any bucket, and from the web when that is wanted, by the rules that workers have for addresses.

    Args:
        fetch: read `http(s)://` as well.
    """

    def __init__(self, fetch: bool) -> None:
        self._fetch = fetch
        self._sources: dict[str, Source] = {}
        self._refusals: Counter[str] = Counter()
        self._lock = threading.Lock()

    def read(self, uri: str) -> bytes | None:
        """The image, or None when it cannot be had or is not wanted."""
        scheme, host = uri.partition(":")[0], urlsplit(uri).netloc
        if scheme not in ("s3", "http", "https") or (scheme != "s3" and not self._fetch):
            return None
        if self._refusals[host] >= MOST_REFUSALS:
            return None
        try:
            data = self._source("s3" if scheme == "s3" else "http").read(uri)
        except (EditFailure, Error, ImportError) as error:
            self._refuse(host, error)
            return None
        self._refusals[host] = 0
        return data

    def _source(self, kind: str) -> Source:
        with self._lock:
            if kind not in self._sources:
                self._sources[kind] = _open(kind)
            return self._sources[kind]

    def _refuse(self, host: str, error: Exception) -> None:
        with self._lock:
            self._refusals[host] += 1
            if self._refusals[host] == 1:
                needed = "; pip install 'kontext-edits[worker]'" if isinstance(error, ImportError) else ""
                say(f"not all images of {host} are shown: {error}{needed}")


def _open(kind: str) -> Source:
    if kind == "s3":
        from storage.s3 import Buckets  # loads boto3

        return Buckets(load_settings(StorageSettings, buckets=("*",)))
    from storage.web import Web  # loads the HTTP client

    return Web(load_settings(StorageSettings), FETCH_SECONDS)
