"""What is measured as diffusers is the same model: its networks compute from our files what ours do."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import kontext
from benchmarks.gpu.edits import edit_request
from benchmarks.gpu.plan import TINY
from benchmarks.random_model import write_random_model
from kontext.autoencoder import Autoencoder
from kontext.sampling import position_ids
from kontext.transformer import Transformer
from kontext.weights.checkpoint import build_on_meta, load_weights
from kontext.weights.layout import ModelFiles, find_model


@pytest.fixture
def diffusers_rival() -> ModuleType:
    """The module, imported only by the process that runs these tests: diffusers takes seconds of work."""
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[benchmarks]'")
    return importlib.import_module("benchmarks.gpu.diffusers_rival")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return write_random_model(folder, TINY.model, seed=1, dtype=torch.bfloat16, encoders=TINY.encoders)


@pytest.fixture
def files(folder: Path) -> ModelFiles:
    return find_model(folder)


@torch.inference_mode()
def test_the_transformers_velocities_are_ours(files: ModelFiles, diffusers_rival: ModuleType) -> None:
    config = files.config.transformer
    ours = build_on_meta(lambda: Transformer(config))
    load_weights(ours, [files.transformer], torch.float32)
    theirs = diffusers_rival.load_transformer(files.transformer, config, torch.float32)
    draw = torch.Generator().manual_seed(1)
    latents, references = torch.randn(2, 1, 12, 64, generator=draw)
    txt = torch.randn(1, 10, config.context_in_dim, generator=draw)
    pooled = torch.randn(1, config.vec_in_dim, generator=draw)
    ids = torch.cat((position_ids(0, 3, 4), position_ids(1, 3, 4)), dim=1)
    time, guidance = torch.tensor([0.5]), torch.tensor([2.5])

    conditioning = ours.condition(txt, pooled, guidance, time[None], ids, references)
    velocity = ours(latents, 0, conditioning)
    (their_velocity,) = theirs(
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
def test_the_autoencoders_latents_and_pictures_are_ours(files: ModelFiles, diffusers_rival: ModuleType) -> None:
    config = files.config.autoencoder
    ours = build_on_meta(lambda: Autoencoder(config))
    load_weights(ours, [files.autoencoder], torch.float32)
    theirs = diffusers_rival.load_autoencoder(files.autoencoder, config, torch.float32)
    picture = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1

    mean = theirs.encode(picture).latent_dist.mean
    latents = ours.encode(picture)

    assert relative_error(latents, (mean - config.shift_factor) * config.scale_factor) < 1e-4
    assert relative_error(ours.decode(latents), theirs.decode(mean, return_dict=False)[0]) < 1e-4


def test_a_whole_edit_in_float32_is_ours(folder: Path, diffusers_rival: ModuleType) -> None:
    # The same schedule, noise, guidance and sizes; in float32, as bfloat16 rounds differently there.
    request = edit_request(pixels=64, steps=4)
    ours = kontext.load(folder, device="cpu", dtype=torch.float32, seam_dtype=torch.float32)
    theirs = diffusers_rival.DiffusersKontext(folder, torch.device("cpu"), dtype=torch.float32)

    pictures = [np.asarray(model.run(request).image).astype(int) for model in (ours, theirs)]

    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
