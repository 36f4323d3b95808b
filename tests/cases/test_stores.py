"""Stores, web hosts, Redis and settings as people have them: those of `README.md`, and others of the same kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import EditFailure, ErrorCode, Outage, RejectJob, SettingsError
from jobs.settings import load_settings
from storage.s3 import Buckets
from storage.settings import StorageSettings
from storage.web import Web
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import free_port

ADDRESSING = "set addressing_style = virtual"
REGION = "set AWS_DEFAULT_REGION"


@pytest.fixture
def at_the_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Buckets]]:
    """Buckets that a test opens, closed behind it; credentials are set, and failed requests repeat at once."""
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    opened: list[Buckets] = []
    yield opened
    for buckets in opened:
        buckets.close()


def store_at(url: str, opened: list[Buckets], monkeypatch: pytest.MonkeyPatch) -> Buckets:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    opened.append(Buckets(load_settings(StorageSettings, buckets="s3://buck")))
    return opened[-1]


def error_of(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode())


def failure_of(buckets: Buckets, uri: str = "s3://buck/cat.png") -> EditFailure:
    with pytest.raises(EditFailure) as caught:
        buckets.check_output(uri)
    assert "\n" not in caught.value.message
    return caught.value


def test_a_store_that_can_be_written_is_found_writable_whatever_it_says_of_checksums(
    at_the_store: list[Buckets], http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "garage": error_of(400, "InvalidDigest"),
        "most": error_of(400, "BadDigest"),
        "some": error_of(501, "NotImplemented"),
        "careless": Answer(200),
    }
    for name, answer in answers.items():
        http_server.answer(f"/buck/{name}/cat.png.write-check", answer, Answer(200), Answer(204))
    buckets = store_at(http_server.url(""), at_the_store, monkeypatch)

    for name in answers:
        buckets.check_output(f"s3://buck/{name}/cat.png")


REFUSALS: dict[str, tuple[int, type[EditFailure], str]] = {
    "SecondLevelDomainForbidden": (403, RejectJob, ADDRESSING),  # Alibaba OSS
    "PathStyleDomainForbidden": (403, RejectJob, ADDRESSING),  # Tencent COS
    "InvalidPathAccess": (403, RejectJob, ADDRESSING),  # Volcengine TOS
    "MethodNotAllowed": (405, RejectJob, ADDRESSING),
    "PermanentRedirect": (301, RejectJob, REGION),
    "IllegalLocationConstraintException": (400, RejectJob, REGION),
    "InvalidRegionName": (400, RejectJob, f"{REGION} to one of its own, or to auto"),  # Cloudflare R2
    "NoSuchBucket": (404, RejectJob, "there is no such bucket"),
    "InvalidAccessKeyId": (403, RejectJob, "does not know AWS_ACCESS_KEY_ID"),
    "InvalidToken": (400, RejectJob, "AWS_SESSION_TOKEN is missing"),
    "AccessDenied": (403, RejectJob, "check the rights"),
    "RequestTimeTooSkewed": (403, Outage, "the clocks"),
    "ExpiredToken": (400, Outage, "a later try may do"),
    "XMinioStorageFull": (507, Outage, "a later try may do"),
    "InternalError": (500, Outage, "a later try may do"),
}


def test_a_store_that_refuses_is_told_apart(
    at_the_store: list[Buckets], http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = store_at(http_server.url(""), at_the_store, monkeypatch)
    for code, (status, kind, said) in REFUSALS.items():
        http_server.answer(f"/buck/{code}/cat.png.write-check", error_of(status, code))

        failure = failure_of(buckets, f"s3://buck/{code}/cat.png")

        assert isinstance(failure, kind), code
        assert f"{code} (HTTP {status})" in failure.message
        assert said in failure.message


def test_a_store_that_is_not_reached_is_told_apart_from_one_without_tls(
    at_the_store: list[Buckets], http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = failure_of(store_at(http_server.url("").replace("http:", "https:"), at_the_store, monkeypatch))
    absent = failure_of(store_at(f"http://127.0.0.1:{free_port()}", at_the_store, monkeypatch))

    assert isinstance(plain, Outage)
    assert "write http:// in AWS_ENDPOINT_URL if the store has no TLS" in plain.message
    assert isinstance(absent, Outage)
    assert "start the store or correct AWS_ENDPOINT_URL" in absent.message


HTML = (
    "<html><head><title>Forbidden</title><style>p {}</style></head><body><p>Set a user&#8209;agent.</p></body></html>"
)
EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message><HostId>5ec2e7</HostId></Error>"
LOGIN = "its host may want a login, or to know who asks: set DG_CONTACT"
LINK = "a presigned link may have expired: make a new one"

WORDS: dict[str, tuple[str, Answer, str]] = {
    "text": (
        "/a.png",
        Answer(403, b"Please set a user-agent.\n", {"Content-Type": "text/plain"}),
        f"403 Forbidden: Please set a user-agent.; {LOGIN}",
    ),
    "a web page": ("/a.png", Answer.html(HTML, 403), f"403 Forbidden: Forbidden Set a user\u2011agent.; {LOGIN}"),
    "JSON": (
        "/a.png",
        Answer(401, b'{"error": "who are you?"}', {"Content-Type": "application/json"}),
        f'401 Unauthorized: {{"error": "who are you?"}}; {LOGIN}',
    ),
    "an expired link": (
        "/a.png?X-Amz-Signature=5ec2e7",
        Answer(403, EXPIRED, {"Content-Type": "application/xml"}),
        f"/a.png?...: HTTP 403 Forbidden: AccessDenied: Request has expired; {LINK}",
    ),
    "nothing": ("/a.png", Answer(403), f"403 Forbidden; {LOGIN}"),
    "bytes": ("/a.png", Answer(403, b"\0\1", {"Content-Type": "image/png"}), f"403 Forbidden; {LOGIN}"),
    "much text": ("/a.png", Answer(403, b"no " * 50_000, {"Content-Type": "text/plain"}), f"no n...; {LOGIN}"),
    "lines and signs": (
        "/a.png",
        Answer(403, b"a\r\n\x1b[31mb\xff", {"Content-Type": "text/plain"}),
        ": a [31mb\ufffd; ",
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_host_that_forbids_is_quoted(case: str, http_server: HttpServer) -> None:
    path, answer, said = WORDS[case]
    http_server.answer(path.partition("?")[0], answer)
    web = Web(load_settings(StorageSettings, private_hosts="127.0.0.1"))

    with pytest.raises(RejectJob) as caught:
        web.read(http_server.url(path))
    web.close()

    assert caught.value.code is ErrorCode.INPUT_FORBIDDEN
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert "5ec2e7" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(("contact", "ends"), [(None, ""), ("ops@example.org", " (ops@example.org)")])
def test_hosts_are_told_the_program_its_version_and_whom_to_write_to(
    contact: str | None, ends: str, http_server: HttpServer
) -> None:
    http_server.answer("/a.png", Answer(200, b"image"))
    web = Web(load_settings(StorageSettings, private_hosts="127.0.0.1", contact=contact))

    web.read(http_server.url("/a.png"))
    web.close()

    (request,) = http_server.requests("/a.png")
    name, _, rest = request.headers["user-agent"].partition("/")
    assert name == "kontext-edits"
    assert rest.partition(" ")[0]
    assert rest.endswith(ends)
    assert ("(" in rest) == bool(ends)


SETTINGS: dict[str, tuple[str, str, object]] = {
    "a bucket as a URI": ("DG_BUCKETS", "s3://buck", ("buck",)),
    "a part of a bucket as a URI": ("DG_BUCKETS", "s3://buck/in/, other", ("buck/in", "other")),
    "no bucket": ("DG_BUCKETS", "", ()),
    "no largest input": ("DG_MAX_INPUT_BYTES", "", 64 * 2**20),
    "folders": ("DG_FILE_ROOTS", "/data:/srv", (Path("/data"), Path("/srv"))),
    "folders as URIs": (
        "DG_FILE_ROOTS",
        "file:///data:file:///my%20srv:/opt",
        (*map(Path, ("/data", "/my srv", "/opt")),),
    ),
    "a folder called file": ("DG_FILE_ROOTS", "file:/data", (Path.cwd() / "file", Path("/data"))),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_means_what_its_author_means(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, value, wanted = SETTINGS[case]
    monkeypatch.setenv(name, value)

    assert getattr(load_settings(StorageSettings), name.removeprefix("DG_").lower()) == wanted


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DG_BROKER_URL", "redis://localhost?ssl_cert_reqs=none", "is for TLS: write rediss:// for redis://"),
        ("DG_BROKER_URL", "redis://:pa#ss@localhost", "must be percent-encoded: .* %23 for #"),
        ("DG_BROKER_URL", "redis://localhost/jobs", "the number of a database: redis://host:port/0"),
        ("DG_BROKER_URL", "localhost:6379", "expected redis://host:port/db"),
        ("DG_BUCKETS", "https://s3.amazonaws.com/buck", "expected names of buckets, s3://bucket/prefix"),
        ("DG_CONTACT", "me\r\nX-Evil: 1", "expected a mail or web address"),
        ("DG_CONTACT", "ops@example.org)", "expected a mail or web address"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_one_line(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=f"^{name}.*{said}") as error:
        load_settings(StorageSettings)

    assert "\n" not in str(error.value)
