"""All planes in one call: what is written is what the coders write plane by plane."""

import numpy as np
import pytest

from espalier.entropy.coder import CODERS
from espalier.entropy.planes import ROTATED, encode_each, encode_planes
from espalier.kernels import plane_streams
from espalier.kernels.planes import split
from espalier.state import STORAGE_DTYPES

WAYS = ["as they are", "half of them one", "all one", "mostly zero", "noise"]


def values_of(dtype, n, way):
    rng = np.random.default_rng(n)
    storage = STORAGE_DTYPES[dtype]
    if way == "noise":
        return rng.bytes(n * storage.itemsize), storage
    wide = rng.normal(0, 0.02, n)
    if dtype == "bfloat16":
        values = (wide.astype("<f4").view("<u4") >> 16).astype("<u2")
    else:
        values = wide.astype(storage) if storage.kind == "f" else (2000 * wide).astype(storage)
    if way == "half of them one":
        values[::2] = values[0]
    elif way == "all one":
        values[:] = values[0]
    elif way == "mostly zero":
        values[rng.random(n) < 0.97] = 0
    return values.tobytes(), storage


@pytest.mark.parametrize("names", [("huffman", "rans"), ("huffman",), ("rans",)], ids="+".join)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int32", "uint8"])
def test_one_call_is_its_reference(names, dtype):
    coders = [CODERS.make(name) for name in names]
    # At 4096 and 2**14 words something changes: the threshold and states, runs and samples.
    for n in [1, 2, 3, 10, 100, 1000, 4095, 4096, 16383, 16384, 32768, 40_000]:
        for way in WAYS:
            data, storage = values_of(dtype, n, way)
            planes = split(np.frombuffer(data, f"<u{storage.itemsize}"), dtype in ROTATED)
            found = encode_planes(np.frombuffer(data, storage), dtype, coders)
            want = encode_each(planes, coders)
            assert (found.coder, found.table_bytes, found.body) == (
                (want.coder, want.table_bytes, want.body)
            ), (n, way)


def test_more_words_than_a_block_are_coded_one_plane_at_a_time():
    coders = [CODERS.make("huffman"), CODERS.make("rans")]
    for n in (plane_streams.MOST, plane_streams.MOST + 1):
        symbols = np.random.default_rng(n).binomial(12, 0.4, n).astype(np.uint8)
        found = encode_planes(symbols, "uint8", coders)
        want = encode_each(symbols[None], coders)
        assert (found.coder, found.body) == (want.coder, want.body)
