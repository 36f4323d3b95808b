"""Regional compilation: the transformer's two classes of blocks, and the autoencoder's norms.

All 57 blocks share two graphs (three with the last single block, which computes fewer rows), so a cold start costs as
much as compiling two blocks. Code between the blocks is not compiled.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from kontext.autoencoder import Autoencoder, GroupNorm, normed_swish
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
    """Compile the norms with their activation, for images of any size and any number of channels.

    Convolutions are cuDNN's, compiled or not. Whole blocks took twelve times as long to compile and no less to decode
    (docs/performance-log.md).
    """
    compiled = torch.compile(normed_swish, fullgraph=True, backend=backend)

    def activated(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        # `dynamic=True` would instead infer the dynamic sizes from the first image. Sizes that are equal there by
        # chance, a height and a width for example, would then be required to be equal in every image.
        for tensor, channels in ((x, 2), (weight, 1), (bias, 1)):
            torch._dynamo.maybe_mark_dynamic(tensor, channels)  # "maybe", as one channel is a graph of its own
        for side in (3, 4):
            torch._dynamo.mark_dynamic(x, side)
        return compiled(x, weight, bias, eps, dtype)

    for part in autoencoder.modules():
        if isinstance(part, GroupNorm):
            part.compiled_activated = activated


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
