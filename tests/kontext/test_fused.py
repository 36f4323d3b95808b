"""Operators of compiled blocks: the same as the plain steps they stand for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import kontext.layers
from kontext.attention import apply_rope, rotary_table
from kontext.compile import compile_blocks
from kontext.fused import add_modulated, linear_gelu, linear_of_two, modulated, turn
from kontext.layers import NORM_EPSILON, QKNorm, modulate, scales_of
from tests.kontext.compiling import forgotten_graphs, transformer, velocity
from tests.kontext.golden import FLOAT32_FROM_TENSORS, relative_error

HEADS, AXES = 3, (8, 12, 12)
HIDDEN = HEADS * sum(AXES)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def norm(seed: int) -> QKNorm:
    made = QKNorm(sum(AXES)).requires_grad_(False)
    for i, scale in enumerate(scales_of(made)):
        scale.normal_(generator=torch.Generator().manual_seed(seed + i))
    return made


def table(tokens: int) -> Tensor:
    return rotary_table(5 * drawn(1, tokens, 3), AXES, theta=10_000)


def plainly_turned(streams: list[Tensor], norms: list[QKNorm], pe: Tensor) -> list[Tensor]:
    parts = [norm(stream, HEADS) for norm, stream in zip(norms, streams, strict=True)]
    q, k, v = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return [apply_rope(q, pe), apply_rope(k, pe), v]


def test_two_streams_are_normed_turned_and_joined() -> None:
    streams, norms, pe = [drawn(2, 4, 3 * HIDDEN), drawn(2, 7, 3 * HIDDEN)], [norm(1), norm(5)], table(11)

    out = turn(streams, scales_of(*norms), pe, HEADS, NORM_EPSILON)

    assert all(map(torch.equal, out, plainly_turned(streams, norms, pe)))
    torch.library.opcheck(turn, (streams, scales_of(*norms), pe, HEADS, NORM_EPSILON))


def test_the_values_of_one_stream_stay_where_they_are() -> None:
    stream, made, pe = drawn(1, 7, 3 * HIDDEN), norm(1), table(7)

    out = turn([stream], scales_of(made), pe, HEADS, NORM_EPSILON)

    assert len(out) == 2
    assert all(map(torch.equal, out, plainly_turned([stream], [made], pe)))


def test_a_product_with_gelu_is_the_product_and_then_gelu() -> None:
    joined = nn.Linear(6, 10).requires_grad_(False)
    x = drawn(2, 5, 6)

    made = linear_gelu(x, joined.weight[4:], joined.bias[4:])

    assert torch.allclose(made, nn.functional.gelu(joined(x), approximate="tanh")[..., 4:], atol=1e-6)
    torch.library.opcheck(linear_gelu, (x, joined.weight[4:], joined.bias[4:]))


def test_a_layer_of_two_tensors_is_that_of_both_side_by_side() -> None:
    layer, one, other = nn.Linear(10, 6).requires_grad_(False), drawn(2, 5, 4), drawn(2, 5, 6)

    made = linear_of_two(one, other, layer.weight, layer.bias)

    assert torch.allclose(made, layer(torch.cat((one, other), dim=-1)), atol=1e-6)
    torch.library.opcheck(linear_of_two, (one, other, layer.weight, layer.bias))


def test_a_norm_is_modulated_with_a_gated_branch_added_before_or_without() -> None:
    x, branch = drawn(2, 5, 6), drawn(2, 5, 6) + 1
    gate, shift, scale = (drawn(2, 1, 6) + i for i in range(3))

    total, made = add_modulated(x, branch, gate, shift, scale, NORM_EPSILON)

    assert torch.equal(total, x + gate * branch)
    assert torch.equal(made, modulate(total, shift, scale))
    assert torch.equal(modulated(total, shift, scale, NORM_EPSILON), made)
    torch.library.opcheck(modulated, (x, shift, scale, NORM_EPSILON))
    torch.library.opcheck(add_modulated, (x, branch, gate, shift, scale, NORM_EPSILON))


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled blocks take the operators on a CPU too."""
    monkeypatch.setattr(kontext.layers, "can_turn", lambda qkv, heads: torch.compiler.is_compiling())
    monkeypatch.setattr(
        kontext.layers,
        "can_fuse_into",
        lambda linear, x: torch.compiler.is_compiling() and isinstance(linear, nn.Linear),
    )
    with forgotten_graphs():
        yield


@pytest.mark.usefixtures("fusing")
def test_blocks_that_fuse_compute_what_plain_blocks_do() -> None:
    plain, compiled = transformer(), transformer()
    compile_blocks(compiled, "eager")

    for grid in ((4, 6), (5, 3)):
        assert relative_error(velocity(compiled, *grid), velocity(plain, *grid)) < FLOAT32_FROM_TENSORS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_on_a_gpu_turns_as_plain_steps_do(dtype: torch.dtype) -> None:
    streams = [x.to("cuda", dtype) for x in (drawn(2, 4, 3 * HIDDEN), drawn(2, 7, 3 * HIDDEN))]
    norms, pe = [norm(1).to("cuda", dtype), norm(5).to("cuda", dtype)], table(11).cuda()

    out = turn(streams, scales_of(*norms), pe, HEADS, NORM_EPSILON)
    alone = turn(streams[1:], scales_of(norms[1]), pe[:, 4:], HEADS, NORM_EPSILON)

    # A root or a sum of last bits may round the other way.
    largest = 1e-6 if dtype == torch.float32 else 2e-3
    expected = plainly_turned(streams, norms, pe)
    assert all(relative_error(*pair) < largest for pair in zip(out, expected, strict=True))
    assert torch.equal(out[2], expected[2])
    assert all(torch.equal(part, whole[:, 4:]) for part, whole in zip(alone, out, strict=False))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_on_a_gpu_modulates_as_plain_steps_do(dtype: torch.dtype) -> None:
    x, branch = (drawn(2, 7, 96).to("cuda", dtype) + i for i in range(2))
    gate, shift, scale = drawn(2, 1, 3 * 96).to("cuda", dtype).chunk(3, dim=-1)  # as a modulation returns them

    total, made = add_modulated(x, branch, gate, shift, scale, NORM_EPSILON)

    largest = 1e-6 if dtype == torch.float32 else 5e-3
    assert relative_error(total, x.float() + gate.float() * branch.float()) < largest
    exact = modulate(total.float(), shift.float(), scale.float())
    assert relative_error(made, exact) < largest
    assert torch.equal(modulated(total, shift, scale, NORM_EPSILON), made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cublas_gives_the_plain_products_on_a_gpu() -> None:
    x, attended, mlp = (drawn(1, 40, width).cuda().bfloat16() for width in (64, 32, 128))
    first, second = nn.Linear(64, 128).cuda().bfloat16(), nn.Linear(160, 64).cuda().bfloat16()

    with torch.inference_mode():
        gelu = nn.functional.gelu(first(x).float(), approximate="tanh")
        joined = second(torch.cat((attended, mlp), dim=-1))

        assert relative_error(linear_gelu(x, first.weight, first.bias), gelu) < 8e-3
        assert relative_error(linear_of_two(attended, mlp, second.weight, second.bias), joined) < 8e-3
