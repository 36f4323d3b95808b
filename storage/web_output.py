"""`https://` and `http://` outputs: one PUT to an address that was signed for it, such as a presigned link.

Nothing is open unless `DG_OUTPUT_HOSTS` names the host: a PUT replaces what is there, and a host that inputs may be
read from need not be meant to be written.
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

import httpx2

from jobs.errors import EditFailure, Outage, RejectJob
from storage.addresses import ForbiddenAddress
from storage.guarded_http import guarded_client
from storage.refusals import passes, words_of
from storage.settings import StorageSettings
from storage.store import OUTPUT, Content, Store
from storage.uris import show_uri

UPLOAD_SECONDS = 120.0
"""For one output, from its host's addresses to the answer."""

SILENCE_SECONDS = 30.0


class WebOutputs(Store):
    """Puts outputs to the hosts of `DG_OUTPUT_HOSTS`; follows no redirect."""

    def __init__(self, settings: StorageSettings) -> None:
        self._hosts = settings.output_hosts
        self._client = guarded_client(settings, UPLOAD_SECONDS, SILENCE_SECONDS)

    def read(self, uri: str) -> bytes:
        raise RejectJob(OUTPUT.forbidden, f"{show_uri(uri)}: was only ever written")

    def publish(self, uri: str, data: Content, content_type: str) -> None:
        self.check_output(uri)
        if not isinstance(data, bytes):
            data.seek(0)
            data = data.read()
        try:
            with self._client.stream("PUT", uri, content=data, headers={"Content-Type": content_type}) as response:
                if not response.is_success:
                    raise _failure(response, uri, content_type)
        except ForbiddenAddress as error:
            raise RejectJob(OUTPUT.forbidden, f"{show_uri(uri)}: {error.reason}", error.remedy) from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise RejectJob(OUTPUT.not_found, f"{show_uri(uri)}: not a web address ({error})") from error
        except httpx2.HTTPError as error:
            raise Outage(OUTPUT.unavailable, f"{show_uri(uri)}: {error}; a later try may do") from error

    def check_output(self, uri: str) -> None:
        """Check that the host is open; whether the link is good, only the output itself can try."""
        host = (urlsplit(uri).hostname or "").rstrip(".").lower()
        if not any(_names(entry, host) for entry in self._hosts):
            raise RejectJob(
                OUTPUT.forbidden,
                f"{show_uri(uri)}: outputs may not go to {host}",
                "name it in DG_OUTPUT_HOSTS where the worker runs",
            )

    def close(self) -> None:
        self._client.close()


def _names(entry: str, host: str) -> bool:
    """True if an entry, `host`, `.domain` for all hosts below it, or `*`, names the host."""
    return entry in ("*", host) or (entry.startswith(".") and host.endswith(entry))


def _failure(response: httpx2.Response, uri: str, content_type: str) -> EditFailure:
    status = response.status_code
    answer = f"{show_uri(uri)}: HTTP {status} {response.reason_phrase}".rstrip()
    if passes(status):
        return Outage(OUTPUT.unavailable, f"{answer}; a later try may do")
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return RejectJob(OUTPUT.not_found, f"{answer}; check the address")
    words = words_of(response)
    said = f"{answer}: {words}" if words else answer
    advice = f"sign the link for PUT of {content_type}, and for longer than a job may wait"
    return RejectJob(OUTPUT.forbidden, f"{said}; {advice}")
