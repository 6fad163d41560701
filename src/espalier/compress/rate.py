"""Rate-distortion quantization of one bare weight: a uniform grid, chosen without data.

The distortion is the squared error over the mean square of the weight, so that one lambda means the
same for tensors of any scale; see :mod:`espalier.quantization.grid`.
"""

from __future__ import annotations

import math

import numpy as np

from espalier.compress.weights import measure
from espalier.errors import InvalidArgument
from espalier.fixed_point import from_numbers, to_numbers
from espalier.quantization.grid import Layer
from espalier.state import Array

SAMPLE = 1 << 18
"""The step is chosen on so many weights, evenly spaced; the symbols are chosen on all."""

_START = 0.02
_TOLERANCE = 0.98  # of the limit, where a search may stop
_TRIALS = 24
_SAFETY = 0.9


def quantize(values: Array, lam: float, dtype: str) -> tuple[Array, Array]:
    """Codes and codebook of ``values`` on the grid of least D + lambda R.

    D is the sum of the squared errors over the mean square, R the bits of the symbols.

    Parameters
    ----------
    values : ndarray, float32 or float64, shape (n,)
        Finite. Zeros stay exactly zero.
    lam : float
        A bit may cost so many mean squares of the weight; useful values lie around 0.01.
    dtype : str
        Of the tensor that the values come from.

    Returns
    -------
    codes : ndarray, uint8 or uint16, shape (n,)
    codebook : ndarray, in the storage dtype of ``dtype``, shape (k,), rising
    """
    step = _layer(_sample(values)).best(lam).step
    rounded = _layer(values).round(step, lam)
    levels, codes = np.unique(rounded.symbols.reshape(-1), return_inverse=True)
    narrow = codes.reshape(-1).astype(np.uint8 if levels.size <= 256 else np.uint16)
    return narrow, from_numbers(levels * rounded.step, dtype)


def quantize_within(values: Array, limit: float, dtype: str) -> tuple[Array, Array, float]:
    """:func:`quantize` with about the largest lambda whose relative error is at most ``limit``.

    Returns
    -------
    codes, codebook : ndarray
    lam : float
    """
    lam = _largest(_layer(_sample(values)), limit)
    for _ in range(_TRIALS):
        codes, book = quantize(values, lam, dtype)
        if measure(values, to_numbers(book, dtype)[codes]).relative <= limit:
            return codes, book, lam
        lam *= _SAFETY**2
    raise InvalidArgument(
        f"a relative error of {limit:g} cannot be reached in {dtype}: give a larger one"
    )


def _largest(layer: Layer, limit: float) -> float:
    """Secant on log error against log lambda, whose slope is about one half."""
    energy = float(np.square(layer.weights).sum())
    if not energy:
        return _START
    good, bad, lam = 0.0, math.inf, min(_START, limit**2)
    for _ in range(_TRIALS):
        found = layer.best(lam)
        error = layer.weights - found.symbols * found.step
        relative = math.sqrt(float(np.square(error).sum()) / energy)
        if relative <= limit:
            good = lam
            if relative >= _TOLERANCE * limit:
                break
        else:
            bad = lam
        lam *= (0.99 * limit / max(relative, 1e-3 * limit)) ** 2
        if not good < lam < bad:
            lam = (
                math.sqrt(good * bad)
                if good and bad < math.inf
                else (bad / 4 if bad < math.inf else good * 4)
            )
    return good or lam


def _sample(values: Array) -> Array:
    stride = max(1, values.size // SAMPLE)
    return values[::stride]


def _layer(values: Array) -> Layer:
    wide = values.astype(np.float64).reshape(1, -1)
    mean_square = max(float(np.mean(np.square(wide))) if wide.size else 0.0, 1e-30)
    kept = None if wide.all() else wide != 0
    return Layer(wide, None, np.array([2 / mean_square]), kept)
