"""Values in their order, by their bits: any value of any dtype has a place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def keys_of(values: Array, dtype: str) -> Array:
    """Unsigned integers in the order of the values, by their bits: NaNs have a place too.

    Examples
    --------
    >>> keys_of(np.array([-1, 0, 1], "i1"), "int8").tolist()
    [127, 128, 129]
    """
    words = values.view(f"<u{values.dtype.itemsize}")
    if dtype == "bool" or dtype.startswith("uint"):
        return words
    top = words.dtype.type(1 << (8 * words.dtype.itemsize - 1))
    if dtype.startswith("int"):
        return np.asarray(words ^ top)
    return np.where(words & top, ~words, words | top)


def values_of(keys: Array, dtype: str, storage: np.dtype[Any]) -> Array:
    """The values that have these keys: the inverse of :func:`keys_of`."""
    words = keys.astype(f"<u{storage.itemsize}")
    if not dtype.startswith("uint"):
        top = words.dtype.type(1 << (8 * words.dtype.itemsize - 1))
        floats = not dtype.startswith("int")
        words = np.where(words & top, words ^ top, ~words) if floats else words ^ top
    return words.view(storage)
