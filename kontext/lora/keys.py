"""Keys of LoRA files, in the forms of BFL, kohya, diffusers (PEFT), ComfyUI and XLabs, and the layers that they name.

A key is a prefix, a layer's name and a suffix. The name is the checkpoint's or diffusers', in kohya's files with
underscores for dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kontext.errors import LoraError
from kontext.weights.key_names import SCALE_THEN_SHIFT, diffusers_modules

PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet."),
    *("lora_unet_", "lora_transformer_"),
)
ROLES = {
    **{f".{name}.weight": "down" for name in ("lora_A", "lora_down", "lora.down", "lora_A.default")},
    **{f".{name}.weight": "up" for name in ("lora_B", "lora_up", "lora.up", "lora_B.default")},
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
}
TEXT_ENCODERS = ("lora_te", "text_encoder", "clip_l.", "t5xxl.", "lora_clip", "te1.", "te2.")
OTHER_KINDS = {
    r"\.dora_scale|lora_magnitude_vector(\.default)?(\.weight)?": "DoRA",
    r"\.lokr_\w+": "LoKr",
    r"\.hada_\w+": "LoHa",
    r"\.oft_\w+(\.default)?(\.weight)?": "OFT",
    r"\.lora_mid\.weight": "a LoRA of convolutions",
    r"\.lora_(B|up)(\.default)?\.bias": "a LoRA with biases",
    # of LyCORIS, of the checkpoint, and of diffusers
    r"\.[wb]_norm|\.(\w+_)?norm(_\w+|\d)?\.(weight|bias|scale)": "norms beside a LoRA",
    r"\.set_weight": "whole weights beside a LoRA",
}
"""What keys are that are no plain LoRA, by how they end."""
DIFFERENCES = (".diff", ".diff_b")  # endings: `.diffusion_model.` is a prefix
XLABS = re.compile(r"(double_blocks\.\d+)\.processor\.(qkv|proj)_lora([12])\.(down|up)\.weight")


@dataclass(frozen=True)
class Target:
    """A layer of the transformer, or the part of its rows that a layer of diffusers stands for."""

    module: str
    part: int = 0
    parts: int = 1
    swaps_halves: bool = False  # diffusers has the halves of its rows the other way round


def targets(modules: Iterable[str]) -> dict[str, Target]:
    """Every name that LoRA files have for the linear layers of a transformer."""
    named: dict[str, Target] = {}
    for module in modules:
        theirs = diffusers_modules(module)
        for part, name in enumerate(theirs):
            named[name] = Target(module, part, len(theirs), swaps_halves=module == SCALE_THEN_SHIFT)
        named[module] = Target(module)
    return named | {name.replace(".", "_"): target for name, target in named.items()}


def split_key(key: str, named: dict[str, Target]) -> tuple[str, Target, str]:
    """(name, layer, role) of a key; the role is "down", "up" or "alpha".

    Raises:
        LoraError: the key names something that is not applied; the message says what.
    """
    if key.startswith(TEXT_ENCODERS):
        raise LoraError(
            f"has parts for a text encoder ({key}), which are not applied: export it for the transformer only"
        )
    if found := XLABS.fullmatch(key):
        stream = "img" if found[3] == "1" else "txt"
        name = f"{found[1]}.{stream}_attn.{found[2]}"
        role = found[4]
    else:
        name, role = _name_and_role(key)
    if name not in named:
        raise LoraError(f"is for a layer that this model does not have ({key}); it was made for another model")
    return name, named[name], role


def _name_and_role(key: str) -> tuple[str, str]:
    suffix = next((suffix for suffix in ROLES if key.endswith(suffix)), None)
    if suffix is None:
        raise LoraError(f"is {_other_kind(key)} ({key}), which is not applied: only plain LoRA of linear layers is")
    name = key.removesuffix(suffix)
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name, ROLES[suffix]


def _other_kind(key: str) -> str:
    if key.endswith(DIFFERENCES):
        return "whole differences beside a LoRA"
    return next(
        (kind for end, kind in OTHER_KINDS.items() if re.search(f"({end})$", f".{key}")), "no LoRA that is known here"
    )
