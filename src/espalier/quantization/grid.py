"""Rate-distortion rounding of one layer to a uniform grid: min D + lambda R over the symbols.

With weights W (outputs x inputs), second moments H = E[a a^T] of the layer's inputs, and curvature
g_o of the loss in output o (both from a few batches; identity and 1 where there are none), the loss
rises by

    D = 1/2 sum_o g_o (w_o - q_o step)^T H (w_o - q_o step)

to second order (the Kronecker factors of the Fisher information, output side taken as
diagonal), and R is the number of bits of the symbols q under their own order-0 statistics.

Columns are rounded in turn, and each error is made up for by the columns not rounded yet (Optimal
Brain Surgeon; Frantar et al. 2022, arXiv 2210.17323, with the Cholesky form); the symbol is chosen
with its code length in the objective (Conzelmann and Bamler 2025, arXiv 2505.18758). A dead zone
needs no rule of its own: zero is cheap where it is frequent. Deviation from the latter: the code
lengths are those of the whole layer's symbols, from the pass before, where they adapt as they code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.rounding import round_block

Array = NDArray[Any]

BLOCK = 64
PASSES = 3
FINEST = 1 / 8
"""The smallest factor between two steps that are tried is two to this."""
LEVEL_BITS = 20.0
"""What one more level costs in tables and codebook, in bits."""
DAMPING = 0.01
"""Added to the diagonal of H, times its mean: a few batches do not say more."""
MAX_SYMBOL = 1 << 14


@dataclass(frozen=True, eq=False)
class Rounded:
    """One layer on a grid: its weights are ``symbols * step``.

    ``distortion``: D above, in nats of loss. ``bits``: R above, with :data:`LEVEL_BITS` for each
    level.
    """

    symbols: Array
    step: float
    distortion: float
    bits: float

    def cost(self, lam: float) -> float:
        """D + lambda R."""
        return self.distortion + lam * self.bits


@dataclass(frozen=True, eq=False)
class Layer:
    """What rounding needs of a layer, factored once.

    Parameters
    ----------
    weights : float64 (outputs, inputs)
    moments : float64 (inputs, inputs) or None
        H; the identity if None.
    curvature : float64 (outputs,)
        g, at least 0.
    kept : bool (outputs, inputs) or None
        False where the weight is pruned and stays so; all are kept if None.
    """

    weights: Array
    moments: Array | None
    curvature: Array
    kept: Array | None = None

    def round(self, step: float, lam: float, passes: int = PASSES) -> Rounded:
        """Round to the grid of ``step``; each pass has the statistics of the one before."""
        order, factor = self._factored()
        kept = np.ones(self.weights.shape, np.bool_) if self.kept is None else self.kept
        weights = self.weights
        if order is not None:
            weights, kept = weights[:, order], kept[:, order]
        top = int(min(np.abs(weights).max(initial=0.0) / step + 1, MAX_SYMBOL))
        symbols = np.clip(np.rint(weights / step), -top, top).astype(np.int32)
        scale = 0.5 * self.curvature / lam
        for _ in range(passes):
            lengths = _code_lengths(symbols, top)
            symbols = _pass(weights, kept, factor, scale, step, lengths)
        if order is not None:
            back = np.empty_like(symbols)
            back[:, order] = symbols
            symbols = back
        return Rounded(symbols, step, self._distortion(symbols, step), _bits(symbols, top))

    def best(self, lam: float) -> Rounded:
        """The step of least D + lambda R: downhill by factors of 2^(1/2), then ever finer."""
        diagonal = 1.0 if self.moments is None else float(np.mean(np.diag(self.moments)))
        stiffness = max(float(np.mean(self.curvature)) * diagonal, 1e-30)
        largest = max(float(np.abs(self.weights).max(initial=0.0)), 1e-30)
        start = min(np.sqrt(12 * lam / stiffness), largest)
        start = max(start, largest / (MAX_SYMBOL / 2))
        tried: dict[float, Rounded] = {0.0: self.round(start, lam)}
        here, stride = 0.0, 0.5
        while stride >= FINEST:
            for k in (here - stride, here + stride):
                if k not in tried and abs(k) <= 8:
                    tried[k] = self.round(start * 2.0**k, lam)
            least = min(tried, key=lambda k: tried[k].cost(lam))
            if least == here:
                stride /= 2
            here = least
        return tried[here]

    def _distortion(self, symbols: Array, step: float) -> float:
        error = self.weights - symbols * step
        spread = error if self.moments is None else error @ self.moments
        return float(0.5 * (self.curvature @ (spread * error).sum(1)))

    def _factored(self) -> tuple[Array | None, Array | None]:
        """Order of the columns, stiffest first, and U with H^-1 = U^T U in that order."""
        if self.moments is None:
            return None, None
        cached: tuple[Array, Array] | None = self.__dict__.get("_factor")
        if cached is None:
            order = np.argsort(-np.diag(self.moments), kind="stable")
            mean = float(np.mean(np.diag(self.moments)))
            damped = self.moments + DAMPING * max(mean, 1e-12) * np.eye(order.size)
            inverse = np.linalg.inv(damped[np.ix_(order, order)])
            cached = order, np.linalg.cholesky(inverse).T.copy()
            self.__dict__["_factor"] = cached
        return cached


def _pass(
    weights: Array, kept: Array, factor: Array | None, scale: Array, step: float, lengths: Array
) -> Array:
    """Round all columns once; block by block, so that most of the feedback is a product."""
    rows, columns = weights.shape
    symbols = np.empty((rows, columns), np.int32)
    if factor is None:
        flat = weights.reshape(-1, 1).copy()
        scales = np.repeat(scale, columns)
        found = symbols.reshape(-1, 1)
        all_kept = np.ascontiguousarray(kept.reshape(-1, 1))
        round_block(flat, all_kept, np.ones((1, 1)), scales, step, lengths, found)
        return symbols
    left = weights.copy()
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block = np.ascontiguousarray(left[:, start:end])
        found = np.empty(block.shape, np.int32)
        part = np.ascontiguousarray(factor[start:end, start:end])
        mask = np.ascontiguousarray(kept[:, start:end])
        round_block(block, mask, part, scale, step, lengths, found)
        symbols[:, start:end] = found
        left[:, end:] -= block @ factor[start:end, end:]
    return symbols


def _counts(symbols: Array, top: int) -> Array:
    return np.bincount((symbols + top).reshape(-1), minlength=2 * top + 1)


def _code_lengths(symbols: Array, top: int) -> Array:
    """Bits of each symbol from -top to top by its frequency; a new one costs a level more."""
    counts = _counts(symbols, top)
    lengths = -np.log2((counts + 0.3) / (counts.sum() + 0.3 * counts.size))
    return np.where(counts > 0, lengths, lengths + LEVEL_BITS)


def _bits(symbols: Array, top: int) -> float:
    counts = _counts(symbols, top)
    counts = counts[counts > 0]
    n = counts.sum()
    return float(-(counts * np.log2(counts / n)).sum() + LEVEL_BITS * counts.size) if n else 0.0
