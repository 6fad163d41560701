"""rANS: as small as the frequencies allow, a fraction of a bit at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import CODERS, EntropyCoder, symbol_dtype
from espalier.entropy.cursor import Cursor, varint
from espalier.errors import CorruptFile, TruncatedFile
from espalier.kernels import bitpack
from espalier.kernels import rans as kernel
from espalier.kernels.frequencies import FRACTION, best_levels, fill_frequencies, log2_table
from espalier.kernels.levels import MAX_LOG, MAX_PRECISION, MIN_LOG, read_levels, write_levels

Array = NDArray[Any]

_STATE = 8
"""Bytes of a state at most."""


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
    (8, 5)
    >>> np.array_equal(coder.decode(payload, 100, table), symbols)
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
        used = np.flatnonzero(counts)
        logs = log2_table()[table.counts[used]]
        cost = int(counts[used] @ ((table.log << FRACTION) - logs))
        n = int(counts.sum())
        beside = 32 * kernel.LANES * (kernel.block_starts(n).size - 1)
        return -(-cost >> FRACTION) + (beside if kernel.lanes_of(n) > 1 else 0)

    def write_table(self, table: Frequencies) -> bytes:
        if table.levels is None:
            return varint(table.lone) + varint(0)
        head = varint(table.first) + varint(table.levels.size - 1)
        written = write_levels(table.levels, table.precision)
        return head + bytes([table.log - MIN_LOG | table.precision << 4]) + written

    def read_table(self, cursor: Cursor, alphabet: int) -> Frequencies:
        if alphabet == 0:
            raise CorruptFile("frequencies: the alphabet is empty")
        frequencies = np.zeros(alphabet, np.int64)
        first = cursor.varint("first symbol", alphabet - 1)
        span = cursor.varint("span of symbols", alphabet - 1 - first)
        if span == 0:
            return Frequencies(frequencies, first)
        head = cursor.u8("frequencies: sum and precision")
        log, precision = (head & 15) + MIN_LOG, head >> 4
        if log > MAX_LOG or precision > min(MAX_PRECISION, log - 1):
            raise CorruptFile(f"frequencies: a sum of 2**{log} with a precision of {precision}")
        left = np.frombuffer(cursor.data[cursor.at :], np.uint8)
        levels, size, status = read_levels(left, log, precision, span + 1)
        if status == bitpack.SHORT:
            raise TruncatedFile(f"frequencies: the table of {span + 1} symbols is cut short")
        if status == bitpack.OK:
            cursor.take(size, "frequencies")
            part = frequencies[first : first + span + 1]
            status = int(fill_frequencies(levels, log, precision, part))
        if status != bitpack.OK:
            raise CorruptFile(
                f"frequencies: no {span + 1} symbols have these; their sum is 2**{log}"
            )
        return Frequencies(frequencies, -1, log, precision, first, levels)

    def encode(self, symbols: Array, table: Frequencies) -> bytes:
        if table.lone >= 0 or not symbols.size:
            return b""
        blocks = kernel.encode(symbols, table.counts, table.log)
        if kernel.lanes_of(symbols.size) == 1:
            states, words = blocks[0]
            state = int(states[0])
            # A state behind words has 4 bytes at least; 5 to 8 tell the reader where it begins.
            size = max((state.bit_length() + 7) // 8, 5 if words.size else 0)
            return words.astype("<u4").tobytes() + state.to_bytes(size, "little")
        bodies = [
            states.astype("<u8").tobytes() + words.astype("<u4").tobytes()
            for states, words in blocks
        ]
        return b"".join([varint(len(body)) for body in bodies[:-1]] + bodies)

    def decode(self, buffer: bytes | memoryview, n: int, table: Frequencies) -> Array:
        dtype = symbol_dtype(table.counts.size)
        if table.lone >= 0 or not n:
            Cursor(buffer).end("payload")
            return np.broadcast_to(np.array(max(table.lone, 0), dtype), (n,))
        least = (table.log << FRACTION) - int(log2_table()[int(table.counts.max())])
        # Twice what they can hold: no proof is asked for here, only that memory is paid for.
        if n * least >> FRACTION > 16 * len(buffer) + 128:
            raise TruncatedFile(f"{n} symbols cannot lie in {len(buffer)} bytes")
        blocks = _one_state(buffer) if kernel.lanes_of(n) == 1 else _blocks(buffer, n)
        slots, entries = kernel.decode_tables(table.counts, table.log)
        out = np.empty(n, dtype)
        spans = pairwise(kernel.block_starts(n).tolist())
        for (start, stop), (states, words) in zip(spans, blocks, strict=True):
            status = kernel.decode(states, words, slots, entries, table.log, out[start:stop])
            if status == bitpack.SHORT:
                raise TruncatedFile(f"a block ends before the last of its symbols ({n} in all)")
            if status != bitpack.OK:
                raise CorruptFile(f"a block is not one of its symbols alone ({n} in all)")
        return out


def _words(data: memoryview) -> Array:
    return np.frombuffer(data, "<u4").astype(np.uint32)


def _one_state(buffer: bytes | memoryview) -> list[tuple[Array, Array]]:
    """The state and the words of a payload of one state."""
    size = len(buffer)
    last = size if size <= _STATE else 5 + (size - 5) % 4
    cursor = Cursor(buffer)
    words = _words(cursor.take(size - last, "words"))
    state = int.from_bytes(cursor.rest(), "little")
    shortest = (state.bit_length() + 7) // 8
    if last != max(shortest, 5 if words.size else 0) or state >> 63:
        raise CorruptFile(f"the state {state:#x} does not take {last} bytes")
    if words.size and state < kernel.LOW:
        raise CorruptFile(f"the state {state:#x} is below 2**31")
    return [(np.array([state], np.uint64), words)]


def _blocks(buffer: bytes | memoryview, n: int) -> list[tuple[Array, Array]]:
    """The states and the words of each block of a payload of ``n`` symbols."""
    cursor = Cursor(buffer)
    number = kernel.block_starts(n).size - 1
    states_bytes = _STATE * kernel.LANES
    if number * states_bytes > cursor.left:
        raise TruncatedFile(f"{number} blocks cannot lie in {len(buffer)} bytes")
    sizes = [cursor.varint("bytes of a block", len(buffer)) for _ in range(number - 1)]
    sizes.append(cursor.left - sum(sizes))
    if min(sizes) < states_bytes or any(size % 4 for size in sizes):
        raise TruncatedFile(f"blocks of {sizes} bytes: {states_bytes} and whole words are right")
    blocks: list[tuple[Array, Array]] = []
    for size in sizes:
        states = np.frombuffer(cursor.take(states_bytes, "states"), "<u8").astype(np.uint64)
        if int(states.min()) < kernel.LOW or int(states.max()) >> 63:
            raise CorruptFile("a state is not from 2**31 to 2**63 - 1")
        blocks.append((states, _words(cursor.take(size - states_bytes, "words"))))
    return blocks
