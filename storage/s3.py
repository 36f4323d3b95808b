"""`s3://`: buckets of Amazon S3 and of everything that speaks its protocol, through boto3.

Endpoint, region and credentials are boto3's own settings (`AWS_*`); `DG_BUCKETS` says which buckets may be touched.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    SSLError,
)

from jobs.errors import EditFailure, Outage, RejectJob, SettingsError
from storage.leavable_s3 import make_leavable
from storage.limits import CHUNK_BYTES, DOWNLOAD_SECONDS, Deadline, collect, too_large
from storage.profiles import StoreProfile
from storage.settings import StorageSettings
from storage.store import INPUT, OUTPUT, Content, Side, Store
from storage.unpacking import unpacked
from storage.uris import scheme_of, show_uri

SILENCE_SECONDS = 30.0
"""Longest wait for the store's next bytes."""

CHECK_LASTS_SECONDS = 300
"""Time during which a folder that passed the write check is not checked again."""

EVERY_BUCKET = "*"
MACHINES_OWN = ("iam-role", "container-role")
"""botocore's names for credentials that the machine has, not a profile."""

PASSING = {"ExpiredToken", "RequestTimeout", "OperationAborted", "400"}
"""Codes of errors that pass; a bare 400 is an answer that broke off before its error code."""

REMEDIES = {
    "NoSuchBucket": "there is no such bucket; create it or correct the URI",
    "InvalidAccessKeyId": "the store does not know AWS_ACCESS_KEY_ID; correct it where the worker runs",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not that of AWS_ACCESS_KEY_ID; correct it where the worker runs",
    "RequestTimeTooSkewed": "the clocks of the worker's machine and of the store differ; set them, as NTP does",
    "PermanentRedirect": "the bucket lies in another region; set AWS_DEFAULT_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket lies in another region; set AWS_DEFAULT_REGION to it",
    "IllegalLocationConstraintException": "the bucket lies in another region; set AWS_DEFAULT_REGION to it",
    "InvalidRegionName": "the store does not know that region; set AWS_DEFAULT_REGION to one of its own, or to auto",
    "InvalidToken": "AWS_SESSION_TOKEN is missing or of other credentials; set all three together",
    "InvalidObjectState": "the object is archived; restore it first",
    **dict.fromkeys(
        ("MethodNotAllowed", "SecondLevelDomainForbidden", "PathStyleDomainForbidden", "InvalidPathAccess"),
        "the store may expect the bucket in its host name; set addressing_style = virtual under `s3 =` "
        "in the file that AWS_CONFIG_FILE names",
    ),
}
"""Codes of errors whose mending the code itself tells."""

UNREACHABLE: dict[type[BotoCoreError], str] = {
    SSLError: "write http:// in AWS_ENDPOINT_URL if the store has no TLS, otherwise its authority in AWS_CA_BUNDLE",
    EndpointConnectionError: "start the store or correct AWS_ENDPOINT_URL",
}
"""What mends errors before any answer. They are outages all the same: a store that restarts looks like that."""

INCONCLUSIVE_STATUSES = {400, 411, 412, 501}
"""Answers to a damaged object that say neither that writing is allowed nor that it is not."""

WRONG_MD5 = "AAAAAAAAAAAAAAAAAAAAAA=="  # 16 zero bytes in base64


