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


@njit(cache=True, nogil=True)
def descend(
    symbols: Array,
    kept: Array,
    gradient: Array,
    moments: Array,
    outputs: Array,
    step: float,
    lam: float,
    bits: Array,
    contexts: Array,
) -> int:
    """One sweep of coordinate descent over the symbols; returns how many changed.

    With E the errors q step - w, D = 1/2 tr(G E H E^T) changes by m d + a d^2 / 2 where one weight
    moves by d; m is its entry of G E H and a = G_oo H_jj. Of the two grid values around the minimum
    of that, the one nearer to zero, zero itself and the symbol that stands, each element takes the
    one of least change of D + lam bits.

    Parameters
    ----------
    symbols : int32 (rows, columns)
        Changed in place.
    kept : bool (rows, columns)
        False where the weight is pruned: its symbol is not looked at.
    gradient : float64 (rows, columns)
        G E H; kept up to date.
    moments : float64 (columns, columns)
        H.
    outputs : float64 (rows, rows) or (rows, 1)
        G; one column is its diagonal, for a G without others.
    step, lam : float
    bits : float64 (classes, 2 K + 1)
        Code length of the symbol q, at q + K, in each class of neighbours.
    contexts : uint8 (rows, columns)
        The class of each element.
    """
    rows, columns = symbols.shape
    full = outputs.shape[1] > 1
    top = (bits.shape[1] - 1) // 2
    changed = 0
    for o in range(rows):
        own = outputs[o, o] if full else outputs[o, 0]
        for j in range(columns):
            if not kept[o, j]:
                continue
            stiffness = own * moments[j, j]
            now, here = symbols[o, j], contexts[o, j]
            slope = gradient[o, j]
            wanted = float(now)
            if stiffness > 0.0:
                wanted -= slope / (stiffness * step)
            low = np.floor(min(max(wanted, -float(top)), float(top)))
            toward = low - 1.0 if low > 0.0 else low + 2.0
            best, chosen = lam * bits[here, now + top], now
            for i in range(4):
                q = low if i == 0 else low + 1.0 if i == 1 else toward if i == 2 else 0.0
                if q > top or q < -top or int(q) == now:
                    continue
                d = (q - now) * step
                cost = slope * d + 0.5 * stiffness * d * d + lam * bits[here, int(q) + top]
                if cost < best:
                    best, chosen = cost, int(q)
            if chosen == now:
                continue
            changed += 1
            symbols[o, j] = chosen
            d = (chosen - now) * step
            for p in range(0 if full else o, rows if full else o + 1):
                share = d * (outputs[p, o] if full else own)
                for c in range(columns):
                    gradient[p, c] += share * moments[j, c]
    return changed


def descend_reference(
    symbols: Array,
    kept: Array,
    gradient: Array,
    moments: Array,
    outputs: Array,
    step: float,
    lam: float,
    bits: Array,
    contexts: Array,
) -> int:
    """:func:`descend` in plain Python."""
    g = outputs if outputs.shape[1] > 1 else np.diag(outputs[:, 0])
    top = (bits.shape[1] - 1) // 2
    changed = 0
    for o, j in np.argwhere(kept):
        now = int(symbols[o, j])
        stiffness = g[o, o] * moments[j, j]
        wanted = now - gradient[o, j] / (stiffness * step) if stiffness > 0 else now
        low = int(np.floor(min(max(wanted, -top), top)))
        candidates = [now, low, low + 1, low - 1 if low > 0 else low + 2, 0]
        inside = [q for q in candidates if -top <= q <= top]
        costs = []
        for q in inside:
            d = (q - now) * step
            rise = gradient[o, j] * d + 0.5 * stiffness * d * d
            costs.append(rise + lam * bits[contexts[o, j], q + top])
        chosen = inside[int(np.argmin(costs))]
        if chosen != now:
            changed += 1
            symbols[o, j] = chosen
            gradient += (chosen - now) * step * np.outer(g[:, o], moments[j])
    return changed
