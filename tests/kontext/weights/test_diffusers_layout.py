"""diffusers' folders: a random model that diffusers writes computes the same when we read it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kontext.errors import CheckpointError
from kontext.networks import Networks, load_networks
from kontext.sampling import position_ids
from kontext.weights.fingerprint import fingerprint
from kontext.weights.layout import bundled_model, find_model

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[benchmarks]'")

SIZES = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 64,
    "guidance_embeds": True,
    "axes_dims_rope": [8, 12, 12],
}


@pytest.fixture(scope="module")
def theirs() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(4)
    transformer = diffusers.FluxTransformer2DModel(**SIZES)
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32, 64, 64, 64],
        layers_per_block=1,
        latent_channels=16,
        scaling_factor=0.4,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for network in (transformer, vae):
        for parameter in network.parameters():  # norms begin as ones, biases as zeros
            parameter.data = torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5
    return transformer.eval(), vae.eval()


@pytest.fixture(scope="module")
def folder(theirs: tuple[torch.nn.Module, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("diffusers") / "FLUX.1-Kontext-diffusers"
    transformer, vae = theirs
    transformer.save_pretrained(folder / "transformer", max_shard_size="500KB")
    vae.save_pretrained(folder / "vae")
    for name, encoder, tokenizer in (("t5", "text_encoder_2", "tokenizer_2"), ("clip", "text_encoder", "tokenizer")):
        shutil.copytree(bundled_model() / name, folder / encoder)
        shutil.copytree(bundled_model() / name, folder / tokenizer)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Networks:
    return load_networks(find_model(folder), torch.float32)


def test_the_shards_are_found_and_enter_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    files = find_model(folder)
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    before = fingerprint(files)

    assert files.transformer.name == "diffusion_pytorch_model.safetensors.index.json"
    assert (files.config.transformer.hidden_size, files.config.autoencoder.ch_mult) == (64, (1, 2, 2, 2))
    assert len(shards) > 1
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    content = bytearray((copy / "transformer" / shards[-1].name).read_bytes())
    content[-1] ^= 1
    (copy / "transformer" / shards[-1].name).write_bytes(content)
    assert fingerprint(find_model(copy)) != before


@torch.inference_mode()
def test_the_transformers_velocities_are_the_same(
    ours: Networks, theirs: tuple[torch.nn.Module, torch.nn.Module]
) -> None:
    draw = torch.Generator().manual_seed(1)
    latents, references = torch.randn(2, 1, 12, 64, generator=draw)
    txt, pooled = torch.randn(1, 10, 128, generator=draw), torch.randn(1, 64, generator=draw)
    ids = torch.cat((position_ids(0, 3, 4), position_ids(1, 3, 4)), dim=1)
    time, guidance = torch.tensor([0.5]), torch.tensor([2.5])

    conditioning = ours.transformer.condition(txt, pooled, guidance, time[None], ids, references)
    velocity = ours.transformer(latents, 0, conditioning)
    (their_velocity,) = theirs[0](
        hidden_states=torch.cat((latents, references), dim=1),
        timestep=time,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=txt,
        txt_ids=torch.zeros(10, 3),
        img_ids=ids[0],
        return_dict=False,
    )

    assert relative_error(velocity, their_velocity[:, :12]) < 1e-4


@torch.inference_mode()
def test_the_autoencoders_latents_and_pictures_are_the_same(
    ours: Networks, theirs: tuple[torch.nn.Module, torch.nn.Module]
) -> None:
    picture = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean = theirs[1].encode(picture).latent_dist.mean

    latents = ours.autoencoder.encode(picture)

    assert relative_error(latents, (mean - 0.1) * 0.4) < 1e-4
    assert relative_error(ours.autoencoder.decode(latents), theirs[1].decode(mean, return_dict=False)[0]) < 1e-4


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shard = sorted((copy / "transformer").glob("*.safetensors"))[0]
    shard.unlink()

    with pytest.raises(CheckpointError, match=f"{shard.name} is missing: put this shard"):
        load_networks(find_model(copy), torch.float32)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100_000])
def test_an_index_that_is_none_is_named(folder: Path, tmp_path: Path, index: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)

    with pytest.raises(CheckpointError, match="is no index of shards"):
        load_networks(find_model(copy), torch.float32)


def test_an_index_leads_nowhere_else(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))

    with pytest.raises(CheckpointError, match=r"transformer/secret\.safetensors is missing"):
        load_networks(find_model(copy), torch.float32)


@pytest.mark.parametrize("wrong", [{"num_attention_heads": 0}, {"axes_dims_rope": [1]}, {"guidance_embeds": False}])
def test_sizes_that_cannot_be_are_named(folder: Path, tmp_path: Path, wrong: dict[str, object]) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))

    with pytest.raises(CheckpointError, match="does not describe a model"):
        find_model(copy)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
