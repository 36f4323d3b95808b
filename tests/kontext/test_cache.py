"""Encoded prompts and pictures that are kept: what is found again, what it weighs, and that pictures stay the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kontext
from kontext.cache import TensorCache
from tests.kontext.golden import MODEL, PICTURE

CPU = torch.device("cpu")


def edit(model: kontext.Kontext, prompt: str = "Remove the logo", picture: Image.Image = PICTURE) -> np.ndarray:
    return np.asarray(model.edit(picture, prompt, num_inference_steps=2, seed=5))


def test_a_prompt_and_a_picture_seen_before_are_not_encoded_again_and_the_picture_is_identical() -> None:
    model = kontext.load(MODEL, device="cpu")

    first, again = edit(model), edit(model)

    assert (model.cache.misses, model.cache.hits) == (2, 2)
    assert model.cache.bytes > 0
    assert np.array_equal(first, again)
    assert np.array_equal(first, edit(kontext.load(MODEL, device="cpu", cache_bytes=0)))


def test_another_prompt_picture_or_size_is_encoded() -> None:
    model = kontext.load(MODEL, device="cpu")
    edit(model)

    edit(model, prompt="Remove the logo ")
    assert (model.cache.misses, model.cache.hits) == (3, 1)

    changed = PICTURE.convert("RGB")
    changed.putpixel((0, 0), (1, 2, 3))
    edit(model, picture=changed)
    assert (model.cache.misses, model.cache.hits) == (4, 2)

    # The same bytes in another shape are another picture.
    bars = Image.frombytes("RGB", (16, 64), bytes(3 * 16 * 64)), Image.frombytes("RGB", (64, 16), bytes(3 * 16 * 64))
    for bar in bars:
        edit(model, picture=bar)
    assert (model.cache.misses, model.cache.hits) == (6, 4)


def test_a_cache_of_no_bytes_is_off() -> None:
    model = kontext.load(MODEL, device="cpu", cache_bytes=0)

    edit(model)
    edit(model)

    assert (model.cache.misses, model.cache.hits, model.cache.bytes) == (0, 0, 0)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(kontext.RequestError, match="cache_bytes is -1, expected 0 or more"):
        kontext.load(MODEL, device="cpu", cache_bytes=-1)


@given(sizes=st.lists(st.integers(0, 40), max_size=30), limit=st.integers(1, 100))
def test_whatever_comes_the_bound_holds_and_the_last_ones_are_kept(sizes: list[int], limit: int) -> None:
    cache = TensorCache(limit)

    for key, size in enumerate(sizes):
        (value,) = cache.recall(key, CPU, lambda size=size: (torch.zeros(size, dtype=torch.uint8),))
        assert value.nbytes == size
        assert cache.bytes <= limit

    kept, fits = 0, []
    for key, size in reversed(list(enumerate(sizes))):
        kept += size if size <= limit else 0
        if size <= limit and kept <= limit:
            fits.append(key)
        elif size <= limit:
            break
    before = cache.hits
    for key in fits:
        cache.recall(key, CPU, lambda: pytest.fail("should have been kept"))
    assert cache.hits == before + len(fits)


def test_what_is_kept_is_a_copy() -> None:
    cache = TensorCache(1000)
    (computed,) = cache.recall("key", CPU, lambda: (torch.ones(3),))

    computed.zero_()

    assert torch.equal(cache.recall("key", CPU, tuple)[0], torch.ones(3))
