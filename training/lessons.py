"""Batches of a training step: edits as numbers, made by other processes, then drawn and encoded where the flow learns.

On a GPU drawing and encoding are cheap and every edit is used once. On a CPU encoding an image costs as much as
learning from it, so several edits share a scene's image, and each is used a few times with other words and noise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kontext.autoencoder import Autoencoder
from kontext.config import PIXELS_PER_TOKEN, ModelConfig, Resolution
from kontext.sampling import pack_latents, position_ids, token_grid
from kontext.text import TextEncoder
from training.data.drawing import Sketch, paint, sketch
from training.data.edits import Edit, edit_of
from training.data.scenes import Scene, random_scene
from training.plans import Bucket, Phase, Shares
from training.speed import mixed_precision

CHANGED = 24 / 127.5  # a pixel that differs by more than 24 of 255 belongs to the edit
EDITS_OF_A_SCENE = 6
ALIKE_SHARE = 0.7  # of the scenes have shapes of one kind or colour, so that a name needs both words
WAITING_SECONDS = 120.0  # for a batch, before the processes that make them count as dead


class Order(NamedTuple):
    """A batch to be drawn; its tensors are on the CPU."""

    size: Resolution
    scenes: Sketch
    places: Tensor  # which scenes are the target and the references, int64, (samples, 1 + references)
    t5_ids: Tensor  # (phrasings, samples, T5 tokens)
    clip_ids: Tensor  # (phrasings, samples, CLIP tokens)


@dataclass(frozen=True)
class Batch:
    """Edits of one bucket, encoded."""

    references: Tensor  # (batch, reference tokens, 64)
    target: Tensor  # (batch, target tokens, 64)
    changed: Tensor  # which target tokens the edit changes, bool, (batch, target tokens)
    img_ids: Tensor  # (batch, target and reference tokens, 3)
    t5_ids: Tensor  # (phrasings, batch, T5 tokens)
    clip_ids: Tensor  # (phrasings, batch, CLIP tokens)


@dataclass
class Orders(IterableDataset[list[Order]]):
    """An endless stream of orders for one step after the other.

    Args:
        passed: share of the training that is over, one number in memory that all processes share.
    """

    phases: Sequence[Phase]
    encoders: tuple[TextEncoder, TextEncoder]  # T5 and CLIP, for their tokenizers
    config: ModelConfig
    phrasings: int  # of every edit
    seed: int
    passed: Tensor

    def __iter__(self) -> Iterator[list[Order]]:
        worker = get_worker_info()
        rng = Random(f"{self.seed} {worker.id if worker else 0}")
        while True:
            phase = phase_at(self.phases, float(self.passed))
            yield [self.order(bucket, rng) for bucket in phase.buckets if rng.random() < bucket.share]

    def order(self, bucket: Bucket, rng: Random) -> Order:
        size = rng.choice(bucket.sizes)
        edits: list[Edit] = []
        while len(edits) < bucket.samples:
            edits += edits_of_one_scene(bucket.edits, size[0] / size[1], bucket.most_shapes, rng)
        edits = edits[: bucket.samples]
        scenes: dict[Scene, int] = {}
        places = [[scenes.setdefault(scene, len(scenes)) for scene in (e.target, *e.sources)] for e in edits]
        prompts = [[edit.prompt(rng) for edit in edits] for _ in range(self.phrasings)]
        t5, clip = self.encoders
        return Order(
            size,
            sketch(list(scenes)),
            torch.tensor(places),
            torch.stack([t5.token_ids(texts, self.config.max_sequence_length) for texts in prompts]).int(),
            torch.stack([clip.token_ids(texts, self.config.clip_max_length) for texts in prompts]).int(),
        )


class Lessons:
    """The batches of every step: encoded orders, some of them kept to be used again.

    Args:
        uses: of every order.
        kept: orders of so many steps are kept; none need be where each is used once.
    """

    def __init__(self, encoder: Autoencoder, orders: Orders, uses: int, kept: int, workers: int) -> None:
        self.encoder, self.uses = encoder, uses
        self.passed = orders.passed
        self.kept: deque[list[Batch]] = deque(maxlen=kept)
        self.rng = Random(orders.seed)
        device = next(encoder.parameters()).device
        loader = DataLoader(
            orders,
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            timeout=WAITING_SECONDS if workers else 0,
            # Forked, they are there at once; they touch no GPU.
            multiprocessing_context="fork" if workers else None,
        )
        self.orders = iter(loader)

    def batches(self, passed: float) -> list[Batch]:
        """The batches of a step, new or used before."""
        self.passed.fill_(passed)
        if self.kept and len(self.kept) == self.kept.maxlen and self.rng.random() * self.uses > 1:
            return self.rng.choice(self.kept)
        batches = [encoded(self.encoder, order) for order in next(self.orders)]
        self.kept.append(batches)
        return batches


def phase_at(phases: Sequence[Phase], passed: float) -> Phase:
    """The phase of a training of which a share is over."""
    for phase in phases[:-1]:
        if passed < phase.share:
            return phase
        passed -= phase.share
    return phases[-1]


def edits_of_one_scene(edits: Shares, aspect: float, most_shapes: int, rng: Random) -> list[Edit]:
    """Up to EDITS_OF_A_SCENE edits; fewer if the scene does not allow some."""
    scene = random_scene(rng, aspect, most=most_shapes, alike_share=ALIKE_SHARE)
    kinds, shares = zip(*edits, strict=True)
    made = (edit_of(scene, kind, rng) for kind in rng.choices(kinds, shares, k=EDITS_OF_A_SCENE))
    return [edit for edit in made if edit]


def encoded(encoder: Autoencoder, order: Order) -> Batch:
    """Draw and encode an order on the encoder's device, without waiting for it."""
    device = next(encoder.parameters()).device
    places, t5_ids, clip_ids = (
        ids.to(device, non_blocking=True) for ids in (order.places, order.t5_ids, order.clip_ids)
    )
    size = (order.size[0], order.size[1])  # the loader makes a list of it
    images = paint(order.scenes, size, device)
    tokens = encode(encoder, images)
    images_of_an_edit = places.shape[1]
    return Batch(
        references=tokens[places[:, 1:]].flatten(1, 2),
        target=tokens[places[:, 0]],
        changed=changed_tokens(images[places[:, 1]], images[places[:, 0]]),
        img_ids=token_places(size, images_of_an_edit, device).expand(len(places), -1, -1),
        t5_ids=t5_ids,
        clip_ids=clip_ids,
    )


@cache
def token_places(size: Resolution, images: int, device: torch.device) -> Tensor:
    """Positions of target and reference tokens, (1, tokens, 3), as an edit of this size has them."""
    return torch.cat([position_ids(image, *token_grid(*size)) for image in range(images)], dim=1).to(device)


def changed_tokens(before: Tensor, after: Tensor) -> Tensor:
    """Tokens that cover a differing pixel, bool, (batch, tokens); images of shape (batch, 3, height, width)."""
    difference = (before - after).abs().amax(1, keepdim=True)
    return nn.functional.max_pool2d(difference, PIXELS_PER_TOKEN).flatten(1) > CHANGED


@torch.no_grad()
def encode(encoder: Autoencoder, images: Tensor) -> Tensor:
    """Packed latents of images of -1 to 1: (batch, tokens, 64), float32."""
    with mixed_precision(images.device):
        latents = encoder.encode(images.contiguous(memory_format=torch.channels_last))
    return pack_latents(latents.float())
