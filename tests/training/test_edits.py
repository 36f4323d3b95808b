"""An edit's sentence leaves no doubt, and its wanted scene is what the sentence says."""

from __future__ import annotations

import re
from random import Random

import pytest

from training.data.edits import BIGGER, CHANGES, EDITS, SMALLER, Edit, draw_edit
from training.data.scenes import PLACES, Background, Scene, Shape
from training.data.sentences import PHRASINGS, mention, sentence

TWO_STARS = Scene(
    Background("white"),
    (
        Shape("star", "red", 0.3, 0.3, 0.1),
        Shape("star", "blue", 0.7, 0.3, 0.1),
        Shape("ring", "red", 0.3, 0.7, 0.1),
    ),
)


def drawn(kind: str, count: int = 40) -> list[Edit]:
    rng = Random(kind)
    return [draw_edit(kind, rng) for _ in range(count)]


def difference(edit: Edit) -> tuple[set[Shape], set[Shape]]:
    """(shapes that are gone, shapes that are new)."""
    before, after = set(edit.sources[0].shapes), set(edit.target.shapes)
    return before - after, after - before


def fields_that_differ(one: Shape, other: Shape) -> set[str]:
    return {name for name, value in vars(one).items() if vars(other)[name] != value}


@pytest.mark.parametrize("edit", PHRASINGS)
def test_every_edit_has_ten_phrasings_or_more(edit: str) -> None:
    assert len(set(PHRASINGS[edit])) >= 10


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_changes_a_sound_scene_into_another(kind: str) -> None:
    for edit in drawn(kind):
        assert edit.target != edit.sources[0]
        assert edit.target.is_sound()
        assert all(scene.is_sound() for scene in edit.sources)
        assert len(edit.sources) == (2 if kind == "transfer" else 1)


@pytest.mark.parametrize("kind", EDITS)
def test_sentences_are_whole_and_differ(kind: str) -> None:
    (edit,), rng = drawn(kind, 1), Random(0)
    sentences = {edit.prompt(rng) for _ in range(60)}

    assert len(sentences) > 15
    assert not any(re.search(r"[{}]|\ba orange|  ", text) for text in sentences)


@pytest.mark.parametrize(
    ("kind", "gone", "new", "fields"),
    [
        ("recolour", 1, 1, {"colour"}),
        ("remove", 1, 0, set()),
        ("replace", 1, 1, {"kind"}),
        ("add", 0, 1, set()),
        ("resize", 1, 1, {"radius"}),
        ("swap", 2, 2, {"colour"}),
        ("background", 0, 0, set()),
        ("border", 0, 0, set()),
        ("grey", 0, 0, set()),
        ("invert", 0, 0, set()),
        ("transfer", 0, 1, set()),
    ],
)
def test_an_edit_changes_what_it_is_about_and_nothing_else(kind: str, gone: int, new: int, fields: set[str]) -> None:
    for edit in drawn(kind):
        old_shapes, new_shapes = difference(edit)

        assert (len(old_shapes), len(new_shapes)) == (gone, new)
        if gone == new == 1:
            assert fields_that_differ(*old_shapes, *new_shapes) == fields
        if gone == new == 2:
            assert sorted(shape.colour for shape in old_shapes) == sorted(shape.colour for shape in new_shapes)


def test_a_moved_shape_keeps_all_but_its_place() -> None:
    for edit in drawn("move"):
        (before,), (after,) = difference(edit)

        assert fields_that_differ(before, after) <= {"x", "y"}
        assert (after.x, after.y) in PLACES.values()


def test_bigger_and_smaller_say_which_it_is() -> None:
    for edit in drawn("resize"):
        (before,), (after,) = difference(edit)
        prompt = edit.prompt(Random(0)).lower()

        grows = bool(re.search("bigger|larger|enlarge|grow|increase|scale .* up|blow", prompt))
        assert after.radius / before.radius == pytest.approx(BIGGER if grows else SMALLER)


def test_two_edits_ask_for_two_changes() -> None:
    for edit in drawn("two edits"):
        old_shapes, new_shapes = difference(edit)
        places = {(shape.x, shape.y) for shape in old_shapes | new_shapes}
        scenery = [vars(edit.sources[0])[name] != vars(edit.target)[name] for name in ("background", "border")]

        assert len(places) + sum(scenery) >= 2
        assert re.search(" and |then|;", edit.prompt(Random(0)))


def test_a_shape_is_named_by_what_no_other_has() -> None:
    red_star, blue_star, ring = TWO_STARS.shapes
    rng = Random(0)

    said = [{mention(TWO_STARS, shape, rng) for _ in range(200)} for shape in (red_star, blue_star, ring)]

    assert said[0] == {"the red star"}
    assert said[1] == {"the blue star", *(f"the blue {word}" for word in ("shape", "one", "figure", "object"))}
    assert said[2] == {"the red ring", "the ring"}


def test_a_shape_alone_is_the_shape() -> None:
    alone = Scene(Background("white"), TWO_STARS.shapes[:1])

    assert "the shape" in {mention(alone, alone.shapes[0], Random(seed)) for seed in range(50)}


def test_people_type_sentences_in_several_ways() -> None:
    rng = Random(0)

    typed = {sentence("remove the ring", rng) for _ in range(200)}

    assert {"remove the ring", "Remove the ring", "Remove the ring.", "please remove the ring"} <= typed


def test_an_impossible_edit_is_none() -> None:
    lonely = Scene(Background("white"), TWO_STARS.shapes[:1])

    assert CHANGES["swap"](lonely, Random(0)) is None
