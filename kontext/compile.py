"""Regional compilation: the two classes of blocks are compiled, not the network round them.

All 57 blocks share two graphs (three with the last single block, which computes fewer rows), so a cold start costs as
much as compiling two blocks. What lies between the blocks stays as it is written.
"""

from __future__ import annotations

import torch

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
