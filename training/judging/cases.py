"""Cases that no training sees: images, sentence, wanted image, and the judge's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random

import numpy as np
from PIL import Image
from torch import Tensor

from kontext.config import Resolution
from training.data.drawing import draw, label_map
from training.data.edits import EDITS, Edit, draw_edit
from training.data.scenes import Scene
from training.judging.judge import Wanted, faults, pixels

EVALUATION_SEED = 1_000_003  # training seeds are small
MOST_SHAPES = 4  # in the aims


@dataclass(frozen=True)
class Case:
    """One edit to be judged."""

    edit: Edit
    prompt: str
    images: tuple[Image.Image, ...]
    target: Image.Image
    wanted: Wanted
    seed: int  # of the starting noise


def cases(
    edit: str, count: int, sizes: Sequence[Resolution], most: int = MOST_SHAPES, seed: int = EVALUATION_SEED
) -> list[Case]:
    """The same cases at every call, of sizes in turn; an unedited image passes none of them."""
    rng = Random(seed + EDITS.index(edit))
    found: list[Case] = []
    for size in cycle(sizes):
        if len(found) == count:
            break
        case = _case(edit, size, most, rng)
        if any(faults(case.wanted, pixels(case.images[0]))):  # a white shape on white is grey already
            found.append(case)
    return found


def _case(kind: str, size: Resolution, most: int, rng: Random) -> Case:
    edit = draw_edit(kind, rng, aspect=size[0] / size[1], most=most)
    *sources, target = (to_image(image) for image in draw([*edit.sources, edit.target], size))
    wanted = Wanted(
        source=pixels(sources[0]),
        target=pixels(target),
        labels=label_map(edit.target, size).numpy(),
        colours=_colours(edit.target),
        grey=edit.target.finish == "grey",
    )
    return Case(edit, edit.prompt(rng), tuple(sources), target, wanted, seed=rng.randrange(2**31))


def _colours(scene: Scene) -> dict[int, str]:
    """The colour of everything that `label_map` tells apart; empty if the finish changes the colours."""
    if scene.finish != "as drawn":
        return {}
    named = {i: shape.colour for i, shape in enumerate(scene.shapes)} | {-1: scene.background.colour}
    return named | ({-2: scene.border} if scene.border else {})


def to_image(image: Tensor) -> Image.Image:
    """A drawn image of -1 to 1, shape (3, height, width), as eight bits."""
    values = ((image.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().clip(0, 255)
    return Image.fromarray(values.astype(np.uint8))
