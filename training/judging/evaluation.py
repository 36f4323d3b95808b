"""Evaluation of a model: its images of unseen cases, judged strictly."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw

import kontext
from kontext.config import ModelConfig
from kontext.images import image_to_tensor, tensor_to_image
from kontext.pipeline import Kontext
from kontext.weights.layout import find_model
from training.data.edits import EDITS
from training.judging.cases import Case, cases
from training.judging.judge import CLEAN, faults, pixels, psnr, worst_area

SHOWN = 6  # cases of an edit on the contact sheet


@dataclass(frozen=True)
class Verdict:
    """One judged image."""

    edit: str
    prompt: str
    width: int
    height: int
    shapes: int  # in the first image
    seed: int
    faults: tuple[str, ...]
    psnr_db: float
    ceiling_psnr_db: float  # of the wanted image after the autoencoder alone
    worst_area: float  # see `judge.worst_area`

    @property
    def succeeded(self) -> bool:
        return not self.faults

    @property
    def is_clean(self) -> bool:
        return self.succeeded and self.worst_area <= CLEAN


class Row(NamedTuple):
    """One case of a contact sheet."""

    prompt: str
    images: tuple[Image.Image, ...]  # inputs, result, wanted image
    faults: tuple[str, ...]


Rows = list[Row]


@dataclass(frozen=True)
class Task:
    """Cases of one edit, to be judged after so many steps."""

    edit: str
    cases: int
    steps: int


Judged = list[tuple[Case, Image.Image, Verdict]]


def judge_cases(model: Kontext, task: Task) -> Judged:
    """Images of a task's cases, with their verdicts."""
    judged = []
    for case in cases(task.edit, task.cases, model.config.preferred_resolutions):
        image = edited(model, case, task.steps)
        judged.append((case, image, _verdict(model, case, image)))
    return judged


def evaluate(model: Kontext, count: int, steps: int, edits: Sequence[str] = EDITS) -> list[Verdict]:
    """Judge `count` cases of every edit."""
    return [verdict for edit in edits for _, _, verdict in judge_cases(model, Task(edit, count, steps))]


def evaluate_together(model: Path, device: str, tasks: Sequence[Task], processes: int, sheet_file: Path) -> None:
    """Judge in several processes; writes `eval.json` after every edit that is done, and a contact sheet at the end."""
    shown: dict[str, Rows] = {}
    verdicts: list[Verdict] = []
    started = time.monotonic()
    for task, (rows, judged) in _results(model, device, tasks, processes):
        shown[task.edit] = rows
        verdicts = sorted([*verdicts, *judged], key=lambda verdict: EDITS.index(verdict.edit))
        write_report(model / "eval.json", verdicts, task.steps, find_model(model).config)
        right = sum(verdict.succeeded for verdict in judged)
        sys.stderr.write(f"evaluation: {task.edit} {right}/{len(judged)} ({time.monotonic() - started:.0f} s)\n")
    sheet([row for edit in EDITS for row in shown.get(edit, ())]).save(sheet_file)
    for name, figures in summary(verdicts).items():
        sys.stderr.write(f"{name:12s} {'  '.join(f'{key} {value}' for key, value in figures.items())}\n")


def _results(
    model: Path, device: str, tasks: Sequence[Task], processes: int
) -> Iterator[tuple[Task, tuple[Rows, list[Verdict]]]]:
    """Results of the tasks, in the order in which they are done."""
    if processes == 1:
        _load(model, device)
        yield from ((task, _run(task)) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork could not use the GPU
    with ProcessPoolExecutor(processes, context, _load, (model, device)) as pool:
        running = {pool.submit(_run, task): task for task in tasks}
        for done in as_completed(running):
            yield running[done], done.result()


_LOADED: list[Kontext] = []  # of this process


def _load(model: Path, device: str) -> None:
    torch.set_num_threads(1)
    _LOADED[:] = [loaded(model, device)]


def loaded(model: Path, device: str) -> Kontext:
    """A tiny model, without what pays for large ones only: the compiler, and a measurement of attention kernels."""
    return kontext.load(model, device=device, compile=False, attention="auto" if device == "cpu" else "flash")


def _run(task: Task) -> tuple[Rows, list[Verdict]]:
    judged = judge_cases(_LOADED[0], task)
    rows = [Row(case.prompt, (*case.images, image, case.target), v.faults) for case, image, v in judged[:SHOWN]]
    return rows, [verdict for *_, verdict in judged]


def edited(model: Kontext, case: Case, steps: int) -> Image.Image:
    """The model's image of a case."""
    width, height = case.target.size
    return model.edit(case.images, case.prompt, num_inference_steps=steps, seed=case.seed, width=width, height=height)


def _verdict(model: Kontext, case: Case, image: Image.Image) -> Verdict:
    return Verdict(
        edit=case.edit.kind,
        prompt=case.prompt,
        width=image.width,
        height=image.height,
        shapes=len(case.edit.sources[0].shapes),
        seed=case.seed,
        faults=tuple(faults(case.wanted, pixels(image))),
        psnr_db=round(psnr(pixels(image), case.wanted.target), 2),
        ceiling_psnr_db=round(psnr(pixels(reconstruction(model, case.target)), case.wanted.target), 2),
        worst_area=round(worst_area(pixels(image), case.wanted.target), 1),
    )


def reconstruction(model: Kontext, image: Image.Image) -> Image.Image:
    """An image after encoding and decoding."""
    autoencoder = model.networks.autoencoder
    tensor = image_to_tensor(image, image.size).to(model.device)
    return tensor_to_image(model.decode(autoencoder.encode(tensor)))


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Success and image quality, by edit and over all."""
    groups = {edit: [verdict for verdict in verdicts if verdict.edit == edit] for edit in EDITS} | {"all": [*verdicts]}
    return {edit: _figures(group) for edit, group in groups.items() if group}


def _figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    means = {
        "success": fmean(verdict.succeeded for verdict in verdicts),
        "clean": fmean(verdict.is_clean for verdict in verdicts),
        "psnr_db": fmean(verdict.psnr_db for verdict in verdicts),
        "ceiling_psnr_db": fmean(verdict.ceiling_psnr_db for verdict in verdicts),
    }
    return {"cases": len(verdicts)} | {name: round(mean, 4) for name, mean in means.items()}


def write_report(path: Path, verdicts: Sequence[Verdict], steps: int, config: ModelConfig, **about: Any) -> None:
    """Write `eval.json`: the summary and every case."""
    report = {
        "model": config.name,
        **about,
        "steps": steps,
        "guidance": 2.5,
        "sizes": [f"{width}x{height}" for width, height in config.preferred_resolutions],
        "results": summary(verdicts),
        "cases": [asdict(verdict) for verdict in verdicts],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def sheet(rows: Sequence[Row], columns: int = SHOWN) -> Image.Image:
    """Input, result and wanted image of every case beside each other, with its sentence and verdict."""
    width, height = 4 * 132, 132 + 28
    whole = Image.new("RGB", (columns * width, -(-len(rows) // columns) * height), "white")
    pen = ImageDraw.Draw(whole)
    for i, row in enumerate(rows):
        x, y = i % columns * width, i // columns * height
        pen.text((x, y), row.prompt, fill="black")
        pen.text((x, y + 12), "; ".join(row.faults) or "right", fill="red" if row.faults else "green")
        for j, image in enumerate(row.images):
            small = image.copy()
            small.thumbnail((128, 128))
            whole.paste(small, (x + j * 132, y + 26))
    return whole
