"""The autoencoder in bands: the image of the whole, in less memory, and only where the whole does not fit."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kontext
from kontext import banded
from kontext.autoencoder import Autoencoder
from kontext.config import AutoencoderConfig
from tests.kontext.golden import MODEL, PICTURE

ONE_ROW, ALL_ROWS = 1, 2**40


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive; `peak` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]:
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return result

    def _gone(self, storage: int) -> None:
        self._now -= self._sizes.pop(storage)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    """The published shape at a quarter of the width, with norms that do something."""
    torch.manual_seed(0)
    made = Autoencoder(AutoencoderConfig(ch=32)).eval().requires_grad_(False)
    for part in made.modules():
        if isinstance(part, nn.GroupNorm):
            part.weight.normal_(1, 0.2)
            part.bias.normal_(0, 0.2)
    return made


def inputs(
    rows: int = 9, columns: int = 13, layout: torch.memory_format = torch.contiguous_format
) -> dict[str, Tensor]:
    """Latents of odd sides, far from zero mean, and an image."""
    draw = torch.Generator().manual_seed(1)
    latents = 3 + torch.randn(1, 16, rows, columns, generator=draw)
    image = torch.randn(1, 3, 8 * rows, 8 * columns, generator=draw)
    return {"decode": latents.contiguous(memory_format=layout), "encode": image.contiguous(memory_format=layout)}


@pytest.mark.parametrize("band_bytes", [ONE_ROW, 400_000, ALL_ROWS])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@torch.inference_mode()
def test_in_float32_bands_give_the_whole_image(
    autoencoder: Autoencoder, layout: torch.memory_format, band_bytes: int
) -> None:
    given = inputs(layout=layout)
    pairs = [
        (autoencoder.decoder(given["decode"]), banded.decode(autoencoder.decoder, given["decode"], band_bytes)),
        (autoencoder.encoder(given["encode"]), banded.encode(autoencoder.encoder, given["encode"], band_bytes)),
    ]

    for whole, in_bands in pairs:
        assert in_bands.shape == whole.shape
        assert (in_bands - whole).abs().max() < 2e-5 * whole.abs().max()  # sums in another order, through 30 layers


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64, as Apple's GPU does."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        assert all(leaf.dtype != torch.float64 for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


@pytest.mark.parametrize(("device", "mode"), [("cpu", nullcontext), ("mps", WithoutFloat64)])
@torch.inference_mode()
def test_statistics_are_those_of_the_whole_image_and_not_of_a_band(
    monkeypatch: pytest.MonkeyPatch, device: str, mode: Callable[[], AbstractContextManager[object]]
) -> None:
    dtype = banded._dtype_of_sums(torch.device(device))
    monkeypatch.setattr(banded, "_dtype_of_sums", lambda device: dtype)
    norm = nn.GroupNorm(2, 4, eps=1e-6)
    x = torch.randn(1, 4, 40, 8, generator=torch.Generator().manual_seed(2)).cumsum(dim=2) + 100  # drifts downwards

    with mode():
        normed = banded._norm_of(norm, x, ONE_ROW)

    assert torch.allclose(normed(x), norm(x), atol=2e-5)


@pytest.mark.parametrize("way", ["decode", "encode"])
@torch.inference_mode()
def test_bands_take_about_half_the_memory(autoencoder: Autoencoder, way: str) -> None:
    x = inputs(16, 16)[way]
    whole: Callable[[Tensor], Tensor] = autoencoder.decoder if way == "decode" else autoencoder.encoder
    peaks = []
    for run in (whole, lambda x: getattr(banded, way)(whole, x, band_bytes=2**18)):
        with Memory() as memory:
            run(x)
        peaks.append(memory.peak)

    # In float32 a decoder's maps take twice the bytes of bfloat16.
    at_most = banded.PEAK_IN_BANDS * (1.5 if way == "decode" else 1.1)
    assert peaks[1] < 0.6 * peaks[0]
    assert peaks[1] / (autoencoder.config.ch * 128 * 128) < at_most


@pytest.mark.parametrize(("share", "is_banded"), [(1.0, False), (0.99, True)])
def test_an_edit_goes_in_bands_where_the_whole_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, share: float, is_banded: bool
) -> None:
    model = kontext.load(MODEL, device="cpu", dtype=torch.float32, cache_bytes=0)
    expected = edit(model)
    ways: list[str] = []
    for way in ("decode", "encode"):
        run = getattr(banded, way)
        monkeypatch.setattr(banded, way, lambda *args, way=way, run=run: ways.append(way) or run(*args))
    whole = banded.whole_bytes(model.config.autoencoder, expected.shape[0] * expected.shape[1], is_compiled=False)
    monkeypatch.setattr(type(model.memory), "room_bytes", lambda memory: int(share * whole))

    image = edit(model)

    assert ways == (["encode", "decode"] if is_banded else [])
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1


def edit(model: kontext.Kontext) -> np.ndarray:
    return np.asarray(model.edit(PICTURE, "Remove the logo", num_inference_steps=1, seed=5, size_mode="reference"))


def test_the_documented_memory_is_what_plans_count_with() -> None:
    document = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    config = AutoencoderConfig()

    for megapixels in (1, 4, 16):
        pixels = megapixels * 2**20
        sizes = (
            banded.whole_bytes(config, pixels, is_compiled=False),
            banded.whole_bytes(config, pixels, is_compiled=True),
            banded.banded_bytes(config, pixels, is_compiled=True),
        )
        told = " | ".join(f"{size / 2**30:.1f}".removesuffix(".0") + " GiB" for size in sizes)
        assert f"| {megapixels} | {told} |" in document
