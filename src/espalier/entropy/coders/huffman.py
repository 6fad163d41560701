"""Canonical, length-limited Huffman coding, each stream with its own table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import CODERS, EntropyCoder, symbol_dtype
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.lengths import read_lengths, write_lengths
from espalier.errors import CorruptFile, TruncatedFile
from espalier.kernels import bitpack
from espalier.kernels import huffman as kernel
from espalier.kernels.bitpack import frozen
from espalier.kernels.counting import count
from espalier.kernels.prefix_code import MAX_LENGTH, code_lengths

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class CodeLengths:
    """The table of a Huffman code.

    Attributes
    ----------
    lengths : uint8 array, shape (alphabet,)
        Of each symbol's code word; 0 for a symbol that does not occur. All 0 for a lone symbol.
    lone : int
        The only symbol that occurs (0 if none does), or -1 if several do.
    """

    lengths: Array
    lone: int = -1


@CODERS.register("huffman")
@dataclass(frozen=True)
class Huffman(EntropyCoder[CodeLengths]):
    """Huffman coding (Han et al. 2016, section 4).

    Deviations from the paper: code words are limited to 12 bits (14 for an alphabet over 256, 16
    where over 8192 symbols occur), which costs next to nothing and lets the decoder find a symbol
    with one look-up; they are canonical, so that the table is a list of lengths; the gap indices
    are split into tokens first, so that their table stays small
    (:mod:`espalier.entropy.positions`).

    Examples
    --------
    >>> coder = Huffman()
    >>> symbols = np.array([0, 1, 0, 2, 0, 0], np.uint8)
    >>> table = coder.fit(np.bincount(symbols))
    >>> table.lengths.tolist()
    [1, 2, 2]
    >>> payload = coder.encode(symbols, table)
    >>> len(payload), coder.decode(coder.write_table(table) + payload, 6, 3)[0].tolist()
    (1, [0, 1, 0, 2, 0, 0])

    References
    ----------
    Huffman 1952; Larmore and Hirschberg 1990 (the limit); Han, Mao and Dally 2016, section 4.
    """

    id: ClassVar[int] = 2

    def fit(self, counts: Array) -> CodeLengths:
        used = np.flatnonzero(counts)
        lone = -1 if used.size > 1 else int(used[0]) if used.size else 0
        limit = 12 if counts.size <= 256 else 14 if used.size <= 8192 else MAX_LENGTH
        return CodeLengths(code_lengths(counts, limit), lone)

    def bits(self, counts: Array, table: CodeLengths) -> int:
        return int(kernel.payload_bits(frozen(counts), frozen(table.lengths)))

    def slack(self, bits: int) -> int:
        return kernel.SLACK_BITS + bits // kernel.SLACK_SHARE

    def write_table(self, table: CodeLengths) -> bytes:
        return write_lengths(table.lengths, table.lone)

    def encode(self, symbols: Array, table: CodeLengths) -> bytes:
        if table.lone >= 0 or not symbols.size:
            return b""
        bits = kernel.word_bits(frozen(count(symbols)), frozen(table.lengths))
        data, ends = kernel.encode(symbols, table.lengths, bits)
        sizes = np.diff(ends, prepend=0)[:-1].tolist()
        return b"".join(map(varint, sizes)) + data.tobytes()

    def decode(self, body: bytes | memoryview, n: int, alphabet: int) -> tuple[Array, int]:
        cursor = Cursor(body)
        lengths, lone = read_lengths(cursor, alphabet)
        table_bytes = cursor.at
        if lone >= 0 or not n:
            cursor.end("payload")
            return np.broadcast_to(
                np.array(max(lone, 0), symbol_dtype(alphabet)), (n,)
            ), table_bytes
        if n > 8 * cursor.left:
            raise TruncatedFile(f"{n} symbols cannot lie in {cursor.left} bytes")
        runs = kernel.substreams(n)
        if runs > cursor.left:
            raise TruncatedFile(f"{runs} run sizes cannot lie in {cursor.left} bytes")
        sizes = [cursor.varint("run size", len(body)) for _ in range(runs - 1)]
        ends = np.cumsum(np.array([*sizes, 0], np.int64))
        data = np.frombuffer(cursor.rest(), np.uint8)
        if ends[-1] > data.size:
            raise TruncatedFile(f"runs of {ends[-1]} bytes are declared, {data.size} are left")
        ends[-1] = data.size
        symbols, status = kernel.decode(data, n, ends, lengths)
        if status == bitpack.SHORT:
            raise TruncatedFile(f"a run ends before the last of its symbols ({n} in all)")
        if status != bitpack.OK:
            raise CorruptFile(f"a run goes on after the last of its symbols ({n} in all)")
        return symbols, table_bytes
