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

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kontext.attention import rotary_table
from kontext.config import TransformerConfig
from kontext.layers import (
    FREQUENCY_CHANNELS,
    DoubleStreamBlock,
    LastLayer,
    MLPEmbedder,
    SingleStreamBlock,
    timestep_embedding,
)


@dataclass(frozen=True)
class Conditioning:
    """What the transformer needs at every step and what stays the same from step to step."""

    txt: Tensor  # (batch, text length, hidden)
    guidance: Tensor  # (batch, hidden)
    pooled: Tensor  # (batch, hidden)
    pe: Tensor  # (batch, 1, text length + image length, head_dim / 2, 2)


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

    def condition(self, txt: Tensor, pooled: Tensor, guidance: Tensor, img_ids: Tensor) -> Conditioning:
        """Compute once per edit what no step changes: the same arithmetic as inside the loop, done once.

        Args:
            txt: T5's vectors, shape (batch, text length, context_in_dim).
            pooled: CLIP's vector, shape (batch, vec_in_dim).
            guidance: guidance scale, shape (batch,), in the dtype of the tokens.
            img_ids: positions of target and reference tokens, float32, shape (batch, image length, 3).
        """
        txt_ids = torch.zeros(*txt.shape[:2], 3, dtype=img_ids.dtype, device=img_ids.device)  # text has no place
        return Conditioning(
            txt=self.txt_in(txt),
            guidance=self.guidance_in(timestep_embedding(guidance)),
            pooled=self.vector_in(pooled),
            pe=rotary_table(torch.cat((txt_ids, img_ids), dim=1), self.config.axes_dim, self.config.theta),
        )

    def forward(self, img: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity of every image token.

        Args:
            img: packed latents, target then references, shape (batch, image length, in_channels).
            timestep: from 1 (noise) to 0 (picture), shape (batch,), in the dtype of img.
            conditioning: of `condition`, for the same number of image tokens.
        Returns:
            Velocity, shape (batch, image length, out_channels).
        """
        # The order of the two sums is the reference's; in bfloat16 another order gives other bits.
        vec = self.time_in(timestep_embedding(timestep)) + conditioning.guidance + conditioning.pooled
        txt, pe = conditioning.txt, conditioning.pe

        img = self.img_in(img)  # (batch, image length, hidden)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, pe)

        x = torch.cat((txt, img), dim=1)  # (batch, text length + image length, hidden)
        for block in self.single_blocks:
            x = block(x, vec, pe)
        img = x[:, txt.shape[1] :]

        return self.final_layer(img, vec)
