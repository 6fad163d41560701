"""Scalar quantization with the rate in the objective: the level that each value takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


@njit(cache=True, nogil=True)
def assign(values: Array, importance: Array, levels: Array, prices: Array, codes: Array) -> None:
    """For each value the level of least importance (value - level)^2 + price.

    From the nearest level outwards, as long as the distance alone does not cost more than the best.

    Parameters
    ----------
    values, importance : float64 (n,)
    levels : float64 (k,)
        Rising.
    prices : float64 (k,)
        At least 0.
    codes : int32 (n,)
        Written: the number of the level. Of equals, the one that is nearer, then the lower one.
    """
    k = levels.size
    for i in range(values.size):
        value, weight = values[i], importance[i]
        right = np.searchsorted(levels, value)
        left = right - 1
        best, cost = -1, np.inf
        while left >= 0 or right < k:
            below = value - levels[left] if left >= 0 else np.inf
            above = levels[right] - value if right < k else np.inf
            if below <= above:
                at, distance = left, below
                left -= 1
            else:
                at, distance = right, above
                right += 1
            squared = weight * distance * distance
            if squared >= cost:
                break
            if squared + prices[at] < cost:
                best, cost = at, squared + prices[at]
        codes[i] = best


def assign_reference(values: Array, importance: Array, levels: Array, prices: Array) -> Array:
    """The same in NumPy, all levels tried; of equal costs any may be given."""
    error = values[:, None] - levels[None, :]
    return np.argmin(importance[:, None] * error**2 + prices[None, :], axis=1).astype(np.int32)
