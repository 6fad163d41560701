"""The table of a Huffman code as few bytes: the lengths of its code words, as differences.

Centroids are in rising order, so the lengths of their code words form a bowl: neighbours mostly
differ by 0 or 1. Lengths are therefore written as steps from the last length that was not 0, in a
fixed prefix code, and only from the first symbol that occurs to the last:

    varint  first   the first symbol that occurs
    varint  span    the last one, less the first; 0: a lone symbol, and the table ends here
    bits            for each symbol from ``first`` on, until ``last`` is reached:
                        0            the last length again
                        1 0 s        one more (s = 0) or one less (s = 1)
                        1 1 0 L(4)   the length L + 1, in full
                        1 1 1 Z      a run of absent symbols, Z >= 1 in Elias' gamma code

Bits go least significant first, and the last byte is padded with zeros. The "last length" before
the first symbol is ceil(log2(span + 1)), at least 1 and at most 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.cursor import Cursor, varint
from espalier.errors import CorruptFile, FormatError, TruncatedFile
from espalier.kernels import prefix_code as kernel
from espalier.kernels.bitpack import OK, SHORT, bytes_of, frozen
from espalier.kernels.prefix_code import MAX_LENGTH


def write_lengths(lengths: NDArray[Any], lone: int) -> bytes:
    """Serialise code lengths (uint8, shape (alphabet,)), or the only symbol that occurs."""
    if lone >= 0:
        return varint(lone) + varint(0)
    used = np.flatnonzero(lengths)
    first, last = int(used[0]), int(used[-1])
    written = kernel.written_lengths(frozen(lengths[first : last + 1]))
    return varint(first) + varint(last - first) + written.tobytes()


def read_lengths(cursor: Cursor, alphabet: int) -> tuple[NDArray[Any], int]:
    """Read what :func:`write_lengths` wrote: the lengths, and the lone symbol or -1.

    Raises
    ------
    FormatError
        A symbol lies outside ``alphabet``, or the lengths are not those of a complete code:
        the sum of 2**-length must be 1.
    """
    lengths = np.zeros(alphabet, np.uint8)
    first = cursor.varint("first symbol", max(alphabet - 1, 0))
    span = cursor.varint("span of symbols", max(alphabet - 1 - first, 0))
    if alphabet == 0:
        raise CorruptFile("code lengths: the alphabet is empty")
    if span == 0:
        return lengths, first
    data = bytes_of(cursor.data)
    found = kernel.read_lengths(data, 8 * cursor.at, first, first + span, lengths)
    status, bit, symbol, value = found
    if status != OK:
        raise _error(status, symbol, value, first + span)
    if bit & 7 and data[bit >> 3] >> (bit & 7):
        raise CorruptFile("code lengths: padding bits are not zero")
    shares = _SHARES[lengths[first : first + span + 1]].sum()
    if shares != 1 << MAX_LENGTH:
        raise CorruptFile(
            f"code lengths: the sum of 2**-length is {shares / (1 << MAX_LENGTH):.6g}, not 1"
        )
    cursor.at = (bit + 7) >> 3
    return lengths, -1


_SHARES = np.array([0, *(1 << MAX_LENGTH - length for length in range(1, MAX_LENGTH + 1))])
"""Of the space of code words, what one of each length takes, times 2**MAX_LENGTH."""


def _error(status: int, symbol: int, value: int, last: int) -> FormatError:
    if status == SHORT:
        return TruncatedFile("code lengths: the table is cut short")
    if status == kernel.BAD_LENGTH:
        what = "a run of absent symbols" if value < 0 else str(value)
        return CorruptFile(f"code lengths: {what} for symbol {symbol}, not 1 to {MAX_LENGTH}")
    if status == kernel.LONG_RUN:
        return CorruptFile("code lengths: a run of absent symbols has more than 17 bits")
    return CorruptFile(f"code lengths: {value} absent symbols where {last - symbol} are left")
