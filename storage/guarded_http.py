"""The HTTP client for URLs that jobs name: it connects only to addresses that it has checked.

The check sits where the connection is made, below TLS. A name is resolved once, every address is checked, and one of
these addresses is connected to, so a DNS server that answers differently the second time changes nothing. The host
name stays what certificates are verified against.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ssl import SSLContext
from typing import Any

import httpcore2
import httpx2
from httpcore2._backends.sync import SyncStream

from jobs.version import DISTRIBUTION, program_version
from storage.addresses import AddressRules, ForbiddenAddress
from storage.proxy import ProxyTransport
from storage.resolver import DNS_SECONDS, resolve
from storage.settings import StorageSettings
from storage.transfer import check_not_left, use_connection

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10
"""For each address; a host that drops packets must not use up the time of the whole exchange."""

LEAST_BYTES_PER_SECOND = 2**14
"""On the average of a span of silence that is allowed; 128 kbit/s. A byte now and then is as good as silence."""

LONGEST_EXCHANGE_SECONDS = 120.0
"""For a request that names no time at all."""

HEADERS = {
    "Accept-Encoding": "identity",  # what is counted on the way in is then what there is
    "Connection": "close",  # a connection serves one exchange: its deadline is the exchange's
}


def guarded_client(
    settings: StorageSettings, timeout_seconds: float, silence_seconds: float | None = None
) -> httpx2.Client:
    """Make an HTTP client that calls only public addresses and `DG_PRIVATE_HOSTS`, and follows no redirect.

    It keeps neither cookies nor connections from one request to the next, asks for no compression, and knows no proxy
    but `DG_PROXY`. It may be used by several threads.

    Args:
        timeout_seconds: for a whole exchange, from the name's addresses to the last byte, however slowly it trickles.
        silence_seconds: longest wait for the next bytes within an exchange, and for what is the least in that time;
            None: until its end.
    Raises (by each request):
        ForbiddenAddress: the URL's host has an address that may not be called.
        httpx2.TransportError: no name, no connection, or no whole answer in time.
    """
    # At INFO the library logs whole URLs, and presigned ones carry their signature.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    return httpx2.Client(
        transport=_transport(settings, silence_seconds or timeout_seconds),
        timeout=timeout_seconds,
        headers={"User-Agent": user_agent(settings.contact), **HEADERS},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # one person's session is not the next one's
        trust_env=False,
    )


def user_agent(contact: str | None) -> str:
    """Name and version of this program and, where it is set, whom to write to; some hosts refuse who does not say."""
    return f"{DISTRIBUTION}/{program_version()}" + (f" ({contact})" if contact else "")


def _transport(settings: StorageSettings, silence_seconds: float) -> httpx2.BaseTransport:
    rules = AddressRules.parse(settings.private_hosts, settings.ports)
    direct = GuardedTransport(rules, silence_seconds)
    if settings.proxy is None:
        return direct
    only_proxy = AddressRules.parse([httpx2.URL(settings.proxy).host])
    return ProxyTransport(settings.proxy, rules, direct, GuardedBackend(only_proxy, silence_seconds))


class GuardedTransport(httpx2.HTTPTransport):
    """httpx2's own transport over connections that `GuardedBackend` makes."""

    def __init__(self, rules: AddressRules, silence_seconds: float) -> None:
        certificates = httpx2.create_ssl_context()  # the system's, or SSL_CERT_FILE
        super().__init__(verify=certificates)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=certificates, network_backend=GuardedBackend(rules, silence_seconds), max_connections=None
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.userinfo:  # of a redirect; those that jobs name are refused when the job is accepted
            raise ForbiddenAddress("the address has a user or password in it; serve the file without")
        return super().handle_request(request)


