"""The rules of production with a second in place of each minute, so that waiting for an alert takes seconds."""

from __future__ import annotations

import re
from typing import Any

from tests.deploy.names import DEPLOY, documents

MINUTE = 60
RULES = DEPLOY / "prometheus" / "rules.yaml"


def quick_rules() -> dict[str, Any]:
    """`for:`, the windows `[15m]`, and bounds of metrics in seconds are a sixtieth; counts and shares stay."""
    (rules,) = documents(RULES)
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _quick_bounds(_quick_times(rule["expr"]))
            if "for" in rule:
                rule["for"] = _quick_times(rule["for"])
    return dict(rules)


def _quick_times(text: str) -> str:
    seconds = {"h": 3600, "m": 60}
    return re.sub(r"\b(\d+)([hm])\b", lambda found: f"{int(found[1]) * seconds[found[2]] // MINUTE}s", text)


def _quick_bounds(expression: str) -> str:
    return re.sub(r"(_seconds\) > )(\d+)", lambda found: f"{found[1]}{int(found[2]) / MINUTE:g}", expression)
