"""Public addresses through `DG_PROXY`; what the worker still refuses itself, and what the proxy's answers mean."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from jobs.errors import ErrorCode, SettingsError
from jobs.settings import load_settings
from storage.addresses import AddressRules, ForbiddenAddress
from storage.guarded_http import guarded_client
from storage.proxy import objection_to_name
from storage.settings import StorageSettings
from tests.jobs.certificates import self_signed
from tests.servers.http import HttpServer
from tests.storage.raw_server import raw_server, read_head, sends

OK = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Proxy:
    """A proxy to whom every name is one server of ours; `heads` are the requests it got."""

    def __init__(self, target: int, refusal: bytes = b"") -> None:
        self.heads: list[bytes] = []
        self._target = target
        self._refusal = refusal

    def play(self, connection: socket.socket, closing: threading.Event) -> None:
        head = read_head(connection)
        self.heads.append(head)
        if self._refusal:
            connection.sendall(b"HTTP/1.1 " + self._refusal + b"\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self._target)) as server:
            if head.startswith(b"CONNECT"):
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(head)
            back = threading.Thread(target=_pass_on, args=(server, connection))
            back.start()
            _pass_on(connection, server)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def client(proxy_port: int, login: str = "", private_hosts: tuple[str, ...] = ()) -> Iterator[httpx2.Client]:
    proxy = f"http://{login}127.0.0.1:{proxy_port}"
    settings = load_settings(StorageSettings, proxy=proxy, private_hosts=private_hosts)
    with guarded_client(settings, 60) as guarded:
        yield guarded


@contextmanager
def proxy_to(port: int, refusal: bytes = b"") -> Iterator[tuple[Proxy, int]]:
    proxy = Proxy(port, refusal)
    with raw_server(proxy.play, reads_head=False) as proxy_port:
        yield proxy, proxy_port


def test_http_goes_through_the_proxy_with_its_password() -> None:
    with (
        raw_server(OK) as port,
        proxy_to(port) as (proxy, proxy_port),
        client(proxy_port, "me:pass%20word@") as guarded,
    ):
        assert guarded.get("http://images.example/cat.png?w=1").text == "ok"

    assert proxy.heads[0].startswith(b"GET http://images.example/cat.png?w=1 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:pass word") in proxy.heads[0]


def test_https_goes_through_a_tunnel_and_the_hosts_certificate_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, trusted = self_signed("images.example", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))

    with raw_server(OK, certificate) as port, proxy_to(port) as (proxy, proxy_port), client(proxy_port) as guarded:
        assert guarded.get("https://images.example/secret.png").text == "ok"
        with pytest.raises(httpx2.ConnectError, match=r"not valid for 'other\.example'"):
            guarded.get("https://other.example/")

    assert proxy.heads[0].startswith(b"CONNECT images.example:443 HTTP/1.1\r\n")
    assert not any(b"secret.png" in head for head in proxy.heads)


def test_private_hosts_are_called_directly(http_server: HttpServer) -> None:
    url = http_server.serve_file("/cat.png", b"cat")

    with proxy_to(1) as (proxy, proxy_port), client(proxy_port, private_hosts=("127.0.0.0/8",)) as guarded:
        assert guarded.get(url).content == b"cat"

    assert proxy.heads == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1/", "is a loopback address"),
        ("http://127.1/", "leads to a loopback address"),
        ("http://0x7f000001/", "a loopback address"),
        ("http://2130706433/", "a loopback address"),
        ("http://0251.16689662/", "a link-local address"),
        ("http://[::1]/", "a loopback address"),
        ("http://[::ffff:10.0.0.1]/", "a private address"),
        ("http://1.2.3.4.5/", "neither a name nor an address"),
        ("http://redis/", "redis is an inside name"),
        ("http://localhost./", "is an inside name"),
        ("http://metadata.google.internal/", "is an inside name"),
        ("http://printer.local/", "is an inside name"),
        ("http://images.example:6379/", "port 6379 is not one of 80, 443"),
        ("http://8.8.8.8:25/", "port 25 is not one of"),
    ],
)
def test_what_can_be_judged_without_dns_is_refused_before_the_proxy_is_asked(url: str, words: str) -> None:
    with (
        proxy_to(1) as (proxy, proxy_port),
        client(proxy_port) as guarded,
        pytest.raises(ForbiddenAddress, match=words),
    ):
        guarded.get(url)

    assert proxy.heads == []


@pytest.mark.parametrize("host", ["images.example", "8.8.8.8", "2606:4700::1111", "1.example", "a-1.b-2.example."])
def test_public_names_and_addresses_are_left_to_the_proxy(host: str) -> None:
    assert objection_to_name(AddressRules.parse(()), host, 443) is None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_the_proxy_refuses_is_forbidden(scheme: str) -> None:
    with proxy_to(1, b"403 Forbidden") as (_, proxy_port), client(proxy_port) as guarded:
        if scheme == "http":
            assert guarded.get("http://images.example/").status_code == 403
        else:
            with pytest.raises(ForbiddenAddress, match=r"the proxy \(DG_PROXY\) refuses it: 403") as caught:
                guarded.get("https://images.example/")
            assert caught.value.code is ErrorCode.INPUT_FORBIDDEN


def test_a_proxy_that_cannot_reach_the_host_or_is_away_is_named() -> None:
    with (
        proxy_to(1, b"502 Bad Gateway") as (_, proxy_port),
        client(proxy_port) as guarded,
        pytest.raises(httpx2.ProxyError, match=r"the proxy \(DG_PROXY\) says: 502 Bad Gateway"),
    ):
        guarded.get("https://images.example/")
    with client(proxy_port) as guarded, pytest.raises(httpx2.ConnectError, match=r"through the proxy \(DG_PROXY\)"):
        guarded.get("https://images.example/")


@pytest.mark.parametrize("value", ["proxy:3128", "socks5://proxy:1080", "http://", "http://proxy/path"])
def test_a_proxy_that_cannot_be_meant_is_refused_without_its_password(value: str) -> None:
    with pytest.raises(SettingsError, match=r"DG_PROXY.*expected http://host:port"):
        load_settings(StorageSettings, proxy=value)
