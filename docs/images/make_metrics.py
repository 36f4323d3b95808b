"""Draw the dashboard's panels as a Prometheus holds them: python docs/images/make_metrics.py http://127.0.0.1:9090

Writes metrics.png beside itself. `--minutes` is how far to look back; the dashboard's windows of 5 minutes become
`--window`, so that a run of some minutes shows its ups and downs. Needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "kontext.json"
WIDTH, HEIGHT = 400, 130
COLOURS = ("#1f6feb", "#d1570a", "#1a7f37", "#8250df", "#bf3989", "#6e7781", "#9a6700")
Line = list[tuple[float, float]]
STYLE = """
body { margin: 16px; width: 1280px; font: 13px sans-serif;
       display: grid; gap: 14px; grid-template-columns: repeat(3, 1fr) }
section { border: 1px solid #d0d7de; border-radius: 6px; padding: 8px }
h2 { font-size: 14px; margin: 0 0 6px }
p { margin: 4px 0 0; min-height: 1.2em }
p span { margin-right: 12px; white-space: nowrap }
text { font-size: 11px; fill: #57606a }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--window", default="20s")
    given = parser.parse_args()
    until = time.time()
    since = until - 60 * given.minutes
    panels = [
        panel(one["title"], unit_of(one), lines_of(given.prometheus, one, since, until, given.window), since, until)
        for one in json.loads(DASHBOARD.read_text())["panels"]
    ]
    page_of(f"<style>{STYLE}</style>" + "".join(panels), Path(__file__).with_name("metrics.png"))


def unit_of(one: dict[str, Any]) -> str:
    return str(one["fieldConfig"]["defaults"]["unit"])


def lines_of(prometheus: str, one: dict[str, Any], since: float, until: float, window: str) -> dict[str, Line]:
    """The panel's lines by name, each a list of seconds and values."""
    lines = {}
    for target in one["targets"]:
        asked = {"query": target["expr"].replace("[5m]", f"[{window}]"), "start": since, "end": until, "step": 2}
        with urlopen(f"{prometheus}/api/v1/query_range?{urlencode(asked)}", timeout=60) as answer:
            found = json.load(answer)["data"]["result"]
        for series in found:
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            points = [(float(at), float(value)) for at, value in series["values"]]
            lines[name] = [(at, value) for at, value in points if math.isfinite(value)]
    return {name: line for name, line in lines.items() if any(value for _, value in line)}


def panel(title: str, unit: str, lines: dict[str, Line], since: float, until: float) -> str:
    """One panel as HTML."""
    top = max((value for line in lines.values() for _, value in line), default=0.0)
    drawn = "".join(
        f'<polyline fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="1.5" points="'
        + " ".join(
            f"{WIDTH * (at - since) / (until - since):.1f},{HEIGHT * (1 - value / (top or 1)):.1f}"
            for at, value in line
        )
        + '"/>'
        for number, line in enumerate(lines.values())
    )
    names = "".join(
        f'<span style="color:{COLOURS[number % len(COLOURS)]}">&#9644; {escape(name)}</span>'
        for number, name in enumerate(lines)
    )
    return (
        f"<section><h2>{escape(title)}</h2>"
        f'<svg viewBox="-2 -14 {WIDTH + 4} {HEIGHT + 18}" width="100%">'
        f'<path d="M0 0H{WIDTH}M0 {HEIGHT}H{WIDTH}" stroke="#d8dee4"/>'
        f'<text x="0" y="-3">{shown(top, unit)}</text>{drawn}</svg><p>{names or "nothing but 0"}</p></section>'
    )


def shown(value: float, unit: str) -> str:
    """A value with its unit, as people read it."""
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "bytes":
        return f"{value / 1e9:.3g} GB" if value > 1e9 else f"{value / 1e6:.3g} MB"
    if unit == "s":
        return f"{value:.3g} s" if value > 0.1 else f"{1000 * value:.3g} ms"
    return f"{value:.3g}"


def page_of(html: str, path: Path) -> None:
    """Take a picture of a page."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1312, "height": 800})
        page.set_content(html)
        page.screenshot(path=path, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
