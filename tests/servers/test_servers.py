"""The servers behave like the ones that users have, so that what tests prove about them holds outside."""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
import redis
from botocore.exceptions import ClientError
from standardwebhooks import Webhook, WebhookVerificationError

from tests.servers.http import Answer, HttpServer
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server
from tests.waiting import eventually

MIB = 2**20


@pytest.fixture
def s3(s3_server: S3Server) -> Any:
    client = s3_server.client()
    yield client
    client.close()


def test_redis_keeps_port_and_data_when_it_is_killed_and_started_again(
    redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    redis_client.set("job", "queued")

    redis_server.kill()
    with pytest.raises(redis.exceptions.ConnectionError):
        redis_client.get("job")

    redis_server.start()
    assert redis_client.get("job") == "queued"


def test_a_paused_redis_holds_connections_and_answers_nothing_until_it_goes_on(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, socket_timeout=0.1, retry=None) as impatient:
        impatient.ping()

        redis_server.pause()
        with pytest.raises(redis.exceptions.TimeoutError):
            impatient.ping()

        redis_server.resume()
        assert impatient.ping()


def test_s3_returns_what_was_put_with_its_content_type(s3: Any, s3_bucket: str) -> None:
    s3.put_object(Bucket=s3_bucket, Key="in/cat.png", Body=b"a cat", ContentType="image/png")

    answer = s3.get_object(Bucket=s3_bucket, Key="in/cat.png")

    assert answer["Body"].read() == b"a cat"
    assert answer["ContentType"] == "image/png"


def test_s3_joins_the_parts_of_a_large_upload(s3: Any, s3_bucket: str) -> None:
    # boto3 cuts uploads above 8 MiB into parts; the server's ETag counts them.
    s3.upload_fileobj(io.BytesIO(bytes(9 * MIB)), s3_bucket, "large")

    head = s3.head_object(Bucket=s3_bucket, Key="large")

    assert head["ContentLength"] == 9 * MIB
    assert head["ETag"].endswith('-2"')


def test_s3_publishes_a_key_once_when_asked_for_none_match(s3: Any, s3_bucket: str) -> None:
    s3.put_object(Bucket=s3_bucket, Key="out.png", Body=b"first", IfNoneMatch="*")

    assert refusal(lambda: s3.put_object(Bucket=s3_bucket, Key="out.png", Body=b"second", IfNoneMatch="*")) == 412
    assert s3.get_object(Bucket=s3_bucket, Key="out.png")["Body"].read() == b"first"


def test_s3_refuses_a_wrong_secret_an_unknown_bucket_and_a_wrong_checksum(
    s3_server: S3Server, s3: Any, s3_bucket: str
) -> None:
    stranger = s3_server.client(secret_key="guessed")
    wrong_md5 = base64.b64encode(bytes(16)).decode()

    assert refusal(lambda: stranger.list_objects_v2(Bucket=s3_bucket)) == 403
    assert refusal(lambda: s3.get_object(Bucket="no-such-bucket", Key="x")) == 404
    assert refusal(lambda: s3.put_object(Bucket=s3_bucket, Key="x", Body=b"x", ContentMD5=wrong_md5)) == 400
    stranger.close()


def test_s3_serves_a_presigned_link_and_refuses_a_tampered_one(s3: Any, s3_bucket: str) -> None:
    s3.put_object(Bucket=s3_bucket, Key="mine", Body=b"mine")
    s3.put_object(Bucket=s3_bucket, Key="other", Body=b"other")

    link = s3.generate_presigned_url("get_object", Params={"Bucket": s3_bucket, "Key": "mine"}, ExpiresIn=60)

    assert httpx2.get(link).content == b"mine"
    assert httpx2.get(link.replace("mine", "other")).status_code == 403


def test_http_answers_in_turn_and_repeats_the_last(http_server: HttpServer) -> None:
    url = http_server.answer("/hook", Answer(503, headers={"Retry-After": "1"}), Answer(204))

    assert [httpx2.post(url).status_code for _ in range(3)] == [503, 204, 204]
    assert httpx2.get(http_server.url("/elsewhere")).status_code == 404


def test_http_serves_files_pages_and_redirects(http_server: HttpServer) -> None:
    picture = http_server.serve_file("/cat.png", b"a cat", "image/png")
    page = http_server.answer("/login", Answer.html())
    moved = http_server.answer("/old.png", Answer.redirect(picture))

    assert httpx2.get(picture).headers["content-type"] == "image/png"
    assert httpx2.get(page).headers["content-type"].startswith("text/html")
    assert httpx2.get(moved, follow_redirects=True).content == b"a cat"


def test_http_can_drop_truncate_and_keep_waiting(http_server: HttpServer) -> None:
    dropped = http_server.answer("/dropped", Answer(dropped=True))
    truncated = http_server.answer("/truncated", Answer(body=b"half", missing_bytes=4))
    slow = http_server.answer("/slow", Answer(delay_seconds=60))

    with pytest.raises(httpx2.RemoteProtocolError, match="disconnected"):
        httpx2.get(dropped)
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete"):
        httpx2.get(truncated)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(slow, timeout=0.05)


def test_http_remembers_a_callback_so_that_its_signature_can_be_verified(http_server: HttpServer) -> None:
    url = http_server.answer("/hook", Answer(204))
    secret = "whsec_" + base64.b64encode(b"a secret of 24 bytes and more").decode()
    body, now = '{"type": "edit.succeeded"}', datetime.now(UTC)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", now, body),
    }

    httpx2.post(url, content=body, headers=headers)
    received = eventually(lambda: http_server.requests("/hook"))[0]

    assert received.verified(secret) == {"type": "edit.succeeded"}
    with pytest.raises(WebhookVerificationError):
        received.verified("whsec_" + base64.b64encode(b"someone else's secret").decode())


def refusal(request: Any) -> int:
    """The HTTP status with which the server refuses `request`."""
    with pytest.raises(ClientError) as caught:
        request()
    return int(caught.value.response["ResponseMetadata"]["HTTPStatusCode"])
