"""All weights load or none do, and the error says which file, which keys, which shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kontext.errors import CheckpointError
from kontext.networks import load_networks
from kontext.weights.fingerprint import fingerprint
from kontext.weights.layout import find_model
from tests.kontext.golden import MODEL
from tests.kontext.models import copy_model, shard

Tensors = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_model(tmp_path / "model")


def load(folder: Path) -> None:
    load_networks(find_model(folder), torch.bfloat16)


def change(path: Path, edit: Callable[[Tensors], Tensors]) -> None:
    weights = {key: value.clone() for key, value in load_file(path).items()}
    path.unlink()
    save_file(edit(weights), path)


def test_weights_load_in_the_dtypes_they_run_in() -> None:
    networks = load_networks(find_model(MODEL), torch.bfloat16)

    assert {p.dtype for p in networks.transformer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in networks.t5.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in networks.clip.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in networks.autoencoder.parameters()} == {torch.float32}
    assert not any(p.is_meta or p.requires_grad for p in networks.transformer.parameters())


@pytest.mark.parametrize(
    "path", ["flow.safetensors", "ae.safetensors", "t5/model.safetensors", "clip/model.safetensors"]
)
@pytest.mark.parametrize("kept", [0, 5, 500, -1])
def test_a_file_cut_short_is_refused(folder: Path, path: str, kept: int) -> None:
    content = (folder / path).read_bytes()
    (folder / path).write_bytes(content[:kept])

    with pytest.raises(CheckpointError, match=rf"{path} .*fetch it again"):
        load(folder)


def test_a_web_page_in_place_of_weights_is_refused(folder: Path) -> None:
    (folder / "ae.safetensors").write_text("<html>You need to agree to share your contact information</html>")

    with pytest.raises(CheckpointError, match=r"ae\.safetensors .* no safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    "path", ["flow.safetensors", "ae.safetensors", "t5/model.safetensors", "clip/model.safetensors"]
)
def test_a_missing_key_is_named(folder: Path, path: str) -> None:
    lost = sorted(load_file(folder / path))[0]
    change(folder / path, lambda weights: {key: value for key, value in weights.items() if key != lost})

    with pytest.raises(CheckpointError) as error:
        load(folder)

    assert f"{folder / path} does not fit" in str(error.value)
    assert f"missing keys: 1 ({lost.removeprefix('text_model.')})" in str(error.value)


@pytest.mark.parametrize(
    "path", ["flow.safetensors", "ae.safetensors", "t5/model.safetensors", "clip/model.safetensors"]
)
def test_an_unknown_key_is_named(folder: Path, path: str) -> None:
    change(folder / path, lambda weights: weights | {"double_blocks.0.lora_A": torch.zeros(1)})

    with pytest.raises(CheckpointError, match=r"unknown keys: 1 \(double_blocks\.0\.lora_A\)"):
        load(folder)


def test_a_wrong_shape_is_told_with_the_right_one(folder: Path) -> None:
    change(folder / "flow.safetensors", lambda weights: weights | {"img_in.weight": torch.zeros(96, 32)})

    with pytest.raises(CheckpointError, match=r"other shapes: 1 \(img_in\.weight is 96x32, expected 96x64\)"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64])
def test_weights_of_other_dtypes_are_not_taken_for_something_else(folder: Path, dtype: torch.dtype) -> None:
    change(folder / "flow.safetensors", lambda weights: weights | {"img_in.weight": torch.zeros(96, 64, dtype=dtype)})

    with pytest.raises(CheckpointError, match=rf"weights are {dtype}, expected bfloat16, float16, float32 or float8"):
        load(folder)


def test_a_12b_model_is_not_filled_with_small_weights(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "flow.safetensors").rename(folder / "my-kontext.safetensors")
    (folder / "t5").rename(folder / "text_encoder_2")
    (folder / "clip").rename(folder / "text_encoder")
    (folder / "tokenizer").symlink_to("text_encoder")
    (folder / "tokenizer_2").symlink_to("text_encoder_2")

    with pytest.raises(CheckpointError, match=r"does not fit the Transformer: missing keys: \d+ .* other shapes: \d+"):
        load(folder)


def test_shards_are_one_encoder(folder: Path) -> None:
    shard(folder / "clip")

    load(folder)


def test_t5_of_the_original_repository_is_a_pickle_of_the_whole_t5(folder: Path) -> None:
    weights = load_file(folder / "t5" / "model.safetensors")
    whole = weights | {"decoder.final_layer_norm.weight": torch.ones(48), "lm_head.weight": torch.ones(512, 48)}
    torch.save(whole, folder / "t5" / "pytorch_model.bin")
    (folder / "t5" / "model.safetensors").unlink()

    load(folder)
    (folder / "t5" / "pytorch_model.bin").write_bytes((folder / "t5" / "pytorch_model.bin").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is cut short or no file of weights"):
        load(folder)


def test_clip_of_the_original_repository_has_a_vision_model_beside_it(folder: Path) -> None:
    extra = {"vision_model.post_layernorm.bias": torch.ones(1), "logit_scale": torch.ones(())}
    ids = {"text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)}
    change(folder / "clip" / "model.safetensors", lambda weights: weights | extra | ids)

    load(folder)


def test_a_vocabulary_of_another_encoder_is_refused(folder: Path) -> None:
    shorter = "\n".join((folder / "clip" / "merges.txt").read_text().splitlines()[:1]) + "\n"
    (folder / "clip" / "merges.txt").write_text(shorter)
    (folder / "clip" / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')

    with pytest.raises(CheckpointError, match=r"knows 2 tokens but the encoder .* has 700"):
        load(folder)


def test_an_empty_vocabulary_is_refused(folder: Path) -> None:
    (folder / "t5" / "spiece.model").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"tokenizer in .*t5"):
        load(folder)


def test_fingerprint_is_of_the_weights_and_not_of_the_place(folder: Path) -> None:
    assert fingerprint(find_model(folder)) == fingerprint(find_model(MODEL))


@pytest.mark.parametrize("path", ["flow.safetensors", "ae.safetensors", "t5/model.safetensors", "t5/spiece.model"])
def test_fingerprint_sees_one_changed_byte(folder: Path, path: str) -> None:
    before = fingerprint(find_model(folder))
    content = bytearray((folder / path).read_bytes())
    content[-1] ^= 1
    (folder / path).write_bytes(content)

    assert fingerprint(find_model(folder)) != before
    assert before.startswith("sha256:")
