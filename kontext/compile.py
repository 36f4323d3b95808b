"""Regional compilation: the transformer's two classes of blocks, and either half of the autoencoder.

All 57 blocks share two graphs (three with the last single block, which computes fewer rows), so a cold start costs as
much as compiling two blocks. What lies between the blocks stays as it is written. The autoencoder has few blocks and
hardly two of the same widths, so that a half is one graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kontext.autoencoder import Autoencoder
from kontext.transformer import Transformer


def compile_blocks(transformer: Transformer, backend: str = "inductor") -> None:
    """Compile the blocks for any number of tokens; the compiler comes when a block is first called.

    Each block's `forward` is compiled and not the block: hooks on the block, which move weights, stay outside of the
    graph. A block that cannot be compiled as one graph is an error, never silently slow.

    Args:
        backend: of torch.compile. "inductor" is the fast one; "eager" only captures the graph.
    """
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend)


def compile_autoencoder(autoencoder: Autoencoder, backend: str = "inductor") -> None:
    """Compile encoder and decoder for one picture of any size, as `compile_blocks` does blocks."""
    halves: list[nn.Module] = [autoencoder.encoder, autoencoder.decoder]
    for half in halves:
        half.forward = _for_any_sides(torch.compile(half.forward, fullgraph=True, backend=backend))


def _for_any_sides(compiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Says which sizes vary. `dynamic=True` leaves that to be found, and takes numbers that are equal by chance in the
    first picture, as its two sides or a side and the channels, to be so always.
    """

    def forward(x: Tensor) -> Tensor:
        for side in (2, 3):
            torch._dynamo.mark_dynamic(x, side)
        return compiled(x)

    return forward
