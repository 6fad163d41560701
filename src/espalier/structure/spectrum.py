"""How the energy of a matrix is spread over its singular values, and the rank that it calls for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.structure.vbmf import vbmf_rank

_ROUNDING = 1e-12  # of the squares: float32 weights have no more
_CHUNK = 1 << 22  # elements that are in float64 at a time


@dataclass(frozen=True)
class Spectrum:
    """Squared singular values of a matrix, falling.

    Attributes
    ----------
    energies : float64 array, (min(rows, columns),)
    rows, columns : int
    """

    energies: NDArray[np.float64]
    rows: int
    columns: int

    @property
    def kept(self) -> NDArray[np.float64]:
        """``kept[r - 1]``: the share of the squared Frobenius norm that the best rank r holds."""
        total = self.energies.sum()
        return np.minimum(np.cumsum(self.energies) / (total or 1.0), 1.0)

    def rank_for(self, energy: float) -> int:
        """The least rank that holds the share ``energy`` of the squared Frobenius norm."""
        return min(
            int(np.searchsorted(self.kept, energy - _ROUNDING)) + 1, max(1, self.energies.size)
        )

    def vbmf(self) -> int:
        """The rank by variational Bayes, at least 1."""
        return max(1, vbmf_rank(self.energies, self.rows, self.columns))


def spectrum(matrix: Tensor) -> Spectrum:
    """The spectrum of ``matrix``, by the eigenvalues of its smaller Gram matrix in float64.

    Energies are those eigenvalues themselves, so nothing is lost by squaring; and of the matrix no
    more than a few rows are in float64 at a time.
    """
    rows, columns = matrix.shape
    tall = matrix if rows >= columns else matrix.T
    gram = torch.zeros((tall.shape[1],) * 2, dtype=torch.float64, device=matrix.device)
    for some in tall.split(max(1, _CHUNK // max(1, tall.shape[1]))):
        wide = some.double()
        gram.addmm_(wide.T, wide)
    energies = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).cpu().numpy()
    return Spectrum(energies, rows, columns)


def largest(spectra: Sequence[Spectrum], energy: float | None) -> int:
    """The largest rank that one of ``spectra`` calls for, by energy, or by variational Bayes."""
    return max(s.vbmf() if energy is None else s.rank_for(energy) for s in spectra)
