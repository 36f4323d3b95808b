"""The same edit through diffusers' FluxKontextPipeline, from the same folder: what `--vs diffusers` measures.

Weights are mapped from the published key names to diffusers', since a model of any size has no entry there and nothing
may be fetched. Everything is bfloat16, as its users run it; the noise is ours, so that the pictures can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from kontext.config import AutoencoderConfig, TransformerConfig
from kontext.device import synchronize
from kontext.request import Edited, EditRequest
from kontext.sampling import pack_latents, starting_noise
from kontext.text import load_clip, load_t5
from kontext.weights.checkpoint import build_on_meta
from kontext.weights.layout import find_model

Part = tuple[str, Tensor]  # diffusers' name of a module, and its weight or bias

STREAMS = {  # of a double block: where its parts are
    "img": {
        "mod.lin": "norm1.linear",
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.norm.query_norm": "attn.norm_q",
        "attn.norm.key_norm": "attn.norm_k",
        "attn.proj": "attn.to_out.0",
        "mlp.0": "ff.net.0.proj",
        "mlp.2": "ff.net.2",
    },
    "txt": {
        "mod.lin": "norm1_context.linear",
        "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.norm.query_norm": "attn.norm_added_q",
        "attn.norm.key_norm": "attn.norm_added_k",
        "attn.proj": "attn.to_add_out",
        "mlp.0": "ff_context.net.0.proj",
        "mlp.2": "ff_context.net.2",
    },
}
SINGLE = {
    "modulation.lin": "norm.linear",
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in": "time_text_embed.timestep_embedder",
    "guidance_in": "time_text_embed.guidance_embedder",
    "vector_in": "time_text_embed.text_embedder",
    "in_layer": "linear_1",
    "out_layer": "linear_2",
}
LEVEL = {
    "block": "resnets",
    "nin_shortcut": "conv_shortcut",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
}
PICTURE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


class DiffusersKontext:
    """diffusers' pipeline with what the benchmark asks of an engine."""

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
            # On a CPU, where this is only tried out, nothing but the capture.
            backend = "inductor" if device.type == "cuda" else "eager"
            self.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)

    @torch.inference_mode()
    def run(self, request: EditRequest) -> Edited:
        """One edit of one image that has the target's size already."""
        (image,) = request.images
        width, height = request.width or image.width, request.height or image.height
        with _StageClock(self.pipe.transformer, self.device, request.num_inference_steps) as clock:
            (edited,) = self.pipe(
                image=image,
                prompt=request.prompt,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                latents=pack_latents(starting_noise(width, height, request.seed)).to(self.device, self.dtype),
                width=width,
                height=height,
                # Otherwise both sizes set the shape of a megapixel only, and the picture is brought to such a shape.
                max_area=width * height,
                _auto_resize=False,
                max_sequence_length=self.config.max_sequence_length,
                callback_on_step_end=clock.after_step,
            ).images
        return Edited(edited, request.seed, clock.seconds)


class _StageClock:
    """Seconds of encode, sample and decode, told apart by the first call of the transformer and the last step."""

    def __init__(self, transformer: nn.Module, device: torch.device, steps: int) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._steps = steps
        self._hook: Any = transformer.register_forward_pre_hook(self._before_step)

    def __enter__(self) -> _StageClock:
        self._began_at = time.perf_counter()
        return self

    def __exit__(self, *raised: object) -> None:
        self._hook.remove()
        self._end("decode")

    def _before_step(self, module: nn.Module, arguments: Any) -> None:
        if "encode" not in self.seconds:
            self._end("encode")

    def after_step(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == self._steps - 1:
            self._end("sample")
        return {}

    def _end(self, stage: str) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage] = now - self._began_at
        self._began_at = now


def load_transformer(path: Path, config: TransformerConfig, dtype: torch.dtype) -> FluxTransformer2DModel:
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
    return _assign(network, parts, dtype)


def _flux_parts(key: str, weight: Tensor, single_sizes: list[int]) -> Iterator[Part]:
    """What a weight of the transformer is called there; joined projections are taken apart."""
    module, _, kind = key.rpartition(".")
    kind = "weight" if kind == "scale" else kind
    match module.split("."):
        case ["double_blocks", index, first, *rest]:
            stream, _, begin = first.partition("_")
            place, names = f"transformer_blocks.{index}", STREAMS[stream][".".join((begin, *rest))]
            parts = weight.chunk(3) if isinstance(names, tuple) else (weight,)
        case ["single_blocks", index, *rest]:
            place, names = f"single_transformer_blocks.{index}", SINGLE[".".join(rest)]
            parts = weight.split(single_sizes) if isinstance(names, tuple) else (weight,)
        case ["final_layer", "linear"]:
            place, names, parts = "", "proj_out", (weight,)
        case ["final_layer", *_]:  # ours shifts, then scales
            place, names, parts = "", "norm_out.linear", (torch.cat(weight.chunk(2)[::-1]),)
        case names_there:
            place, names, parts = "", ".".join(EMBEDDERS[name] for name in names_there), (weight,)
    for name, part in zip((names,) if isinstance(names, str) else names, parts, strict=True):
        yield f"{place}.{name}.{kind}".removeprefix("."), part


def load_autoencoder(path: Path, config: AutoencoderConfig, dtype: torch.dtype = torch.bfloat16) -> AutoencoderKL:
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
    parts = (_autoencoder_part(key, weight, len(widths)) for key, weight in load_file(path).items())
    return _assign(network, parts, dtype)


def _autoencoder_part(key: str, weight: Tensor, levels: int) -> Part:
    """What a weight of the autoencoder is called there."""
    match key.split("."):
        case [half, "mid", "attn_1", layer, kind]:
            name = f"{half}.mid_block.attentions.0.{PICTURE_ATTENTION[layer]}.{kind}"
            return name, weight[..., 0, 0] if weight.dim() == 4 else weight  # a 1x1 convolution is a linear layer there
        case [half, "mid", block, *rest]:
            name = f"{half}.mid_block.resnets.{int(block[-1]) - 1}.{'.'.join(rest)}"
        case [half, ("down" | "up") as way, level, *rest]:
            index = int(level) if way == "down" else levels - 1 - int(level)  # theirs counts from the coarsest
            name = f"{half}.{way}_blocks.{index}.{'.'.join(LEVEL.get(part, part) for part in rest)}"
        case _:
            name = key.replace("norm_out", "conv_norm_out")
    return name, weight


def _assign(network: Any, parts: Iterator[Part], dtype: torch.dtype) -> Any:
    network.load_state_dict({name: part.to(dtype) for name, part in parts}, assign=True)
    return network.requires_grad_(False)
