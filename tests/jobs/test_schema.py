"""The contract: what is accepted, what is filled in, and how a refusal reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.errors import ErrorCode, RejectJob
from jobs.schema import EditJob, JobState, parse_job

EVERYTHING = {
    "version": 1,
    "id": "cat-1",
    "image": "s3://bucket/in/cat.png",
    "prompt": "make it snow",
    "params": {
        "num_inference_steps": 30,
        "guidance_scale": 2.5,
        "seed": 7,
        "width": None,
        "height": None,
        "output_format": "png",
        "quality": 95,
    },
    "output": "s3://bucket/out/cat.png",
    "callback": {"url": "https://example.org/hook", "events": ["succeeded", "failed", "cancelled"]},
    "batch": "spring-2026",
    "metadata": {"any": "thing, echoed back"},
}


def job(**fields: Any) -> dict[str, Any]:
    return {"image": "s3://bucket/in/cat.png", "prompt": "make it snow", **fields}


def test_the_whole_contract_is_read_and_written_again() -> None:
    parsed = parse_job(EVERYTHING)

    assert parse_job(json.loads(parsed.model_dump_json())) == parsed
    assert parsed.image == ("s3://bucket/in/cat.png",)


def test_two_fields_make_a_job_with_the_defaults() -> None:
    params = parse_job(job()).params

    assert (params.num_inference_steps, params.guidance_scale, params.quality) == (30, 2.5, 95)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "image: missing; prompt: missing"),
        ("make it snow", "job: input should be a valid dictionary"),
        (job(promt="x"), "promt: unknown field; see docs/contract.md"),
        (job(params={"steps": 3}), "params.steps: unknown field"),
        (job(version=2), "version: input should be 1 (given 2)"),
        (job(prompt="  "), "prompt: is empty; say what to change"),
        (job(image=[]), "image: expected 1 to 4 pictures, not 0"),
        (job(image=["s3://b/k"] * 5), "image: expected 1 to 4 pictures, not 5"),
        (job(image="cat.png"), "image: 'cat.png' is not a URI with one of the schemes s3, https, http, file, data"),
        (job(image="ftp://host/cat.png"), "is not a URI with one of the schemes"),
        (job(image="s3://bucket"), "image: 's3://bucket' does not have the form s3://bucket/key"),
        (job(output="https://host/cat.png"), "is not a URI with one of the schemes s3, file"),
        (job(params={"height": 100000}), "params.height: input should be less than or equal to 4096 (given 100000)"),
        (job(params={"num_inference_steps": 0}), "params.num_inference_steps: input should be greater than"),
        (job(params={"guidance_scale": float("nan")}), "params.guidance_scale: input should be a finite number"),
        (job(params={"seed": -1}), "params.seed: input should be greater than or equal to 0 (given -1)"),
        (job(output="s3://b/cat.jpg", params={"output_format": "png"}), "output is named as jpeg but"),
        (job(callback={"url": "host/hook"}), "callback.url: 'host/hook' is not a URI"),
        (job(callback={"url": "https://h/x", "events": ["done"]}), "callback.events: input should be 'succeeded'"),
        (job(callback={"url": "http://[x/"}), "callback.url: "),
        (job(metadata={"a": "\ud800"}), "metadata: is not JSON"),
        (job(id="../etc"), "id: string should match pattern"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_reason(raw: Any, message: str) -> None:
    with pytest.raises(RejectJob) as refusal:
        parse_job(raw)

    assert message in refusal.value.message
    assert "\n" not in refusal.value.message
    assert refusal.value.code is ErrorCode.INVALID_JOB


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(RejectJob, match=r"prompt: .*; params\.width: "):
        parse_job(job(prompt="", params={"width": 1}))


@pytest.mark.parametrize(
    ("fields", "output", "output_format"),
    [
        ({}, "s3://out/a.png", "png"),
        ({"batch": "b"}, "s3://out/b/a.png", "png"),
        ({"params": {"output_format": "jpeg"}}, "s3://out/a.jpg", "jpeg"),
        ({"output": "s3://else/x.JPG"}, "s3://else/x.JPG", "jpeg"),
        ({"output": "s3://else/x"}, "s3://else/x", "png"),
    ],
)
def test_output_and_format_follow_from_each_other(fields: Any, output: str, output_format: str) -> None:
    completed = parse_job(job(id="a", **fields)).completed("s3://out")

    assert (completed.output, completed.params.output_format) == (output, output_format)


def test_a_missing_seed_is_drawn_and_recorded_and_a_given_one_is_kept() -> None:
    assert parse_job(job(params={"seed": 0})).completed("s3://out").params.seed == 0
    drawn = {EditJob(image="s3://b/k", prompt="x").completed("s3://out").params.seed for _ in range(3)}
    assert len(drawn) == 3
    assert all(seed is not None and 0 <= seed < 2**32 for seed in drawn)


def test_three_states_are_terminal() -> None:
    assert [state for state in JobState if state.is_terminal] == ["succeeded", "failed", "cancelled"]
