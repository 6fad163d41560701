"""What an entropy coder is.

A coder turns symbols into bytes, given a table of integers; it knows nothing of tensors. To add
one, put a file beside its siblings in :mod:`espalier.entropy.coders`, give it an unused ``id`` and
describe its bytes in ``SPEC.md``. ``tests/contract/test_coders.py`` tests it from then on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from espalier.errors import CorruptFile
from espalier.kernels.gather import gather
from espalier.registry import Registry

Array = NDArray[Any]
Table = TypeVar("Table")


def symbol_dtype(alphabet: int) -> np.dtype[Any]:
    """The dtype of decoded symbols: uint8 for an alphabet of at most 256, else uint16."""
    return np.dtype(np.uint16 if alphabet > 256 else np.uint8)


class EntropyCoder(ABC, Generic[Table]):
    """Symbols to bytes and back, without loss.

    A table is fitted once for each stream, and written before the payload. It holds integers only,
    so that it is the same on every machine. Every method is deterministic.

    Attributes
    ----------
    id : int
        Its number in a file, 1 to 15; never reused.
    name : str
        Set by the registry.
    """

    id: ClassVar[int]
    name: ClassVar[str]

    @abstractmethod
    def fit(self, counts: Array) -> Table:
        """The table for symbols that occur ``counts`` times (int64, shape (alphabet,))."""

    @abstractmethod
    def bits(self, counts: Array, table: Table) -> int:
        """Size of the payload in bits, to within :meth:`slack`; what choices are made by."""

    def slack(self, bits: int) -> int:
        """Bits by which a payload may differ from the ``bits`` announced, padding aside."""
        return 8 * 64 + bits // 1024

    @abstractmethod
    def write_table(self, table: Table) -> bytes:
        """The table, serialised."""

    @abstractmethod
    def encode(self, symbols: Array, table: Table) -> bytes:
        """The payload. ``symbols``: 1-D, unsigned, each of a count > 0 in the table's fit."""

    @abstractmethod
    def decode(self, body: bytes | memoryview, n: int, alphabet: int) -> tuple[Array, int]:
        """The ``n`` symbols of ``body``, which is exactly a table and its payload.

        Never allocates more than a fixed multiple of the body's length, and of the alphabet's:
        where the payload has no bits, it returns a view of one symbol with stride 0.

        Returns
        -------
        symbols : array, shape (n,)
            uint8 for an alphabet of at most 256 symbols, else uint16. May be read-only.
        table_bytes : int
            How many bytes of ``body`` are the table.

        Raises
        ------
        FormatError
            The table is impossible, or names a symbol outside the alphabet; or the rest is not a
            payload of ``n`` symbols.
        """

    def lookup(self, body: bytes | memoryview, n: int, values: Array) -> Array:
        """``values[symbols]`` for the symbols of :meth:`decode`, of an alphabet of ``values.size``.

        A coder may do better than to make the symbols first. The result may be read-only.
        """
        return gather(values, self.decode(body, n, values.size)[0])


CODERS: Registry[EntropyCoder[Any]] = Registry("coder", "espalier.entropy.coders")
"""Every entropy coder, by name."""


@cache
def coder_by_id(number: int) -> EntropyCoder[Any]:
    """The coder with that ``id``; :class:`CorruptFile` if there is none."""
    for cls in CODERS:
        if cls.id == number:
            return cls()
    known = ", ".join(f"{cls.id} {cls.name}" for cls in sorted(CODERS, key=lambda cls: cls.id))
    raise CorruptFile(f"coder id {number} is not known; known are {known}")
