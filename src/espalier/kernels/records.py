"""The entries of a directory as rows of integers, and their names as one text.

A network of a hundred layers has hundreds of small tensors, and to make an object of each takes as
long as to decode them all. Here a directory is read in one pass. What is not plain (files,
fixed-point tensors, a name with a zero byte) or not sound is given up: the caller then reads the
directory entry by entry, which is the reference, and says what is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import Int, get_varint, inner, jit

Array = NDArray[Any]

(KIND, DTYPE, DIMS, DIMS_AT, ELEMENTS, STORED, LEVELS, CRC, OFFSET, LENGTH) = range(10)
(HEADER_BYTES, ORIGINAL, PACK, START, METHODS) = range(10, 15)
"""Columns of the records; from ``METHODS`` on there are method and length of each stream.

``DIMS_AT`` is where dimensions begin in their table, ``LENGTH`` that of the chunk, ``ORIGINAL`` the
entry that a copy is of, ``PACK`` and ``START`` where a packed tensor is, -1 if it is not."""
STREAMS = 3
"""Streams of an entry at most."""
FIELDS = METHODS + 2 * STREAMS

SPARSE, SHARED, COPY, IS_PACK, PACKED = 4, 8, 16, 32, 64
"""What a kind is, beside its number of streams."""

_CRC_BYTES = 4
_MOST_LENGTH = 1 << 48
"""No chunk is longer, and no sum of them overflows."""


@inner
def _name(
    data: Array, at: Int, text: Array, last: tuple[Int, Int], rests: Array, known: Int, most: Int
) -> tuple[Int, Int, Int, Int]:
    """The next name, put behind the last one, which is where it begins and its length.

    Returns the byte after it (-1: given up), where it begins, its length, and how many rests are
    known.
    """
    start, length = last
    bad = np.int64(-1), start, length, known
    shared, at = get_varint(data, at)
    if at < 0 or shared > length:
        return bad
    which, at = get_varint(data, at)
    if at < 0 or which > known:
        return bad
    if which:
        rest, size = rests[which - 1, 0], rests[which - 1, 1]
    else:
        size, at = get_varint(data, at)
        if at < 0 or size > data.size - at:
            return bad
        rest = at
        rests[known, 0], rests[known, 1] = rest, size
        known += 1
        at += size
    begin = start + length + 1
    if shared + size > most or begin + shared + size >= text.size:
        return bad
    for k in range(shared):
        text[begin + k] = text[start + k]
    for k in range(size):
        byte = data[rest + k]
        if not byte:
            return bad
        text[begin + shared + k] = byte
    text[begin + shared + size] = 0
    return at, begin, shared + size, known


@inner
def _copy(data: Array, at: Int, records: Array, i: Int, kinds: Array) -> Int:
    index, at = get_varint(data, at)
    if at < 0 or index >= i or kinds[records[index, KIND]] & (COPY | IS_PACK):
        return np.int64(-1)
    kind = records[i, KIND]
    for k in range(METHODS):
        records[i, k] = records[index, k]
    records[i, KIND], records[i, ORIGINAL] = kind, index
    records[i, CRC], records[i, LENGTH], records[i, PACK] = 0, 0, -1
    return at


@inner
def _shape(data: Array, at: Int, dims: int, table: Array, used: Int, most: Int) -> tuple[Int, Int]:
    """Dimensions to ``table`` from ``used`` on: the byte after them, or -1; and their product."""
    elements, empty = np.int64(1), False
    for k in range(dims):
        size, at = get_varint(data, at)
        if at < 0 or size > most:
            return np.int64(-1), elements
        table[used + k] = size
        if size == 0:
            empty = True
        elif not empty and elements > most // size:
            # Too many, unless an empty dimension follows: that is for the reference to say.
            return np.int64(-1), elements
        else:
            elements *= size
    return at, np.int64(0) if empty else elements


@inner
def _streams(data: Array, at: Int, number: Int, record: Array) -> Int:
    for k in range(number):
        if at >= data.size:
            return np.int64(-1)
        record[METHODS + 2 * k] = data[at]
        length, at = get_varint(data, at + 1)
        if at < 0 or length > _MOST_LENGTH:
            return np.int64(-1)
        record[METHODS + 2 * k + 1] = length
        record[LENGTH] += length
    if at + _CRC_BYTES > data.size:
        return np.int64(-1)
    for k in range(_CRC_BYTES):
        record[CRC] |= np.int64(data[at + k]) << (8 * k)
    return at + _CRC_BYTES


@inner
def _fields(
    data: Array, at: Int, record: Array, dims: Array, used: Int, traits: Int, limits: Array
) -> Int:
    """All of an entry that follows its kind: the byte after it, or -1."""
    most_elements, most_levels, most_pack, free = limits
    if at >= data.size or not 0 < data[at] <= 17:
        return np.int64(-1)
    record[DTYPE], record[DIMS_AT] = data[at], used
    at, elements = _shape(data, at + 1, record[DIMS], dims, used, most_elements)
    if at < 0:
        return at
    record[ELEMENTS] = record[STORED] = elements
    if traits & PACKED:
        return at
    if traits & IS_PACK and (record[DIMS] != 1 or elements > most_pack):
        return np.int64(-1)
    if traits & SPARSE:
        record[STORED], at = get_varint(data, at)
        if at < 0 or record[STORED] > elements:
            return np.int64(-1)
    if traits & SHARED:
        record[LEVELS], at = get_varint(data, at)
        if at < 0 or record[LEVELS] > most_levels:
            return np.int64(-1)
    at = _streams(data, at, traits & STREAMS, record)
    if traits & SPARSE and record[STORED] > free + 8 * record[LENGTH]:
        return np.int64(-1)
    return at


@inner
def _fill_packs(records: Array, kinds: Array) -> bool:
    """Which pack has each packed tensor, and from where on; False if they do not fit together."""
    pack = np.full(18, -1, np.int64)
    filled = np.zeros(18, np.int64)
    for i in range(records.shape[0]):
        if kinds[records[i, KIND]] & PACKED:
            dtype = records[i, DTYPE]
            if filled[dtype] == 0:  # the pack before is full
                pack[dtype] = _next_pack(records, kinds, dtype, pack[dtype] + 1)
            if pack[dtype] == records.shape[0] or records[i, STORED] == 0:
                return False
            records[i, PACK], records[i, START] = pack[dtype], filled[dtype]
            filled[dtype] += records[i, STORED]
            size = records[pack[dtype], STORED]
            if filled[dtype] > size:
                return False
            if filled[dtype] == size:
                filled[dtype] = 0
    for dtype in range(18):
        if filled[dtype] or _next_pack(records, kinds, dtype, pack[dtype] + 1) < records.shape[0]:
            return False
    return True


@inner
def _next_pack(records: Array, kinds: Array, dtype: Int, i: Int) -> Int:
    while i < records.shape[0]:
        if kinds[records[i, KIND]] & IS_PACK and records[i, DTYPE] == dtype:
            return i
        i += 1
    return i


@jit
def read_entries(
    data: Array,
    at: Int,
    offset: Int,
    kinds: Array,
    limits: tuple[Int, Int, Int, Int],
    most_name: Int,
    records: Array,
    dims: Array,
    rests: Array,
    text: Array,
) -> tuple[Int, Int, Int, Int]:
    """Fill ``records`` with the entries from byte ``at`` of a directory on.

    Parameters
    ----------
    data : uint8 array
        The directory.
    offset : int
        Where the first chunk begins.
    kinds : int64 array, shape (16,)
        Of each kind its number of streams, and what it is; -1 for a kind that is given up.
    limits : tuple of int
        Of elements, levels, elements of a pack, and kept elements that nothing pays for.
    most_name : int
        Bytes of a name.
    records : int64 array, shape (entries, FIELDS)
    dims : int64 array, shape (bytes of the directory,)
    rests : int64 array, shape (entries, 2)
        Where each distinct end of a name is, and its length.
    text : uint8 array
        For the names, a zero byte before each of them and after the last.

    Returns
    -------
    at : int
        The byte after the last entry; -1 if the directory is given up.
    end : int
        The byte after the last chunk.
    known : int
        How many rests there are.
    size : int
        Bytes of the text.
    """
    bad = np.int64(-1), offset, np.int64(0), np.int64(0)
    at, offset = np.int64(at), np.int64(offset)
    begin = length = known = used = np.int64(0)
    text[0] = 0
    for i in range(records.shape[0]):
        head = at
        at, begin, length, known = _name(data, at, text, (begin, length), rests, known, most_name)
        if at < 0 or at >= data.size:
            return bad
        record = records[i]
        for k in range(FIELDS):
            record[k] = 0
        record[KIND], record[DIMS] = data[at] & 15, data[at] >> 4
        record[ORIGINAL] = record[PACK] = -1
        traits = kinds[record[KIND]]
        if traits < 0 or (traits & COPY and record[DIMS]) or (traits & IS_PACK and length):
            return bad
        if traits & COPY:
            at = _copy(data, at + 1, records, i, kinds)
        else:
            at = _fields(data, at + 1, record, dims, used, traits, limits)
            used += record[DIMS]
        if at < 0 or offset > _MOST_LENGTH:
            return bad
        record[OFFSET], record[HEADER_BYTES] = offset, at - head
        offset += record[LENGTH]
    if not _fill_packs(records, kinds):
        return bad
    return at, offset, known, begin + length + 1
