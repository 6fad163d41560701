"""Codebooks of a uniform grid: one step, and which of its multiples there are.

The values of a grid are known from a step and some integers, where each value by itself takes most
of its 32 bits. A step in double precision gives them back to the last bit, if there is one that
does: each value v = round(k step) leaves an interval of steps, and any step in all of them will do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.stream import RAW, Stream
from espalier.errors import CorruptFile
from espalier.kernels import bitpack
from espalier.kernels.bitpack import bytes_of, set_bits

Array = NDArray[Any]

MULTIPLES = 6
"""Layout of values."""

_LARGEST = {name: float(np.finfo(name).max) for name in ("float32", "float16")}
"""Of each dtype that can have the layout, its largest number."""
_STEP = np.dtype("<f8")
_MOST = 1 << 20
"""No multiple is further from zero: the bits between the first and the last are paid for."""


def encode_multiples(values: Array, dtype: str) -> Stream | None:
    """Rising multiples of one step; None where ``values`` are not that."""
    found = common_step(values) if dtype in _LARGEST else None
    if found is None:
        return None
    step, k = found
    first, span = int(k[0]), int(k[-1] - k[0])
    mask = np.zeros(span + 1, np.bool_)
    mask[k - first] = True
    head = np.array(step, _STEP).tobytes() + varint(2 * first if first >= 0 else -2 * first - 1)
    body = head + np.packbits(mask, bitorder="little").tobytes()
    return Stream(MULTIPLES, RAW, body, len(head))


def common_step(values: Array) -> tuple[float, Array] | None:
    """The step that rising floats are all multiples of, to the last bit, and which multiples.

    None if they are not, or do not rise.

    Examples
    --------
    >>> step, k = common_step(np.array([-0.3, 0.6, 0.9], np.float32))
    >>> round(step, 6), k.tolist()
    (0.3, [-1, 2, 3])
    >>> common_step(np.array([-0.3, 0.6, 1.0], np.float32)) is None
    True
    """
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all() or (np.diff(wide) <= 0).any():
        return None
    distances = np.concatenate([np.abs(wide[wide != 0]), np.diff(wide)])
    rough = float(distances.min(initial=np.inf))
    if not np.isfinite(rough) or np.abs(wide).max() / rough > _MOST:
        return None
    k = np.rint(wide / rough).astype(np.int64)
    step = _step_of(values, k)
    if step <= 0 or values_at(k, step, values.dtype).tobytes() != values.tobytes():
        return None
    return step, k


def _step_of(values: Array, k: Array) -> float:
    """The middle of the steps that give each value to the last bit; 0 if there is none."""
    some = k != 0
    near, times = np.abs(values[some]), np.abs(k[some])
    beside = (np.nextafter(near, values.dtype.type(to)) for to in (0, np.inf))
    low, high = ((near.astype(np.float64) + other) / 2 / times for other in beside)
    least, most = float(low.max(initial=0.0)), float(high.min(initial=np.inf))
    return (least + most) / 2 if least <= most < np.inf else 0.0


def values_at(k: Array, step: float, storage: np.dtype[Any]) -> Array:
    """k * step in double precision, rounded to ``storage``."""
    return (k * step).astype(storage)


def decode_multiples(
    body: memoryview, n: int, dtype: str, storage: np.dtype[Any]
) -> tuple[Array, int]:
    """The ``n`` values that :func:`encode_multiples` wrote, and the bytes of step and start."""
    if dtype not in _LARGEST:
        raise CorruptFile(f"{dtype} values cannot have layout {MULTIPLES}")
    cursor = Cursor(body)
    (step,) = np.frombuffer(cursor.take(_STEP.itemsize, "step"), _STEP).tolist()
    folded = cursor.varint("first multiple", 2 * _MOST)
    first = -(folded + 1) // 2 if folded & 1 else folded // 2
    head = cursor.at
    bits = bytes_of(cursor.rest())
    # A bit for each at least: asked before there is memory for them.
    k = np.empty(n if n <= 8 * bits.size else 0, np.int64)
    if k.size < n or set_bits(bits, first, k) != bitpack.OK:
        raise CorruptFile(f"{bits.size} bytes do not say which multiples {n} values are")
    if not 0 < step < np.inf or max(abs(k[0]), abs(k[-1])) * step > _LARGEST[dtype]:
        raise CorruptFile(f"multiples {k[0]} to {k[-1]} of {step} do not fit in {dtype}")
    return values_at(k, step, storage), head
