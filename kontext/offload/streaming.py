"""Streaming of weights through a ring of slots on the device while it computes.

        host    | a | b | c | d | e |          one contiguous buffer per piece, written once
                      |  copies run ahead, in the order of use
        slots   [ d ] [ b ] [ c ]              allocated once, overwritten in turn
                        |
        device        b computes, a is done: its slot takes d

Hooks on a module point it to its slot when it is called, and back to host memory when it returns. To compile such a
module, compile its `forward`; compiling the module itself would put the hooks into the graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any

from torch import Tensor, nn

from kontext.offload.copies import Copies, Mark
from kontext.offload.pieces import Piece
from kontext.weights.values import AT_ONCE, Fill, Values, fill_now


class StreamedPiece:
    """Piece in host memory, with its views of every slot."""

    def __init__(self, piece: Piece, host: Tensor, slots: Sequence[Tensor], fill: Fill = fill_now) -> None:
        self.piece = piece
        self.host = host
        self.nbytes = piece.nbytes
        piece.pack(host, fill)
        self._host_views = piece.views(host)
        self._slot_views = [piece.views(slot) for slot in slots]

    def point_to_slot(self, slot: int) -> None:
        self.piece.point_to(self._slot_views[slot])

    def point_to_host(self) -> None:
        self.piece.point_to(self._host_views)


@dataclass(frozen=True)
class _Arrival:
    """Piece that is being copied, or has been copied, into a slot."""

    piece: StreamedPiece
    slot: int
    copied: Mark


class Streamer:
    """Copies pieces to the device ahead of their use.

    Args:
        slots: number of pieces on the device at a time, including the one in use.
        slot_bytes: size of the largest piece.
    """

    def __init__(self, copies: Copies, slots: int, slot_bytes: int) -> None:
        self._copies = copies
        self._slots = [copies.device_buffer(slot_bytes) for _ in range(slots)]
        # The allocator may return memory that earlier work still uses; the first mark waits for that work.
        self._free: deque[tuple[int, Mark]] = deque((slot, copies.mark()) for slot in range(slots))
        self._ahead: deque[_Arrival] = deque()
        self._in_use: _Arrival | None = None
        self._last_copy: Mark | None = None
        self._stage: _Order = _Order((), ())
        self._upcoming: Iterator[StreamedPiece] = iter(())
        self._hooks: list[Any] = []
        self._hosts: list[Tensor] = []
        self._copies_nothing = False

    def take(self, piece: Piece, values: Values = AT_ONCE) -> StreamedPiece:
        """Move a piece to host memory and copy it to the device whenever its module is called."""
        host = self._copies.host_buffer(piece.nbytes)
        streamed = StreamedPiece(piece, host, self._slots, values.fill)
        values.when_filled(host, lambda: self._copies.lock(host))
        self._hosts.append(host)

        def before(module: nn.Module, arguments: Any) -> None:
            self._acquire(streamed)

        def after(module: nn.Module, arguments: Any, result: Any) -> None:
            self._release(streamed)

        self._hooks += [piece.module.register_forward_pre_hook(before), piece.module.register_forward_hook(after)]
        return streamed

    @contextmanager
    def stage(self, once: Sequence[StreamedPiece], loop: Sequence[StreamedPiece]) -> Iterator[None]:
        """Context in which pieces are copied in this order, ahead of their use.

        The first piece is on the device from the start, so that code that reads a network's device before the first
        call gets the right one.
        """
        self._stage = _Order(once, loop)
        self._upcoming = iter(self._stage)
        try:
            self._fetch_ahead()
            if self._ahead:
                self._acquire(self._ahead[0].piece)
            yield
        finally:
            self._clear()
            self._upcoming = iter(())

    @contextmanager
    def dry(self) -> Iterator[None]:
        """Context in which nothing is copied: modules compute with whatever the slots hold."""
        self._copies_nothing = True
        try:
            yield
        finally:
            self._copies_nothing = False

    def close(self) -> None:
        """Remove the hooks and free the slots; pieces stay in host memory, which the system may move again."""
        for hook in self._hooks:
            hook.remove()
        self._clear()
        if self._last_copy is not None:
            self._copies.wait(self._last_copy)  # the allocator may reuse the slots' memory afterwards
            self._copies.finish(self._last_copy)
        for host in self._hosts:
            self._copies.unlock(host)
        self._hosts.clear()
        self._slots.clear()

    def _acquire(self, piece: StreamedPiece) -> None:
        if self._in_use is not None and self._in_use.piece is piece:
            return
        if not self._ahead or self._ahead[0].piece is not piece:
            self._begin_at(piece)
        arrival = self._ahead.popleft()
        self._copies.wait(arrival.copied)
        piece.point_to_slot(arrival.slot)
        self._in_use = arrival

    def _release(self, piece: StreamedPiece) -> None:
        if self._in_use is None or self._in_use.piece is not piece:
            return
        piece.point_to_host()
        self._free.append((self._in_use.slot, self._copies.mark()))
        self._in_use = None
        self._fetch_ahead()

    def _fetch_ahead(self) -> None:
        """Copy the next pieces into all free slots."""
        while self._free and (piece := next(self._upcoming, None)) is not None:
            self._ahead.append(self._fetch(piece))

    def _fetch(self, piece: StreamedPiece) -> _Arrival:
        """Copy a piece into a free slot."""
        slot, done = self._free.popleft()
        nbytes = 0 if self._copies_nothing else piece.nbytes
        self._last_copy = self._copies.copy(self._slots[slot][:nbytes], piece.host[:nbytes], after=done)
        return _Arrival(piece, slot, self._last_copy)

    def _begin_at(self, piece: StreamedPiece) -> None:
        """Continue from a piece that is called out of order, such as the first of a step after a skipped one."""
        kept = self._fetched_behind(piece)
        self._clear(kept)
        self._ahead.appendleft(self._fetch(piece))
        self._upcoming = islice(self._stage.starting_at(piece), 1 + kept, None)
        self._fetch_ahead()

    def _fetched_behind(self, piece: StreamedPiece) -> int:
        """Number of fetched pieces that come next after a piece, when the last gives up its slot for the piece."""
        if self._in_use is not None:
            return 0
        fetched = [arrival.piece for arrival in self._ahead][:-1]
        following = list(islice(self._stage.starting_at(piece), 1, 1 + len(fetched)))
        return len(fetched) if fetched == following else 0

    def _clear(self, kept: int = 0) -> None:
        """Drop the fetched pieces but the first few. Copies in flight finish in their slots, before any later copy."""
        if self._in_use is not None:
            self._in_use.piece.point_to_host()
            self._ahead.appendleft(self._in_use)
            self._in_use = None
        while len(self._ahead) > kept:
            self._free.append((self._ahead.pop().slot, self._copies.mark()))


@dataclass(frozen=True)
class _Order:
    """Order in which a stage uses its pieces."""

    once: Sequence[StreamedPiece]
    loop: Sequence[StreamedPiece]

    def __iter__(self) -> Iterator[StreamedPiece]:
        return chain(self.once, cycle(self.loop))

    def starting_at(self, piece: StreamedPiece) -> Iterator[StreamedPiece]:
        """Pieces from the first use of a piece on; for a piece of another stage, that piece alone."""
        pieces = [*self.once, *self.loop]
        if piece not in pieces:
            return iter((piece,))
        return islice(iter(self), pieces.index(piece), None)
