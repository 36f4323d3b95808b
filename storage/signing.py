"""Signs callbacks as Standard Webhooks asks (https://www.standardwebhooks.com), version 1: HMAC-SHA256.

signature = "v1," + base64(HMAC-SHA256(secret, id + "." + timestamp + "." + body))
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"


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


def _key(secret: str) -> bytes:
    # Some generators leave the padding out; b64decode ignores what is too much of it.
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX) + "==")
