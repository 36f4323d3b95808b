"""fp8 linear layers: how near they are to bfloat16, and what stays in bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kontext
from benchmarks.random_model import random_autoencoder_config, random_transformer_config, write_random_model
from kontext.config import ModelConfig
from kontext.images import tensor_to_image
from kontext.layers import JoinedLinear
from kontext.precision import Float8Linear, check_float8, quantize_rows
from kontext.request import EditRequest
from tests.kontext.golden import MODEL, PICTURE
from tests.kontext.offload.standin_device import load_streamed


@pytest.fixture(scope="module")
def exact() -> kontext.Kontext:
    return kontext.load(device="cpu")


@pytest.fixture(scope="module")
def approximate() -> kontext.Kontext:
    return kontext.load(device="cpu", precision="fp8")


@torch.inference_mode()
def latents(model: kontext.Kontext) -> torch.Tensor:
    request = EditRequest((PICTURE,), "Remove the logo", num_inference_steps=2, seed=5)
    return model.sample(model.encode(request), request)


@torch.inference_mode()
def image_of(latents: torch.Tensor, decoder: kontext.Kontext) -> np.ndarray:
    """The image in the latents. A decoder is not in fp8, and bfloat16 takes it long on many processors."""
    return np.asarray(tensor_to_image(decoder.decode(latents))).astype(int)


def test_every_row_has_its_own_scale_and_a_row_of_zeros_stays_zero() -> None:
    x = torch.tensor([[1.0, -2.0], [1000.0, 30.0], [0.0, 0.0]])

    rows, scale = quantize_rows(x)

    assert rows.float().abs().amax(dim=1).tolist() == [448, 448, 0]
    assert torch.allclose(rows.float() * scale, x, rtol=2**-4)  # three bits of mantissa


def test_a_layer_is_within_four_percent_of_the_exact_one() -> None:
    draw = torch.Generator().manual_seed(1)
    linear = JoinedLinear(256, 512).bfloat16().requires_grad_(False)
    x = torch.randn(2, 40, 256, generator=draw).bfloat16()

    ours, exact = Float8Linear(linear)(x), linear(x)

    # Rounding to three bits costs 2.6 % in both factors together where they are normally distributed.
    assert (ours - exact).float().norm() / exact.float().norm() < 0.04
    assert torch.equal(Float8Linear(linear).part(x, 100, 300), ours[..., 100:300])


def test_a_part_of_a_layer_is_compiled_as_one_operator() -> None:
    layer = Float8Linear(nn.Linear(64, 32).bfloat16().requires_grad_(False))
    x = torch.randn(48, 64, generator=torch.Generator().manual_seed(2)).bfloat16()

    torch._dynamo.reset()
    compiled = torch.compile(layer.part, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, 8, 32), layer.part(x, 8, 32))
    torch._dynamo.reset()


@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch has this product for GPUs only")
def test_the_product_is_the_one_that_torch_has_for_gpus() -> None:
    linear = nn.Linear(64, 32).bfloat16().requires_grad_(False)
    layer = Float8Linear(linear)
    x = torch.randn(48, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    rows, scale = quantize_rows(x)

    theirs = torch._scaled_mm(
        rows, layer.weight.t(), scale_a=scale, scale_b=layer.weight_scale.t(), bias=linear.bias, out_dtype=x.dtype
    )

    assert torch.allclose(layer(x).float(), theirs.float(), rtol=2**-7, atol=2**-7)


def test_only_the_wide_layers_of_the_blocks_are_in_float8(approximate: kontext.Kontext) -> None:
    names = {name for name, weight in approximate.networks.transformer.named_parameters() if weight.itemsize == 1}

    assert {name.split(".", 2)[2] for name in names} == {
        *(f"{s}_{part}.weight" for s in ("img", "txt") for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")),
        "linear1.weight",
        "linear2.weight",
    }


def test_a_picture_of_the_tiny_model_differs_a_little_and_the_result_says_why(
    exact: kontext.Kontext, approximate: kontext.Kontext
) -> None:
    ours, theirs = (image_of(latents(model), exact) for model in (approximate, exact))
    difference = np.abs(ours - theirs)

    assert 0 < difference.mean() < 4  # of 255
    assert (exact.approximations, approximate.approximations) == ((), ("fp8 linears",))


@pytest.mark.parametrize("seed", [1, 2])
def test_latents_of_a_random_model_are_within_fifteen_percent(seed: int, tmp_path: Path) -> None:
    config = ModelConfig(
        transformer=random_transformer_config(seed),
        autoencoder=random_autoencoder_config(seed),
        max_sequence_length=64,
        preferred_resolutions=((96, 64),),
    )
    folder = write_random_model(tmp_path / "model", config, seed)

    ours, exact = (
        latents(kontext.load(folder, device="cpu", dtype=torch.bfloat16, precision=precision))
        for precision in ("fp8", "bf16")
    )

    difference = (ours - exact).norm() / exact.norm()
    assert 0 < difference < 0.15, difference


def test_streamed_float8_weights_give_the_resident_latents(approximate: kontext.Kontext) -> None:
    assert torch.equal(latents(load_streamed(None, precision="fp8")), latents(approximate))


@pytest.mark.parametrize(("capability", "is_taken"), [((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_fp8_is_for_gpus_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_taken: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX")

    if is_taken:
        check_float8(torch.device("cuda"))
        return
    with pytest.raises(kontext.DeviceError, match="RTX has no fp8 products"):
        check_float8(torch.device("cuda"))


def test_other_precisions_are_refused() -> None:
    with pytest.raises(kontext.RequestError, match="precision is 'int4', expected bf16 or fp8"):
        kontext.load(MODEL, device="cpu", precision="int4")
    with pytest.raises(kontext.RequestError, match="precision fp8 goes with bfloat16, not"):
        kontext.load(MODEL, device="cpu", precision="fp8", dtype=torch.float32)
