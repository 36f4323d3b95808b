"""Distance of compiled and of fp8 edits from plain ones, on a CPU.

    python -m benchmarks.accuracy

The bundled tiny model and two random ones, in bfloat16: the difference of the latents before they are decoded, and
that of the 8-bit images. The compiler's kernels are those of a CPU, and fp8 multiplies the same values in float32: the
figures are their cost in accuracy and say nothing of speed. Takes some minutes, as the compiler does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import kontext
from benchmarks.images import pixel_difference, psnr_db, relative_difference, rounded
from benchmarks.random_model import random_autoencoder_config, random_transformer_config, write_random_model
from benchmarks.report import parser, publish
from kontext.config import ModelConfig
from kontext.images import tensor_to_image
from kontext.request import EditRequest

IMAGE = Path(__file__).parents[1] / "tests" / "golden" / "e2e" / "landscape_default" / "input_0.png"
STEPS, SEED = 4, 5
WAYS: dict[str, dict[str, Any]] = {"compiled": {"compile": True}, "fp8": {"precision": "fp8"}}


def measure() -> dict[str, Any]:
    figures: dict[str, Any] = {"steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(Path(folder)).items():
            exact = edit(model)
            for way, options in WAYS.items():
                figures[f"{name}, {way}"] = differences(edit(model, **options), exact)
                sys.stderr.write(f"{name}, {way}: {figures[f'{name}, {way}']}\n")
    return figures


def models(folder: Path) -> dict[str, Path | None]:
    """The bundled model, and two folders with random weights of hidden size 256 to 384."""
    made: dict[str, Path | None] = {"tiny": None}
    for seed in (1, 2):
        config = ModelConfig(
            transformer=random_transformer_config(seed),
            autoencoder=random_autoencoder_config(seed),
            max_sequence_length=64,
            preferred_resolutions=((96, 64),),
        )
        made[f"random {seed}"] = write_random_model(folder / str(seed), config, seed)
    return made


@torch.inference_mode()
def edit(folder: Path | None, **options: Any) -> tuple[Tensor, Image.Image]:
    """(latents, image) of an edit."""
    torch._dynamo.reset()  # graphs of another model
    model = kontext.load(folder, device="cpu", **options)
    with Image.open(IMAGE) as image:
        images = (kontext.to_rgb(image),)
    request = EditRequest(images, "Remove the logo", num_inference_steps=STEPS, seed=SEED)
    latents = model.sample(model.encode(request), request)
    return latents, tensor_to_image(model.decode(latents))


def differences(ours: tuple[Tensor, Image.Image], exact: tuple[Tensor, Image.Image]) -> dict[str, float]:
    """Of the latents relative in L2; of the images in steps of 255, and as PSNR in dB."""
    difference = pixel_difference(ours[1], exact[1])
    return {
        "latents_relative_difference": rounded(relative_difference(ours[0], exact[0])),
        "mean_pixel_difference": rounded(difference["mean"]),
        "largest_pixel_difference": difference["largest"],
        "psnr_db": psnr_db(ours[1], exact[1]),
    }


if __name__ == "__main__":
    parser(__doc__).parse_args()
    publish("accuracy", measure())
