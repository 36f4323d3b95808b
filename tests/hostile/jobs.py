"""Jobs that cannot be, as a plain Celery client would send them: each ends as `invalid_job` with these words."""

from __future__ import annotations

from typing import Any

GOOD: dict[str, Any] = {"image": "data:,x", "prompt": "make it snow"}


def job(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


def params(**fields: Any) -> dict[str, Any]:
    return job(params=fields)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


HALF = "half of a surrogate pair"
NO_JOB = "job: input should be a valid dictionary"

JOBS: dict[str, tuple[Any, str]] = {
    "no field": ({}, "image: missing; prompt: missing"),
    "null": (None, NO_JOB),
    "a number": (5, NO_JOB),
    "a list": ([1, 2], NO_JOB),
    "no image": ({"prompt": "x"}, "image: missing"),
    "no prompt": ({"image": "s3://b/k"}, "prompt: missing"),
    "an unknown field": (job(promt="x"), "promt: unknown field"),
    "a field __proto__": (job(__proto__={"admin": True}), "__proto__: unknown field"),
    "a field of terminal escapes": (job(**{"\x1b[2J\n": 1}), "\\x1b[2J\\n: unknown field"),
    "500 unknown fields": (job(**{f"f{n}": n for n in range(500)}), "f0: unknown field"),
    "version 2": (job(version=2), "version: input should be 1"),
    "version 1 as text": (job(version="1"), "version: input should be 1"),
    "image null": (job(image=None), "image: "),
    "image a number": (job(image=5), "image: "),
    "image an object": (job(image={"url": "s3://b/k"}), "image: "),
    "image an empty list": (job(image=[]), "expected 1 to 4 pictures, not 0"),
    "five images": (job(image=["s3://b/k"] * 5), "expected 1 to 4 pictures, not 5"),
    "100,000 images": (job(image=["s3://b/k"] * 100_000), "expected 1 to 4 pictures, not 100000"),
    "images in a list in a list": (job(image=[["s3://b/k"]]), "image: "),
    "a prompt of blanks": (job(prompt=" \n\t"), "prompt: is empty; say what to change"),
    "a prompt that is a list": (job(prompt=["a"]), "prompt: input should be a valid string"),
    "a prompt that is a number": (job(prompt=5), "prompt: input should be a valid string"),
    "a prompt of 20,001 characters": (job(prompt="x" * 20_001), "prompt: has 20,001 characters, at most 20,000"),
    "a prompt of half a character": (job(prompt="a\ud800"), f"prompt: has {HALF}"),
    "id with a slash": (job(id="../etc/passwd"), "id: string should match pattern"),
    "id with a line end": (job(id="a\nb"), "id: string should match pattern"),
    "id of 129 characters": (job(id="x" * 129), "id: string should match pattern"),
    "id that is a list": (job(id=["a"]), "id: input should be a valid string"),
    "id that is empty": (job(id=""), "id: string should match pattern"),
    "params that are null": (job(params=None), "params: input should be a valid dictionary"),
    "params that are a list": (job(params=[]), "params: input should be a valid dictionary"),
    "an unknown parameter": (params(steps=3), "params.steps: unknown field"),
    "no steps": (params(num_inference_steps=0), "params.num_inference_steps: input should be greater than or equal"),
    "a million steps": (params(num_inference_steps=10**6), "params.num_inference_steps: input should be less than"),
    "half a step": (params(num_inference_steps=1.5), "params.num_inference_steps: input should be a valid integer"),
    "steps of 1,000 digits": (params(num_inference_steps=10**999), "params.num_inference_steps: "),
    "guidance that is no number": (params(guidance_scale=float("nan")), "params.guidance_scale: input should be a fin"),
    "guidance without end": (params(guidance_scale=float("inf")), "params.guidance_scale: "),
    "guidance below zero": (params(guidance_scale=-1), "params.guidance_scale: input should be greater than"),
    "a seed of 65 bits": (params(seed=2**64), "params.seed: input should be less than 18446744073709551616"),
    "a seed below -1": (params(seed=-2), "params.seed: input should be greater than or equal to 0"),
    "a seed that is a text": (params(seed="seven"), "params.seed: input should be a valid integer"),
    "a width of 15": (params(width=15), "params.width: input should be greater than or equal to 16"),
    "a height of 4097": (params(height=4097), "params.height: input should be less than or equal to 4096"),
    "a width that is a list": (params(width=[64]), "params.width: input should be a valid integer"),
    "an unknown size mode": (params(size_mode="crop"), "params.size_mode: input should be 'match', 'fit' or"),
    "a ratio of 0": (params(aspect_ratio="0:1"), "params.aspect_ratio: should be input, or a shape"),
    "a ratio of 99:1": (params(aspect_ratio="99:1"), "params.aspect_ratio: should be input, or a shape"),
    "a ratio of other digits": (
        params(aspect_ratio="\uff11\uff16:\uff19"),
        "params.aspect_ratio: should be input, or a shape",
    ),
    "a ratio beside a width": (params(aspect_ratio="1:1", width=64), "params.aspect_ratio: contradicts width 64"),
    "an unknown format": (params(output_format="svg"), "params.output_format: input should be 'png', 'jpeg' or"),
    "a quality of 0": (params(quality=0), "params.quality: input should be greater than or equal to 1"),
    "a LoRA that is a number": (params(loras=[5]), "params.loras"),
    "five LoRAs": (params(loras=["s3://b/a.safetensors"] * 5), "params.loras: "),
    "a LoRA of scale 11": (params(loras=["s3://b/a.safetensors@11"]), "params.loras.scale: input should be less than"),
    "a LoRA in the job": (params(loras=["data:,x"]), "params.loras.uri: 'data:,x' is not a URI with one of"),
    "a LoRA with ..": (
        params(loras=["hf://../../a.safetensors"]),
        "params.loras.uri: should be a plain name, without '..'",
    ),
    "output with a password": (job(output="https://me:pw@h/a.png"), "output: has a user or password in it"),
    "output that is a list": (job(output=["s3://b/a.png"]), "output: input should be a valid string"),
    "output of another kind": (job(output="s3://b/a.jpg", params={"output_format": "png"}), "output is named as jpeg"),
    "output over its image": (job(image="s3://b/a.png", output="s3://b/a.png"), "output would overwrite the image"),
    "callback that is a text": (job(callback="https://h/x"), "callback: input should be a valid dictionary"),
    "callback with headers": (job(callback={"url": "https://h/", "headers": {}}), "callback.headers: unknown field"),
    "callback on other events": (job(callback={"url": "https://h/", "events": ["done"]}), "callback.events: input"),
    "batch with a slash": (job(batch="a/b"), "batch: string should match pattern"),
    "batch with a blank": (job(batch="a b"), "batch: string should match pattern"),
    "tenant with a line end": (job(tenant="a\n"), "tenant: string should match pattern"),
    "tenant that is an object": (job(tenant={}), "tenant: input should be a valid string"),
    "an unknown priority": (job(priority="urgent"), "priority: input should be 'high', 'normal' or 'low'"),
    "no time at all": (job(timeout_seconds=0), "timeout_seconds: input should be greater than 0"),
    "time without end": (job(timeout_seconds=float("inf")), "timeout_seconds: input should be a finite number"),
    "metadata that is a list": (job(metadata=[]), "metadata: input should be a valid dictionary"),
    "metadata that is null": (job(metadata=None), "metadata: input should be a valid dictionary"),
    "metadata 33 deep": (job(metadata={"a": nested(32)}), "metadata: nests lists or objects more than 32 deep"),
    "metadata 900 deep": (job(metadata={"a": nested(900)}), "metadata: nests lists or objects more than 32 deep"),
    "metadata of a mebibyte": (job(metadata={"a": "x" * 2**20}), "metadata: has 1,048,584 bytes as JSON, at most"),
    "metadata of half a character": (job(metadata={"a": ["\udfff"]}), f"metadata: has {HALF}"),
    "a metadata name of half a character": (job(metadata={"\udfff": 1}), f"metadata: has {HALF}"),
}
