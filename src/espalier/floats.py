"""Values of the floating-point dtypes that NumPy lacks, exactly, as float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Dtypes whose bits NumPy holds as unsigned integers."""


def widened(bits: Array, dtype: str) -> Array:
    """The values of an array that holds the bits of a tensor, in a dtype that NumPy can compute in.

    Parameters
    ----------
    bits : ndarray
        In the storage dtype of ``dtype``.
    dtype : str
        Name of the tensor's dtype: ``"bfloat16"``.

    Returns
    -------
    ndarray
        float32, every value exact, for the three of :data:`NOT_IN_NUMPY`; otherwise ``bits``.

    Examples
    --------
    >>> widened(np.array([0x3F80, 0xC000], np.uint16), "bfloat16").tolist()
    [1.0, -2.0]
    >>> widened(np.array([0x38, 0x7E, 0x01], np.uint8), "float8_e4m3fn").tolist()
    [1.0, 448.0, 0.001953125]
    """
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "float8_e5m2":  # the upper byte of a float16
        return (bits.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    if dtype == "float8_e4m3fn":
        return _E4M3FN[bits]
    return bits


def _e4m3fn() -> Array:
    """The 256 values: 4 bits of exponent, bias 7, no infinity, NaN where all of them are 1."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    tiny = exponent == 0
    values = np.ldexp(np.where(tiny, fraction, 8 + fraction) / 8, np.maximum(exponent, 1) - 7)
    values[(code & 127) == 127] = np.nan
    return np.copysign(values, np.where(code & 128, -1.0, 1.0)).astype(np.float32)


_E4M3FN = _e4m3fn()
