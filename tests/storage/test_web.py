"""`http://` and `https://` inputs: whole, not too large, not too slow, and every failure told apart."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import brotli
import pytest

from jobs.errors import EditFailure, ErrorCode, Outage, RejectJob, RetryJob
from jobs.names import host_of
from jobs.settings import load_settings
from storage.settings import StorageSettings
from storage.unpacking import unpacked
from storage.web import Web
from tests.jobs.certificates import self_signed
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import free_port
from tests.storage.raw_server import Script, breaks_off, drips, raw_server, sends
from tests.waiting import eventually, stretched

LIMIT = 100_000
SOON = 0.3
"""A deadline, in seconds, that a test can wait for."""


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web(load_settings(StorageSettings, private_hosts=("127.0.0.1",), max_input_bytes=LIMIT))
    yield web
    web.close()


@pytest.fixture
def impatient_web() -> Iterator[Web]:
    web = Web(
        load_settings(StorageSettings, private_hosts=("127.0.0.1",), max_input_bytes=LIMIT), download_seconds=SOON
    )
    yield web
    web.close()


def failure_of(web: Web, url: str) -> EditFailure:
    with pytest.raises(EditFailure) as error:
        web.read(url)
    assert "\n" not in error.value.message
    return error.value


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}/cat.png"


# What is read


def test_a_picture_is_downloaded(http_server: HttpServer, web: Web) -> None:
    url = http_server.serve_file("/cat.png", b"a cat" * 10_000, "image/png")

    assert web.read(f"{url}?size=large#top") == b"a cat" * 10_000


def test_an_empty_answer_is_read_as_nothing(http_server: HttpServer, web: Web) -> None:
    assert web.read(http_server.answer("/empty", Answer(200))) == b""


def test_a_server_is_asked_for_no_compression_and_sees_no_cookies_of_others(http_server: HttpServer, web: Web) -> None:
    url = http_server.answer("/cat.png", Answer(headers={"Set-Cookie": "session=1; Path=/"}))

    web.read(url)
    web.read(url)

    headers = http_server.requests("/cat.png")[-1].headers
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers


def test_proxies_of_the_environment_are_not_used(http_server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    web = Web(load_settings(StorageSettings, private_hosts=("127.0.0.1",)))

    assert web.read(http_server.serve_file("/cat.png", b"a cat")) == b"a cat"
    web.close()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(b"a cat", mtime=0)),
        ("gzip", gzip.compress(b"a ", mtime=0) + gzip.compress(b"cat", mtime=0) + bytes(512)),  # RFC 1952, 2.2
        ("deflate", zlib.compress(b"a cat")),
        ("BR", brotli.compress(b"a cat")),
        ("identity", b"a cat"),
    ],
)
def test_what_is_stored_packed_is_unpacked(encoding: str, packed: bytes, http_server: HttpServer, web: Web) -> None:
    url = http_server.answer("/cat.png", Answer(body=packed, headers={"Content-Encoding": encoding}))

    assert web.read(url) == b"a cat"


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("br", partial(brotli.compress, quality=1))], ids=["gzip", "br"]
)
def test_a_few_packed_bytes_that_stand_for_many_end_at_the_limit(
    encoding: str, pack: Callable[[bytes], bytes], http_server: HttpServer
) -> None:
    web = Web(load_settings(StorageSettings, private_hosts=("127.0.0.1",), max_input_bytes=2**20))
    url = http_server.answer("/cat.png", Answer(body=pack(bytes(2**27)), headers={"Content-Encoding": encoding}))
    tracemalloc.start()

    failure = failure_of(web, url)

    assert failure.code is ErrorCode.INPUT_TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    web.close()


@pytest.mark.parametrize(
    ("encoding", "body", "words"),
    [
        ("gzip", b"\x1f\x8b...", "its Content-Encoding says gzip, but its bytes are not"),
        ("gzip", gzip.compress(b"a cat", mtime=0)[:-6], "cut short"),
        (
            "gzip",
            gzip.compress(b"a cat", mtime=0) + b"and more",
            "its Content-Encoding says gzip, but its bytes are not",
        ),
        ("deflate", zlib.compress(b"a cat") * 2, "its Content-Encoding says gzip, but its bytes are not"),
        ("br", brotli.compress(b"a cat") + b"and more", "its Content-Encoding says br, but its bytes are not"),
        ("br", b"a cat", "its Content-Encoding says br, but its bytes are not"),
        ("br", brotli.compress(b"a cat" * 100)[:-3], "cut short"),
        ("zstd", b"a cat", "stored with Content-Encoding 'zstd'; store it as it is, or as gzip or br"),
    ],
)
def test_what_is_packed_otherwise_or_badly_is_named(
    encoding: str, body: bytes, words: str, http_server: HttpServer, web: Web
) -> None:
    url = http_server.answer("/cat.png", Answer(body=body, headers={"Content-Encoding": encoding}))

    failure = failure_of(web, url)

    assert isinstance(failure, RejectJob)
    assert words in failure.message


@pytest.mark.parametrize(
    ("encoding", "chunks"),
    [
        ("gzip", repeat(gzip.compress(b"", mtime=0))),  # members without content
        ("deflate", chain([b"\x78\x9c"], repeat(b"\x00\x00\x00\xff\xff" * 1000))),  # blocks without content, RFC 1951
    ],
    ids=["gzip", "deflate"],
)
def test_packed_bytes_without_end_that_stand_for_nothing_end_at_the_limit(
    encoding: str, chunks: Iterable[bytes]
) -> None:
    with pytest.raises(RejectJob, match="more than 1000000 bytes") as rejection:
        list(unpacked(chunks, encoding, "https://h.example/cat.png", 1_000_000))

    assert rejection.value.code is ErrorCode.INPUT_TOO_LARGE


# What the server says


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ErrorCode.INPUT_NOT_FOUND),
        (401, ErrorCode.INPUT_FORBIDDEN),
        (403, ErrorCode.INPUT_FORBIDDEN),
        (404, ErrorCode.INPUT_NOT_FOUND),
        (410, ErrorCode.INPUT_NOT_FOUND),
        (304, ErrorCode.INPUT_NOT_FOUND),
    ],
)
def test_a_refusal_is_final(status: int, code: ErrorCode, http_server: HttpServer, web: Web) -> None:
    failure = failure_of(web, http_server.answer("/cat.png", Answer(status)))

    assert isinstance(failure, RejectJob)
    assert failure.code is code
    assert f"/cat.png: HTTP {status} " in failure.message


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_trouble_of_the_server_is_a_reason_to_try_again(
    status: int, http_server: HttpServer, web: Web
) -> None:
    failure = failure_of(web, http_server.answer("/cat.png", Answer(status)))

    assert isinstance(failure, RetryJob)
    assert failure.code is ErrorCode.INPUT_UNREACHABLE


def test_an_error_shows_neither_password_nor_signature(http_server: HttpServer, web: Web) -> None:
    url = http_server.url("/cat.png") + "?X-Amz-Signature=5ec2e7"
    assert failure_of(web, url).message == f"{http_server.url('/cat.png')}?...: HTTP 404 Not Found; check the address"

    message = failure_of(web, url.replace("http://", "http://me:hunter2@")).message
    assert message.startswith(f"{http_server.url('/cat.png')}?...: the address has a user or password in it")


def test_the_log_shows_no_signature_either(http_server: HttpServer, web: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    web.read(http_server.serve_file("/cat.png", b"a cat") + "?X-Amz-Signature=5ec2e7")

    assert "5ec2e7" not in caplog.text


# How large


def test_an_input_of_the_largest_size_is_read_and_a_larger_one_refused(http_server: HttpServer, web: Web) -> None:
    assert len(web.read(http_server.serve_file("/large", bytes(LIMIT)))) == LIMIT

    failure = failure_of(web, http_server.serve_file("/larger", bytes(LIMIT + 1)))

    assert failure.code is ErrorCode.INPUT_TOO_LARGE
    assert f"{LIMIT + 1} bytes, but DG_MAX_INPUT_BYTES is {LIMIT}" in failure.message


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["until the connection closes", "chunked"],
)
def test_an_endless_answer_of_unknown_size_is_cut_off(head: bytes, web: Web) -> None:
    drop = b"4000\r\n" + bytes(0x4000) + b"\r\n"

    with raw_server(drips(head, drop)) as port:
        failure = failure_of(web, url_of(port))

    assert failure.code is ErrorCode.INPUT_TOO_LARGE
    assert f"more than {LIMIT} bytes" in failure.message


def test_an_answer_longer_than_announced_ends_where_announced(web: Web) -> None:
    with raw_server(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"a cat" + bytes(LIMIT))) as port:
        assert web.read(url_of(port)) == b"a cat"


def test_an_answer_shorter_than_announced_is_not_taken_for_whole(http_server: HttpServer, web: Web) -> None:
    failure = failure_of(web, http_server.answer("/cat.png", Answer(body=b"half", missing_bytes=4)))

    assert isinstance(failure, RetryJob)
    assert failure.code is ErrorCode.INPUT_UNREACHABLE


# How long, and what breaks


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: image/",
        b"",
    ],
    ids=["body", "headers", "status"],
)
def test_bytes_that_trickle_do_not_move_the_deadline(head: bytes, impatient_web: Web) -> None:
    started = time.monotonic()

    with raw_server(drips(head)) as port:
        failure = failure_of(impatient_web, url_of(port))

    assert isinstance(failure, RetryJob)
    assert time.monotonic() - started < stretched(SOON + 2)
    assert failure.message.endswith("cat.png: not here within 0.3 s; a later try may do")


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n"], ids=["head", "body"]
)
def test_a_byte_now_and_then_is_as_good_as_silence(head: bytes) -> None:
    web = Web(
        load_settings(StorageSettings, private_hosts=("127.0.0.1",), max_input_bytes=LIMIT, input_stall_seconds=SOON),
        download_seconds=10_000,
    )
    with raw_server(drips(head)) as port:
        failure = failure_of(web, url_of(port))

    assert isinstance(failure, RetryJob)
    assert "its host sent less than 16 KiB a second for 0.3 s (DG_INPUT_STALL_SECONDS)" in failure.message
    web.close()


def test_redirects_do_not_move_the_deadline(http_server: HttpServer, impatient_web: Web) -> None:
    started = time.monotonic()
    url = http_server.answer("/cat.png", Answer(302, headers={"Location": "/cat.png"}, delay_seconds=SOON * 0.6))

    assert isinstance(failure_of(impatient_web, url), RetryJob)
    assert time.monotonic() - started < stretched(SOON + 2)
    assert len(http_server.requests("/cat.png")) <= 2


@pytest.mark.parametrize(
    "script",
    [
        breaks_off(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\nhalf"),
        breaks_off(b""),
        sends(b""),
        sends(b"SSH-2.0-OpenSSH_9.6\r\n"),
    ],
    ids=["reset in the body", "reset before the answer", "closed before the answer", "not HTTP"],
)
def test_a_connection_that_breaks_is_a_reason_to_try_again(script: Script, web: Web) -> None:
    with raw_server(script) as port:
        failure = failure_of(web, url_of(port))

    assert isinstance(failure, RetryJob)
    assert failure.code is ErrorCode.INPUT_UNREACHABLE


def test_a_server_that_is_not_there_is_a_reason_to_try_again(web: Web) -> None:
    failure = failure_of(web, url_of(free_port()))

    assert isinstance(failure, RetryJob)
    assert "cannot connect to 127.0.0.1: " in failure.message


def test_a_name_that_dns_does_not_know_is_a_reason_to_try_again(web: Web) -> None:
    failure = failure_of(web, "http://no-such-host.test/cat.png")

    assert isinstance(failure, RetryJob)
    assert "cannot find the address of no-such-host.test" in failure.message


@pytest.mark.parametrize("url", ["http://[::1/cat.png", "http://host:port/cat.png"])
def test_what_is_no_web_address_is_rejected(url: str, web: Web) -> None:
    failure = failure_of(web, url)

    assert isinstance(failure, RejectJob)
    assert failure.code is ErrorCode.INPUT_NOT_FOUND


# Redirects


def test_three_redirects_are_followed_and_a_fourth_is_not(http_server: HttpServer, web: Web) -> None:
    http_server.serve_file("/0", b"a cat")
    for number in range(1, 5):
        http_server.answer(f"/{number}", Answer.redirect(f"/{number - 1}"))

    assert web.read(http_server.url("/3")) == b"a cat"
    failure = failure_of(web, http_server.url("/4"))
    assert isinstance(failure, RejectJob)
    assert failure.message.endswith("/4: more than 3 redirects; use the last address")


def test_a_redirect_in_a_circle_ends(http_server: HttpServer, web: Web) -> None:
    url = http_server.answer("/cat.png", Answer.redirect("/cat.png", 308))

    assert failure_of(web, url).code is ErrorCode.INPUT_NOT_FOUND
    assert len(http_server.requests("/cat.png")) == 4


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.2/", "http://[::1]/", "//10.0.0.1/"]
)
def test_a_redirect_to_a_forbidden_address_is_refused(target: str, http_server: HttpServer, web: Web) -> None:
    failure = failure_of(web, http_server.answer("/cat.png", Answer.redirect(target)))

    assert isinstance(failure, RejectJob)
    assert failure.code is ErrorCode.INPUT_FORBIDDEN
    assert failure.message.startswith(http_server.url("/cat.png"))
    assert "DG_PRIVATE_HOSTS" in failure.message


@pytest.mark.parametrize("target", ["file:///etc/passwd", "s3://bucket/key", "data:,hello", "gopher://127.0.0.1/"])
def test_a_redirect_away_from_the_web_is_refused(target: str, http_server: HttpServer, web: Web) -> None:
    failure = failure_of(web, http_server.answer("/cat.png", Answer.redirect(target)))

    assert failure.code is ErrorCode.INPUT_FORBIDDEN
    assert "which is no web address" in failure.message


def test_a_redirect_to_nonsense_is_rejected(http_server: HttpServer, web: Web) -> None:
    failure = failure_of(web, http_server.answer("/cat.png", Answer.redirect("http://[::1")))

    assert isinstance(failure, RejectJob)


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, trusted = self_signed("localhost", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    web = Web(load_settings(StorageSettings, private_hosts=("localhost",)))
    moved = sends(b"HTTP/1.1 302 Found\r\nLocation: http://localhost/cat.png\r\nContent-Length: 0\r\n\r\n")

    with raw_server(moved, certificate) as port, pytest.raises(RejectJob, match="redirects from https to http"):
        web.read(f"https://localhost:{port}/cat.png")
    web.close()


# Hosts


def test_a_silent_host_holds_up_one_download_and_not_those_of_other_hosts(http_server: HttpServer) -> None:
    settings = load_settings(StorageSettings, private_hosts=("127.0.0.1", "localhost"))
    web = Web(settings, download_seconds=3)
    silent = http_server.answer("/silent", Answer(delay_seconds=30)).replace("127.0.0.1", "localhost")
    cat = http_server.serve_file("/cat.png", b"a cat")

    with ThreadPoolExecutor(1) as pool:
        failure_of(web, silent)  # from now on its host is known as silent
        first = pool.submit(failure_of, web, silent)
        eventually(lambda: len(http_server.requests("/silent")) == 2)
        second = failure_of(web, silent.replace("localhost", "LOCALHOST"))
        assert web.read(cat) == b"a cat"
        assert not first.done(), "neither of the two has waited for the silent host"

    assert isinstance(second, Outage)
    assert second.message.endswith("its host did not answer lately; a later try may do")
    web.close()


def test_a_host_that_answers_with_an_error_is_silent_no_more(http_server: HttpServer) -> None:
    web = Web(load_settings(StorageSettings, private_hosts=("127.0.0.1",)))
    image = http_server.answer("/image", Answer(404))
    web._hosts.note(host_of(image), is_silent=True)

    assert isinstance(failure_of(web, image), RejectJob)

    assert web._hosts.silent_count == 0
    web.close()


def test_every_spelling_of_host_and_port_is_one_host() -> None:
    spellings = ["https://h/a", "https://H:443/b?c", "https://h.", "https://u:p@h/", "https://u2@h#x"]

    assert {host_of(url) for url in spellings} == {"h:443"}
    assert host_of("http://h") == "h:80"
    assert host_of("https://[::1]:8443/") == "::1:8443"
