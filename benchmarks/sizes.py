"""Ways to reach an asked size, tried on the bundled model: mean error of 255 against the scaled expected image.

    python -m benchmarks.sizes [--images FOLDER]

Writes results/sizes.json, the figures of docs/numerics.md. Every edit is of bundled examples, whose expected image is
known. `--images` keeps the edited images, to be looked at.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

import kontext
from benchmarks.report import publish
from kontext import EditRequest, Kontext
from kontext.config import Resolution
from kontext.images import tensor_to_image
from kontext.sizes import Placement, SizePlan

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("09_grey.png", "10_invert.png")  # 256x256; the whole image changes, so every pixel is judged
STRIP = ("02_recolour.png", "05_background.png", "09_grey.png", "10_invert.png", "12_border.png", "02_recolour.png")
PROMPTS = {row["image"]: row["prompt"] for row in csv.DictReader((EXAMPLES / "data.csv").read_text().splitlines())}
STEPS, SEED = 8, 7
USUAL, USUAL_WIDE = (256, 256), (288, 224)
SIDES = (48, 64, 96, 100, 128, 192, 256, 384)
PADDINGS: dict[str, dict[str, Any]] = {
    "edge": {"mode": "edge"},
    "symmetric": {"mode": "symmetric"},
    "white": {"mode": "constant", "constant_values": 255},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="keep the images in this folder")
    folder = parser.parse_args().images
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(kontext.load(device="cpu", dtype=torch.float32), folder)
    figures = {"1536x256 inverted": dict(trial.strip_errors())}
    figures |= {f"{side}x{side}": {way: trial.errors(way, side) for way in WAYS} for side in SIDES}
    publish("sizes", {"mean_error_of_255": figures})


Way = Callable[[Resolution], SizePlan]


def _sampled(size: Resolution, reference: Resolution, output: Resolution) -> SizePlan:
    return SizePlan(size, (Placement(reference, reference),), shown=size, output=output)


def _grid(size: Resolution) -> Resolution:
    return -(-size[0] // 16) * 16, -(-size[1] // 16) * 16


WAYS: dict[str, Way] = {
    "same grid, resampled": lambda size: _sampled(_grid(size), _grid(size), size),
    "same grid, cropped": lambda size: SizePlan(_grid(size), (Placement(_grid(size), _grid(size)),), size, size),
    "256x256, resampled": lambda size: _sampled(USUAL, USUAL, size),
    "reference at 256x256": lambda size: SizePlan(size, (Placement(USUAL, USUAL),), size, size),
}


class Trial:
    """Edits at sizes of our own choice, and how far they are from what is expected."""

    def __init__(self, model: Kontext, folder: Path | None) -> None:
        self.model = model
        self.folder = folder
        self.decoded: dict[tuple[bytes, str, Resolution, tuple[Placement, ...]], Image.Image] = {}

    def errors(self, way: str, side: int) -> float:
        """Mean error of the examples at a size."""
        return round(mean(self._error(name, way, side) for name in NAMES), 1)

    def strip_errors(self) -> Iterator[tuple[str, float]]:
        """Ways to invert a picture of 6:1, whose shape is to be the same in the end."""
        strip = Image.new("RGB", (1536, 256))
        for place, name in enumerate(STRIP):
            strip.paste(Image.open(EXAMPLES / name), (256 * place, 0))
        prompt, expected = PROMPTS["10_invert.png"], ImageOps.invert(strip)

        def judged(way: str, image: Image.Image, plan: SizePlan) -> tuple[str, float]:
            return way, round(self._judge(self.edit(image, prompt, plan), expected, f"strip-{way}"), 1)

        yield judged("its own grid, 624x112", strip, _sampled((624, 112), (624, 112), (624, 104)))
        yield judged("squeezed to 288x224 and stretched", strip, _sampled((288, 224), (288, 224), (624, 104)))
        for padding, grid in (
            ("edge", (432, 144)),
            ("symmetric", (432, 144)),
            ("white", (432, 144)),
            ("edge", USUAL_WIDE),
        ):
            part = grid[0], grid[0] // 6
            image = _padded(strip.resize(part, Image.Resampling.LANCZOS), grid[1], PADDINGS[padding])
            plan = SizePlan(grid, (Placement(grid, grid),), shown=part, output=part)
            yield judged(f"padded to {grid[0]}x{grid[1]}, {padding}", image, plan)

    def _error(self, name: str, way: str, side: int) -> float:
        expected = Image.open(EXAMPLES / "expected" / name).convert("RGB")
        edited = self.edit(Image.open(EXAMPLES / name).convert("RGB"), PROMPTS[name], WAYS[way]((side, side)))
        return self._judge(edited, expected, f"{Path(name).stem}-{side}-{way}")

    @torch.inference_mode()
    def edit(self, image: Image.Image, prompt: str, plan: SizePlan) -> Image.Image:
        request = EditRequest((image,), prompt, num_inference_steps=STEPS, seed=SEED)
        key = image.tobytes(), prompt, plan.sampled, plan.references
        if key not in self.decoded:  # several ways sample the same and differ only in what follows
            latents = self.model.sample(self.model.encode(request, plan), request)
            self.decoded[key] = tensor_to_image(self.model.decode(latents))
        return plan.finish(self.decoded[key], is_exact=True)

    def _judge(self, edited: Image.Image, expected: Image.Image, name: str) -> float:
        if self.folder:
            edited.save(self.folder / f"{name}.png")
        wanted = expected.resize(edited.size, Image.Resampling.LANCZOS)
        return float(np.abs(np.asarray(edited, float) - np.asarray(wanted, float)).mean())


def _padded(image: Image.Image, height: int, how: dict[str, Any]) -> Image.Image:
    spare = height - image.height
    rows = (spare // 2, spare - spare // 2)
    return Image.fromarray(np.pad(np.asarray(image), (rows, (0, 0), (0, 0)), **how))


if __name__ == "__main__":
    main()
