"""Compiled blocks and autoencoder: the same pictures, and nothing compiled again once the model is warm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import kontext
from kontext.autoencoder import Autoencoder
from kontext.compile import check_compiler, compile_ahead, compile_autoencoder, compile_blocks
from kontext.config import AutoencoderConfig
from kontext.device import default_dtype
from kontext.errors import DeviceError
from kontext.loading import can_compile, place
from kontext.networks import load_networks
from kontext.offload.memory import Memory, Resident, Streamed
from kontext.transformer import Transformer
from kontext.weights.checkpoint import build_on_meta, load_weights
from kontext.weights.layout import find_model
from tests.kontext.compiling import forgotten_graphs, repeated_step, transformer, velocity
from tests.kontext.golden import BFLOAT16, FLOAT32_FROM_TENSORS, MODEL, model_config, relative_error, tensors
from tests.kontext.offload.standin_device import CPU, AsPlanned
from tests.parity.closeness import assert_close


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    with forgotten_graphs():
        yield


def graphs() -> int:
    """How many graphs were compiled since the compiler was fresh."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


# torch raises it within itself.
from_torch = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


@pytest.mark.slow
@from_torch
@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_compute_the_same_in_kernels_written_by_inductor() -> None:
    plain, compiled = transformer(), transformer()
    compile_blocks(compiled)

    for grid in ((4, 6), (5, 3)):
        assert_close(velocity(compiled, *grid), velocity(plain, *grid))


@pytest.fixture(scope="class")
def captured() -> Iterator[Transformer]:
    with forgotten_graphs():
        network = transformer()
        compile_blocks(network, "eager")
        velocity(network, 4, 6)
        yield network


class TestCapturedBlocks:
    """Capturing takes seconds, so these share one network; "eager" captures and compiles no further."""

    def test_compute_the_same(self, captured: Transformer) -> None:
        for grid in ((4, 6), (5, 3)):
            assert_close(velocity(captured, *grid), velocity(transformer(), *grid))

    def test_are_not_compiled_again_for_other_blocks_steps_or_sizes(self, captured: Transformer) -> None:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for grid in ((4, 6), (5, 3), (7, 9), (12, 2), (8, 8)):
                velocity(captured, *grid, step=0)

        # Double block, single block, and the last single block, whose rows are the target's.
        assert graphs() == 3

    def test_need_no_new_graph_for_a_step_that_is_skipped(self, captured: Transformer) -> None:
        with torch._dynamo.config.patch(error_on_recompile=True):
            exact, computed, skipped = repeated_step(captured)

        assert torch.equal(computed, exact)
        assert_close(skipped, exact)

    def test_need_no_new_graph_for_weights_that_move(self, captured: Transformer) -> None:
        before = velocity(captured, 4, 6)

        for block in captured.single_blocks:
            for name, weight in list(block.linear1.named_parameters()):
                setattr(block.linear1, name, torch.nn.Parameter(weight.clone(), requires_grad=False))

        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(velocity(captured, 4, 6), before)


def test_a_compiler_that_fails_says_what_to_do() -> None:
    def backend(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    with pytest.raises(DeviceError, match=r"Failed to find C compiler.*; install a C"):
        check_compiler(CPU, backend)


def test_a_compiler_that_works_says_nothing() -> None:
    check_compiler(CPU, "eager")


def test_without_a_compiler_nothing_is_compiled_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(device: torch.device) -> None:
        raise DeviceError("the compiler fails")

    monkeypatch.setattr("kontext.loading.check_compiler", fail)

    assert not can_compile(None, torch.device("cuda"))
    assert "the compiler fails" in caplog.text
    with pytest.raises(DeviceError):
        can_compile(True, torch.device("cuda"))
    assert not can_compile(False, torch.device("cuda"))
    assert not can_compile(None, CPU)


def compiled_autoencoder(backend: str, channels_last: bool) -> Autoencoder:
    network = build_on_meta(lambda: Autoencoder(model_config().autoencoder))
    load_weights(network, [MODEL / "ae.safetensors"], torch.float32)
    network.channels_last = channels_last
    compile_autoencoder(network, backend)
    return network


@pytest.mark.long
@from_torch
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("backend", "channels_last"), [("eager", False), ("inductor", False), ("inductor", True)])
@torch.inference_mode()
def test_a_compiled_autoencoder_gives_the_references_latents_and_pictures(backend: str, channels_last: bool) -> None:
    golden, network = tensors("ae/pictures"), compiled_autoencoder(backend, channels_last)

    for picture in ("image_64x48", "image_72x40"):
        latent = network.encode(golden[f"{picture}.x"])
        with torch.autocast("cpu", torch.bfloat16):
            decoded = network.decode(golden[f"{picture}.latent_random"])

        assert relative_error(latent, golden[f"{picture}.latent"]) < FLOAT32_FROM_TENSORS
        assert relative_error(decoded, golden[f"{picture}.decoded_random_autocast_bf16"]) < BFLOAT16