class Buckets(Store):
    """Reads below the places of `DG_BUCKETS`, `bucket` or `bucket/prefix`; writes there and below `DG_OUTPUT_URI`.

    Args:
        profile: instead of the worker's own access; its places alone are then open.
    Raises:
        SettingsError: boto3 cannot use its settings, or those of the profile.
    """

    def __init__(self, settings: StorageSettings, profile: StoreProfile | None = None) -> None:
        self._max_bytes = settings.max_input_bytes
        if profile is not None:
            self._readable = self._writable = profile.places
        else:
            self._readable = self._writable = settings.buckets
            if scheme_of(settings.output_uri) == "s3":
                self._writable = (*settings.buckets, settings.output_uri[len("s3://") :])
        self._tried: dict[tuple[str, str], float] = {}
        self._client = make_client(profile.name if profile is not None else None)

    def look(self, bucket: str) -> None:
        """Ask for a bucket; raise as `read` does when it is not there, or is refused."""
        with _failures(f"s3://{bucket}", INPUT):
            self._client.head_bucket(Bucket=bucket)

    def read(self, uri: str) -> bytes:
        bucket, key = _allowed(uri, self._readable, INPUT)
        deadline = Deadline(DOWNLOAD_SECONDS)
        with _failures(uri, INPUT):
            answer = self._client.get_object(Bucket=bucket, Key=key)
            with contextlib.closing(answer["Body"]) as body:
                announced = answer.get("ContentLength", 0)
                if announced > self._max_bytes:
                    raise too_large(uri, announced, self._max_bytes)
                chunks = unpacked(body.iter_chunks(CHUNK_BYTES), answer.get("ContentEncoding"), uri, self._max_bytes)
                return collect(chunks, uri, self._max_bytes, deadline)

    def publish(self, uri: str, data: Content, content_type: str) -> None:
        # One request, which takes up to 5 GiB: the object appears when all of it has arrived. An upload in parts would
        # leave them in the bucket, invisible and paid for, when the worker is killed between two.
        bucket, key = _allowed(uri, self._writable, OUTPUT)
        if not isinstance(data, bytes):
            data.seek(0)
        with _failures(uri, OUTPUT):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)

    def check_output(self, uri: str) -> None:
        """Offer an object with a wrong checksum: who may not write is refused for that, who may for the checksum.

        A store that answers otherwise is offered a small object that is right, which is removed again where allowed.
        """
        bucket, key = _allowed(uri, self._writable, OUTPUT)
        folder, now = (bucket, key.rpartition("/")[0]), time.monotonic()
        if self._tried.get(folder, 0) > now:
            return
        with _failures(uri, OUTPUT):
            self._offer_damaged(bucket, f"{key}.write-check")
        # A new dict without what is over: it does not grow for ever, and other threads may be reading the old one.
        lasting = {known: until for known, until in self._tried.items() if until > now}
        self._tried = lasting | {folder: now + CHECK_LASTS_SECONDS}

    def _offer_damaged(self, bucket: str, key: str) -> None:
        # Not the beginning of an upload in parts, which stays in the bucket when its answer is lost on the way.
        try:
            self._client.put_object(Bucket=bucket, Key=key, Body=b"damaged", ContentMD5=WRONG_MD5)
        except ClientError as error:
            if _code_of(error) == "BadDigest":
                return
            if not _is_inconclusive(error):
                raise
            self._client.put_object(Bucket=bucket, Key=key, Body=b"write check")
        with contextlib.suppress(ClientError):  # it was kept, the damaged one by a store that looks at no checksum
            self._client.delete_object(Bucket=bucket, Key=key)

    def close(self) -> None:
        self._client.close()


def make_client(profile: str | None = None) -> Any:  # boto3 makes the class of its clients at run time
    """A client that several threads may use, with bounded waits.

    Args:
        profile: of the AWS configuration; keys, endpoint and region are then its own, whatever `AWS_*` say.

    The person's AWS configuration counts, `addressing_style` too. Without one, a store that is not Amazon's is asked
    with the bucket in the path: buckets as host names need DNS entries that such stores rarely have.

    Raises:
        SettingsError: boto3 cannot use its settings.
    """
    try:
        configuration = botocore.session.Session(profile=profile)
        session = Session(botocore_session=configuration)
        own = {} if profile is None else _own_place(configuration, profile)
        client = _make_client(session, own, addressing_style=None)
        is_chosen = "addressing_style" in (configuration.get_config_variable("s3") or {})
        if is_chosen or _is_amazons(client.meta.endpoint_url):
            return client
        client.close()
        return _make_client(session, own, addressing_style="path")
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(f"S3 cannot be used: {error}; correct the AWS_* variables") from error


def _own_place(configuration: botocore.session.Session, profile: str) -> dict[str, Any]:
    """Endpoint and region of a profile. botocore would let AWS_ENDPOINT_URL and AWS_DEFAULT_REGION win.

    Raises:
        ValueError: it has no keys of its own, for which botocore would take the machine's.
    """
    said = configuration.get_scoped_config()
    credentials = configuration.get_credentials()
    if credentials is None or credentials.method in MACHINES_OWN:
        raise ValueError(f"profile {profile} has no credentials; give it some in the AWS configuration")
    service = configuration.full_config.get("services", {}).get(said.get("services"), {}).get("s3", {})
    endpoint = service.get("endpoint_url") or said.get("endpoint_url")
    return {"endpoint_url": endpoint, "region_name": said.get("region") or ("us-east-1" if endpoint else None)}


