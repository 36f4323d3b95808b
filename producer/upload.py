"""Local inputs and LoRAs put into a bucket, where workers read them: each once, under a hash of its content."""

from __future__ import annotations

import hashlib
import mimetypes
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from jobs.errors import SettingsError
from jobs.ledger.scripts import chunks
from jobs.schema import EditJob
from producer.buckets import bucket_failures, http_status, open_client
from producer.errors import TableError
from producer.files import local_path
from producer.local_inputs import local_files

THREADS = 8
JOBS_AT_ONCE = 64


class Uploader:
    """Puts files under `s3://bucket/prefix`; threads may share one.

    Credentials, endpoint and region are boto3's own settings (`AWS_*`).

    Args:
        target: `s3://bucket` or `s3://bucket/prefix`.
    Raises:
        SettingsError: the target is something else.
        SetupError: boto3 is not installed.

    Attributes:
        sent, there_before: numbers of files.
    """

    def __init__(self, target: str) -> None:
        scheme, _, rest = target.partition("://")
        self._bucket, _, prefix = rest.strip("/").partition("/")
        if scheme != "s3" or not self._bucket:
            raise SettingsError(f"--upload {target}: expected s3://bucket/prefix")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = open_client()
        self._known: dict[Path, str] = {}
        self._lock = threading.Lock()
        self.sent = self.there_before = 0

    def jobs(self, jobs: Iterable[EditJob]) -> Iterator[EditJob]:
        """The same jobs in their order, their local inputs and LoRAs uploaded and named by URIs of the bucket.

        Raises:
            TableError: a file cannot be read, or the bucket refuses it.
        """
        with ThreadPoolExecutor(THREADS) as threads:
            for chunk in chunks(jobs, JOBS_AT_ONCE):
                paths = {path for job in chunk for path in local_files(job)}
                list(threads.map(self._put, paths - self._known.keys()))
                yield from map(self._uploaded_job, chunk)

    def _uploaded_job(self, job: EditJob) -> EditJob:
        loras = tuple(lora.model_copy(update={"uri": self._uploaded(lora.uri)}) for lora in job.params.loras)
        params = job.params.model_copy(update={"loras": loras}) if loras else job.params
        return job.model_copy(update={"image": tuple(map(self._uploaded, job.image)), "params": params})

    def _uploaded(self, uri: str) -> str:
        path = local_path(uri)
        return uri if path is None else self._known[path]

    def _put(self, path: Path) -> None:
        with _failures(path, self._bucket):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            key = f"{self._prefix}{digest}{path.suffix.lower()}"
            is_there = self._is_there(key, path.stat().st_size)
            if not is_there:
                self._client.upload_file(str(path), self._bucket, key, ExtraArgs=_kind_of(path))  # streamed
        with self._lock:
            self._known[path] = f"s3://{self._bucket}/{key}"
            self.sent += not is_there
            self.there_before += is_there

    def _is_there(self, key: str, size: int) -> bool:
        try:
            return bool(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"] == size)
        except import_module("botocore.exceptions").ClientError as error:
            if http_status(error) in (403, 404):
                return False  # 403: may not list, and then a missing key looks forbidden; the upload will tell
            raise


def is_uploaded_form(asked: str, known: str) -> bool:
    """True if `known` can be where the local file `asked` was uploaded to."""
    name = known.rpartition("/")[2].partition(".")[0]
    return local_path(asked) is not None and known.startswith("s3://") and len(name) == 64 and name.isalnum()


def put_folder(folder: Path, target: str) -> None:
    """Put every file of a folder under `s3://bucket/prefix`.

    Raises:
        TableError: the bucket refuses one.
    """
    bucket, _, prefix = target.removeprefix("s3://").partition("/")
    client = open_client()

    def put(path: Path) -> None:
        key = f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/")
        with _failures(path, bucket):
            client.upload_file(str(path), bucket, key, ExtraArgs=_kind_of(path))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(put, [path for path in sorted(folder.rglob("*")) if path.is_file()]))


def _kind_of(path: Path) -> dict[str, str]:
    """The content type by the file's name, with which browsers show an image instead of saving it."""
    return {"ContentType": mimetypes.guess_type(path.name)[0] or "application/octet-stream"}


@contextmanager
def _failures(path: Path, bucket: str) -> Iterator[None]:
    try:
        with bucket_failures(str(path), f"cannot be uploaded to bucket {bucket}"):
            yield
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror or error})") from error
