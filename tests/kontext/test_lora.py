"""LoRA files in the forms that people have act as if they were merged into the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import kontext
from kontext.compile import compile_blocks
from kontext.errors import LoraError, RequestError
from kontext.lora.adapters import AdapterCache, Adapters, linear_layers, make_adapters, padded_rank
from kontext.lora.files import read_lora
from kontext.official import OfficialKontext
from kontext.request import EditRequest, Lora
from kontext.sampling import position_ids
from kontext.transformer import Transformer
from kontext.weights.key_names import diffusers_modules
from tests.kontext.compiling import transformer
from tests.kontext.golden import MODEL, PICTURE
from tests.kontext.offload.standin_device import load_streamed

CPU = torch.device("cpu")
RANK, ALPHA = 4, 6.0
FORWARD = 1e-5  # float32, the same products in another order

Tensors = dict[str, Tensor]
Products = dict[str, Tensor]  # the whole addition to each layer, by its name


@torch.inference_mode()
def velocity(network: Transformer, adapters: Adapters | None = None, rows: int = 4, columns: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(rows)
    ids = torch.cat((position_ids(0, rows, columns), position_ids(1, rows, columns)), dim=1)
    conditioning = network.condition(
        torch.randn(1, 10, 16, generator=draw),
        torch.randn(1, 8, generator=draw),
        guidance=torch.full((1,), 2.5),
        timesteps=torch.tensor([[1.0], [0.5]]),
        img_ids=ids,
        references=torch.randn(1, rows * columns, 64, generator=draw),
        adapters=adapters,
    )
    return network(torch.randn(1, rows * columns, 64, generator=draw), 1, conditioning)


def adapters_of(network: Transformer, *loras: Lora) -> Adapters:
    return make_adapters(network, loras, torch.float32, CPU, CPU)


def draw_halves(rows: int, columns: int, seed: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=draw), torch.randn(rows, rank, generator=draw) / columns


def checkpoint_form(
    network: Transformer, halves: tuple[str, str], prefix: str, mangle: bool = False, alpha: bool = True
) -> tuple[Tensors, Products]:
    """A LoRA of every linear layer, by the checkpoint's names."""
    tensors, products = {}, {}
    for seed, (name, (rows, columns)) in enumerate(linear_layers(network).items()):
        down, up = draw_halves(rows, columns, seed)
        written = f"{prefix}{name.replace('.', '_') if mangle else name}"
        tensors |= {f"{written}.{halves[0]}": down, f"{written}.{halves[1]}": up}
        if alpha:
            tensors[f"{written}.alpha"] = torch.tensor(ALPHA)
        products[name] = up @ down * (ALPHA / RANK if alpha else 1)
    return tensors, products


def diffusers_form(
    network: Transformer, prefix: str = "transformer.", mangle: bool = False
) -> tuple[Tensors, Products]:
    """A LoRA of every layer that diffusers has: q, k, v apart, and the last modulation the other way round."""
    tensors, products = {}, {}
    for name, (rows, columns) in linear_layers(network).items():
        theirs = diffusers_modules(name)
        sizes = [rows] if len(theirs) == 1 else [*[columns] * (len(theirs) - 1), rows - columns * (len(theirs) - 1)]
        parts = []
        for their_name, size in zip(theirs, sizes, strict=True):
            down, up = draw_halves(size, columns, len(tensors))
            written = f"{prefix}{their_name.replace('.', '_') if mangle else their_name}"
            tensors |= {f"{written}.lora_A.weight": down, f"{written}.lora_B.weight": up}
            parts.append(up @ down)
        product = torch.cat(parts)
        products[name] = torch.cat(product.chunk(2)[::-1]) if name.startswith("final_layer.adaLN") else product
    return tensors, products


