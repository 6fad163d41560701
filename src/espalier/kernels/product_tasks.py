"""The products of :mod:`espalier.kernels.sparse_product` as work that any threads can share.

A *body* is a function of C, ``void body(void *block)``, that takes one task after another off a
counter until none is left: any number of threads may call it at once with the same block. The block
is an array of ``FIELDS`` int64, each at the place that a name below gives. An array is its address,
with its size behind it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import cfunc, njit, types

from espalier.kernels.lanes import address_of, fetch_add
from espalier.kernels.sparse_product import tile_product, vector_product

TILES = (128, 32, 8)
"""Numbers of positions that are taken at once, besides 1."""

NEXT = 0
CHUNK = 1
"""Rows in a task."""
CHUNKS = 2
"""Tasks of one tile: rows / CHUNK, rounded up."""
TASKS = 3
"""CHUNKS times the number of tiles."""
BITS = 4
POSITION = 5
"""Where the first tile begins."""
STRIDE = 6
"""From a row of the result to the next."""
WORDS = 8
POINTERS = 10
TABLE = 12
BIAS = 14
STARTS = 16
X = 18
Y = 20
FIELDS = 22

_carray: Any = numba.carray  # type: ignore[attr-defined]


@njit(cache=True, nogil=True, forceinline=True)
def _array(block: Any, field: Any, dtype: Any) -> Any:
    return _carray(address_of(block[field]), (block[field + 1],), dtype)


@cache
def product_body(real: np.dtype[Any], word: np.dtype[Any], coded: bool, wide: int) -> Any:
    """The body for these dtypes of values and words; ``wide`` positions at once, or 1.

    Compiled when it is first asked for, and kept on disk.
    """
    make = _vector_body if wide == 1 else _tile_body
    return cfunc(types.void(types.voidptr), cache=True)(make(real.type, word.type, coded, wide))


def _vector_body(real: Any, word: Any, coded: bool, _wide: int) -> Any:
    def body(data: Any) -> None:
        block = _carray(data, (FIELDS,), np.int64)
        words = _array(block, WORDS, word)
        pointers = _array(block, POINTERS, np.int32)
        table = _array(block, TABLE, real)
        bias = _array(block, BIAS, real)
        x = _array(block, X, real)
        y = _array(block, Y, real)
        bits = block[BITS]
        task = fetch_add(block, NEXT)
        while task < block[TASKS]:
            first = task * block[CHUNK]
            last = min(first + block[CHUNK], bias.size)
            if coded:
                vector_product(words, pointers, table, bits, bias, x, y, first, last)
            else:
                vector_product(words, pointers, table, None, bias, x, y, first, last)
            task = fetch_add(block, NEXT)

    return body


def _tile_body(real: Any, word: Any, coded: bool, wide: int) -> Any:
    def body(data: Any) -> None:
        block = _carray(data, (FIELDS,), np.int64)
        words = _array(block, WORDS, word)
        pointers = _array(block, POINTERS, np.int32)
        table = _array(block, TABLE, real)
        bias = _array(block, BIAS, real)
        starts = _array(block, STARTS, np.int32)
        x = _array(block, X, real)
        y = _array(block, Y, real)
        bits = block[BITS]
        task = fetch_add(block, NEXT)
        while task < block[TASKS]:
            # A tile meets all rows before the next one comes: it stays in the cache.
            place = block[POSITION] + task // block[CHUNKS] * wide, block[STRIDE]
            first = task % block[CHUNKS] * block[CHUNK]
            last = min(first + block[CHUNK], bias.size)
            if coded:
                tile_product(
                    words, pointers, table, bits, bias, starts, x, y, place, wide, first, last
                )
            else:
                tile_product(
                    words, pointers, table, None, bias, starts, x, y, place, wide, first, last
                )
            task = fetch_add(block, NEXT)

    return body
