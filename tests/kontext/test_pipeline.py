"""`kontext.load` and `Kontext.run`: requests, cancelling, offload, warnings, devices."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kontext
from kontext import EditRequest
from kontext.offload.memory import Memory, Resident, Streamed
from tests.kontext.golden import GOLDEN, MODEL, PICTURE
from tests.kontext.offload.standin_device import load, load_streamed


class Cancelled(Exception):
    pass


@pytest.fixture(scope="module")
def model() -> kontext.Kontext:
    return kontext.load(MODEL, device="cpu")


def edit(model: kontext.Kontext, **settings: Any) -> np.ndarray:
    return np.asarray(model.edit(PICTURE, "Remove the logo", **{"num_inference_steps": 2, "seed": 5} | settings))


def test_a_run_tells_how_it_went(model: kontext.Kontext) -> None:
    edited = model.run(EditRequest((PICTURE,), "Remove the logo", num_inference_steps=2, seed=5))

    assert edited.image.size == (96, 64)
    assert edited.seed == 5
    assert edited.timings.keys() == {"encode", "sample", "decode"}
    assert all(seconds > 0 for seconds in edited.timings.values())
    assert edited.warnings == ()


def test_a_model_says_what_it_is(model: kontext.Kontext) -> None:
    assert (model.name, model.model_name, model.device) == ("native", "golden", "cpu")
    assert model.approximations == ()
    assert model.fingerprint.startswith("sha256:")


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(model: kontext.Kontext) -> None:
    assert np.array_equal(edit(model), edit(model))
    assert not np.array_equal(edit(model), edit(model, seed=6))


def test_a_seed_that_is_not_given_is_drawn_and_recorded(model: kontext.Kontext) -> None:
    first = model.run(EditRequest((PICTURE,), "Remove the logo", num_inference_steps=1))
    second = model.run(EditRequest((PICTURE,), "Remove the logo", num_inference_steps=1))

    assert first.seed != second.seed
    assert 0 <= first.seed < 2**32
    again = model.edit(PICTURE, "Remove the logo", num_inference_steps=1, seed=first.seed)
    assert np.array_equal(np.asarray(again), np.asarray(first.image))


def test_the_output_has_the_size_asked_for(model: kontext.Kontext) -> None:
    assert model.edit(PICTURE, "x", num_inference_steps=1, width=100, height=72).size == (100, 72)
    assert model.edit(PICTURE, "x", num_inference_steps=1, height=48).size == (72, 48)  # the input is 120 x 80


def test_the_references_output_is_rounded_up_to_whole_tokens() -> None:
    model = kontext.load(MODEL, device="cpu", image_options=kontext.ImageOptions.reference())

    assert model.edit(PICTURE, "x", num_inference_steps=1, width=100, height=72).size == (112, 80)


def test_a_second_picture_changes_the_result_and_the_first_sets_the_size(model: kontext.Kontext) -> None:
    other = Image.new("RGB", (50, 80), "red")

    def with_pictures(*pictures: Image.Image) -> Image.Image:
        return model.edit(list(pictures), "x", num_inference_steps=2, seed=1)

    assert with_pictures(PICTURE, other).size == (96, 64)
    assert with_pictures(other, PICTURE).size == (64, 96)
    assert with_pictures(PICTURE, other) != with_pictures(PICTURE)


def test_steps_are_reported(model: kontext.Kontext) -> None:
    steps: list[tuple[int, int]] = []

    edit(model, num_inference_steps=3, on_step=lambda *step: steps.append(step))

    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_cancelled_edit_leaves_the_model_as_it_was(is_streamed: bool) -> None:
    model = load_streamed() if is_streamed else kontext.load(MODEL, device="cpu")
    before = edit(model)

    def cancel(done: int, total: int) -> None:
        raise Cancelled(f"after {done} of {total}")

    with pytest.raises(Cancelled, match="after 1 of 2"):
        edit(model, on_step=cancel)

    assert np.array_equal(edit(model), before)


def test_offload_gives_the_identical_picture(model: kontext.Kontext) -> None:
    assert np.array_equal(edit(load_streamed()), edit(model))


def test_a_budget_that_is_too_small_is_an_error_that_names_the_least() -> None:
    with pytest.raises(kontext.BudgetError, match=r"the VRAM budget is 1 MiB; .* this model needs [0-9]+ MiB"):
        kontext.load(MODEL, device="cpu", offload=True, vram_budget_bytes=2**20)


# The meta device computes nothing but refuses, as a GPU does, to mix its tensors with those of the CPU.
META = torch.device("meta")


@pytest.mark.parametrize("memory", [Resident(META), Streamed(META, None)], ids=["resident", "streamed"])
def test_every_tensor_follows_the_model_to_its_device(memory: Memory) -> None:
    model = load(memory, torch.bfloat16)
    request = EditRequest((PICTURE, PICTURE), "Remove the logo", num_inference_steps=2, seed=5)

    with torch.inference_mode():
        latents = model.sample(model.encode(request), request)

    assert latents.is_meta
    assert latents.shape == (1, 16, 8, 12)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(model: kontext.Kontext) -> None:
    edited = model.run(EditRequest((PICTURE,), "Remove the logo " * 50, num_inference_steps=1))

    (warning,) = edited.warnings
    assert "prompt cut from" in warning
    assert "to 64 tokens" in warning


def test_a_longer_text_can_be_asked_for() -> None:
    model = kontext.load(MODEL, device="cpu", max_sequence_length=1024)

    assert model.run(EditRequest((PICTURE,), "Remove the logo " * 50, num_inference_steps=1)).warnings == ()


@pytest.mark.parametrize(
    ("dtype", "kernels", "is_fast"),
    [
        (torch.float32, "auto", True),
        (torch.float32, "reference", False),
        (torch.bfloat16, "auto", False),
        (torch.bfloat16, "fast", True),
    ],
)
def test_kernels_are_the_references_where_last_bits_show(dtype: torch.dtype, kernels: str, is_fast: bool) -> None:
    loaded = kontext.load(device="cpu", dtype=dtype, kernels=kernels)

    assert loaded.networks.autoencoder.channels_last == is_fast
    assert is_fast or loaded.products == "default"


def test_fast_kernels_are_no_farther_from_float32_than_the_references() -> None:
    exact = edit(kontext.load(MODEL, device="cpu", dtype=torch.float32))

    def error(kernels: str) -> float:
        picture = edit(kontext.load(MODEL, device="cpu", dtype=torch.bfloat16, kernels=kernels))
        return float(np.abs(picture.astype(int) - exact).mean())

    assert error("fast") < 1.1 * error("reference")


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(kontext.RequestError, match="kernels is 'best', expected auto, reference, fast"):
        kontext.load(device="cpu", kernels="best")


def test_the_largest_area_that_is_sampled_can_be_set() -> None:
    request = EditRequest((PICTURE,), "x", num_inference_steps=1, width=96, height=64)
    small = kontext.load(MODEL, device="cpu", most_pixels=2048)

    assert kontext.load(MODEL, device="cpu").run(request).warnings == ()
    edited = small.run(request)
    assert edited.image.size == (96, 64)
    assert "sampled at 48x32 and enlarged" in edited.warnings[0]
    with pytest.raises(kontext.RequestError, match="most_pixels is 255, expected 256 or more"):
        kontext.load(MODEL, device="cpu", most_pixels=255)


@pytest.mark.parametrize("length", [63, 1025, 0, -1])
def test_a_text_length_out_of_range_is_refused(length: int) -> None:
    with pytest.raises(kontext.RequestError, match=f"max_sequence_length is {length}, expected 64 to 1024"):
        kontext.load(MODEL, device="cpu", max_sequence_length=length)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0, expected a whole number from 1 to 1000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5, expected a whole number"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0, expected 0 to 100"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan, expected 0 to 100"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0 to 18446744073709551615"),
        ({"width": 8}, "width is 8, expected a whole number from 16 to 4096"),
        ({"height": 100_000}, "height is 100000, expected a whole number from 16 to 4096"),
    ],
)
def test_a_value_that_cannot_work_is_named(model: kontext.Kontext, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        edit(model, **settings)


@pytest.mark.parametrize(
    ("images", "prompt", "complaint"),
    [
        ([], "x", "images holds 0 pictures, expected 1 to 4"),
        ([PICTURE] * 5, "x", "images holds 5 pictures, expected 1 to 4"),
        (["cat.png"], "x", "images holds a str, expected PIL pictures"),
        (PICTURE, None, "prompt is a NoneType, expected text"),
    ],
)
def test_what_is_no_picture_or_no_prompt_is_named(
    model: kontext.Kontext, images: Any, prompt: Any, complaint: str
) -> None:
    with pytest.raises(kontext.RequestError, match=complaint):
        model.edit(images, prompt)


def test_a_request_takes_rgb_alone_and_says_what_makes_it() -> None:
    transparent = Image.new("RGBA", (64, 64))

    with pytest.raises(kontext.RequestError, match=r"mode RGBA, expected RGB; use kontext\.to_rgb"):
        EditRequest((transparent,), "x")

    assert EditRequest((kontext.to_rgb(transparent),), "x").images[0].getpixel((0, 0)) == (255, 255, 255)


def test_an_edit_lays_transparency_on_white_as_the_models_options_say(model: kontext.Kontext) -> None:
    transparent = Image.new("RGBA", (96, 64), (255, 0, 0, 0))

    pictures = [
        np.asarray(model.edit(image, "Remove the logo", num_inference_steps=1, seed=5))
        for image in (transparent, Image.new("RGB", (96, 64), "white"))
    ]

    assert np.array_equal(*pictures)


def test_warming_up_needs_nothing(model: kontext.Kontext) -> None:
    model.warm_up()


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        ("cuda:99", "device is cuda:99, but torch .* finds .* CUDA GPUs; try auto"),
        ("meta", "device is meta, expected auto, cpu, cuda"),
        ("tpu!", "device is 'tpu!', expected auto, cpu, cuda"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(device: str, complaint: str) -> None:
    with pytest.raises(kontext.DeviceError, match=complaint):
        kontext.load(MODEL, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_cuda_without_a_gpu_is_an_error() -> None:
    with pytest.raises(kontext.DeviceError, match=r"device is cuda, but torch .* finds 0 CUDA GPUs; try auto"):
        kontext.load(MODEL, device="cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_mps_without_an_apple_gpu_is_an_error() -> None:
    with pytest.raises(kontext.DeviceError, match=r"device is mps, but torch .* finds no usable Apple GPU; try auto"):
        kontext.load(MODEL, device="mps")


def test_importing_changes_no_setting_of_torch() -> None:
    program = """
import torch
def settings():
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed(),
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(),
    )
before = settings()
import kontext
assert settings() == before
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=GOLDEN.parent.parent)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
