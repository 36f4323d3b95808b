"""The contract, version 1: what a job, its result and its events look like as JSON."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes, urlsplit
from uuid import uuid4

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import to_json

from jobs.errors import ErrorCode, RejectJob
from jobs.inline_image import inline_image
from jobs.loras import LORA_SCHEMES, MAX_LORA_SCALE, MAX_LORAS, parse_loras
from jobs.names import (
    LARGEST_MESSAGE_BYTES,
    LARGEST_METADATA_BYTES,
    LONGEST_URL,
    check_key,
    check_metadata,
    check_new_name,
    check_text,
)
from jobs.shown import hide_in_url, hide_secrets
from jobs.trace_context import TRACEPARENT_PATTERN

OutputFormat = Literal["png", "jpeg", "webp"]
Priority = Literal["high", "normal", "low"]
SizeMode = Literal["match", "fit", "reference"]
CallbackEvent = Literal["started", "progress", "succeeded", "failed", "cancelled"]
NEWS = ("started", "progress")
"""Events of a running job: a callback has to ask for them, and each is tried once."""

JOB_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
STORE_PROFILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
MAX_IMAGES = 4
LONGEST_PROMPT = 20_000
"""Characters; what an encoder reads of it is far less."""

LONGEST_INLINE_IMAGE = LARGEST_MESSAGE_BYTES
"""Characters of a `data:` URI."""

SMALLEST_SIDE, LARGEST_SIDE = 16, 4096
"""Pixels of an output that may be asked for."""

INPUT_SCHEMES = ("s3", "https", "http", "file", "data")
OUTPUT_SCHEMES = ("s3", "file", "https", "http")
URI_FORMS = {
    "s3": ("s3://bucket/key", r"s3://[^/]+/.+"),
    "file": ("file:///absolute/path", r"file://(localhost)?/.+"),
    "https": ("https://host/path", r"https://[^/]+(/.*)?"),
    "http": ("http://host/path", r"http://[^/]+(/.*)?"),
    "hf": ("hf://owner/repository/path.safetensors", r"hf://[\w.-]+/[\w.-]+(@[\w.-]+)?/[^?#]+"),
    "data": ("data:image/png;base64,...", r"data:.*,.*"),
}
FORMAT_OF_SUFFIX: dict[str, OutputFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SUFFIX_OF_FORMAT = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
FORMAT_OF_NAME: dict[str, OutputFormat] = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg"}
"""What people call a format beside its own name."""

RATIO_AS_WRITTEN = re.compile(r"^0*([1-9][0-9]{0,3})\s*[:/]\s*0*([1-9][0-9]{0,3})(?::00)?$", re.ASCII)
"""A shape as people write it, or as Excel keeps it: 16:9 in a cell becomes the time 16:09:00."""

OTHERS_NAME_FOR_NO_RATIO = "match_input_image"
"""What other services call it that nothing is asked for: the nearest preferred resolution."""

RANDOM_SEED = -1
"""The seed by which other tools ask for a random one."""

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class JobState(StrEnum):
    """State of a job; the last three are terminal and change only when a person retries the job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Contract(BaseModel):
    """Base of everything on the wire: unknown fields are refused by name, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _check_uri(uri: str, schemes: tuple[str, ...]) -> str:
    scheme = uri.partition(":")[0].lower()
    if scheme not in schemes:
        raise ValueError(f"{hide_secrets(uri)[:80]!r} is not a URI with one of the schemes {', '.join(schemes)}")
    check_text(uri)
    longest = LONGEST_INLINE_IMAGE if scheme == "data" else LONGEST_URL
    if len(uri) > longest:
        raise ValueError(f"has {len(uri):,} characters, at most {longest:,} are taken; name a place that can be read")
    form, pattern = URI_FORMS[scheme]
    if scheme in ("https", "http") and "@" in _host_part(uri):
        raise ValueError("has a user or password in it; make a presigned link, or serve the file without")
    if scheme in ("https", "http") and re.search(r"[\s\x00-\x1f\x7f]", _host_part(uri)):
        raise ValueError("has a blank or a control character in its host")
    if scheme == "hf" and not {".", ".."}.isdisjoint(re.split("[/@]", uri)):
        raise ValueError("should be a plain name, without '..' and '.'")
    if not re.fullmatch(pattern, uri, re.IGNORECASE | re.DOTALL):
        raise ValueError(f"{hide_secrets(uri)[:80]!r} does not have the form {form}")
    return uri


def _host_part(url: str) -> str:
    """What stands between the scheme of a web address and its path."""
    return re.split(r"[/?#\\]", url.partition("://")[2], maxsplit=1)[0]


def _name_in(uri: str) -> str:
    """The key or path that a URI of `OUTPUT_SCHEMES` names, as the store will see it.

    Raises:
        ValueError: a path that is not UTF-8.
    """
    scheme, _, rest = uri.partition("://")
    key = rest.partition("/")[2]
    if scheme.lower() == "s3":
        return key
    if scheme.lower() in ("https", "http"):
        key = without_signature(uri).partition("://")[2].partition("/")[2]
    try:
        return unquote_to_bytes(key).decode()
    except UnicodeDecodeError as error:
        raise ValueError("names a path that is not UTF-8") from error


def without_signature(uri: str) -> str:
    """A web address without its query, where presigned links carry their signature; any other URI as it is."""
    return re.split("[?#]", uri, maxsplit=1)[0] if uri[:4].lower() == "http" else uri


def format_named(name: str) -> str:
    """The output format that people call by this name, such as `JPG`; the name itself when there is none."""
    plain = name.strip().lower().removeprefix(".")
    return FORMAT_OF_NAME.get(plain, plain)


class Lora(Contract):
    """A LoRA file and how strongly it acts."""

    uri: str
    scale: float = Field(1.0, ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE)

    @field_validator("uri")
    @classmethod
    def _uri_has_a_known_form(cls, value: str) -> str:
        return _check_uri(value, LORA_SCHEMES)


class AppliedLora(Contract):
    """A LoRA that acted: SHA-256 of its file, and its scale."""

    sha256: str
    scale: float


class EditParams(Contract):
    """Parameters of sampling and of the output's encoding.

    `width` and `height` are pixels of the output; what is absent follows from the input picture. `aspect_ratio` asks
    for a shape instead, or for the input's own size. `output_format` follows from the suffix of the output's name when
    absent; otherwise it is png. The producer's options and columns come from these fields: `description` is the
    option's help, and `absent` describes the default where there is none.
    """

    num_inference_steps: int = Field(30, ge=1, le=1000, description="Sampling steps, 1 to 1000.")
    guidance_scale: float = Field(2.5, ge=0, le=100, description="How closely to follow the prompt, 0 to 100.")
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**64,
        description="Same seed, same picture; -1: random.",
        json_schema_extra={"absent": "random, reported"},
    )
    width: int | None = Field(
        None,
        ge=SMALLEST_SIDE,
        le=LARGEST_SIDE,
        description="Output pixels.",
        json_schema_extra={"absent": "follows the input"},
    )
    height: int | None = Field(
        None,
        ge=SMALLEST_SIDE,
        le=LARGEST_SIDE,
        description="Output pixels.",
        json_schema_extra={"absent": "follows the input"},
    )
    size_mode: SizeMode = Field(
        "match",
        description="match: sample at the size; fit: sample at the model's size, then scale; reference: official code.",
    )
    aspect_ratio: str | None = Field(
        None,
        description="Shape instead of width and height, 21:9 to 9:21; input: the input's own size.",
        json_schema_extra={"absent": "by width and height"},
    )
    output_format: OutputFormat | None = Field(
        None, description="png, jpeg or webp.", json_schema_extra={"absent": "by the output's name, else png"}
    )
    quality: int = Field(95, ge=1, le=100, description="Of jpeg and webp, 1 to 100.")
    embed_prompt: bool = Field(False, description="Write the prompt into the picture's EXIF.")
    loras: Annotated[tuple[Lora, ...], BeforeValidator(parse_loras)] = Field(
        (),
        max_length=MAX_LORAS,
        description=f"LoRA as URI or URI@SCALE, up to {MAX_LORAS}.",
        json_schema_extra={"absent": "none"},
    )

    @field_validator("seed", mode="before")
    @classmethod
    def _minus_one_is_random(cls, value: Any) -> Any:
        return None if value == RANDOM_SEED or value == str(RANDOM_SEED) else value

    @field_validator("size_mode", mode="before")
    @classmethod
    def _size_mode_in_any_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("aspect_ratio", mode="before")
    @classmethod
    def _aspect_ratio_as_people_write_it(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = value.strip().lower()
        return None if name == OTHERS_NAME_FOR_NO_RATIO else RATIO_AS_WRITTEN.sub(r"\1:\2", name)

    @field_validator("aspect_ratio")
    @classmethod
    def _aspect_ratio_can_be_had(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is None:
            return None
        if value != "input" and not _is_between_9_21_and_21_9(value):
            raise ValueError("should be input, or a shape from 21:9 to 9:21 such as 16:9")
        for side in ("width", "height"):
            if (pixels := others.data.get(side)) is not None:
                raise ValueError(f"contradicts {side} {pixels}; leave out {side}, or aspect_ratio")
        if others.data.get("size_mode") == "reference":
            raise ValueError("is nothing that size_mode reference knows; use match or fit, or give width and height")
        return value

    @field_validator("output_format", mode="before")
    @classmethod
    def _format_by_any_of_its_names(cls, value: Any) -> Any:
        return format_named(value) if isinstance(value, str) else value

    def without_secrets(self) -> EditParams:
        """These parameters as a result shows them: web addresses without user, password and query."""
        shown = tuple(lora.model_copy(update={"uri": hide_in_url(lora.uri)}) for lora in self.loras)
        return self.model_copy(update={"loras": shown}) if self.loras else self


class Callback(Contract):
    """URL that receives the end of the job and, where `events` asks for it, its start and its progress."""

    url: str
    events: tuple[CallbackEvent, ...] = ("succeeded", "failed", "cancelled")

    @field_validator("url")
    @classmethod
    def _url_is_http(cls, value: str) -> str:
        _ = urlsplit(_check_uri(value, ("https", "http"))).port  # raises ValueError for what is no host and port
        return value


class EditJob(Contract):
    """One edit: input pictures, an instruction, and where the result goes.

    `id` is the idempotency key: the same id twice is one job. `id`, `output` and `params.seed` are filled in at submit
    when absent.
    """

    version: Literal[1] = 1
    id: str = Field(default_factory=lambda: uuid4().hex, pattern=JOB_ID_PATTERN)
    image: Annotated[tuple[str, ...], BeforeValidator(_as_list)]
    prompt: str
    params: EditParams = EditParams()
    output: str | None = None
    callback: Callback | None = None
    batch: str | None = Field(None, pattern=JOB_ID_PATTERN)
    priority: Priority = Field(
        "normal", description="high, normal or low; a job is taken before all of lower priority."
    )
    tenant: str | None = Field(
        None, pattern=JOB_ID_PATTERN, description="Whom the job is for; within a priority tenants take turns."
    )
    store_profile: str | None = Field(
        None,
        pattern=STORE_PROFILE_PATTERN,
        description="Access of the worker to buckets, by its name there: for s3:// inputs, LoRAs and outputs.",
    )
    timeout_seconds: float | None = Field(
        None, gt=0, description="longest time of a run's own work; the worker's limit when absent"
    )
    traceparent: str | None = Field(
        None,
        pattern=TRACEPARENT_PATTERN,
        description="W3C trace context of whoever asks; the worker's spans belong to it.",
    )
    metadata: dict[str, Any] = Field(default_factory=dict)

    @field_validator("image")
    @classmethod
    def _images_are_uris(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not 1 <= len(value) <= MAX_IMAGES:
            raise ValueError(f"expected 1 to {MAX_IMAGES} pictures, not {len(value)}")
        for uri in value:
            if _check_uri(uri, INPUT_SCHEMES)[:5].lower() == "s3://":
                check_key(_name_in(uri))
        return value

    @field_validator("prompt")
    @classmethod
    def _prompt_says_something(cls, value: str) -> str:
        check_text(value)
        if not value.strip():
            raise ValueError("is empty; say what to change in the picture")
        if len(value) > LONGEST_PROMPT:
            raise ValueError(f"has {len(value):,} characters, at most {LONGEST_PROMPT:,} are taken")
        return value

    @field_validator("output")
    @classmethod
    def _output_is_a_uri(cls, value: str | None) -> str | None:
        if value is not None:
            check_new_name(_name_in(_check_uri(value, OUTPUT_SCHEMES)))
        return value

    @field_validator("metadata")
    @classmethod
    def _metadata_can_be_sent(cls, value: dict[str, Any]) -> dict[str, Any]:
        _check_sendable(value)
        return value

    @model_validator(mode="after")
    def _format_and_suffix_agree(self) -> EditJob:
        chosen, implied = self.params.output_format, self.implied_format
        if implied and chosen and implied != chosen:
            raise ValueError(f"output is named as {implied} but params.output_format is {chosen}")
        return self

    @classmethod
    def from_file(cls, path: str | Path, prompt: str, **fields: Any) -> EditJob:
        """An edit of a local image, which travels inside the job; `fields` are the job's other fields.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is larger than 8 MiB, or a field is wrong.
        """
        return cls(image=inline_image(Path(path).expanduser()), prompt=prompt, **fields)

    @model_validator(mode="after")
    def _output_is_no_input(self) -> EditJob:
        if self.output is not None and self.output in self.image:
            # A run that is repeated would edit what it has made.
            raise ValueError("output would overwrite the image that it is made of; use another name")
        return self

    @property
    def implied_format(self) -> OutputFormat | None:
        """The format that the suffix of `output` stands for."""
        return FORMAT_OF_SUFFIX.get(_suffix(without_signature(self.output))) if self.output else None

    def completed(self, output_root: str) -> EditJob:
        """Fill in what the sender left open: a random seed, the format, and an output under `output_root`."""
        chosen = self.params.output_format or self.implied_format or "png"
        seed = self.params.seed if self.params.seed is not None else secrets.randbits(32)
        folder = f"{output_root}/{self.batch}" if self.batch else output_root
        return self.model_copy(
            update={
                "params": self.params.model_copy(update={"seed": seed, "output_format": chosen}),
                "output": self.output or f"{folder}/{self.id}{SUFFIX_OF_FORMAT[chosen]}",
            }
        )


class ErrorInfo(Contract):
    """Error of a failed job: `code` for programs, `message` for people."""

    code: ErrorCode
    message: str
    retryable: bool = False


class EngineInfo(Contract):
    """The engine and weights that made the picture, and the active approximations."""

    name: str
    model: str
    fingerprint: str
    approximations: tuple[str, ...] = ()


class Timings(Contract):
    """Seconds, to four digits, spent in each stage of the run that ended the job; `queued` is the wait before it."""

    queued: float | None = None
    fetch: float | None = None
    encode: float | None = None
    sample: float | None = None
    decode: float | None = None
    upload: float | None = None

    @field_validator("*")
    @classmethod
    def _four_digits_are_enough(cls, value: float | None) -> float | None:
        return None if value is None else round(value, 4)


class Outcome(Contract):
    """The worker's part of a result, known at the end of a run; the ledger completes it to an `EditResult`."""

    output: str | None = None
    width: int | None = None
    height: int | None = None
    engine: EngineInfo | None = None
    loras: tuple[AppliedLora, ...] = ()
    timings: Timings = Timings()
    warnings: tuple[str, ...] = ()
    error: ErrorInfo | None = None


