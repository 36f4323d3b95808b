"""The same edit through diffusers' FluxKontextPipeline, from the same folder, for `--vs diffusers`.

The transformer's weights are brought to diffusers' names here, since its own converter knows the sizes of the 12B model
only. Everything is bfloat16, as its users run it; the noise is ours, so that images can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file
from torch import Tensor, nn

from kontext.config import AutoencoderConfig, TransformerConfig
from kontext.device import synchronize
from kontext.request import Edited, EditRequest
from kontext.sampling import pack_latents, starting_noise
from kontext.text import load_clip, load_t5
from kontext.weights.checkpoint import build_on_meta
from kontext.weights.key_names import SCALE_THEN_SHIFT, diffusers_modules
from kontext.weights.layout import find_model


class DiffusersKontext:
    """diffusers' pipeline behind the engine's interface."""

    attention = "diffusers' default"

    def __init__(
        self, folder: Path, device: torch.device, compile: bool = False, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        files = find_model(folder)
        self.config = files.config
        self.device = device
        self.dtype = dtype
        self.memory = SimpleNamespace(plan=None)
        t5, clip = load_t5(files.t5, dtype), load_clip(files.clip, dtype)
        self.pipe = FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            vae=load_autoencoder(files.autoencoder, self.config.autoencoder, dtype),
            text_encoder=clip.network,
            tokenizer=clip.tokenizer,
            text_encoder_2=t5.network,
            tokenizer_2=t5.tokenizer,
            transformer=load_transformer(files.transformer, self.config.transformer, dtype),
        ).to(device)
        self.pipe.tokenizer_max_length = self.config.clip_max_length
        self.pipe.set_progress_bar_config(disable=True)
        if compile:
            # On a CPU, where this is only tried out, the capture alone.
            backend = "inductor" if device.type == "cuda" else "eager"
            self.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)

    @torch.inference_mode()
    def run(self, request: EditRequest) -> Edited:
        """One edit of one image that has the target's size already."""
        (image,) = request.images
        width, height = request.width or image.width, request.height or image.height
        with _stage_clock(self.pipe.transformer, self.device, request.num_inference_steps) as (seconds, after_step):
            (edited,) = self.pipe(
                image=image,
                prompt=request.prompt,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                latents=pack_latents(starting_noise(width, height, request.seed)).to(self.device, self.dtype),
                width=width,
                height=height,
                # Otherwise both sizes set the shape of a megapixel only, and the image is brought to such a shape.
                max_area=width * height,
                _auto_resize=False,
                max_sequence_length=self.config.max_sequence_length,
                callback_on_step_end=after_step,
            ).images
        return Edited(edited, request.seed, seconds)


@contextmanager
def _stage_clock(transformer: nn.Module, device: torch.device, steps: int) -> Iterator[tuple[dict[str, float], Any]]:
    """(seconds of encode, sample and decode, a callback after each step).

    The first call of the transformer and the last step separate the stages.
    """
    seconds: dict[str, float] = {}
    began_at = time.perf_counter()

    def end(stage: str) -> None:
        nonlocal began_at
        synchronize(device)
        now = time.perf_counter()
        seconds[stage], began_at = now - began_at, now

    def before_step(module: nn.Module, arguments: Any) -> None:
        if "encode" not in seconds:
            end("encode")

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == steps - 1:
            end("sample")
        return {}

    hook = transformer.register_forward_pre_hook(before_step)
    yield seconds, after_step
    hook.remove()
    end("decode")


def load_transformer(path: Path, config: TransformerConfig, dtype: torch.dtype) -> Any:
    network = build_on_meta(
        lambda: FluxTransformer2DModel(
            in_channels=config.in_channels,
            num_layers=config.depth,
            num_single_layers=config.depth_single_blocks,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.context_in_dim,
            pooled_projection_dim=config.vec_in_dim,
            guidance_embeds=True,
            axes_dims_rope=config.axes_dim,
        )
    )
    sizes = [*[config.hidden_size] * 3, config.mlp_size]
    parts = (part for key, weight in load_file(path).items() for part in _flux_parts(key, weight, sizes))
    return _assign(network, dict(parts), dtype)


def _flux_parts(key: str, weight: Tensor, joined_sizes: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Names and weights there of a weight of the transformer; joined layers are taken apart."""
    module, _, kind = key.rpartition(".")
    names = diffusers_modules(module)
    if module == SCALE_THEN_SHIFT:
        weight = torch.cat(weight.chunk(2)[::-1])
    parts = weight.split_with_sizes(joined_sizes[: len(names)]) if len(names) > 1 else (weight,)
    for name, part in zip(names, parts, strict=True):
        yield f"{name}.{'weight' if kind == 'scale' else kind}", part


def load_autoencoder(path: Path, config: AutoencoderConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    widths = config.level_channels
    network = build_on_meta(
        lambda: AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * len(widths),
            up_block_types=["UpDecoderBlock2D"] * len(widths),
            block_out_channels=list(widths),
            layers_per_block=config.num_res_blocks,
            latent_channels=config.z_channels,
            scaling_factor=config.scale_factor,
            shift_factor=config.shift_factor,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )
    return _assign(network, convert_ldm_vae_checkpoint(load_file(path), network.config), dtype)


def _assign(network: Any, weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    network.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    return network.requires_grad_(False)
