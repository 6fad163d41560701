"""The rank of a noisy matrix by empirical variational Bayesian matrix factorization.

The model: V = B A^T + noise of variance s2, with Gaussian priors on the columns of A and B whose
variances are learned too. Of V, with L <= M the lengths of its sides, alpha = L / M, and singular
values g_h, the global solution keeps exactly those components with

    g_h > sqrt(s2 M (1 + t) (1 + alpha / t)),

where t is the one positive zero of phi(t) + phi(t / alpha), phi(z) = log(1 + z) / z - 1/2. The
noise's variance is found by a one-dimensional search for the least free energy, within bounds.

Nakajima, Sugiyama, Babacan and Tomioka 2013, "Global analytic solution of fully-observed
variational Bayesian matrix factorization" (JMLR 14, 1-37): the solution for each component. The
threshold in this form, the free energy as a function of s2 alone, and its bounds: Nakajima,
Tomioka, Sugiyama and Babacan 2012, "Perfect dimensionality recovery by variational Bayesian PCA"
(NIPS 25). Deviation: the search is over a grid of log s2, and by golden section within it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_GRID = 256
_REFINEMENTS = 60
_TINY = 1e-14  # relative to the largest energy: what float64 leaves of a zero


def vbmf_rank(energies: Array, rows: int, columns: int) -> int:
    """How many components of a matrix are more than noise.

    Parameters
    ----------
    energies : float64 array, (min(rows, columns),)
        Squared singular values, falling.
    rows, columns : int

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> signal = rng.normal(size=(100, 3)) @ rng.normal(size=(3, 200))
    >>> noisy = signal + rng.normal(size=(100, 200))
    >>> vbmf_rank(np.linalg.svd(noisy, compute_uv=False) ** 2, 100, 200)
    3
    """
    if not energies.size or energies[0] <= 0:
        return 0
    less, more = min(rows, columns), max(rows, columns)
    safe = np.maximum(energies, energies[0] * _TINY)
    limit = threshold(less / more)
    noise = _noise(safe, less, more, limit)
    return int(np.count_nonzero(safe > noise * more * limit))


def threshold(alpha: float) -> float:
    """(1 + t) (1 + alpha / t): the least g^2 / (M s2) of a component that is kept."""

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    low, high = 1e-12, 2.6
    for _ in range(200):
        middle = (low + high) / 2
        if phi(middle) + phi(middle / alpha) > 0:
            low = middle
        else:
            high = middle
    return (1 + low) * (1 + alpha / low)


def _noise(energies: Array, less: int, more: int, limit: float) -> float:
    """The variance of the noise, by a search over a grid, and by golden section within it."""
    alpha = less / more
    most = min(math.ceil(less / (1 + alpha)) - 1, energies.size - 1)  # components that can be kept
    high = float(energies.sum()) / (less * more)
    low = max(energies[most] / (more * limit), float(energies[most:].mean()) / more)
    low, high = math.log(low), math.log(max(high, low))
    grid = np.linspace(low, high, _GRID)
    best = int(np.argmin([_free_energy(math.exp(g), energies, alpha, more, limit) for g in grid]))
    a, b = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(_REFINEMENTS):
        c, d = b - golden * (b - a), a + golden * (b - a)
        left = _free_energy(math.exp(c), energies, alpha, more, limit)
        if left < _free_energy(math.exp(d), energies, alpha, more, limit):
            b = d
        else:
            a = c
    return math.exp((a + b) / 2)


def _free_energy(noise: float, energies: Array, alpha: float, more: int, limit: float) -> float:
    """The free energy as a function of the noise's variance, up to a factor and a constant."""
    x = energies / (more * noise)
    signal, rest = x[x > limit], x[x <= limit]
    shifted = signal - (1 + alpha)
    tau = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0))) / 2
    return float(
        np.sum(rest - np.log(rest))
        + np.sum(signal - tau)
        + np.sum(np.log((tau + 1) / signal))
        + alpha * np.sum(np.log(tau / alpha + 1))
    )