class EditResult(Outcome):
    """The result of a job: the answer to `producer status` and the `data` of a callback."""

    job_id: str
    state: JobState
    batch: str | None = None
    seed: int | None = None
    params: EditParams
    attempts: int
    metadata: dict[str, Any] = Field(default_factory=dict)


class ProgressInfo(Contract):
    """Progress of a running job: its stage and, while sampling, the number of steps done."""

    stage: str
    step: int
    total_steps: int


class JobEvent(Contract):
    """Body of a callback, in the form of Standard Webhooks; `progress` is there in those of a running job alone."""

    type: Literal["edit.started", "edit.progress", "edit.succeeded", "edit.failed", "edit.cancelled"]
    receiver: str
    """Host and port that the callback goes to: one who holds the same secret cannot pass it on to another receiver."""
    timestamp: datetime
    data: EditResult
    progress: ProgressInfo | None = None

    def body(self) -> bytes:
        """The JSON that is sent and signed."""
        return self.model_dump_json(exclude={"progress"} if self.progress is None else None).encode()


def parse_job(raw: Any) -> EditJob:
    """Read a job from decoded JSON.

    Raises:
        RejectJob: code `invalid_job`; one line that names every field that is wrong and why.
    """
    try:
        return EditJob.model_validate(raw)
    except ValidationError as error:
        raise RejectJob(ErrorCode.INVALID_JOB, "; ".join(describe_problem(item) for item in error.errors())) from error


