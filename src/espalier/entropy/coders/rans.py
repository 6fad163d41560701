"""rANS: as small as the frequencies allow, a fraction of a bit at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import CODERS, EntropyCoder
from espalier.entropy.cursor import Cursor, varint
from espalier.errors import CorruptFile, FormatError, TruncatedFile
from espalier.kernels import bitpack, rans_decode
from espalier.kernels import rans as kernel
from espalier.kernels.bitpack import frozen
from espalier.kernels.frequencies import best_levels, log2_table
from espalier.kernels.gather import WORDS
from espalier.kernels.levels import MAX_LOG, MAX_PRECISION, MIN_LOG, write_levels

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Frequencies:
    """The table of rANS.

    Attributes
    ----------
    counts : int64 array, shape (alphabet,)
        Frequencies that sum to 2**log; all 0 for a lone symbol.
    lone : int
        The only symbol that occurs (0 if none does), or -1 if several do.
    log, precision : int
        m and p of :mod:`espalier.kernels.frequencies`.
    first : int
        The first symbol that occurs.
    levels : int64 array
        From the first symbol that occurs to the last.
    """

    counts: Array
    lone: int
    log: int = 0
    precision: int = 0
    first: int = 0
    levels: Array | None = None


@CODERS.register("rans")
@dataclass(frozen=True)
class Rans(EntropyCoder[Frequencies]):
    """Range variant of asymmetric numeral systems (Duda 2013), static frequencies.

    A symbol of frequency f out of M takes log2(M / f) bits, where a Huffman code word takes a whole
    number of them. The best M, and the precision to which frequencies are told, are looked for by
    the size of table and payload together.

    Examples
    --------
    >>> coder = Rans()
    >>> symbols = np.array([0] * 90 + [1, 2] * 5, np.uint8)
    >>> table = coder.fit(np.bincount(symbols))
    >>> table.counts.tolist(), table.log
    ([14, 1, 1], 4)
    >>> payload = coder.encode(symbols, table)
    >>> len(payload), len(coder.write_table(table))  # a Huffman code takes 14 bytes of payload
    (9, 5)
    >>> np.array_equal(coder.decode(coder.write_table(table) + payload, 100, 3)[0], symbols)
    True

    References
    ----------
    Duda 2013, arXiv:1311.2540; Giesen 2014, arXiv:1402.3392.
    """

    id: ClassVar[int] = 3

    def fit(self, counts: Array) -> Frequencies:
        used = np.flatnonzero(counts)
        frequencies = np.zeros(counts.size, np.int64)
        if used.size < 2:
            return Frequencies(frequencies, int(used[0]) if used.size else 0)
        first, end = int(used[0]), int(used[-1]) + 1
        found = best_levels(counts[first:end].astype(np.int64), counts.size > 256)
        log, precision, levels, frequencies[first:end] = found
        return Frequencies(frequencies, -1, log, precision, first, levels)

    def bits(self, counts: Array, table: Frequencies) -> int:
        if table.lone >= 0:
            return 0
        fields = frozen(counts), frozen(table.counts), table.log, log2_table()
        return int(kernel.payload_bits(*fields))

    def slack(self, bits: int) -> int:
        return kernel.SLACK_BITS + bits // kernel.SLACK_SHARE

    def write_table(self, table: Frequencies) -> bytes:
        if table.levels is None:
            return varint(table.lone) + varint(0)
        head = varint(table.first) + varint(table.levels.size - 1)
        written = write_levels(table.levels, table.precision)
        return head + bytes([table.log - MIN_LOG | table.precision << 4]) + written

    def encode(self, symbols: Array, table: Frequencies) -> bytes:
        if table.lone >= 0 or not symbols.size:
            return b""
        bodies = kernel.encode(symbols, table.counts, table.log)
        return b"".join([varint(len(body)) for body in bodies[:-1]] + bodies)

    def decode(self, body: bytes | memoryview, n: int, alphabet: int) -> tuple[Array, int]:
        return self._read(body, n, alphabet, None)

    def lookup(self, body: bytes | memoryview, n: int, values: Array) -> Array:
        word = WORDS.get(values.itemsize)
        if word is None:
            return super().lookup(body, n, values)
        words = np.ascontiguousarray(values).view(word)
        return self._read(body, n, values.size, words)[0].view(values.dtype)

    def _read(
        self, body: bytes | memoryview, n: int, alphabet: int, values: Array | None
    ) -> tuple[Array, int]:
        """Symbols, or what ``values`` has for them, and the bytes of the table."""
        cursor = Cursor(body)
        if alphabet == 0:
            raise CorruptFile("frequencies: the alphabet is empty")
        wide = alphabet > 256
        values = _SYMBOLS[wide] if values is None else values
        first = cursor.varint("first symbol", alphabet - 1)
        span = cursor.varint("span of symbols", alphabet - 1 - first)
        if span == 0 or not n:
            cursor.end("payload")
            return np.broadcast_to(values[first].copy(), (n,)), cursor.at
        head = cursor.u8("frequencies: sum and precision")
        log, precision = (head & 15) + MIN_LOG, head >> 4
        if log > MAX_LOG or precision > min(MAX_PRECISION, log - 1):
            raise CorruptFile(f"frequencies: a sum of 2**{log} with a precision of {precision}")
        before = cursor.at
        data = bitpack.bytes_of(cursor.rest())
        payload, status, found = rans_decode.decode(
            data, first, span, log, precision, n, frozen(values), _SYMBOLS[wide][:0]
        )
        if payload < 0:
            raise _table_error(status, span + 1, log)
        if status == bitpack.SHORT:
            raise TruncatedFile(f"{n} symbols cannot lie in {len(data) - payload} bytes")
        if status != bitpack.OK:
            raise CorruptFile(f"the payload is not one of {n} symbols alone")
        return found, before + payload


_SYMBOLS = frozen(np.arange(1 << 8, dtype=np.uint8)), frozen(np.arange(1 << 16, dtype=np.uint16))
"""Every symbol, standing for itself."""


def _table_error(status: int, symbols: int, log: int) -> FormatError:
    if status == bitpack.SHORT:
        return TruncatedFile(f"frequencies: the table of {symbols} symbols is cut short")
    return CorruptFile(f"frequencies: no {symbols} symbols have these; their sum is 2**{log}")
