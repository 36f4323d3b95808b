"""A job's URLs reach public addresses and what the operator allows, whatever names and DNS servers say."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest

from jobs.errors import ErrorCode, SettingsError
from jobs.settings import load_settings
from storage.addresses import AddressRules, ForbiddenAddress, Objection
from storage.guarded_http import guarded_client
from storage.settings import StorageSettings
from tests.jobs.certificates import self_signed
from tests.servers.http import Answer, HttpServer
from tests.storage.raw_server import drips, raw_server, sends
from tests.waiting import stretched

OK = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@contextmanager
def client(*private_hosts: str, timeout_seconds: float = 10) -> Iterator[httpx2.Client]:
    with guarded_client(load_settings(StorageSettings, private_hosts=private_hosts), timeout_seconds) as guarded:
        yield guarded


class Dns:
    """A DNS server that answers each question about one name with the next of its answers."""

    def __init__(self, name: str, *answers: list[str]) -> None:
        self.questions = 0
        self._name = name
        self._answers = answers
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != self._name:
            return self._real(host, port, *arguments, **options)
        answer = self._answers[min(self.questions, len(self._answers) - 1)]
        self.questions += 1
        return [found for address in answer for found in self._real(address, port, *arguments, **options)]


# Which addresses


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "8.8.8.8", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)
def test_public_addresses_may_be_called(address: str) -> None:
    assert AddressRules.parse(()).objection("example.com", address, 443) is None


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "a loopback address"),
        ("127.8.8.8", "a loopback address"),
        ("0.0.0.0", "an unspecified address"),
        ("10.1.2.3", "a private address"),
        ("172.16.0.1", "a private address"),
        ("172.31.255.255", "a private address"),
        ("192.168.1.1", "a private address"),
        ("169.254.169.254", "a link-local address"),  # metadata of AWS, Google, Azure and others
        ("100.100.100.200", "a carrier's shared address"),  # metadata of Alibaba
        ("192.0.0.192", "a reserved address"),  # metadata of Oracle
        ("168.63.129.16", "a cloud metadata address"),  # Azure's wire server
        ("224.0.0.1", "a multicast address"),
        ("255.255.255.255", "a reserved address"),
        ("198.18.0.1", "a benchmarking address"),
        ("::", "an unspecified address"),
        ("::1", "a loopback address"),
        ("fe80::1", "a link-local address"),
        ("fe80::1%eth0", "a link-local address"),
        ("fd00:ec2::254", "a private address"),  # metadata of AWS over IPv6
        ("ff02::1", "a multicast address"),
        ("::ffff:127.0.0.1", "a loopback address"),
        ("::ffff:169.254.169.254", "a link-local address"),
        ("64:ff9b::10.0.0.1", "a private address"),  # NAT64 leads to IPv4
        ("64:ff9b:1::1", "an address that is not public"),  # NAT64 of one's own network
        ("::127.0.0.1", "an address that is not public"),  # IPv4-compatible, long deprecated
        ("2002:7f00:1::", "a 6to4 address"),
        ("2001:0:7f00:1::", "a reserved address"),  # Teredo
        ("4000::1", "an address that is not public"),
    ],
)
def test_other_addresses_may_not_be_called(address: str, kind: str) -> None:
    objection = AddressRules.parse(()).objection("example.com", address, 443)

    assert objection == Objection(
        f"example.com leads to {kind}", "name it in DG_PRIVATE_HOSTS where the worker runs to allow it"
    )


@pytest.mark.parametrize(
    ("allowed", "host", "address", "may_be_called"),
    [
        ("minio.internal", "minio.internal", "10.0.0.7", True),
        ("Minio.Internal.", "minio.INTERNAL", "10.0.0.7", True),
        ("minio.internal", "sub.minio.internal", "10.0.0.7", False),
        ("10.0.0.7", "minio.internal", "10.0.0.7", True),
        ("10.0.0.7", "minio.internal", "10.0.0.8", False),
        ("10.0.0.0/8", "minio.internal", "10.9.9.9", True),
        ("10.0.0.1/8", "minio.internal", "10.9.9.9", True),
        ("10.0.0.0/8", "minio.internal", "::ffff:10.9.9.9", True),
        ("10.0.0.0/8", "minio.internal", "192.168.0.1", False),
        ("[fd00::1]", "minio.internal", "fd00::1", True),
        ("fd00::/8", "minio.internal", "fd12::1", True),
    ],
)
def test_private_hosts_are_allowed_by_name_address_or_network(
    allowed: str, host: str, address: str, may_be_called: bool
) -> None:
    assert (AddressRules.parse([allowed]).objection(host, address, 443) is None) == may_be_called


@pytest.mark.parametrize("entry", ["minio:9000", "10.0.0.0/33", "http://minio", "*", "a/b"])
def test_an_entry_that_names_no_host_is_an_error_of_the_settings(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"^DG_PRIVATE_HOSTS=.* expected a host name without port"):
        guarded_client(load_settings(StorageSettings, private_hosts=(entry,)), 1)


# Which connections


def test_an_allowed_host_is_called(http_server: HttpServer) -> None:
    url = http_server.answer("/hook", Answer(204))

    with client("127.0.0.1") as guarded:
        assert guarded.post(url, content=b"{}").status_code == 204

    assert http_server.requests("/hook")[0].body == b"{}"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.1", "0"])
def test_no_spelling_of_this_machine_is_called_without_permission(
    host: str, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = socket.inet_ntoa(socket.inet_aton(host))  # how resolvers read it
    monkeypatch.setattr(socket, "getaddrinfo", Dns(host, [address]).getaddrinfo)
    url = http_server.answer("/", Answer(200)).replace("127.0.0.1", host)

    with client() as guarded, pytest.raises(ForbiddenAddress) as error:
        guarded.get(url)

    assert error.value.code is ErrorCode.INPUT_FORBIDDEN
    assert http_server.requests("/") == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost/", r"^localhost leads to a loopback address; "),
        ("http://169.254.169.254/", r"^169\.254\.169\.254 is a link-local address; "),
        ("http://[::1]/", "^::1 is a loopback address; "),
        ("https://[::ffff:10.0.0.1]/", "is a private address; "),
    ],
)
def test_a_refusal_names_host_address_and_remedy(url: str, said: str) -> None:
    with client() as guarded, pytest.raises(ForbiddenAddress, match=said) as error:
        guarded.get(url)

    assert error.value.message.endswith("name it in DG_PRIVATE_HOSTS where the worker runs to allow it")


def test_the_address_that_was_checked_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    # The second answer is what an attacker's DNS server says once the check is over.
    dns = Dns("rebind.test", ["127.0.0.1"], ["127.0.0.9"])
    monkeypatch.setattr(socket, "getaddrinfo", dns.getaddrinfo)

    with raw_server(OK) as port, client("127.0.0.1") as guarded:
        assert guarded.get(f"http://rebind.test:{port}/").text == "ok"
        assert dns.questions == 1

        with pytest.raises(ForbiddenAddress, match=r"^rebind\.test leads to a loopback address"):
            guarded.get(f"http://rebind.test:{port}/")


def test_one_forbidden_address_among_allowed_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    dns = Dns("mixed.test", ["127.0.0.1", "10.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", dns.getaddrinfo)

    with raw_server(OK) as port, client("127.0.0.1") as guarded, pytest.raises(ForbiddenAddress, match="private"):
        guarded.get(f"http://mixed.test:{port}/")


def test_public_hosts_are_called_on_the_listed_ports_and_private_ones_on_any() -> None:
    rules = AddressRules.parse(["10.0.0.0/8"], (443, 8443))

    assert [rules.objection("h", "8.8.8.8", port) is None for port in (443, 8443, 80, 22)] == [True, True, False, False]
    assert rules.objection("h", "8.8.8.8", 22) == Objection(
        "h: port 22 is not one of 443, 8443", "add it to DG_PORTS where the worker runs to allow it"
    )
    assert rules.objection("h", "10.1.2.3", 9000) is None


@pytest.mark.parametrize("value", ["", "0", "65536", "http", "80;443"])
def test_ports_that_are_none_are_an_error_of_the_settings(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_PORTS", value)
    if not value:
        assert load_settings(StorageSettings).ports == (80, 443)
        return
    with pytest.raises(SettingsError, match=r"^DG_PORTS="):
        load_settings(StorageSettings)


def test_a_user_or_password_is_sent_to_nobody(http_server: HttpServer) -> None:
    url = http_server.answer("/", Answer(200)).replace("http://", "http://me:secret@")

    with client("127.0.0.1") as guarded, pytest.raises(ForbiddenAddress, match="user or password"):
        guarded.get(url)

    assert http_server.requests("/") == []


def test_a_dns_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = Event(), []

    def hang(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        answers.wait(30)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    try:
        with client(timeout_seconds=0.3) as guarded, pytest.raises(httpx2.ConnectTimeout, match=r"silent\.test"):
            guarded.get("http://silent.test/")
        assert time.monotonic() - started < stretched(5)
        assert asked == ["silent.test"]
    finally:
        answers.set()


def test_the_next_address_is_tried_when_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Dns("two.test", ["127.0.0.2", "127.0.0.1"]).getaddrinfo)

    with raw_server(OK) as port, client("127.0.0.0/8") as guarded:
        assert guarded.get(f"http://two.test:{port}/").text == "ok"


def test_a_redirect_is_handed_to_the_caller(http_server: HttpServer) -> None:
    with client("127.0.0.1") as guarded:
        answer = guarded.post(http_server.answer("/hook", Answer.redirect("http://169.254.169.254/")))

    assert answer.status_code == 302


def test_an_exchange_ends_at_its_deadline_however_the_answer_trickles() -> None:
    started = time.monotonic()

    with (
        raw_server(drips(b"HTTP/1.1 200 OK\r\n\r\n")) as port,
        client("127.0.0.1", timeout_seconds=0.3) as guarded,
        pytest.raises(httpx2.ReadTimeout),
    ):
        guarded.get(f"http://127.0.0.1:{port}/")

    assert time.monotonic() - started < stretched(2)


# HTTPS


def test_a_certificate_is_verified_for_the_hosts_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, trusted = self_signed("localhost", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))

    with raw_server(OK, certificate) as port, client("127.0.0.1", "localhost") as guarded:
        assert guarded.get(f"https://localhost:{port}/").text == "ok"

        # The address is the same; the name that was asked for is what counts.
        with pytest.raises(httpx2.ConnectError, match=r"certificate is not valid for '127\.0\.0\.1'"):
            guarded.get(f"https://127.0.0.1:{port}/")


def test_a_certificate_that_nobody_trusts_is_refused(tmp_path: Path) -> None:
    certificate, _ = self_signed("localhost", tmp_path)

    with (
        raw_server(OK, certificate) as port,
        client("localhost") as guarded,
        pytest.raises(httpx2.ConnectError, match="certificate verify failed"),
    ):
        guarded.get(f"https://localhost:{port}/")
