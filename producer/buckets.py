"""What commands do with buckets themselves, by boto3's own settings (`AWS_*`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from producer.errors import SetupError, TableError


def open_client() -> Any:  # boto3 makes the class of its clients at run time
    """A client for all buckets of the person who runs the command; threads may share it.

    Raises:
        SetupError: boto3 is not installed.
        SettingsError: boto3 cannot use its settings.
    """
    try:
        from storage.s3 import make_client  # loads boto3
    except ImportError as error:
        raise SetupError("a bucket needs boto3: pip install 'kontext-edits[s3]'") from error
    return make_client()


@contextmanager
def bucket_failures(name: str, what_failed: str) -> Iterator[None]:
    """Turn what boto3 raises in the block into one line.

    Args:
        name: the file or URI in question.
        what_failed: such as "cannot be uploaded to bucket pictures".
    Raises:
        TableError: the bucket or its store refuses, or does not answer.
    """
    errors, transfers = import_module("botocore.exceptions"), import_module("boto3.exceptions")
    try:
        yield
    except (errors.BotoCoreError, errors.ClientError, transfers.Boto3Error) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise TableError(f"{name}: {what_failed} ({said}); check AWS_* and the bucket") from error


def http_status(error: Any) -> int:
    """Status of the answer that a ClientError of botocore stands for; 0 when it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
