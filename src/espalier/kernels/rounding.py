"""Rounding a block of columns to a grid, with the rate in the objective and error feedback."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


@njit(cache=True, nogil=True)
def round_block(
    weights: Array,
    kept: Array,
    factor: Array,
    scale: Array,
    step: float,
    bits: Array,
    symbols: Array,
) -> None:
    """Round the columns of ``weights`` in turn, spreading each error over those to its right.

    Of the candidates nearest, one nearer to zero, the other neighbour, and zero, each element takes
    the one of least scale_o (w - q step)^2 / u_jj^2 + bits[q].

    Parameters
    ----------
    weights : float64 (rows, columns)
        Overwritten by the errors (w - q step) / u_jj, for the columns beyond the block.
    kept : bool (rows, columns)
        False where the weight is pruned: its symbol is 0.
    factor : float64 (columns, columns)
        Upper Cholesky factor U of the inverse of the inputs' second moments, of this block.
    scale : float64 (rows,)
        Half the curvature of each output, over lambda.
    step : float
    bits : float64 (2 K + 1,)
        Code length of the symbol q at q + K.
    symbols : int32 (rows, columns)
        Receives q.
    """
    rows, columns = weights.shape
    top = (bits.size - 1) // 2
    for j in range(columns):
        pivot = factor[j, j]
        for o in range(rows):
            w = weights[o, j]
            exact = w / step
            nearest = np.rint(exact)
            toward = 1.0 if nearest > 0 else -1.0
            other = nearest + 1.0 if exact > nearest else nearest - 1.0
            best, chosen = np.inf, 0
            for i in range(4 if kept[o, j] else 0):
                if i == 0:
                    q = nearest
                elif i == 1:
                    q = nearest - toward if nearest != 0.0 else 0.0
                elif i == 2:
                    q = other
                else:
                    q = 0.0
                q = min(max(q, -float(top)), float(top))
                error = (w - q * step) / pivot
                cost = scale[o] * error * error + bits[int(q) + top]
                if cost < best:
                    best, chosen = cost, int(q)
            symbols[o, j] = chosen
            error = (w - chosen * step) / pivot
            for c in range(j + 1, columns):
                weights[o, c] -= error * factor[j, c]
            weights[o, j] = error


def round_block_reference(
    weights: Array,
    kept: Array,
    factor: Array,
    scale: Array,
    step: float,
    bits: Array,
    symbols: Array,
) -> None:
    """:func:`round_block` in plain Python."""
    top = (bits.size - 1) // 2
    for j in range(weights.shape[1]):
        for o in range(weights.shape[0]):
            w = weights[o, j]
            nearest = float(np.rint(w / step))
            candidates = [
                nearest,
                nearest - (1 if nearest > 0 else -1) if nearest else 0.0,
                nearest + (1 if w / step > nearest else -1),
                0.0,
            ]
            inside = [min(max(q, -float(top)), float(top)) for q in candidates]
            costs = []
            for q in inside:
                error = (w - q * step) / factor[j, j]
                costs.append(scale[o] * error * error + bits[int(q) + top])
            symbols[o, j] = int(inside[int(np.argmin(costs))]) if kept[o, j] else 0
            error = (w - symbols[o, j] * step) / factor[j, j]
            for c in range(j + 1, weights.shape[1]):
                weights[o, c] -= error * factor[j, c]
            weights[o, j] = error
