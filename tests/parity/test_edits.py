"""Whole edits: the official engine and ours, from the same folder, give the same picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

import kontext
from benchmarks.random_model import random_autoencoder_config, random_transformer_config, write_random_model
from kontext import EditRequest
from kontext import official as official_engine
from kontext.config import ModelConfig
from kontext.images import DEFAULT_OPTIONS, ImageOptions
from kontext.pipeline import Kontext
from tests.parity.closeness import DTYPES

pytestmark = pytest.mark.usefixtures("official")

PROMPT = "Make the background black"
REFERENCE = {"size_mode": "reference"}
# What is asked of both: arguments beside pictures and prompt, and how many pictures.
REQUESTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one picture": (1, {}),
    "odd target size": (1, {"width": 100, "height": 72, **REFERENCE}),
    "height only": (1, {"height": 48, "guidance_scale": 4.0, **REFERENCE}),
    "four pictures, seed of 33 bits": (4, {"width": 90, "height": 130, "seed": 2**32 + 5, **REFERENCE}),
    "one step": (1, {"num_inference_steps": 1}),
    "same grid": (1, {"width": 168, "height": 128, "num_inference_steps": 2}),
    "other shape, two pictures": (2, {"width": 128, "height": 128, "num_inference_steps": 1}),
    "resampled": (1, {"width": 60, "size_mode": "fit", "num_inference_steps": 1}),
}


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=("bundled", "random"))
def engines(
    request: pytest.FixtureRequest, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kontext, Kontext]:
    folder = None if request.param == "bundled" else random_folder(tmp_path_factory.mktemp("model"))
    return load_both(folder, dtype=dtype)


@pytest.mark.parametrize("request_name", REQUESTS)
def test_both_engines_give_the_same_picture(engines: tuple[Kontext, Kontext], request_name: str) -> None:
    count, arguments = REQUESTS[request_name]

    ours, theirs = (
        engine.edit(drawings()[:count], PROMPT, **{"seed": 7, "num_inference_steps": 3, **arguments})
        for engine in engines
    )

    assert_same_picture(ours, theirs, engines[0].dtype)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
@pytest.mark.parametrize("options", [DEFAULT_OPTIONS, ImageOptions.reference()], ids=["default", "reference"])
def test_both_engines_read_a_picture_the_same_way(options: ImageOptions, mode: str) -> None:
    picture = drawings()[0].convert(mode)
    picture.getexif()[0x0112] = 6  # to be turned by 90 degrees

    ours, theirs = (
        engine.edit(picture, PROMPT, seed=1, num_inference_steps=1, width=50, size_mode="reference")
        for engine in load_both(None, image_options=options)
    )

    assert_same_picture(ours, theirs)


def test_a_different_seed_prompt_or_picture_would_be_seen(engines: tuple[Kontext, Kontext]) -> None:
    """What "the same" is worth: each of these moves the picture by more than the widest tolerance."""
    ours, theirs = engines
    first, *_, last = drawings()
    small: dict[str, Any] = {"num_inference_steps": 2, "width": 64, "height": 64, **REFERENCE}

    picture = theirs.edit(first, PROMPT, seed=7, **small)

    for other in (
        ours.edit(first, PROMPT, seed=8, **small),
        ours.edit(first, "Invert the colors", seed=7, **small),
        ours.edit(last, PROMPT, seed=7, **small),
    ):
        assert np.abs(pixels(picture) - pixels(other)).mean() > 1


def test_a_long_picture_is_padded_for_both_engines(engines: tuple[Kontext, Kontext]) -> None:
    request = EditRequest((drawings()[0].resize((400, 40)),), PROMPT, seed=7, num_inference_steps=1)

    ours, theirs = (engine.run(request) for engine in engines)

    assert theirs.warnings == ours.warnings != ()
    assert_same_picture(ours.image, theirs.image, engines[0].dtype)


def test_both_engines_name_the_same_weights(engines: tuple[Kontext, Kontext]) -> None:
    ours, theirs = engines

    assert theirs.name == "official"
    assert theirs.model_name == ours.model_name
    assert theirs.fingerprint == ours.fingerprint
    assert theirs.device == ours.device == "cpu"
    assert theirs.approximations == ()


def test_offloading_the_official_networks_changes_nothing() -> None:
    resident, offloaded = (official_engine.load(device="cpu", offload=offload) for offload in (False, True))

    expected, picture = (
        engine.edit(drawings()[0], PROMPT, seed=3, num_inference_steps=2) for engine in (resident, offloaded)
    )
    with resident.spare_memory():
        spared = resident.edit(drawings()[0], PROMPT, seed=3, num_inference_steps=2)

    assert np.array_equal(pixels(picture), pixels(expected))
    assert np.array_equal(pixels(spared), pixels(expected))


def test_an_official_edit_reports_its_steps_and_stops_between_two() -> None:
    class Cancelled(Exception):
        pass

    seen: list[tuple[int, int]] = []

    def cancel_after_two(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise Cancelled

    engine = official_engine.load(device="cpu")

    with pytest.raises(Cancelled):
        engine.edit(drawings()[0], PROMPT, num_inference_steps=5, on_step=cancel_after_two)

    assert seen == [(1, 5), (2, 5)]
    engine.warm_up()  # still usable


def test_a_long_prompt_is_cut_with_the_same_warning() -> None:
    request = EditRequest((drawings()[0],), "make it black and white " * 40, seed=1, num_inference_steps=1)

    ours, theirs = (engine.run(request) for engine in load_both(None))

    assert len(ours.warnings) == 1
    assert theirs.warnings == ours.warnings
    assert_same_picture(ours.image, theirs.image)


def test_the_official_package_leaves_no_trace_in_the_process() -> None:
    path, modules = list(sys.path), set(sys.modules)

    official_engine.load(device="cpu")

    assert sys.path == path
    assert not [name for name in set(sys.modules) - modules if name.split(".")[0] == "flux"]


def random_folder(folder: Path) -> Path:
    config = ModelConfig(
        name="random",
        transformer=random_transformer_config(2),
        autoencoder=random_autoencoder_config(2),
        max_sequence_length=80,
        preferred_resolutions=((98, 64), (64, 64), (64, 96)),
    )
    return write_random_model(folder, config, seed=9)


def load_both(
    folder: Path | None, *, dtype: torch.dtype = torch.bfloat16, image_options: ImageOptions = DEFAULT_OPTIONS
) -> tuple[Kontext, Kontext]:
    options: dict[str, Any] = {"device": "cpu", "dtype": dtype, "image_options": image_options}
    return kontext.load(folder, **options), official_engine.load(folder, **options)


def drawings() -> list[Image.Image]:
    """Four drawings of different shapes."""
    first = Image.new("RGB", (120, 90), "cyan")
    ImageDraw.Draw(first).ellipse((30, 20, 80, 70), fill="orange", outline="red", width=6)
    return [first, first.rotate(90, expand=True), ImageOps.mirror(first), ImageOps.invert(first).resize((77, 77))]


def assert_same_picture(ours: Image.Image, theirs: Image.Image, dtype: torch.dtype = torch.bfloat16) -> None:
    """All pixels were equal wherever this was measured; the room is for kernels that sum in another order."""
    assert ours.size == theirs.size
    difference = np.abs(pixels(ours) - pixels(theirs))
    if dtype == torch.float32:
        assert difference.max() <= 1
    assert difference.mean() <= (0.01 if dtype == torch.float32 else 0.5)


def pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(image.convert("RGB")).astype(int)
