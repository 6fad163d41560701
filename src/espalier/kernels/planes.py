"""Words to byte planes and back: the first bytes of all words, then the second ones, and so on.

The bits of a float are rotated left by one on the way: its sign, of which nothing is known, then
lies beside the lowest bits of the mantissa, and all eight bits of the exponent of a float32 or
bfloat16 fall into the first plane.

A plain Python reference stands beside each kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import Int, frozen, jit

Array = NDArray[Any]

STORED, CODED, SAME = 0, 1, 2
"""Modes of a plane: see :mod:`espalier.entropy.planes`."""

_TILE = 4096
"""Words that every plane is filled from before the next ones are looked at: they stay in cache."""


@jit
def _split(words: Array, rotate: Int, planes: Array) -> None:
    width = planes.shape[0]
    turn = np.uint64(rotate)
    last = np.uint64(8 * width - 1)
    for start in range(0, words.size, _TILE):
        # Slices, so that a loop goes from 0 on: no index is then looked at for its sign.
        tile = words[start : start + _TILE]
        for k in range(width):
            shift = np.uint64(8 * (width - 1 - k))
            plane = planes[k, start : start + _TILE]
            for i in range(tile.size):
                word = np.uint64(tile[i])
                plane[i] = np.uint8(((word << turn) | ((word >> last) & turn)) >> shift)


@jit
def _split_two(words: Array, turn: Int, high: Array, low: Array) -> None:
    for i in range(words.size):
        word = words[i]
        if turn:
            word = np.uint16(word << np.uint16(1) | word >> np.uint16(15))
        high[i], low[i] = np.uint8(word >> np.uint16(8)), np.uint8(word)


@jit
def _split_four(words: Array, turn: Int, a: Array, b: Array, c: Array, d: Array) -> None:
    for i in range(words.size):
        word = words[i]
        if turn:
            word = np.uint32(word << np.uint32(1) | word >> np.uint32(31))
        a[i], b[i] = np.uint8(word >> np.uint32(24)), np.uint8(word >> np.uint32(16))
        c[i], d[i] = np.uint8(word >> np.uint32(8)), np.uint8(word)


@jit
def _shift_in(words: Array, plane: Array) -> None:
    for i in range(words.size):
        words[i] = (np.uint64(words[i]) << np.uint64(8)) | np.uint64(plane[i])


@jit
def _shift_in_one(words: Array, byte: Int) -> None:
    for i in range(words.size):
        words[i] = (np.uint64(words[i]) << np.uint64(8)) | np.uint64(byte)


@jit
def _rotate_back(words: Array, last: Int) -> None:
    one = np.uint64(1)
    for i in range(words.size):
        word = np.uint64(words[i])
        words[i] = (word >> one) | ((word & one) << np.uint64(last))


@jit
def _join(planes: tuple[Array, ...], rotate: Int, words: Array) -> None:
    width = len(planes)
    for start in range(0, words.size, _TILE):
        tile = words[start : start + _TILE]
        tile[:] = 0
        for k in range(width):
            plane = planes[k]
            if plane.size == 1:
                _shift_in_one(tile, plane[0])
            else:
                _shift_in(tile, plane[start : start + _TILE])
        if rotate:
            _rotate_back(tile, 8 * width - 1)


@jit
def _join_two(high: Array, low: Array, turn: Int, words: Array) -> None:
    one = np.uint16(1)
    for i in range(words.size):
        word = np.uint16(high[i]) << np.uint16(8) | np.uint16(low[i])
        words[i] = (word >> one) | ((word & one) << np.uint16(15)) if turn else word


@jit
def _join_four(a: Array, b: Array, c: Array, d: Array, turn: Int, words: Array) -> None:
    one = np.uint32(1)
    for i in range(words.size):
        high = np.uint32(a[i]) << np.uint32(24) | np.uint32(b[i]) << np.uint32(16)
        word = high | np.uint32(c[i]) << np.uint32(8) | np.uint32(d[i])
        words[i] = (word >> one) | ((word & one) << np.uint32(31)) if turn else word


def split(words: Array, rotate: bool) -> Array:
    """The byte planes of ``words`` (uint16, uint32 or uint64), most significant first.

    Returns
    -------
    uint8 array, shape (bytes of a word, words)

    Examples
    --------
    >>> split(np.array([0x1234, 0x8001], np.uint16), rotate=False).tolist()
    [[18, 128], [52, 1]]
    >>> split(np.array([0x1234, 0x8001], np.uint16), rotate=True).tolist()
    [[36, 0], [104, 3]]
    """
    width = words.dtype.itemsize
    planes = np.empty((width, words.size), np.uint8)
    whole = _SPLIT_WHOLE.get(width)
    if width == 1:
        planes[0] = words
    elif whole is not None:
        whole(frozen(words), int(rotate), *planes)
    else:
        _split(frozen(words), int(rotate), planes)
    return planes


def join(planes: list[Array], n: int, rotate: bool) -> Array:
    """The ``n`` words of byte planes, each of ``n`` bytes, or of one that stands for all."""
    width = len(planes)
    words = np.empty(n, np.dtype(f"<u{width}"))
    frozen_planes = tuple(frozen(plane) for plane in planes)
    whole = _JOIN_WHOLE.get(width)
    if width == 1:
        words[:] = planes[0]
    elif whole is not None and all(plane.size == n for plane in planes):
        whole(*frozen_planes, int(rotate), words)
    else:
        _join(frozen_planes, int(rotate), words)
    return words


_SPLIT_WHOLE = {2: _split_two, 4: _split_four}
_JOIN_WHOLE = {2: _join_two, 4: _join_four}
"""Where every plane is whole: four times as fast as one plane after another."""


def split_reference(words: list[int], width: int, rotate: bool) -> list[list[int]]:
    """:func:`split` in plain Python."""
    bits = 8 * width
    rotated = [
        ((word << 1) | (word >> (bits - 1))) % (1 << bits) if rotate else word for word in words
    ]
    return [[word >> 8 * k & 255 for word in rotated] for k in reversed(range(width))]


def join_reference(planes: list[list[int]], rotate: bool) -> list[int]:
    """:func:`join` in plain Python, for planes of as many bytes as there are words."""
    words = [int.from_bytes(bytes(word), "big") for word in zip(*planes, strict=True)]
    top = 8 * len(planes) - 1
    return [(word >> 1) | ((word & 1) << top) for word in words] if rotate else words
