"""Codebooks as sorted keys and moves: by hand, every dtype, what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.entropy.codebooks import SORTED, decode_sorted, encode_sorted
from espalier.entropy.coder import CODERS
from espalier.entropy.keys import keys_of, values_of
from espalier.entropy.values import decode_values, encode_values
from espalier.errors import CorruptFile, FormatError
from espalier.state import STORAGE_DTYPES, storage_dtype

DTYPES = [
    name
    for name in sorted(STORAGE_DTYPES)
    if not name.startswith(("complex", "bool")) and storage_dtype(name).itemsize <= 4
]


def distinct(dtype, n, seed=0):
    storage = storage_dtype(dtype)
    raw = np.random.default_rng(seed).integers(0, 1 << 8 * storage.itemsize, n)
    words = raw.astype(f"u{storage.itemsize}")
    return words[np.sort(np.unique(words, return_index=True)[1])].view(storage)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_in_order_and_come_back(dtype):
    values = distinct(dtype, 300)
    keys = keys_of(values, dtype)
    assert values_of(keys, dtype, values.dtype).tobytes() == values.tobytes()
    if dtype.startswith(("int", "uint")) or dtype in ("float16", "float32"):
        numbers = values.astype(np.float64)
        finite = np.isfinite(numbers)
        order = np.argsort(keys[finite])
        assert np.all(np.diff(numbers[finite][order]) >= 0)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(DTYPES), st.integers(2, 300), st.integers(0, 9), st.sampled_from(CODERS.names())
)
def test_values_come_back(dtype, n, seed, coder):
    values = distinct(dtype, n, seed)
    if coder == "fixed" or values.size < 2:
        return
    stream = encode_sorted(values, dtype, CODERS.make(coder))
    body = memoryview(stream.body)
    found, tables = decode_values(stream.method, body, values.size, dtype, values.dtype)
    assert found.tobytes() == values.tobytes()
    assert tables == stream.table_bytes


def test_order_pays():
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(0, 1, 256)).astype("<f4")
    coders = [CODERS.make(name) for name in ("huffman", "rans")]
    flat = encode_values(values, "float32", coders)
    stream = encode_values(values, "float32", coders, True)
    assert stream.layout == SORTED
    assert len(stream.body) < 0.8 * len(flat.body)
    values[[3, 90, 200]] = values[[90, 200, 3]]
    moved = encode_values(values, "float32", coders, True)
    assert len(moved.body) < len(stream.body) + 25


def test_what_cannot_be_sorted_is_written_otherwise():
    coder = CODERS.make("rans")
    assert encode_sorted(np.array([1, 2, 1], "<f4"), "float32", coder) is None
    assert encode_sorted(np.array([1], "<f4"), "float32", coder) is None
    assert encode_sorted(np.arange(5000, dtype="<f4"), "float32", coder) is None
    assert encode_sorted(np.arange(9, dtype="<f8"), "float64", coder) is None
    assert encode_sorted(np.arange(9, dtype="<c8"), "complex64", coder) is None
    zeros = encode_sorted(np.array([0.0, -0.0], "<f4"), "float32", coder)
    assert decode_sorted(3, memoryview(zeros.body), 2, "float32", np.dtype("<f4"))[0].tobytes() == (
        np.array([0.0, -0.0], "<f4").tobytes()
    )


def test_every_cut_and_flip_is_refused_or_decoded():
    values = distinct("float32", 40)
    body = encode_sorted(values, "float32", CODERS.make("huffman")).body
    storage = np.dtype("<f4")
    for cut in range(len(body)):
        with pytest.raises(FormatError):
            decode_sorted(2, memoryview(body[:cut]), 40, "float32", storage)
    for bit in range(8 * len(body)):
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found, _ = decode_sorted(2, memoryview(bytes(flipped)), 40, "float32", storage)
        except FormatError:
            continue
        assert found.shape == (40,)
    with pytest.raises(CorruptFile, match="5000 float32 values"):
        decode_sorted(2, memoryview(body), 5000, "float32", storage)
