"""All settings, read once at start from `DG_*` variables and `.env` into one frozen object.

S3 settings are boto3's own (`AWS_*`, `AWS_ENDPOINT_URL`) and do not appear here.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis.connection import parse_url

from jobs.connection import SentinelAddress
from jobs.errors import SettingsError

TRUE_WORDS = frozenset({"true", "1", "yes", "on"})
FALSE_WORDS = frozenset({"false", "0", "no", "off"})
BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in TRUE_WORDS | FALSE_WORDS:
        return word in TRUE_WORDS
    raise ValueError("expected true/1/yes/on or false/0/no/off")


def parse_switch(value: Any) -> bool | None:
    """A boolean, or None for `auto`."""
    if value is None or str(value).strip().lower() == "auto":
        return None
    try:
        return parse_boolean(value)
    except ValueError as error:
        raise ValueError("expected auto, true or false") from error


def parse_bytes(value: Any) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if match is None or match[2].upper() not in BYTE_UNITS:
        raise ValueError("expected a number of bytes such as 64MiB or 67108864")
    return int(float(match[1]) * BYTE_UNITS[match[2].upper()])


def parse_list(value: Any) -> Any:
    """Split `a,b c` at commas and blanks."""
    return tuple(re.split(r"[,\s]+", value.strip())) if isinstance(value, str) and value.strip() else value or ()


def parse_paths(value: Any) -> Any:
    """Split `/a:/b` as PATH is split."""
    if isinstance(value, str):
        return tuple(Path(part).expanduser().resolve() for part in value.split(os.pathsep) if part)
    return value


Boolean = Annotated[bool, BeforeValidator(parse_boolean)]
Switch = Annotated[bool | None, BeforeValidator(parse_switch)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
BytesOrZero = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_list)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(parse_paths)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Every `DG_*` variable, with its default; the field `lease_seconds` is `DG_LEASE_SECONDS`."""

    model_config = SettingsConfigDict(env_prefix="DG_", env_file=".env", extra="ignore", frozen=True)

    flux_kontext_model: str | None = Field(None, description="model folder or hub id; default: the bundled tiny model")
    flux_kontext_engine: str = Field("native", description="native, official, standin, or module:callable")
    flux_kontext_device: str = Field("auto", description="auto, cuda, cuda:N, mps or cpu")
    flux_kontext_offload: Boolean = Field(False, description="stream weights to the device within a budget")
    flux_kontext_vram_budget: Bytes = Field(16 * 2**30, description="with offload: most of the device's memory to use")
    flux_kontext_cache_bytes: BytesOrZero = Field(
        256 * 2**20, description="host memory for prompts and pictures encoded before; 0: none"
    )
    flux_kontext_compile: Switch = Field(None, description="compile transformer and autoencoder; default auto: on CUDA")
    flux_kontext_attention: Literal["auto", "cudnn", "flash", "efficient", "math", "fa3", "fa2"] = Field(
        "auto", description="attention kernel; auto measures them once on CUDA"
    )
    flux_kontext_kernels: Literal["auto", "reference", "fast"] = Field(
        "auto", description="on a CPU: fast ones also for bfloat16, or the reference's also for float32"
    )
    flux_kontext_precision: Literal["bf16", "fp8"] = Field("bf16", description="fp8: faster linears, not exact")
    flux_kontext_max_sequence_length: int | None = Field(
        None, ge=64, le=1024, description="T5 tokens (64 to 1024); default: the model's, else 512"
    )

    broker_url: str = Field("redis://localhost:6379/0", repr=False, description="Redis: broker and ledger")
    key_prefix: str = Field("dg:", description="start of every ledger key in Redis")
    retention_seconds: Seconds = Field(7 * 86400, description="how long ended jobs stay in the ledger")

    output_uri: str = Field("", description="where outputs go when the job names none; default: file:// + ./output")
    file_roots: Paths = Field((), description="folders that file:// may touch, separated by ':'")
    buckets: Names = Field((), description="buckets that s3:// may touch, or *")
    private_hosts: Names = Field((), description="private hosts or networks that http(s):// may reach")
    max_input_bytes: Bytes = Field(64 * 2**20, description="largest input file")
    max_input_pixels: int = Field(64_000_000, gt=0, description="largest input picture, width times height")

    lease_seconds: float = Field(
        30, ge=1, allow_inf_nan=False, description="a silent worker's job runs again after this"
    )
    max_queued: int = Field(0, ge=0, description="refuse new jobs while this many wait; 0: no bound")
    max_attempts: int = Field(3, ge=1, description="runs of one job before it fails")
    outage_seconds: float = Field(
        600, ge=0, allow_inf_nan=False, description="how long a job waits in all for stores and hosts that are away"
    )
    job_timeout_seconds: Seconds = Field(900, description="longest run of one job")
    drain_seconds: float = Field(60, ge=0, description="time a running job gets at SIGTERM before it is handed back")
    stall_seconds: Seconds = Field(300, description="a step longer than this means a hung device: the worker exits")

    callback_secret: SecretStr | None = Field(None, description="whsec_...; several, separated by blanks, to rotate")
    callback_timeout_seconds: Seconds = Field(20, description="time for one callback request")

    worker_name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", description="shown in status"
    )
    worker_threads: int = Field(3, ge=1, description="jobs in flight: one samples while others download and upload")
    runtime_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / f"kontext-edits-{os.getuid()}",
        description="where a worker leaves its health file",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="how much is logged")

    @field_validator("output_uri")
    @classmethod
    def _output_uri_is_a_folder_uri(cls, value: str) -> str:
        value = value or (Path.cwd() / "output").as_uri()
        if not re.match(r"(file|s3)://.+", value):
            raise ValueError("expected s3://bucket/prefix or file:///absolute/folder")
        return value.rstrip("/")

    @field_validator("broker_url")
    @classmethod
    def _broker_is_redis(cls, value: str) -> str:
        if value.startswith("sentinel://"):
            SentinelAddress.parse(value)
        elif not re.match(r"(redis|rediss|redis\+socket)://", value) or not _is_redis_url(_as_redis_url(value)):
            raise ValueError("expected redis://host:port/db, rediss://..., sentinel://... or redis+socket:///path")
        return value

    @field_validator("callback_secret")
    @classmethod
    def _secrets_are_standard_webhooks_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        for secret in value.get_secret_value().split() if value else ():
            if not _is_webhook_secret(secret):
                raise ValueError(
                    "expected whsec_ followed by base64; make one with: echo whsec_$(openssl rand -base64 24)"
                )
        return value

    @property
    def callback_secrets(self) -> tuple[str, ...]:
        """The signing secrets, newest first; empty when callbacks are unsigned."""
        return tuple(self.callback_secret.get_secret_value().split()) if self.callback_secret else ()

    @property
    def redis_url(self) -> str:
        """The broker's address as redis-py spells it (Celery says `redis+socket://` where redis-py says `unix://`)."""
        return _as_redis_url(self.broker_url)


def _as_redis_url(broker_url: str) -> str:
    return broker_url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")


def _is_redis_url(url: str) -> bool:
    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:  # its message may hold a part of the password
        return False
    return True


def _is_webhook_secret(secret: str) -> bool:
    try:
        return secret.startswith("whsec_") and len(b64decode(secret.removeprefix("whsec_"), validate=True)) >= 12
    except ValueError:
        return False


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; keyword arguments win over the environment.

    Raises:
        SettingsError: a value cannot be used; one line that names each variable, its value and what is expected.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(problem) for problem in error.errors())) from error


def _describe(problem: Any) -> str:
    name = "DG_" + "_".join(str(part) for part in problem["loc"][:1]).upper()
    said = problem["msg"].removeprefix("Value error, ")
    shown = "" if name in ("DG_CALLBACK_SECRET", "DG_BROKER_URL") else f"={problem['input']!r}"  # may hold secrets
    return f"{name}{shown}: {said[0].lower()}{said[1:]}"
