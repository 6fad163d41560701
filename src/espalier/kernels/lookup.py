"""Codes by a look-up table: the number of thresholds under each value, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


@njit(cache=True, nogil=True)
def _cell(v: float, low: float, scale: float, cells: int) -> int:
    # Rises with v whatever the rounding, which is all that the look-up needs to be exact.
    x = (v - low) * scale
    if not x > 0:
        return 0
    if x >= cells - 1:
        return cells - 1
    return int(x)


@njit(cache=True, nogil=True)
def fill_table(thresholds: Array, low: float, scale: float, table: Array) -> None:
    """``table[c]``: the number of thresholds whose cell is before c, for c up to the last + 1."""
    cells = table.size - 1
    j = 0
    for c in range(cells + 1):
        while j < thresholds.size and _cell(thresholds[j], low, scale, cells) < c:
            j += 1
        table[c] = j


@njit(cache=True, nogil=True)
def assign(
    values: Array, thresholds: Array, low: float, scale: float, table: Array, codes: Array
) -> None:
    """``codes[i]``: the number of thresholds that are under ``values[i]``.

    A threshold in an earlier cell is under the value, one in a later cell is not; the few in the
    same cell are searched.
    """
    cells = table.size - 1
    for i in range(values.size):
        v = values[i]
        c = _cell(v, low, scale, cells)
        lo = np.int64(table[c])
        hi = np.int64(table[c + 1])
        while lo < hi:
            mid = (lo + hi) >> 1
            if thresholds[mid] < v:
                lo = mid + 1
            else:
                hi = mid
        codes[i] = lo
