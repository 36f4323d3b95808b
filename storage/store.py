"""Interface of each kind of storage, and the error codes of its two sides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import BinaryIO

from jobs.errors import ErrorCode

Content = bytes | BinaryIO
"""A whole object: its bytes, or a file that is read from its beginning and can be read again."""


class Source(ABC):
    """Source of inputs: the methods of `Storage` for one kind of URI."""

    @abstractmethod
    def read(self, uri: str) -> bytes: ...

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Let go of connections."""


class Store(Source):
    """A source that outputs can be published to as well."""

    @abstractmethod
    def publish(self, uri: str, data: Content, content_type: str) -> None: ...

    @abstractmethod
    def check_output(self, uri: str) -> None: ...


@dataclass(frozen=True)
class Side:
    """The error codes for one direction."""

    not_found: ErrorCode
    forbidden: ErrorCode
    unavailable: ErrorCode


INPUT = Side(ErrorCode.INPUT_NOT_FOUND, ErrorCode.INPUT_FORBIDDEN, ErrorCode.INPUT_UNREACHABLE)
OUTPUT = Side(ErrorCode.OUTPUT_NOT_FOUND, ErrorCode.OUTPUT_FORBIDDEN, ErrorCode.OUTPUT_UNAVAILABLE)
