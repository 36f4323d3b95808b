"""What makes learning fast changes nothing of what is learnt."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from benchmarks.random_model import random_weights
from kontext.compile import compile_blocks
from kontext.config import TransformerConfig
from kontext.transformer import Transformer
from training.speed import PlainAttention, spare_tiling_analysis

CONFIG = TransformerConfig(
    hidden_size=64, num_heads=2, axes_dim=(8, 12, 12), depth=1, depth_single_blocks=1, context_in_dim=16, vec_in_dim=8
)
"""One block of each kind: each further graph takes the compiler seconds."""

attend = nn.functional.scaled_dot_product_attention


def test_plain_attention_is_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, tokens, 64) for tokens in (5, 7, 7))
    kernel = attend(q, k, v)

    with PlainAttention():
        plain = attend(q, k, v)

    assert not torch.equal(plain, kernel)  # it was another kernel
    torch.testing.assert_close(plain, kernel, rtol=1e-5, atol=1e-6)


def test_masked_attention_is_left_alone() -> None:
    q = torch.randn(1, 1, 3, 8)
    mask = torch.tensor([[True, False, False]] * 3)

    with PlainAttention():
        masked = attend(q, q, q, attn_mask=mask)

    torch.testing.assert_close(masked, q[:, :, :1].expand_as(q))


@pytest.mark.parametrize(("device", "analysed"), [("cuda", False), ("cpu", True)])
def test_the_analysis_that_fails_is_off_on_a_gpu(device: str, analysed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor.triton, "coalesce_tiling_analysis", True, raising=False)

    spare_tiling_analysis(torch.device(device))

    assert inductor.triton.coalesce_tiling_analysis is analysed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_compiled_blocks_learn_the_same() -> None:
    transformer = Transformer(CONFIG)
    transformer.load_state_dict(random_weights(transformer, seed=3))
    before = gradients(transformer)

    compile_blocks(transformer, backend="aot_eager")
    with PlainAttention():
        after = gradients(transformer)

    assert before.keys() == after.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def gradients(transformer: Transformer) -> dict[str, Tensor]:
    """Of one edit of one step."""
    torch.manual_seed(1)
    target, references, t5, clip = (torch.randn(2, *shape) for shape in ((4, 64), (4, 64), (6, 16), (8,)))
    ids = torch.cat([torch.zeros(2, 4, 3), torch.ones(2, 4, 3)], dim=1)
    conditioning = transformer.condition(
        t5,
        clip,
        guidance=torch.full((2,), 2.5),
        timesteps=torch.tensor([[0.9, 0.5]]),
        img_ids=ids,
        references=references,
    )
    transformer.zero_grad()
    torch.autograd.backward(transformer(target, 0, conditioning).square().mean())
    return {name: weights.grad.clone() for name, weights in transformer.named_parameters() if weights.grad is not None}
