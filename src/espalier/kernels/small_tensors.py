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

from espalier.kernels import range_coder
from espalier.kernels.bitpack import OK, Int, get_varint, inner, jit, load64, set_bits
from espalier.kernels.huffman import SPLIT_FROM, decode_run
from espalier.kernels.levels import MAX_PRECISION, MIN_LOG
from espalier.kernels.planes import CODED, SAME, STORED
from espalier.kernels.prefix_code import MAX_LENGTH, read_lengths
from espalier.kernels.rans_decode import read_payload, read_table
from espalier.kernels.records import (
    COPY,
    DTYPE,
    ELEMENTS,
    KIND,
    LENGTH,
    LEVELS,
    METHODS,
    OFFSET,
    ORIGINAL,
    PACKED,
    SHARED,
    SPARSE,
)

Array = NDArray[Any]

RANS, HUFFMAN, CONTEXT, SIZES = 1, 2, 3, 4
"""Coders of codes and of byte planes; ``SIZES``, of codes alone, is left for another kernel."""
PLAIN, CONSTANT, MULTIPLES, PLANES = 1, 2, 3, 3
"""Ways that values are written; ``PLANES`` and a coder is one too."""

_ALIGNMENT = 64
_MOST_LOG = 14
_MOST_MULTIPLE = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)


@inner
def is_by_sizes(record: Array, kinds: Array, methods: tuple[Array, Array]) -> bool:
    """Whether a tensor is left for :mod:`espalier.kernels.small_magnitudes`."""
    return bool(kinds[record[KIND]] & SHARED) and methods[1][record[METHODS]] == SIZES


