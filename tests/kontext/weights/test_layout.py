"""Models are found wherever people have them; what is missing is named with its remedy."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from kontext.config import ModelConfig, TransformerConfig
from kontext.errors import CheckpointError
from kontext.networks import load_networks
from kontext.weights.hub import CLIP_REPOSITORY, T5_REPOSITORY
from kontext.weights.layout import ModelFiles, bundled_model, find_model
from tests.kontext.golden import MODEL, model_config
from tests.kontext.models import copy_model, hub_cache, published_layout, weights_alone


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache; the tests run with HF_HUB_OFFLINE=1."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def loads(files: ModelFiles) -> None:
    """All parts load once the sizes are those of the small model."""
    load_networks(dataclasses.replace(files, config=model_config()), torch.bfloat16)


def test_defaults_are_the_12b_model() -> None:
    config = TransformerConfig()

    assert (config.head_dim, config.mlp_size) == (128, 12288)
    assert len(ModelConfig().preferred_resolutions) == 17


def test_without_a_name_the_bundled_model_is_found() -> None:
    files = find_model(None)

    assert files.config.name == "flux1-tiny-kontext"
    assert files.config.max_sequence_length == 64


def test_a_folder_with_config_json_says_where_its_parts_are() -> None:
    files = find_model(MODEL)

    assert files.transformer == MODEL / "flow.safetensors"
    assert files.config.transformer.hidden_size == 96
    loads(files)


def test_a_file_of_weights_is_the_transformer_of_the_model_that_lies_beside_it() -> None:
    named = find_model(bundled_model() / "flux1-tiny-kontext.safetensors")

    assert named == find_model(None)


@pytest.mark.parametrize("place", ["flux1-kontext-other.safetensors", "unet/flux1-kontext-other.safetensors"])
def test_a_file_that_config_json_does_not_name_wins_over_the_one_it_names(tmp_path: Path, place: str) -> None:
    folder = copy_model(tmp_path / "model")
    (folder / place).parent.mkdir(exist_ok=True)
    shutil.copy(MODEL / "flow.safetensors", folder / place)

    files = find_model(folder / place)

    assert files == dataclasses.replace(find_model(folder), transformer=folder / place)
    load_networks(files, torch.bfloat16)


def test_the_published_repositorys_layout_is_found_with_its_sharded_encoder(tmp_path: Path) -> None:
    files = find_model(published_layout(tmp_path / "FLUX.1-Kontext-dev"))

    assert files.config == ModelConfig(name="flux1-kontext-dev")
    assert len(files.t5.weights) == 2
    loads(files)


def test_two_files_of_weights_find_their_encoders_in_the_hub_cache_offline(tmp_path: Path, cache: Path) -> None:
    hub_cache(cache, T5_REPOSITORY, MODEL / "t5")
    hub_cache(cache, CLIP_REPOSITORY, MODEL / "clip")

    files = find_model(weights_alone(tmp_path / "seed", "flux1-dev-kontext.safetensors"))

    assert files.transformer.name == "flux1-dev-kontext.safetensors"
    loads(files)


def test_a_hub_id_is_found_in_the_cache_offline(tmp_path: Path, cache: Path) -> None:
    snapshot = hub_cache(cache, "someone/FLUX.1-Kontext-dev", published_layout(tmp_path / "source"))

    files = find_model("someone/FLUX.1-Kontext-dev")

    assert files.autoencoder == snapshot / "ae.safetensors"
    loads(files)


def test_encoders_that_are_nowhere_are_named_with_what_to_do(tmp_path: Path, cache: Path) -> None:
    folder = weights_alone(tmp_path / "seed", "flux1-dev-kontext.safetensors")

    with pytest.raises(CheckpointError) as error:
        find_model(folder)

    assert f"{T5_REPOSITORY} is not in the Hugging Face cache" in str(error.value)
    assert f"`hf download {T5_REPOSITORY}`" in str(error.value)
    assert str(folder / "text_encoder_2") in str(error.value)


def test_a_hub_id_that_is_not_in_the_cache_is_an_error_offline(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="someone/else is not in the Hugging Face cache"):
        find_model("someone/else")


def test_an_incomplete_snapshot_in_the_cache_is_an_error(tmp_path: Path, cache: Path) -> None:
    hub_cache(cache, T5_REPOSITORY, MODEL / "t5")
    snapshot = hub_cache(cache, CLIP_REPOSITORY, MODEL / "clip")
    (snapshot / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"lacks the weights of CLIP: put model\.safetensors"):
        find_model(weights_alone(tmp_path / "seed", "flux1-dev-kontext.safetensors"))


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("ae.safetensors", r"ae\.safetensors is missing: put the autoencoder's weights there"),
        ("flux1-kontext-dev.safetensors", r"has no \*kontext\*\.safetensors; put flux1-kontext-dev\.safetensors there"),
        ("text_encoder_2/config.json", r"config\.json is missing: put the configuration of T5 there"),
        (
            "text_encoder_2/model-00002-of-00002.safetensors",
            r"this shard, which model\.safetensors\.index\.json lists",
        ),
        ("text_encoder/model.safetensors", "lacks the weights of CLIP"),
        ("tokenizer_2/spiece.model", r"lacks the tokenizer of T5: put tokenizer\.json, or spiece\.model there"),
        ("tokenizer/merges.txt", r"lacks the tokenizer of CLIP: .* or vocab\.json and merges\.txt there"),
    ],
)
def test_a_missing_file_is_named_with_its_place(tmp_path: Path, missing: str, complaint: str) -> None:
    folder = published_layout(tmp_path / "model")
    (folder / missing).unlink()

    with pytest.raises(CheckpointError, match=complaint):
        find_model(folder)


def test_several_transformers_are_not_chosen_from(tmp_path: Path) -> None:
    folder = published_layout(tmp_path / "model")
    shutil.copy(folder / "flux1-kontext-dev.safetensors", folder / "flux1-kontext-dev-old.safetensors")

    with pytest.raises(CheckpointError, match=r"several .*leave the one to be used"):
        find_model(folder)


def test_a_lora_beside_the_weights_is_no_model(tmp_path: Path) -> None:
    folder = published_layout(tmp_path / "model")
    (folder / "my-kontext-LoRA.safetensors").touch()

    assert find_model(folder).transformer.name == "flux1-kontext-dev.safetensors"


@pytest.mark.parametrize("name", ["/nowhere/at/all", "just-a-name", "a/b/c"])
def test_a_folder_that_does_not_exist_is_an_error(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*give a folder with Kontext weights or a hub id"):
        find_model(name)


def test_a_file_in_place_of_a_folder_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="is a file; give the folder that holds it"):
        find_model(MODEL / "ae.safetensors")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"files": {"transformer": "flow.safetensors"}}, r"files\.autoencoder is missing"),
        ({"transformer": {"hidden": 96}}, "unexpected keyword argument 'hidden'"),
        ({"transformer": {"hidden_size": 100}}, "hidden_size 100 is not a multiple of num_heads 24"),
        ({"transformer": {"axes_dim": [1, 2, 3]}}, "axes_dim .* must sum to"),
        ({"autoencoder": {"ch_mult": [1, 2]}}, "must have 4 levels"),
    ],
)
def test_a_config_that_cannot_be_is_an_error(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    folder = copy_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))

    with pytest.raises(CheckpointError, match=complaint):
        find_model(folder)


def test_a_config_that_is_not_json_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"config\.json is not readable JSON"):
        find_model(tmp_path)
