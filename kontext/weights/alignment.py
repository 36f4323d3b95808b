"""Alignment of weights that lie one after the other in a buffer."""

ALIGNMENT = 256  # bytes; kernels read fastest from such addresses, and every dtype may begin there


def aligned(nbytes: int) -> int:
    """Size in bytes with the gap up to the next address that a weight may have."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
