"""`verify_callback`: only a request that the service signed, lately and for this receiver, is an event."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace

import pytest

from jobs.errors import ErrorCode
from producer import CallbackRefused, Client, JobState, verify_callback
from storage.signing import callback_headers
from tests.producer.conftest import finish, make_job

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_plJ3nmyCDGBKInavdOK15jsl"
URL = "https://shop.example/hook"


@dataclass(frozen=True)
class Sent:
    """A callback as it arrives."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def sent(body: bytes, at: float = 0, *secrets: str) -> Sent:
    return Sent(body, callback_headers(secrets or (SECRET,), "msg_one_succeeded", int(time.time() + at), body))


@pytest.fixture
def body(client: Client) -> bytes:
    """The body of a real job's callback."""
    client.submit(make_job("one", callback={"url": URL}, metadata={"order": 5}))
    finish(client, "one")
    return client.get("one").event().model_dump_json().encode()


def test_a_genuine_callback_is_read(body: bytes) -> None:
    request = sent(body)

    for secret in (SECRET, f"{OTHER} {SECRET}", [OTHER, SECRET]):
        event = verify_callback(request.body, request.headers, secret, URL)

    assert (event.type, event.data.state, event.data.metadata) == ("edit.succeeded", JobState.SUCCEEDED, {"order": 5})


def test_names_of_headers_may_be_in_any_case(body: bytes) -> None:
    request = sent(body)

    verify_callback(request.body, {name.title(): value for name, value in request.headers.items()}, SECRET)


def test_the_standard_library_of_webhooks_accepts_what_we_accept(body: bytes) -> None:
    from standardwebhooks import Webhook

    request = sent(body)

    Webhook(SECRET).verify(request.body, request.headers)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: replace(it, body=it.body + b" "), "signature"),
        (lambda it: replace(it, headers={}), "not a callback"),
        (lambda it: replace(it, headers=it.headers | {"webhook-signature": ""}), "signature"),
        (lambda it: replace(it, headers=it.headers | {"webhook-signature": "v1,AAAA v2,é"}), "signature"),
        (lambda it: replace(it, headers=it.headers | {"webhook-id": "msg_two_succeeded"}), "signature"),
        (lambda it: replace(it, headers=it.headers | {"webhook-timestamp": "1"}), "signature"),
        (lambda it: replace(it, headers=it.headers | {"webhook-timestamp": "-1"}), "not a callback"),
        (lambda it: replace(it, headers=it.headers | {"webhook-timestamp": "9" * 5000}), "not a callback"),
        (lambda it: sent(it.body, -3600), "more than 300 s"),
        (lambda it: sent(it.body, 3600), "more than 300 s"),
        (lambda it: sent(it.body, 0, OTHER), "signature"),
        (lambda it: sent(b"[]"), "not the JSON"),
        (lambda it: sent(b"\xff"), "not the JSON"),
    ],
)
def test_everything_else_is_refused(body: bytes, change: object, said: str) -> None:
    request = change(sent(body))  # type: ignore[operator]

    with pytest.raises(CallbackRefused, match=said):
        verify_callback(request.body, request.headers, SECRET)


def test_a_callback_for_another_receiver_is_refused(body: bytes) -> None:
    request = sent(body)

    with pytest.raises(CallbackRefused, match=r"meant for shop.example:443, not for other.example:443"):
        verify_callback(request.body, request.headers, SECRET, "https://other.example/hook")


def test_a_wrong_secret_of_our_own_is_our_error(body: bytes) -> None:
    request = sent(body)

    for secret in ("", "whsec_%", []):
        with pytest.raises(ValueError, match=r"no secret|whsec_ followed by base64"):
            verify_callback(request.body, request.headers, secret)


def test_a_callback_of_a_newer_version_is_read(body: bytes) -> None:
    newer = json.loads(body)
    newer["data"]["error"] = {"code": "moon_eclipsed", "message": "wait", "retryable": True}
    newer["data"]["mood"] = "fine"
    request = sent(json.dumps(newer).encode())

    event = verify_callback(request.body, request.headers, SECRET)

    assert event.data.error is not None
    assert (event.data.error.code, event.data.error.message) == (ErrorCode.INTERNAL, "moon_eclipsed: wait")
