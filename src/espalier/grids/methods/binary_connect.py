"""BinaryConnect: weights of one size, whose signs are trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.errors import InvalidArgument
from espalier.grids.grid import GRIDS, Grid, Groups, signs

SIZES = ("rms", "one")


@GRIDS.register("binary_connect")
@dataclass(frozen=True)
class BinaryConnect(Grid):
    """weight = H sign(latent), sign(0) = 1 (Courbariaux et al. 2015, arXiv 1511.00363, eq. 1).

    Parameters
    ----------
    size : {"rms", "one"} or float
        H. ``"one"`` is the paper's, and wants batch norms behind the layers; ``"rms"``, the root
        mean square of the weights as they are, does not. (The authors' program has a bound by
        Glorot's rule, which is about that of weights that were drawn by it.)

    Notes
    -----
    Latent weights learn within -H and H: where the paper clips them after each step (section 2.4),
    what would lead them farther off is left out of the gradient here, so that any optimizer will
    do. Signs are deterministic, as in the paper's runs at test time.
    """

    size: str | float = "rms"

    keeps_ends = True

    def __post_init__(self) -> None:
        number = isinstance(self.size, int | float) and not isinstance(self.size, bool)
        if self.size not in SIZES and not (number and 0 < float(self.size) < float("inf")):
            raise InvalidArgument(
                f"size must be {' or '.join(SIZES)}, or a number above 0, not {self.size!r}"
            )

    @property
    def numbers(self) -> tuple[int, int, int]:
        return -1, 2, 2

    def fit(self, values: Groups, kept: Groups) -> tuple[Groups, Groups]:
        rows = np.zeros((len(values), 1))
        if not isinstance(self.size, str):
            return rows + self.size, rows
        if self.size == "one":
            return rows + 1.0, rows
        mean_square = np.square(values[kept]).mean() if kept.any() else 0.0
        return rows + (np.sqrt(mean_square) or 1.0), rows

    def round(self, values: Groups, kept: Groups, scales: Groups, zeros: Groups) -> Groups:
        return signs(values)

    def bounds(self, scales: Groups, zeros: Groups) -> tuple[Groups, Groups]:
        return -scales, scales
