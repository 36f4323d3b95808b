"""Noise, packing, positions, schedule and the Euler loop."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from kontext.sampling import (
    integrate,
    pack_latents,
    position_ids,
    starting_noise,
    time_schedule,
    token_grid,
    unpack_latents,
)
from tests.kontext.golden import read_json, tensors

PREPARED = read_json("preprocess/preprocess")
INDEX = read_json("schedule/noise_index")
NOISE = [entry for group in INDEX.values() for entry in group if entry["num_samples"] == 1]  # as an edit draws it
SCHEDULES = [entry for entry in read_json("schedule/schedules") if entry["shift"]]


@pytest.mark.parametrize("entry", NOISE, ids=lambda entry: f"{entry['width']}x{entry['height']}-{entry['seed']}")
def test_noise_of_a_seed_is_the_references(entry: dict[str, Any]) -> None:
    noise = starting_noise(entry["width"], entry["height"], entry["seed"])

    assert list(noise.shape) == entry["shape"]
    assert sha256(noise.view(torch.int16)) == entry["sha256_bf16"]


def test_packing_and_unpacking_are_the_references() -> None:
    golden = tensors("schedule/pack_unpack")

    for width, height in ((80, 48), (100, 72)):
        latents, packed = golden[f"latent_h{height}_w{width}"], golden[f"packed_h{height}_w{width}"]
        assert torch.equal(pack_latents(latents), packed)
        assert torch.equal(unpack_latents(packed, width, height), latents)


def test_unpacking_refuses_another_number_of_tokens() -> None:
    with pytest.raises(ValueError, match="15 tokens cannot cover 64x64 pixels, which take 4x4"):
        unpack_latents(torch.zeros(1, 15, 64), 64, 64)


@pytest.mark.parametrize("picture", PREPARED, ids=lambda picture: picture["name"])
def test_positions_of_a_reference_are_the_references(picture: dict[str, Any]) -> None:
    ids = position_ids(1, *token_grid(picture["chosen_width"], picture["chosen_height"]))

    assert ids.shape == (1, picture["cond_tokens"], 3)
    assert ids[0, 0].tolist() == picture["cond_ids_first"]
    assert ids[0, -1].tolist() == picture["cond_ids_last"]


def test_positions_run_along_the_rows() -> None:
    assert position_ids(2, rows=2, columns=3).tolist() == [
        [[2, 0, 0], [2, 0, 1], [2, 0, 2], [2, 1, 0], [2, 1, 1], [2, 1, 2]]
    ]


@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda entry: f"{entry['num_steps']}-{entry['image_seq_len']}")
def test_schedule_is_the_references(entry: dict[str, Any]) -> None:
    assert time_schedule(entry["num_steps"], entry["image_seq_len"]) == pytest.approx(entry["timesteps"], abs=1e-6)


def test_euler_steps_follow_a_straight_flow_exactly() -> None:
    noise, picture = torch.randn(1, 4, 8), torch.randn(1, 4, 8)

    arrived = integrate(lambda latents, step: noise - picture, noise, [1.0, 0.7, 0.2, 0.0])

    assert torch.allclose(arrived, picture, atol=1e-6)


def test_steps_are_counted_before_and_after() -> None:
    asked: list[int] = []
    steps: list[tuple[int, int]] = []

    def velocity(latents: Tensor, step: int) -> Tensor:
        asked.append(step)
        return torch.zeros_like(latents)

    integrate(velocity, torch.zeros(1, 1, 1), [1.0, 0.5, 0.25, 0.0], lambda *step: steps.append(step))

    assert asked == [0, 1, 2]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def sha256(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
