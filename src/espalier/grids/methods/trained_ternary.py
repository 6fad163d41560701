"""Trained ternary quantization: -n, 0 and p, both of which learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.errors import InvalidArgument
from espalier.grids.grid import GRIDS, Grid, Groups, largest, mean, signs


@GRIDS.register("trained_ternary")
@dataclass(frozen=True)
class TrainedTernary(Grid):
    """weight = p where latent > d, -n where latent < -d, else 0; d = threshold * max |latent|.

    p and n are parameters of each layer, with the sums of the gradients of their weights; latent
    weights get theirs times p, 1 or n (Zhu et al. 2017, arXiv 1612.01064, eq. 6 to 8). At first
    p and n are the means of the magnitudes that they stand for.

    Parameters
    ----------
    threshold : float
        The paper's 0.05, of CIFAR-10 and ImageNet.
    """

    threshold: float = 0.05

    keeps_ends = True
    parts = 2
    one_block = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise InvalidArgument(f"threshold must be within 0 and 1, not {self.threshold!r}")

    @property
    def trains_scale(self) -> bool:
        return True

    @property
    def numbers(self) -> tuple[int, int, int]:
        return -1, 1, 3

    def fit(self, values: Groups, kept: Groups) -> tuple[Groups, Groups]:
        numbers = self.round(values, kept, None, None)
        below, above = (mean(abs(values), numbers == side) for side in (-1, 1))
        scales = np.concatenate([below + (below == 0), above + (above == 0)], axis=-1)
        return scales, np.zeros((len(values), 1))

    def round(self, values: Groups, kept: Groups, scales: Groups, zeros: Groups) -> Groups:
        sizes = abs(values) * kept
        return signs(values) * ((sizes > self.threshold * largest(sizes)) & kept)

    def values(self, numbers: Groups, scales: Groups, zeros: Groups) -> Groups:
        return (numbers > 0) * scales[:, 1:] - (numbers < 0) * scales[:, :1]

    def slope(self, values: Groups, numbers: Groups, scales: Groups) -> Groups:
        return (numbers > 0) * scales[:, 1:] + (numbers < 0) * scales[:, :1] + (numbers == 0)
