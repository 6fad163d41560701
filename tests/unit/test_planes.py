"""Byte planes and runs: what is stored, what is coded, and every bit back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from espalier.entropy.choice import coders_for
from espalier.entropy.stream import split_method
from espalier.entropy.values import decode_values, encode_values
from espalier.kernels import counting, planes
from espalier.state import STORAGE_DTYPES

RNG = np.random.default_rng(0)
N = 1 << 19


def there_and_back(values, dtype="float32", effort="default"):
    stream = encode_values(values, dtype, coders_for("auto", effort))
    body = memoryview(stream.body)
    found, _ = decode_values(stream.method, body, values.size, dtype, values.dtype)
    assert found.tobytes() == values.tobytes()
    return stream


@settings(deadline=None)  # the first example compiles
@given(
    words=st.sampled_from([2, 4, 8]).flatmap(
        lambda width: hnp.arrays(f"<u{width}", st.integers(0, 40))
    ),
    rotate=st.booleans(),
)
def test_kernels_are_their_reference(words, rotate):
    width = words.dtype.itemsize
    found = planes.split(words, rotate)
    assert found.tolist() == (planes.split_reference(words.tolist(), width, rotate))
    assert planes.join(list(found), words.size, rotate).tolist() == words.tolist()
    if words.size:
        assert planes.join_reference(found.tolist(), rotate) == words.tolist()


@pytest.mark.parametrize("width", [2, 4, 8])
def test_more_words_than_a_tile_and_planes_of_one_byte(width):
    words = RNG.integers(0, 1 << 15, 10_001).astype(f"<u{width}")
    words[::3] += words.dtype.type(1 << (8 * width - 1))
    for rotate in (False, True):
        split = list(planes.split(words, rotate))
        assert np.array_equal(planes.join(split, words.size, rotate), words)
    split[0] = split[0][:1]
    want = split[0].repeat(words.size)
    again = planes.split(planes.join(split, words.size, True), True)
    assert np.array_equal(again[0], want)
    assert np.array_equal(again[1:], split[1:])


def test_mantissas_are_stored_and_exponents_coded():
    values = RNG.normal(size=N).astype("<f4")
    stream = there_and_back(values)
    assert split_method(stream.method)[0] == 1
    # Sign and mantissa, and the exponent at its entropy (2.5 bits for a normal distribution).
    assert 0.82 * values.nbytes < len(stream.body) < 0.831 * values.nbytes
    assert len(there_and_back(values, effort="max").body) < len(stream.body)


def test_numbers_of_bfloat16_in_float32_take_no_more():
    bits = RNG.normal(size=N).astype("<f4").view("<u4") & np.uint32(0xFFFF0000)
    half = (bits >> 16).astype("<u2")
    wide, narrow = there_and_back(bits.view("<f4")), there_and_back(half, "bfloat16")
    assert len(wide.body) <= len(narrow.body) + 4


def test_a_few_coded_bytes_in_a_long_stored_plane_are_kept():
    """The sample says that nothing is to be gained; what it does not see must come back too."""
    values = RNG.integers(0, 1 << 32, N, dtype=np.uint32)
    values[9000:9900] = 7
    there_and_back(values.view("<f4"))


@pytest.mark.parametrize("n", [counting.SAMPLED - 1, counting.SAMPLED, 1 << 17])
def test_what_a_sample_says_of_a_plane_is_the_references(n):
    noise = RNG.bytes(n)
    skewed = RNG.binomial(9, 0.3, n).astype(np.uint8).tobytes()
    late = bytes(n // 2) + RNG.bytes(n - n // 2)
    nearly = np.minimum(RNG.integers(0, 256, n), 253).astype(np.uint8).tobytes()
    rows = [noise, skewed, late, nearly, bytes(n)]
    counts, used = counting.histograms(
        np.frombuffer(b"".join(rows), np.uint8).reshape(5, n), n - n // 128
    )
    found = [row.tolist() if some else None for row, some in zip(counts, used, strict=True)]
    assert found == counting.histograms_reference(rows, n - n // 128)
    assert [some > 0 for some in used.tolist()] == [False, True, True, False, True]
    assert used[-1] == 1


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_runs(dtype):
    storage = STORAGE_DTYPES[dtype]
    raw = RNG.integers(0, 2 if dtype == "bool" else 256, 300 * storage.itemsize, np.uint8)
    values = np.repeat(raw.view(storage), RNG.integers(20, 200, 300))
    stream = there_and_back(values, dtype)
    assert len(stream.body) < 300 * (storage.itemsize + 2)


def test_a_triangle_and_halves():
    mask = np.tril(np.ones((1024, 1024), bool)).reshape(-1)
    assert len(there_and_back(mask, "bool").body) < 4000
    halves = np.repeat(np.array([1, 2], "<f4"), 40_000)
    assert len(there_and_back(halves).body) < 60
    # Too few bytes may not ask for so much memory: planes, which pay for each item.
    there_and_back(np.repeat(np.array([1, 2], "<f4"), 1 << 20))


@pytest.mark.parametrize(
    "bits",
    [
        [0, 1 << 31] * 40,
        [0x7FC00000, 0x7FC00001, 0xFFC12345, 0x7F800001] * 30,
        [0x7F800000, 0xFF800000, 1, 0x80000001] * 30,
    ],
)
def test_signed_zeros_nan_payloads_infinities_and_subnormals(bits):
    there_and_back(np.array(bits, "<u4").view("<f4"))
