"""Bodies of the door's answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from jobs.ledger import JobRecord
from jobs.schema import EditResult, JobState


class ProgressView(BaseModel):
    """How far a running job is."""

    stage: str
    step: int
    total_steps: int


class EditView(BaseModel):
    """A job as its caller sees it.

    While it waits, `position` counts the jobs before it and `waiting` says what for. `image_url` comes with success.
    """

    id: str
    state: JobState
    position: int | None = None
    waiting: str | None = None
    progress: ProgressView | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    image_url: str | None = None
    result: EditResult | None = None

    @classmethod
    def of(cls, record: JobRecord, **more: Any) -> EditView:
        progress = record.progress
        return cls(
            id=record.job.id,
            state=record.state,
            progress=ProgressView(**vars(progress)) if progress else None,
            created_at=record.created_at,
            started_at=record.started_at,
            finished_at=record.finished_at,
            result=record.result if record.state.is_terminal else None,
            **more,
        )


class BatchJobView(BaseModel):
    """A job of a batch."""

    id: str
    state: JobState


class BatchView(BaseModel):
    """A batch: its jobs by state, and a page of them in the order in which they came."""

    id: str
    total: int
    counts: dict[JobState, int]
    jobs: list[BatchJobView]


class ImageView(BaseModel):
    """One image of an answer in OpenAI's form; `seed` and `id` are ours."""

    b64_json: str | None = None
    url: str | None = None
    seed: int | None = None
    id: str | None = None


class ImagesView(BaseModel):
    """An answer in OpenAI's form; with status 202 `data` is empty, and `job` is the address to ask again."""

    created: int
    data: list[ImageView]
    output_format: str | None = None
    size: str | None = None
    job: str | None = None
    state: JobState | None = None

    def body(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)
