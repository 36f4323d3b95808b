"""The examples that come with the model: unseen edits that it gets right and clean, with the wanted images."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from kontext.pipeline import Kontext
from training.judging.cases import Case, cases
from training.judging.evaluation import edited
from training.judging.judge import CLEAN, faults, pixels, worst_area

EXAMPLES_SEED = 2_000_003  # not that of the evaluation
WANTED = {"recolour": 3, "background": 3, "remove": 2, "grey": 1, "invert": 1, "border": 2}


def write_examples(model: Kontext, folder: Path, steps: Sequence[int], tries: int) -> list[str]:
    """Write inputs, `data.csv` and the wanted images.

    Args:
        steps: numbers of steps; an example is right with each of them, and clean with the last.
        tries: cases of an edit to look among.
    Returns:
        The kinds of edits of which too few were right and clean.
    """
    (folder / "expected").mkdir(parents=True, exist_ok=True)
    found: list[Case] = []
    short = []
    for edit, count in WANTED.items():
        unseen = cases(edit, tries, model.config.preferred_resolutions, seed=EXAMPLES_SEED)
        right = list(islice((case for case in unseen if _succeeds(model, case, steps)), count))
        found += right
        short += [edit] if len(right) < count else []
        sys.stderr.write(f"examples: {edit} {len(right)} of {count}\n")
    _write_table(folder, found)
    return short


def _succeeds(model: Kontext, case: Case, steps: Sequence[int]) -> bool:
    for number in steps:
        image = pixels(edited(model, case, number))
        if any(faults(case.wanted, image)):
            return False
    return worst_area(image, case.wanted.target) <= CLEAN


def _write_table(folder: Path, found: list[Case]) -> None:
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "prompt", "seed", "width", "height"))
        for i, case in enumerate(found, start=1):
            name = f"{i:02d}_{case.edit.kind}.png"
            case.images[0].save(folder / name, optimize=True)
            case.target.save(folder / "expected" / name, optimize=True)
            table.writerow((name, case.prompt, case.seed, *case.target.size))
