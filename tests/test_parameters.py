"""A sampling parameter is declared once on each side of the queue and travels as one value between them.

A new one is written in five places: `jobs.schema.EditParams`, `kontext.EditRequest`, the engine (`Kontext.edit` and the
stage that uses it), docs/contract.md, and a test of what it does. These tests name the one that was forgotten.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

import kontext
from jobs.schema import EditJob, EditParams
from kontext import EditRequest, Lora
from worker.engines import SAMPLING_PARAMETERS, edit_request

ROOT = Path(__file__).parent.parent
IMAGE = Image.new("RGB", (64, 48))

OF_THE_FILE = {"output_format", "quality", "embed_prompt"}
"""Parameters of a job that are no engine's: how the finished image is written."""

BOTH_DEFAULT_TO_A_RANDOM_ONE = {"seed"}

OTHER_VALUES = {
    "num_inference_steps": 7,
    "guidance_scale": 4.5,
    "seed": 11,
    "width": 80,
    "height": 96,
    "size_mode": "fit",
    "loras": [{"uri": "file:///a.safetensors", "scale": 0.5}],
}
"""A value of each parameter that is not its default."""

LORA = Lora(Path("/kept/a.safetensors"), 0.5)

INSTEAD_OF_OTHERS = {"aspect_ratio": ("16:9", {"width", "height"})}
"""A value of each parameter that excludes others, and those."""


def parameters_of_a_request() -> set[str]:
    return {field.name for field in fields(EditRequest)} - {"images", "prompt"}


def test_the_schema_and_the_engines_request_have_the_same_sampling_parameters() -> None:
    assert EditParams.model_fields.keys() - OF_THE_FILE == parameters_of_a_request()


@pytest.mark.parametrize("one", [None, *INSTEAD_OF_OTHERS])
def test_every_sampling_parameter_of_a_job_reaches_the_engine(one: str | None) -> None:
    value, excluded = INSTEAD_OF_OTHERS[one] if one else (None, set(INSTEAD_OF_OTHERS))
    values = {name: given for name, given in {**OTHER_VALUES, one: value}.items() if name and name not in excluded}
    job = EditJob.model_validate({"image": "file:///a.png", "prompt": "snow", "params": values})

    request = edit_request(job, [IMAGE], [LORA])

    assert values.keys() | excluded == parameters_of_a_request(), "a new parameter needs a value in OTHER_VALUES"
    assert {name: getattr(request, name) for name in values} == values | {"loras": (LORA,)}
    assert (request.images, request.prompt) == ((IMAGE,), "snow")


def test_a_parameter_that_a_job_leaves_open_has_one_default_everywhere() -> None:
    job = EditJob.model_validate({"image": "file:///a.png", "prompt": "snow"})
    spelled_out = inspect.signature(kontext.Kontext.edit).parameters

    request = edit_request(job, [IMAGE])

    for name in parameters_of_a_request() - BOTH_DEFAULT_TO_A_RANDOM_ONE:
        assert getattr(request, name) == getattr(EditRequest((IMAGE,), "snow"), name)
        assert getattr(request, name) == EditParams.model_fields[name].default
        assert getattr(request, name) == spelled_out[name].default
    assert request.seed != edit_request(job, [IMAGE]).seed


def test_people_who_use_the_model_alone_can_give_every_parameter() -> None:
    assert inspect.signature(kontext.Kontext.edit).parameters.keys() - {"self", "on_step"} == {
        *("images", "prompt"),
        *parameters_of_a_request(),
    }


@pytest.mark.parametrize("name", sorted(parameters_of_a_request()))
def test_every_parameter_is_documented(name: str) -> None:
    assert f'"{name}": ' in (ROOT / "docs" / "contract.md").read_text()


def test_nothing_else_in_the_worker_and_in_the_model_lists_parameters() -> None:
    """A list is two or more of them as names of arguments; width and height alone are a size."""
    listings = {
        (path.relative_to(ROOT).as_posix(), name)
        for package in ("kontext", "worker")
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in functions_that_list_parameters(path)
    }

    assert listings == {("kontext/pipeline.py", "edit")}
    assert set(SAMPLING_PARAMETERS) == parameters_of_a_request()


def functions_that_list_parameters(path: Path) -> Iterator[str]:
    """Names of functions that take, or pass on, two parameters beside a size by their names."""
    looked_for = parameters_of_a_request() - {"width", "height"}
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if not isinstance(node, ast.FunctionDef):
            continue
        taken = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
        passed = [
            {keyword.arg for keyword in call.keywords if not isinstance(keyword.value, ast.Constant)}
            for call in ast.walk(node)
            if isinstance(call, ast.Call)
        ]
        if any(len(looked_for & names) >= 2 for names in (taken, *passed)):
            yield node.name
