"""`POST /v1/images/edits`, with OpenAI's own client and by hand."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from jobs.queue import count_messages
from jobs.schema import EditJob, JobState
from producer import Client
from producer.http.images import NOT_HERE, TAKEN_WITHOUT_EFFECT
from producer.http.openapi import document
from tests.producer.http.conftest import DATA, OpenDoor, RunningDoor, Workers, error_of, png, size_of
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def ai(door: RunningDoor) -> Iterator[openai.OpenAI]:
    """OpenAI's client of `door`."""
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", timeout=PATIENCE_SECONDS, max_retries=0) as client:
        yield client


def decoded(image: Any) -> bytes:
    return base64.b64decode(image.b64_json)


def test_openais_client_edits_an_image(ai: openai.OpenAI, workers: Workers, client: Client) -> None:
    answer = ai.images.edit(
        model="kontext",
        image=("cat.png", png(), "image/png"),
        prompt="make it snow",
        size="512x256",
        output_format="jpeg",
        output_compression=80,
        quality="high",
        user="ann",
        extra_body={"seed": 7, "num_inference_steps": 12, "guidance_scale": 3.5},
    )

    (image,) = answer.data or []
    assert (size_of(decoded(image)), answer.output_format, answer.size) == ((512, 256), "jpeg", "512x256")
    job = client.get(image.id).job  # type: ignore[attr-defined]
    assert (job.params.seed, job.params.num_inference_steps, job.params.guidance_scale) == (7, 12, 3.5)
    assert (job.params.quality, job.metadata) == (80, {"user": "ann"})


def test_several_inputs_and_several_images(ai: openai.OpenAI, workers: Workers, client: Client) -> None:
    answer = ai.images.edit(
        image=[("a.png", png("red"), "image/png"), ("b.png", png("blue"), "image/png")],
        prompt="put them side by side",
        n=3,
        size="auto",
        extra_body={"seed": 5},
    )

    assert [image.seed for image in answer.data or []] == [5, 6, 7]  # type: ignore[attr-defined]
    job = client.get(answer.data[0].id).job  # type: ignore[attr-defined, index]
    assert len(job.image) == 2
    assert client.status(job.batch or "")[JobState.SUCCEEDED] == 3


def test_links_lead_to_the_images(ai: openai.OpenAI, workers: Workers) -> None:
    answer = ai.images.edit(image=("cat.png", png()), prompt="snow", response_format="url")

    (image,) = answer.data or []
    assert image.b64_json is None
    assert size_of(httpx2.get(image.url or "", trust_env=False).content) == (64, 48)


def test_what_takes_longer_than_the_timeout_is_202_with_an_address(http: httpx2.Client, workers: Workers) -> None:
    for count, kind in ((1, "edits"), (2, "batches")):
        response = http.post(
            "/v1/images/edits",
            files={"image": ("cat.png", png())},
            data={"prompt": "hold", "timeout": "0.1", "n": str(count)},
        )

        assert (response.status_code, response.json()["data"]) == (202, [])
        assert response.json()["job"] == response.headers["location"]
        assert f"/v1/{kind}/" in response.headers["location"]
        assert http.get(response.headers["location"]).status_code == 200


def test_json_bodies_name_inputs_by_address(http: httpx2.Client, workers: Workers) -> None:
    forms: list[dict[str, Any]] = [
        {"image": DATA},
        {"image": [DATA]},
        {"images": [{"image_url": DATA}]},
        {"images": [{"image_url": {"url": DATA}}]},
    ]
    for form in forms:
        response = http.post("/v1/images/edits", json={"prompt": "snow", "size": "auto", "n": 1, **form})

        assert response.status_code == 200, response.text
        assert size_of(base64.b64decode(response.json()["data"][0]["b64_json"])) == (64, 48)


