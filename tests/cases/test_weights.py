"""Weights as people have them: each form loads with the bundled model's values, or is named with what to do.

The sources of the cases:
- fp8_scaled, plain fp8: city96/ComfyUI-GGUF#293, huggingface/diffusers#11580; loaded, said in `approximations`.
- a prefix, a whole model in one file: AUTOMATIC1111/stable-diffusion-webui#16484; loaded.
- GGUF: Acly/krita-ai-diffusion#1855; loaded, said in `approximations`.
- a Git LFS pointer: huggingface/transformers#27923; "run git lfs pull", and `worker check` fails.
- a gated repository: frefrik/comfyui-flux#11; "accept the licence on the model's page and log in".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import kontext
from kontext.errors import CheckpointError
from kontext.networks import Networks, load_networks
from kontext.weights.files import read_weights
from kontext.weights.gguf_files import T5_LAYERS, read_gguf
from kontext.weights.layout import bundled_model, find_model
from tests.cases import weights as forms
from tests.cases.weights import TRANSFORMER, Weights, model_with

E4M3 = 2**-4  # half a step of three bits of mantissa
E5M2 = 2**-3
E4M3_NORMAL = 2**-6  # below it steps get no smaller; only scales keep small values


@pytest.fixture(scope="module")
def bundled() -> Networks:
    return load_networks(find_model(None), torch.float32)


def load(folder: Path) -> Networks:
    return load_networks(find_model(folder), torch.float32)


def worst_error(ours: Networks, bundled: Networks, least: float = 1e-6) -> float:
    """Largest difference of a weight to the bundled one, relative to the largest value of its row, at least `least`."""
    worst = 0.0
    for network, expected in zip(ours, bundled, strict=True):
        wanted = dict(expected.named_parameters())
        for name, weight in network.named_parameters():
            scale = wanted[name].abs().amax(dim=-1, keepdim=True).clamp(min=least)
            worst = max(worst, float(((weight - wanted[name]).abs() / scale).max()))
    return worst


@pytest.mark.parametrize(
    ("change", "tolerance", "stored_in"),
    [
        (forms.plain_fp8, E4M3, "fp8"),
        (lambda weights: forms.plain_fp8(weights, torch.float8_e5m2), E5M2, "fp8"),
        (forms.comfy_scaled_fp8, E4M3, "fp8"),
        (forms.comfy_noted_fp8, E4M3, "fp8"),
        (lambda weights: forms.scaled_fp8(weights, "weight_scale", per_row=True), E4M3, "fp8"),
        (forms.prefixed("model.diffusion_model."), 0, None),
        (forms.prefixed("diffusion_model."), 0, None),
        (lambda weights: forms.prefixed("model.diffusion_model.")(forms.comfy_scaled_fp8(weights)), E4M3, "fp8"),
        (lambda weights: {name: weight.half() for name, weight in weights.items()}, 2**-10, None),
    ],
    ids=["fp8", "fp8_e5m2", "fp8_scaled", "comfy_quant", "by_row", "prefix", "short_prefix", "prefix_scaled", "fp16"],
)
def test_a_form_of_the_transformer_loads(
    tmp_path: Path, bundled: Networks, change: Callable[[Weights], Weights], tolerance: float, stored_in: str | None
) -> None:
    networks = load(model_with(tmp_path / "model", change))

    least = E4M3_NORMAL if change is forms.plain_fp8 else 1e-6
    assert worst_error(networks, bundled, least) <= tolerance
    assert networks.approximations == ((f"transformer stored in {stored_in}",) if stored_in else ())


def test_comfyuis_folders_are_found_from_where_it_is_installed(tmp_path: Path, bundled: Networks) -> None:
    root = forms.comfyui_folder(tmp_path / "ComfyUI")
    file = root / "models" / "diffusion_models" / "flux1-kontext_fp8_scaled.safetensors"

    for given in (root, root / "models", file):
        files = find_model(given)
        assert (files.transformer, files.autoencoder.parent.name) == (file, "vae")
        assert [path.name for path in (*files.t5.weights, *files.clip.weights)] == [
            *("t5xxl_fp16.safetensors", "clip_l.safetensors")
        ]

    networks = load(root)
    assert worst_error(networks, bundled) <= E4M3
    assert networks.approximations == ("transformer stored in fp8",)


def test_a_whole_model_in_one_file_loads(tmp_path: Path, bundled: Networks) -> None:
    folder = forms.whole_model_in_one_file(tmp_path / "model")
    files = find_model(folder)

    assert files.transformer == files.autoencoder == files.t5.weights[0] == files.clip.weights[0]
    assert worst_error(load(folder), bundled) == 0
    assert kontext.load(folder, device="cpu").fingerprint.startswith("sha256:")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16", "F16"])
def test_a_gguf_loads(tmp_path: Path, bundled: Networks, kind: str) -> None:
    folder = gguf_model(tmp_path / "model", gguf.GGMLQuantizationType[kind])

    networks = load(folder)

    tolerance = {"Q8_0": 2**-7, "Q4_0": 2**-2.5, "BF16": 0, "F16": 2**-10}[kind]
    assert worst_error(networks, bundled) <= tolerance
    stored = (f"transformer stored in GGUF {kind}",) if kind.startswith("Q") else ()
    assert networks.approximations == stored


def gguf_model(folder: Path, kind: gguf.GGMLQuantizationType) -> Path:
    forms.sizes_alone(folder)
    for name in ("ae.safetensors", "t5", "clip"):
        (folder / {"t5": "text_encoder_2", "clip": "text_encoder"}.get(name, name)).symlink_to(bundled_model() / name)
    for name in ("", "_2"):
        (folder / f"tokenizer{name}").symlink_to(folder / f"text_encoder{name}")
    writer = gguf.GGUFWriter(folder / "flux1-kontext.gguf", "flux")
    for name, weight in forms.transformer_weights().items():
        values = weight.float().numpy()
        if forms.is_wide(name, weight):
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_t5_in_a_gguf_loads_under_llama_cpps_names(tmp_path: Path, bundled: Networks) -> None:
    folder = forms.comfyui_folder(tmp_path / "ComfyUI") / "models"
    theirs = {f"{ours}.": f"{name}." for name, ours in T5_LAYERS.items()}
    single = folder / "text_encoders" / "t5xxl_fp16.safetensors"
    writer = gguf.GGUFWriter(single.with_suffix(".gguf"), "t5encoder")
    for key, weight in load_file(single).items():
        name = key.replace("shared.", "token_embd.").replace("encoder.final_layer_norm.", "enc.output_norm.")
        if key.startswith("encoder.block."):
            _, _, index, rest = key.split(".", 3)
            ours = next(layer for layer in theirs if rest.startswith(layer))
            name = f"enc.blk.{index}.{theirs[ours]}{rest.removeprefix(ours)}"
        is_matrix = weight.dim() == 2 and weight.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(weight.float().numpy(), kind), raw_dtype=kind)
    single.unlink()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    networks = load(folder)

    assert worst_error(networks, bundled) <= E4M3
    assert networks.approximations == ("transformer stored in fp8", "T5 stored in GGUF Q8_0")


def test_a_gguf_in_k_quants_gives_llama_cpps_numbers(tmp_path: Path) -> None:
    # The package does not write Q4_K: random blocks are as good a file, and its own numbers the reference.
    kind = gguf.GGMLQuantizationType.Q4_K
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(1).integers(0, 255, (6, 2 * block_bytes), dtype=np.uint8)
    for start in (0, block_bytes):  # the two scales of a block, as small halves
        raw[:, start : start + 4] = np.array([0.01, 0.002], dtype=np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "flux")
    writer.add_tensor("img_in.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    weight = read_gguf(tmp_path / "a.gguf")["img_in.weight"]
    numbers = torch.empty(6, 2 * block)
    weight.write(numbers)

    assert weight.form == "GGUF Q4_K"
    assert torch.equal(numbers, torch.from_numpy(gguf.dequantize(raw, kind)))
    assert not isinstance(weight, torch.Tensor)
    parts = [part for part, _ in weight.pieces(numbers, 4)]
    assert [len(part) for part in parts] == [4, 2]


def test_a_gguf_cut_short_is_named(tmp_path: Path) -> None:
    folder = gguf_model(tmp_path / "model", gguf.GGMLQuantizationType.Q8_0)
    path = folder / "flux1-kontext.gguf"
    content = path.read_bytes()
    for kept in (0, 4, 30, 5_000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"flux1-kontext\.gguf .*fetch it again"):
            load(folder)


def test_scaled_fp8_weights_are_used_as_they_are_in_precision_fp8(tmp_path: Path) -> None:
    folder = model_with(tmp_path / "model", forms.comfy_scaled_fp8)
    stored = load_file(folder / TRANSFORMER)

    model = kontext.load(folder, device="cpu", precision="fp8")

    linear = model.networks.transformer.single_blocks[0].linear1
    assert torch.equal(linear.weight.view(torch.uint8), stored["single_blocks.0.linear1.weight"].view(torch.uint8))
    assert torch.equal(linear.weight_scale.flatten().unique(), stored["single_blocks.0.linear1.scale_weight"].view(1))
    assert model.approximations == ("fp8 linears", "transformer stored in fp8")


def test_read_by_threads_the_values_are_those_read_at_once(tmp_path: Path) -> None:
    folder = model_with(tmp_path / "model", forms.comfy_scaled_fp8)

    threaded = kontext.load(folder, device="cpu", dtype=torch.float32, compile=False).networks.transformer

    at_once = load(folder).transformer
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(threaded.parameters(), at_once.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: forms.comfy_noted_fp8(w, "nvfp4"), "in nvfp4 .*which is not read; fetch the bfloat16 file"),
        (lambda w: w | {"img_in.qweight": torch.zeros(1)}, r"in SVDQuant or GPTQ \(img_in\.qweight\)"),
        (lambda w: w | {"img_in.weight.absmax": torch.zeros(1)}, "in bitsandbytes NF4"),
        (
            lambda w: forms.scaled_fp8(w) | {"single_blocks.0.linear1.scale_weight": torch.ones(7)},
            r"scale of shape \(7,\)",
        ),
        (lambda w: w | {"nothing.scale_weight": torch.ones(1)}, "nothing.weight is missing, but its scale is there"),
        (lambda w: w | {"img_in.scale_weight": torch.ones(1)}, "only float8 weights are read with scales"),
    ],
    ids=["nvfp4", "svdquant", "nf4", "scale_shape", "scale_alone", "scale_of_bf16"],
)
def test_another_quantisation_is_named(tmp_path: Path, change: Callable[[Weights], Weights], complaint: str) -> None:
    folder = model_with(tmp_path / "model", change)

    with pytest.raises(CheckpointError, match=complaint):
        load(folder)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 23802932552\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (LFS, "is a Git LFS pointer .*git lfs pull"),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "is a web page .*accept the licence .*hf auth login"),
        (b"\n<html>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is an XML document.*AccessDenied"),
        (b'{"error":"Access to model is restricted"}', "is JSON.*Access to model is restricted"),
        (b"PK\x03\x04" + bytes(99), "is a pickle .*only safetensors are read"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"GGUF\x03\x00\x00\x00", r"is a GGUF file: give it a name that ends in \.gguf"),
        (bytes(5000), r"\(5000 bytes\) begins with zero bytes only"),
        (b"", r"\(0 bytes\) is cut short or no safetensors file"),
    ],
    ids=["lfs", "html", "html_newline", "xml", "json", "zip", "pickle", "gguf", "zeros", "empty"],
)
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "ae.safetensors"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=rf"ae\.safetensors {complaint}"):
        read_weights([path])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_fail_their_edits_with_words(tmp_path: Path, value: float) -> None:
    folder = model_with(tmp_path / "model", lambda w: w | {"img_in.bias": torch.full_like(w["img_in.bias"], value)})
    model = kontext.load(folder, device="cpu", dtype=torch.float32, compile=False)

    with pytest.raises(kontext.NotANumber, match="not a number"):
        model.edit(Image.new("RGB", (64, 64), "teal"), "make it red", num_inference_steps=1, width=64, height=64)


@pytest.mark.parametrize("path", [TRANSFORMER, "ae.safetensors", "t5/model.safetensors"])
def test_every_part_of_a_model_is_looked_at(tmp_path: Path, path: str) -> None:
    folder = model_with(tmp_path / "model", dict)
    (folder / path).write_bytes(LFS)

    with pytest.raises(CheckpointError, match=f"{path} is a Git LFS pointer"):
        load(folder)


def test_half_a_download_says_how_far_it_came(tmp_path: Path) -> None:
    folder = model_with(tmp_path / "model", dict)
    content = (folder / TRANSFORMER).read_bytes()
    (folder / TRANSFORMER).write_bytes(content[: len(content) // 3])

    with pytest.raises(CheckpointError, match=r"the download stopped at 3[23] %; fetch it again"):
        load(folder)


@pytest.mark.parametrize(
    ("lies_there", "complaint"),
    [
        ("snapshots/0123/", r"give bfl/K, or the folder .*0123"),
        ("kontext/flux1-kontext-dev.safetensors", r"did you mean .*kontext\?"),
        ("flux1-kontext-dev.safetensors.part", "part is a download that did not end"),
        (".cache/huggingface/download/x=.1234.incomplete", "incomplete is a download that did not end"),
        ("flux1-dev.safetensors", r"flux1-dev\.safetensors may be another model's"),
        ("flux1-kontext-dev.ckpt", r"flux1-kontext-dev\.ckpt is not read, since pickles can run code"),
        ("./", r"put flux1-kontext-dev\.safetensors there"),
    ],
)
def test_a_wrong_folder_is_named_with_the_right_one(tmp_path: Path, lies_there: str, complaint: str) -> None:
    folder = tmp_path / "models--bfl--K"
    path = folder / lies_there
    (path if lies_there.endswith("/") else path.parent).mkdir(parents=True)
    if not lies_there.endswith("/"):
        path.write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")

    with pytest.raises(CheckpointError, match=complaint):
        find_model(folder)


def test_a_part_of_a_model_is_named_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()

    with pytest.raises(CheckpointError, match=f"give the folder above, {tmp_path}"):
        find_model(tmp_path / "vae")
