"""The Celery application and the queue of edits.

A message says only "one more job waits". Which one its taker gets is decided by the ledger, so a message that is lost,
doubled or damaged harms no job in particular; the id that it carries is a hint for the log. There is no result backend,
no ETA task and no revoke: results, delays and cancellation are the ledger's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from celery import Celery
from kombu.exceptions import KombuError
from kombu.pools import producers
from redis import Redis
from redis.exceptions import RedisError

from jobs.connection import SentinelAddress, broker_error, redis_errors
from jobs.shown import hide_secrets

QUEUE = "edits"
TASK = "worker.tasks.edit"
MESSAGES_AT_ONCE = 500

LISTS = (QUEUE, *(f"{QUEUE}\x06\x16{priority}" for priority in (3, 6, 9)))
"""The lists in Redis that kombu keeps for the queue, one for each step of a client's Celery priority."""


def make_app(broker_url: str) -> Celery:
    """Make the Celery application; nothing is connected until it is used."""
    url, options = _celery_address(broker_url)
    app = Celery("edits", broker=url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        # The ledger holds what is running; an early acknowledgement keeps Redis from sending running jobs twice.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A full Redis refuses writes with errors that Celery counts among these: it should wait, not end the worker.
        broker_channel_error_retry=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_transport_options={
            # No second set of books in Redis, which a killed worker would leave behind and a full Redis refuses.
            "ack_emulation": False,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            # A connection that died without a word is noticed after two of these; until then its worker hears nothing.
            "health_check_interval": 10,
            **options,
        },
    )
    return app


def _celery_address(broker_url: str) -> tuple[str, dict[str, str]]:
    """The address as Celery spells it, and the transport options that go with it."""
    if broker_url.startswith("sentinel://"):
        address = SentinelAddress.parse(broker_url)
        return address.celery_url, {"master_name": address.master}
    if broker_url.startswith("rediss://") and "ssl_cert_reqs=" not in broker_url:
        # Celery checks no certificate unless it is told to; the ledger's client always does.
        return f"{broker_url}{'&' if '?' in broker_url else '?'}ssl_cert_reqs=required", {}
    return broker_url, {}


class EditQueue:
    """Sends the messages of jobs that are in the ledger."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send(self, job_ids: Iterable[str]) -> int:
        """Send one message per job and return how many; the reconciler sends as many as are lost on the way.

        Raises:
            BrokerError: of the messages an unknown number was sent.
        """
        sent = 0
        try:
            # One pipeline per `MESSAGES_AT_ONCE`, not a round trip each; the queue is declared once, not per message.
            # On two cores that is 16,000 messages a second; `send_task` for each makes 3,000.
            with (
                producers[self._app.connection_for_write()].acquire(block=True) as producer,
                producer.batch(max_size=MESSAGES_AT_ONCE),
            ):
                amqp = self._app.amqp
                producer.maybe_declare(amqp.queues[QUEUE])
                for job_id in job_ids:
                    arguments = (job_id,)
                    message = amqp.create_task_message(
                        job_id, TASK, arguments, argsrepr=repr(arguments), kwargsrepr="{}", ignore_result=True
                    )
                    amqp.send_task_message(producer, TASK, message, queue=QUEUE, declare=[], retry=False)
                    sent += 1
        except (KombuError, RedisError, OSError) as error:
            server = f"the broker at {hide_secrets(str(self._app.conf.broker_url))}"
            raise broker_error(error.__cause__ or error, server) from error
        return sent


def count_messages(redis: Redis) -> int:
    """Count the messages in the queue."""
    with redis_errors(redis), redis.pipeline(transaction=False) as pipeline:
        for name in LISTS:
            pipeline.llen(name)
        return sum(pipeline.execute())


def next_messages(redis: Redis, limit: int) -> list[str]:
    """Look at the ids in up to `limit` messages that will be taken next, without taking them."""
    with redis_errors(redis):
        return [_message_id(message) for message in redis.lrange(QUEUE, -limit, -1)]


def _message_id(message: str | bytes) -> str:
    """The task id of a message, "" when it is of an older protocol and has none."""
    try:
        return str(json.loads(message)["headers"]["id"])
    except (ValueError, KeyError, TypeError):
        return ""
