"""The flow transformer: noisy latents, reference tokens and text in, velocity of the latents out.

      text (T5)           target and reference tokens        t   guidance   text (CLIP)
          |                           |                      |       |           |
       txt_in                      img_in                time_in guidance_in vector_in
          |                           |                      '-------+-----------'
          '---- double blocks, 19 ----'  <-------------- modulation -' vec
                       |                                              |
                single blocks, 38        <----------------------------|
                       |                                              |
                  final_layer            <----------------------------'
                       |
                   velocity

Source: FLUX.1 reference code, model.py; Labs et al. 2025, "FLUX.1 Kontext".
"""

# mypy: disable-error-code="no-any-return"
# To the type checker, calling an nn.Module returns Any; the annotations of `forward` state the type.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kontext.attention import rotary_table
from kontext.config import TransformerConfig
from kontext.layers import (
    FREQUENCY_CHANNELS,
    Adapter,
    DoubleStreamBlock,
    LastLayer,
    MLPEmbedder,
    ModulationOut,
    SingleStreamBlock,
    adapted,
    timestep_embedding,
)
from kontext.step_cache import CachedSteps


class BlockAdapters(Protocol):
    """LoRA layers for the transformer's linear layers, as `kontext.lora` makes them."""

    def of(self, layer: str) -> Adapter | None:
        """The one of a layer outside the blocks, or none."""

    def of_block(self, block: str, *, modulation: bool = False) -> dict[str, Adapter]:
        """Those of a block, or of its modulation, by the names of its layers."""


class _NoAdapters:
    def of(self, layer: str) -> None:
        return None

    def of_block(self, block: str, *, modulation: bool = False) -> None:
        return None


NO_ADAPTERS = _NoAdapters()


@dataclass(frozen=True)
class Conditioning:
    """The inputs of an edit that are known before its first step.

    Modulation depends on timestep, guidance and pooled text only. The modulation of all steps is therefore one table
    of tensors of shape (steps, batch, 1, hidden): 63 MB for 30 steps of the 12B model, instead of 6.5 GB of weights.
    """

    txt: Tensor  # (batch, text length, hidden)
    references: Tensor  # (batch, reference length, hidden)
    pe: Tensor  # (batch, text + target + reference length, 1, head_dim / 2, 2)
    double_blocks: Sequence[Sequence[ModulationOut]]  # of every block
    single_blocks: Sequence[Sequence[ModulationOut]]
    final_layer: Tensor  # (steps, batch, 2, hidden)
    adapters: BlockAdapters | None = None  # LoRA layers


