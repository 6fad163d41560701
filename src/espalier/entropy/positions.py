"""Where the kept weights are, as gaps between them.

The gap of a kept position is its distance from the one before it, less 1 (from the place before the
tensor's start for the first): so many zeros stand between. Three layouts:

``FILLERS``
    every gap in b bits, with fillers for longer ones (Han et al. 2016, section 2, figure 2). The
    paper's filler zero takes a place among the codes too; here it takes none.
``TOKENS``
    gaps of any size, no fillers: a small alphabet of tokens, entropy-coded, and raw low bits.
``BITMAP``
    no gaps: one bit for each element, eight to an entropy-coded symbol. Where most weights stay, a
    gap holds less than the one bit that a Huffman code word takes at least; eight bits do not.

A fourth, which needs the shape of the tensor, is in :mod:`espalier.entropy.neighbours`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy import neighbours
from espalier.entropy.choice import Coders, as_coders
from espalier.entropy.coder import CODERS, EntropyCoder
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.histogram import Histogram
from espalier.entropy.stream import (
    EMPTY,
    Stream,
    decode_symbols,
    encode_symbols,
    read_empty,
    smallest,
    split_method,
)
from espalier.errors import CorruptFile, TruncatedFile
from espalier.kernels import bitpack
from espalier.kernels import gaps as kernel
from espalier.kernels.counting import count

Array = NDArray[Any]

FILLERS = 0
TOKENS = 1
BITMAP = 2
MAX_WIDTH = 32
ALPHABET = 256
"""Most tokens that there can be: they fit in a byte."""
FREE = 4096
"""Kept positions that a tensor may have without a byte of its chunk to show for them."""

_BITMAP_FROM = 20
"""Elements for each kept one up to which a bitmap is tried: beyond, gaps are always smaller."""

# Pairs (direct, top) to try: tokens up to 2**direct one by one, then 2**top to each doubling.
_SPLITS = [(d, t) for d in range(8) for t in range(4) if t <= d]


def gap_histogram(positions: Array) -> Histogram:
    """The histogram of the gaps before ``positions`` (int64, strictly rising, from 0)."""
    return Histogram.of(np.diff(positions, prepend=np.int64(-1)) - 1)


def fillers_at(gaps: Histogram, width: int) -> int:
    """How many fillers there are at a width of ``width`` bits: the sum of gap // (2**width - 1)."""
    return int((gaps.values // ((1 << width) - 1)) @ gaps.counts)


def best_width(gaps: Histogram, beside: int = 0) -> int:
    """The width b, 1 to 32, at which (b + ``beside``) * (gaps + fillers) is smallest.

    Parameters
    ----------
    gaps : Histogram
    beside : int
        Bits that a filler takes up in another stream: the width of a code in the paper's layout,
        0 in ours.
    """
    n = gaps.total
    most = int(gaps.values[-1]).bit_length() + 1 if n else 1
    widths = range(1, min(most, MAX_WIDTH) + 1)
    return min(widths, key=lambda b: (b + beside) * (n + fillers_at(gaps, b)))


def _encode_fillers(positions: Array, gaps: Histogram) -> Stream:
    width = best_width(gaps)
    entries = positions.size + fillers_at(gaps, width)
    body = bytes([width]) + kernel.pack_gaps(positions, width, entries).tobytes()
    return Stream(FILLERS, CODERS.get("fixed").id, body, 1)


def _tokens_of(gaps: Histogram, direct: int, top: int) -> tuple[Array, int] | None:
    """Counts of the tokens, and the number of raw bits; None if they do not fit in a byte."""
    values = gaps.values
    exponents = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
    far = values >= 1 << direct
    low = np.where(far, exponents - top, 0)
    mantissa = (values >> low) & ((1 << top) - 1)
    tokens = np.where(far, (1 << direct) + ((exponents - direct) << top) + mantissa, values)
    last = int(tokens[-1])
    if last >= ALPHABET:
        return None
    counts = np.zeros(ALPHABET, np.int64)
    np.add.at(counts, tokens, gaps.counts)
    return counts, int(low @ gaps.counts)


def _best_split(gaps: Histogram, coder: EntropyCoder[Any]) -> tuple[int, int, Array, int]:
    """The split of the smallest stream: (direct, top, counts of tokens, raw bits)."""
    splits: list[tuple[int, int, int, Array, int]] = []
    for direct, top in _SPLITS:
        if direct and 1 << (direct - 1) > gaps.values[-1]:
            continue  # every gap is direct already with one bit less
        found = _tokens_of(gaps, direct, top)
        if found is not None:
            counts, raw_bits = found
            table = coder.fit(counts)
            size = coder.bits(counts, table) + raw_bits + 8 * len(coder.write_table(table))
            splits.append((size, direct, top, counts, raw_bits))
    _, direct, top, counts, raw_bits = min(splits, key=lambda split: split[:3])
    return direct, top, counts, raw_bits


def encode_tokens(
    positions: Array, coder: EntropyCoder[Any], gaps: Histogram | None = None
) -> Stream:
    """Positions in the layout ``TOKENS``; ``gaps`` is their histogram, if it is known."""
    gaps = gap_histogram(positions) if gaps is None else gaps
    direct, top, counts, raw_bits = _best_split(gaps, coder)
    tokens, raw = kernel.split_gaps(positions, direct, top, raw_bits)
    head = bytes([direct | top << 4]) + varint(raw.size)
    stream = encode_symbols(tokens, counts, coder, layout=TOKENS, head=head + raw.tobytes())
    return Stream(stream.layout, stream.coder, stream.body, stream.table_bytes - raw.size)


def _encode_bitmap(positions: Array, size: int, coders: Coders) -> Stream:
    mask = np.zeros(size, np.bool_)
    mask[positions] = True
    symbols = np.packbits(mask, bitorder="little")
    return encode_symbols(symbols, count(symbols), coders, layout=BITMAP)


def encode_positions(
    positions: Array,
    size: int,
    coders: Coders,
    beside: int = 0,
    shape: tuple[int, ...] | None = None,
) -> tuple[Stream, Histogram]:
    """Write positions the smallest way.

    Parameters
    ----------
    positions : int64 array, shape (n,)
        Strictly rising, from 0.
    size : int
        Elements of the tensor.
    coders : EntropyCoder, or several
        Of tokens or bitmap; with ``fixed`` alone the layout is ``FILLERS``.
    beside : int
        Bytes of the tensor's other streams. A reader refuses more than
        4096 + 8 * (bytes of all streams) positions, so that no few bytes can ask for much memory.
        Where all gaps are equal and so are all codes, the layout is ``FILLERS``, which spends a
        bit on each.
    shape : tuple of int, optional
        Of the tensor. With it and the coder ``context``, positions are also coded by their
        neighbours.

    Returns
    -------
    stream : Stream
    gaps : Histogram
    """
    gaps = gap_histogram(positions)
    if not positions.size:
        return EMPTY, gaps
    streams = [_encode_fillers(positions, gaps)]
    entropy = [coder for coder in as_coders(coders) if coder.id != streams[0].coder]
    if entropy:
        tried = [encode_tokens(positions, coder, gaps) for coder in entropy]
        if positions.size * _BITMAP_FROM >= size:
            tried.append(_encode_bitmap(positions, size, entropy))
        if shape is not None and CODERS.get("context").id in {coder.id for coder in entropy}:
            kept = neighbours.encode_kept(positions, shape)
            tried += [] if kept is None else [kept]
        free = positions.size - FREE
        streams += [stream for stream in tried if free <= 8 * (beside + len(stream.body))]
    return smallest(streams), gaps


def _decode_fillers(cursor: Cursor, n: int, size: int) -> tuple[Array, int, int]:
    width = cursor.u8("gap width")
    if not 1 <= width <= MAX_WIDTH:
        raise CorruptFile(f"gap width is {width}, not 1 to {MAX_WIDTH}")
    data = np.frombuffer(cursor.rest(), np.uint8)
    positions, status = kernel.unpack_gaps(data, n, width, size)
    return positions, status, 1


def _decode_tokens(cursor: Cursor, number: int, n: int, size: int) -> tuple[Array, int, int]:
    split = cursor.u8("gap split")
    direct, top = split & 15, split >> 4
    if direct > 7 or top > direct:
        raise CorruptFile(f"gap split is {direct}, {top}; {top} <= {direct} <= 7 does not hold")
    raw = np.frombuffer(cursor.take(cursor.varint("raw bytes"), "raw bits"), np.uint8)
    head = cursor.at - raw.size
    tokens, table_bytes = decode_symbols(cursor, number, n, ALPHABET)
    positions, status = kernel.join_gaps(tokens, raw, direct, top, size)
    return positions, status, head + table_bytes


def _decode_bitmap(cursor: Cursor, number: int, n: int, size: int) -> tuple[Array, int, int]:
    # A symbol takes a bit at least; or they are all the same, and then each holds a position.
    if size > max(64 * cursor.left, 8 * n):
        raise CorruptFile(f"a bitmap of {size} elements cannot lie in {cursor.left} bytes")
    symbols, table_bytes = decode_symbols(cursor, number, (size + 7) // 8, ALPHABET)
    mask = np.unpackbits(np.ascontiguousarray(symbols), bitorder="little")
    positions = np.flatnonzero(mask)
    if positions.size != n:
        raise CorruptFile(f"the bitmap holds {positions.size} positions, not {n}")
    return positions, bitpack.RANGE if positions[-1] >= size else bitpack.OK, table_bytes


def decode_positions(
    method: int, body: memoryview, n: int, size: int, shape: tuple[int, ...] | None = None
) -> tuple[Array, int]:
    """Read ``n`` positions below ``size`` (int64), and the bytes of tables and parameters.

    The caller has bounded ``n``: an int64 array of that many is made.
    """
    if not n:
        read_empty(method, body)
        return np.zeros(0, np.int64), 0
    layout, number = split_method(method)
    if layout == neighbours.KEPT and number == CODERS.get("context").id and shape is not None:
        return neighbours.decode_kept(body, n, shape), 0
    cursor = Cursor(body)
    if layout == FILLERS and number == CODERS.get("fixed").id:
        positions, status, tables = _decode_fillers(cursor, n, size)
    elif layout == TOKENS:
        positions, status, tables = _decode_tokens(cursor, number, n, size)
    elif layout == BITMAP:
        positions, status, tables = _decode_bitmap(cursor, number, n, size)
    else:
        raise CorruptFile(f"layout {layout} of positions with coder {number} is not known")
    if status == bitpack.SHORT:
        raise TruncatedFile(f"the gaps end before the last of {n} positions")
    if status == bitpack.RANGE:
        raise CorruptFile(f"a position lies outside the tensor's {size} elements")
    if status != bitpack.OK:
        raise CorruptFile(f"bits follow the last of {n} positions")
    return positions, tables