def test_a_failed_edit_is_told_and_not_sent_again(door: RunningDoor, workers: Workers, client: Client) -> None:
    faults = {"fail": (400, "input_not_an_image"), "refuse": (400, "invalid_job"), "break": (500, "engine_failed")}
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", timeout=PATIENCE_SECONDS, max_retries=2) as ai:
        for prompt, (status, code) in faults.items():
            with pytest.raises(openai.APIStatusError) as caught:
                ai.images.edit(image=("cat.png", png()), prompt=prompt)

            assert (caught.value.status_code, caught.value.code) == (status, code)
    assert len(list(client.ledger.redis.scan_iter("dg:job:*"))) == len(faults), "the client has not tried again"


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"size": "large"}, "size"),
    ({"size": "9x9"}, "params.width"),
    ({"size": "512x512", "aspect_ratio": "16:9"}, "params.aspect_ratio"),
    ({"n": "5"}, "n"),
    ({"n": "0"}, "n"),
    ({"n": "1.5"}, "n"),
    ({"n": "nan"}, "n"),
    ({"timeout": "inf"}, "timeout"),
    ({"response_format": "gif"}, "response_format"),
    ({"output_format": "gif"}, "params.output_format"),
    ({"background": "transparent"}, "background"),
    ({"stream": "true"}, "stream"),
    ({"partial_images": "2"}, "partial_images"),
    ({"quality": "splendid"}, "params.quality"),
    ({"seed": "soon"}, "params.seed"),
    ({"seed": "soon", "n": "2"}, "params.seed"),
    ({"metadata": "[]"}, "metadata"),
    ({"mask": "x"}, "mask"),
    ({"tenant": "other"}, "tenant"),
    ({"mood": "fine"}, "mood"),
]


def test_fields_that_cannot_be_used_are_named(http: httpx2.Client, client: Client) -> None:
    for fields, param in BAD_FIELDS:
        response = http.post(
            "/v1/images/edits", files={"image": ("cat.png", png())}, data={"prompt": "make it snow", **fields}
        )

        assert response.status_code == 400, (fields, response.text)
        assert error_of(response)["param"] == param, fields
        assert error_of(response)["type"] == "invalid_request_error"
    with_mask = {"image": ("cat.png", png()), "mask": ("mask.png", png())}
    response = http.post("/v1/images/edits", files=with_mask, data={"prompt": "make it snow"})
    assert error_of(response)["message"].startswith("mask: say in the prompt what to change")
    assert client.ledger.waiting() == 0


def test_no_kind_of_value_in_any_field_breaks_the_door(http: httpx2.Client, client: Client) -> None:
    fields = {*document()["components"]["schemas"]["ImagesRequest"]["properties"], *NOT_HERE, *TAKEN_WITHOUT_EFFECT}
    values: list[Any] = [{}, [], [[]], {"a": {}}, "x", "", -1, 1e300, True, None]
    for field in sorted({*fields, "image", "images"}):
        for value in values:
            response = http.post("/v1/images/edits", json={"prompt": "snow", field: value})

            assert response.status_code == 400, (field, value, response.text)
    assert client.ledger.waiting() == 0


def ask_for_several(http: httpx2.Client, prompt: str, count: int, **fields: str) -> httpx2.Response:
    return http.post(
        "/v1/images/edits",
        files={"image": ("cat.png", png())},
        data={"prompt": prompt, "n": str(count), "timeout": "0", **fields},
        headers={"Idempotency-Key": "order-5"},
    )


def test_several_images_are_queued_all_or_none(http: httpx2.Client, client: Client) -> None:
    first, again = ask_for_several(http, "snow", 2), ask_for_several(http, "snow", 2)
    other = ask_for_several(http, "rain", 3)

    assert [first.status_code, again.status_code, other.status_code] == [202, 202, 409]
    assert client.ledger.waiting() == 2
    assert client.ledger.get_many(["order-5-3"]) == [None], "a request that was refused leaves nothing"


def test_several_images_that_found_no_room_are_made_when_the_request_comes_again(open_door: OpenDoor) -> None:
    door = open_door(max_queued=2)
    with door.http() as http:
        blocker = door.client.submit(EditJob.model_validate({"image": DATA, "prompt": "first"}))
        refused = ask_for_several(http, "snow", 2)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "queue_full")
        door.client.cancel(blocker)

        accepted = ask_for_several(http, "snow", 2)

    assert accepted.status_code == 202, accepted.text
    assert door.client.status("order-5")[JobState.QUEUED] == 2
    assert count_messages(door.client.ledger.redis) == 3, "one for each job that was created"
