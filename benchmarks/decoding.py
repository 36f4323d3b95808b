"""Price of decoding inputs in a process of its own, beyond decoding itself.

    python -m benchmarks.decoding [--megapixels 12] [--repetitions 15]

Decodes one JPEG in this process and in a helper process, by turns; the difference is what a job pays for a decoder that
can hang, crash or eat memory without harm to its worker. It is negative where a helper, whose memory is kept, saves
more than the way to it costs. The start of a helper is paid once, when its worker starts.
"""

from __future__ import annotations

import io
from statistics import median
from typing import Any

from PIL import Image

from benchmarks.report import parser, publish
from benchmarks.timing import take_turns, timed
from kontext import decode_with_warnings
from worker.decoding import Decoder


def measure(megapixels: int, repetitions: int) -> dict[str, Any]:
    data = photo(megapixels)
    decoder = Decoder(max_pixels=megapixels * 1_100_000, max_seconds=60, max_memory_bytes=3 * 2**30)

    def through_helper() -> None:
        decoder.decode(data, lambda: None)

    start = timed(through_helper)
    seconds = take_turns(
        {"here": lambda: timed(lambda: decode_with_warnings(data)), "helper": lambda: timed(through_helper)},
        repetitions,
    )
    decoder.close()
    here, helper = ([1000 * value for value in seconds[way]] for way in ("here", "helper"))
    differences = [one - other for one, other in zip(helper, here, strict=True)]
    return {
        "megapixels": megapixels,
        "jpeg_bytes": len(data),
        "first_image_with_start_milliseconds": round(1000 * start, 1),
        "here_milliseconds": round(median(here), 1),
        "helper_milliseconds": round(median(helper), 1),
        "price_milliseconds": round(median(differences), 1),
        "price_of_fastest_milliseconds": round(min(helper) - min(here), 1),
    }


def photo(megapixels: int) -> bytes:
    """A JPEG of 4:3 with soft shapes and some grain, as photos have."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = (round(height * 4 / 3), height)
    small = Image.effect_noise((size[0] // 16, size[1] // 16), 80)
    bands = [small.rotate(angle).resize(size, Image.Resampling.BICUBIC) for angle in (0, 90, 180)]
    buffer = io.BytesIO()
    Image.merge("RGB", bands).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> None:
    options = parser(__doc__, megapixels=12, repetitions=15).parse_args()
    publish("decoding", measure(options.megapixels, options.repetitions))


if __name__ == "__main__":
    main()
