"""LoRAs as jobs, options and cells name them."""

from __future__ import annotations

import json
import math
from typing import Any

LORA_SCHEMES = ("s3", "https", "http", "file", "hf")
MAX_LORAS = 4
MAX_LORA_SCALE = 10.0


def parse_loras(value: Any) -> Any:
    """LoRAs as a list of objects, whatever form they were written in.

    Args:
        value: a list of objects or texts, one of these, or a text of several separated by blanks or as JSON. A text is
            a URI, or `URI@SCALE`.
    Returns:
        A list of objects with `uri` and `scale`; what is none of these forms stays as it is, for the schema to refuse.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return parse_loras(_read_text(value))
    if isinstance(value, dict):
        return (value,)
    if isinstance(value, list | tuple):
        return tuple(split_scale(item) if isinstance(item, str) else item for item in value)
    return value


def split_scale(text: str) -> dict[str, Any]:
    """Divide `URI@SCALE`; without a number after the last @, all of it is the URI."""
    uri, at, scale = text.strip().rpartition("@")
    try:
        if at and uri and math.isfinite(float(scale)):
            return {"uri": uri, "scale": float(scale)}
    except ValueError:
        pass
    return {"uri": text.strip()}


def _read_text(text: str) -> Any:
    if text.strip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON ({error}); write URI@SCALE, several separated by blanks") from error
    return text.split()
