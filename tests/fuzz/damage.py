"""Random damage to bytes: flips, cuts, repeats, splices with another seed, and values that parsers stumble over."""

from __future__ import annotations

import random

TOKENS = (
    *(b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\r\n", b'"', b"\\", b"\\ud800", b"{", b"[", b"]", b","),
    *(
        b"null",
        b"-1",
        b"1e999",
        b"9" * 30,
        b"%2e%2e",
        b"../",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"\x1b[2J",
        b"[" * 2000,
    ),
)


def damaged(seeds: list[bytes], draw: random.Random) -> bytes:
    """One of the seeds, damaged in one to six places."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randint(1, 6)):
        place = draw.randint(0, len(data))
        length = draw.choice((1, 1, 2, 4, draw.randint(0, 64)))
        match draw.randrange(6):
            case 0 if data:
                data[min(place, len(data) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                data[place : place + length] = draw.randbytes(length)
            case 2:
                data[place : place + length] = b""
            case 3:
                data[place:place] = draw.choice(TOKENS)
            case 4:
                data[place:place] = data[place : place + length] * draw.randint(1, 9)
            case 5:
                other = draw.choice(seeds)
                start = draw.randint(0, len(other))
                data[place : place + length] = other[start : start + length]
    return bytes(data)
