"""The autoencoder against the reference."""

from __future__ import annotations

import pytest
import torch

from kontext.autoencoder import Autoencoder
from kontext.checkpoint import build_on_meta, load_weights
from tests.kontext.golden import BFLOAT16, FLOAT32_FROM_TENSORS, MODEL, model_config, relative_error, tensors

PICTURES = ["image_64x48", "image_72x40", "batch2_32x48"]


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    network = build_on_meta(lambda: Autoencoder(model_config().autoencoder))
    load_weights(network, [MODEL / "ae.safetensors"], torch.float32)
    return network


@pytest.mark.parametrize("picture", PICTURES)
def test_encoding_gives_the_references_latents(autoencoder: Autoencoder, picture: str) -> None:
    golden = tensors("ae/pictures")

    latents = autoencoder.encode(golden[f"{picture}.x"])

    assert relative_error(latents, golden[f"{picture}.latent"]) < FLOAT32_FROM_TENSORS


@pytest.mark.parametrize("picture", PICTURES)
def test_decoding_in_float32_gives_the_references_picture(autoencoder: Autoencoder, picture: str) -> None:
    golden = tensors("ae/pictures")

    decoded = autoencoder.decode(golden[f"{picture}.latent_random"])

    assert relative_error(decoded, golden[f"{picture}.decoded_random"]) < FLOAT32_FROM_TENSORS


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_whose_channels_lie_last_give_the_same(autoencoder: Autoencoder, picture: str) -> None:
    golden = {name: _channels_last(tensor) for name, tensor in tensors("ae/pictures").items()}

    latents, decoded = (
        autoencoder.encode(golden[f"{picture}.x"]),
        autoencoder.decode(golden[f"{picture}.latent_random"]),
    )

    assert decoded.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(latents, golden[f"{picture}.latent"]) < FLOAT32_FROM_TENSORS
    assert relative_error(decoded, golden[f"{picture}.decoded_random"]) < FLOAT32_FROM_TENSORS


@pytest.mark.parametrize("picture", PICTURES)
def test_decoding_under_autocast_gives_the_references_picture(autoencoder: Autoencoder, picture: str) -> None:
    golden = tensors("ae/pictures")

    with torch.autocast("cpu", torch.bfloat16):
        decoded = autoencoder.decode(golden[f"{picture}.latent_random"])

    assert decoded.dtype == torch.bfloat16
    assert relative_error(decoded, golden[f"{picture}.decoded_random_autocast_bf16"]) < BFLOAT16


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
