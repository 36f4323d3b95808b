"""How near ours must be to theirs.

Both run on the same machine, from the same weights and inputs. On a CPU all differences measured so far are 0. The
tolerances leave room for a kernel that does the same arithmetic in another order (up to 7e-3 in bfloat16) and are far
below what mistakes cost: with these random weights a wrong first id axis 0.1 to 0.2, and guidance that is off by 0.2
percent 0.2 in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = tuple(TOLERANCE)


def assert_close(ours: Tensor, theirs: Tensor, what: str = "output") -> None:
    """Same shape and dtype, and a relative L2 difference within the tolerance of the dtype."""
    assert ours.shape == theirs.shape, what
    assert ours.dtype == theirs.dtype, what
    difference = (ours.double() - theirs.double()).norm() / theirs.double().norm()
    assert difference <= TOLERANCE[theirs.dtype], f"{what}: relative difference {difference:.1e}"
