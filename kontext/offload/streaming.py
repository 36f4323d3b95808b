"""Weights that pass through a ring of slots on the device while it computes.

        host    | a | b | c | d | e |          one contiguous buffer per piece, written once
                      |  copies run ahead, in the order of use
        slots   [ d ] [ b ] [ c ]              allocated once, overwritten in turn
                        |
        device        b computes, a is done: its slot takes d

A piece is put in its place by hooks on its module, when the module is called and when it returns. Where a module is
compiled, its `forward` must be compiled and not the module, or the hooks end up in the graph.
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
from kontext.weights.reading import Fill, fill_now


class StreamedPiece:
    """A piece in host memory, and how it lies in every slot."""

    def __init__(self, piece: Piece, host: Tensor, slots: Sequence[Tensor], fill: Fill = fill_now) -> None:
        self.piece = piece
        self.host = host
        self.nbytes = piece.nbytes
        piece.pack(host, fill)
        self._at_home = piece.views(host)
        self._in_slots = [piece.views(slot) for slot in slots]

    def enter(self, slot: int) -> None:
        self.piece.point_to(self._in_slots[slot])

    def leave(self) -> None:
        self.piece.point_to(self._at_home)


@dataclass(frozen=True)
class _Arrival:
    """A piece on its way into a slot, or there."""

    piece: StreamedPiece
    slot: int
    copied: Mark


class Streamer:
    """Brings pieces to the device in the order of their use.

    Args:
        slots: how many pieces are on the device at a time, the one at work among them.
        slot_bytes: size of the largest piece.
    """

    def __init__(self, copies: Copies, slots: int, slot_bytes: int) -> None:
        self._copies = copies
        self._slots = [copies.device_buffer(slot_bytes) for _ in range(slots)]
        # The allocator hands out memory that work given before may still use: that is what the first mark is for.
        self._free: deque[tuple[int, Mark]] = deque((slot, copies.mark()) for slot in range(slots))
        self._ahead: deque[_Arrival] = deque()
        self._at_work: _Arrival | None = None
        self._last_copy: Mark | None = None
        self._stage: _Order = _Order((), ())
        self._upcoming: Iterator[StreamedPiece] = iter(())
        self._hooks: list[Any] = []

    def take(self, piece: Piece, fill: Fill = fill_now) -> StreamedPiece:
        """Move a piece to the host's memory and bring it to the device whenever its module is called."""
        streamed = StreamedPiece(piece, self._copies.host_buffer(piece.nbytes), self._slots, fill)

        def enter(module: nn.Module, arguments: Any) -> None:
            self._enter(streamed)

        def leave(module: nn.Module, arguments: Any, result: Any) -> None:
            self._leave(streamed)

        self._hooks += [piece.module.register_forward_pre_hook(enter), piece.module.register_forward_hook(leave)]
        return streamed

    @contextmanager
    def stage(self, once: Sequence[StreamedPiece], loop: Sequence[StreamedPiece]) -> Iterator[None]:
        """Within the context pieces are brought in this order, ahead of their use.

        The first one is in its place from the start, so that a network that is asked for its device before it is called
        says the right one.
        """
        self._stage = _Order(once, loop)
        self._upcoming = iter(self._stage)
        try:
            self._fetch_ahead()
            if self._ahead:
                self._enter(self._ahead[0].piece)
            yield
        finally:
            self._clear()
            self._upcoming = iter(())

    def close(self) -> None:
        """Call modules as before, and let go of the slots; pieces stay in the host's memory."""
        for hook in self._hooks:
            hook.remove()
        self._clear()
        if self._last_copy is not None:
            self._copies.wait(self._last_copy)  # the slots' memory may be used for something else from now on
        self._slots.clear()

    def _enter(self, piece: StreamedPiece) -> None:
        if self._at_work is not None and self._at_work.piece is piece:
            return
        if not self._ahead or self._ahead[0].piece is not piece:
            self._begin_at(piece)
        arrival = self._ahead.popleft()
        self._copies.wait(arrival.copied)
        piece.enter(arrival.slot)
        self._at_work = arrival

    def _leave(self, piece: StreamedPiece) -> None:
        if self._at_work is None or self._at_work.piece is not piece:
            return
        piece.leave()
        self._free.append((self._at_work.slot, self._copies.mark()))
        self._at_work = None
        self._fetch_ahead()

    def _fetch_ahead(self) -> None:
        """Copy into every free slot what comes next."""
        while self._free and (piece := next(self._upcoming, None)) is not None:
            slot, done = self._free.popleft()
            copied = self._copies.copy(self._slots[slot][: piece.nbytes], piece.host, after=done)
            self._ahead.append(_Arrival(piece, slot, copied))
            self._last_copy = copied

    def _begin_at(self, piece: StreamedPiece) -> None:
        """Go on from a piece that is called out of order."""
        self._clear()
        self._upcoming = self._stage.starting_at(piece)
        self._fetch_ahead()

    def _clear(self) -> None:
        """Forget what was fetched. Copies under way end in their slots, before any copy that comes later."""
        if self._at_work is not None:
            self._at_work.piece.leave()
            self._ahead.appendleft(self._at_work)
            self._at_work = None
        while self._ahead:
            self._free.append((self._ahead.popleft().slot, self._copies.mark()))


@dataclass(frozen=True)
class _Order:
    """The order of use in a stage."""

    once: Sequence[StreamedPiece]
    loop: Sequence[StreamedPiece]

    def __iter__(self) -> Iterator[StreamedPiece]:
        return chain(self.once, cycle(self.loop))

    def starting_at(self, piece: StreamedPiece) -> Iterator[StreamedPiece]:
        """The order from the first use of a piece on; a piece of another stage comes alone."""
        pieces = [*self.once, *self.loop]
        if piece not in pieces:
            return iter((piece,))
        return islice(iter(self), pieces.index(piece), None)
