"""The adaptive model of sizes: its contexts, its counters, and what they learn.

See :mod:`espalier.kernels.magnitudes`, which codes with it; ``SPEC.md``, section 3.5, gives every
number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from espalier.kernels.bitpack import Int, frozen, jit
from espalier.kernels.neighbours import TOP, logistic
from espalier.kernels.range_coder import HALF, LEAST, LIMIT, RATES

Array = NDArray[Any]

inlined: Any = njit(inline="always")
"""The decorator of what is inlined: a decision takes less time than a call."""

WEIGHT = 32666
"""Where a weight begins, in parts of 2**16: three of them are 1.5."""
STEPS = 32
"""Values that a quantized mean has."""
NODES = 2
"""Mixed decisions: is it 1 or more, is it 2 or more. Further ones hardly depend on more than the
last thirty elements."""

CHANNEL = STEPS * NODES
NEAR = 2 * STEPS * NODES
_CONTEXTS = (2 + STEPS) * STEPS * NODES
SECOND, SIGNS, LONG = 256, 512, 544
"""Where plain counters begin, behind those of further bits by the bits so far: of the second bit by
the number of bits, of signs, of whether it has more than n bits."""
_PLAIN = LONG + 16 * STEPS

_BOUNDS = [2 * ((4 + i % 4) << i // 4) - 8 for i in range(1, STEPS)]
_STEP = frozen(np.searchsorted(_BOUNDS, np.arange(_BOUNDS[-1] + 1), "right").astype(np.uint8))
"""A mean in parts of 16, quantized: four steps to each doubling of it and a half."""

# All tables together are to stay in the fastest cache.
_SQUASH, _STRETCH = (
    frozen(t.astype(dtype)) for t, dtype in zip(logistic(), (np.uint16, np.int16), strict=True)
)
_RATES = frozen(RATES.astype(np.uint16))


@inlined
def quantized(mean: Int) -> Int:
    return np.int64(_STEP[np.uint64(min(mean, _STEP.size - 1))])


@inlined
def signed_step(value: Int) -> Int:
    """A signed number, quantized: 0 to 16, 8 for 0."""
    size = (quantized(16 * abs(value)) + 2) >> 2
    return 8 - size if value < 0 else 8 + size


@inlined
def learnt(counter: Int, bit: Int) -> Int:
    """A counter, probability * 2**10 + decisions met, after one more."""
    q, seen = counter >> 10, counter & 1023
    q += (((bit << 16) - q) * np.int64(_RATES[np.uint64(seen)])) >> 16
    # Never over 2**16 - LEAST: after n ones it is at most 2**16 - 2**15 / (n + 1), n up to LIMIT.
    return max(q, np.int64(LEAST)) << 10 | (seen + np.int64(seen < LIMIT))


@inlined
def risen(counter: Int) -> Int:
    """:func:`learnt` of a one: the probability is never too low then."""
    q, seen = counter >> 10, counter & 1023
    q += (((1 << 16) - q) * np.int64(_RATES[np.uint64(seen)])) >> 16
    return q << 10 | (seen + np.int64(seen < LIMIT))


@inlined
def fallen(counter: Int) -> Int:
    return learnt(counter, np.int64(0))


@inlined
def predicted(x: Int, y: Int, z: Int, a: Int, b: Int, c: Int) -> tuple[Int, Int, Int, Int]:
    """Of three counters and their weights, the stretched probabilities and the mixed one."""
    s = np.int64(_STRETCH[np.uint64(x >> 14)])
    t = np.int64(_STRETCH[np.uint64(y >> 14)])
    u = np.int64(_STRETCH[np.uint64(z >> 14)])
    logit = min(max((a * s + b * t + c * u) >> 16, np.int64(-TOP)), np.int64(TOP))
    return s, t, u, np.int64(_SQUASH[np.uint64(logit + TOP)])


@inlined
def moved(weight: Int, stretched: Int, error: Int) -> Int:
    return weight + ((stretched * error + np.int64(1 << 17)) >> 18)


@jit
def new_model() -> tuple[Array, Array, Array]:
    """Counters and weights of mixed decisions, and the counters of plain ones, at the start."""
    start = HALF << 10
    counters = np.full(_CONTEXTS, start, np.int32)
    return counters, np.full((3, NODES), WEIGHT, np.int64), np.full(_PLAIN, start, np.int32)
