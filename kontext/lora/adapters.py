"""LoRA layers round the transformer's weights, which never change: y = W x + up (down x).

Several LoRAs of a job are stacked to one pair of matrices for each layer. All layers of all blocks get one, of zeros
where no LoRA has any, and ranks are padded to a few sizes, so that compiled blocks need no graph for another LoRA.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kontext.errors import LoraError
from kontext.layers import Adapter
from kontext.lora.files import LowRank, Shapes, read_lora
from kontext.request import Lora

SMALLEST_RANK = 16  # of the padded ranks, which double from here; products with fewer columns are no faster
MOST_RANK = 2048  # of all LoRAs of a job in a layer; above, an addition costs as much as the layer

BLOCKS = ("double_blocks.", "single_blocks.")
MODULATION = (".lin",)  # the only layers of a block that run outside it, and may have no pair

Key = tuple[tuple[str, int, int, int, float], ...]


class Adapters:
    """Pairs of matrices for the linear layers of a transformer.

    Args:
        pairs: by the name of the layer; down of shape (rank, columns), up of shape (rows, rank).
        device: where the transformer computes. Pairs may be elsewhere; they come for each use.
    """

    def __init__(self, pairs: Mapping[str, Adapter], device: torch.device) -> None:
        self._pairs = pairs
        self._device = device
        self._layers: dict[str, list[str]] = {}
        for name in pairs:
            if name.startswith(BLOCKS):
                kind, index, layer = name.split(".", 2)
                self._layers.setdefault(f"{kind}.{index}", []).append(layer)

    @property
    def nbytes(self) -> int:
        """Bytes of all pairs; what several layers share counts once."""
        return sum({id(part): part.nbytes for pair in self._pairs.values() for part in pair}.values())

    def of(self, layer: str) -> Adapter | None:
        """The pair of a layer, on the device."""
        pair = self._pairs.get(layer)
        return None if pair is None else self._arrived(pair)

    def of_block(self, block: str, *, modulation: bool = False) -> dict[str, Adapter]:
        """The pairs of a block such as "double_blocks.3", by the names of its layers, on the device.

        Args:
            modulation: those of its modulation instead of those of all other layers.
        """
        layers = [layer for layer in self._layers.get(block, ()) if layer.endswith(MODULATION) == modulation]
        return {layer: self._arrived(self._pairs[f"{block}.{layer}"]) for layer in layers}

    def _arrived(self, pair: Adapter) -> Adapter:
        down, up = (part.to(self._device, non_blocking=True) for part in pair)
        # Whoever compiles has loaded it; there every rank is one and the same graph.
        if "torch._dynamo" in sys.modules:
            torch._dynamo.maybe_mark_dynamic(down, 0)
            torch._dynamo.maybe_mark_dynamic(up, 1)
        return down, up


def linear_layers(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """(rows, columns) of all linear layers of a transformer, by name."""
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in transformer.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() == 2
    }


def stack(
    loras: Sequence[tuple[Mapping[str, list[LowRank]], float]], shapes: Shapes, always: set[str], dtype: torch.dtype
) -> dict[str, Adapter]:
    """One pair of matrices for each layer that a LoRA has, and for those that always get one.

    Args:
        loras: additions by layer, and the scale of each LoRA.
        always: layers that get a pair of zeros where no LoRA has them.
    Raises:
        LoraError: the ranks are too large together.
    """
    zeros: dict[
        str, Adapter
    ] = {}  # shared by the blocks, but not within one: a compiled block tells shared inputs apart
    pairs: dict[str, Adapter] = {}
    for name, (rows, columns) in shapes.items():
        parts = [(addition, scale) for additions, scale in loras for addition in additions.get(name, ())]
        if parts:
            pairs[name] = _stacked(name, parts, rows, columns, dtype)
        elif name in always:
            kind, _, layer = name.split(".", 2)
            if (shared := f"{kind}.{layer}") not in zeros:
                down = torch.zeros(SMALLEST_RANK, columns, dtype=dtype)
                zeros[shared] = down, torch.zeros(rows, SMALLEST_RANK, dtype=dtype)
            pairs[name] = zeros[shared]
    return pairs


def _stacked(name: str, parts: list[tuple[LowRank, float]], rows: int, columns: int, dtype: torch.dtype) -> Adapter:
    rank = padded_rank(sum(addition.rank for addition, _ in parts))
    if rank > MOST_RANK:
        raise LoraError(
            f"the ranks of the LoRAs add up to more than {MOST_RANK} in layer {name}; give fewer or smaller"
        )
    down, up = torch.zeros(rank, columns, dtype=dtype), torch.zeros(rows, rank, dtype=dtype)
    begin = 0
    for addition, scale in parts:
        end, last = begin + addition.rank, addition.first + len(addition.up)
        down[begin:end] = addition.down
        up[addition.first : last, begin:end] = addition.up.float() * (addition.factor * scale)
        begin = end
    return down, up


def padded_rank(rank: int) -> int:
    """The next of 16, 32, 64, ..."""
    return max(SMALLEST_RANK, 1 << (rank - 1).bit_length())


class AdapterCache:
    """Adapters of the last jobs, so that jobs with the same LoRAs do not read them again.

    Args:
        limit_bytes: of all adapters that are kept; larger ones serve their job and are dropped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[Key, Adapters] = OrderedDict()

    @property
    def nbytes(self) -> int:
        return sum(adapters.nbytes for adapters in self._kept.values())

    def recall(self, loras: Sequence[Lora], make: Callable[[], Adapters]) -> Adapters:
        """The adapters of these LoRAs, made where they are not kept.

        Raises:
            LoraError: a file cannot be used.
        """
        key = tuple(_identity(lora) for lora in loras)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = make()
        if made.nbytes <= self._limit_bytes:
            self._kept[key] = made
            while self.nbytes > self._limit_bytes:
                self._kept.popitem(last=False)
        return made

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()


def _identity(lora: Lora) -> tuple[str, int, int, int, float]:
    try:
        status = lora.path.stat()
    except OSError as error:
        raise LoraError(f"LoRA {lora.path} cannot be read: {error.strerror or error}") from error
    return str(lora.path), status.st_ino, status.st_size, status.st_mtime_ns, lora.scale


def make_adapters(
    transformer: nn.Module, loras: Sequence[Lora], dtype: torch.dtype, device: torch.device, home: torch.device
) -> Adapters:
    """Read LoRA files and lay them out for a transformer.

    Args:
        device: where the transformer computes.
        home: where the pairs stay, on the host pinned where the device is a GPU.
    Raises:
        LoraError: a file cannot be used, or does not fit the transformer.
    """
    shapes = linear_layers(transformer)
    always = {name for name in shapes if name.startswith(BLOCKS) and not name.endswith(MODULATION)}
    read = [(read_lora(lora.path, shapes, lora.name), lora.scale) for lora in loras]
    is_pinned = home.type == "cpu" and device.type == "cuda"

    def settle(part: Tensor) -> Tensor:
        return part.pin_memory() if is_pinned else part.to(home)

    settled: dict[int, Adapter] = {}  # shared pairs of zeros stay shared
    pairs = stack(read, shapes, always, dtype)
    for pair in pairs.values():
        if id(pair) not in settled:
            settled[id(pair)] = settle(pair[0]), settle(pair[1])
    return Adapters({name: settled[id(pair)] for name, pair in pairs.items()}, device)
