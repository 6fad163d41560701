"""Shared weights from their codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import jit

Array = NDArray[Any]

WORDS = {width: np.dtype(f"u{width}") for width in (1, 2, 4, 8)}
"""Bits are moved, whatever they mean, so that kernels are compiled for few dtypes."""


@jit
def _gather(words: Array, codes: Array, out: Array) -> None:
    for i in range(codes.size):
        out[i] = words[np.uint64(codes[i])]


def gather(codebook: Array, codes: Array) -> Array:
    """``codebook[codes]``, several times as fast as NumPy, which widens the codes to int64.

    Parameters
    ----------
    codebook : array, shape (levels,)
    codes : uint8 or uint16 array, shape (n,)
        Each below ``levels``.

    Examples
    --------
    >>> gather(np.array([-1.0, 2.0]), np.array([1, 0, 1], np.uint8)).tolist()
    [2.0, -1.0, 2.0]
    """
    word = WORDS.get(codebook.itemsize)
    if word is None:  # complex128
        return codebook[codes]
    out = np.empty(codes.size, codebook.dtype)
    _gather(np.ascontiguousarray(codebook).view(word), np.ascontiguousarray(codes), out.view(word))
    return out
