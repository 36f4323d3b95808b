"""The choice between attention kernels."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import kontext
from kontext.attention_kernels import (
    PACKAGES,
    attend,
    candidates,
    choose_backend,
    measure_backends,
    using_backend,
)
from kontext.config import TransformerConfig
from kontext.errors import RequestError
from tests.kontext.golden import MODEL, PICTURE

CPU = torch.device("cpu")


def test_a_cpu_has_no_choice_and_measures_nothing() -> None:
    assert choose_backend(TransformerConfig(), CPU, torch.bfloat16) == "default"


def test_a_kernel_asked_for_is_taken_unmeasured() -> None:
    assert choose_backend(TransformerConfig(), CPU, torch.bfloat16, "math") == "math"


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(RequestError, match="attention is 'fastest', expected auto, cudnn, flash"):
        choose_backend(TransformerConfig(), CPU, torch.bfloat16, "fastest")


def test_only_kernels_that_work_here_are_measured() -> None:
    measured = measure_backends(torch.randn(1, 16, 2, 8), ["cudnn", "flash", "math"])

    assert {"flash", "math"} <= measured.keys()
    assert all(time > 0 for times in measured.values() for time in times)


@pytest.mark.parametrize("name", ["default", "cudnn", "math"])
def test_a_kernel_that_is_not_there_gives_way_to_another(name: str) -> None:
    x = torch.randn(1, 2, 16, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x)

    with using_backend(name):
        assert torch.allclose(torch.nn.functional.scaled_dot_product_attention(x, x, x), expected, atol=1e-6)


Attend = Callable[[Tensor, Tensor, Tensor], object]


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stand-in for a FlashAttention package: (batch, length, heads, head_dim) in and out."""

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor) -> object:
        # As the kernels, it wants the channels of a head side by side.
        assert {x.stride(-1) for x in (q, k, v)} == {1}
        assert (q.shape[2:], k.shape) == (k.shape[2:], v.shape)
        scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) / q.shape[-1] ** 0.5
        heard = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), v.float()).to(q.dtype)
        # One of them returns the sums too.
        return (heard, scores.logsumexp(dim=-1)) if request.param == "fa3" else heard

    module = ModuleType(PACKAGES[request.param])
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, loader=None)
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return str(request.param)


def test_an_installed_package_is_a_candidate_and_is_measured(package: str) -> None:
    assert package in candidates()
    assert choose_backend(TransformerConfig(), CPU, torch.bfloat16, package) == package
    assert measure_backends(torch.randn(1, 16, 2, 8), [package])[package].later > 0


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_not_there_is_no_candidate_and_an_error_when_asked_for(name: str) -> None:
    assert name not in candidates()
    assert measure_backends(torch.randn(1, 16, 2, 8), [name]) == {}
    with pytest.raises(RequestError, match=f"attention is '{name}', but there is no package {PACKAGES[name]}"):
        choose_backend(TransformerConfig(), CPU, torch.bfloat16, name)


def test_a_packages_attention_is_torchs(package: str) -> None:
    draw = torch.Generator().manual_seed(1)
    # Fewer queries than keys, and strides as they come from a joint projection of q, k and v.
    q = torch.randn(1, 2, 5, 8, generator=draw)
    k, v = torch.randn(2, 1, 9, 2, 8, generator=draw).transpose(2, 3)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)

    with using_backend(package):
        heard = torch.nn.functional.scaled_dot_product_attention(q, k, v)

    assert torch.allclose(heard, expected, atol=1e-6)
    torch.library.opcheck(attend, (*(x.transpose(1, 2) for x in (q, k, v)), package))


def test_an_edit_goes_through_the_package(package: str) -> None:
    ours, default = (
        np.asarray(
            kontext.load(MODEL, device="cpu", dtype=torch.float32, attention=attention).edit(
                PICTURE, "Remove the logo", num_inference_steps=2, seed=5
            )
        ).astype(int)
        for attention in (package, "auto")
    )

    assert np.abs(ours - default).max() <= 1


def test_compiled_blocks_take_the_package_in_one_graph(package: str) -> None:
    def attend(x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x).transpose(1, 2).flatten(2)

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="eager")
    with using_backend(package):
        compiled(torch.randn(1, 2, 16, 8))
    with torch._dynamo.config.patch(error_on_recompile=True), using_backend(package):
        x = torch.randn(1, 2, 24, 8)
        heard = compiled(x)

    assert torch.allclose(heard, attend(x), atol=1e-6)
    torch._dynamo.reset()


def test_the_kernel_is_named_in_the_graph_so_that_no_cache_confuses_two() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    def compiled(x: Tensor) -> Tensor:
        torch._dynamo.reset()
        attend_self = torch.compile(lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x), backend=keep)
        return attend_self(x)  # type: ignore[no-any-return]

    for name in ("math", "flash"):
        with using_backend(name):
            compiled(torch.randn(1, 2, 16, 8))
    torch._dynamo.reset()

    named = [
        [node.args[3] for node in graph.graph.nodes if node.target is torch.ops.kontext.attend.default]
        for graph in graphs
    ]
    assert named == [["math"], ["flash"]]


def test_a_package_that_fails_in_its_own_way_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # As FlashAttention 4, which has the name of 2 and nothing of it; and as a package made for another machine.
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "__init__.py").write_text("")
    (tmp_path / "flash_attn_interface.py").write_text(
        "def flash_attn_func(*args): raise AssertionError('sm_100 only')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    caplog.set_level("DEBUG", "kontext")

    assert "fa2" not in candidates()
    assert "fa3" in candidates()
    assert measure_backends(torch.randn(1, 16, 2, 8), ["fa3"]) == {}
    assert "sm_100 only" in caplog.text

    (tmp_path / "flash_attn" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open')\n")
    sys.modules.pop("flash_attn", None)
    assert "fa2" not in candidates()


def test_attention_with_a_mask_is_left_to_torch() -> None:
    x = torch.randn(1, 2, 16, 8, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    with using_backend("math"):
        heard = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    assert torch.allclose(heard, expected, atol=1e-6)
