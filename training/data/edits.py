"""Edits of scenes: the request in words, and the scene to be drawn afterwards.

A scene's description is changed and drawn again, so the wanted image is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from training.data.scenes import COLOURS, KINDS, LARGEST, PLACES, SMALLEST, Finish, Scene, Shape, random_scene
from training.data.sentences import join, mention, phrase, sentence, where, where_to

ADDED_RADIUS = 0.15
BIGGER, SMALLER = 1.5, 0.6  # factors of the radius
LEAST_MOVE = 0.2
TRIES = 30


@dataclass(frozen=True)
class Change:
    """One change of one scene; several can be made one after the other."""

    apply: Callable[[Scene], Scene]
    clause: Callable[[Random], str]  # another phrasing at every call
    touches: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Edit:
    """An edit to learn or to be judged by."""

    kind: str
    sources: tuple[Scene, ...]
    target: Scene
    clause: Callable[[Random], str]

    def prompt(self, rng: Random) -> str:
        return sentence(self.clause(rng), rng)


def draw_edit(kind: str, rng: Random, aspect: float = 1.0, fewest: int = 1, most: int = 5) -> Edit:
    """An edit of this kind, of a scene that allows it."""
    while True:
        edit = edit_of(random_scene(rng, aspect, fewest, most), kind, rng)
        if edit:
            return edit


def edit_of(scene: Scene, kind: str, rng: Random) -> Edit | None:
    """An edit of this kind of this scene; None where it does not allow one."""
    if kind == "transfer":
        return _transfer(scene, rng)
    for _ in range(TRIES):
        change = _both(scene, rng) if kind == "two edits" else CHANGES[kind](scene, rng)
        target = change.apply(scene) if change else scene
        if change and target != scene and target.is_sound():
            return Edit(kind, (scene,), target, change.clause)
    return None


def _recolour(scene: Scene, rng: Random) -> Change | None:
    shape, colour = rng.choice(scene.shapes), rng.choice(list(COLOURS))
    if colour == shape.colour:
        return None
    return _of_shape("recolour", scene, shape, replace(shape, colour=colour), colour=colour)


def _background(scene: Scene, rng: Random) -> Change | None:
    colour = rng.choice(list(COLOURS))
    background = replace(scene.background, colour=colour)
    return _of_scene("background", lambda before: replace(before, background=background), colour=colour)


def _remove(scene: Scene, rng: Random) -> Change | None:
    return _of_shape("remove", scene, rng.choice(scene.shapes))


def _replace(scene: Scene, rng: Random) -> Change | None:
    shape = rng.choice(scene.shapes)
    kind = rng.choice([kind for kind in KINDS if kind != shape.kind])
    return _of_shape("replace", scene, shape, replace(shape, kind=kind), kind=kind)


def _add(scene: Scene, rng: Random) -> Change | None:
    place, kind, colour = rng.choice(list(PLACES)), rng.choice(KINDS), rng.choice(list(COLOURS))
    shape = Shape(kind, colour, *PLACES[place], ADDED_RADIUS)
    return _of_scene("add", lambda before: before.adding(shape), colour=colour, kind=kind, place=where(place))


def _move(scene: Scene, rng: Random) -> Change | None:
    shape, place = rng.choice(scene.shapes), rng.choice(list(PLACES))
    x, y = PLACES[place]
    moved = replace(shape, x=x, y=y)
    if math.dist((shape.x, shape.y), (x, y)) < LEAST_MOVE:
        return None  # it is there, or nearly
    return _of_shape("move", scene, shape, moved, place=where(place), target=where_to(place))


def _resize(scene: Scene, rng: Random) -> Change | None:
    shape = rng.choice(scene.shapes)
    word, factor = rng.choice((("bigger", BIGGER), ("smaller", SMALLER)))
    radius = shape.radius * factor
    if not SMALLEST <= radius <= LARGEST * BIGGER:
        return None
    return _of_shape(word, scene, shape, replace(shape, radius=radius))


def _swap(scene: Scene, rng: Random) -> Change | None:
    if len(scene.shapes) < 2:
        return None
    one, other = rng.sample(scene.shapes, 2)
    if one.colour == other.colour:
        return None

    def apply(before: Scene) -> Scene:
        swapped = before.replacing(one, replace(one, colour=other.colour))
        return swapped.replacing(other, replace(other, colour=one.colour))

    def clause(rng: Random) -> str:
        return phrase("swap", rng, shape=mention(scene, one, rng), other=mention(scene, other, rng))

    return Change(apply, clause, touches=(one, other))


def _border(scene: Scene, rng: Random) -> Change | None:
    colour = rng.choice([colour for colour in COLOURS if colour != scene.background.colour])
    return _of_scene("border", lambda before: replace(before, border=colour), colour=colour)


def _finish(edit: str, finish: Finish) -> Callable[[Scene, Random], Change | None]:
    return lambda scene, rng: _of_scene(edit, lambda before: replace(before, finish=finish))


def _of_scene(edit: str, apply: Callable[[Scene], Scene], **words: str) -> Change:
    return Change(apply, lambda rng: phrase(edit, rng, **words))


def _of_shape(edit: str, scene: Scene, shape: Shape, *instead: Shape, **words: str) -> Change:
    """A change of one shape, named so that no other is meant."""
    return Change(
        lambda before: before.replacing(shape, *instead),
        lambda rng: phrase(edit, rng, shape=mention(scene, shape, rng), **words),
        touches=(shape,),
    )


CHANGES: dict[str, Callable[[Scene, Random], Change | None]] = {
    "recolour": _recolour,
    "background": _background,
    "remove": _remove,
    "replace": _replace,
    "add": _add,
    "move": _move,
    "resize": _resize,
    "swap": _swap,
    "grey": _finish("grey", "grey"),
    "invert": _finish("invert", "inverted"),
    "border": _border,
}
EDITS = (*CHANGES, "two edits", "transfer")

JOINED = ("recolour", "background", "remove", "replace", "add", "move", "resize", "border")


def _both(scene: Scene, rng: Random) -> Change | None:
    """Two changes of different things, both described by the scene before."""
    one, other = rng.sample(JOINED, 2) if rng.random() < 0.7 else ("recolour", "recolour")
    first, second = CHANGES[one](scene, rng), CHANGES[other](scene, rng)
    if not first or not second or set(first.touches) & set(second.touches):
        return None
    if first.apply(scene) == scene or second.apply(scene) == scene:
        return None
    return Change(
        lambda before: second.apply(first.apply(before)),
        lambda rng: join(first.clause(rng), second.clause(rng), rng),
    )


def _transfer(scene: Scene, rng: Random) -> Edit | None:
    """A shape of a second scene comes to the same place in the first."""
    for _ in range(TRIES):
        other = random_scene(rng, scene.aspect, most=3)
        shape = rng.choice(other.shapes)
        target = scene.adding(shape)
        if target.is_sound() and len(target.shapes) <= 5:
            return Edit("transfer", (scene, other), target, partial(_ask_for_transfer, other, shape))
    return None


def _ask_for_transfer(other: Scene, shape: Shape, rng: Random) -> str:
    return phrase("transfer", rng, shape=mention(other, shape, rng))
