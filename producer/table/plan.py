"""Everything except the table that determines its jobs: batch, places of outputs, values for all rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from jobs.errors import SettingsError
from jobs.schema import Callback, EditJob, EditParams
from producer.table.selection import ALL_ROWS, RowSelection

PARAM_COLUMNS = tuple(EditParams.model_fields)
NAME_COLUMNS = ("priority", "tenant", "store_profile")
"""Fields of a job that are plain names."""


@dataclass(frozen=True)
class RowDefaults:
    """Values from the command line for all rows, by the name of their column; a row's own cell wins."""

    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, **options: Any) -> RowDefaults:
        """Take the values as the command line gave them; None means not given.

        Raises:
            SettingsError: names the option, its value and what is expected.
        """
        return cls({name: value for name, value in options.items() if value is not None}).checked()

    def checked(self) -> RowDefaults:
        """These values, when a job can have them.

        Raises:
            SettingsError: names the option, its value and what is expected.
        """
        try:
            self.params()
            if not {"callback_url", "callback_events"}.isdisjoint(self.given):
                Callback.model_validate(callback_fields({"callback_url": "https://any.example", **self.given}))
            names = {name: value for name, value in self.given.items() if name in NAME_COLUMNS}
            EditJob(image=("s3://any/image",), prompt="any", **names)
        except ValidationError as error:
            raise SettingsError(_describe(error)) from error
        return self

    def params(self) -> EditParams:
        """The values as the parameters of a job."""
        return EditParams(**{name: value for name, value in self.given.items() if name in PARAM_COLUMNS})


@dataclass(frozen=True)
class Plan:
    """The batch of a table, the values for all its rows, where its outputs go, and which rows are meant.

    Outputs that a row names lie under `output_root`, the others are numbered under `numbered_root`; images that
    stand in the table itself are put under `images_root`. All three are URIs.
    """

    batch: str
    output_root: str
    numbered_root: str
    images_root: str
    defaults: RowDefaults
    selection: RowSelection = ALL_ROWS


def advice(problem: Any) -> str:
    """Advice from a problem found by pydantic: "should be less than or equal to 4096"."""
    if problem["type"].startswith("int_"):
        return "should be a whole number"
    if problem["type"].startswith("float_"):
        return "should be a number"
    if problem["type"].startswith("bool_"):
        return "should be true or false"
    if problem["type"] == "string_pattern_mismatch":
        return "should be at most 128 letters, digits and . _ : -, a letter or digit first"
    said: str = problem["msg"]
    return said.removeprefix("Value error, ").removeprefix("Input ").replace("String should", "should", 1)


def callback_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """A callback as the schema takes it, from `callback_url` and `callback_events`: a list, or text with commas."""
    fields: dict[str, Any] = {"url": str(values["callback_url"]).strip()}
    if (events := values.get("callback_events")) is not None:
        fields["events"] = re.split(r"[,;|\s]+", events.strip().lower()) if isinstance(events, str) else events
    return fields


def _describe(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = str(problem["loc"][0])
    option = f"callback-{field}" if field in Callback.model_fields else field.replace("_", "-")
    return f"--{option} {problem['input']}: {advice(problem)}"
