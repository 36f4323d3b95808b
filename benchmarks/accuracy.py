"""How far edits of compiled and of fp8 models are from those of the plain model, on a CPU.

    python -m benchmarks.accuracy

The bundled tiny model and two random ones, in bfloat16: what the latents differ by before they are decoded, and what
the 8-bit pictures differ by. The compiler's kernels are those of a CPU, and fp8 multiplies the same values in float32:
this is what they cost in accuracy and says nothing of speed. Takes some minutes, as the compiler does.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kontext
from benchmarks.gpu.checks import relative_difference, rounded
from benchmarks.random_model import random_autoencoder_config, random_transformer_config, write_random_model
from benchmarks.report import write_result
from kontext.config import ModelConfig
from kontext.images import tensor_to_image
from kontext.request import EditRequest

PICTURE = Path(__file__).parents[1] / "tests" / "golden" / "e2e" / "landscape_default" / "input_0.png"
STEPS, SEED = 4, 5
WAYS: dict[str, dict[str, Any]] = {"compiled": {"compile": True}, "fp8": {"precision": "fp8"}}


def main() -> None:
    figures: dict[str, Any] = {"steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(Path(folder)).items():
            exact = edit(model)
            for way, options in WAYS.items():
                figures[f"{name}, {way}"] = differences(edit(model, **options), exact)
                sys.stderr.write(f"{name}, {way}: {figures[f'{name}, {way}']}\n")
    path = write_result("accuracy", figures)
    sys.stdout.write(f"{path.read_text()}{path}\n")


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
def edit(folder: Path | None, **options: Any) -> tuple[Tensor, np.ndarray]:
    """(latents, picture) of an edit."""
    torch._dynamo.reset()  # graphs of another model
    model = kontext.load(folder, device="cpu", **options)
    request = EditRequest(
        (kontext.to_rgb(Image.open(PICTURE)),), "Remove the logo", num_inference_steps=STEPS, seed=SEED
    )
    latents = model.sample(model.encode(request), request)
    return latents, np.asarray(tensor_to_image(model.decode(latents))).astype(int)


def differences(ours: tuple[Tensor, np.ndarray], exact: tuple[Tensor, np.ndarray]) -> dict[str, float]:
    """Of the latents relative in L2; of the pictures in steps of 255, and as PSNR in dB."""
    pixels = np.abs(ours[1] - exact[1])
    return {
        "latents_relative_difference": rounded(relative_difference(ours[0], exact[0])),
        "mean_pixel_difference": rounded(float(pixels.mean())),
        "largest_pixel_difference": int(pixels.max()),
        "psnr_db": round(20 * math.log10(255 / max(float(np.sqrt((pixels**2).mean())), 1e-9)), 1),
    }


if __name__ == "__main__":
    main()