class GuardedBackend(httpcore2.NetworkBackend):
    """Makes TCP connections to allowed addresses, each of which lives until its deadline."""

    def __init__(self, rules: AddressRules, silence_seconds: float) -> None:
        self._rules = rules
        self._silence_seconds = silence_seconds

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address of `host` that answers.

        Args:
            timeout: seconds that the whole exchange over this connection may take.
        Raises:
            ForbiddenAddress: one of the host's addresses may not be called.
            httpcore2.ConnectError, httpcore2.ConnectTimeout: there is no such host, or none of its addresses answers.
        """
        deadline = time.monotonic() + (LONGEST_EXCHANGE_SECONDS if timeout is None else timeout)
        failure: httpcore2.ConnectError | httpcore2.ConnectTimeout = httpcore2.ConnectError("it has no address")
        for address in self._allowed_addresses(host, port, deadline):
            limit = min(CONNECT_SECONDS, seconds_until(deadline, httpcore2.ConnectTimeout))
            try:
                connection = _connect(address, port, limit)
            except TimeoutError as error:
                failure = httpcore2.ConnectTimeout(str(error))
            except OSError as error:
                check_not_left()
                failure = httpcore2.ConnectError(str(error))
            else:
                return DeadlineStream(SyncStream(connection), deadline, self._silence_seconds)
        raise type(failure)(f"cannot connect to {host}: {failure}")

    def _allowed_addresses(self, host: str, port: int, deadline: float) -> list[str]:
        addresses = resolve(host, port, min(DNS_SECONDS, seconds_until(deadline, httpcore2.ConnectTimeout)))
        for address in addresses:
            # One forbidden address is enough: a name with both kinds was made to get past checks like this one.
            if objection := self._rules.objection(host, address, port):
                log.info("address_refused host=%s address=%s port=%d", host, address, port)
                raise objection.fault()
        return addresses


class TooSlow(httpcore2.ReadTimeout):
    """Raised when a host has begun to answer, and sends less than `LEAST_BYTES_PER_SECOND`."""


class DeadlineStream(httpcore2.NetworkStream):
    """A connection on which everything, from handshake to last byte, ends at one deadline.

    The timeouts of HTTP clients count anew with every byte, so one byte a second would hold a thread for ever.
    """

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float, silence_seconds: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self._silence_seconds = silence_seconds
        self._bytes_owed = 0.0
        self._owed_until: float | None = None  # None until something came

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limit = self._limit(httpcore2.ReadTimeout)
        if self._owed_until is not None:
            limit = min(limit, seconds_until(self._owed_until, TooSlow))
        try:
            data = self._stream.read(max_bytes, limit)
        except httpcore2.ReadTimeout as error:
            raise error if self._owed_until is None else TooSlow(str(error)) from error
        self._bytes_owed -= len(data)
        if self._bytes_owed <= 0 or self._owed_until is None:
            self._bytes_owed = LEAST_BYTES_PER_SECOND * self._silence_seconds
            self._owed_until = time.monotonic() + self._silence_seconds
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._limit(httpcore2.WriteTimeout))

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        limit = self._limit(httpcore2.ConnectTimeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, limit)
        return DeadlineStream(stream, self._deadline, self._silence_seconds)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _limit(self, late: type[httpcore2.TimeoutException]) -> float:
        return min(self._silence_seconds, seconds_until(self._deadline, late))


def _connect(address: str, port: int, seconds: float) -> socket.socket:
    """Connect to a numeric address; the wait for it ends when its transfer is left.

    Raises:
        OSError: nothing listens there, or, as TimeoutError, nothing answers in time.
        TransferLeft: nobody waits for it any more.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    connection = socket.socket(family, kind, protocol)
    try:
        use_connection(connection)
        connection.settimeout(seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect(target)
    except BaseException:
        connection.close()
        raise
    return connection


def seconds_until(deadline: float, late: type[httpcore2.TimeoutException]) -> float:
    """Seconds until the deadline, more than 0.

    Raises:
        late: the deadline is over.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise late("the time for the whole exchange is over")
    return left
