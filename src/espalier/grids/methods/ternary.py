"""Ternary weights: -a, 0 and a."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.errors import InvalidArgument
from espalier.grids.grid import GRIDS, Grid, Groups, mean, signs


@GRIDS.register("ternary")
@dataclass(frozen=True)
class Ternary(Grid):
    """weight = a sign(latent) where abs(latent) > d, else 0 (TWN).

    d = threshold * mean |latent|, and a = mean |latent| of those above d: about the least squared
    error (Li et al. 2016, arXiv 1605.04711, eq. 3 to 6). The gradient reaches the latent weights as
    it is (section 2.4).

    Parameters
    ----------
    threshold : float
        The paper's 0.7.
    """

    threshold: float = 0.7

    keeps_ends = True
    live = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise InvalidArgument(f"threshold must be 0 or more, not {self.threshold!r}")

    @property
    def numbers(self) -> tuple[int, int, int]:
        return -1, 1, 3

    def fit(self, values: Groups, kept: Groups) -> tuple[Groups, Groups]:
        scales = self.rescale(values, kept)
        return scales, 0 * scales

    def rescale(self, values: Groups, kept: Groups) -> Groups:
        scales = mean(abs(values), self._above(values, kept))
        return scales + (scales == 0)

    def round(self, values: Groups, kept: Groups, scales: Groups, zeros: Groups) -> Groups:
        return signs(values) * self._above(values, kept)

    def _above(self, values: Groups, kept: Groups) -> Groups:
        return (abs(values) > self.threshold * mean(abs(values), kept)) & kept
