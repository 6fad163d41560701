"""The smallest representation of a tensor that keeps every bit of it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from espalier.entropy import Histogram, entropy_bits
from espalier.entropy.histogram import entropy_of
from espalier.entropy.planes import ROTATED
from espalier.interop import TensorInfo
from espalier.kernels.planes import split
from espalier.state import Array, Codebook, CompressedTensor, Dense, Sparse, SparseCodebook

_LEAST = 4096  # elements: below, the choice is worth less than its header
_ZERO_SHARE = 1 / 8  # of elements, from which positions cost less than a zero in each byte plane
_SAMPLE = 1 << 16
_SAMPLE_LEVELS = _SAMPLE // 16
_GLANCE = 1 << 10
_EACH = 8  # uses of a value, at least, for which it is worth a place in a codebook
_BLOCK = 1 << 20
_MAX_LEVELS = 1 << 16
_FEW = 256  # levels whose codebook is next to nothing
_MANY_SAVE = 1 / 64  # of the bytes, at least, by more levels


def keep_exactly(info: TensorInfo, flat: Array) -> CompressedTensor:
    """``flat`` bit for bit: sparse where much of it is zero, shared where few values come back.

    Zeros are those of all bits zero: -0.0 and NaN payloads stay what they are. So a network that
    was pruned or quantized before, by whatever tool, is written as what it is.

    Parameters
    ----------
    info : TensorInfo
    flat : ndarray, shape (info.size,), in the storage dtype

    Examples
    --------
    >>> info = TensorInfo("w", (64, 100), "float32")
    >>> type(keep_exactly(info, np.tile(np.float32([0.5, -1]), 3200))).__name__
    'Codebook'
    """
    itemsize = flat.dtype.itemsize
    # Of one byte, a byte plane is coded as well as anything; sixteen have no integer to compare by.
    if flat.size < _LEAST or itemsize not in (2, 4, 8):
        return Dense(info.shape, info.dtype, flat)
    words = flat.view(f"<u{itemsize}")
    stored = int(np.count_nonzero(words))
    kept = None
    if flat.size - stored > _ZERO_SHARE * flat.size:
        kept = np.flatnonzero(words)
        words = words[kept]
    found = _shared(words, info.dtype)
    if found is not None:
        codes, book = found[0], found[1].view(flat.dtype)
        if kept is None:
            return Codebook(info.shape, info.dtype, codes, book)
        return SparseCodebook(info.shape, info.dtype, kept, codes, book)
    if kept is None:
        return Dense(info.shape, info.dtype, flat)
    return Sparse(info.shape, info.dtype, kept, words.view(flat.dtype))


def _shared(words: Array, dtype: str) -> tuple[Array, Array] | None:
    """Codes and sorted codebook of ``words``, if few values come back often and it pays."""
    if words.size < _LEAST:
        return None
    sample = words[:: max(1, words.size // _SAMPLE)][:_SAMPLE]
    most = min(_SAMPLE_LEVELS, sample.size // _EACH)
    # Of a random tensor nearly every value is another, which a few of them tell already: were they
    # drawn from ``most``, few^2 / (2 most) would be repeats, and half of that is asked for.
    few = sample[:: sample.size // _GLANCE][:_GLANCE]
    if _number_distinct(few) > few.size - min(few.size**2 // (4 * most), few.size // 2):
        return None
    # A constant tensor needs no codes.
    if not 1 < _number_distinct(sample) <= most:
        return None
    return (_of_two_bytes if words.itemsize == 2 else _of_more)(words, dtype)


def _of_two_bytes(words: Array, dtype: str) -> tuple[Array, Array] | None:
    """As :func:`_shared`: all is told by how often each of the 65,536 words occurs."""
    found = Histogram.of(words)
    book = found.values.astype(words.dtype)
    if book.size > words.size // _EACH:
        return None
    planes = (
        entropy_of(weighed[weighed > 0])
        for plane in split(book, dtype in ROTATED)
        for weighed in [np.bincount(plane, found.counts)]
    )
    if not _pays(found.counts, book, planes, words.size):
        return None
    places = np.empty(1 << 16, _code_dtype(book))
    places[book] = np.arange(book.size)
    return np.take(places, words), book


def _of_more(words: Array, dtype: str) -> tuple[Array, Array] | None:
    """As :func:`_shared`, of words of four or eight bytes: by sorting."""
    book = np.zeros(0, words.dtype)
    for start in range(0, words.size, _BLOCK):
        book = _distinct(np.concatenate([book, _distinct(words[start : start + _BLOCK])]))
        if book.size > min(_MAX_LEVELS, words.size // _EACH):
            return None
    codes = np.empty(words.size, _code_dtype(book))
    for start in range(0, words.size, _BLOCK):
        codes[start : start + _BLOCK] = np.searchsorted(book, words[start : start + _BLOCK])
    planes = map(entropy_bits, split(words, dtype in ROTATED))
    pays = _pays(np.bincount(codes, minlength=book.size), book, planes, words.size)
    return (codes, book) if pays else None


def _code_dtype(book: Array) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if book.size <= 256 else np.uint16


def _distinct(words: Array) -> Array:
    """``np.unique``, which for integers goes through a hash table and takes far longer."""
    rising = np.sort(words)
    return rising[np.append(True, rising[1:] != rising[:-1])] if rising.size else rising


def _number_distinct(words: Array) -> int:
    """How many different ones there are of some."""
    if words.itemsize == 2 and words.size > _GLANCE:  # to mark them all is quicker than to sort
        seen = np.zeros(1 << 16, np.bool_)
        seen[words] = True
        return int(np.count_nonzero(seen))
    rising = np.sort(words)
    return 1 + int(np.count_nonzero(rising[1:] != rising[:-1]))


def _pays(counts: Array, book: Array, planes: Iterable[float], n: int) -> bool:
    """Whether codes and codebook are smaller than byte planes, given in bits: all at their entropy.

    A codebook of many values is no small matter: a bfloat16 takes some thousand values at most.
    And codes of over 256 levels are read four times as slowly as planes, so that it must save some.
    """
    if book.size <= _FEW:
        return True
    shared = entropy_of(counts) / 8 + book.size * (1 + 0.75 * book.itemsize)
    return shared < (1 - _MANY_SAVE) * sum(min(bits / 8, n) for bits in planes)
