"""Outputs by presigned links: put where the operator has opened the host, and every refusal told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from jobs.errors import EditFailure, ErrorCode, Outage, RejectJob
from jobs.settings import load_settings
from storage import Storage
from storage.settings import StorageSettings
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import free_port
from tests.servers.s3 import S3Server

SIGNATURE = "X-Amz-Signature=s3cret"
OpenStorage = Callable[..., Storage]


@pytest.fixture
def open_storage() -> Iterator[OpenStorage]:
    opened: list[Storage] = []

    def make(*hosts: str, private: tuple[str, ...] = ("127.0.0.1",)) -> Storage:
        opened.append(Storage(load_settings(StorageSettings, output_hosts=hosts, private_hosts=private)))
        return opened[-1]

    yield make
    for storage in opened:
        storage.close()


def failure_of(storage: Storage, url: str) -> EditFailure:
    with pytest.raises(EditFailure) as caught:
        storage.publish(url, b"image", "image/png")
    assert "s3cret" not in caught.value.message
    return caught.value


def test_an_output_goes_to_the_bucket_that_its_link_was_signed_for(
    open_storage: OpenStorage, s3_server: S3Server, s3_bucket: str
) -> None:
    owner = s3_server.client()
    signed_for = {"Bucket": s3_bucket, "Key": "out/a.png", "ContentType": "image/png"}
    link = owner.generate_presigned_url("put_object", Params=signed_for, ExpiresIn=600)
    storage = open_storage("127.0.0.1")

    storage.check_output(link)
    for data in (b"first", b"image"):
        storage.publish(link, data, "image/png")

    stored = owner.get_object(Bucket=s3_bucket, Key="out/a.png")
    assert (stored["Body"].read(), stored["ContentType"]) == (b"image", "image/png")
    tampered = failure_of(storage, link.replace("a.png", "b.png"))
    assert (type(tampered), tampered.code) == (RejectJob, ErrorCode.OUTPUT_FORBIDDEN)
    assert "SignatureDoesNotMatch" in tampered.message
    assert "sign the link for PUT of image/png" in tampered.message
    owner.close()


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (404, RejectJob, ErrorCode.OUTPUT_NOT_FOUND),
        (403, RejectJob, ErrorCode.OUTPUT_FORBIDDEN),
        (302, RejectJob, ErrorCode.OUTPUT_FORBIDDEN),
        (429, Outage, ErrorCode.OUTPUT_UNAVAILABLE),
        (503, Outage, ErrorCode.OUTPUT_UNAVAILABLE),
    ],
)
def test_what_a_host_answers_is_told_apart(
    open_storage: OpenStorage, http_server: HttpServer, status: int, kind: type[EditFailure], code: ErrorCode
) -> None:
    link = http_server.answer("/a.png", Answer(status, headers={"Location": "/b.png"})) + f"?{SIGNATURE}"

    failure = failure_of(open_storage("127.0.0.1"), link)

    assert (type(failure), failure.code) == (kind, code)
    assert f"HTTP {status}" in failure.message
    assert http_server.requests("/b.png") == []


def test_a_host_that_is_away_is_an_outage(open_storage: OpenStorage) -> None:
    failure = failure_of(open_storage("127.0.0.1"), f"http://127.0.0.1:{free_port()}/a.png?{SIGNATURE}")

    assert (type(failure), failure.code) == (Outage, ErrorCode.OUTPUT_UNAVAILABLE)


@pytest.mark.parametrize(
    ("hosts", "private", "said"),
    [
        ((), ("127.0.0.1",), "outputs may not go to 127.0.0.1; name it in DG_OUTPUT_HOSTS"),
        (("example.org", ".0.1x"), ("127.0.0.1",), "outputs may not go to 127.0.0.1"),
        (("*",), (), "127.0.0.1 is a loopback address; name it in DG_PRIVATE_HOSTS"),
    ],
)
def test_nothing_is_put_where_the_operator_has_not_opened(
    open_storage: OpenStorage, http_server: HttpServer, hosts: tuple[str, ...], private: tuple[str, ...], said: str
) -> None:
    link = http_server.answer("/a.png", Answer(200))

    failure = failure_of(open_storage(*hosts, private=private), link)

    assert failure.code is ErrorCode.OUTPUT_FORBIDDEN
    assert said in failure.message
    assert http_server.requests("/a.png") == []


@pytest.mark.parametrize(
    ("entry", "host", "is_open"),
    [
        ("b.s3.example.com", "b.s3.example.com", True),
        ("b.s3.example.com", "B.S3.example.com.", True),
        (".example.com", "b.s3.example.com", True),
        (".example.com", "example.com", False),
        ("example.com", "b.example.com", False),
        (".example.com", "evilexample.com", False),
        ("*", "anything.example", True),
    ],
)
def test_hosts_are_named_whole_or_by_their_domain(
    open_storage: OpenStorage, entry: str, host: str, is_open: bool
) -> None:
    storage, link = open_storage(entry), f"https://{host}/a.png?{SIGNATURE}"
    if is_open:
        storage.check_output(link)
        return
    with pytest.raises(RejectJob, match="DG_OUTPUT_HOSTS"):
        storage.check_output(link)
