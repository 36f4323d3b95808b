"""Puts images that stand in a table where workers read them: a folder that they share, or a bucket."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from jobs.errors import EditFailure
from jobs.settings import load_settings
from producer.errors import SetupError, TableError
from producer.files import local_path
from producer.table.rows import TableRow
from storage import Storage
from storage.settings import StorageSettings

AT_ONCE = 8
"""Images on their way at a time; about twice as many rows are in memory."""


class ImagePlacer:
    """Puts images at their places, several at a time, and gives the rows on when theirs are there."""

    def __init__(self, storage: Storage, pool: ThreadPoolExecutor) -> None:
        self._storage = storage
        self._pool = pool
        self._known: set[str] = set()
        self._new: list[Future[None]] = []

    @classmethod
    @contextmanager
    def open(cls, root: str, number: int = 1) -> Iterator[ImagePlacer]:
        """A placer that may write under `root`, a URI; nothing is connected before an image comes.

        Args:
            number: how many images are expected; without any, no threads are made ready.
        """
        storage = Storage(load_settings(StorageSettings, output_uri=root))
        pool = ThreadPoolExecutor(AT_ONCE if number else 1, "place-image")
        try:
            yield cls(storage, pool)
        finally:
            pool.shutdown(cancel_futures=True)
            storage.close()

    def put(self, uri: str, data: bytes, content_type: str) -> None:
        """Begin to put an image at a URI that is made of its content; once is enough."""
        if uri not in self._known:
            self._known.add(uri)
            self._new.append(self._pool.submit(self._publish, uri, data, content_type))

    def when_placed(self, rows: Iterable[TableRow]) -> Iterator[TableRow]:
        """The same rows, each when all images that were put while it was read are there.

        Raises:
            TableError: an image cannot be put there.
            SetupError: a package for it is not installed.
        """
        waiting: deque[tuple[TableRow, list[Future[None]]]] = deque()
        for row in rows:
            waiting.append((row, self._new))
            self._new = []
            while len(waiting) > 2 * AT_ONCE or (waiting and not waiting[0][1]):
                yield _settled(*waiting.popleft())
        while waiting:
            yield _settled(*waiting.popleft())

    def _publish(self, uri: str, data: bytes, content_type: str) -> None:
        path = local_path(uri)
        if path is not None and path.is_file() and path.stat().st_size == len(data):
            return  # put by an earlier submit of the same table
        self._storage.publish(uri, data, content_type)


def _settled(row: TableRow, images: list[Future[None]]) -> TableRow:
    for image in images:
        try:
            image.result()
        except EditFailure as error:
            raise TableError(f"row {row.number}: its image cannot be put there: {error}; see --images-to") from error
        except ImportError as error:
            raise SetupError("putting images into a bucket needs boto3: pip install boto3") from error
    return row
