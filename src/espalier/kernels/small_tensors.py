"""Many small tensors in one pass over a file, from the records of its directory.

What decodes a tensor of some thousand elements takes less time than to call it. Here one call
decodes all tensors that are small and written in one of the common ways, into one buffer. Whatever
else there is, and whatever is not sound, is left to the caller, who decodes it by itself: that is
the reference, and says what is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import OK, Int, get_varint, jit, load64, set_bits
from espalier.kernels.huffman import SPLIT_FROM, decode_run
from espalier.kernels.levels import MAX_PRECISION, MIN_LOG
from espalier.kernels.prefix_code import MAX_LENGTH, read_lengths
from espalier.kernels.rans_decode import read_payload, read_table
from espalier.kernels.records import (
    COPY,
    DTYPE,
    ELEMENTS,
    IS_PACK,
    KIND,
    LENGTH,
    LEVELS,
    METHODS,
    OFFSET,
    ORIGINAL,
    PACKED,
    SHARED,
    SPARSE,
    STREAMS,
)

Array = NDArray[Any]

PLAIN, CONSTANT, MULTIPLES, PLANES_RANS, PLANES_HUFFMAN = 1, 2, 3, 4, 5
"""Ways that values are written."""
CODES_RANS, CODES_HUFFMAN = PLANES_RANS, PLANES_HUFFMAN
"""Ways that codes are written."""

_ALIGNMENT = 64
_STORED, _CODED, _CONSTANT = 0, 1, 2
"""Modes of a byte plane: see :mod:`espalier.entropy.planes`."""
_MOST_LOG = 14
_MOST_MULTIPLE = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)
_BYTES = np.arange(256, dtype=np.uint8)


@jit
def plan(
    records: Array, start: Int, kinds: Array, widths: Array, most: Int, room: Int, places: Array
) -> tuple[Int, Int, Int]:
    """Where in a buffer the tensors from entry ``start`` on are decoded to, as far as they go in.

    Parameters
    ----------
    records : int64 array, shape (entries, FIELDS)
    kinds : int64 array, shape (16,)
        As for :func:`espalier.kernels.records.read_entries`.
    widths : int64 array
        Bytes of an element of each dtype; 0 for those that are left to the caller.
    most, room : int
        Bytes of a tensor and of the buffer; of the chunks too, which lie one after the other.
    places : int64 array, shape (entries,)
        Filled up to ``stop``; -1 for a tensor that is left to the caller.

    Returns
    -------
    stop : int
        The first entry that is left for another buffer.
    size : int
        Bytes of the buffer.
    chunks : int
        How many tensors have chunks of their own here.
    """
    size = chunks = np.int64(0)
    i = np.int64(start)
    while i < records.shape[0]:
        record = records[i]
        traits, width = kinds[record[KIND]], widths[record[DTYPE]]
        length = record[LENGTH]
        if i > start and (record[OFFSET] + length - records[start, OFFSET] > room or size > room):
            break
        places[i] = -1
        small = width > 0 and 0 < record[ELEMENTS] <= most // max(width, 1) and length <= most
        if small and not traits & (SPARSE | PACKED):
            if traits & COPY:
                small = record[ORIGINAL] >= start and places[record[ORIGINAL]] >= 0
            elif traits & SHARED:
                small = width == 4 and 0 < record[LEVELS] <= 256
            if small:
                places[i] = size
                size = (size + record[ELEMENTS] * width + _ALIGNMENT - 1) & -_ALIGNMENT
                chunks += np.int64(length > 0)
        i += 1
    return i, size, chunks


# ---------------------------------------------------------------- symbols


@jit
def _rans(body: Array, alphabet: Int, values: Array, slots: Array, out: Array) -> bool:
    first, at = get_varint(body, 0)
    if at < 0 or first >= alphabet:
        return False
    span, at = get_varint(body, at)
    if at < 0 or span == 0 or span >= alphabet - first or at >= body.size:
        return False
    log, precision = np.int64(body[at] & 15) + MIN_LOG, np.int64(body[at] >> 4)
    if log > _MOST_LOG or precision > MAX_PRECISION or precision >= log:
        return False
    data = body[at + 1 :]
    payload, status, entries = read_table(data, first, span, log, precision, out.size, slots)
    return status == OK and read_payload(data, payload, (slots, entries, values), log, out) == OK


@jit
def _huffman(body: Array, alphabet: Int, out: Array) -> bool:
    """One run of symbols into ``out``, uint8."""
    first, at = get_varint(body, 0)
    if at < 0 or first >= alphabet or out.size >= SPLIT_FROM:
        return False
    span, at = get_varint(body, at)
    if at < 0 or span == 0 or span >= alphabet - first:
        return False
    guess = np.int64(0)
    while span >> guess:
        guess += 1
    lengths = np.zeros(alphabet, np.uint8)
    status, bit, _, _ = read_lengths(body, 8 * at, first, first + span, guess, lengths)
    if status != OK or (bit & 7 and body[bit >> 3] >> (bit & 7)):
        return False
    total = np.int64(0)
    for s in range(first, first + span + 1):
        if lengths[s]:
            total += np.int64(1) << (MAX_LENGTH - np.int64(lengths[s]))
    data = body[(bit + 7) >> 3 :]
    if total != np.int64(1) << MAX_LENGTH or lengths.max() > 14 or out.size > 8 * data.size:
        return False
    return decode_run(data, lengths, out) == OK


# ---------------------------------------------------------------- values


@jit
def _multiples(body: Array, out: Array) -> bool:
    """Rising multiples of a step, as bits of float32: see :mod:`espalier.entropy.multiples`."""
    if body.size < 9:
        return False
    bits = np.empty(1, np.uint64)
    bits[0] = load64(body, 0)
    step = bits.view(np.float64)[0]
    folded, at = get_varint(body, 8)
    if at < 0 or at == body.size or folded > 2 * _MOST_MULTIPLE:
        return False
    first = -(folded + 1) // 2 if folded & 1 else folded // 2
    k = np.empty(out.size, np.int64)
    if set_bits(body[at:], first, k) != OK or not 0.0 < step < np.inf:
        return False
    if np.float64(max(abs(k[0]), abs(k[-1]))) * step > _LARGEST:
        return False
    values = np.empty(out.size, np.float32)
    for i in range(out.size):
        values[i] = np.float32(np.float64(k[i]) * step)
    out[:] = values.view(np.uint32)
    return True


@jit
def _planes(body: Array, coder: Int, turn: bool, slots: Array, out: Array) -> bool:
    """Words of four bytes from their planes: see :mod:`espalier.entropy.planes`."""
    n, at = out.size, np.int64(0)
    plane = np.empty(n, np.uint8)
    out[:] = 0
    for _ in range(4):
        if at >= body.size:
            return False
        mode = body[at]
        at += 1
        size = np.int64(n if mode == _STORED else 1)
        if mode == _CODED:
            size, at = get_varint(body, at)
        if at < 0 or size > body.size - at or mode > _CONSTANT:
            return False
        part = body[at : at + size]
        at += size
        if mode == _CODED and coder == PLANES_RANS:
            if not _rans(part, 256, _BYTES, slots, plane):
                return False
        elif mode == _CODED:
            if not _huffman(part, 256, plane):
                return False
        elif mode == _STORED:
            plane[:] = part
        else:
            plane[:] = part[0]
        for i in range(n):
            out[i] = (out[i] << np.uint32(8)) | np.uint32(plane[i])
    if turn:
        for i in range(n):
            out[i] = (out[i] >> np.uint32(1)) | ((out[i] & np.uint32(1)) << np.uint32(31))
    return at == body.size


@jit
def _values(body: Array, method: Int, width: Int, is_float: bool, slots: Array, out: Array) -> bool:
    """Exact values into ``out``, as bytes."""
    if method == PLAIN:
        if body.size != out.size:
            return False
        out[:] = body
    elif method == CONSTANT:
        if body.size != width:
            return False
        for start in range(0, out.size, width):
            out[start : start + width] = body
    elif width != 4:
        return False
    elif method == MULTIPLES:
        return is_float and _multiples(body, out.view(np.uint32))
    elif method in (PLANES_RANS, PLANES_HUFFMAN):
        return _planes(body, method, is_float, slots, out.view(np.uint32))
    else:
        return False
    return True


@jit
def _shared(
    chunk: Array, record: Array, methods: tuple[Array, Array], is_float: bool, slots: Array,
    out: Array,
) -> bool:  # fmt: skip
    """Shared weights: codes of a codebook, whose bits are moved, whatever they mean."""
    cut, levels = record[METHODS + 1], record[LEVELS]
    codebook = np.empty(4 * levels, np.uint8)
    by_value, by_code = methods
    values = chunk[cut:], by_value[record[METHODS + 2]]
    if not _values(*values, 4, is_float, slots, codebook):
        return False
    words, found = codebook.view(np.uint32), out.view(np.uint32)
    method = by_code[record[METHODS]]
    if method == CODES_RANS:
        return _rans(chunk[:cut], levels, words, slots, found)
    if method != CODES_HUFFMAN:
        return False
    codes = np.empty(found.size, np.uint8)
    if not _huffman(chunk[:cut], levels, codes):
        return False
    for i in range(codes.size):
        found[i] = words[np.uint64(codes[i])]
    return True


# ---------------------------------------------------------------- all of them


@jit
def decode(
    file: Array,
    base: Int,
    records: Array,
    start: Int,
    stop: Int,
    kinds: Array,
    methods: tuple[Array, Array],
    dtypes: tuple[Array, Array],
    places: Array,
    out: Array,
) -> None:
    """Decode entries ``start`` to ``stop``, as far as they have places, into ``out``.

    Parameters
    ----------
    file : uint8 array
        Of the file, from byte ``base`` on.
    methods : tuple of two int64 arrays, shape (256,)
        What the method bytes of values and of codes stand for; 0 for what is left to the caller.
    dtypes : tuple of two arrays
        Bytes of an element of each dtype, and whether it is float32.
    places : int64 array
        As :func:`plan` has filled it; becomes -1 for what is left to the caller.
    out : uint8 array
    """
    slots = np.empty(1 << _MOST_LOG, np.uint8)
    widths, is_float32 = dtypes
    for i in range(start, stop):
        if places[i] < 0:
            continue
        record = records[i]
        dtype, begin = record[DTYPE], record[OFFSET] - base
        traits = kinds[record[KIND]]
        part = out[places[i] : places[i] + record[ELEMENTS] * widths[dtype]]
        whole = False
        if traits & COPY:
            origin = places[record[ORIGINAL]]
            whole = origin >= 0
            if whole:
                part[:] = out[origin : origin + part.size]
        elif 0 <= begin <= file.size - record[LENGTH]:
            chunk = file[begin : begin + record[LENGTH]]
            is_float = is_float32[dtype]
            if traits & SHARED:
                whole = _shared(chunk, record, methods, is_float, slots, part)
            elif traits & STREAMS == 1 or traits & IS_PACK:
                method = methods[0][record[METHODS]]
                whole = _values(chunk, method, widths[dtype], is_float, slots, part)
        if not whole:
            places[i] = -1
