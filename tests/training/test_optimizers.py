"""Learning rates rise, stay, and fall to nearly nothing; matrices move orthogonally."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.optimizers import Muon, Optimizers, orthogonal, rate_share


def test_the_rate_rises_stays_and_falls() -> None:
    shares = [rate_share(step, 100, warm_up_steps=10, passed=step / 100) for step in range(100)]

    assert shares[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert set(shares[10:50]) == {1.0}
    assert shares[50:] == sorted(shares[50:], reverse=True)
    assert shares[-1] == pytest.approx(0.04)


def test_a_short_training_warms_up_for_a_fifth_of_it() -> None:
    assert [rate_share(step, 10, 40, step / 10) for step in range(3)] == [0.5, 1.0, 1.0]


def test_the_rate_falls_by_time_however_many_steps_are_left() -> None:
    assert rate_share(60, 10_000, 40, passed=0.99) == pytest.approx(0.04)


def test_a_step_takes_a_share_of_every_full_rate() -> None:
    matrix, vector = nn.Parameter(torch.eye(2)), nn.Parameter(torch.zeros(2))
    both = Optimizers(
        Muon([{"params": [matrix], "full_rate": 0.1}]),
        torch.optim.Adam([{"params": [vector], "full_rate": 0.2}]),
    )
    matrix.grad, vector.grad = torch.eye(2), torch.ones(2)

    both.step(share=0.5)

    assert vector.tolist() == pytest.approx([-0.1, -0.1])  # Adam's first step is the rate
    assert float((torch.eye(2) - matrix.detach()).norm()) == pytest.approx(
        0.05 * 2**0.5, rel=0.35
    )  # Muon's is about orthogonal


@pytest.mark.parametrize("shape", [(3, 16, 24), (2, 24, 16)])
@pytest.mark.parametrize("has_instructions", [True, False])
def test_orthogonal_matrices_keep_directions_and_lose_sizes(
    shape: tuple[int, ...], has_instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.optimizers.computes_in_bfloat16", lambda _: has_instructions)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)

    sizes = (left.mT @ orthogonal(matrices) @ right.mT).diagonal(dim1=1, dim2=2)

    assert float(sizes.min()) > 0.5
    assert float(sizes.max()) < 1.4


def test_matrices_of_one_shape_move_as_if_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 8, 12, generator=draw)

    def moved(*gradients: torch.Tensor) -> list[torch.Tensor]:
        matrices = [nn.Parameter(torch.zeros(8, 12)) for _ in gradients]
        muon = Muon([{"params": [matrix], "lr": 0.1 * (i + 1)} for i, matrix in enumerate(matrices)])
        for _ in range(2):
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            muon.step()
        return [matrix.detach() for matrix in matrices]

    first, second = moved(*gradients)

    torch.testing.assert_close(first, moved(gradients[0])[0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(second, 2 * moved(gradients[1])[0], rtol=1e-2, atol=2e-3)
