"""Our autoencoder against `flux.modules.autoencoder.AutoEncoder`: same weights, same pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.random_model import random_autoencoder_config, random_weights
from kontext.autoencoder import Autoencoder
from kontext.config import AutoencoderConfig
from kontext.official import OfficialCode
from kontext.weights.checkpoint import build_on_meta
from tests.parity.closeness import DTYPES, assert_close

SIZES = ((64, 48), (16, 112), (72, 40))  # width, height; the last is no multiple of 16
RANDOM_SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Pair:
    """The same weights in both networks."""

    ours: Autoencoder
    theirs: Any


@pytest.fixture(params=("published sizes", *RANDOM_SEEDS))
def pair(request: pytest.FixtureRequest, official: OfficialCode) -> Pair:
    published = request.param == "published sizes"
    config = AutoencoderConfig() if published else random_autoencoder_config(request.param)
    parameters = official.autoencoder.AutoEncoderParams(**asdict(config))
    ours = build_on_meta(lambda: Autoencoder(config))
    theirs = build_on_meta(lambda: official.autoencoder.AutoEncoder(parameters))
    weights = random_weights(ours, seed=3)
    for network in (ours, theirs):
        network.load_state_dict(weights, assign=True)
    return Pair(ours, theirs)


def test_latents_are_the_same(pair: Pair) -> None:
    for picture in pictures():
        with torch.inference_mode():
            assert_close(pair.ours.encode(picture), pair.theirs.encode(picture), f"latents of {list(picture.shape)}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pictures_are_the_same(pair: Pair, dtype: torch.dtype) -> None:
    """bfloat16 here is what the pipeline does: float32 weights and latents under autocast."""
    for picture in pictures():
        latents = pair.theirs.encode(picture)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert_close(pair.ours.decode(latents), pair.theirs.decode(latents), f"picture of {list(latents.shape)}")


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [2 * torch.rand(2, 3, height, width, generator=generator) - 1 for width, height in SIZES]
