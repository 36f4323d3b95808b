"""Sentences that ask for an edit, in many phrasings, and every way to name a shape that leaves no doubt."""

from __future__ import annotations

import tomllib
from pathlib import Path
from random import Random

from training.data.scenes import Scene, Shape

# Ten or more of each edit.
PHRASINGS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("phrasings.toml").read_text(encoding="utf-8"))
JOINTS = ("{a} and {b}", "{a}, then {b}", "{a} and then {b}", "{a}, and {b}", "first {a}, then {b}", "{a}; {b}")


def phrase(edit: str, rng: Random, **words: str) -> str:
    """A clause that asks for an edit, without capital and full stop."""
    return rng.choice(PHRASINGS[edit]).format(**words).replace(" a orange ", " an orange ")


def join(first: str, second: str, rng: Random) -> str:
    """Two clauses as one."""
    return rng.choice(JOINTS).format(a=first, b=second)


def sentence(clause: str, rng: Random) -> str:
    """A clause as people type it: some begin with a capital, some say please, some end with a full stop."""
    if rng.random() < 0.15 and not clause.startswith(("I want", "in the", "at the", "on the", "first")):
        clause = f"please {clause}"
    if rng.random() < 0.5:
        clause = clause[0].upper() + clause[1:]
    return clause + ("." if rng.random() < 0.3 else "")


def mention(scene: Scene, shape: Shape, rng: Random) -> str:
    """Name a shape of a scene by what no other shape there has."""
    ways = [f"the {shape.colour} {shape.kind}"]
    others = [other for other in scene.shapes if other != shape]
    if all(other.kind != shape.kind for other in others):
        ways.append(f"the {shape.kind}")
    if all(other.colour != shape.colour for other in others):
        ways.append(f"the {shape.colour} {rng.choice(('shape', 'one', 'figure', 'object'))}")
    if not others:
        ways.append("the shape")
    return rng.choice(ways)


def where(place: str) -> str:
    """A place as the answer to "where?"."""
    if place == "center":
        return "in the center"
    return f"in the {place} corner" if " " in place else f"at the {place}"


def where_to(place: str) -> str:
    """A place as the answer to "where to?"."""
    return f"to the {place}"
