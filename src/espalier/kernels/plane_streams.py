"""All byte planes of a tensor by Huffman coding or rANS, in one call.

What codes a tensor of some thousand words takes less time than the calls from Python in between.
What is written is what :mod:`espalier.entropy.planes` writes plane by plane with these two coders,
byte for byte: that is the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels import huffman, rans
from espalier.kernels.bitpack import Int, inner, jit, put_varint
from espalier.kernels.counting import fill_histograms
from espalier.kernels.frequencies import fit_levels
from espalier.kernels.levels import MIN_LOG, put_levels
from espalier.kernels.planes import CODED, SAME, STORED
from espalier.kernels.prefix_code import fill_lengths, put_lengths

Array = NDArray[Any]

HUFFMAN, RANS = 0, 1

MOST = min(huffman.BLOCK, rans.BLOCK)
"""Words of a tensor: those of one block."""

_HUFFMAN_LIMIT = 12
_MOST_LOG = 14
_HEAD = 1 << 12
"""Bytes of a table, of 256 symbols, with what is before it; a longer one would not pay."""
_SPARE = 16


@inner
def _copy(data: Array, size: Int, out: Array, at: Int) -> Int:
    """The first ``size`` bytes to ``out`` from ``at`` on: the byte after them."""
    # Slices, so that a loop goes from 0 on: no index is then looked at for its sign.
    part, into = data[:size], out[at : at + size]
    for i in range(size):
        into[i] = part[i]
    return at + size


@inner
def _ends(counts: Array) -> tuple[Int, Int]:
    """The first symbol that occurs, and the one after the last."""
    first, end = np.int64(0), np.int64(counts.size)
    while counts[first] == 0:
        first += 1
    while counts[end - 1] == 0:
        end -= 1
    return first, end


@inner
def _put_ends(out: Array, first: Int, end: Int) -> Int:
    return put_varint(out, put_varint(out, np.int64(0), first), end - 1 - first)


@inner
def _huffman_table(counts: Array, lengths: Array, head: Array) -> tuple[Int, Int]:
    """Lengths, and bytes of the table in ``head``; the bits announced for the payload."""
    fill_lengths(counts, _HUFFMAN_LIMIT, lengths)
    first, end = _ends(counts)
    at = _put_ends(head, first, end)
    bits = put_lengths(lengths[first:end], head[at:])
    return at + (bits + 7) // 8, huffman.payload_bits(counts, lengths)


@inner
def _rans_table(
    counts: Array, logs: Array, frequencies: Array, head: Array
) -> tuple[Int, Int, Int]:
    """Frequencies, and bytes of the table in ``head``; the bits announced, and m."""
    first, end = _ends(counts)
    levels = np.zeros(end - first, np.int64)
    log, precision = fit_levels(counts[first:end], _MOST_LOG, logs, levels, frequencies[first:end])
    at = _put_ends(head, first, end)
    head[at] = log - MIN_LOG | precision << 4
    size = at + 1 + (put_levels(levels, precision, head[:0]) + 7) // 8
    if size > head.size:
        return np.int64(0), np.int64(8) * counts.sum(), log
    put_levels(levels, precision, head[at + 1 :])
    return size, rans.payload_bits(counts, frequencies, log, logs), log


@inner
def _huffman_payload(plane: Array, counts: Array, lengths: Array) -> Array:
    body, ends = huffman.encode_runs(plane, lengths, huffman.word_bits(counts, lengths))
    out = np.empty(ends[-1] + 9 * ends.size, np.uint8)
    at = start = np.int64(0)
    for j in range(ends.size - 1):
        at = put_varint(out, at, ends[j] - start)
        start = ends[j]
    at = _copy(body, ends[-1], out, at)
    return out[:at]


@inner
def _rans_payload(plane: Array, frequencies: Array, log: Int) -> Array:
    table = np.empty((frequencies.size, 4), np.uint64)
    rans.fill_table(frequencies, table)
    return rans.block(plane, table, log)


@inner
def _announce(
    coder: Int,
    n: Int,
    counts: Array,
    used: Array,
    logs: Array,
    tables: tuple[Array, Array, Array],
) -> tuple[Int, Int]:
    """Fit a table for each plane; the bits announced for all, and by how many they may be off.

    ``tables``: of each plane lengths or frequencies, the table's bytes, and of these the number,
    the bits of table and payload, and m.
    """
    entries, heads, numbers = tables
    bits, slack = np.int64(0), np.int64(0)
    for k in range(counts.shape[0]):
        if used[k] < 2:
            continue
        if coder == HUFFMAN:
            size, payload = _huffman_table(counts[k], entries[k], heads[k])
            slack += huffman.SLACK_BITS + payload // huffman.SLACK_SHARE
        else:
            size, payload, numbers[k, 2] = _rans_table(counts[k], logs, entries[k], heads[k])
            slack += rans.SLACK_BITS + payload // rans.SLACK_SHARE
        numbers[k, 0], numbers[k, 1] = size, payload + 8 * size
        bits += min(numbers[k, 1], 8 * n)
    return bits, slack


@inner
def _write(
    coder: Int,
    planes: Array,
    most: Int,
    counts: Array,
    used: Array,
    tables: tuple[Array, Array, Array],
    out: Array,
) -> tuple[Int, Int]:
    """All planes, each in the mode of the fewest bytes: how many, and how many are parameters."""
    entries, heads, numbers = tables
    at = parameters = np.int64(0)
    for k in range(planes.shape[0]):
        plane, size = planes[k], numbers[k, 0]
        coded = size > 0 and numbers[k, 1] <= 8 * most
        if used[k] == 1:
            out[at], out[at + 1] = SAME, plane[0]
            at += 2
            parameters += 1
            continue
        begin = at
        if coded:
            if coder == HUFFMAN:
                payload = _huffman_payload(plane, counts[k], entries[k])
            else:
                payload = _rans_payload(plane, entries[k], numbers[k, 2])
            at = put_varint(out, begin + 1, size + payload.size)
            coded = at - begin - 1 + size + payload.size <= most
        if coded:
            out[begin] = CODED
            at = _copy(heads[k], size, out, at)
            parameters += at - begin
            at = _copy(payload, payload.size, out, at)
        else:
            out[begin] = STORED
            at = _copy(plane, plane.size, out, begin + 1)
            parameters += 1
    return at, parameters


@jit
def encode(
    planes: Array, most: Int, huffman_too: bool, rans_too: bool, logs: Array
) -> tuple[Array, Int, Int]:
    """The stream of byte planes, by the better of Huffman coding and rANS, or by one of them.

    Parameters
    ----------
    planes : uint8 array, shape (bytes of a word, words)
        Of at least 1 word, and at most :data:`MOST`.
    most : int
        Bytes that a plane may take if it is coded, fewer than there are words.
    huffman_too, rans_too : bool
        Whether each may be taken; one at least.
    logs : int64 array
        :func:`espalier.kernels.frequencies.log2_table`.

    Returns
    -------
    body : uint8 array
    coder : int
        ``HUFFMAN`` or ``RANS``.
    parameters : int
        Bytes of tables and the like.
    """
    width, n = planes.shape
    counts, used = np.zeros((width, 256), np.int64), np.zeros(width, np.int64)
    fill_histograms(planes, most, logs, counts, used)
    allowed = (huffman_too, rans_too)
    tables = (
        np.zeros((2, width, 256), np.int64),
        np.zeros((2, width, _HEAD), np.uint8),
        np.zeros((2, width, 3), np.int64),
    )
    bits, slack = np.zeros(2, np.int64), np.zeros(2, np.int64)
    limit = np.int64(-1)
    for coder in range(2):
        if allowed[coder]:
            own = tables[0][coder], tables[1][coder], tables[2][coder]
            bits[coder], slack[coder] = _announce(coder, n, counts, used, logs, own)
            high = bits[coder] + slack[coder]
            limit = high if limit < 0 else min(limit, high)
    best, taken, parameters = np.empty(0, np.uint8), np.int64(0), np.int64(0)
    for coder in range(2):
        if allowed[coder] and bits[coder] - slack[coder] <= limit:
            own = tables[0][coder], tables[1][coder], tables[2][coder]
            out = np.empty(width * (n + 1) + _SPARE, np.uint8)
            size, held = _write(coder, planes, most, counts, used, own, out)
            if best.size == 0 or size < best.size:
                best, taken, parameters = out[:size], np.int64(coder), held
    return best, taken, parameters