@pytest.mark.usefixtures("fresh_compiler")
@torch.inference_mode()
def test_the_autoencoder_needs_few_graphs_whatever_its_channels_and_sides() -> None:
    network = Autoencoder(AutoencoderConfig(ch=64, ch_mult=(1, 2, 3, 4), num_res_blocks=1)).eval()
    compile_autoencoder(network, "eager")

    def there_and_back(height: int, width: int) -> None:
        image = torch.zeros(1, 3, height, width).contiguous(memory_format=torch.channels_last)
        latents = network.encode(image)
        with torch.autocast("cpu", torch.bfloat16):
            network.decode(latents)

    there_and_back(64, 48)
    with torch._dynamo.config.patch(error_on_recompile=True):
        there_and_back(40, 72)
        there_and_back(64, 64)

    # Norms of float32, in and out; of float32 and of bfloat16, to bfloat16.
    assert graphs() <= 4


def compiled_model(memory: Memory) -> kontext.Kontext:
    """The golden model, captured and not compiled further, for pictures of a fair size.

    A CPU convolves the smallest ones by another kernel, for which there would be another graph.
    """
    files = find_model(MODEL)
    config = replace(files.config, preferred_resolutions=((128, 128), (160, 128), (128, 160)))
    # Which graphs there are does not depend on the dtype, and bfloat16 is slow on a processor without its instructions.
    networks = load_networks(files, default_dtype(CPU, "auto", "bf16"))
    compile_blocks(networks.transformer, "eager")
    compile_autoencoder(networks.autoencoder, "eager")
    model = kontext.Kontext(
        networks,
        config,
        fingerprint="",
        memory=memory,
        seam_dtype=torch.bfloat16,
        max_sequence_length=64,
        image_options=kontext.ImageOptions(),
        cache_bytes=2**20,
    )
    place(model)
    return model


def edit(model: kontext.Kontext, width: int, height: int, steps: int = 2) -> np.ndarray:
    """The target has the picture's shape, so that the encoder too sees several sizes."""
    picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    return np.asarray(model.edit(picture, "Remove it", num_inference_steps=steps, seed=5, width=width, height=height))


# Of blocks: double, single, and the last single one. Of norms: one or more channels a group, in two memory layouts.
GRAPHS = 3 + 4
SIZES = ((160, 112), (112, 160), (128, 128), (192, 96), (96, 208))


@pytest.fixture(scope="class")
def ahead() -> Iterator[kontext.Kontext]:
    with forgotten_graphs():
        model = compiled_model(Resident(CPU))
        compile_ahead(model)
        assert (model.cache.misses, model.cache.bytes) == (0, 0)  # it leaves nothing behind
        yield model


class TestModelCompiledAhead:
    """Capturing a model takes seconds, so these share one."""

    def test_compiles_nothing_for_an_edit_of_any_size(self, ahead: kontext.Kontext) -> None:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for steps, size in enumerate(SIZES, start=1):
                edit(ahead, *size, steps)

        assert graphs() == GRAPHS

    def test_gives_the_picture_of_a_fresh_one(self, ahead: kontext.Kontext) -> None:
        fresh = compiled_model(Resident(CPU))

        assert np.array_equal(edit(ahead, *SIZES[0]), edit(fresh, *SIZES[0]))

    def test_gives_the_picture_of_one_whose_weights_are_streamed(self, ahead: kontext.Kontext) -> None:
        streamed = compiled_model(AsPlanned(lambda name: True))
        compile_ahead(streamed)

        with torch._dynamo.config.patch(error_on_recompile=True):
            for size in SIZES[:3]:
                assert np.array_equal(edit(streamed, *size), edit(ahead, *size))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_block_that_was_measured_is_not_compiled_again_for_an_edit() -> None:
    model = compiled_model(Streamed(CPU, budget_bytes=None))
    compile_ahead(model)

    with torch._dynamo.config.patch(error_on_recompile=True):
        edit(model, *SIZES[0])

    assert graphs() == GRAPHS
