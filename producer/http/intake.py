"""Inputs and jobs of callers: what they may name, and where their uploads go."""

from __future__ import annotations

import hashlib
import io
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpcore2
from starlette.datastructures import UploadFile

from jobs.errors import ErrorCode
from jobs.schema import MAX_IMAGES, Callback, EditJob
from producer.http.faults import wrong
from producer.http.keys import Caller
from producer.http.settings import HttpSettings
from storage import Storage
from storage.addresses import AddressRules
from storage.limits import too_large
from storage.proxy import objection_to_name
from storage.resolver import resolve
from storage.uris import scheme_of, show_uri

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/heic": ".heic"}
CALLERS_SCHEMES = "an upload, an https:// address or a data: URI"

GivenImage = UploadFile | str
"""An input as a caller gives it: an upload or a URI."""


@dataclass
class Intake:
    """Takes what callers send. Every method blocks: it reads, writes, and asks DNS."""

    settings: HttpSettings
    storage: Storage

    def place(self, images: Sequence[GivenImage], caller: Caller) -> list[str]:
        """Put inputs where workers read them, each under a hash of its content, and return their URIs.

        An address on the web is fetched now, by the rules for strangers: workers may reach hosts that callers may not.

        Raises:
            HttpFault: an input that callers may not name.
            EditFailure: one cannot be read, or not be stored.
        """
        if not 1 <= len(images) <= MAX_IMAGES:
            raise wrong("image", f"expected 1 to {MAX_IMAGES} images, not {len(images)}")
        return [self._place(image, caller) for image in images]

    def admit(self, job: EditJob, caller: Caller) -> EditJob:
        """The caller's job as it goes into the queue: of its tenant, with names of its own.

        Raises:
            HttpFault: the job names what only operators may.
        """
        if caller.tenant is not None:
            if job.tenant not in (None, caller.tenant):
                raise wrong("tenant", f"the key is that of {caller.tenant}; leave tenant out")
            if job.priority == "high":
                raise wrong("priority", "callers may ask for normal or low")
        if job.output is not None and not self._is_callers(job.output):
            raise wrong("output", "callers name no place for outputs; GET the image from the job's address")
        if job.store_profile is not None:
            raise wrong("store_profile", "callers name no store profile; leave it out")
        for lora in job.params.loras:
            if scheme_of(lora.uri) != "hf" and not self._is_callers(lora.uri):
                raise wrong("params.loras", f"{show_uri(lora.uri)}: callers may name hf:// alone")
        if job.callback is not None:
            self._check_receiver(job.callback)
        return job.model_copy(
            update={
                "tenant": caller.tenant or job.tenant,
                "batch": caller.own(job.batch) if job.batch else None,
            }
        )

    def _place(self, image: GivenImage, caller: Caller) -> str:
        if isinstance(image, UploadFile):
            if (image.size or 0) > self.settings.max_input_bytes:
                raise too_large(image.filename or "image", image.size or 0, self.settings.max_input_bytes)
            return self._keep(image.file, image.content_type or "", caller)
        scheme = scheme_of(image)
        if scheme == "s3" and self._is_callers(image):
            return image
        if scheme not in ("https", "http", "data"):
            raise wrong("image", f"{show_uri(image)}: expected {CALLERS_SCHEMES}", ErrorCode.INPUT_FORBIDDEN)
        kind = image[5:].partition(",")[0].partition(";")[0] if scheme == "data" else None
        kind = kind or mimetypes.guess_type(urlsplit(image).path)[0] or ""
        return self._keep(io.BytesIO(self.storage.read(image)), kind, caller)

    def _keep(self, file: BinaryIO, kind: str, caller: Caller) -> str:
        if not file.seek(0, io.SEEK_END):
            raise wrong("image", "is empty", ErrorCode.INPUT_NOT_AN_IMAGE)
        file.seek(0)
        # By content, so that the same request again is the same job.
        readable: Any = file  # the library's types want less than BinaryIO has
        digest = hashlib.file_digest(readable, "sha256").hexdigest()
        uri = f"{self.settings.uploads}/{caller.tenant or 'local'}/{digest}{SUFFIXES.get(kind, '')}"
        self.storage.publish(uri, file, kind or "application/octet-stream")
        return uri

    def _is_callers(self, uri: str) -> bool:
        """True if `DG_HTTP_BUCKETS` lets callers name the URI."""
        scheme, _, place = uri.partition("://")
        named = (f"{allowed}/" for allowed in self.settings.http_buckets)
        return scheme.lower() == "s3" and place.startswith(tuple(named))

    def _check_receiver(self, callback: Callback) -> None:
        """Refuse a receiver that only the workers' network can reach; redirects of receivers are never followed.

        A proxy (`DG_PROXY`) alone knows what names lead to, so then they are judged as they are written.
        """
        parts = urlsplit(callback.url)
        host, port = parts.hostname or "", parts.port or {"https": 443}.get(parts.scheme, 80)
        if self.settings.proxy is not None:
            objections = [objection_to_name(self._rules, host, port)]
        else:
            objections = [self._rules.objection(host, address, port) for address in _addresses(host, port)]
        for objection in objections:
            if objection is not None:
                raise wrong("callback.url", objection.reason, ErrorCode.INPUT_FORBIDDEN)

    @cached_property
    def _rules(self) -> AddressRules:
        return AddressRules.parse((), self.settings.ports)


def _addresses(host: str, port: int) -> list[str]:
    try:
        return resolve(host, port)
    except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
        raise wrong("callback.url", f"{host}: its name leads nowhere") from error
