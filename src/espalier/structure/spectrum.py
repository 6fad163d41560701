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
    """The spectrum of ``matrix``: the eigenvalues of its smaller Gram matrix.

    Energies are those eigenvalues themselves, so that nothing is lost by squaring.
    """
    rows, columns = matrix.shape
    energies = torch.linalg.eigvalsh(_gram(matrix if rows <= columns else matrix.T))
    return Spectrum(energies.flip(0).clamp_min(0).cpu().numpy(), rows, columns)


def leading(matrix: Tensor, rank: int) -> Tensor:
    """The left singular vectors of the ``rank`` largest singular values, (rows, rank)."""
    return torch.linalg.eigh(_gram(matrix)).eigenvectors[:, -rank:].flip(1).to(matrix.dtype)


def best_of_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation ``left @ right`` of that rank (Eckart and Young 1936).

    The truncated SVD, as the projection on the singular vectors of the shorter side: far faster
    than all of an SVD where the sides differ. Both factors have the square roots of the singular
    values, so that training moves them alike.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left = best_of_rank(matrix.T, rank)
        return left.T, right.T
    vectors = leading(matrix, rank)
    rest = vectors.T @ matrix
    root = torch.linalg.vector_norm(rest, dim=1).sqrt()
    root[root == 0] = 1
    return vectors * root, rest.div_(root[:, None])


def _gram(matrix: Tensor) -> Tensor:
    """``matrix @ matrix.T`` in float64, of the matrix only some columns at a time."""
    rows = matrix.shape[0]
    gram = torch.zeros((rows, rows), dtype=torch.float64, device=matrix.device)
    for some in matrix.split(max(1, _CHUNK // max(1, rows)), dim=1):
        wide = some.double()
        gram.addmm_(wide, wide.T)
    return gram


def largest(spectra: Sequence[Spectrum], energy: float | None) -> int:
    """The largest rank that one of ``spectra`` calls for, by energy, or by variational Bayes."""
    return max(s.vbmf() if energy is None else s.rank_for(energy) for s in spectra)
