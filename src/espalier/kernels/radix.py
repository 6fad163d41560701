"""Radix sort, a digit at a time; the caller shares out the work and adds up the counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


@njit(cache=True, nogil=True)
def count(keys: Array, shift: int, counts: Array) -> None:
    """Count the digit ``keys >> shift`` into ``counts``, whose length is a power of two."""
    mask = np.uint64(counts.size - 1)
    s = np.uint64(shift)
    for i in range(keys.size):
        counts[np.int64((np.uint64(keys[i]) >> s) & mask)] += 1


@njit(cache=True, nogil=True)
def scatter(keys: Array, shift: int, offsets: Array, out: Array) -> None:
    """Move each key to the next place of its digit; ``offsets`` say where, and advance."""
    mask = np.uint64(offsets.size - 1)
    s = np.uint64(shift)
    for i in range(keys.size):
        digit = np.int64((np.uint64(keys[i]) >> s) & mask)
        out[offsets[digit]] = keys[i]
        offsets[digit] += 1
