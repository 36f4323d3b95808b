"""Who may call: keys, origins of web pages, and how many images a minute."""

from __future__ import annotations

import hmac
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import URL
from starlette.requests import Request

from jobs.connection import redis_errors
from jobs.ledger import Ledger
from producer.http.faults import HttpFault, later
from producer.http.keys import NOBODY_IN_PARTICULAR, Caller
from producer.http.settings import HttpSettings, is_loopback

LINK_SECONDS = 3600
"""How long the link of an image works without a key."""

MINUTE_SECONDS = 60

# Several doors use one secret, the first of which has made it.
SHARED_SECRET = """
local found = redis.call('HGET', KEYS[1], 'links')
if found then return found end
redis.call('HSET', KEYS[1], 'links', ARGV[1])
return ARGV[1]
"""


class Access:
    """Lets callers in. Blocking calls of Redis are made by whoever calls `spend` and `link_signature`."""

    def __init__(self, settings: HttpSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._secret: str | None = None

    def check_origin(self, request: Request) -> None:
        """Refuse what a web page of another origin sends, unless `DG_HTTP_ORIGINS` names it.

        Without keys the host must be this machine's loopback by name: else any web page could reach the door through a
        name of its own that leads here.
        """
        host = request.headers.get("host", "")
        if not self._settings.keys and not is_loopback(_host_in(f"//{host}")):
            raise HttpFault(403, "forbidden_host", f"without keys the door answers to localhost, not to {host[:200]!r}")
        origin = request.headers.get("origin")
        if origin is None or origin in self._settings.http_origins or origin.partition("://")[2] == host:
            return
        raise HttpFault(403, "forbidden_origin", f"pages of {origin[:200]!r} may not call; see DG_HTTP_ORIGINS")

    def caller(self, request: Request) -> Caller:
        """Whose key the request carries: `Authorization: Bearer KEY`."""
        if not self._settings.keys:
            return NOBODY_IN_PARTICULAR
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        caller = self._settings.keys.caller(key.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            said = "the key is not known" if key else "a key is needed: Authorization: Bearer KEY"
            raise HttpFault(401, "invalid_api_key", said, headers={"WWW-Authenticate": "Bearer"})
        return caller

    def spend(self, caller: Caller, images: int) -> None:
        """Count images against the caller's minute, which all doors share.

        Raises:
            HttpFault: 429; `Retry-After` is the end of the minute.
            BrokerError: Redis does not answer.
        """
        if caller.images_per_minute is None or caller.tenant is None:
            return
        minute, second = divmod(int(time.time()), MINUTE_SECONDS)
        key = self._ledger.key("http", "rate", caller.tenant, str(minute))
        redis = self._ledger.redis
        with redis_errors(redis), redis.pipeline(transaction=False) as pipeline:
            for _ in range(images):
                pipeline.incr(key)
            pipeline.pexpire(key, 2 * MINUTE_SECONDS * 1000)
            spent = pipeline.execute()[-2]
        if spent > caller.images_per_minute:
            said = f"{caller.images_per_minute} images a minute are allowed; wait for the next minute"
            raise later(429, "rate_limit_exceeded", said, MINUTE_SECONDS - second)

    def image_link(self, base: str, job_id: str) -> str:
        """Address of a job's image; with keys it is signed, and works for `LINK_SECONDS` without one."""
        url = URL(f"{base}/v1/edits/{job_id}/image")
        if not self._settings.keys:
            return str(url)
        expires = int(time.time()) + LINK_SECONDS
        return str(url.include_query_params(expires=expires, signature=self._signature(job_id, expires)))

    def is_signed(self, request: Request, job_id: str) -> bool:
        """True if the request is such a link, and still good."""
        given, expires = request.query_params.get("signature", ""), request.query_params.get("expires", "")
        if not (expires.isascii() and expires.isdigit()) or len(expires) > 12 or int(expires) < time.time():
            return False
        return hmac.compare_digest(self._signature(job_id, int(expires)).encode(), given.encode())

    def _signature(self, job_id: str, expires: int) -> str:
        return hmac.digest(self._link_secret().encode(), f"{job_id}\n{expires}".encode(), "sha256").hex()

    def _link_secret(self) -> str:
        if self._secret is None:
            redis = self._ledger.redis
            with redis_errors(redis):
                self._secret = str(redis.eval(SHARED_SECRET, 1, self._ledger.key("http"), secrets.token_hex(32)))
        return self._secret


def _host_in(url: str) -> str:
    """The host of a URL; empty when it has none that can be read."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
