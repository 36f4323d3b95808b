"""Calling the hosts that jobs name through the operator's HTTP proxy (`DG_PROXY`).

The proxy resolves names, so what a name leads to is not seen here: names and literal addresses are judged as they are
written, and the proxy has to refuse what lies behind a public name. Hosts that `DG_PRIVATE_HOSTS` names are called
directly.
"""

from __future__ import annotations

import re
import socket
from http import HTTPStatus
from ipaddress import ip_address

import httpcore2
import httpx2

from storage.addresses import NAME_IT, AddressRules, ForbiddenAddress, Objection

INSIDE = (".localhost", ".local", ".internal", ".home.arpa")
"""Endings of names that mean something inside a network alone: RFC 6761, 6762, 8375, and ICANN's of 2024."""

NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
REFUSALS = (HTTPStatus.FORBIDDEN, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS)


class ProxyTransport(httpx2.BaseTransport):
    """Calls hosts that the rules name by `direct`, and all others through the proxy.

    Args:
        proxy: `http://` or `https://` address, perhaps with user and password.
        backend: makes the connections to the proxy.
    """

    def __init__(
        self, proxy: str, rules: AddressRules, direct: httpx2.BaseTransport, backend: httpcore2.NetworkBackend
    ) -> None:
        self._rules = rules
        self._direct = direct
        self._proxied = httpx2.HTTPTransport(verify=httpx2.create_ssl_context())
        address = httpx2.URL(proxy)
        self._proxied._pool = httpcore2.HTTPProxy(
            str(address.copy_with(userinfo=b"")),
            proxy_auth=(address.username, address.password) if address.userinfo else None,
            ssl_context=httpx2.create_ssl_context(),
            network_backend=backend,
            max_connections=None,
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        host, port = request.url.host, request.url.port or {"http": 80, "https": 443}.get(request.url.scheme, 0)
        if self._rules.names_host(host):
            return self._direct.handle_request(request)
        if objection := objection_to_name(self._rules, host, port):
            raise objection.fault()
        try:
            return self._proxied.handle_request(request)
        except httpx2.ProxyError as error:
            answer = str(error)
            if any(answer.startswith(str(status.value)) for status in REFUSALS):
                raise ForbiddenAddress(f"{host}: the proxy (DG_PROXY) refuses it: {answer}") from error
            raise httpx2.ProxyError(f"the proxy (DG_PROXY) says: {answer}", request=request) from error
        except httpx2.ConnectError as error:
            raise httpx2.ConnectError(f"through the proxy (DG_PROXY): {error}", request=request) from error

    def close(self) -> None:
        self._direct.close()
        self._proxied.close()


def objection_to_name(rules: AddressRules, host: str, port: int) -> Objection | None:
    """Reason why a host may not be called by a proxy that alone knows its address; None when it may."""
    try:
        literal = _literal(host)
    except ValueError as error:
        return Objection(str(error), "write the name, or the address as four numbers")
    if literal is not None:
        return rules.objection(host, literal, port)
    name = host.rstrip(".").lower()
    if "." not in name or name.endswith(INSIDE):
        return Objection(f"{host} is an inside name", NAME_IT)
    return rules.objection_to_port(host, port)


def _literal(host: str) -> str | None:
    """The numeric address, when the host is one in any spelling that a proxy may take for one.

    Raises:
        ValueError: it ends in a number and is no address.
    """
    bare = host.strip("[]").rstrip(".")
    try:
        return str(ip_address(bare))
    except ValueError:
        pass
    if not NUMBER.fullmatch(bare.rpartition(".")[2]):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(bare))  # 127.1, 0x7f000001 and 017700000001 are 127.0.0.1
    except OSError:
        raise ValueError(f"{host} is neither a name nor an address") from None
