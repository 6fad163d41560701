"""Codebooks: distinct values, mostly in rising order, as the steps from one to the next.

Of k values in any order, the order alone takes log2 k! bits, seven for each of 256. Where centroids
lie in order, that is saved; where some do not (clusters that were re-seeded), it is told which.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import EntropyCoder
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.keys import keys_of, values_of
from espalier.entropy.positions import TOKENS, decode_positions, encode_tokens
from espalier.entropy.stream import Stream, decode_symbols, encode_symbols
from espalier.errors import CorruptFile
from espalier.kernels.counting import count

Array = NDArray[Any]

SORTED = 3
"""Layout of values."""

_MOST = 4096


def _sortable(n: int, dtype: str, storage: np.dtype[Any]) -> bool:
    return 2 <= n <= _MOST and storage.itemsize <= 4 and not dtype.startswith(("complex", "bool"))


def encode_sorted(values: Array, dtype: str, coder: EntropyCoder[Any]) -> Stream | None:
    """Values in rising order and the order that they were in; None where that cannot be."""
    if not _sortable(values.size, dtype, values.dtype):
        return None
    keys = keys_of(values, dtype).astype(np.int64)
    order = np.argsort(keys)
    rising = keys[order]
    if (rising[1:] == rising[:-1]).any():
        return None
    steps = encode_tokens(rising, coder)
    rank = np.empty(keys.size, np.int64)
    rank[order] = np.arange(keys.size)
    left, at = list(range(keys.size)), 0
    moves: list[int] = []
    for r in rank.tolist():
        place = left.index(r)
        moves.append((place - at) % len(left))
        del left[place]
        at = place
    symbols = np.array(moves, np.uint8 if keys.size <= 256 else np.uint16)
    head = varint(len(steps.body)) + steps.body
    stream = encode_symbols(symbols, count(symbols)[: keys.size], coder, layout=SORTED, head=head)
    return Stream(
        SORTED, coder.id, stream.body, stream.table_bytes - len(steps.body) + steps.table_bytes
    )


def decode_sorted(
    number: int, body: memoryview, n: int, dtype: str, storage: np.dtype[Any]
) -> tuple[Array, int]:
    """The ``n`` values that :func:`encode_sorted` wrote, and the bytes of tables."""
    if not _sortable(n, dtype, storage):
        raise CorruptFile(f"{n} {dtype} values cannot have layout {SORTED}")
    cursor = Cursor(body)
    steps = cursor.take(cursor.varint("bytes of the steps"), "steps")
    head = cursor.at - len(steps)
    keys, step_tables = decode_positions(TOKENS << 4 | number, steps, n, 1 << 8 * storage.itemsize)
    moves, tables = decode_symbols(cursor, number, n, n)
    left, at = list(range(n)), 0
    ranks: list[int] = []
    for move in moves.tolist():
        at = (at + move) % len(left)
        ranks.append(left.pop(at))
    return values_of(keys[np.array(ranks)], dtype, storage), head + step_tables + tables
