"""Settings from `DG_*` variables and `.env`: the reader, and the variables that producers and workers share.

Each reader has a class of its own with the variables it needs, so that a producer neither holds the worker's secrets
nor fails over the worker's values: `BrokerSettings` here, `StorageSettings` in `storage`, `Settings` in `worker`.
They are read once at start into a frozen object.
"""

from __future__ import annotations

import os
import re
from collections.abc import Set
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.broker_url import as_redis_url, check_broker_url
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
        raise ValueError("expected auto, true/1/yes/on or false/0/no/off") from error


def parse_bytes(value: Any) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if match is None or match[2].upper() not in BYTE_UNITS:
        raise ValueError("expected a number of bytes such as 64MiB or 67108864")
    return int(float(match[1]) * BYTE_UNITS[match[2].upper()])


def parse_list(value: Any) -> Any:
    """Split `a,b c` at commas and blanks."""
    return tuple(re.split(r"[,\s]+", value.strip())) if isinstance(value, str) and value.strip() else value or ()


def parse_paths(value: Any) -> Any:
    """Split `/a:/b` as PATH is split; `file:///a:file:///b`, as other variables have it, means the same."""
    if isinstance(value, str):
        parts = re.findall(rf"(?:file:(?=//))?[^{os.pathsep}]+", value)
        return tuple(Path(_without_scheme(part)).expanduser().resolve() for part in parts)
    return value


def _without_scheme(path: str) -> str:
    return unquote(urlsplit(path).path) if path.startswith("file://") else path


Switch = Annotated[bool | None, BeforeValidator(parse_switch)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
BytesOrZero = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_list)]
Ports = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode, BeforeValidator(parse_list), Field(min_length=1)
]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(parse_paths)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]

S = TypeVar("S", bound="BrokerSettings")


class BrokerSettings(BaseSettings):
    """The variables of whoever submits, watches or runs jobs; the field `broker_url` is `DG_BROKER_URL`.

    A field with `repr=False` may hold a secret: no message shows its value.
    """

    model_config = SettingsConfigDict(
        env_prefix="DG_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    broker_url: str = Field("redis://localhost:6379/0", repr=False, description="Redis: broker and ledger")
    key_prefix: str = Field("dg:", description="start of every ledger key in Redis")
    retention_seconds: Seconds = Field(7 * 86400, description="how long ended jobs stay in the ledger")
    max_queued: int = Field(0, ge=0, description="refuse new jobs while this many wait; 0: no bound")
    max_queued_per_tenant: int = Field(
        0, ge=0, description="refuse a tenant's new jobs while this many of its wait; 0: no bound"
    )
    output_uri: str = Field("", description="where outputs go when the job names none; default: file:// + ./output")

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
        return check_broker_url(value)

    @property
    def redis_url(self) -> str:
        """The broker's address as redis-py spells it."""
        return as_redis_url(self.broker_url)


def load_settings(kind: type[S], /, **overrides: Any) -> S:
    """Read settings of one kind; keyword arguments win over the environment.

    Raises:
        SettingsError: a value cannot be used; one line that names each variable, its value and the expected form.
    """
    try:
        return kind(**overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(kind, problem) for problem in error.errors())) from error


DOORS_OWN = frozenset(
    ("http_host", "http_port", "http_url", "http_origins", "http_buckets", "api_keys", "upload_uri"),
)
"""Settings of the HTTP door alone, which may stand in a `.env` that all processes share."""


def unknown_variables(kind: type[BrokerSettings]) -> list[str]:
    """Say of each `DG_*` variable of the environment or `.env` that no setting has its name, and which name is near.

    Settings ignore such a variable: a misspelt one costs a night.
    """
    known = {f"DG_{name.upper()}" for name in {*kind.model_fields} | DOORS_OWN}
    given = {*os.environ, *dotenv_values(".env")}
    return [_describe_unknown(name, known) for name in sorted(given - known) if name.startswith("DG_")]


def _describe_unknown(name: str, known: Set[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"{name} is no setting{f': did you mean {near[0]}?' if near else ', see docs/configuration.md'}"


def _describe(kind: type[BrokerSettings], problem: Any) -> str:
    field = str(problem["loc"][0])
    message = problem["msg"].removeprefix("Value error, ")
    shown = f"={problem['input']!r}" if kind.model_fields[field].repr else ""
    return f"DG_{field.upper()}{shown}: {message[0].lower()}{message[1:]}"
