"""Binary weights with a scale for each filter."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.grids.grid import GRIDS, Grid, Groups, mean, signs


@GRIDS.register("binary")
@dataclass(frozen=True)
class Binary(Grid):
    """weight = a sign(latent), a = mean |latent| of the filter (XNOR-Net's binary weight network).

    The scale and the signs of least squared error: Rastegari et al. 2016, arXiv 1603.05279,
    section 3.1, eq. 6. Scales follow the latent weights as they train, and the gradient is that of
    section 3.1 ("training"): dC/dw' (1/n + a [|w| <= 1]), where the first term has the sum over the
    filter that the chain rule asks for.
    """

    keeps_ends = True
    live = True

    @property
    def numbers(self) -> tuple[int, int, int]:
        return -1, 2, 2

    def fit(self, values: Groups, kept: Groups) -> tuple[Groups, Groups]:
        scales = self.rescale(values, kept)
        return scales, 0 * scales

    def rescale(self, values: Groups, kept: Groups) -> Groups:
        scales = mean(abs(values), kept)
        return scales + (scales == 0)

    def round(self, values: Groups, kept: Groups, scales: Groups, zeros: Groups) -> Groups:
        return signs(values)

    def slope(self, values: Groups, numbers: Groups, scales: Groups) -> Groups:
        return scales * (abs(values) <= 1)
