"""GGUF files, read with llama.cpp's package `gguf`; quantised weights become numbers when they are read.

The keys are those of the published checkpoint. T5's are llama.cpp's own, which are renamed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kontext.errors import CheckpointError
from kontext.weights.stored import Packed, Weight

T5_LAYERS = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
T5_TABLES = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}


@dataclass(frozen=True)
class GgufRows:
    """Rows of a quantised weight.

    Args:
        data: bytes of the rows, uint8, shape (rows, bytes of a row).
        kind: `gguf.GGMLQuantizationType`.
    """

    data: Any
    kind: Any

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def form(self) -> str:
        return f"GGUF {self.kind.name}"

    def __len__(self) -> int:
        return len(self.data)

    def data_ptr(self) -> int:
        return int(self.data.__array_interface__["data"][0])

    def between(self, first: int, last: int) -> GgufRows:
        return GgufRows(self.data[first:last], self.kind)

    def write(self, out: Tensor) -> None:
        from gguf import dequantize

        out.copy_(torch.from_numpy(dequantize(self.data, self.kind)))


def read_gguf(path: Path) -> dict[str, Weight]:
    """Map the weights of a GGUF file.

    Raises:
        CheckpointError: it is damaged, cut short, or in a format that `gguf` does not turn into numbers.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path, "c")  # private pages: torch warns of arrays that cannot be written
        weights = {_t5_name(tensor.name): _weight(tensor) for tensor in reader.tensors}
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:  # the package parses without checks: numpy, struct and enum raise what they will
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"{path} is cut short or no GGUF file ({reason}); fetch it again") from error
    return weights


def _weight(tensor: Any) -> Weight:
    from gguf import GGMLQuantizationType, dequantize

    kind, shape = tensor.tensor_type, tuple(int(side) for side in reversed(tensor.shape))
    if tensor.data.nbytes != tensor.n_bytes:
        raise CheckpointError("is cut short; fetch it again")
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return torch.from_numpy(tensor.data)
    if kind is GGMLQuantizationType.BF16:
        return torch.from_numpy(tensor.data).view(torch.bfloat16).reshape(shape)
    rows = tensor.data.reshape(shape[0], -1)
    try:
        dequantize(rows[:1], kind)
    except (NotImplementedError, ValueError) as error:
        raise CheckpointError(
            f"has weights in {kind.name}, which are not read; fetch one in Q8_0, Q4_K or another of Q2 to Q8"
        ) from error
    return Packed(torch.Size(shape), (GgufRows(rows, kind),))


def _t5_name(name: str) -> str:
    """T5's names in transformers; others as they are."""
    module, _, kind = name.rpartition(".")
    if module in T5_TABLES:
        return f"{T5_TABLES[module]}.{kind}"
    found = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)", module)
    if found and found[2] in T5_LAYERS:
        return f"encoder.block.{found[1]}.{T5_LAYERS[found[2]]}.{kind}"
    return name
