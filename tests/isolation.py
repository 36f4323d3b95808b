"""Tests see neither the person's accounts and settings nor the network."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from typing import Any

PERSONAL_PREFIXES = ("AWS_", "DG_", "HF_")
PERSONAL_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
TEST_ENVIRONMENT = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "HF_HUB_OFFLINE": "1",
    # With more, torch's compiler starts a process that imports torch, and gives it nothing to do on a CPU.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


def isolate_environment() -> None:
    """Replace the person's variables by the tests' own; programs that tests start inherit them."""
    for name in list(os.environ):
        if name.startswith(PERSONAL_PREFIXES) or name.upper() in PERSONAL_NAMES:
            del os.environ[name]
    os.environ.update(TEST_ENVIRONMENT)
    # Containers often set it; each process would then compile our modules anew, and pytest all tests.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # torch reads it when it loads; two threads on a busy core wait for each other 25 to 40 times longer than they work.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def forbid_network() -> None:
    """Make this process look like a machine without a network: only the loopback address answers."""
    sys.addaudithook(_refuse_other_machines)


def _refuse_other_machines(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo" and not _is_known_without_asking(arguments[0]):
        raise socket.gaierror(socket.EAI_NONAME, f"tests use no network, but looked up {arguments[0]!r}")
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not _is_this_machine(arguments[1][0]):
        raise OSError(errno.ENETUNREACH, f"tests use no network, but connected to {arguments[1]!r}")


def _is_known_without_asking(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name in (None, "", "localhost", socket.gethostname()) or _address(name) is not None


def _is_this_machine(host: str) -> bool:
    address = _address(host)
    return host in ("", "localhost") if address is None else address.is_loopback or address.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
