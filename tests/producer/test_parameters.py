"""A sampling parameter is declared once: options, columns and pages follow the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.schema import EditParams, Lora
from producer.cli import app
from producer.table.columns import JOB_COLUMNS
from producer.table.plan import RowDefaults
from producer.table.table import open_table

DOCS = Path(__file__).parent.parent.parent / "docs"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EXAMPLES = {
    "num_inference_steps": 7,
    "guidance_scale": 3.5,
    "seed": 11,
    "width": 64,
    "height": 96,
    "size_mode": "fit",
    "aspect_ratio": "16:9",
    "output_format": "webp",
    "quality": 80,
    "embed_prompt": True,
    "loras": "hf://owner/repository/snow.safetensors@0.5",
}
READ = EXAMPLES | {"loras": (Lora(uri="hf://owner/repository/snow.safetensors", scale=0.5),)}

every_parameter = pytest.mark.parametrize("name", EditParams.model_fields)


@every_parameter
@pytest.mark.parametrize("command", ["submit", "run", "edit"])
def test_every_parameter_is_an_option_with_help_and_default_from_the_schema(command: str, name: str) -> None:
    (option,) = [parameter for parameter in COMMANDS[command].params if parameter.name == name]
    field = EditParams.model_fields[name]

    assert option.opts == [f"--{name.replace('_', '-')}"]
    assert field.description
    assert option.help.startswith(f"{field.description} ")
    assert "[default: " in option.help
    assert "[default: None]" not in option.help


@every_parameter
def test_every_parameter_is_read_from_its_column(name: str, tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text(f"image,prompt,{name}\nhttps://example.org/cat.png,make it snow,{EXAMPLES[name]}\n")

    with open_table(str(table)) as opened:
        (row,) = opened.rows(opened.plan("s3://bucket/out", RowDefaults()))

    assert name in JOB_COLUMNS
    assert row.job is not None
    assert getattr(row.job.params, name) == READ[name]


@every_parameter
def test_every_parameter_is_on_both_pages(name: str) -> None:
    assert f"`params.{name}`" in (DOCS / "contract.md").read_text()
    assert f"`{name}`" in (DOCS / "producer.md").read_text()


def test_a_flag_that_is_not_given_leaves_the_choice_to_the_row() -> None:
    context = COMMANDS["run"].make_context("run", ["data.csv", "--output-dir", "out"])

    assert {context.params[name] for name in EditParams.model_fields} <= {None, ()}