FORMS: dict[str, Callable[[Transformer], tuple[Tensors, Products]]] = {
    "bfl": lambda n: checkpoint_form(n, ("lora_A.weight", "lora_B.weight"), "", alpha=False),
    "kohya": lambda n: checkpoint_form(n, ("lora_down.weight", "lora_up.weight"), "lora_unet_", mangle=True),
    "comfyui": lambda n: checkpoint_form(n, ("lora_A.weight", "lora_B.weight"), "diffusion_model."),
    "comfyui_down_up": lambda n: checkpoint_form(n, ("lora_down.weight", "lora_up.weight"), "diffusion_model."),
    "diffusers": diffusers_form,
    "peft": lambda n: diffusers_form(n, "base_model.model."),
    "onetrainer": lambda n: diffusers_form(n, "lora_transformer_", mangle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_acts_as_if_merged(form: str, tmp_path: Path) -> None:
    network, merged = transformer(), transformer()
    tensors, products = FORMS[form](network)
    save_file(tensors, tmp_path / "a.safetensors")
    for name, product in products.items():
        merged.get_submodule(name).weight.add_(0.7 * product)

    ours = velocity(network, adapters_of(network, Lora(tmp_path / "a.safetensors", 0.7)))

    assert relative_error(ours, velocity(merged)) < FORWARD
    assert relative_error(ours, velocity(network)) > 1e-2  # it acts at all


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_several_act_together_and_scale_0_is_none(tmp_path: Path) -> None:
    network, merged = transformer(), transformer()
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, form, scale in zip(paths, ("diffusers", "kohya"), (0.5, -1.5), strict=True):
        tensors, products = FORMS[form](network)
        save_file(tensors, path)
        for name, product in products.items():
            merged.get_submodule(name).weight.add_(scale * product)

    both = velocity(network, adapters_of(network, Lora(paths[0], 0.5), Lora(paths[1], -1.5)))

    assert relative_error(both, velocity(merged)) < FORWARD
    assert torch.equal(velocity(network, adapters_of(network, Lora(paths[0], 0.0))), velocity(network))


def test_layers_that_a_lora_does_not_have_stay_as_they_are(tmp_path: Path) -> None:
    network, merged = transformer(), transformer()
    down, up = draw_halves(64, 64, 1)
    save_file(
        {
            "transformer.single_transformer_blocks.2.attn.to_k.lora_A.weight": down,
            "transformer.single_transformer_blocks.2.attn.to_k.lora_B.weight": up,
        },
        tmp_path / "a.safetensors",
    )
    merged.single_blocks[2].linear1.weight[64:128].add_(up @ down)

    assert (
        relative_error(velocity(network, adapters_of(network, Lora(tmp_path / "a.safetensors"))), velocity(merged))
        < FORWARD
    )


@pytest.mark.parametrize(
    ("notes", "factor"),
    [
        ({"transformer.lora_alpha": 8, "transformer.r": 4}, 2.0),
        ({"transformer.lora_alpha": 8, "transformer.r": 4, "transformer.use_rslora": True}, 4.0),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_out.0": 2}}, 0.5),
        ({"transformer.alpha_pattern": {"0": 16, "transformer_blocks.0.attn.to_out.0": 2, "to_out.0": 16}}, 0.5),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"out.0": 2, "former_blocks.0": 2}}, 2.0),
        ({}, 1.0),
    ],
)
def test_alpha_in_diffusers_notes_counts(tmp_path: Path, notes: dict[str, object], factor: float) -> None:
    network = transformer()
    down, up = draw_halves(64, 64, 1)
    name = "transformer.transformer_blocks.0.attn.to_out.0"
    save_file(
        {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up},
        tmp_path / "a.safetensors",
        {"lora_adapter_metadata": json.dumps(notes)},
    )

    ((addition,),) = read_lora(tmp_path / "a.safetensors", linear_layers(network)).values()

    assert addition.factor == factor


@pytest.mark.parametrize(
    "notes",
    [
        '{"transformer.lora_alpha": NaN}',
        '{"transformer.lora_alpha": 1e999}',
        f'{{"transformer.lora_alpha": 1{"0" * 400}}}',
        '{"transformer.lora_alpha": [8]}',
        '{"transformer.alpha_pattern": {"a": null}}',
        '{"transformer.alpha_pattern": {"a": 4, "to_out.0": -Infinity}}',
        '{"transformer.alpha_pattern": "a"}',
        "[]",
        "no JSON",
    ],
)
def test_notes_whose_alpha_is_no_finite_number_are_refused(tmp_path: Path, notes: str) -> None:
    save_file(GOOD, tmp_path / "mine.safetensors", {"lora_adapter_metadata": notes})

    with pytest.raises(
        LoraError, match=r"LoRA mine\.safetensors has notes that cannot be read \(lora_adapter_metadata"
    ):
        read_lora(tmp_path / "mine.safetensors", linear_layers(transformer()))


XLABS = "double_blocks.0.processor.qkv_lora2"


def test_xlabs_names_are_the_two_streams(tmp_path: Path) -> None:
    down, up = draw_halves(192, 64, 1)
    save_file({f"{XLABS}.down.weight": down, f"{XLABS}.up.weight": up}, tmp_path / "a.safetensors")

    assert read_lora(tmp_path / "a.safetensors", linear_layers(transformer())).keys() == {
        "double_blocks.0.txt_attn.qkv"
    }


