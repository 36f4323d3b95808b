"""How people ask for an edit: ten or more phrasings each, and every way to name a shape that leaves no doubt."""

from __future__ import annotations

from random import Random

from training.data.scenes import Scene, Shape

PHRASINGS: dict[str, tuple[str, ...]] = {
    "recolour": (
        "make {shape} {colour}",
        "change the color of {shape} to {colour}",
        "change {shape}'s color to {colour}",
        "paint {shape} {colour}",
        "color {shape} {colour}",
        "turn {shape} {colour}",
        "recolor {shape} to {colour}",
        "{shape} should be {colour}",
        "give {shape} a {colour} color",
        "fill {shape} with {colour}",
        "I want {shape} to be {colour}",
        "set the color of {shape} to {colour}",
    ),
    "background": (
        "make the background {colour}",
        "change the background to {colour}",
        "change the background color to {colour}",
        "paint the background {colour}",
        "turn the background {colour}",
        "color the background {colour}",
        "the background should be {colour}",
        "set the background to {colour}",
        "use a {colour} background",
        "give the picture a {colour} background",
        "replace the background with {colour}",
        "I want a {colour} background",
    ),
    "remove": (
        "remove {shape}",
        "delete {shape}",
        "erase {shape}",
        "take {shape} away",
        "take {shape} out of the image",
        "get rid of {shape}",
        "make {shape} disappear",
        "the picture should not have {shape}",
        "leave {shape} out",
        "wipe out {shape}",
        "remove {shape} from the picture",
    ),
    "replace": (
        "replace {shape} with a {kind}",
        "turn {shape} into a {kind}",
        "change {shape} to a {kind}",
        "change {shape} into a {kind}",
        "swap {shape} for a {kind}",
        "make {shape} a {kind}",
        "put a {kind} in place of {shape}",
        "substitute {shape} with a {kind}",
        "{shape} should be a {kind}",
        "draw a {kind} instead of {shape}",
        "transform {shape} into a {kind}",
    ),
    "add": (
        "add a {colour} {kind} {place}",
        "draw a {colour} {kind} {place}",
        "put a {colour} {kind} {place}",
        "place a {colour} {kind} {place}",
        "insert a {colour} {kind} {place}",
        "there should be a {colour} {kind} {place}",
        "I want a {colour} {kind} {place}",
        "paint a {colour} {kind} {place}",
        "{place}, add a {colour} {kind}",
        "{place}, draw a {colour} {kind}",
        "add a {kind} in {colour} {place}",
    ),
    "move": (
        "move {shape} {target}",
        "shift {shape} {target}",
        "put {shape} {place}",
        "place {shape} {place}",
        "bring {shape} {target}",
        "drag {shape} {target}",
        "{shape} should be {place}",
        "slide {shape} {target}",
        "relocate {shape} {target}",
        "I want {shape} {place}",
        "take {shape} {target}",
    ),
    "bigger": (
        "make {shape} bigger",
        "make {shape} larger",
        "enlarge {shape}",
        "grow {shape}",
        "increase the size of {shape}",
        "{shape} should be bigger",
        "{shape} should be larger",
        "scale {shape} up",
        "blow up {shape}",
        "I want {shape} to be larger",
    ),
    "smaller": (
        "make {shape} smaller",
        "shrink {shape}",
        "reduce {shape}",
        "reduce the size of {shape}",
        "decrease the size of {shape}",
        "{shape} should be smaller",
        "scale {shape} down",
        "make {shape} tiny",
        "I want {shape} to be smaller",
        "draw {shape} smaller",
    ),
    "swap": (
        "swap the colors of {shape} and {other}",
        "exchange the colors of {shape} and {other}",
        "switch the colors of {shape} and {other}",
        "let {shape} and {other} swap colors",
        "{shape} and {other} should swap colors",
        "interchange the colors of {shape} and {other}",
        "trade the colors of {shape} and {other}",
        "give {shape} the color of {other} and the other way round",
        "swap colors between {shape} and {other}",
        "make {shape} and {other} trade colors",
    ),
    "grey": (
        "make it black and white",
        "make the picture black and white",
        "convert the image to grayscale",
        "turn it into a black and white picture",
        "remove all color",
        "make it grayscale",
        "make the image gray",
        "desaturate the picture",
        "take away the colors",
        "turn the picture gray",
        "convert it to black and white",
    ),
    "invert": (
        "invert the colors",
        "invert it",
        "invert the image",
        "make a negative",
        "turn it into a negative",
        "negate the colors",
        "show the negative of the picture",
        "reverse all colors",
        "flip the colors to their opposites",
        "make the picture a negative",
        "invert all colors of the image",
    ),
    "border": (
        "add a {colour} border",
        "add a {colour} frame",
        "draw a {colour} border around it",
        "put a {colour} frame around the picture",
        "give the picture a {colour} frame",
        "give it a {colour} border",
        "frame the picture in {colour}",
        "frame it with {colour}",
        "surround the image with a {colour} border",
        "the picture should have a {colour} border",
        "I want a {colour} frame",
    ),
    "transfer": (
        "put {shape} of the second picture into the first",
        "add {shape} from the second image to the first",
        "copy {shape} of the second picture into the first one",
        "take {shape} from the second picture and put it into the first",
        "insert {shape} from image 2 into image 1",
        "bring {shape} of the second image into the first",
        "paste {shape} from the second picture into the first one",
        "draw {shape} of the second picture in the first",
        "place {shape} from the other picture here",
        "the first picture should also have {shape} of the second",
    ),
}

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
