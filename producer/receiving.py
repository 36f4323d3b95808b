"""For receivers of callbacks: is this request genuine, and what does it say?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from jobs.ledger import parse_event
from jobs.names import host_of
from jobs.schema import JobEvent
from producer.errors import CallbackRefused
from storage.signing import CallbackSecrets, is_signed

MOST_SECONDS_OFF = 300
"""A callback is refused when its timestamp is further from now: so nobody can send an old one again."""


def verify_callback(
    body: bytes, headers: Mapping[str, str], secret: str | Sequence[str], url: str | None = None
) -> JobEvent:
    """Check that a request is a callback of the service, and read it.

    Callbacks come at least once: whoever acts on them remembers the header `webhook-id` of those it has seen.

    Args:
        body: the request's body exactly as it came, before any JSON is parsed.
        headers: its headers, in any case.
        secret: `DG_CALLBACK_SECRET` of the sender; several, as a list or separated by blanks, while it is changed.
        url: this receiver's address as jobs name it; then a callback that was meant for another receiver is refused.
    Raises:
        CallbackRefused: it is not signed with the secret, is older than five minutes, or is not for this receiver.
        ValueError: the secret is not `whsec_` followed by base64.
    """
    given = {name.lower(): value for name, value in headers.items()}
    secrets = CallbackSecrets.parse(secret if isinstance(secret, str) else " ".join(secret), by_host="").default
    if not secrets:
        raise ValueError("no secret: give the one that callbacks are signed with, DG_CALLBACK_SECRET")
    webhook_id, stamp = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    if not webhook_id or not (stamp.isascii() and stamp.isdigit()) or len(stamp) > 12:
        raise CallbackRefused("no webhook-id and webhook-timestamp: not a callback")
    if not is_signed(secrets, given.get("webhook-signature", ""), webhook_id, int(stamp), body):
        raise CallbackRefused("the signature is not that of this body with this secret")
    if abs(time.time() - int(stamp)) > MOST_SECONDS_OFF:
        raise CallbackRefused(f"sent more than {MOST_SECONDS_OFF} s ago or ahead; set both clocks, as NTP does")
    try:
        event = parse_event(body)
    except ValueError as error:
        raise CallbackRefused("signed, but not the JSON of a callback; update this package") from error
    if url is not None and event.receiver != host_of(url):
        raise CallbackRefused(f"meant for {event.receiver}, not for {host_of(url)}")
    return event
