"""Tensors kept bit for bit, in the representation that suits what they hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress import Step, compress_tensor
from espalier.compress.exact import keep_exactly
from espalier.interop import TensorInfo
from espalier.state import STORAGE_DTYPES

RNG = np.random.default_rng(0)
N = 20_000


def normal(n=N):
    return RNG.normal(size=n).astype(np.float32)


def pruned(values, density=0.3):
    return np.where(RNG.random(values.size) < density, values, 0).astype(values.dtype)


def quantized(levels=200, n=N):
    return normal(levels)[RNG.integers(0, levels, n)]


def odd_zeros():
    """-0.0, which is no zero of a sparse tensor, and NaNs of several payloads."""
    bits = np.zeros(N, np.uint32)
    bits[::2] = 0x80000000
    bits[::7] = 0x7FC00000 + np.arange(bits[::7].size) % 3
    return bits.view(np.float32)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (normal(), "Dense"),
        (pruned(normal()), "Sparse"),
        (quantized(), "Codebook"),
        (pruned(quantized()), "SparseCodebook"),
        (np.full(N, 3, np.float32), "Dense"),
        (np.zeros(N, np.float32), "Sparse"),
        (np.arange(N), "Dense"),
        (np.arange(N) % 7 + 1, "Codebook"),
        (quantized(n=100), "Dense"),
        (quantized(levels=1000), "Codebook"),
        (odd_zeros(), "SparseCodebook"),
        (np.concatenate([quantized(2), normal()]), "Dense"),
        (np.concatenate([quantized(2, 10 * N), normal(30 * N)]), "Dense"),
        (normal().astype(np.complex128), "Dense"),
        ((pruned(normal()) * 9).astype(np.int8), "Dense"),
        (np.zeros(0, np.float32), "Dense"),
    ],
)
def test_what_becomes_of(values, kind):
    info = TensorInfo("w", values.shape, str(values.dtype))
    tensor = keep_exactly(info, values)
    assert type(tensor).__name__ == kind
    assert tensor.dense().tobytes() == values.tobytes()


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(sorted(STORAGE_DTYPES)),
    levels=st.integers(1, 3000),
    zeros=st.sampled_from([0, 0.1, 0.2, 0.9, 1]),
    seed=st.integers(0, 99),
)
def test_every_bit_is_kept(dtype, levels, zeros, seed):
    rng = np.random.default_rng(seed)
    storage = STORAGE_DTYPES[dtype]
    if dtype == "bool":
        values = rng.random(5000) < zeros
    else:
        book = rng.integers(0, 256, levels * storage.itemsize, np.uint8).view(storage)
        values = book[rng.integers(0, levels, 5000)]
        values[rng.random(5000) < zeros] = 0
    info = TensorInfo("w", (50, 100), dtype)
    tensor, outcome = compress_tensor(Step(info, None, None, "lossless"), values.reshape(50, 100))
    assert tensor.dense().tobytes() == values.tobytes()
    assert outcome.error.max_abs == 0
