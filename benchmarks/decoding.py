"""Price of decoding inputs in a process of its own, beyond decoding itself.

    python -m benchmarks.decoding [--megapixels 12] [--repetitions 15]

Decodes one JPEG here, here into memory that is used again, and in a helper process, by turns. The helper
uses its memory again, so the second shows what a job pays for a decoder that can hang, crash or eat memory without
harm to its worker. The start of a helper is paid once, when its worker starts.
"""

from __future__ import annotations

import io
from functools import partial
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
    kept = Image.open(io.BytesIO(data)).copy()
    ways = {
        "here": lambda: decode_with_warnings(data),
        "here_into_kept_memory": lambda: decode_with_warnings(data, canvas=lambda size: kept),
        "helper": through_helper,
    }
    seconds = take_turns({name: partial(timed, way) for name, way in ways.items()}, repetitions)
    decoder.close()
    differences = {
        name: [1000 * (one - other) for one, other in zip(seconds["helper"], seconds[name], strict=True)]
        for name in ("here", "here_into_kept_memory")
    }
    return {
        "megapixels": megapixels,
        "jpeg_bytes": len(data),
        "first_image_with_start_milliseconds": round(1000 * start, 1),
        **{f"{name}_milliseconds": round(1000 * median(values), 1) for name, values in seconds.items()},
        "helper_beyond_here_milliseconds": round(median(differences["here"]), 1),
        "helper_beyond_decoding_milliseconds": round(median(differences["here_into_kept_memory"]), 1),
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
