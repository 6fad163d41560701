"""Which values a layer's weights may take: the family of quantizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from espalier.registry import Registry

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Quantized:
    """A layer's kept weights as codes: kept element i is ``codebook[codes[i]]``.

    Attributes
    ----------
    codes : ndarray, uint8 or uint16, shape (kept,)
        In flat (row-major) order of the kept elements.
    codebook : ndarray, shape (k',), rising
        In the dtype of the values; empty where nothing is kept.
    reseeded : int
        Clusters that were left empty on the way, and given new members.
    """

    codes: Array
    codebook: Array
    reseeded: int = 0


class Quantizer(ABC):
    """Replace weights by a few shared values.

    A method is a frozen dataclass in a file of its own under ``quantizers``, registered by name.
    """

    name: ClassVar[str]

    @abstractmethod
    def fit(
        self, values: Array, mask: Array | None = None, importance: Array | None = None
    ) -> Quantized:
        """Codes and codebook for the kept elements of one tensor.

        Parameters
        ----------
        values : ndarray, float16, float32 or float64, any shape
            Finite where kept.
        mask : ndarray of bool, of that shape, optional
            True where kept; all are kept without it.
        importance : ndarray of that shape, optional
            How much an error in each element costs, 0 or more; the same for all without it.

        Raises
        ------
        InvalidArgument
            Values, mask or importance are not what they must be. The message does not name the
            tensor, which only the caller knows.
        """


QUANTIZERS: Registry[Quantizer] = Registry("quantizer", "espalier.quantization.quantizers")
