"""The benchmark of learning runs, at a scale of seconds."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks import learning
from kontext.compile import compile_blocks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_every_variant_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "BATCHES", {(64, 64): 2})
    monkeypatch.setattr(learning, "compile_blocks", partial(compile_blocks, backend="eager"))

    figures = learning.edits_per_second((64, 64), repetitions=1)

    assert figures.keys() == {"as it is", "compiled", "compiled, plain attention"}
    assert all(edits > 0 for edits in figures.values())
