"""Evaluation of a model: its images of unseen cases, judged strictly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image, ImageDraw

from kontext.config import ModelConfig
from kontext.images import image_to_tensor, tensor_to_image
from kontext.pipeline import Kontext
from training.data.edits import EDITS
from training.judging.cases import Case, cases
from training.judging.judge import faults, pixels, psnr
from training.progress import Progress


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

    @property
    def succeeded(self) -> bool:
        return not self.faults


def evaluate(
    model: Kontext, count: int, steps: int, edits: Sequence[str] = EDITS, sheets: Path | None = None
) -> list[Verdict]:
    """Judge `count` cases of every edit.

    Args:
        sheets: a folder for contact sheets, one per edit: input, result, wanted image.
    """
    # Processes that share the edits have a file each, named after the first of theirs.
    file = sheets / f"{_file_name(edits[0])}.jsonl" if sheets else None
    progress = Progress("evaluation", count * len(edits), file)
    verdicts: list[Verdict] = []
    for edit in edits:
        judged = []
        for case in cases(edit, count, model.config.preferred_resolutions):
            image = edited(model, case, steps)
            judged.append((case, image, _verdict(model, case, image)))
            verdicts.append(judged[-1][2])
            progress.report(len(verdicts), 1, success=float(verdicts[-1].succeeded))
        if sheets:
            sheet(judged).save(sheets / f"{_file_name(edit)}.png")
    return verdicts


def _file_name(edit: str) -> str:
    return edit.replace(" ", "_")


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


def sheet(judged: Sequence[tuple[Case, Image.Image, Verdict]], columns: int = 3) -> Image.Image:
    """Input, result and wanted image of every case beside each other, with its sentence and verdict."""
    width, height = 4 * 152, 152 + 28
    rows = -(-len(judged) // columns)
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(whole)
    for i, (case, image, verdict) in enumerate(judged):
        x, y = i % columns * width, i // columns * height
        pen.text((x, y), case.prompt, fill="black")
        pen.text((x, y + 12), "; ".join(verdict.faults) or "right", fill="red" if verdict.faults else "green")
        for j, shown in enumerate((*case.images, image, case.target)):
            small = shown.copy()
            small.thumbnail((148, 148))
            whole.paste(small, (x + j * 152, y + 26))
    return whole
