"""The reference outputs in tests/golden, and how far from them is too far."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from kontext.weights.layout import find_model

GOLDEN = Path(__file__).parent.parent / "golden"
MODEL = GOLDEN / "model"
# Relative L2. What typical mistakes cost is 1e-2 and more: a wrong first id axis 7 %, no text 27 %.
FLOAT32_FROM_TENSORS = 1e-5  # other kernels and thread counts move the last bits
FLOAT32_FROM_FILES = 1e-3  # a last bit can flip a rounding to bfloat16 between two networks
BFLOAT16 = 2e-2  # other kernels moved a forward by 0.7 %, a decode by 1 %


def input_image(case: str) -> Image.Image:
    """The first input of an edit in tests/golden/e2e, read whole, so that its file is closed."""
    with Image.open(GOLDEN / "e2e" / case / "input_0.png") as image:
        image.load()
        return image


PICTURE = input_image("landscape_default")


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def read_json(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def model_config() -> Any:
    return find_model(MODEL).config


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference by norm of the reference, in float64."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def rotations(pe: Tensor) -> Tensor:
    """Our (cos, sin) as the reference's matrices [[cos, -sin], [sin, cos]], its heads before its tokens."""
    cos, sin = pe.transpose(1, 2).unbind(-1)
    return torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