@jit
def plan(
    records: Array,
    start: Int,
    kinds: Array,
    methods: tuple[Array, Array],
    widths: Array,
    most: Int,
    room: Int,
    places: Array,
) -> tuple[Int, Int, Int]:
    """Where in a buffer the tensors from entry ``start`` on are decoded to, as far as they go in.

    Parameters
    ----------
    records : int64 array, shape (entries, FIELDS)
    kinds : int64 array, shape (16,)
        As for :func:`espalier.kernels.records.read_entries`.
    methods : tuple of two int64 arrays, shape (256,)
        What the method bytes of values and of codes stand for; 0 for what is left to the caller.
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
                original = record[ORIGINAL]
                small = original >= start and places[original] >= 0
                small = small and not is_by_sizes(records[original], kinds, methods)
            elif traits & SHARED:
                coder, values = methods[1][record[METHODS]], methods[0][record[METHODS + 2]]
                small = width in (2, 4) and 0 < record[LEVELS] <= 256 and coder > 0 and values > 0
                small = small and (coder != SIZES or (values == MULTIPLES and width == 4))
            else:
                small = methods[0][record[METHODS]] > 0
            if small:
                places[i] = size
                size = (size + record[ELEMENTS] * width + _ALIGNMENT - 1) & -_ALIGNMENT
                chunks += np.int64(length > 0)
        i += 1
    return i, size, chunks


# ---------------------------------------------------------------- symbols


@inner
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


@inner
def _huffman(body: Array, alphabet: Int, values: Array, codes: Array, out: Array) -> bool:
    """One run of symbols."""
    first, at = get_varint(body, 0)
    if at < 0 or first >= alphabet or out.size >= SPLIT_FROM:
        return False
    span, at = get_varint(body, at)
    if at < 0 or span == 0 or span >= alphabet - first:
        return False
    lengths = np.zeros(alphabet, np.uint8)
    status, bit, _, _ = read_lengths(body, 8 * at, first, first + span, lengths)
    if status != OK or (bit & 7 and body[bit >> 3] >> (bit & 7)):
        return False
    total = most = np.int64(0)
    for s in range(first, first + span + 1):
        most = max(most, np.int64(lengths[s]))
        if lengths[s]:
            total += np.int64(1) << (MAX_LENGTH - np.int64(lengths[s]))
    data, found = body[(bit + 7) >> 3 :], codes[: out.size]
    if total != np.int64(1) << MAX_LENGTH or most > 14 or out.size > 8 * data.size:
        return False
    if decode_run(data, lengths, most, found) != OK:
        return False
    for i in range(found.size):
        out[i] = values[np.uint64(found[i])]
    return True


@inner
def _symbols(
    coder: Int, body: Array, alphabet: Int, values: Array, work: tuple[Array, Array], out: Array
) -> bool:
    """What symbols stand for, words of 32 bits, into ``out``."""
    slots, codes = work
    if coder == RANS:
        return _rans(body, alphabet, values, slots, out)
    if coder == HUFFMAN:
        return _huffman(body, alphabet, values, codes, out)
    return coder == CONTEXT and range_coder.read_values(body, alphabet, values, out)


# ---------------------------------------------------------------- values


@inner
def read_multiples(body: Array, out: Array) -> bool:
    """Rising multiples of a step, as bits of float32: see :mod:`espalier.entropy.multiples`."""
    if body.size < 9:
        return False
    bits = np.empty(1, np.uint64)
    bits[0] = load64(body, 0)
    step = bits.view(np.float64)[0]
    folded, at = get_varint(body, 8)
    if at < 0 or at == body.size or folded > 2 * _MOST_MULTIPLE:
        return False
    first = -(folded >> 1) - 1 if folded & 1 else folded >> 1
    k = np.empty(out.size, np.int64)
    if set_bits(body[at:], first, k) != OK or not 0.0 < step < np.inf:
        return False
    if np.float64(max(abs(k[0]), abs(k[-1]))) * step > _LARGEST:
        return False
    values = out.view(np.float32)
    for i in range(out.size):
        values[i] = np.float32(np.float64(k[i]) * step)
    return True


@inner
def _turned(word: Any, turn: bool, top: Any) -> Any:
    """A word whose sign comes last as it is in memory, if ``turn``; ``top``: its highest bit."""
    last = np.uint32(turn)
    return (word >> last) | ((word & last) << top)


@inner
def _words_of_bytes() -> Array:
    """What a byte of a plane stands for, shape (5, 2, 4, 256).

    By the word's width in bytes, whether it is turned, the plane, and the byte.
    """
    words = np.zeros((5, 2, 4, 256), np.uint32)
    for width in (1, 2, 4):
        top = np.uint32(8 * width - 1)
        for k in range(width):
            for byte in range(256):
                word = np.uint32(byte << 8 * (width - 1 - k))
                for turn in range(2):
                    words[width, turn, k, byte] = _turned(word, turn == 1, top)
    return words


@inner
def _three_stored(body: Array, turn: bool, out: Array) -> bool:
    """The three lower planes of words whose highest byte is in ``out``, if they lie as they are."""
    n = out.size
    if body.size != 3 * (n + 1):
        return False
    if body[0] != STORED or body[n + 1] != STORED or body[2 * (n + 1)] != STORED:
        return False
    a, b, c = body[1 : n + 1], body[n + 2 : 2 * n + 2], body[2 * n + 3 :]
    for i in range(n):
        low = np.uint32(a[i]) << np.uint32(16) | np.uint32(b[i]) << np.uint32(8) | np.uint32(c[i])
        out[i] |= _turned(low, turn, np.uint32(31))
    return True


@inner
def _planes(
    body: Array, coder: Int, turn: bool, bytes_: Array, work: tuple[Array, Array], out: Array
) -> bool:
    """Words from their planes: see :mod:`espalier.entropy.planes`.

    ``bytes_``: of each plane the word that a byte of it stands for, all others being 0.
    """
    n, at, width = out.size, np.int64(0), bytes_.shape[0]
    plane = np.empty(n, np.uint32)
    for k in range(width):
        if at >= body.size:
            return False
        if k == 1 and width == 4 and _three_stored(body[at:], turn, out):
            return True
        mode = body[at]
        at += 1
        size = np.int64(n if mode == STORED else 1)
        if mode == CODED:
            size, at = get_varint(body, at)
        if at < 0 or size > body.size - at or mode > SAME:
            return False
        part, words = body[at : at + size], bytes_[k]
        at += size
        if mode == CODED:
            into = out if k == 0 else plane
            if not _symbols(coder, part, np.int64(256), words, work, into):
                return False
        elif k == 0:
            out[:] = 0
        if mode == CODED and k > 0:
            for i in range(n):
                out[i] |= plane[i]
        elif mode == STORED:
            shift, top = np.uint32(8 * (width - 1 - k)), np.uint32(8 * width - 1)
            for i in range(n):
                out[i] |= _turned(np.uint32(part[i]) << shift, turn, top)
        elif mode == SAME:
            for i in range(n):
                out[i] |= words[part[0]]
    return at == body.size


@inner
def _values(
    body: Array,
    method: Int,
    width: Int,
    is_float32: bool,
    turn: bool,
    bytes_: Array,
    work: tuple[Array, Array],
    out: Array,
) -> bool:
    """Exact values into ``out``, as bytes."""
    if method in (PLAIN, CONSTANT):
        if body.size != (out.size if method == PLAIN else width):
            return False
        for start in range(0, out.size, body.size):
            into = out[start : start + body.size]
            for k in range(body.size):
                into[k] = body[k]
        return True
    if method == MULTIPLES:
        return is_float32 and read_multiples(body, out.view(np.uint32))
    coder = method - PLANES
    if coder <= 0 or width not in (1, 2, 4):
        return False
    words = _wide(out, width)
    if not _planes(body, coder, turn, bytes_[width, np.int64(turn), :width], work, words):
        return False
    _narrow(words, width, out)
    return True


@inner
def _wide(held: Array, width: Int) -> Array:
    """A word of 32 bits for each element of ``width`` bytes: where it is held, if it is as wide."""
    return held.view(np.uint32) if width == 4 else np.empty(held.size // width, np.uint32)


@inner
def _narrow(words: Array, width: Int, out: Array) -> None:
    """What :func:`_wide` gave, once it is filled, to where it is held."""
    if width == 2:
        pairs = out.view(np.uint16)
        for i in range(pairs.size):
            pairs[i] = words[i]
    elif width == 1:
        for i in range(out.size):
            out[i] = words[i]


@inner
def _book(values: Array, width: Int) -> Array:
    """Levels of two or four bytes, each as a word of 32 bits."""
    book = _wide(values, width)
    if width == 2:
        pairs = values.view(np.uint16)
        for i in range(pairs.size):
            book[i] = pairs[i]
    return book


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
    dtypes: tuple[Array, Array, Array],
    places: Array,
    out: Array,
) -> Int:
    """Decode entries ``start`` to ``stop``, as far as they have places, into ``out``.

    Returns how many are left for :func:`espalier.kernels.small_magnitudes.decode`.

    Parameters
    ----------
    file : uint8 array
        Of the file, from byte ``base`` on.
    methods : tuple of two int64 arrays
        As for :func:`plan`.
    dtypes : tuple of three arrays
        Bytes of an element of each dtype, whether it is float32, and whether its sign comes last
        in planes.
    places : int64 array
        As :func:`plan` has filled it; becomes -1 for what is left to the caller.
    out : uint8 array
    """
    work = np.empty(1 << _MOST_LOG, np.uint8), np.empty(SPLIT_FROM, np.uint8)
    bytes_ = _words_of_bytes()
    by_value, by_code = methods
    widths, is_float32, turned = dtypes
    left = np.int64(0)
    for i in range(start, stop):
        record = records[i]
        if places[i] < 0:
            continue
        if is_by_sizes(record, kinds, methods):
            left += 1
            continue
        dtype, length = record[DTYPE], record[LENGTH]
        width, turn = widths[dtype], turned[dtype]
        begin = record[OFFSET] - base
        part = out[places[i] : places[i] + record[ELEMENTS] * width]
        whole = False
        if kinds[record[KIND]] & COPY:
            origin = places[record[ORIGINAL]]
            whole = origin >= 0
            for k in range(part.size if whole else 0):
                part[k] = out[origin + k]
        elif 0 <= begin <= file.size - length:
            chunk, values, cut = file[begin : begin + length], part, np.int64(0)
            method = by_value[record[METHODS]]
            shared = kinds[record[KIND]] & SHARED
            if shared:  # codes of a codebook, whose bits are moved, whatever they mean
                cut, values = record[METHODS + 1], np.empty(width * record[LEVELS], np.uint8)
                method = by_value[record[METHODS + 2]]
            is_float = is_float32[dtype]
            whole = _values(chunk[cut:], method, width, is_float, turn, bytes_, work, values)
            if shared and whole:
                coder, book = by_code[record[METHODS]], _book(values, width)
                words = _wide(part, width)
                whole = _symbols(coder, chunk[:cut], record[LEVELS], book, work, words)
                _narrow(words, width, part)
        if not whole:
            places[i] = -1
    return left
