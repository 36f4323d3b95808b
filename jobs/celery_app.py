"""The Celery application: of workers, and of whoever sends jobs as a plain Celery client."""

from __future__ import annotations

from celery import Celery

from jobs.connection import SentinelAddress
from jobs.queue import QUEUE


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
