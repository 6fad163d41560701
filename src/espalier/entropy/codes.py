"""The codes of shared weights: symbols of a coder, or decisions with neighbours for contexts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.choice import Coders, as_coders
from espalier.entropy.coder import CODERS, coder_by_id
from espalier.entropy.histogram import Histogram
from espalier.entropy.neighbours import RANKS, SIZES, Around, decode_ranks, encode_ranks
from espalier.entropy.stream import (
    EMPTY,
    Stream,
    encode_symbols,
    read_empty,
    smallest,
    split_method,
)
from espalier.errors import CorruptFile
from espalier.kernels.gather import gather

Array = NDArray[Any]


def encode_codes(
    codes: Array, levels: int, coders: Coders, around: Around | None = None
) -> tuple[Stream, Histogram]:
    """Write the codes of shared weights, each below ``levels``, the smallest way.

    Fixed width is always tried: its size is known beforehand. With the coder ``context`` and what
    is ``around`` the codes, they are also coded by their neighbours.
    """
    histogram = Histogram.of(codes)
    if not codes.size:
        return EMPTY, histogram
    tried = as_coders(coders, CODERS.make("fixed"))
    # Equal sizes: fixed width, which decodes fastest.
    tried.sort(key=lambda coder: coder.id)
    stream = encode_symbols(codes, histogram.dense(levels), tried)
    if around is not None and CODERS.get("context").id in {coder.id for coder in tried}:
        ranks = encode_ranks(codes, around)
        stream = stream if ranks is None else smallest([stream, ranks])
    return stream, histogram


def decode_codes(
    method: int, body: memoryview, n: int, levels: int, around: Around | None = None
) -> tuple[Array, int]:
    """Read ``n`` codes below ``levels``: the codes (uint8 or uint16), and the table's bytes."""
    if not n:
        read_empty(method, body)
        return np.zeros(0, np.uint8 if levels <= 256 else np.uint16), 0
    layout, number = split_method(method)
    if not levels:
        raise CorruptFile(f"{n} codes into a codebook of no levels")
    if layout in (RANKS, SIZES) and number == CODERS.get("context").id and around is not None:
        return decode_ranks(layout, body, n, around), 0
    if layout:
        raise CorruptFile(f"layout {layout} of codes with coder {number} is not known")
    return coder_by_id(number).decode(body, n, levels)


def decode_shared(
    method: int, body: memoryview, n: int, codebook: Array, around: Callable[[], Around]
) -> Array:
    """``codebook[codes]`` for the codes that :func:`decode_codes` reads: (n,), never read-only.

    No coder gives a code that is not below its alphabet. ``around`` is called where it is needed.
    """
    layout, number = split_method(method)
    if n and codebook.size and not layout:
        found = coder_by_id(number).lookup(body, n, codebook)
        return found if found.flags.writeable else found.copy()
    codes, _ = decode_codes(method, body, n, codebook.size, around())
    return gather(codebook, codes)
