"""Strict judgement of an edit: the asked part is right, and the rest is left alone.

Judging the asked part alone would pass edits that also changed the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from training.data.scenes import COLOURS

Pixels = np.ndarray  # sRGB of 0 to 255, float, (height, width, 3)

CHANGED = 24  # of 255: a pixel that differs by more belongs to the edit
RIGHT = 20  # mean difference from the wanted image at which a changed part is right whatever its colour
CLEARLY_WRONG = 60
MOST_WRONG = 0.025  # of the pixels that were to stay
LEAST_PIXELS = 12  # of a part; fewer are an outline and not judged
COLOURLESS = 14  # mean difference between the largest and smallest channel of a grey image
AREA = 8  # pixels, side of the areas by which an image is clean
CLEAN = 45  # of 255: mean error of an area, in its worst channel, above which it is seen as a spot or a wrong outline


@dataclass(frozen=True)
class Wanted:
    """An image before the edit, the wanted one after it, and a label of every pixel.

    Args:
        labels: a number for everything that is seen in the wanted image, shape (height, width).
        colours: the colour asked for, by label; a label without one is judged by the wanted image.
    """

    source: Pixels
    target: Pixels
    labels: np.ndarray
    colours: dict[int, str]
    grey: bool = False

    @property
    def changed(self) -> np.ndarray:
        """Pixels that belong to the edit, without the outline, which may wobble by a pixel or two."""
        return shrunk(self._difference > CHANGED)

    @property
    def kept(self) -> np.ndarray:
        return shrunk(self._difference <= 8)

    @property
    def _difference(self) -> np.ndarray:
        difference: np.ndarray = np.abs(self.source - self.target).max(-1)
        return difference


def faults(wanted: Wanted, image: Pixels) -> Iterator[str]:
    """Faults of an edited image; none if the edit succeeded."""
    changed, kept = wanted.changed, wanted.kept
    for label in np.unique(wanted.labels[changed]):
        part = changed & (wanted.labels == label)
        if part.sum() >= LEAST_PIXELS:
            yield from _part_faults(wanted, image, part, wanted.colours.get(int(label)))
    wrong = (np.abs(image - wanted.target).max(-1) > CLEARLY_WRONG)[kept]
    if wrong.size and wrong.mean() > MOST_WRONG:
        yield f"{wrong.mean():.1%} of the rest is another colour"
    if wanted.grey and np.ptp(image, axis=-1).mean() > COLOURLESS:
        yield f"channels differ by {np.ptp(image, axis=-1).mean():.0f} on average"


def _part_faults(wanted: Wanted, image: Pixels, part: np.ndarray, colour: str | None) -> Iterator[str]:
    error = np.abs(image - wanted.target)[part].mean()
    seen = nearest_colour(image[part])
    if error > RIGHT and seen != colour:
        asked = f", not {colour}" if colour else ""
        yield f"a changed part is {seen}{asked}, and differs by {error:.0f} from what was wanted"


def worst_area(image: Pixels, target: Pixels) -> float:
    """The largest mean error of an area, of 255; an image is clean if that is at most `CLEAN`.

    Outlines off by a pixel pass; blobs, halos, spots and half-painted shapes do not.

    Args:
        image, target: of the same size; a rest that fills no area of 8x8 pixels is left out.
    """
    height, width = (side // AREA * AREA for side in image.shape[:2])
    error = np.abs(image - target).max(-1)[:height, :width]
    areas = error.reshape(height // AREA, AREA, width // AREA, AREA).mean((1, 3))
    return float(areas.max())


def psnr(image: Pixels, target: Pixels) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / max(np.square(image - target).mean(), 1e-3)))


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(float)


def shrunk(mask: np.ndarray) -> np.ndarray:
    """The mask without the two pixels along its edge."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(5))) > 0


def nearest_colour(area: Pixels) -> str:
    """The known colour that is nearest to the middle colour of an area, as the eye sees distances."""
    seen = cielab(np.median(area.reshape(-1, 3), axis=0))
    return min(COLOURS, key=lambda name: float(np.linalg.norm(cielab(np.array(COLOURS[name], float)) - seen)))


def cielab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of an sRGB colour of 0 to 255, white point D65."""
    linear = np.where(rgb > 0.04045 * 255, ((rgb / 255 + 0.055) / 1.055) ** 2.4, rgb / 255 / 12.92)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    ratio = xyz / (0.9505, 1.0, 1.089)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
