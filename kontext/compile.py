"""Regional compilation: the transformer's two classes of blocks, and encoder and decoder of the autoencoder.

All 57 blocks share two graphs (three with the last single block, which computes fewer rows), so a cold start costs as
much as compiling two blocks. Code between the blocks is not compiled. The autoencoder has few blocks of equal widths,
so encoder and decoder are compiled as one graph each.
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

GRAPHS_OF_A_BLOCK = 64  # limit of recompilations; many different image sizes might reach torch's default of 8


def check_compiler(device: torch.device, backend: str = "inductor") -> None:
    """Compile a small function to check that the compiler works.

    Raises:
        DeviceError: the compiler does not work on this machine.
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
    """Compile the blocks for any number of tokens; compilation happens when a block is first called.

    Only `forward` is compiled, not the block: hooks on the block, which move weights, stay outside the graph. A block
    that cannot be compiled as one graph raises an error instead of running slowly.

    Args:
        backend: backend of torch.compile. "inductor" generates fast code; "eager" only captures the graph.
    """
    torch._dynamo.config.recompile_limit = GRAPHS_OF_A_BLOCK
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend)


def compile_autoencoder(autoencoder: Autoencoder, backend: str = "inductor") -> None:
    """Compile encoder and decoder for an image of any size, with `forward` compiled as in `compile_blocks`."""
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
    """Mark height and width as dynamic.

    `dynamic=True` would instead infer the dynamic sizes from the first image. Sizes that are equal there by chance, for
    example height and width or a side and the channels, would then be required to be equal in every image.
    """

    def forward(x: Tensor) -> Tensor:
        for side in (2, 3):
            torch._dynamo.mark_dynamic(x, side)
        return compiled(x)

    return forward