def _make_client(session: Session, own: dict[str, Any], addressing_style: str | None) -> Any:
    config = Config(
        connect_timeout=10,
        read_timeout=SILENCE_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=16,
        # Checksums that boto3 adds on its own are refused by many servers that speak S3.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": addressing_style} if addressing_style else None,  # type: ignore[arg-type]
        ignore_configured_endpoint_urls=bool(own) or None,  # type: ignore[call-arg]  # unknown to its stubs
    )
    client = session.client("s3", config=config, **own)
    make_leavable(client)
    return client


def _is_amazons(endpoint_url: str) -> bool:
    return (urlsplit(endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri[len("s3://") :].partition("/")
    return bucket, key


def _allowed(uri: str, places: tuple[str, ...], side: Side) -> tuple[str, str]:
    bucket, key = _bucket_and_key(uri)
    if not is_below(uri, places):
        raise RejectJob(
            side.forbidden,
            f"{show_uri(uri)}: not below a place of DG_BUCKETS",
            "add its bucket, or bucket/prefix, where the worker "
            "runs (`worker check` lists them there)",  # and nobody else: this message goes to whoever sent the job
        )
    if not key:
        raise RejectJob(side.not_found, f"{show_uri(uri)}: names no object; expected s3://bucket/key")
    return bucket, key


def is_below(uri: str, places: tuple[str, ...]) -> bool:
    """True if an `s3://` URI lies below one of the places."""
    bucket, key = _bucket_and_key(uri)
    return any(_holds(place, bucket, key) for place in places)


def _holds(place: str, bucket: str, key: str) -> bool:
    """Report whether an object lies below `bucket`, `bucket/prefix` or `*`."""
    if place in (EVERY_BUCKET, bucket):
        return True
    # A store that resolves dots, as file servers do, would leave the prefix.
    return f"{bucket}/{key}".startswith(f"{place.rstrip('/')}/") and {".", ".."}.isdisjoint(key.split("/"))


@contextlib.contextmanager
def _failures(uri: str, side: Side) -> Iterator[None]:
    """Turn what boto3 raises into a rejection or a retry."""
    try:
        yield
    except ClientError as error:
        raise _refusal(error, uri, side) from error
    except NoCredentialsError as error:
        # Not a rejection: on cloud machines it also means that the metadata service did not answer just now.
        raise Outage(
            side.unavailable,
            f"{show_uri(uri)}: the worker has no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error
    except ParamValidationError as error:
        raise RejectJob(side.not_found, f"{show_uri(uri)}: not a bucket and key that S3 can have") from error
    except BotoCoreError as error:
        remedy = next((said for kind, said in UNREACHABLE.items() if isinstance(error, kind)), "a later try may do")
        raise Outage(side.unavailable, f"{show_uri(uri)}: {error}; {remedy}") from error


def _refusal(error: ClientError, uri: str, side: Side) -> EditFailure:
    """Translate an error answer of the server into a failure of the job."""
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    code = _code_of(error)
    answer = f"{show_uri(uri)}: {code} (HTTP {status})"
    if code == "RequestTimeTooSkewed":  # no fault of the job: it is done when the clocks agree
        return Outage(side.unavailable, f"{answer}: {REMEDIES[code]}")
    if code in REMEDIES:
        return RejectJob(side.not_found if status == 404 else side.forbidden, f"{answer}: {REMEDIES[code]}")
    if status == 404:
        return RejectJob(side.not_found, f"{answer}: check bucket and key")
    if status >= 500 or status in (408, 429) or code in PASSING:
        return Outage(side.unavailable, f"{answer}; a later try may do")
    return RejectJob(side.forbidden, f"{answer}: check the rights of the worker's credentials")


def _is_inconclusive(error: ClientError) -> bool:
    is_known = _code_of(error) in REMEDIES or _code_of(error) in PASSING
    return error.response["ResponseMetadata"]["HTTPStatusCode"] in INCONCLUSIVE_STATUSES and not is_known


def _code_of(error: ClientError) -> str:
    return error.response["Error"].get("Code", "")
