"""Queue an edit with nothing but a client of Redis: the message by hand, for languages without Celery.

pip install redis
python plain_redis.py redis://localhost:6379/0 '{"image": "s3://bucket/in/cat.png", "prompt": "make it snow"}'
"""

import json
import sys
from uuid import uuid4

from redis import Redis


def message(job_id: str, job: dict[str, object]) -> str:
    """The item of the list `edits`: an envelope around the task's arguments, keywords and options."""
    return json.dumps(
        {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": "worker.tasks.edit", "id": job_id},
            "properties": {"delivery_tag": job_id, "delivery_info": {"exchange": "", "routing_key": "edits"}},
            "body": json.dumps([[job], {}, None]),
        }
    )


if __name__ == "__main__":
    url, job = sys.argv[1], json.loads(sys.argv[2])
    job_id = job.get("id") or uuid4().hex
    with Redis.from_url(url) as redis:
        redis.lpush("edits", message(job_id, job))
    print(job_id)  # noqa: T201
