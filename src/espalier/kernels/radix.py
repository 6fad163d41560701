"""Radix sort, a digit at a time; the caller shares out the work and adds up the counts.

Floats are sorted by keys: their bits as unsigned integers, the sign bit flipped, negatives
complemented. Keys are made where values are read, and undone where they are written for the last
time, so that no pass over memory is spent on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

PLAIN = -1
"""In place of the number of a sign bit: what is read or written are keys."""


@njit(cache=True, nogil=True)
def key_of(bits: np.uint64, top: np.uint64) -> np.uint64:
    """The key of a float whose bits are ``bits``, its sign bit at ``top``."""
    sign = np.uint64(1) << top
    everything = sign | (sign - np.uint64(1))
    return (bits ^ ((np.uint64(0) - (bits >> top)) | sign)) & everything


@njit(cache=True, nogil=True)
def bits_of(key: np.uint64, top: np.uint64) -> np.uint64:
    """The inverse of :func:`key_of`."""
    sign = np.uint64(1) << top
    everything = sign | (sign - np.uint64(1))
    return (key ^ (((key >> top) - np.uint64(1)) | sign)) & everything


@njit(cache=True, nogil=True)
def count(items: Array, shift: int, counts: Array, top_in: int) -> None:
    """Count the digit ``key >> shift`` into ``counts``, whose length is a power of two."""
    mask = np.uint64(counts.size - 1)
    s = np.uint64(shift)
    top = np.uint64(max(top_in, 0))
    for i in range(items.size):
        key = np.uint64(items[i])
        if top_in >= 0:
            key = key_of(key, top)
        counts[np.int64((key >> s) & mask)] += 1


@njit(cache=True, nogil=True)
def scatter(
    items: Array, shift: int, offsets: Array, out: Array, top_in: int, top_out: int
) -> None:
    """Move each item to the next place of its digit; ``offsets`` say where, and advance."""
    mask = np.uint64(offsets.size - 1)
    s = np.uint64(shift)
    top = np.uint64(max(top_in, top_out, 0))
    for i in range(items.size):
        key = np.uint64(items[i])
        if top_in >= 0:
            key = key_of(key, top)
        digit = np.int64((key >> s) & mask)
        if top_out >= 0:
            key = bits_of(key, top)
        out[offsets[digit]] = key
        offsets[digit] += 1
