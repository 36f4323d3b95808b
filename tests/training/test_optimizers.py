"""Learning rates rise, stay, and fall to nearly nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.optimizers import Optimizers, rate_share


def test_the_rate_rises_stays_and_falls() -> None:
    shares = [rate_share(step, 100, warm_up_steps=10) for step in range(100)]

    assert shares[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert set(shares[10:50]) == {1.0}
    assert shares[50:] == sorted(shares[50:], reverse=True)
    assert shares[-1] == pytest.approx(0.04)


def test_a_short_training_warms_up_for_a_fifth_of_it() -> None:
    assert [rate_share(step, 10, warm_up_steps=40) for step in range(3)] == [0.5, 1.0, 1.0]


def test_a_step_takes_a_share_of_every_full_rate() -> None:
    matrix, vector = nn.Parameter(torch.eye(2)), nn.Parameter(torch.zeros(2))
    both = Optimizers(
        torch.optim.Muon([{"params": [matrix], "full_rate": 0.1}], weight_decay=0.0),
        torch.optim.Adam([{"params": [vector], "full_rate": 0.2}]),
    )
    matrix.grad, vector.grad = torch.eye(2), torch.ones(2)

    both.step(share=0.5)

    assert vector.tolist() == pytest.approx([-0.1, -0.1])  # Adam's first step is the rate
    assert float((torch.eye(2) - matrix.detach()).norm()) == pytest.approx(
        0.05 * 2**0.5, rel=0.35
    )  # Muon's is about orthogonal


def test_muon_steps_alike_with_and_without_bfloat16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    def stepped(has_instructions: bool) -> torch.Tensor:
        monkeypatch.setattr("training.speed.cpu_computes_in_bfloat16", lambda: has_instructions)
        draw = torch.Generator().manual_seed(0)
        matrix = nn.Parameter(torch.zeros(32, 48))
        muon = torch.optim.Muon([{"params": [matrix], "full_rate": 1.0}], weight_decay=0.0)
        adam = torch.optim.Adam([{"params": [nn.Parameter(torch.zeros(1))], "full_rate": 1.0}])
        matrix.grad = torch.randn(32, 48, generator=draw)
        Optimizers(muon, adam).step(share=1.0)
        return matrix.detach()

    rounded, exact = stepped(True), stepped(False)

    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.05
