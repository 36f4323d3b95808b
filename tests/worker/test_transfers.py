"""Transfers that a job leaves: they end at once, whatever the other side does, and hold up nobody."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import Cancelled, Outage
from jobs.settings import load_settings
from storage import Storage
from storage.s3 import Buckets
from storage.settings import StorageSettings
from storage.store import INPUT, OUTPUT
from storage.web import Web
from tests.storage.raw_server import Script, drips, raw_server
from tests.waiting import eventually
from worker import transfers as module
from worker.transfers import Transfers

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n"
LARGE = bytes(32 * 2**20)
"""More than sockets hold for a reader that does not read."""

LONG = 10_000


def says_nothing(connection: socket.socket, closing: threading.Event) -> None:
    connection.settimeout(None)
    while connection.recv(1):  # ends when the client hangs up, and reads little of what it sends until then
        closing.wait(0.001)


def under_way() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "transfer"]


def leave(transfers: Transfers, uri: str, transfer: Callable[[], object], begun: threading.Event) -> None:
    """Begin a transfer and leave it once it is under way."""

    def check() -> None:
        if begun.is_set():
            raise Cancelled

    with pytest.raises(Cancelled):
        transfers.run(uri, INPUT, transfer, check)


def settings_for(port: int, monkeypatch: pytest.MonkeyPatch) -> StorageSettings:
    """Settings with the server at this port as store, under which nothing ends by itself."""
    monkeypatch.setattr("storage.s3.SILENCE_SECONDS", LONG)
    monkeypatch.setattr("storage.guarded_http.CONNECT_SECONDS", LONG)
    monkeypatch.setattr("storage.guarded_http.DNS_SECONDS", LONG)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return load_settings(StorageSettings, private_hosts=("127.0.0.1",), buckets=("b",), input_stall_seconds=LONG)


@pytest.mark.parametrize(
    "script", [says_nothing, drips(b"HTTP/1.1 200 OK\r\nX-A: "), drips(HEAD)], ids=["silent", "head", "body"]
)
@pytest.mark.parametrize(
    ("uri", "transfer"),
    [
        ("http://127.0.0.1:{}/a.png", lambda settings, uri: Web(settings, LONG).read(uri)),
        ("s3://b/a.png", lambda settings, uri: Buckets(settings).read(uri)),
        ("s3://b/a.png", lambda settings, uri: Buckets(settings).publish(uri, LARGE, "image/png")),
        ("s3://b/a.png", lambda settings, uri: Buckets(settings).check_output(uri)),
    ],
    ids=["web", "bucket", "upload", "check"],
)
def test_a_transfer_that_is_left_hangs_up_and_ends(
    uri: str, transfer: Callable[[StorageSettings, str], object], script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, hung_up = threading.Event(), threading.Event()

    def watched(connection: socket.socket, closing: threading.Event) -> None:
        begun.set()
        try:
            script(connection, closing)
        finally:
            if not closing.is_set():
                hung_up.set()

    with raw_server(watched) as port:
        settings, at = settings_for(port, monkeypatch), uri.format(port)

        leave(Transfers(), at, lambda: transfer(settings, at), begun)

        eventually(hung_up.is_set)
        eventually(lambda: not under_way())


def test_a_transfer_that_waits_for_a_connection_ends_when_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:  # whose queue is full, so the kernel answers no more
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        begun = threading.Event()
        web = Web(settings_for(port, monkeypatch), LONG)
        connect = socket.socket.connect

        def noted(connection: socket.socket, address: object) -> None:
            begun.set()
            connect(connection, address)  # type: ignore[arg-type]

        monkeypatch.setattr(socket.socket, "connect", noted)
        url = f"http://127.0.0.1:{port}/a.png"

        leave(Transfers(), url, lambda: web.read(url), begun)

        eventually(lambda: not under_way())
        for one in waiting:
            one.close()


def test_a_name_that_dns_does_not_answer_for_is_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answers = threading.Event(), threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        begun.set()
        answers.wait()
        return []

    web = Web(settings_for(1, monkeypatch), LONG)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    leave(Transfers(), "http://a.example/a.png", lambda: web.read("http://a.example/a.png"), begun)

    eventually(lambda: not under_way())
    answers.set()


def test_a_file_whose_disk_is_slow_gets_no_name_once_it_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def fsync(_: int) -> None:
        begun.set()
        goes_on.wait()

    monkeypatch.setattr(os, "fsync", fsync)
    uri = (tmp_path / "cat.png").as_uri()
    storage = Storage(load_settings(StorageSettings, output_uri=tmp_path.as_uri()))

    leave(Transfers(), uri, lambda: storage.publish(uri, b"picture", "image/png"), begun)
    goes_on.set()

    eventually(lambda: not under_way())
    assert list(tmp_path.iterdir()) == []


def test_what_lingers_fails_the_next_of_its_kind_and_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LINGERING", 3)
    transfers, begun, goes_on = Transfers(), threading.Event(), threading.Event()

    def hangs() -> None:
        begun.set()
        goes_on.wait()

    for _ in range(3):
        leave(transfers, "file:///away/a.png", hangs, begun)

    with pytest.raises(Outage, match=r"file:///away/b\.png: 3 others hang") as outage:
        transfers.run("file:///away/b.png", OUTPUT, lambda: None, lambda: None)
    assert outage.value.code is OUTPUT.unavailable
    assert transfers.run("https://h.example/a.png", INPUT, lambda: "read", lambda: None) == "read"
    goes_on.set()
    eventually(lambda: not under_way())
    assert transfers.run("file:///away/b.png", INPUT, lambda: "read", lambda: None) == "read"


def test_a_transfer_that_is_not_done_in_time_is_an_outage_and_ends() -> None:
    goes_on = threading.Event()

    with pytest.raises(Outage, match=r"s3://b/a\.png: not done within 0\.01 s") as outage:
        Transfers().run("s3://b/a.png", OUTPUT, goes_on.wait, lambda: None, longest_seconds=0.01)

    assert outage.value.code is OUTPUT.unavailable
    goes_on.set()
    eventually(lambda: not under_way())


def test_a_transfer_returns_what_its_function_returns_and_raises_what_it_raises() -> None:
    transfers = Transfers()

    assert transfers.run("data:,a", INPUT, lambda: 7, lambda: None) == 7
    with pytest.raises(TimeoutError, match="its own"):
        transfers.run("data:,a", INPUT, lambda: (_ for _ in ()).throw(TimeoutError("its own")), lambda: None)
