"""Samples of a training step: drawn, encoded edits, kept for a few uses each.

On a GPU drawing and encoding are cheap and every edit is used once. On a CPU encoding an image costs as much as
learning from it, so several edits share a scene's image, and each is used a few times with other words and noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor, nn

from kontext.autoencoder import Autoencoder
from kontext.config import PIXELS_PER_TOKEN, Resolution
from kontext.sampling import pack_latents, position_ids, token_grid
from training.data.drawing import draw
from training.data.edits import Edit, edit_of
from training.data.scenes import random_scene
from training.speed import mixed_precision

CHANGED = 24 / 127.5  # a pixel that differs by more than 24 of 255 belongs to the edit
EDITS_OF_A_SCENE = 6
SCENES_AT_ONCE = 4  # drawn and encoded together


Shares = tuple[tuple[str, float], ...]  # kinds of edits, and the relative frequency of each


@dataclass(frozen=True)
class Bucket:
    """Edits that can be in one batch: images of one size, one number of references."""

    sizes: tuple[Resolution, ...]  # one of them at random, every time
    samples: int  # in a batch
    edits: Shares


@dataclass(frozen=True)
class Lesson:
    """One edit, encoded."""

    edit: Edit
    references: Tensor  # (reference tokens, 64)
    target: Tensor  # (target tokens, 64)
    changed: Tensor  # which target tokens the edit changes, bool, (target tokens,)


@dataclass(frozen=True)
class Batch:
    """Lessons of one bucket, stacked, with their prompts."""

    prompts: list[str]
    references: Tensor  # (batch, reference tokens, 64)
    target: Tensor  # (batch, target tokens, 64)
    changed: Tensor  # bool, (batch, target tokens)
    img_ids: Tensor  # (batch, target and reference tokens, 3)


@dataclass
class Pool:
    """Lessons of one size and one set of edits, of which the oldest make place for new ones."""

    encoder: Autoencoder
    size: Resolution
    edits: Shares
    rng: Random
    uses: int  # of every lesson
    capacity: int  # lessons
    lessons: list[Lesson] = field(default_factory=list)
    drawn: int = 0  # samples taken since the last new lessons

    def batch(self, samples: int) -> Batch:
        """Draw a batch, making new lessons first where the old ones have been used often enough."""
        self.drawn += samples
        while len(self.lessons) < samples or self.drawn > 0:
            fresh = new_lessons(self.encoder, self.size, self.edits, self.rng)
            self.lessons = [*self.lessons, *fresh][-max(samples, self.capacity) :]
            self.drawn -= len(fresh) * (self.uses if len(self.lessons) >= self.capacity else 1)  # it grows at first
        chosen = self.rng.sample(self.lessons, samples)
        return Batch(
            prompts=[lesson.edit.prompt(self.rng) for lesson in chosen],
            references=torch.stack([lesson.references for lesson in chosen]),
            target=torch.stack([lesson.target for lesson in chosen]),
            changed=torch.stack([lesson.changed for lesson in chosen]),
            img_ids=token_places(self.size, chosen[0]).expand(samples, -1, -1),
        )


class Pools:
    """A pool for every size and set of edits, made when it is first asked for."""

    def __init__(self, encoder: Autoencoder, seed: int, uses: int, capacity: int) -> None:
        self.encoder, self.uses, self.capacity = encoder, uses, capacity
        self.rng = Random(seed)
        self.pools: dict[tuple[Resolution, Shares], Pool] = {}

    def batch(self, bucket: Bucket) -> Batch:
        key = (self.rng.choice(bucket.sizes), bucket.edits)
        if key not in self.pools:
            self.pools[key] = Pool(self.encoder, *key, self.rng, self.uses, self.capacity)
        return self.pools[key].batch(bucket.samples)


def token_places(size: Resolution, lesson: Lesson) -> Tensor:
    """Positions of target and reference tokens, (1, tokens, 3), as an edit of this size has them."""
    images = range(1 + len(lesson.edit.sources))
    return torch.cat([position_ids(image, *token_grid(*size)) for image in images], dim=1).to(lesson.target.device)


def new_lessons(encoder: Autoencoder, size: Resolution, edits: Shares, rng: Random) -> list[Lesson]:
    """Lessons about a few new scenes."""
    drawn = [edit for _ in range(SCENES_AT_ONCE) for edit in edits_of_one_scene(edits, size[0] / size[1], rng)]
    scenes = list(dict.fromkeys(scene for edit in drawn for scene in (*edit.sources, edit.target)))
    images = draw(scenes, size, next(encoder.parameters()).device)
    tokens = encode(encoder, images)

    def lesson(edit: Edit) -> Lesson:
        sources, target = [scenes.index(scene) for scene in edit.sources], scenes.index(edit.target)
        changed = changed_tokens(images[sources[0]], images[target])
        return Lesson(edit, tokens[sources].flatten(0, 1), tokens[target], changed)

    return [lesson(edit) for edit in drawn]


def edits_of_one_scene(edits: Shares, aspect: float, rng: Random) -> list[Edit]:
    """Up to EDITS_OF_A_SCENE edits; fewer if the scene does not allow some."""
    scene = random_scene(rng, aspect)
    kinds, shares = zip(*edits, strict=True)
    made = (edit_of(scene, kind, rng) for kind in rng.choices(kinds, shares, k=EDITS_OF_A_SCENE))
    return [edit for edit in made if edit]


def changed_tokens(before: Tensor, after: Tensor) -> Tensor:
    """Tokens that cover a differing pixel, bool, (tokens,); images of shape (3, height, width)."""
    difference = (before - after).abs().amax(0, keepdim=True)
    return nn.functional.max_pool2d(difference, PIXELS_PER_TOKEN).flatten() > CHANGED


@torch.no_grad()
def encode(encoder: Autoencoder, images: Tensor) -> Tensor:
    """Packed latents of images of -1 to 1: (batch, tokens, 64), float32."""
    with mixed_precision(images.device):
        latents = encoder.encode(images.contiguous(memory_format=torch.channels_last))
    return pack_latents(latents.float())
