"""The flow transformer: from noisy latents, references and text to the velocity of the latents.

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
# Calling an nn.Module is Any to the type checker; the annotations of `forward` say what it is.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kontext.attention import rotary_table
from kontext.config import TransformerConfig
from kontext.layers import (
    FREQUENCY_CHANNELS,
    Adjustment,
    DoubleStreamBlock,
    LastLayer,
    MLPEmbedder,
    SingleStreamBlock,
    timestep_embedding,
)


@dataclass(frozen=True)
class Conditioning:
    """Everything of an edit that is known before its first step.

    Modulation depends on time, guidance and pooled text alone, so that of all steps is a table, its tensors of shape
    (steps, batch, 1, hidden): 63 MB for 30 steps of the 12B model in the place of 6.5 GB of weights.
    """

    txt: Tensor  # (batch, text length, hidden)
    references: Tensor  # (batch, reference length, hidden)
    pe: Tensor  # (batch, 1, text + target + reference length, head_dim / 2, 2)
    double_blocks: Sequence[Sequence[Adjustment]]  # of every block
    single_blocks: Sequence[Sequence[Adjustment]]
    final_layer: Tensor  # (steps, batch, 2, hidden)


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
    ) -> Conditioning:
        """Compute once per edit what no latent changes: the same arithmetic as in the reference's loop, done once.

        Args:
            txt: T5's vectors, shape (batch, text length, context_in_dim).
            pooled: CLIP's vector, shape (batch, vec_in_dim).
            guidance: guidance scale, shape (batch,), in the dtype of the tokens.
            timesteps: of every step, from 1 (noise) to 0 (picture), shape (steps, batch), in the dtype of the tokens.
            img_ids: positions of target and reference tokens, float32, shape (batch, image length, 3).
            references: their tokens, shape (batch, reference length, in_channels); None for an edit without.
        """
        references = txt.new_empty(len(txt), 0, self.config.in_channels) if references is None else references
        txt_ids = torch.zeros(*txt.shape[:2], 3, dtype=img_ids.dtype, device=img_ids.device)  # text has no place
        vec = self._vectors(timesteps, guidance, pooled)
        return Conditioning(
            txt=self.txt_in(txt),
            references=self.img_in(references),
            pe=rotary_table(torch.cat((txt_ids, img_ids), dim=1), self.config.axes_dim, self.config.theta),
            double_blocks=_adjustments(self.double_blocks, vec),
            single_blocks=_adjustments(self.single_blocks, vec),
            final_layer=self.final_layer.adjustment(vec),
        )

    def _vectors(self, timesteps: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        """What modulation is made from, shape (steps, batch, hidden)."""
        guided = self.guidance_in(timestep_embedding(guidance))
        # The order of the two sums is the reference's; in bfloat16 another order gives other bits.
        return self.time_in(timestep_embedding(timesteps)) + guided + self.vector_in(pooled)

    def forward(self, latents: Tensor, step: int, conditioning: Conditioning) -> Tensor:
        """Predict the velocity of the target's tokens.

        Args:
            latents: packed, shape (batch, target length, in_channels).
            step: which of the steps of the conditioning.
            conditioning: of `condition`, for the same number of image tokens.
        Returns:
            Velocity, shape (batch, target length, out_channels).
        """
        txt, pe = conditioning.txt, conditioning.pe
        target = (txt.shape[1], txt.shape[1] + latents.shape[1])  # its rows behind the text's

        # Tokens that are the same at every step were projected before; (batch, image length, hidden).
        img = torch.cat((self.img_in(latents), conditioning.references), dim=1)
        for block, table in zip(self.double_blocks, conditioning.double_blocks, strict=True):
            img, txt = block(img, txt, [entry.at(step) for entry in table], pe)

        x = torch.cat((txt, img), dim=1)  # (batch, text length + image length, hidden)
        last = len(self.single_blocks) - 1
        for i, (block, table) in enumerate(zip(self.single_blocks, conditioning.single_blocks, strict=True)):
            # Nothing after the last block looks at text or references.
            x = block(x, [entry.at(step) for entry in table], pe, rows=target if i == last else None)

        return self.final_layer(x, conditioning.final_layer[step])


def _adjustments(blocks: Iterable[Any], vec: Tensor) -> list[list[Adjustment]]:
    return [block.adjustments(vec) for block in blocks]
