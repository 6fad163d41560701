"""Any evenly spaced numbers, at scales that are given: what a file holds, without its method."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.grids.calibration import Range
from espalier.grids.grid import GRIDS, Groups
from espalier.grids.methods.fixed import Fixed


@GRIDS.register("numbers")
@dataclass(frozen=True)
class Numbers(Fixed):
    """weight = (number - zero) * scale, number = first + stride * code, the nearest one.

    Parameters
    ----------
    first, stride, levels : int
        The numbers are first, first + stride, ..., ``levels`` of them.
    """

    first: int = -1
    stride: int = 1
    levels: int = 3

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.first, self.stride, self.levels

    def _range(self) -> Range:
        last = self.first + self.stride * (self.levels - 1)
        return Range(self.first, last, last > 0, calibration="minmax")

    def fit(self, values: Groups, kept: Groups) -> tuple[Groups, Groups]:
        return self._range().fit(values, kept)
