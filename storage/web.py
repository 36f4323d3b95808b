"""`https://` and `http://`: pictures from public addresses, and from what `DG_PRIVATE_HOSTS` names."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx2

from jobs.errors import EditFailure, Outage, RejectJob, RetryJob
from jobs.names import host_of
from storage.addresses import ForbiddenAddress
from storage.guarded_http import LEAST_BYTES_PER_SECOND, TooSlow, guarded_client
from storage.hosts import Hosts
from storage.limits import CHUNK_BYTES, DOWNLOAD_SECONDS, Deadline, collect, too_large, too_slow
from storage.refusals import passes, words_of
from storage.settings import StorageSettings
from storage.store import INPUT, Source
from storage.transfer import check_not_left
from storage.unpacking import unpacked
from storage.uris import scheme_of, show_uri

MAX_REDIRECTS = 3

FORBIDDING = {401, 402, 403, 407, 451}


class Web(Source):
    """Downloads over HTTP.

    Args:
        download_seconds: for one input, all redirects included.
    """

    def __init__(self, settings: StorageSettings, download_seconds: float = DOWNLOAD_SECONDS) -> None:
        self._max_bytes = settings.max_input_bytes
        self._download_seconds = download_seconds
        self._stall_seconds = settings.input_stall_seconds
        self._client = guarded_client(settings, download_seconds, self._stall_seconds)
        self._hosts = Hosts()

    def read(self, uri: str) -> bytes:
        """Read an input; one whose host is silent and just asked by another thread is an outage at once."""
        try:
            host = host_of(uri)
        except ValueError as error:
            raise RejectJob(INPUT.not_found, f"{show_uri(uri)}: not a web address ({error})") from error
        with self._hosts.turn(host) as is_given:
            if not is_given:
                raise Outage(INPUT.unavailable, f"{show_uri(uri)}: its host did not answer lately; a later try may do")
            try:
                data = self._read(uri)
            except EditFailure as failure:
                check_not_left()  # or an end of ours would be taken for an answer of the host
                self._hosts.note(host, is_silent=isinstance(failure.__cause__, httpx2.TimeoutException))
                raise
            self._hosts.note(host, is_silent=False)
            return data

    def _read(self, uri: str) -> bytes:
        deadline = Deadline(self._download_seconds)
        try:
            return self._download(uri, deadline)
        except ForbiddenAddress as error:
            raise RejectJob(error.code, f"{show_uri(uri)}: {error.reason}", error.remedy) from error
        except (httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            raise self._late(uri, deadline, error) from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise RejectJob(INPUT.not_found, f"{show_uri(uri)}: not a web address ({error})") from error
        except httpx2.HTTPError as error:
            raise Outage(INPUT.unavailable, f"{show_uri(uri)}: {error}; a later try may do") from error

    def close(self) -> None:
        self._client.close()

    def _late(self, uri: str, deadline: Deadline, error: httpx2.TimeoutException) -> RetryJob:
        if deadline.seconds_left <= 0:
            return too_slow(uri, deadline)
        is_slow = isinstance(error.__cause__, TooSlow)
        sent = f"less than {LEAST_BYTES_PER_SECOND // 1024} KiB a second" if is_slow else "nothing"
        return RetryJob(
            INPUT.unavailable,
            f"{show_uri(uri)}: its host sent {sent} for {self._stall_seconds:g} s (DG_INPUT_STALL_SECONDS); "
            "a later try may do",
        )

    def _download(self, uri: str, deadline: Deadline) -> bytes:
        """Redirects are followed here and not by the client, so that each hop meets the same rules."""
        url = uri
        for _ in range(MAX_REDIRECTS + 1):
            if deadline.seconds_left <= 0:
                raise too_slow(uri, deadline)
            with self._client.stream("GET", url, timeout=deadline.seconds_left) as response:
                if not response.has_redirect_location:
                    return self._body(response, uri, deadline)
                target = str(response.url.join(response.headers["location"]))
            _check_redirect(uri, url, target)
            url = target
        raise RejectJob(INPUT.not_found, f"{show_uri(uri)}: more than {MAX_REDIRECTS} redirects; use the last address")

    def _body(self, response: httpx2.Response, uri: str, deadline: Deadline) -> bytes:
        if not response.is_success:
            raise _failure(response, uri)
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise too_large(uri, int(announced), self._max_bytes)
        return collect(
            unpacked(response.iter_raw(CHUNK_BYTES), response.headers.get("content-encoding"), uri, self._max_bytes),
            uri,
            self._max_bytes,
            deadline,
        )


def _check_redirect(uri: str, url: str, target: str) -> None:
    scheme = scheme_of(target)
    if scheme not in ("https", "http"):
        raise RejectJob(INPUT.forbidden, f"{show_uri(uri)}: redirects to {show_uri(target)}, which is no web address")
    if scheme == "http" and scheme_of(url) == "https":
        raise RejectJob(INPUT.forbidden, f"{show_uri(uri)}: redirects from https to {show_uri(target)}; use https")


def _failure(response: httpx2.Response, uri: str) -> EditFailure:
    status = response.status_code
    answer = f"{show_uri(uri)}: HTTP {status} {response.reason_phrase}".rstrip()
    if passes(status):
        return Outage(INPUT.unavailable, f"{answer}; a later try may do")
    if status not in FORBIDDING:
        return RejectJob(INPUT.not_found, f"{answer}; check the address")
    words = words_of(response)
    said = f"{answer}: {words}" if words else answer
    if urlsplit(uri).query:
        return RejectJob(INPUT.forbidden, f"{said}; a presigned link may have expired: make a new one")
    return RejectJob(INPUT.forbidden, said, "its host may want a login, or to know who asks: set DG_CONTACT")
