"""When inputs on the web and in buckets were last changed, as their servers tell it."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from urllib.request import Request, urlopen

from jobs.errors import Error
from jobs.schema import EditJob
from producer.buckets import bucket_failures, open_client
from storage.uris import scheme_of

REQUESTS_AT_ONCE = 16
PATIENCE_SECONDS = 20.0
"""For one server's answer."""


def remote_inputs(job: EditJob) -> list[str]:
    """The inputs and LoRAs of a job that lie on the web or in a bucket."""
    uris = [*job.image, *(lora.uri for lora in job.params.loras)]
    return [uri for uri in uris if scheme_of(uri) in ("http", "https", "s3")]


def last_changes(uris: Collection[str]) -> dict[str, float]:
    """Ask each server once, some at the same time.

    Returns:
        Seconds since 1970 by URI. One whose server does not answer, or tells no date, is left out.
    Raises:
        SetupError: a bucket was named and boto3 is not installed.
        SettingsError: boto3 cannot use its settings.
    """
    client = open_client() if any(scheme_of(uri) == "s3" for uri in uris) else None

    def ask(uri: str) -> float | None:
        try:
            if scheme_of(uri) != "s3":
                return _told_by_web(uri)
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            with bucket_failures(uri, "cannot be looked at"):
                assert client is not None
                return float(client.head_object(Bucket=bucket, Key=key)["LastModified"].timestamp())
        except (Error, OSError, HTTPException, ValueError):  # the job itself would say what is wrong with it
            return None

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        told = zip(uris, pool.map(ask, uris), strict=True)
        return {uri: seconds for uri, seconds in told if seconds is not None}


def _told_by_web(uri: str) -> float | None:
    with urlopen(Request(uri, method="HEAD"), timeout=PATIENCE_SECONDS) as answer:
        said = answer.headers.get("Last-Modified")
    return parsedate_to_datetime(said).timestamp() if said else None
