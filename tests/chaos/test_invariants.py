"""The judge of the bench sees what is wrong: else its silence would say nothing."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from jobs.queue import QUEUE
from tests.chaos.bench import Bench
from tests.chaos.expected import Expected
from tests.chaos.invariants import broken_promises, submit, wait_until_settled


def test_every_kind_of_damage_is_seen(bench: Bench) -> None:
    bench.start_worker("w1")
    jobs = {"never": Expected(1)}
    for job_id in ("fine", "picture", "attempts", "state", "callback", "lost"):
        jobs |= submit(bench, job_id)
    wait_until_settled(bench)
    bench.stop_workers()

    Path(urlsplit(bench.ledger.get("picture").job.output or "").path).write_bytes(b"half a pict")
    (bench.folder / "out" / ".stranger.part").touch()
    owner = bench.s3.client()
    owner.create_multipart_upload(Bucket=bench.bucket, Key="begun.png")
    owner.put_object(Bucket=bench.bucket, Key="stranger.png", Body=b"-")
    owner.close()
    with bench.redis.client() as redis:
        redis.hset("dg:job:attempts", "attempts", 4)
        redis.hset("dg:job:state", "state", "failed")
        redis.hset("dg:job:callback", "state", "cancelled")
        redis.delete("dg:job:lost")
        redis.lpush(QUEUE, "message")
        redis.zadd("dg:outbox", {"entry": 1})
        redis.set("dg:lock", "for ever")
    seen = "\n".join(broken_promises(bench, jobs))

    assert "fine" not in seen
    for said in (
        "never: lost",
        "lost: lost",
        "picture: succeeded, its picture is missing",
        "attempts: 4 attempts",
        "state: failed, expected succeeded",
        "callback: cancelled, received callbacks [('msg_callback_succeeded', 'edit.succeeded')]",
        "1 left in edits",
        "1 left in outbox",
        "key dg:lock stays for ever",
        "file .stranger.part left",
        "multipart upload of begun.png left",
        "object stranger.png left",
    ):
        assert said in seen
