"""Codebooks of a uniform grid, as a step and its multiples."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.entropy.coder import CODERS
from espalier.entropy.multiples import MULTIPLES, decode_multiples, encode_multiples
from espalier.entropy.values import decode_values, encode_values
from espalier.errors import CorruptFile, FormatError

F4 = np.dtype("<f4")


def decoded(body, n, dtype="float32"):
    return decode_multiples(memoryview(body), n, dtype, np.dtype(dtype))[0]


def test_by_hand():
    # Steps of 1/2 from -3/2 on: k = -3 is written 5; of k = -3 to 4, those at 0, 3 and 7.
    values = np.array([-1.5, 0.0, 2.0], F4)
    body = struct.pack("<d", 0.5) + b"\x05" + b"\x89"
    assert decoded(body, 3).tolist() == values.tolist()
    stream = encode_multiples(np.array([-0.5, 0.0, 1.0], F4), "float32")
    assert stream.method == MULTIPLES << 4
    assert stream.body[8:] == b"\x01\x0b"  # from -1 on, at 0, 1 and 3
    assert decoded(stream.body, 3).tolist() == [-0.5, 0.0, 1.0]


@given(
    st.sampled_from(["float32", "float16"]),
    st.floats(1e-3, 1e3),
    st.sets(st.integers(-40, 40), min_size=2),
)
def test_a_grid_of_any_step_comes_back(dtype, step, multiples):
    k = np.array(sorted(multiples))
    values = (k * step).astype(dtype)
    stream = encode_multiples(values, dtype)
    if stream is not None:
        assert decoded(stream.body, k.size, dtype).tobytes() == values.tobytes()
    if np.diff(k).min() == 1 and dtype == "float32":
        assert stream is not None
        assert len(stream.body) <= 8 + 1 + (k[-1] - k[0]) // 8 + 1


def test_it_is_chosen_for_codebooks_where_it_is_smallest():
    coders = [CODERS.make("rans")]
    grid = (np.arange(-20, 19) * 0.0123).astype(F4)
    stream = encode_values(grid, "float32", coders, codebook=True)
    assert (stream.layout, len(stream.body)) == (MULTIPLES, 14)
    found, tables = decode_values(stream.method, memoryview(stream.body), 39, "float32", F4)
    assert found.tobytes() == grid.tobytes()
    assert tables == stream.table_bytes == 9
    noise = np.sort(np.random.default_rng(0).normal(size=39)).astype(F4)
    assert encode_values(noise, "float32", coders, codebook=True).layout != MULTIPLES


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0001],
        [2.0, 1.0],
        [1.0, 1.0],
        [1.0, np.nan],
        [0.0, np.inf],
        [-0.0, 1.0],
        [1e-30, 1e30],
    ],
    ids=str,
)
def test_what_is_no_grid(values):
    assert encode_multiples(np.array(values, F4), "float32") is None
    assert encode_multiples(np.array([1, 2], "<u2"), "bfloat16") is None


STEP = struct.pack("<d", 0.5)


@pytest.mark.parametrize(
    ("body", "n", "match"),
    [
        (b"", 3, "step"),
        (STEP, 3, "first multiple"),
        (STEP + b"\xff\xff\xff\x7f\x89", 3, "over the limit"),
        (STEP + b"\x05", 3, "0 bytes do not say which"),
        (STEP + b"\x05\x09", 3, "do not say which"),
        (STEP + b"\x05\x99", 3, "do not say which"),
        (STEP + b"\x05\x8a", 3, "do not say which"),
        (STEP + b"\x05\x89\x00", 3, "do not say which"),
        (struct.pack("<d", np.nan) + b"\x05\x89", 3, "do not fit"),
        (struct.pack("<d", -0.5) + b"\x05\x89", 3, "do not fit"),
        (struct.pack("<d", 0.0) + b"\x05\x89", 3, "do not fit"),
        (struct.pack("<d", np.inf) + b"\x05\x89", 3, "do not fit"),
        (struct.pack("<d", 1e38) + b"\x05\x89", 3, "do not fit in float32"),
    ],
)
def test_what_is_refused(body, n, match):
    with pytest.raises(FormatError, match=match):
        decoded(body, n)


def test_other_dtypes_are_refused():
    with pytest.raises(CorruptFile, match="bfloat16 values cannot have layout 6"):
        decode_multiples(memoryview(STEP + b"\x05\x89"), 3, "bfloat16", np.dtype("<u2"))


def test_more_values_than_bits_are_refused_before_there_is_memory_for_them():
    # Found by fuzzing: a tensor of 2**40 values, whose multiples are in a few bytes.
    body = struct.pack("<d", 0.5) + b"\x05" + bytes(8)
    with pytest.raises(CorruptFile, match=f"8 bytes do not say which multiples {2**40} values are"):
        decoded(body, 2**40)
