"""Whole edits against the reference, from prompt and picture files."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kontext
from kontext.images import ImageOptions, tensor_to_image, to_rgb
from kontext.request import EditRequest
from tests.kontext.golden import (
    BFLOAT16,
    FLOAT32_FROM_FILES,
    GOLDEN,
    MODEL,
    input_image,
    read_json,
    relative_error,
    tensors,
)

# One picture, several, odd and partial target sizes, palette, grey and RGBA inputs, an empty prompt, 64 to 512 tokens.
CASES = sorted(path.name for path in (GOLDEN / "e2e").iterdir() if path.is_dir())

# What the networks compute in, and what is rounded between them.
VARIANTS = {
    "fp32": (torch.float32, torch.bfloat16),
    "fp32_pure": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
}


@cache
def model(variant: str, max_sequence_length: int) -> kontext.Kontext:
    dtype, seam_dtype = VARIANTS[variant]
    return kontext.load(
        MODEL,
        device="cpu",
        dtype=dtype,
        seam_dtype=seam_dtype,
        max_sequence_length=max_sequence_length,
        image_options=ImageOptions.reference(),
    )


def model_for(case: dict[str, Any], variant: str) -> kontext.Kontext:
    loaded = model(variant, case["t5_max_length"])
    resolutions = tuple((width, height) for width, height in case["preferred_resolutions_wh"])
    loaded.config = dataclasses.replace(loaded.config, preferred_resolutions=resolutions)
    return loaded


def requests(name: str, case: dict[str, Any]) -> list[EditRequest]:
    """A batch of the reference shares its noise, so it is one edit per prompt with the same seed."""
    files = [Image.open(GOLDEN / "e2e" / name / file) for file in case["inputs"]]
    images = tuple(to_rgb(file, ImageOptions.reference()) for file in files)
    prompts = case["prompt"] if isinstance(case["prompt"], list) else [case["prompt"]]
    return [
        EditRequest(
            images,
            prompt,
            num_inference_steps=case["num_steps"],
            guidance_scale=case["guidance"],
            seed=case["seed"],
            width=case["target_width"],
            height=case["target_height"],
            size_mode="reference",
        )
        for prompt in prompts
    ]


@torch.inference_mode()
def edited(name: str, variant: str) -> tuple[Tensor, np.ndarray]:
    """(latents, pictures) of all edits of a case."""
    case = read_json(f"e2e/{name}/case")
    engine = model_for(case, variant)
    latents = [engine.sample(engine.encode(request), request) for request in requests(name, case)]
    pictures = [np.asarray(tensor_to_image(engine.decode(latent))) for latent in latents]
    return torch.cat(latents), np.stack(pictures).astype(int)


@pytest.mark.parametrize("name", CASES)
def test_edit_in_float32_is_the_references(name: str) -> None:
    latents, pictures = edited(name, "fp32")

    golden = tensors("e2e/edits")
    assert relative_error(latents, golden[f"{name}.fp32.latent"]) < FLOAT32_FROM_FILES
    difference = np.abs(pictures - golden[f"{name}.fp32.image_u8"].numpy())
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("name", CASES)
def test_edit_without_rounding_between_networks_is_the_references(name: str) -> None:
    latents, _ = edited(name, "fp32_pure")

    assert relative_error(latents, tensors("e2e/edits")[f"{name}.fp32_pure.latent"]) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_edit_in_bfloat16_is_the_references(name: str) -> None:
    latents, pictures = edited(name, "bf16")

    golden = tensors("e2e/edits")
    assert relative_error(latents, golden[f"{name}.bf16.latent"]) < BFLOAT16
    assert np.abs(pictures - golden[f"{name}.bf16.image_u8"].numpy()).mean() < 1.5  # of 255


def test_edit_returns_what_its_stages_give() -> None:
    name = "landscape_default"
    case = read_json(f"e2e/{name}/case")
    engine = model_for(case, "fp32")

    picture = engine.edit(
        input_image(name),
        case["prompt"],
        num_inference_steps=case["num_steps"],
        guidance_scale=case["guidance"],
        seed=case["seed"],
    )

    assert np.array_equal(np.asarray(picture), edited(name, "fp32")[1][0])
