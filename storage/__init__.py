"""Storage of inputs and outputs: files, buckets, the web, and data inside the job itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock

from jobs.errors import RejectJob, SettingsError
from jobs.schema import INPUT_SCHEMES, OUTPUT_SCHEMES
from storage.cache import Cached
from storage.files import Files
from storage.inline import Inline
from storage.profiles import StoreProfile
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
        self._of_profile: dict[str, Storage] = {}
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

    def of_profile(self, name: str | None, tenant: str | None) -> Storage:
        """The storage of a job that names a store profile: the same, with the profile's access to its places.

        Raises:
            RejectJob: there is no such profile, or not for this tenant; which of both is not told.
        """
        if name is None:
            return self
        profile = next((known for known in self._settings.store_profiles if known.name == name), None)
        if profile is None or not profile.is_open_to(tenant):
            whose = f"jobs of tenant {tenant}" if tenant else "jobs without a tenant"
            raise RejectJob(
                INPUT.forbidden,
                f"store profile {name}: none that is open to {whose}",
                "name it in DG_STORE_PROFILES where the workers run (`worker check` lists them there)",
            )
        with self._lock:
            return self._of_profile.setdefault(name, _ProfileStorage(self, self._settings, profile))

    def close(self) -> None:
        with self._lock:
            while self._of_profile:
                self._of_profile.popitem()[1].close()
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


class _ProfileStorage(Storage):
    """A storage that has a profile's access to the places of the profile, and shares everything else."""

    def __init__(self, shared: Storage, settings: StorageSettings, profile: StoreProfile) -> None:
        super().__init__(settings)
        self._shared = shared
        self._profile = profile

    def _source(self, uri: str, openers: Mapping[str, Callable[[StorageSettings], Source]] = OPENERS) -> Source:
        if scheme_of(uri) != "s3":
            return self._shared._source(uri, openers)
        from storage.s3 import Buckets, is_below  # loads boto3

        if not is_below(uri, self._profile.places):
            return self._shared._source(uri, openers)
        with self._lock:
            if _open_buckets not in self._sources:
                self._sources[_open_buckets] = self._open(Buckets)
            return self._sources[_open_buckets]

    def _open(self, kind: Callable[[StorageSettings, StoreProfile], Source]) -> Source:
        try:
            return kind(self._settings, self._profile)
        except SettingsError as error:  # of the operator: its words are for `worker check`
            raise RejectJob(
                INPUT.forbidden,
                f"store profile {self._profile.name}: cannot be used",
                "`worker check` where the workers run says why",
            ) from error


def _listed(schemes: tuple[str, ...]) -> str:
    return ", ".join(schemes[:-1]) + f" or {schemes[-1]} URIs"
