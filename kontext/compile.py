"""Regional compilation: the transformer's two classes of blocks, and either half of the autoencoder.

All 57 blocks share two graphs (three with the last single block, which computes fewer rows), so a cold start costs as
much as compiling two blocks. What lies between the blocks stays as it is written. The autoencoder has few blocks and
hardly two of the same widths, so that a half is one graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn

from kontext.autoencoder import Autoencoder
from kontext.errors import DeviceError
from kontext.pipeline import Encoded, Kontext, reference_ids
from kontext.request import EditRequest
from kontext.transformer import Transformer

GRAPHS_OF_A_BLOCK = 64  # beyond which torch refuses; its 8 might be reached by pictures of ever other sizes


def check_compiler(device: torch.device, backend: str = "inductor") -> None:
    """Compile something small.

    Raises:
        DeviceError: the compiler does not work here.
    """
    try:
        torch.compile(torch.neg, backend=backend)(torch.ones(16, device=device))
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = " ".join(str(error).strip().splitlines()[:2])
        raise DeviceError(
            f"the compiler fails on {device} ({reason}); install a C++ compiler and Python's headers, "
            "or load without compiling"
        ) from error


def compile_blocks(transformer: Transformer, backend: str = "inductor") -> None:
    """Compile the blocks for any number of tokens; the compiler comes when a block is first called.

    Each block's `forward` is compiled and not the block: hooks on the block, which move weights, stay outside of the
    graph. A block that cannot be compiled as one graph is an error, never silently slow.

    Args:
        backend: of torch.compile. "inductor" is the fast one; "eager" only captures the graph.
    """
    torch._dynamo.config.recompile_limit = GRAPHS_OF_A_BLOCK
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend)


def compile_autoencoder(autoencoder: Autoencoder, backend: str = "inductor") -> None:
    """Compile encoder and decoder for one picture of any size, as `compile_blocks` does blocks."""
    halves: list[nn.Module] = [autoencoder.encoder, autoencoder.decoder]
    for half in halves:
        half.forward = _for_any_sides(torch.compile(half.forward, fullgraph=True, backend=backend))


@torch.inference_mode()
def compile_ahead(model: Kontext) -> None:
    """Compile everything that an edit will need, without the text encoders and whatever values the weights have.

    Results are thrown away. The cache of prompts and images is passed by: it must not remember them.
    """
    size = model.config.preferred_resolutions[0]
    blank = Image.new("RGB", size)
    sizes = model.config.transformer
    references = model.encode_reference(blank, size)
    encoded = Encoded(
        txt=references.new_zeros(1, model.max_sequence_length, sizes.context_in_dim),
        pooled=references.new_zeros(1, sizes.vec_in_dim),
        references=references,
        reference_ids=reference_ids([size]).to(model.memory.device),
        size=size,
    )
    model.decode(model.sample(encoded, EditRequest((blank,), "", num_inference_steps=1, seed=0)))


def _for_any_sides(compiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Says which sizes vary. `dynamic=True` leaves that to be found, and takes numbers that are equal by chance in the
    first picture, as its two sides or a side and the channels, to be so always.
    """

    def forward(x: Tensor) -> Tensor:
        for side in (2, 3):
            torch._dynamo.mark_dynamic(x, side)
        return compiled(x)

    return forward
