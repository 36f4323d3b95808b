"""Callbacks are signed so that any Standard Webhooks library can tell a true one from a forged or altered one."""

from __future__ import annotations

import time
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from storage.signing import callback_headers, sign

OLD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW_SECRET = "whsec_bmV3IHNlY3JldCBmb3IgdGhlIGNhbGxiYWNrcw=="
BODY = '{"type":"edit.succeeded","data":{"prompt":"make it snow ❄"}}'.encode()


def verify(secret: str, body: bytes, headers: dict[str, str]) -> Any:
    return Webhook(secret).verify(body, headers)


def headers_for(*secrets: str) -> dict[str, str]:
    return callback_headers(secrets, "msg_1", int(time.time()), BODY)


def test_a_signature_is_the_one_that_openssl_computes() -> None:
    # key=$(printf %s MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw | base64 -d | xxd -p)
    # printf %s 'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}' |
    #     openssl dgst -sha256 -mac HMAC -macopt hexkey:$key -binary | base64
    signature = sign([OLD_SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_standard_library_of_receivers_accepts_a_callback() -> None:
    assert verify(OLD_SECRET, BODY, headers_for(OLD_SECRET))["type"] == "edit.succeeded"


def test_while_secrets_are_changed_receivers_may_hold_the_old_or_the_new_one() -> None:
    headers = headers_for(NEW_SECRET, OLD_SECRET)

    assert len(headers["webhook-signature"].split(" ")) == 2
    assert verify(OLD_SECRET, BODY, headers) == verify(NEW_SECRET, BODY, headers)


def test_a_secret_may_come_without_its_padding() -> None:
    assert verify(NEW_SECRET, BODY, headers_for(NEW_SECRET.rstrip("=")))


def test_a_wrong_secret_does_not_verify() -> None:
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        verify(NEW_SECRET, BODY, headers_for(OLD_SECRET))


def test_a_callback_whose_body_was_altered_does_not_verify() -> None:
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        verify(OLD_SECRET, BODY.replace(b"snow", b"rain"), headers_for(OLD_SECRET))


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp"])
def test_a_callback_sent_again_under_another_id_or_time_does_not_verify(name: str) -> None:
    changed = {"webhook-id": "msg_2", "webhook-timestamp": str(int(time.time()) + 60)}

    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        verify(OLD_SECRET, BODY, headers_for(OLD_SECRET) | {name: changed[name]})


def test_without_secrets_a_callback_carries_no_signature() -> None:
    assert callback_headers([], "msg_1", 7, BODY) == {
        "content-type": "application/json",
        "webhook-id": "msg_1",
        "webhook-timestamp": "7",
    }
