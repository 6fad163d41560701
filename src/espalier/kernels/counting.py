"""How often each symbol occurs, several times as fast as ``np.bincount``, which widens to int64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import frozen, jit

Array = NDArray[Any]


@jit
def _count(symbols: Array, counts: Array) -> None:
    # Four tables in turn: equal neighbours would otherwise wait for each other's increment.
    n = symbols.size & ~3
    for i in range(0, n, 4):
        counts[0, symbols[i]] += 1
        counts[1, symbols[i + 1]] += 1
        counts[2, symbols[i + 2]] += 1
        counts[3, symbols[i + 3]] += 1
    for i in range(n, symbols.size):
        counts[0, symbols[i]] += 1


def count(symbols: Array) -> Array:
    """Occurrences of each possible symbol of a uint8 or uint16 array, shape (256 or 65536,), int64.

    Examples
    --------
    >>> count(np.array([3, 1, 3], np.uint8))[:4].tolist()
    [0, 1, 0, 2]
    """
    counts = np.zeros((4, 1 << (8 * symbols.dtype.itemsize)), np.int64)
    _count(frozen(symbols), counts)
    return counts.sum(axis=0)


def count_reference(symbols: list[int], size: int) -> list[int]:
    """:func:`count` in plain Python."""
    counts = [0] * size
    for symbol in symbols:
        counts[symbol] += 1
    return counts
