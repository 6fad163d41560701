"""Every symbol in the same number of bits: ceil(log2 of the alphabet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import CODERS, EntropyCoder, symbol_dtype
from espalier.errors import CorruptFile, TruncatedFile
from espalier.kernels import bitpack


@CODERS.register("fixed")
@dataclass(frozen=True)
class Fixed(EntropyCoder[int]):
    """Fixed width (Han et al. 2016, section 3: log2 k bits for one of k shared weights).

    The table is the size of the alphabet, which the tensor declares: it takes no bytes.

    Examples
    --------
    >>> coder = Fixed()
    >>> table = coder.fit(np.array([1, 1, 1]))
    >>> coder.encode(np.array([0, 1, 2], np.uint8), table)  # 2 bits each
    b'$'
    """

    id: ClassVar[int] = 1

    @staticmethod
    def width(alphabet: int) -> int:
        """ceil(log2(alphabet)); 0 for one symbol or none."""
        return max(alphabet - 1, 0).bit_length()

    def fit(self, counts: NDArray[Any]) -> int:
        return int(counts.size)

    def bits(self, counts: NDArray[Any], table: int) -> int:
        return int(counts.sum()) * self.width(table)

    def slack(self, bits: int) -> int:
        return 0

    def write_table(self, table: int) -> bytes:
        return b""

    def encode(self, symbols: NDArray[Any], table: int) -> bytes:
        return bitpack.pack(symbols, self.width(table)).tobytes()

    def decode(self, body: bytes | memoryview, n: int, alphabet: int) -> tuple[NDArray[Any], int]:
        width = self.width(alphabet)
        data = np.frombuffer(body, np.uint8)
        symbols, status = bitpack.unpack(data, n, width, symbol_dtype(alphabet))
        if status != bitpack.OK:
            need = bitpack.packed_bytes(n, width)
            error = TruncatedFile if status == bitpack.SHORT else CorruptFile
            raise error(
                f"{n} symbols of {width} bits, padded with zeros, are {need} bytes, "
                f"not these {data.size}"
            )
        if width and int(symbols.max(initial=0)) >= alphabet:
            raise CorruptFile(f"symbol {int(symbols.max())} is outside the alphabet of {alphabet}")
        return symbols, 0
