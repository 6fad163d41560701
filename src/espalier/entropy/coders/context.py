"""Adaptive binary range coding: no table, every decision teaches the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import CODERS, EntropyCoder, symbol_dtype
from espalier.entropy.cursor import Cursor
from espalier.errors import CorruptFile, TruncatedFile
from espalier.kernels import range_coder as kernel

Array = NDArray[Any]

LEAST_BITS = 1 / 1420
"""A decision takes more than this: -log2(1 - 32 / 2**16) is 1 / 1419.2."""


_RESTLESS = 0.25 / (kernel.LIMIT * np.log(2))


@CODERS.register("context")
@dataclass(frozen=True)
class Context(EntropyCoder[int]):
    """Binary decisions with adaptive probabilities, in a range coder.

    A symbol is the path from the root of a binary tree to its leaf, and each node learns how often
    the path goes either way (Krichevsky and Trofimov 1981). The table is the size of the alphabet,
    which the tensor declares: it takes no bytes.

    Positions and codes of a tensor have layouts of their own by this coder, in which the
    probabilities depend on neighbours in the tensor: :mod:`espalier.entropy.neighbours`.

    Examples
    --------
    >>> coder = Context()
    >>> table = coder.fit(np.array([90, 5, 5]))
    >>> symbols = np.array([0] * 90 + [1, 2] * 5, np.uint8)
    >>> payload = coder.encode(symbols, table)
    >>> len(payload), np.array_equal(coder.decode(payload, 100, 3)[0], symbols)
    (12, True)
    """

    id: ClassVar[int] = 4

    @staticmethod
    def width(alphabet: int) -> int:
        """Decisions of a symbol: ceil(log2(alphabet))."""
        return max(alphabet - 1, 0).bit_length()

    def fit(self, counts: Array) -> int:
        return int(counts.size)

    def bits(self, counts: Array, table: int) -> int:
        # Of a tree of Krichevsky-Trofimov estimators, the ideal code length: each node with a
        # zeros and b ones takes log2 of (a + b)! / prod (i - 1/2) bits, by Stirling's formula.
        width = self.width(table)
        level = np.zeros(1 << width, np.float64)
        level[: counts.size] = counts
        total = 0.0
        for _ in range(width):
            zeros, ones = level[::2], level[1::2]
            level = zeros + ones
            total += float((_log2_gamma(level + 1) - _half(zeros) - _half(ones)).sum())
            # At its limit a counter goes on moving, which costs up to twice this.
            total += float(np.maximum(level - kernel.LIMIT, 0).sum()) * _RESTLESS
        return int(total)

    def write_table(self, table: int) -> bytes:
        return b""

    def encode(self, symbols: Array, table: int) -> bytes:
        width = self.width(table)
        return kernel.encode(symbols, width) if width and symbols.size else b""

    def decode(self, body: bytes | memoryview, n: int, alphabet: int) -> tuple[Array, int]:
        width = self.width(alphabet)
        dtype = symbol_dtype(alphabet)
        if not width or not n:
            Cursor(body).end("payload")
            return np.broadcast_to(np.array(0, dtype), (n,)), 0
        if n * width * LEAST_BITS > 8 * len(body) + 64:
            raise TruncatedFile(f"{n} symbols cannot lie in {len(body)} bytes")
        symbols, whole = kernel.decode(body, n, width, dtype)
        if not whole:
            raise CorruptFile(f"{len(body)} bytes are not those of {n} symbols alone")
        if int(symbols.max()) >= alphabet:
            raise CorruptFile(f"symbol {int(symbols.max())} is outside the alphabet of {alphabet}")
        return symbols, 0


def _log2_gamma(x: Array) -> Array:
    """log2 of the gamma function from 1/2 on, by Stirling's series from x + 4 on."""
    y = x + 4
    log = (y - 0.5) * np.log2(y) + (1 / (12 * y) - y) / np.log(2) + np.log2(2 * np.pi) / 2
    return np.asarray(log - np.log2(x * (x + 1) * (x + 2) * (x + 3)))


def _half(n: Array) -> Array:
    """log2 of the product of i - 1/2 for i from 1 to n: gamma(n + 1/2) / gamma(1/2)."""
    return np.asarray(_log2_gamma(n + 0.5) - np.log2(np.pi) / 2)
