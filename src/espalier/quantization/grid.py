"""Rate-distortion rounding of one layer to a uniform grid: min D + lambda R over the symbols.

With weights W (outputs x inputs), second moments H = E[a a^T] of the layer's inputs, and those of
the loss' gradients in its outputs, G (both from a few batches; identities where there are none),
the loss rises by

    D = 1/2 tr(G E H E^T),  E = W - q step

to second order (the Kronecker factors of the Fisher information; of G only the diagonal where
the layer is large), and R is the number of bits of the symbols q.

First columns are rounded in turn, and each error is made up for by the columns not rounded yet
(Optimal Brain Surgeon; Frantar et al. 2022, arXiv 2210.17323, with the Cholesky form); the symbol
is chosen with its code length in the objective (Conzelmann and Bamler 2025, arXiv 2505.18758). Then
coordinate descent moves single symbols, each with all others as they are, which also lets the
errors of one output make up for those of another. A dead zone needs no rule of its own: zero is
cheap where it is frequent. Code lengths are from the pass before
(:mod:`espalier.quantization.rates`), where Conzelmann and Bamler adapt them as they code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.rounding import descend, round_block
from espalier.quantization.rates import classes_of, code_lengths, total_bits

Array = NDArray[Any]

BLOCK = 64
PASSES = 2
"""Of rounding with feedback, before coordinate descent; one more where there is no descent."""
SWEEPS = 6
"""Of coordinate descent, at most."""
SETTLED = 0.002
"""Of the symbols, so few changed in a sweep that the next is not worth it."""
FINEST = 1 / 8
"""The smallest factor between two steps that are tried is two to this."""
DAMPING = 0.01
"""Added to the diagonal of H for the feedback, times its mean: a few batches do not say more."""
RIDGE = 1e-4
"""The same, for the descent, which needs no inverse."""
FULL_ELEMENTS = 1 << 17
"""Of weights; in larger layers G is its diagonal, since a change costs a product of this size."""
SEARCH_ELEMENTS = 1 << 18
"""The step of a larger layer is chosen on so many weights, in whole rows."""
MAX_SYMBOL = 1 << 14


@dataclass(frozen=True, eq=False)
class Rounded:
    """One layer on a grid: its weights are ``symbols * step``.

    ``distortion``: D above, in nats of loss. ``bits``: R above, with some for each level.
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
        Diagonal of G, at least 0.
    kept : bool (outputs, inputs) or None
        False where the weight is pruned and stays so; all are kept if None.
    outputs : float64 (outputs, outputs) or None
        G; its diagonal is ``curvature``, which alone is used if None.
    places : int
        Of a kernel: inputs are channels x places.
    """

    weights: Array
    moments: Array | None
    curvature: Array
    kept: Array | None = None
    outputs: Array | None = None
    places: int = 1

    def round(self, step: float, lam: float, sweeps: int = SWEEPS) -> Rounded:
        """Round to the grid of ``step``: never worse than to the nearest value of it."""
        kept = np.ones(self.weights.shape, np.bool_) if self.kept is None else self.kept
        top = int(min(np.abs(self.weights).max(initial=0.0) / step + 2, MAX_SYMBOL))
        plain = np.clip(np.rint(self.weights / step), -top, top).astype(np.int32) * kept
        if self.moments is None:
            found = self._feedback(plain, kept, step, lam, PASSES + 1)
        else:
            found = self._feedback(plain, kept, step, lam, PASSES)
            self._descend(found, kept, step, lam, sweeps)
        return min(
            (self._rounded(symbols, step) for symbols in (found, plain)),
            key=lambda rounded: rounded.cost(lam),
        )

    def _rounded(self, symbols: Array, step: float) -> Rounded:
        """With the step that suits the symbols best: D is a square in it."""
        outputs = self._outputs()
        spread = symbols if self.moments is None else symbols @ self.moments
        weighted = outputs @ spread if outputs.shape[1] > 1 else outputs * spread
        own = float((weighted * symbols).sum())
        if own > 0:
            fitted = float((weighted * self.weights).sum()) / own
            step = fitted if fitted > 0 else step
        return Rounded(
            symbols,
            step,
            self.distortion(symbols * step),
            total_bits(symbols, self._classes(symbols)),
        )

    def _classes(self, symbols: Array) -> Array:
        """All one where rounding takes each weight by itself, in any order."""
        if self.moments is None:
            return np.zeros(symbols.shape, np.uint8)
        return classes_of(symbols, self.places)

    def _feedback(self, symbols: Array, kept: Array, step: float, lam: float, passes: int) -> Array:
        """Each pass has the statistics of the one before; all classes are one here."""
        order, factor = self._factored()
        weights = self.weights
        if order is not None:
            weights, kept, symbols = weights[:, order], kept[:, order], symbols[:, order]
        top = _top(symbols)
        one = np.zeros(symbols.shape, np.uint8)
        scale = 0.5 * self.curvature / lam
        for _ in range(passes):
            (lengths,) = code_lengths(symbols, one, top)
            symbols = _pass(weights, kept, factor, scale, step, lengths)
        if order is None:
            return symbols
        back = np.empty_like(symbols)
        back[:, order] = symbols
        return back

    def _descend(self, symbols: Array, kept: Array, step: float, lam: float, sweeps: int) -> None:
        assert self.moments is not None
        moments = self.moments.copy()
        moments.flat[:: len(moments) + 1] += RIDGE * max(float(np.diag(moments).mean()), 1e-30)
        outputs = self._outputs()
        top = _top(symbols) + 1
        for _ in range(sweeps):
            classes = self._classes(symbols)
            lengths = code_lengths(symbols, classes, top)
            error = (symbols * step - self.weights) @ moments
            gradient = outputs @ error if outputs.shape[1] > 1 else outputs * error
            changed = descend(
                symbols, kept, gradient, moments, outputs, step, lam, lengths, classes
            )
            if changed <= SETTLED * symbols.size:
                break

    def _outputs(self) -> Array:
        """G, or its diagonal as a column."""
        if self.outputs is None or self.weights.size > FULL_ELEMENTS:
            return np.ascontiguousarray(self.curvature.reshape(-1, 1))
        return np.ascontiguousarray(self.outputs)

    def best(self, lam: float) -> Rounded:
        """The step of least D + lambda R: downhill by factors of 2^(1/2), then ever finer."""
        part = self._part()
        diagonal = 1.0 if self.moments is None else float(np.mean(np.diag(self.moments)))
        stiffness = max(float(np.mean(self.curvature)) * diagonal, 1e-30)
        largest = max(float(np.abs(self.weights).max(initial=0.0)), 1e-30)
        start = min(np.sqrt(12 * lam / stiffness), largest)
        start = max(start, largest / (MAX_SYMBOL / 2))
        tried: dict[float, float] = {}

        def cost(k: float) -> float:
            if k not in tried:
                tried[k] = part.round(start * 2.0**k, lam, sweeps=1).cost(lam)
            return tried[k]

        here, stride = 0.0, 0.5
        while stride >= FINEST:
            least = min((here, here - stride, here + stride), key=cost)
            if least == here or abs(least) > 8:
                stride /= 2
            else:
                here = least
        return self.round(start * 2.0**here, lam)

    def _part(self) -> Layer:
        """Evenly spaced rows, which rounding (but for a full G) takes one by one."""
        rows = len(self.weights)
        stride = -(-self.weights.size // SEARCH_ELEMENTS)
        if stride <= 1 or rows < 2:
            return self
        take = slice(None, None, min(stride, rows))
        kept = None if self.kept is None else self.kept[take]
        part = Layer(
            self.weights[take], self.moments, self.curvature[take], kept, None, self.places
        )
        if self.moments is not None:
            part.__dict__["_factor"] = self._factored()
        return part

    def importance(self) -> Array:
        """What an error of each weight alone costs: D is importance times its square."""
        inputs = 1.0 if self.moments is None else np.diag(self.moments)
        return 0.5 * self.curvature[:, None] * np.broadcast_to(inputs, self.weights.shape)

    def distortion(self, quantized: Array) -> float:
        """D, where ``quantized`` takes the place of the weights."""
        error = self.weights - quantized
        spread = error if self.moments is None else error @ self.moments
        outputs = self._outputs()
        if outputs.shape[1] == 1:
            return float(0.5 * (outputs[:, 0] @ (spread * error).sum(1)))
        return float(0.5 * ((outputs @ error) * spread).sum())

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


def _top(symbols: Array) -> int:
    return int(np.abs(symbols).max(initial=0)) + 1
