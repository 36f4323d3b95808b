"""Measurement of an autoencoder alone: sharpness, spots and colours of images that it encodes and decodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import torch
from torch import Tensor, nn

from kontext.pipeline import Kontext
from training.autoencoder import psnr
from training.data.drawing import draw
from training.data.scenes import COLOURS, Background, Scene, random_scene
from training.speed import mixed_precision

MEASURED = "autoencoder.json"
SPOT, SPOT_PIXELS = 0.35, 8  # mean error of an area that is a spot, of a range of 2; side of the area
SEED = 1_000_003
AT_ONCE = 8

Figures = dict[str, float]


def measure(model: Kontext, count: int) -> dict[str, Figures]:
    """PSNR, spots and images with spots of `count` images in all, by their kind; colour errors of flat images."""
    rng, size = Random(SEED), model.config.preferred_resolutions[0]
    scenes = [random_scene(rng, size[0] / size[1]) for _ in range(-(-count // 4))]
    kinds = {
        "as drawn": scenes,
        "grey": [replace(scene, finish="grey") for scene in scenes],
        "inverted": [replace(scene, finish="inverted") for scene in scenes],
        "bordered": [replace(scene, border=rng.choice(list(COLOURS))) for scene in scenes],
        "one colour": [Scene(Background(colour), aspect=size[0] / size[1]) for colour in COLOURS],
    }
    return {kind: _figures(model, chosen) for kind, chosen in kinds.items()}


def told(measured: dict[str, Figures]) -> str:
    """The figures, a line for every kind of image."""
    lines = (
        f"{kind:10s} {'  '.join(f'{name} {value}' for name, value in of.items())}" for kind, of in measured.items()
    )
    return "".join(f"autoencoder: {line}\n" for line in lines)


def _figures(model: Kontext, scenes: list[Scene]) -> Figures:
    spots, quality, colour_errors = [], [], []
    for images, decoded in _reconstructions(model, scenes):
        error = (decoded - images).abs()
        areas = nn.functional.avg_pool2d(error.amax(1, keepdim=True), SPOT_PIXELS) > SPOT
        spots += areas.sum((1, 2, 3)).tolist()
        quality += [float(psnr(*pair)) for pair in zip(decoded, images, strict=True)]
        colour_errors += ((decoded - images).mean((2, 3)).abs().amax(1) * 127.5).tolist()
    return {
        "images": len(scenes),
        "psnr_db": round(sum(quality) / len(quality), 2),
        "spots": int(sum(spots)),
        "images_with_spots": sum(number > 0 for number in spots),
        "worst_mean_colour_error_of_255": round(max(colour_errors), 1),
    }


@torch.inference_mode()
def _reconstructions(model: Kontext, scenes: list[Scene]) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, the same after encoding and decoding), a few at once."""
    autoencoder, size = model.networks.autoencoder, model.config.preferred_resolutions[0]
    for first in range(0, len(scenes), AT_ONCE):
        images = draw(scenes[first : first + AT_ONCE], size, model.device)
        with mixed_precision(images.device):
            decoded = autoencoder.decode(autoencoder.encode(images))
        yield images, decoded.float().clamp(-1, 1)
