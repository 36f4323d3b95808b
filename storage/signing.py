"""Signs callbacks as Standard Webhooks asks (https://www.standardwebhooks.com), version 1: HMAC-SHA256.

signature = "v1," + base64(HMAC-SHA256(secret, id + "." + timestamp + "." + body))
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.names import host_of

SECRET_PREFIX = "whsec_"
SHORTEST_SECRET_BYTES = 12


@dataclass(frozen=True)
class CallbackSecrets:
    """The secrets that callbacks are signed with, newest first: those of a receiver's host, otherwise `default`.

    With one secret for all receivers each of them can make messages that the others accept.
    """

    default: tuple[str, ...]
    by_host: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, default: str, by_host: str) -> CallbackSecrets:
        """Read secrets separated by blanks, and entries `host=secret` or `host:port=secret` separated by blanks.

        Raises:
            ValueError: an entry has another form; the message does not show it.
        """
        secrets: dict[str, tuple[str, ...]] = {}
        for entry in by_host.split():
            host, _, secret = entry.partition("=")
            if not re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?", host) or not _is_secret(secret):
                raise ValueError("expected host=whsec_... or host:port=whsec_..., several separated by blanks")
            name = host.lower().replace("[", "").replace("]", "")
            secrets[name] = (*secrets.get(name, ()), secret)
        if not all(_is_secret(secret) for secret in default.split()):
            raise ValueError("expected whsec_ followed by base64; make one with: echo whsec_$(openssl rand -base64 24)")
        return cls(tuple(default.split()), secrets)

    def of(self, url: str) -> tuple[str, ...]:
        """The secrets of the receiver at this address; empty when its callbacks are unsigned."""
        host = host_of(url)
        return self.by_host.get(host) or self.by_host.get(host.rpartition(":")[0]) or self.default


def sign(secrets: Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> str:
    """Sign one attempt with every secret, so that receivers may hold the old or the new one while it is changed.

    Args:
        secrets: `whsec_` and base64, newest first.
        timestamp: time of this attempt in seconds since 1970; receivers refuse one that is minutes old.
        body: exactly the bytes that are sent.
    Returns:
        One signature per secret, separated by blanks.
    Raises:
        ValueError: a secret is not base64.
    """
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{_signature(secret, signed)}" for secret in secrets)


def is_signed(secrets: Sequence[str], signatures: str, webhook_id: str, timestamp: int, body: bytes) -> bool:
    """True if one of the signatures, separated by blanks, was made with one of the secrets.

    Raises:
        ValueError: a secret is not base64.
    """
    valid = [signature.encode() for signature in sign(secrets, webhook_id, timestamp, body).split()]
    given = [signature.encode() for signature in signatures.split()]
    return any(hmac.compare_digest(one, other) for one in given for other in valid)


def callback_headers(secrets: Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one attempt; without secrets there is no `webhook-signature`.

    Args:
        webhook_id: the same over all attempts, by which receivers know a repeat.
    """
    headers = {"content-type": "application/json", "webhook-id": webhook_id, "webhook-timestamp": str(timestamp)}
    if secrets:
        headers["webhook-signature"] = sign(secrets, webhook_id, timestamp, body)
    return headers


def _signature(secret: str, signed: bytes) -> str:
    return base64.b64encode(hmac.digest(_key(secret), signed, "sha256")).decode()


def _is_secret(secret: str) -> bool:
    encoded = secret.removeprefix(SECRET_PREFIX)
    try:
        return encoded != secret and len(base64.b64decode(encoded, validate=True)) >= SHORTEST_SECRET_BYTES
    except ValueError:
        return False


def _key(secret: str) -> bytes:
    # Some generators leave the padding out; b64decode ignores what is too much of it.
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX) + "==")