LAYER = "diffusion_model.double_blocks.0.img_attn.proj"
GOOD = {f"{LAYER}.lora_A.weight": torch.ones(4, 64), f"{LAYER}.lora_B.weight": torch.ones(64, 4)}


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        (
            {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 8)},
            "parts for a text encoder",
        ),
        ({"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(4, 8)}, "for a text encoder"),
        ({f"{LAYER}.dora_scale": torch.ones(4)}, "is DoRA"),
        ({f"{LAYER}.lokr_w1": torch.ones(4)}, "is LoKr"),
        ({f"{LAYER}.hada_w1_a": torch.ones(4)}, "is LoHa"),
        ({f"{LAYER}.diff_b": torch.ones(4)}, "whole differences"),
        ({f"{LAYER}.diff": torch.ones(4)}, "whole differences"),
        ({f"model.{LAYER}.lora_unheard_of": torch.ones(4)}, "is no LoRA that is known here"),
        ({f"model.{LAYER}.lokr_w1": torch.ones(4)}, "is LoKr"),
        ({f"{LAYER}.lora_B.bias": torch.ones(64)}, "a LoRA with biases"),
        ({f"{LAYER}.lora_up.bias": torch.ones(64)}, "a LoRA with biases"),
        ({f"{LAYER}.lora_magnitude_vector.default.weight": torch.ones(64)}, "is DoRA"),
        ({f"{LAYER}.oft_blocks": torch.ones(4)}, "is OFT"),
        ({"lora_unet_soft_prompt.weight": torch.ones(4)}, "no LoRA that is known here"),
        ({"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(4)}, "norms beside a LoRA"),
        ({"transformer.transformer_blocks.0.attn.norm_added_k.weight": torch.ones(4)}, "norms beside a LoRA"),
        ({"lora_unet_double_blocks_0_img_attn_norm_query.w_norm": torch.ones(4)}, "norms beside a LoRA"),
        ({"transformer.norm_out.linear.lora_A.other": torch.ones(4, 64)}, "no LoRA that is known here"),
        ({"transformer.norm_out.linear.weight": torch.ones(4, 64)}, "no LoRA that is known here"),
        ({"lora_unet_down_blocks_0_attentions_0.lora_down.weight": torch.ones(4, 8)}, "made for another model"),
        ({"diffusion_model.double_blocks.7.img_attn.proj.lora_A.weight": torch.ones(4, 64)}, "another model"),
        ({f"{LAYER}.lora_A.weight": torch.ones(4, 128)}, r"layer .* is 64x64 here and 64x128 there \(rank 4\)"),
        ({f"{LAYER}.lora_B.weight": torch.ones(64, 5)}, "does not fit"),
        ({f"{LAYER}.lora_A.weight": torch.full((4, 64), torch.nan)}, "not numbers"),
        ({f"{LAYER}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}, r"is in torch\.int8"),
        ({f"{LAYER}.alpha": torch.tensor(torch.inf)}, "an alpha that is no number"),
        ({"weight": torch.ones(1)}, "no LoRA that is known here"),
    ],
)
def test_what_is_not_applied_is_named(tmp_path: Path, tensors: Tensors, complaint: str) -> None:
    save_file(GOOD | tensors, tmp_path / "mine.safetensors")

    with pytest.raises(LoraError, match=rf"LoRA mine\.safetensors .*{complaint}") as error:
        read_lora(tmp_path / "mine.safetensors", linear_layers(transformer()))

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("a.safetensors", b"<!doctype html>", "is a web page"),
        ("a.safetensors", b"", "is cut short or no safetensors file"),
        ("a.pt", b"PK\x03\x04", "only safetensors are"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}", "holds no layers"),
    ],
)
def test_files_that_are_no_lora_are_named(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(LoraError, match=rf"LoRA {name} .*{complaint}"):
        read_lora(tmp_path / name, linear_layers(transformer()))


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    save_file({f"{LAYER}.lora_A.weight": torch.ones(4, 64)}, tmp_path / "a.safetensors")

    with pytest.raises(LoraError, match=r"lacks a half of the layer double_blocks\.0\.img_attn\.proj"):
        read_lora(tmp_path / "a.safetensors", linear_layers(transformer()))


@pytest.mark.slow
def test_no_graph_is_compiled_for_another_lora(tmp_path: Path) -> None:
    network, plain = transformer(), transformer()
    made = []
    for number, (form, rank) in enumerate((("kohya", 4), ("diffusers", 4), ("comfyui", 4))):
        tensors, _ = FORMS[form](network)
        # The last one has attention of one block only.
        kept = {key: t for key, t in tensors.items() if number < 2 or "double_blocks.0.img_attn" in key}
        save_file(kept, tmp_path / f"{number}.safetensors")
        made.append(adapters_of(network, Lora(tmp_path / f"{number}.safetensors", scale=rank / 4)))
    wide = {f"{LAYER}.lora_A.weight": torch.randn(100, 64), f"{LAYER}.lora_B.weight": torch.randn(64, 100) / 64}
    save_file(wide, tmp_path / "wide.safetensors")
    made.append(adapters_of(network, Lora(tmp_path / "wide.safetensors")))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(network, "eager")
    velocity(network)
    velocity(network, made[0])

    with torch._dynamo.config.patch(error_on_recompile=True):
        for adapters in made:
            assert relative_error(velocity(network, adapters, 5, 3), velocity(plain, adapters, 5, 3)) < FORWARD
        velocity(network)

    # Double, single and last single block, each with LoRA layers and without.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 6
    torch._dynamo.reset()


@pytest.mark.parametrize(("rank", "padded"), [(1, 16), (16, 16), (17, 32), (48, 64), (64, 64), (65, 128)])
def test_ranks_are_padded_to_a_few_sizes(rank: int, padded: int) -> None:
    assert padded_rank(rank) == padded


def test_the_cache_keeps_what_fits_and_drops_the_oldest(tmp_path: Path) -> None:
    network = transformer()
    loras = []
    for number in range(3):
        save_file(FORMS["kohya"](network)[0], tmp_path / f"{number}.safetensors")
        loras.append(Lora(tmp_path / f"{number}.safetensors"))
    size = adapters_of(network, loras[0]).nbytes
    cache, calls = AdapterCache(2 * size), []

    def recall(lora: Lora) -> Adapters:
        return cache.recall([lora], lambda: calls.append(lora) or adapters_of(network, lora))  # type: ignore[func-returns-value]

    for number in (0, 1, 0, 2, 0, 1):  # 1 is the oldest when 2 comes
        recall(loras[number])
    assert calls == [loras[0], loras[1], loras[2], loras[1]]
    assert cache.nbytes <= 2 * size
    recall(Lora(loras[0].path, 0.5))
    assert len(calls) == 5
    small = AdapterCache(size - 1)
    small.recall([loras[0]], lambda: adapters_of(network, loras[0]))
    assert small.nbytes == 0


def golden_lora(folder: Path) -> Path:
    network = kontext.load(MODEL, device="cpu", dtype=torch.float32).networks.transformer
    shapes = linear_layers(network)
    tensors: Tensors = {}
    for seed, (name, (rows, columns)) in enumerate(shapes.items()):
        down, up = draw_halves(rows, columns, seed)
        tensors |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up * 4}
    save_file(tensors, folder / "golden.safetensors")
    return folder / "golden.safetensors"


@torch.inference_mode()
def latents(model: kontext.Kontext, *loras: Lora) -> Tensor:
    request = EditRequest((PICTURE,), "Remove the logo", num_inference_steps=2, seed=5, loras=loras)
    return model.sample(model.encode(request), request)


def test_streamed_weights_and_spared_memory_give_the_same_edit_and_leave_the_weights(tmp_path: Path) -> None:
    lora = Lora(golden_lora(tmp_path), 0.8)
    resident = kontext.load(MODEL, device="cpu", dtype=torch.float32)
    streamed = load_streamed(dtype=torch.float32)
    plain = latents(resident)

    with_lora = latents(resident, lora)

    assert relative_error(with_lora, plain) > 1e-2
    assert torch.equal(latents(streamed, lora), with_lora)
    with resident.spare_memory():
        assert torch.equal(latents(resident, lora), with_lora)
    assert torch.equal(latents(resident), plain)


def test_the_official_engine_refuses_loras(tmp_path: Path) -> None:
    request = EditRequest((PICTURE,), "x", loras=(Lora(tmp_path / "a.safetensors"),))

    with pytest.raises(RequestError, match="loras: the official engine has no LoRA layers"):
        OfficialKontext.encode(OfficialKontext.__new__(OfficialKontext), request)


def test_a_request_takes_only_what_can_work(tmp_path: Path) -> None:
    for wrong in ("a.safetensors", [Lora(tmp_path)], (tmp_path,), (Lora(tmp_path),) * 5):
        with pytest.raises(RequestError, match="loras"):
            EditRequest((PICTURE,), "x", loras=wrong)  # type: ignore[arg-type]
    for scale in (11.0, float("nan"), "1", True):
        with pytest.raises(RequestError, match="scale is"):
            Lora(tmp_path, scale)  # type: ignore[arg-type]
