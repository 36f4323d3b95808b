"""Make the before/after picture of the README from real edits: `python docs/images/make_before_after.py`."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

import kontext

ROOT = Path(__file__).parent.parent.parent
SHOWN = ("02_recolour.png", "06_background.png", "08_remove.png", "12_border.png")
SIDE, GAP, CAPTION = 256, 16, 44  # pixels


def main() -> None:
    rows = {row["image"]: row for row in csv.DictReader((ROOT / "examples" / "data.csv").read_text().splitlines())}
    model = kontext.load()
    sheet = Image.new("RGB", (len(SHOWN) * (SIDE + GAP) + GAP, 2 * SIDE + CAPTION + 2 * GAP), "white")
    for column, name in enumerate(SHOWN):
        before = Image.open(ROOT / "examples" / name).convert("RGB")
        size = {side: int(rows[name][side]) for side in ("width", "height")}
        after = model.edit(before, rows[name]["prompt"], num_inference_steps=20, seed=int(rows[name]["seed"]), **size)
        left = GAP + column * (SIDE + GAP)
        for picture, top in ((before, GAP), (after, GAP + SIDE + CAPTION)):
            fitted = ImageOps.pad(picture, (SIDE, SIDE), color="white")
            sheet.paste(fitted, (left, top))
        write_caption(sheet, rows[name]["prompt"], left + SIDE // 2, GAP + SIDE + CAPTION // 2)
    sheet.save(Path(__file__).with_name("before_after.png"), optimize=True)


def write_caption(sheet: Image.Image, prompt: str, x: int, y: int) -> None:
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(sheet).text((x, y), f'"{prompt}"', fill="black", font=font, anchor="mm")


if __name__ == "__main__":
    main()
