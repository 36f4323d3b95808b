"""Storage of inputs and outputs: files, buckets, the web, and data inside the job itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock

from jobs.errors import RejectJob
from jobs.schema import INPUT_SCHEMES, OUTPUT_SCHEMES
from storage.cache import Cached
from storage.files import Files
from storage.inline import Inline
from storage.settings import StorageSettings
from storage.store import INPUT, OUTPUT, Content, Source, Store
from storage.uris import scheme_of, show_uri


def _open_buckets(settings: StorageSettings) -> Source:
    from storage.s3 import Buckets  # loads boto3

    return Buckets(settings)


def _open_web(settings: StorageSettings) -> Source:
    from storage.web import Web  # loads the HTTP client

    web = Web(settings)
    return web if settings.input_cache_dir is None else Cached(web, settings.input_cache_dir)


def _open_web_outputs(settings: StorageSettings) -> Store:
    from storage.web_output import WebOutputs  # loads the HTTP client

    return WebOutputs(settings)


OPENERS: dict[str, Callable[[StorageSettings], Source]] = {
    "file": Files,
    "s3": _open_buckets,
    "http": _open_web,
    "https": _open_web,
    "data": Inline,
}
OUTPUT_OPENERS: dict[str, Callable[[StorageSettings], Source]] = {
    **OPENERS,
    "http": _open_web_outputs,
    "https": _open_web_outputs,
}


class Storage:
    """Reads inputs and publishes outputs by their URIs, within what the settings allow. Threads may share one.

    Every method may raise:
        RejectJob: the job can never succeed as it stands: nothing is there, it may not be touched, it is too large.
        RetryJob: too slow.
        Outage: no answer, an error of the server, no space left.
    """

    def __init__(self, settings: StorageSettings) -> None:
        self._settings = settings
        self._sources: dict[Callable[[StorageSettings], Source], Source] = {}
        self._lock = Lock()

    def read(self, uri: str) -> bytes:
        """Read a whole input, at most `DG_MAX_INPUT_BYTES`, within two minutes.

        Args:
            uri: `file://`, `s3://`, `https://`, `http://` or `data:`.
        """
        if scheme_of(uri) not in INPUT_SCHEMES:
            raise RejectJob(INPUT.forbidden, f"{show_uri(uri)}: inputs come from {_listed(INPUT_SCHEMES)}")
        return self._source(uri).read(uri)

    def publish(self, uri: str, data: Content, content_type: str) -> None:
        """Put a whole object at `uri` at once: readers see what was there before, or all of `data`.

        Args:
            uri: `file://`, `s3://`, or a presigned `https://` link; what is there already is replaced.
            data: bytes, or a seekable file, of which no more than a part is in memory.
            content_type: such as `image/png`; files do not keep it.
        """
        self._store(uri).publish(uri, data, content_type)

    def check_output(self, uri: str) -> None:
        """Check that `publish` may write `uri`, as far as that can be known without leaving anything there."""
        self._store(uri).check_output(uri)

    def close(self) -> None:
        with self._lock:
            while self._sources:
                self._sources.popitem()[1].close()

    def _store(self, uri: str) -> Store:
        source = self._source(uri, OUTPUT_OPENERS) if scheme_of(uri) in OUTPUT_SCHEMES else None
        if not isinstance(source, Store):
            raise RejectJob(OUTPUT.forbidden, f"{show_uri(uri)}: outputs go to {_listed(OUTPUT_SCHEMES)}")
        return source

    def _source(self, uri: str, openers: Mapping[str, Callable[[StorageSettings], Source]] = OPENERS) -> Source:
        opener = openers[scheme_of(uri)]
        with self._lock:
            if opener not in self._sources:
                self._sources[opener] = opener(self._settings)
            return self._sources[opener]


def _listed(schemes: tuple[str, ...]) -> str:
    return ", ".join(schemes[:-1]) + f" or {schemes[-1]} URIs"