def salvage_job(raw: Any, job_id: str) -> EditJob:
    """Keep of something that is not a valid job what is needed to report on it: id, prompt, callback, metadata."""
    fields = raw if isinstance(raw, dict) else {}
    try:
        callback = Callback.model_validate(fields.get("callback"))
    except ValidationError:
        callback = None
    metadata = fields.get("metadata")
    return EditJob.model_construct(
        id=job_id,
        image=(),
        prompt=str(fields.get("prompt", ""))[:LONGEST_PROMPT].encode(errors="replace").decode(),
        params=EditParams(),
        callback=callback,
        metadata=metadata if isinstance(metadata, dict) and _can_be_sent(metadata) else {},
    )


def _check_sendable(metadata: dict[str, Any]) -> None:
    """Check that metadata can be stored, and sent in a callback.

    Raises:
        ValueError: they cannot, or are larger than `LARGEST_METADATA_BYTES`.
    """
    check_metadata(metadata)
    try:
        size_bytes = len(to_json(metadata, inf_nan_mode="strings"))
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if size_bytes > LARGEST_METADATA_BYTES:
        raise ValueError(
            f"has {size_bytes:,} bytes as JSON, at most {LARGEST_METADATA_BYTES:,} are taken; "
            "leave out what no result needs"
        )


def _can_be_sent(metadata: dict[str, Any]) -> bool:
    try:
        _check_sendable(metadata)
    except ValueError:
        return False
    return True


def describe_problem(problem: Any) -> str:
    """Describe a pydantic error of the contract in one clause: field, reason, value."""
    field = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int)) or "job"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown field; see docs/contract.md for the fields of version 1"
    if problem["type"] == "missing":
        return f"{field}: missing"
    if problem["type"] == "string_unicode":
        message = "has half of a surrogate pair (\\ud800 to \\udfff); write the character itself"
    given = problem["input"]
    shown = (
        f" (given {hide_secrets(repr(given))})"
        if isinstance(given, int | float) or (isinstance(given, str) and 0 < len(given) <= 60 and field != "prompt")
        else ""
    )
    return f"{field}: {message[0].lower()}{message[1:]}{shown}"


def _is_between_9_21_and_21_9(ratio: str) -> bool:
    numbers = RATIO_AS_WRITTEN.fullmatch(ratio)
    return numbers is not None and 9 / 21 <= int(numbers[1]) / int(numbers[2]) <= 21 / 9


def _suffix(uri: str | None) -> str:
    name = (uri or "").rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""
