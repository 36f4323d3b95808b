"""The autoencoder against the reference."""

from __future__ import annotations

import pytest
import torch

from kontext.autoencoder import Autoencoder, GroupNorm
from kontext.weights.checkpoint import build_on_meta, load_weights
from tests.kontext.golden import BFLOAT16, FLOAT32_FROM_TENSORS, MODEL, model_config, relative_error, tensors

PICTURES = ["image_64x48", "image_72x40", "batch2_32x48"]


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    network = build_on_meta(lambda: Autoencoder(model_config().autoencoder))
    load_weights(network, [MODEL / "ae.safetensors"], torch.float32)
    return network


@pytest.mark.parametrize("picture", PICTURES)
@torch.inference_mode()
def test_encoding_gives_the_references_latents(autoencoder: Autoencoder, picture: str) -> None:
    golden = tensors("ae/pictures")

    latents = autoencoder.encode(golden[f"{picture}.x"])

    assert relative_error(latents, golden[f"{picture}.latent"]) < FLOAT32_FROM_TENSORS


@pytest.mark.parametrize("picture", PICTURES)
@torch.inference_mode()
def test_decoding_in_float32_gives_the_references_picture(autoencoder: Autoencoder, picture: str) -> None:
    golden = tensors("ae/pictures")

    decoded = autoencoder.decode(golden[f"{picture}.latent_random"])

    assert relative_error(decoded, golden[f"{picture}.decoded_random"]) < FLOAT32_FROM_TENSORS


@pytest.mark.parametrize("picture", PICTURES)
@torch.inference_mode()
def test_pictures_whose_channels_lie_last_give_the_same(
    autoencoder: Autoencoder, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = tensors("ae/pictures")
    monkeypatch.setattr(autoencoder, "channels_last", True)

    latents, decoded = (
        autoencoder.encode(golden[f"{picture}.x"]),
        autoencoder.decode(golden[f"{picture}.latent_random"]),
    )

    assert decoded.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(latents, golden[f"{picture}.latent"]) < FLOAT32_FROM_TENSORS
    assert relative_error(decoded, golden[f"{picture}.decoded_random"]) < FLOAT32_FROM_TENSORS


@pytest.mark.parametrize("picture", PICTURES)
@torch.inference_mode()
def test_decoding_under_autocast_gives_the_references_picture(autoencoder: Autoencoder, picture: str) -> None:
    golden = tensors("ae/pictures")

    with torch.autocast("cpu", torch.bfloat16):
        decoded = autoencoder.decode(golden[f"{picture}.latent_random"])

    assert decoded.dtype == torch.bfloat16
    assert relative_error(decoded, golden[f"{picture}.decoded_random_autocast_bf16"]) < BFLOAT16


@torch.inference_mode()
def test_a_large_picture_with_channels_last_is_normed_as_exactly_as_a_small_one() -> None:
    norm = GroupNorm(num_groups=32, num_channels=64, eps=1e-6)
    draw = torch.Generator().manual_seed(3)
    picture = torch.randn(2, 64, 256, 256, generator=draw) + 3 * torch.randn(1, 64, 1, 1, generator=draw)
    picture = picture.contiguous(memory_format=torch.channels_last)
    torch.nn.init.normal_(norm.weight, generator=draw)
    torch.nn.init.normal_(norm.bias, generator=draw)

    normed = norm(picture)

    exact = torch.nn.functional.group_norm(picture.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)

    assert normed.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(normed, exact) < 1e-6  # torch's own: 8e-6 at this size


def test_gradients_reach_the_picture(autoencoder: Autoencoder) -> None:
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4), requires_grad=True)

    autoencoder.decode(autoencoder.encode(picture)).square().sum().backward()

    assert picture.grad is not None
    assert picture.grad.isfinite().all()
    assert picture.grad.abs().sum() > 0
