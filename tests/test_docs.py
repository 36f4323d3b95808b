"""The documentation says what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from jobs.errors import ErrorCode
from jobs.schema import EditJob, EditParams, EditResult, parse_job
from producer.http.settings import HttpSettings
from worker.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"


def documented(page: str, pattern: str) -> set[str]:
    return set(re.findall(pattern, (DOCS / page).read_text()))


def test_every_variable_is_documented_and_nothing_else() -> None:
    variables = {f"DG_{name.upper()}" for name in {*Settings.model_fields} | {*HttpSettings.model_fields}}

    assert documented("configuration.md", r"\bDG_[A-Z_]+\b") == variables


def test_every_field_and_error_code_of_the_contract_is_documented() -> None:
    text = (DOCS / "contract.md").read_text()
    fields = [*EditJob.model_fields, *(f"params.{name}" for name in EditParams.model_fields)]

    assert [name for name in fields if name != "version" and name != "params" and f"`{name}`" not in text] == []
    assert [code for code in ErrorCode if f"`{code}`" not in text] == []
    assert [name for name in EditResult.model_fields if f'"{name}"' not in text] == []


def test_the_example_job_is_a_job() -> None:
    text = (DOCS / "contract.md").read_text()
    example = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert example is not None

    parse_job(json.loads(example[1]))
