"""`s3://` against a real S3 server that judges signatures and rights."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import EditFailure, ErrorCode, RejectJob, RetryJob, SettingsError
from jobs.settings import load_settings
from storage.s3 import Buckets
from storage.settings import StorageSettings
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import free_port
from tests.servers.s3 import S3Server
from tests.storage.s3_gate import s3_gate

Connect = Callable[..., Buckets]

MIB = 2**20
LIMIT = 12 * MIB


@pytest.fixture
def owner(s3_server: S3Server) -> Iterator[Any]:
    """boto3 as the buckets' owner uses it."""
    client = s3_server.client()
    yield client
    client.close()


@pytest.fixture
def connect(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Makes a worker's view of the server: `connect(AWS_...=..., buckets=..., output_uri=...)`."""
    opened: list[Buckets] = []

    def make(buckets: tuple[str, ...] = ("*",), output_uri: str = "s3://elsewhere", **environment: str) -> Buckets:
        for name, value in (s3_server.environment | environment).items():
            monkeypatch.setenv(name, value)
        settings = load_settings(StorageSettings, buckets=buckets, output_uri=output_uri, max_input_bytes=LIMIT)
        opened.append(Buckets(settings))
        return opened[-1]

    yield make
    for buckets in opened:
        buckets.close()


def failure_of(action: Callable[..., object], *arguments: object) -> EditFailure:
    with pytest.raises(EditFailure) as error:
        action(*arguments)
    assert "\n" not in error.value.message
    return error.value


def uploads_under_way(owner: Any, bucket: str) -> list[str]:
    return [upload["Key"] for upload in owner.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def keys(owner: Any, bucket: str) -> list[str]:
    return [found["Key"] for found in owner.list_objects_v2(Bucket=bucket).get("Contents", [])]


# Reading and publishing


@pytest.mark.parametrize("key", ["cat.png", "in/spring 2026/cat.png", "50%.png", "what?.png", "#1+1.png", "кот.png"])
def test_what_is_published_is_read_again_under_the_same_uri(
    key: str, connect: Connect, owner: Any, s3_bucket: str
) -> None:
    buckets = connect()

    buckets.publish(f"s3://{s3_bucket}/{key}", b"picture", "image/png")

    assert buckets.read(f"s3://{s3_bucket}/{key}") == b"picture"
    assert keys(owner, s3_bucket) == [key]


def test_an_object_carries_its_content_type(connect: Connect, owner: Any, s3_bucket: str) -> None:
    connect().publish(f"s3://{s3_bucket}/cat.webp", b"picture", "image/webp")

    assert owner.head_object(Bucket=s3_bucket, Key="cat.webp")["ContentType"] == "image/webp"


def test_a_repeated_publish_replaces_the_object(connect: Connect, owner: Any, s3_bucket: str) -> None:
    buckets = connect()

    for data in (b"first", b"second"):
        buckets.publish(f"s3://{s3_bucket}/cat.png", data, "image/png")

    assert keys(owner, s3_bucket) == ["cat.png"]
    assert buckets.read(f"s3://{s3_bucket}/cat.png") == b"second"


def test_a_large_picture_goes_in_one_request_and_comes_back_whole(connect: Connect, owner: Any, s3_bucket: str) -> None:
    buckets, picture = connect(), bytes(range(256)) * (9 * MIB // 256)

    buckets.publish(f"s3://{s3_bucket}/cat.png", picture, "image/png")

    head = owner.head_object(Bucket=s3_bucket, Key="cat.png")
    assert "-" not in head["ETag"]  # what an object made of parts would have
    assert head["ContentType"] == "image/png"
    assert buckets.read(f"s3://{s3_bucket}/cat.png") == picture


def test_a_large_upload_that_fails_leaves_neither_object_nor_parts(
    s3_server: S3Server, connect: Connect, owner: Any, s3_bucket: str
) -> None:
    def puts(method: str, path: str) -> int | None:
        return 403 if method == "PUT" else None

    with s3_gate(s3_server.endpoint_url, puts) as endpoint_url:
        buckets = connect(AWS_ENDPOINT_URL=endpoint_url)
        failure = failure_of(buckets.publish, f"s3://{s3_bucket}/cat.png", bytes(9 * MIB), "image/png")

    assert failure.code is ErrorCode.OUTPUT_FORBIDDEN
    assert keys(owner, s3_bucket) == []
    assert uploads_under_way(owner, s3_bucket) == []


def test_an_object_stored_packed_is_unpacked_within_the_limit(connect: Connect, owner: Any, s3_bucket: str) -> None:
    for key, content in {"a.png": b"picture", "bomb.png": bytes(LIMIT + 1)}.items():
        owner.put_object(Bucket=s3_bucket, Key=key, Body=gzip.compress(content), ContentEncoding="gzip")
    buckets = connect()

    assert buckets.read(f"s3://{s3_bucket}/a.png") == b"picture"
    assert failure_of(buckets.read, f"s3://{s3_bucket}/bomb.png").code is ErrorCode.INPUT_TOO_LARGE


def test_threads_share_one_client(connect: Connect, s3_bucket: str) -> None:
    buckets = connect()

    def round_trip(number: int) -> bytes:
        uri = f"s3://{s3_bucket}/{number}.png"
        buckets.publish(uri, bytes([number]), "image/png")
        return buckets.read(uri)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(round_trip, range(16))) == [bytes([number]) for number in range(16)]


def test_an_input_of_the_largest_size_is_read_and_a_larger_one_refused(
    connect: Connect, owner: Any, s3_bucket: str
) -> None:
    owner.put_object(Bucket=s3_bucket, Key="large", Body=bytes(LIMIT))
    owner.put_object(Bucket=s3_bucket, Key="larger", Body=bytes(LIMIT + 1))
    buckets = connect()

    assert len(buckets.read(f"s3://{s3_bucket}/large")) == LIMIT
    failure = failure_of(buckets.read, f"s3://{s3_bucket}/larger")
    assert failure.code is ErrorCode.INPUT_TOO_LARGE
    assert f"{LIMIT + 1} bytes, but DG_MAX_INPUT_BYTES is {LIMIT}" in failure.message


# Which buckets


def test_a_bucket_that_is_not_allowed_is_neither_read_nor_written(connect: Connect, s3_bucket: str) -> None:
    buckets, uri = connect(buckets=("cats", "dogs")), f"s3://{s3_bucket}/cat.png"

    reading = failure_of(buckets.read, uri)
    writing = failure_of(buckets.publish, uri, b"picture", "image/png")

    assert isinstance(reading, RejectJob)
    assert reading.message == (
        f"{uri}: not below a place of DG_BUCKETS; "
        "add its bucket, or bucket/prefix, where the worker runs (`worker check` lists them there)"
    )
    assert (reading.code, writing.code) == (ErrorCode.INPUT_FORBIDDEN, ErrorCode.OUTPUT_FORBIDDEN)
    assert failure_of(buckets.check_output, uri).code is ErrorCode.OUTPUT_FORBIDDEN


def test_the_output_bucket_may_be_written_and_not_read(connect: Connect, s3_bucket: str) -> None:
    buckets, uri = connect(buckets=(), output_uri=f"s3://{s3_bucket}/out"), f"s3://{s3_bucket}/out/cat.png"

    buckets.check_output(uri)
    buckets.publish(uri, b"picture", "image/png")

    assert "not below a place of DG_BUCKETS; add" in failure_of(buckets.read, uri).message


# What the server says


def test_what_is_not_there_is_rejected(connect: Connect, s3_bucket: str) -> None:
    buckets = connect()

    no_object = failure_of(buckets.read, f"s3://{s3_bucket}/cat.png")
    no_bucket = failure_of(buckets.read, "s3://no-such-bucket/cat.png")

    assert isinstance(no_object, RejectJob)
    assert isinstance(no_bucket, RejectJob)
    assert no_object.code is no_bucket.code is ErrorCode.INPUT_NOT_FOUND
    assert no_object.message == f"s3://{s3_bucket}/cat.png: NoSuchKey (HTTP 404): check bucket and key"
    assert "there is no such bucket; create it or correct the URI" in no_bucket.message


@pytest.mark.parametrize("uri", ["s3://{bucket}", "s3://{bucket}/", "s3://a b/cat.png"])
def test_what_names_no_object_is_rejected(uri: str, connect: Connect, s3_bucket: str) -> None:
    failure = failure_of(connect().read, uri.format(bucket=s3_bucket))

    assert isinstance(failure, RejectJob)
    assert failure.code is ErrorCode.INPUT_NOT_FOUND


def test_publishing_to_an_unknown_bucket_is_rejected_and_checking_finds_it(connect: Connect) -> None:
    buckets, uri = connect(), "s3://no-such-bucket/cat.png"

    assert failure_of(buckets.check_output, uri).code is ErrorCode.OUTPUT_NOT_FOUND
    assert failure_of(buckets.publish, uri, b"picture", "image/png").code is ErrorCode.OUTPUT_NOT_FOUND


def test_a_wrong_secret_is_rejected_and_checking_finds_it(connect: Connect, s3_bucket: str) -> None:
    buckets, uri = connect(AWS_SECRET_ACCESS_KEY="guessed"), f"s3://{s3_bucket}/cat.png"

    reading = failure_of(buckets.read, uri)

    assert isinstance(reading, RejectJob)
    assert reading.code is ErrorCode.INPUT_FORBIDDEN
    assert "SignatureDoesNotMatch (HTTP 403): AWS_SECRET_ACCESS_KEY is not that of AWS_ACCESS_KEY_ID" in reading.message
    assert failure_of(buckets.check_output, uri).code is ErrorCode.OUTPUT_FORBIDDEN
    assert failure_of(buckets.publish, uri, b"picture", "image/png").code is ErrorCode.OUTPUT_FORBIDDEN


def test_missing_credentials_are_named(connect: Connect, s3_bucket: str) -> None:
    buckets = connect(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")

    failure = failure_of(buckets.read, f"s3://{s3_bucket}/cat.png")

    assert isinstance(failure, RetryJob)
    assert "the worker has no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in failure.message


def test_settings_that_boto3_cannot_use_are_an_error_of_the_settings(connect: Connect) -> None:
    with pytest.raises(SettingsError, match=r"^S3 cannot be used: .*correct the AWS_\* variables"):
        connect(AWS_ENDPOINT_URL="minio:9000")


def test_a_server_that_is_not_there_is_a_reason_to_try_again(
    connect: Connect, s3_bucket: str, quick_retries: None
) -> None:
    buckets = connect(AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")

    reading = failure_of(buckets.read, f"s3://{s3_bucket}/cat.png")

    assert isinstance(reading, RetryJob)
    assert reading.code is ErrorCode.INPUT_UNREACHABLE
    assert "Could not connect to the endpoint URL" in reading.message


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_trouble_of_the_server_is_a_reason_to_try_again(
    status: int, s3_server: S3Server, connect: Connect, s3_bucket: str, quick_retries: None
) -> None:
    asked: list[str] = []

    def always(method: str, path: str) -> int:
        asked.append(path)
        return status

    with s3_gate(s3_server.endpoint_url, always) as endpoint_url:
        buckets = connect(AWS_ENDPOINT_URL=endpoint_url)
        failure = failure_of(buckets.publish, f"s3://{s3_bucket}/cat.png", b"picture", "image/png")

    assert isinstance(failure, RetryJob)
    assert failure.code is ErrorCode.OUTPUT_UNAVAILABLE
    assert len(asked) == 3


def test_an_input_that_breaks_off_is_not_taken_for_whole(
    s3_server: S3Server, connect: Connect, owner: Any, s3_bucket: str
) -> None:
    owner.put_object(Bucket=s3_bucket, Key="cat.png", Body=bytes(100_000))

    with s3_gate(s3_server.endpoint_url, lambda method, path: 0) as endpoint_url:
        failure = failure_of(connect(AWS_ENDPOINT_URL=endpoint_url).read, f"s3://{s3_bucket}/cat.png")

    assert isinstance(failure, RetryJob)
    assert failure.code is ErrorCode.INPUT_UNREACHABLE


def error_answer(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode())


@pytest.mark.parametrize(
    ("status", "code", "kind", "error_code", "words"),
    [
        (403, "AccessDenied", RejectJob, ErrorCode.OUTPUT_FORBIDDEN, "check the rights"),
        (404, "NoSuchBucket", RejectJob, ErrorCode.OUTPUT_NOT_FOUND, "there is no such bucket"),
        (403, "InvalidAccessKeyId", RejectJob, ErrorCode.OUTPUT_FORBIDDEN, "does not know AWS_ACCESS_KEY_ID"),
        (403, "RequestTimeTooSkewed", RetryJob, ErrorCode.OUTPUT_UNAVAILABLE, "the clocks of the worker's machine"),
        (400, "AuthorizationHeaderMalformed", RejectJob, ErrorCode.OUTPUT_FORBIDDEN, "set AWS_DEFAULT_REGION"),
        (405, "MethodNotAllowed", RejectJob, ErrorCode.OUTPUT_FORBIDDEN, "set addressing_style"),
    ],
)
def test_a_refusal_tells_what_is_wrong_and_what_to_do(
    status: int, code: str, kind: type[EditFailure], error_code: ErrorCode, words: str,
    connect: Connect, http_server: HttpServer,
) -> None:  # fmt: skip
    http_server.answer("/pics/out/cat.png.write-check", error_answer(status, code))
    http_server.answer("/pics/out/cat.png", error_answer(status, code))
    buckets = connect(AWS_ENDPOINT_URL=http_server.url(""))

    checking = failure_of(buckets.check_output, "s3://pics/out/cat.png")
    publishing = failure_of(buckets.publish, "s3://pics/out/cat.png", b"picture", "image/png")

    for failure in (checking, publishing):
        assert isinstance(failure, kind)
        assert failure.code is error_code
        assert f"{code} (HTTP {status}): " in failure.message
        assert words in failure.message


# Checking


def test_checking_leaves_nothing_in_the_bucket(connect: Connect, owner: Any, s3_bucket: str) -> None:
    connect().check_output(f"s3://{s3_bucket}/out/cat.png")

    assert keys(owner, s3_bucket) == []
    assert uploads_under_way(owner, s3_bucket) == []


def test_a_folder_that_could_be_written_is_not_asked_about_for_each_job(
    s3_server: S3Server, connect: Connect, s3_bucket: str
) -> None:
    asked: list[str] = []

    with s3_gate(s3_server.endpoint_url, lambda method, path: asked.append(path)) as endpoint_url:
        buckets = connect(AWS_ENDPOINT_URL=endpoint_url)
        for name in ("1.png", "2.png", "3.png"):
            buckets.check_output(f"s3://{s3_bucket}/out/{name}")
        assert len(asked) == 1

        buckets.check_output(f"s3://{s3_bucket}/elsewhere/1.png")
        assert len(asked) == 2


CHECKED = "/pics/out/cat.png.write-check"


@pytest.mark.parametrize(("status", "code"), [(400, "InvalidDigest"), (501, "NotImplemented"), (400, "InvalidRequest")])
def test_a_store_that_takes_no_damaged_object_for_another_reason_is_offered_a_right_one(
    status: int, code: str, connect: Connect, http_server: HttpServer, quick_retries: None
) -> None:
    http_server.answer(CHECKED, error_answer(status, code), Answer(200), Answer(204))

    connect(AWS_ENDPOINT_URL=http_server.url("")).check_output("s3://pics/out/cat.png")

    asked = http_server.requests(CHECKED)
    assert [request.method for request in asked] == ["PUT", "PUT", "DELETE"]
    assert "content-md5" not in asked[1].headers


def test_a_right_object_that_is_refused_too_is_the_answer(connect: Connect, http_server: HttpServer) -> None:
    http_server.answer(CHECKED, error_answer(400, "InvalidDigest"), error_answer(403, "AccessDenied"))

    failure = failure_of(connect(AWS_ENDPOINT_URL=http_server.url("")).check_output, "s3://pics/out/cat.png")

    assert failure.code is ErrorCode.OUTPUT_FORBIDDEN
    assert "AccessDenied (HTTP 403): check the rights" in failure.message


@pytest.mark.parametrize(
    ("configuration", "path"),
    [
        ("", "/pics/cat.png"),
        ("[default]\ns3 =\n  addressing_style = virtual\n", "/cat.png"),
        ("[default]\ns3 =\n  addressing_style = path\n", "/pics/cat.png"),
        ("[default]\nendpoint_url = {url}\n", "/pics/cat.png"),
    ],
)
def test_the_persons_aws_configuration_counts(
    configuration: str, path: str, connect: Connect, http_server: HttpServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    endpoint_url = http_server.url("").replace("127.0.0.1", "localhost")  # pics.localhost is this machine too
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: resolve("localhost" if "." in host else host, *more, **named),
    )
    (tmp_path / "config").write_text(configuration.format(url=endpoint_url))
    http_server.answer(path, Answer(200, b"picture"))
    given = {} if "endpoint_url" in configuration else {"AWS_ENDPOINT_URL": endpoint_url}
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    buckets = connect(**({"AWS_ENDPOINT_URL": ""} | given))

    assert buckets.read("s3://pics/cat.png") == b"picture"


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 repeats a failed request at once; its own pauses grow to seconds."""
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0)


@pytest.mark.parametrize(
    ("places", "output_uri", "key", "may_read", "may_write"),
    [
        ((), "s3://{bucket}/out", "out/a.png", False, True),
        ((), "s3://{bucket}/out", "out2/a.png", False, False),
        ((), "s3://{bucket}/out", "secret.png", False, False),
        ((), "s3://{bucket}", "secret.png", False, True),
        (("{bucket}/in",), "s3://elsewhere", "in/a.png", True, True),
        (("{bucket}/in/",), "s3://elsewhere", "in/a.png", True, True),
        (("{bucket}/in",), "s3://elsewhere", "inside.png", False, False),
        (("{bucket}/in",), "s3://elsewhere", "in", False, False),
        (("s3://{bucket}/in",), "s3://elsewhere", "in/a.png", True, True),
        (("s3://{bucket}/in",), "s3://elsewhere", "in/../secret.png", False, False),
        (("{bucket}",), "s3://elsewhere", "in/a.png", True, True),
        (("*",), "s3://elsewhere", "in/a.png", True, True),
    ],
)
def test_a_prefix_opens_what_lies_below_it_and_no_more(
    places: tuple[str, ...], output_uri: str, key: str, may_read: bool, may_write: bool,
    connect: Callable[..., Buckets], s3_bucket: str, owner: Any,
) -> None:  # fmt: skip
    owner.put_object(Bucket=s3_bucket, Key=key, Body=b"picture")
    opened = tuple(place.format(bucket=s3_bucket) for place in places)
    buckets = connect(buckets=opened, output_uri=output_uri.format(bucket=s3_bucket))

    for is_allowed, ask in (
        (may_read, lambda: buckets.read(f"s3://{s3_bucket}/{key}")),
        (may_write, lambda: buckets.check_output(f"s3://{s3_bucket}/{key}")),
        (may_write, lambda: buckets.publish(f"s3://{s3_bucket}/{key}", b"new", "image/png")),
    ):
        if is_allowed:
            ask()
        else:
            with pytest.raises(RejectJob, match="not below a place of DG_BUCKETS"):
                ask()
