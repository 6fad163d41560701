"""Fixed point: evenly spaced numbers, of 2 to 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.errors import InvalidArgument
from espalier.grids.calibration import Range
from espalier.grids.grid import GRIDS, Grid, Groups
from espalier.options import check_fixed_bits


@GRIDS.register("fixed")
@dataclass(frozen=True)
class Fixed(Grid):
    """weight = (number - zero) * scale, number = clip(round(weight / scale) + zero).

    Parameters
    ----------
    bits : int
        2 to 16.
    symmetric : bool
        True: numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1, and zero is 0, as integer kernels
        want weights. False (affine): 2^bits numbers, and a zero point that fits the range.
    power_of_two : bool
        Scales are powers of two (dynamic fixed point), so that a shift takes their place.
    calibration : {"mse", "minmax", "percentile"}
        Scales of least squared error; that cover all weights; all but the outermost.
    percentile : float
        With ``"percentile"``: percent of the weights that are covered, at each end.
    train_scale : bool
        Whether scales learn too, by their gradient as Esser et al. 2020 (arXiv 1902.08153, eq. 3)
        have it.

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.array([[0.5, -1.0, 0.26]])
    >>> grid = Fixed(bits=3, calibration="minmax")
    >>> scales, zeros = grid.fit(weights, weights == weights)
    >>> grid.round(weights, None, scales, zeros).tolist()
    [[1.0, -3.0, 1.0]]
    """

    bits: int = 8
    symmetric: bool = True
    power_of_two: bool = False
    calibration: str = "mse"
    percentile: float = 99.9
    train_scale: bool = False

    def __post_init__(self) -> None:
        check_fixed_bits(self.bits)
        if self.train_scale and self.power_of_two:
            raise InvalidArgument("train_scale: powers of two do not learn")
        self._range()

    @property
    def trains_scale(self) -> bool:
        return self.train_scale

    @property
    def numbers(self) -> tuple[int, int, int]:
        half = 1 << (self.bits - 1)
        return (1 - half, 1, 2 * half - 1) if self.symmetric else (-half, 1, 2 * half)

    def _range(self) -> Range:
        first, _, levels = self.numbers
        how = self.symmetric, self.power_of_two, self.calibration, self.percentile
        return Range(first, first + levels - 1, *how)

    def fit(self, values: Groups, kept: Groups) -> tuple[Groups, Groups]:
        return self._range().fit(values, kept)

    def round(self, values: Groups, kept: Groups, scales: Groups, zeros: Groups) -> Groups:
        first, stride, levels = self.numbers
        last = first + stride * (levels - 1)
        if stride == 1:  # ties of the quotient to even, as ONNX has it
            return ((values / scales).round() + zeros).clip(first, last)
        codes = ((values / scales + zeros - first) / stride).round().clip(0, levels - 1)
        return codes * stride + first

    def bounds(self, scales: Groups, zeros: Groups) -> tuple[Groups, Groups]:
        first, stride, levels = self.numbers
        last = first + stride * (levels - 1)
        return (first - zeros) * scales, (last - zeros) * scales

    def rest(self, values: Groups, scales: Groups, zeros: Groups) -> Groups:
        low, high = self.bounds(scales, zeros)
        return (values / scales) * ((values >= low) & (values <= high))
