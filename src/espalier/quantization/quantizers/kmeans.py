"""Weight sharing by k-means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.errors import InvalidArgument
from espalier.quantization.assignment import assign, checked_values
from espalier.quantization.initialisation import Initialisation
from espalier.quantization.kmeans import checked_weights, make_solver, solve
from espalier.quantization.quantizer import QUANTIZERS, Array, Quantized, Quantizer
from espalier.quantization.solver import Solver


@QUANTIZERS.register("kmeans")
@dataclass(frozen=True)
class KMeans(Quantizer):
    """A codebook of 2^bits values that minimises the sum of squared errors over the kept weights.

    Han et al. 2016, section 3.1.

    Parameters
    ----------
    bits : int
        1 to 16; the codebook has at most 2^bits values.
    init, solver, iterations, seed, reseed
        As in :func:`~espalier.quantization.kmeans.kmeans_1d`.

    Notes
    -----
    Codes are the nearest entries of the codebook *as stored*, after rounding to the dtype of the
    values. Entries that become equal by rounding (float16) are merged.

    Examples
    --------
    >>> import numpy as np
    >>> weight = np.array([[0.0, 0.9], [1.1, -1.0]], np.float32)
    >>> shared = KMeans(bits=1).fit(weight, mask=weight != 0)
    >>> shared.codebook, shared.codes
    (array([-1.,  1.], dtype=float32), array([1, 1, 0], dtype=uint8))
    """

    bits: int = 5
    init: str | Initialisation | None = None
    solver: str | Solver | None = None
    iterations: int = 300
    seed: int = 0
    reseed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise InvalidArgument(f"bits must be within 1 and 16, not {self.bits}")
        self._solver()

    def fit(
        self, values: Array, mask: Array | None = None, importance: Array | None = None
    ) -> Quantized:
        values = np.asarray(values)
        for what, array in (("mask", mask), ("importance", importance)):
            if array is not None and np.shape(array) != values.shape:
                raise InvalidArgument(
                    f"{what} has shape {np.shape(array)}, values have {values.shape}"
                )
        if mask is not None and np.asarray(mask).dtype != np.bool_:
            raise InvalidArgument(f"mask must be bool, not {np.asarray(mask).dtype}")
        kept = values.reshape(-1) if mask is None else values[mask]
        flat = checked_values(kept)
        weights = None
        if importance is not None:
            importance = np.asarray(importance)
            picked = importance.reshape(-1) if mask is None else importance[mask]
            # Where nothing matters (a layer without gradient), everything matters the same.
            weights = checked_weights(picked, flat.size) if np.any(picked) else None
        solution, _ = solve(flat, 2**self.bits, self._solver(), weights)
        codebook = np.unique(solution.centroids.astype(kept.dtype))
        codes = assign(flat, codebook)
        return Quantized(codes, codebook, solution.reseeded)

    def _solver(self) -> Solver:
        return make_solver(
            self.solver,
            init=self.init,
            iterations=self.iterations,
            seed=self.seed,
            reseed=self.reseed,
        )
