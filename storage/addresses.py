"""Rules for the addresses and ports that a daemon may call when a job names the URL.

Whoever submits a job chooses URLs that a worker inside the operator's network opens. Without a rule they could read
the cloud's metadata or an internal service. So only public addresses are called, and what `DG_PRIVATE_HOSTS` names.
The rule is about addresses, not names: it is asked with what DNS answered, just before connecting (`guarded_http`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from jobs.errors import ErrorCode, RejectJob, SettingsError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# From IANA's special-purpose address registries. A table of our own, because what `ipaddress` calls global differs
# between patch releases of Python.
REFUSED_NETWORKS: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier's shared address"),  # Alibaba Cloud's metadata live here
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "a cloud metadata address"),  # Azure's, in the middle of public addresses
        ("169.254.0.0/16", "a link-local address"),  # the metadata of most clouds
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),  # Oracle Cloud's metadata live here
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a reserved address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("2001::/23", "a reserved address"),  # Teredo and other protocols
        ("2001:db8::/32", "a documentation address"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "a documentation address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
GLOBAL_UNICAST = IPv6Network("2000::/3")

# IPv6 addresses that stand for the IPv4 address in their last 32 bits. Where only IPv6 is spoken, NAT64 is how all
# IPv4 hosts are reached, so it is judged by what it leads to.
CARRIERS_OF_IPV4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))


NAME_IT = "name it in DG_PRIVATE_HOSTS where the worker runs to allow it"


class ForbiddenAddress(RejectJob):
    """Raised when a host has an address that may not be called."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(ErrorCode.INPUT_FORBIDDEN, reason, remedy)


@dataclass(frozen=True)
class Objection:
    """Why an address may not be called, and what the operator can do to allow it."""

    reason: str
    remedy: str

    def fault(self) -> ForbiddenAddress:
        return ForbiddenAddress(self.reason, self.remedy)


@dataclass(frozen=True)
class AddressRules:
    """Names and networks of `DG_PRIVATE_HOSTS`, on any port, beside the public addresses, on those of `DG_PORTS`."""

    names: frozenset[str]
    networks: tuple[Network, ...]
    ports: tuple[int, ...]

    @classmethod
    def parse(cls, private_hosts: Iterable[str], ports: Iterable[int] = (80, 443)) -> AddressRules:
        """Sort the entries into names and networks.

        Raises:
            SettingsError: an entry is neither a host name, nor an address, nor a network.
        """
        entries = [_parse_entry(entry) for entry in private_hosts]
        return cls(
            frozenset(entry for entry in entries if isinstance(entry, str)),
            tuple(entry for entry in entries if not isinstance(entry, str)),
            tuple(ports),
        )

    def objection(self, host: str, address: str, port: int) -> Objection | None:
        """Reason why `address`, one of the addresses of `host`, may not be called; None when it may.

        The reason does not show the address: what an inside name leads to is nothing for whoever sent the job.

        Args:
            host: the name, or address, that the URL has.
            address: a numeric address, perhaps with an IPv6 zone.
        """
        if self.names_host(host):
            return None
        found = _unwrap(ip_address(address))
        if any(found in network for network in self.networks):
            return None
        if kind := _kind(found):
            leads = "is" if address == host else "leads to"
            return Objection(f"{host} {leads} {kind}", NAME_IT)
        return self.objection_to_port(host, port)

    def objection_to_port(self, host: str, port: int) -> Objection | None:
        """Reason why this port of a public host may not be called; None when it may."""
        if port in self.ports:
            return None
        known = ", ".join(map(str, self.ports))
        return Objection(
            f"{host}: port {port} is not one of {known}", "add it to DG_PORTS where the worker runs to allow it"
        )

    def names_host(self, host: str) -> bool:
        """True when `DG_PRIVATE_HOSTS` has this name, or a network with this literal address."""
        if _plain(host) in self.names:
            return True
        try:
            literal = _unwrap(ip_address(host.strip("[]")))
        except ValueError:
            return False
        return any(literal in network for network in self.networks)


def _parse_entry(entry: str) -> str | Network:
    try:
        return ip_network(entry.strip("[]"), strict=False)
    except ValueError as error:
        if re.fullmatch(r"[A-Za-z0-9._-]+", entry):
            return _plain(entry)
        raise SettingsError(
            f"DG_PRIVATE_HOSTS={entry!r}: expected a host name without port, an address or a network like 10.0.0.0/8"
        ) from error


def _plain(host: str) -> str:
    return host.rstrip(".").lower()


def _unwrap(address: Address) -> Address:
    if any(address in network for network in CARRIERS_OF_IPV4):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _kind(address: Address) -> str | None:
    for network, kind in REFUSED_NETWORKS:
        if address in network:
            return kind
    is_public = isinstance(address, IPv4Address) or address in GLOBAL_UNICAST
    return None if is_public else "an address that is not public"
