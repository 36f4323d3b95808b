"""Connections of boto3 that a transfer can shut down when it is left.

boto3 passes no connection on to its callers, so its pools are given our class of connections instead of botocore's:
the same, but each request tells the thread's transfer which connection it uses. A test fails when the place moves.
"""

from __future__ import annotations

from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from storage.transfer import check_not_left, use_connection


class _Leavable:
    """Mixed in before one of botocore's connections."""

    sock: Any

    def request(self, *arguments: Any, **options: Any) -> Any:
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        use_connection(self.sock)
        return super().request(*arguments, **options)  # type: ignore[misc]


class _Connection(_Leavable, AWSHTTPConnection):  # type: ignore[misc]  # so does botocore itself
    pass


class _TlsConnection(_Leavable, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(AWSHTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def make_leavable(client: Any) -> None:
    """Make the requests of a client of boto3 end when their transfer is left, its retries included."""
    client._endpoint.http_session._pool_classes_by_scheme.update(http=_Pool, https=_TlsPool)
    client.meta.events.register("before-send.s3", lambda **_: check_not_left())
