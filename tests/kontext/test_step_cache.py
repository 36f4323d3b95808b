"""Steps that are skipped: which ones, that nothing else is computed or copied for them, and what results tell of it."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import kontext
from kontext import EditRequest, Lora, StepCache, official
from kontext.offload.memory import Resident
from kontext.step_cache import CachedSteps, parse_step_cache
from tests.kontext.compiling import repeated_step, transformer
from tests.kontext.golden import MODEL, PICTURE
from tests.kontext.offload.standin_device import CPU, AsPlanned, load, load_streamed
from tests.parity.closeness import assert_close

STEPS = 8
ALL = StepCache(threshold=0)
FEW = StepCache(threshold=1e6, warm_up_steps=1, last_steps=1, most_skipped=100)  # computes steps 0 and 7
SECOND_PICTURE = Image.new("RGB", (50, 80), "red")


def computed(rules: StepCache, firsts: list[float]) -> list[int]:
    """Indices of the computed steps when the first block adds these numbers."""
    cached, before = CachedSteps(rules, len(firsts)), torch.zeros(1, 3, 2)
    steps = []
    for step, first in enumerate(firsts):
        if cached.skip(step, before, before + first) is None:
            cached.keep(before)
            steps.append(step)
    assert cached.computed == len(steps)
    return steps


@pytest.mark.parametrize(
    ("rules", "firsts", "expected"),
    [
        # Nothing changes: the warm-up, the end, and one step after each three that were skipped.
        (StepCache(0.1, 2, 1, 3), [1.0] * 10, [0, 1, 5, 9]),
        (StepCache(0.1, 2, 1, 100), [1.0] * 10, [0, 1, 9]),
        (StepCache(0.1, 0, 0, 100), [1.0] * 10, [0]),
        (StepCache(0.1, 2, 1, 0), [1.0] * 4, [0, 1, 2, 3]),
        # Changes add up: 4 % a step are compared with the step that was computed, not with the one before.
        (StepCache(0.1, 1, 0, 100), [1.0, 1.04, 1.08, 1.12, 1.16, 1.2], [0, 3]),
        (StepCache(0.1, 1, 0, 100), [1.0, 1.2, 1.21, 1.5], [0, 1, 3]),
        # A threshold of 0 is never undercut, not even by no change at all.
        (StepCache(0, 0, 0, 100), [1.0] * 4, [0, 1, 2, 3]),
        # No number, and nothing to compare with.
        (StepCache(1, 0, 0, 100), [1.0, float("nan"), float("nan"), 1.0], [0, 1, 2, 3]),
        (StepCache(1, 0, 0, 100), [0.0, 0.0], [0, 1]),
        # Fewer steps than warm-up and end.
        (StepCache(1), [1.0] * 6, [0, 1, 2, 3, 4, 5]),
        (StepCache(1), [1.0], [0]),
    ],
)
def test_a_step_is_skipped_where_the_first_block_adds_nearly_the_same(
    rules: StepCache, firsts: list[float], expected: list[int]
) -> None:
    assert computed(rules, firsts) == expected


def test_no_number_is_fetched_from_the_device_where_the_rules_decide() -> None:
    meta = torch.zeros(1, 3, 2, device="meta")  # has no values to fetch
    cached = CachedSteps(StepCache(0.5, warm_up_steps=2, last_steps=2), 4)

    for step in range(4):
        assert cached.skip(step, meta, meta) is None
        cached.keep(meta)


@cache
def model(is_streamed: bool = False, **options: Any) -> kontext.Kontext:
    return load_streamed(**options) if is_streamed else kontext.load(MODEL, device="cpu", **options)


def edit(model: kontext.Kontext, **changes: Any) -> tuple[np.ndarray, int | None]:
    """(image, number of computed steps)."""
    request: dict[str, Any] = {
        "images": (PICTURE,),
        "prompt": "Remove the logo",
        "num_inference_steps": STEPS,
        "seed": 5,
    }
    edited = model.run(EditRequest(**request | changes))
    return np.asarray(edited.image), edited.steps_computed


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Lora:
    """A LoRA for the first block and for one that is skipped."""
    path, draw = tmp_path_factory.mktemp("lora") / "a.safetensors", torch.Generator().manual_seed(1)
    width = model().config.transformer.hidden_size
    halves = {"A": (4, width), "B": (width, 4)}
    modules = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_v")
    save_file(
        {
            f"transformer.{module}.lora_{half}.weight": torch.randn(shape, generator=draw)
            for module, (half, shape) in product(modules, halves.items())
        },
        path,
    )
    return Lora(path)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({"is_streamed": True}, {}),
        ({}, {"loras": True}),
        ({"is_streamed": True}, {"loras": True}),
        ({}, {"images": (PICTURE, SECOND_PICTURE)}),
        ({"dtype": torch.bfloat16, "precision": "fp8"}, {"num_inference_steps": 3}),  # few: bfloat16 is slow on a CPU
    ],
    ids=["resident", "streamed", "lora", "streamed, lora", "two images", "fp8"],
)
def test_a_threshold_of_0_is_exact_and_the_largest_computes_warm_up_and_end_alone(
    options: dict[str, Any], changes: dict[str, Any], lora: Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = changes | ({"loras": (lora,)} if "loras" in changes else {})
    loaded = model(**options)
    exact, _ = edit(loaded, **changes)

    monkeypatch.setattr(loaded, "step_cache", ALL)
    all_steps = edit(loaded, **changes)
    monkeypatch.setattr(loaded, "step_cache", FEW)
    few_steps = edit(loaded, **changes)

    assert np.array_equal(all_steps[0], exact)
    assert (all_steps[1], few_steps[1]) == (changes.get("num_inference_steps", STEPS), 2)
    assert 0 < np.abs(few_steps[0].astype(int) - exact).mean() < 60  # of 255
    if "is_streamed" in options:
        assert np.array_equal(few_steps[0], edit(model(step_cache=FEW), **changes)[0])


def test_without_a_cache_nothing_is_skipped_or_told() -> None:
    assert model().step_cache is None
    assert model().approximations == ()
    assert edit(model())[1] is None


def test_the_result_names_the_approximation_and_its_numbers() -> None:
    assert model(step_cache=FEW).approximations == (
        "first-block cache, threshold 1e+06, first 1 and last 1 steps computed, at most 100 skipped in a row",
    )


def test_a_model_goes_on_after_each_edit_with_nothing_from_the_one_before() -> None:
    cached = model(step_cache=FEW)

    first, other, again = edit(cached), edit(cached, prompt="Paint it red"), edit(cached)

    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_a_skipped_step_has_the_velocity_of_the_step_that_it_repeats() -> None:
    exact, computed, skipped = repeated_step(transformer())

    assert torch.equal(computed, exact)
    assert_close(skipped, exact)  # rounded twice: img' + (x - img')


def test_a_skipped_step_runs_the_first_block_alone() -> None:
    cached, calls = kontext.load(MODEL, device="cpu", step_cache=FEW), dict.fromkeys(("first", "second", "last"), 0)
    network = cached.networks.transformer
    blocks = (network.double_blocks[0], network.double_blocks[1], network.single_blocks[-1])
    for name, block in zip(calls, blocks, strict=True):

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        block.register_forward_hook(count)

    edit(cached)

    assert calls == {"first": STEPS, "second": 2, "last": 2}


@pytest.mark.parametrize(
    ("streamed", "copies"),
    [
        # Two pieces and two slots, fetched once for each of 2 computed steps, and both once more for a step that does
        # not come: the skipped steps copy nothing.
        (("double.1", "single.1"), 2 * 2 + 2),
        # The first block is streamed, too, so it is copied at all 8 steps, and takes the slot of the piece behind the
        # next one. In each of the 6 skipped steps that piece's copy was for nothing, and nothing else.
        (("double.0", "double.1", "single.1"), 3 * 2 + 6 * 2 + 2),
    ],
)
def test_pieces_of_skipped_blocks_stay_in_their_slots(streamed: tuple[str, ...], copies: int) -> None:
    memory = AsPlanned(lambda name: name in streamed, slots=2)
    cached, resident = load(memory), load(Resident(CPU))
    cached.step_cache = resident.step_cache = FEW
    before = len(memory.copies.sizes)

    image, computed = edit(cached)

    assert computed == 2
    assert np.array_equal(image, edit(resident)[0])
    assert len(memory.copies.sizes) - before == copies


@pytest.mark.parametrize("slots", [1, 3])
def test_streaming_everything_gives_the_resident_picture(slots: int) -> None:
    streamed, resident = load(AsPlanned(lambda name: True, slots)), load(Resident(CPU))
    streamed.step_cache = resident.step_cache = FEW

    assert np.array_equal(edit(streamed)[0], edit(resident)[0])


@pytest.mark.parametrize(
    ("word", "rules"),
    [
        ("off", None),
        (None, None),
        ("first-block", StepCache(0.08)),
        ("First-Block:0.12", StepCache(0.12)),
        (" first-block:.5 ", StepCache(0.5)),
        ("first-block:0", StepCache(0)),
        ("first-block:1", StepCache(1)),
    ],
)
def test_a_cache_is_read_from_a_word(word: str | None, rules: StepCache | None) -> None:
    assert parse_step_cache(word) == rules


@pytest.mark.parametrize(
    "word", ["on", "0.08", "first-block:", "first-block:1.5", "first-block:-1", "first-block:nan", "teacache", ""]
)
def test_another_word_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"expected off, first-block, or first-block:THRESHOLD with a threshold from"):
        parse_step_cache(word)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"threshold": -0.1}, "threshold of the step cache is -0.1, expected 0 or more"),
        ({"threshold": float("nan")}, "threshold of the step cache is nan, expected 0 or more"),
        ({"warm_up_steps": -1}, "warm_up_steps of the step cache is -1, expected 0 or more"),
        ({"most_skipped": -1}, "most_skipped of the step cache is -1, expected 0 or more"),
    ],
)
def test_rules_that_cannot_work_are_refused(changes: dict[str, float], complaint: str) -> None:
    with pytest.raises(kontext.RequestError, match=complaint):
        StepCache(**changes)  # type: ignore[arg-type]


def test_the_official_engine_has_no_cache() -> None:
    with pytest.raises(kontext.RequestError, match="step_cache: not for the official engine"):
        official.load(MODEL, device="cpu", step_cache=FEW)
