"""Random damage to a valid message."""

from __future__ import annotations

import base64
import copy
import json
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "x",
    "\u202e",
    [],
    [1],
    {},
    {"a": 1},
    "celery.chain",
    "2026-01-01T00:00:00",
)


def mutated(valid: dict[str, Any], draw: random.Random) -> str:
    """Replace or remove a few values anywhere in a message or in its body, or damage its text."""
    message = copy.deepcopy(valid)
    if draw.random() < 0.3:
        message["body"] = mutated_body(message["body"], draw)
    for _ in range(draw.randint(1, 3)):
        place = draw.choice([message, message["headers"], message["properties"]] if _whole(message) else [message])
        name = draw.choice([*place, "expires", "eta"])
        if draw.random() < 0.2:
            place.pop(name, None)
        else:
            place[name] = copy.deepcopy(draw.choice(VALUES))
    text = json.dumps(message)
    if draw.random() < 0.2:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(["", "\x00", '"', "}", "\\"]) + text[at + 1 :]
    return text


def mutated_body(body: str, draw: random.Random) -> str:
    """Replace a value in the arguments, the job or the options, or damage the bytes."""
    content = json.loads(base64.b64decode(body))
    if draw.random() < 0.3:
        return base64.b64encode(draw.randbytes(40)).decode()
    fields = content[0][0]
    if isinstance(fields, dict) and draw.random() < 0.7:
        fields[draw.choice([*fields, "id", "params", "output", "callback", "metadata"])] = copy.deepcopy(
            draw.choice(VALUES)
        )
    else:
        content[draw.randrange(3)] = copy.deepcopy(draw.choice(VALUES))
    return base64.b64encode(json.dumps(content).encode()).decode()


def _whole(message: dict[str, Any]) -> bool:
    return isinstance(message.get("headers"), dict) and isinstance(message.get("properties"), dict)
