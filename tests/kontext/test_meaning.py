"""The bundled model does what the instruction says: the named thing changes as asked, the rest stays."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kontext
from kontext.weights.layout import model_folder
from training.data.scenes import COLOURS
from training.judging.evaluation import evaluate
from training.judging.judge import Wanted, cielab, faults, pixels

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ROWS = {row["image"]: row for row in csv.DictReader((EXAMPLES / "data.csv").read_text().splitlines())}
STEPS = 8  # the fewest of the examples' choice; the evaluation's verdicts are those of its 20 steps


@pytest.mark.parametrize("name", ROWS)
def test_the_edit_does_what_the_prompt_says_and_keeps_the_rest(name: str) -> None:
    row = ROWS[name]

    picture = bundled_model().edit(
        Image.open(EXAMPLES / name),
        row["prompt"],
        num_inference_steps=STEPS,
        seed=int(row["seed"]),
        width=int(row["width"]),
        height=int(row["height"]),
    )

    assert list(faults(wanted(name), pixels(picture))) == []


@pytest.mark.parametrize("name", ROWS)
def test_the_judge_accepts_the_expected_picture(name: str) -> None:
    assert list(faults(wanted(name), wanted(name).target)) == []


@pytest.mark.parametrize("name", ROWS)
def test_the_judge_refuses_a_picture_without_the_edit(name: str) -> None:
    assert list(faults(wanted(name), wanted(name).source)) != []


@pytest.mark.parametrize("name", ROWS)
def test_the_judge_refuses_an_edit_of_everything(name: str) -> None:
    flooded = np.zeros_like(wanted(name).source) + COLOURS["pink"]

    assert list(faults(wanted(name), flooded)) != []


@pytest.mark.slow
def test_unseen_edits_succeed_about_as_often_as_the_evaluation_says() -> None:
    edits, count = ("recolour", "background", "remove", "border"), 6
    report = json.loads((model_folder(None) / "eval.json").read_text())
    verdicts = [case for edit in edits for case in _first(report["cases"], edit, count)]

    again = evaluate(bundled_model(), count, STEPS, edits)

    assert [verdict.prompt for verdict in again] == [case["prompt"] for case in verdicts]
    # Another processor rounds otherwise, which turns an edit that is nearly right.
    expected = sum(not case["faults"] for case in verdicts)
    assert expected >= 12
    assert sum(verdict.succeeded for verdict in again) >= expected - 3


def _first(judged: list[dict[str, Any]], edit: str, count: int) -> list[dict[str, Any]]:
    return [case for case in judged if case["edit"] == edit][:count]


@cache
def bundled_model() -> kontext.Kontext:
    return kontext.load(device="cpu")


@cache
def wanted(name: str) -> Wanted:
    source, target = (pixels(Image.open(folder / name)) for folder in (EXAMPLES, EXAMPLES / "expected"))
    grey, inverted = ("grey" in name), ("invert" in name)
    if grey or inverted:
        return Wanted(source, target, np.zeros(target.shape[:2], int), {}, grey)
    # Without the scene's description, areas are told apart by the known colour they are nearest to.
    return Wanted(source, target, nearest_colours(target), dict(enumerate(COLOURS)))


def nearest_colours(picture: np.ndarray) -> np.ndarray:
    """Of every pixel the number of the nearest known colour."""
    known = np.array([cielab(np.array(colour, float)) for colour in COLOURS.values()])
    seen, places = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    nearest = [int(np.linalg.norm(known - cielab(colour), axis=1).argmin()) for colour in seen]
    return np.array(nearest)[places].reshape(picture.shape[:2])
