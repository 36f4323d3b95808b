"""The form of `DG_BROKER_URL`: what redis-py and Celery both understand, and words for what they do not."""

from __future__ import annotations

import inspect
import re
from difflib import get_close_matches
from functools import cache
from urllib.parse import parse_qsl, urlsplit

from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection, parse_url

from jobs.connection import SentinelAddress

CELERYS_OPTIONS = {"virtual_host"}
"""Options that Celery reads from the address and redis-py does not know."""


def check_broker_url(url: str) -> str:
    """Check the address of a broker, and write the options of Celery's spelling as redis-py's.

    Raises:
        ValueError: it cannot be used; the message tells the mistake and no part of a password.
    """
    if url.startswith("sentinel://"):
        SentinelAddress.parse(url)
        return url
    if not re.match(r"(redis|rediss|redis\+socket)://", url):
        raise ValueError("expected redis://host:port/db, rediss://..., sentinel://... or redis+socket:///path")
    if "@" not in urlsplit(url).netloc and "@" in url:
        raise ValueError("a password with / ? or # must be percent-encoded: %2F for /, %3F for ?, %23 for #")
    if not url.startswith("redis+socket://") and not re.fullmatch(r"(/\d*)?", urlsplit(url).path):
        raise ValueError("behind the last / stands the number of a database: redis://host:port/0")
    url = re.sub(r"(?<=ssl_cert_reqs=)CERT_(?=NONE|OPTIONAL|REQUIRED)(\w+)", lambda found: found[1].lower(), url)
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        _check_option(name, value, is_tls=url.startswith("rediss://"))
    try:
        parse_url(as_redis_url(url))  # type: ignore[no-untyped-call]
    except ValueError as error:  # its message may hold a part of the password
        raise ValueError(
            "expected redis://host:port/db, rediss://..., sentinel://... or redis+socket:///path"
        ) from error
    return url


def as_redis_url(broker_url: str) -> str:
    """The address as redis-py spells it (Celery says `redis+socket://` where redis-py says `unix://`)."""
    return broker_url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")


def _check_option(name: str, value: str, is_tls: bool) -> None:
    known = _options(is_tls)
    if name not in known and name in _options(is_tls=True):
        raise ValueError(f"option {name!r} is for TLS: write rediss:// for redis://")
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise ValueError(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
        raise ValueError(f"ssl_cert_reqs is {value!r}, expected required, optional or none")


@cache
def _options(is_tls: bool) -> frozenset[str]:
    """Names that may stand behind the question mark of an address: the arguments of redis-py's connections."""
    kinds = (Connection, UnixDomainSocketConnection, ConnectionPool, *((SSLConnection,) if is_tls else ()))
    classes = {parent for kind in kinds for parent in kind.__mro__ if parent is not object}
    names = {name for parent in classes for name in inspect.signature(parent).parameters}
    return frozenset((names | CELERYS_OPTIONS | {"db"}) - {"args", "kwargs", "connection_kwargs"})