class Transformer(nn.Module):
    """FLUX.1 Kontext's transformer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.img_in = nn.Linear(config.in_channels, hidden)
        self.txt_in = nn.Linear(config.context_in_dim, hidden)
        self.time_in = MLPEmbedder(FREQUENCY_CHANNELS, hidden)
        self.guidance_in = MLPEmbedder(FREQUENCY_CHANNELS, hidden)
        self.vector_in = MLPEmbedder(config.vec_in_dim, hidden)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(config) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(config) for _ in range(config.depth_single_blocks))
        self.final_layer = LastLayer(hidden, config.out_channels)

    def condition(
        self,
        txt: Tensor,
        pooled: Tensor,
        guidance: Tensor,
        timesteps: Tensor,
        img_ids: Tensor,
        references: Tensor | None = None,
        adapters: BlockAdapters | None = None,
    ) -> Conditioning:
        """Compute once per edit what does not depend on the latents, with the arithmetic of the reference's loop.

        Args:
            txt: T5's vectors, shape (batch, text length, context_in_dim).
            pooled: CLIP's vector, shape (batch, vec_in_dim).
            guidance: guidance scale, shape (batch,), in the dtype of the tokens.
            timesteps: of every step, from 1 (noise) to 0 (image), shape (steps, batch), in the dtype of the tokens.
            img_ids: positions of target and reference tokens, float32, shape (batch, image length, 3).
            references: reference tokens, shape (batch, reference length, in_channels); None for no references.
            adapters: LoRA layers of this edit; None for none.
        """
        references = txt.new_empty(len(txt), 0, self.config.in_channels) if references is None else references
        txt_ids = torch.zeros(*txt.shape[:2], 3, dtype=img_ids.dtype, device=img_ids.device)  # text has no position
        lora = adapters or NO_ADAPTERS
        vec = self._vec(timesteps, guidance, pooled, lora)
        return Conditioning(
            txt=adapted(self.txt_in, txt, lora.of("txt_in")),
            references=adapted(self.img_in, references, lora.of("img_in")),
            pe=rotary_table(torch.cat((txt_ids, img_ids), dim=1), self.config.axes_dim, self.config.theta),
            double_blocks=_modulation_table("double_blocks", self.double_blocks, vec, lora),
            single_blocks=_modulation_table("single_blocks", self.single_blocks, vec, lora),
            final_layer=self.final_layer.modulation(vec, lora.of("final_layer.adaLN_modulation.1")),
            adapters=adapters,
        )

    def _vec(
        self, timesteps: Tensor, guidance: Tensor, pooled: Tensor, lora: BlockAdapters | _NoAdapters = NO_ADAPTERS
    ) -> Tensor:
        """Input of all modulation layers, shape (steps, batch, hidden)."""

        def embed(name: str, x: Tensor) -> Tensor:
            return getattr(self, name)(x, (lora.of(f"{name}.in_layer"), lora.of(f"{name}.out_layer")))

        guidance_vec = embed("guidance_in", timestep_embedding(guidance))
        # The order of the two sums is the reference's; in bfloat16 another order gives other bits.
        return embed("time_in", timestep_embedding(timesteps)) + guidance_vec + embed("vector_in", pooled)

    def forward(
        self, latents: Tensor, step: int, conditioning: Conditioning, cached: CachedSteps | None = None
    ) -> Tensor:
        """Predict the velocity of the target's tokens.

        Args:
            latents: packed, shape (batch, target length, in_channels).
            step: index into the steps of the conditioning.
            conditioning: result of `condition` for the same number of image tokens.
            cached: skips steps, as an approximation; None computes all.
        Returns:
            Velocity, shape (batch, target length, out_channels).
        """
        txt, pe, lora = conditioning.txt, conditioning.pe, conditioning.adapters or NO_ADAPTERS
        length = latents.shape[1]
        target = (txt.shape[1], txt.shape[1] + length)  # rows of the target, after those of the text

        # References are the same at every step and already projected; (batch, image length, hidden).
        img = torch.cat((adapted(self.img_in, latents, lora.of("img_in")), conditioning.references), dim=1)
        for i, (block, table) in enumerate(zip(self.double_blocks, conditioning.double_blocks, strict=True)):
            before = img
            img, txt = block(img, txt, [mod.at(step) for mod in table], pe, lora.of_block(f"double_blocks.{i}"))
            if i == 0 and cached is not None:
                skipped = cached.skip(step, before[:, :length], img[:, :length])
                if skipped is not None:
                    return self._velocity(skipped, step, conditioning)

        x = torch.cat((txt, img), dim=1)  # (batch, text length + image length, hidden)
        last = len(self.single_blocks) - 1
        for i, (block, table) in enumerate(zip(self.single_blocks, conditioning.single_blocks, strict=True)):
            # No layer after the last block reads text or reference tokens.
            rows, adapters = target if i == last else None, lora.of_block(f"single_blocks.{i}")
            x = block(x, [mod.at(step) for mod in table], pe, rows=rows, adapters=adapters)

        if cached is not None:
            cached.keep(x)
        return self._velocity(x, step, conditioning)

    def _velocity(self, x: Tensor, step: int, conditioning: Conditioning) -> Tensor:
        lora = conditioning.adapters or NO_ADAPTERS
        return self.final_layer(x, conditioning.final_layer[step], lora.of("final_layer.linear"))


def _modulation_table(
    kind: str, blocks: Iterable[Any], vec: Tensor, lora: BlockAdapters | _NoAdapters
) -> list[list[ModulationOut]]:
    return [block.modulation_outs(vec, lora.of_block(f"{kind}.{i}", modulation=True)) for i, block in enumerate(blocks)]
