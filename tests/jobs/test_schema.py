"""The contract: what is accepted, what is filled in, and how a refusal reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.errors import ErrorCode, RejectJob
from jobs.schema import EditJob, EditParams, JobState, parse_job, salvage_job

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


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


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
        (job(output="ftp://host/cat.png"), "is not a URI with one of the schemes s3, file, https, http"),
        (job(output="https://host/"), "output: should end in the name of a file"),
        (job(output="https://me:secret@host/cat.png"), "output: has a user or password in it"),
        (job(output="https://host/a/../cat.png?sig=1"), "output: should be a plain name, without '..'"),
        (job(output="https://host/cat.jpg?x=.png", params={"output_format": "png"}), "output is named as jpeg but"),
        (job(params={"height": 100000}), "params.height: input should be less than or equal to 4096 (given 100000)"),
        (job(params={"num_inference_steps": 0}), "params.num_inference_steps: input should be greater than"),
        (job(params={"guidance_scale": float("nan")}), "params.guidance_scale: input should be a finite number"),
        (job(params={"seed": -2}), "params.seed: input should be greater than or equal to 0 (given -2)"),
        (job(params={"seed": 2**64}), "params.seed: input should be less than 18446744073709551616"),
        (job(params={"output_format": "gif"}), "params.output_format: input should be 'png', 'jpeg' or 'webp'"),
        (job(output="s3://b/cat.jpg", params={"output_format": "png"}), "output is named as jpeg but"),
        (job(image="s3://b/cat.png", output="s3://b/cat.png"), "output would overwrite the image that it is made of"),
        (job(callback={"url": "host/hook"}), "callback.url: 'host/hook' is not a URI"),
        (job(callback={"url": "https://h/x", "events": ["done"]}), "callback.events: input should be 'started'"),
        (job(callback={"url": "http://[x/"}), "callback.url: "),
        (job(prompt="a\ud800"), "prompt: has half of a surrogate pair"),
        (job(image="s3://b/\ud800"), "image: has half of a surrogate pair"),
        (job(output="s3://b/\ud800"), "output: has half of a surrogate pair"),
        (job(callback={"url": "https://h/\ud800"}), "callback.url: has half of a surrogate pair"),
        (job(metadata={"a": [{"b": "\ud800"}]}), "metadata: has half of a surrogate pair"),
        (job(metadata={"\udfff": 1}), "metadata: has half of a surrogate pair"),
        (job(metadata={"a": nested(32)}), "metadata: nests lists or objects more than 32 deep"),
        (job(metadata={"a": nested(50_000)}), "metadata: nests lists or objects more than 32 deep"),
        (job(id="../etc"), "id: string should match pattern"),
        (job(prompt="é" * 20_001), "prompt: has 20,001 characters, at most 20,000 are taken"),
        (job(metadata={"a": "é" * 2**19}), "metadata: has 1,048,584 bytes as JSON, at most 1,048,576 are taken"),
        (job(image="https://h/" + "a" * 8183), "image: has 8,193 characters, at most 8,192 are taken; name a place"),
        (job(image="data:," + "a" * 2**24), "image: has 16,777,222 characters, at most 16,777,216 are taken"),
        (job(callback={"url": "https://h/" + "a" * 8183}), "callback.url: has 8,193 characters"),
        (job(params={"loras": ["https://h/" + "a" * 8183]}), "params.loras.uri: has 8,193 characters"),
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
        ({"output": "https://h/x.webp?X-Amz-Signature=a.png"}, "https://h/x.webp?X-Amz-Signature=a.png", "webp"),
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


@pytest.mark.parametrize(
    ("given", "kept"),
    [("jpg", "jpeg"), ("JPG", "jpeg"), (".jpeg", "jpeg"), ("JPEG", "jpeg"), ("PNG", "png"), (" WebP ", "webp")],
)
def test_a_format_is_known_by_any_of_its_names(given: str, kept: str) -> None:
    assert parse_job(job(params={"output_format": given})).params.output_format == kept


def test_seeds_have_64_bits_and_minus_one_is_random() -> None:
    assert parse_job(job(params={"seed": 2**64 - 1})).params.seed == 2**64 - 1
    for asked in (-1, "-1", -1.0):
        assert parse_job(job(params={"seed": asked})).params.seed is None


def test_metadata_may_nest_as_deep_as_the_contract_says() -> None:
    assert parse_job(job(metadata={"a": nested(31)})).metadata == {"a": nested(31)}


def test_metadata_may_be_as_large_as_the_contract_says() -> None:
    largest = {"a": "x" * (2**20 - len('{"a":""}'))}

    assert parse_job(job(metadata=largest)).metadata == largest


@pytest.mark.parametrize("metadata", [{"a": "\ud800"}, {"a": "x" * 2**20}, {"a": nested(50_000)}, "text", None])
def test_what_is_kept_of_a_refused_job_can_be_stored_and_sent(metadata: Any) -> None:
    raw = job(prompt="a\ud800" * 20_000, metadata=metadata, callback={"url": "https://h/x"})

    kept = json.loads(salvage_job(raw, "one").model_dump_json())

    assert (kept["prompt"], kept["metadata"]) == ("a?" * 10_000, {})


def test_three_states_are_terminal() -> None:
    assert [state for state in JobState if state.is_terminal] == ["succeeded", "failed", "cancelled"]


@pytest.mark.parametrize(
    "url", ["https://me@host/a", "http://me:secret@host", "https://:secret@host?x", "HTTPS://a@b@host/"]
)
@pytest.mark.parametrize("field", ["image", "callback"])
def test_a_user_or_password_in_an_address_is_refused_and_not_shown(field: str, url: str) -> None:
    value = url if field == "image" else {"url": url}
    with pytest.raises(RejectJob, match=rf"{field}.*: has a user or password in it") as caught:
        parse_job({"image": "s3://b/a.png", "prompt": "x", field: value})

    assert "secret" not in caught.value.message


def test_an_at_sign_behind_the_host_is_part_of_the_path() -> None:
    assert parse_job({"image": "https://host/cat@2x.png?to=a@b", "prompt": "x"}).image == (
        "https://host/cat@2x.png?to=a@b",
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("16:9", "16:9"),
        (" 16 : 9 ", "16:9"),
        ("4/3", "4:3"),
        ("16:09", "16:9"),  # a time, as Excel writes it
        ("16:09:00", "16:9"),
        ("01:01:00", "1:1"),
        ("21:9", "21:9"),
        ("9:21", "9:21"),
        ("1920:1080", "1920:1080"),
        ("INPUT", "input"),
        ("match_input_image", None),
        (None, None),
    ],
)
def test_a_shape_is_read_as_people_write_it(given: str | None, kept: str | None) -> None:
    assert EditParams.model_validate({"aspect_ratio": given}).aspect_ratio == kept


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"aspect_ratio": "3:1"}, "aspect_ratio: should be input, or a shape from 21:9 to 9:21 such as 16:9"),
        ({"aspect_ratio": "wide"}, "such as 16:9 (given 'wide')"),
        ({"aspect_ratio": "0:9"}, "aspect_ratio: should be input"),
        ({"aspect_ratio": "1024x768"}, "(given '1024x768')"),
        ({"aspect_ratio": 1.5}, "aspect_ratio: input should be a valid string (given 1.5)"),
        ({"aspect_ratio": "16:9", "width": 512}, "contradicts width 512; leave out width, or aspect_ratio"),
        ({"aspect_ratio": "input", "height": 512}, "contradicts height 512; leave out height, or aspect_ratio"),
        ({"aspect_ratio": "1:1", "size_mode": "reference"}, "aspect_ratio: is nothing that size_mode reference knows"),
        ({"size_mode": "stretch"}, "size_mode: input should be 'match', 'fit' or 'reference' (given 'stretch')"),
    ],
)
def test_a_size_that_cannot_be_is_refused_by_its_field(params: dict[str, Any], said: str) -> None:
    with pytest.raises(RejectJob) as refused:
        parse_job({"image": "file:///a.png", "prompt": "snow", "params": params})

    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_size_mode_is_read_in_any_case() -> None:
    assert EditParams.model_validate({"size_mode": " Fit"}).size_mode == "fit"
