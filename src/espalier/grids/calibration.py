"""The range of numbers that a fixed-point grid covers: how far out, and with which scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InvalidArgument

Array = NDArray[Any]

CALIBRATIONS = ("mse", "minmax", "percentile")
SHARES = np.linspace(1.0, 0.2, 81)
"""Of the whole range, which are tried for the least squared error."""
LARGE = 1 << 20
"""Elements, from which on only every tenth share is tried, and then some beside the best."""
BESIDE = (-0.08, -0.06, -0.04, -0.02, 0.02, 0.04, 0.06, 0.08)
POWERS = 6
"""Powers of two that are tried, from the one that covers the whole range down."""
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Range:
    """Whole numbers from ``low`` to ``high``, and how values are laid on them.

    Parameters
    ----------
    low, high : int
    symmetric : bool
        Zero has the number 0; otherwise it may have any.
    power_of_two : bool
        Whether scales are powers of two (dynamic fixed point).
    calibration : {"mse", "minmax", "percentile"}
        Least squared error; all values covered; all but the outermost.
    percentile : float
        With ``"percentile"``: how many percent are covered, at each end.
    """

    low: int
    high: int
    symmetric: bool
    power_of_two: bool = False
    calibration: str = "mse"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            known = ", ".join(CALIBRATIONS)
            raise InvalidArgument(f"calibration must be {known}, not {self.calibration!r}")
        if not 50 < self.percentile <= 100:
            raise InvalidArgument(f"percentile must be within 50 and 100, not {self.percentile!r}")

    def fit(self, values: Array, kept: Array) -> tuple[Array, Array]:
        """Scales (above 0) and zero points of rows of values; float64, (rows, 1) each."""
        values = np.where(kept, values, 0.0).astype(np.float64)
        least, most = self._ends(values, kept)
        if self.calibration != "mse":
            return self._grid(least, most)
        share = np.ones_like(most)
        lowest = np.full_like(most, np.inf)
        steps = 0.5 ** np.arange(POWERS) if self.power_of_two else SHARES
        more = values.size >= LARGE and not self.power_of_two
        for around, tried in ((False, steps[:: 10 if more else 1]), (True, BESIDE if more else ())):
            start = share if around else np.zeros_like(share)
            for step in tried:
                other = np.minimum(start + step, 1.0)
                error = self._error(values, *self._grid(least * other, most * other))
                share = np.where(error < lowest, other, share)
                lowest = np.minimum(error, lowest)
        return self._grid(least * share, most * share)

    def _ends(self, values: Array, kept: Array) -> tuple[Array, Array]:
        """How far the values reach below and above zero: at most 0, at least 0."""
        if self.calibration == "percentile":
            free = np.where(kept, values, np.nan)
            # Rows of which nothing is kept have no percentile.
            free[~kept.any(-1)] = 0.0
            if self.symmetric:
                most = np.nanpercentile(np.abs(free), self.percentile, axis=-1, keepdims=True)
                return -most, most
            ends = [100 - self.percentile, self.percentile]
            least, most = np.nanpercentile(free, ends, axis=-1, keepdims=True)
        else:
            least, most = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
        least, most = np.minimum(least, 0.0), np.maximum(most, 0.0)
        if self.symmetric:
            most = np.maximum(-least, most)
            return -most, most
        return least, most

    def _grid(self, least: Array, most: Array) -> tuple[Array, Array]:
        if self.symmetric:
            scales, zeros = most / self.high, np.zeros_like(most)
        else:
            scales, zeros = (most - least) / (self.high - self.low), None
        # Where all is zero any scale will do; and none is so small that its inverse is not finite.
        scales = np.where(scales > 2.0**-100, scales, 1.0)
        if self.power_of_two:
            scales = np.exp2(np.ceil(np.log2(scales)))
        scales = scales.astype(np.float32).astype(np.float64)
        if zeros is None:
            zeros = np.clip(np.rint(self.low - least / scales), self.low, self.high)
        return scales, zeros

    def _error(self, values: Array, scales: Array, zeros: Array) -> Array:
        """Sum of squares of each row, (rows, 1)."""
        rows = max(1, _CHUNK // max(values.shape[-1], 1))
        sums = []
        for start in range(0, len(values), rows):
            part = slice(start, start + rows)
            numbers = np.clip(
                np.rint(values[part] / scales[part]) + zeros[part], self.low, self.high
            )
            error = (numbers - zeros[part]) * scales[part] - values[part]
            sums.append(np.einsum("ij,ij->i", error, error)[:, None])
        return np.concatenate(sums) if sums else np.zeros((0, 1))
