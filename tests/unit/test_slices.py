"""Slices of tensors in every representation: as NumPy would take them of the dense one."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.container import Reader, write
from espalier.errors import InvalidArgument
from espalier.fixed_point import FixedPoint, SparseFixedPoint
from espalier.state import Codebook, CompressedModel, Dense, Sparse, SparseCodebook

SHAPE = (6, 4, 5)
RNG = np.random.default_rng(0)
KEPT = np.flatnonzero(RNG.random(120) < 0.4)
CODES = RNG.integers(0, 5, 120, np.uint8)
SCALES, ZEROS = RNG.random(12).astype("<f4") + 0.1, RNG.integers(-2, 3, 12).astype("<i2")
BOOK = np.array([-1, 0.5, 2], "<f4")
TENSORS = {
    "dense": Dense(SHAPE, "float32", RNG.normal(size=120).astype("<f4")),
    "sparse": Sparse(SHAPE, "float32", KEPT, RNG.normal(size=KEPT.size).astype("<f4")),
    "codebook": Codebook(SHAPE, "float32", RNG.integers(0, 3, 120, np.uint8), BOOK),
    "both": SparseCodebook(SHAPE, "float32", KEPT, RNG.integers(0, 3, KEPT.size, np.uint8), BOOK),
    "numbers": FixedPoint(SHAPE, "float32", CODES, SCALES, ZEROS, (2, 1, 5), -2, 1, 5),
    "kept numbers": SparseFixedPoint(
        SHAPE, "float16", CODES[KEPT], SCALES, ZEROS, (2, 1, 5), -2, 1, 5, KEPT
    ),
    "one scale": FixedPoint(SHAPE, "float32", CODES, SCALES[:1], ZEROS[:1], SHAPE, -2, 1, 5),
    "constant": Dense(SHAPE, "float32", np.broadcast_to(np.float32(3), 120)),
}

parts = st.one_of(
    st.integers(-4, 3),
    st.builds(
        slice,
        st.none() | st.integers(-8, 8),
        st.none() | st.integers(-8, 8),
        st.none() | st.integers(-3, 3).filter(bool),
    ),
)
indices = st.one_of(parts, st.just(...), st.lists(parts, max_size=3).map(tuple)) | st.builds(
    lambda a, b: (a, ..., b), parts, parts
)


@pytest.mark.parametrize("name", TENSORS)
@given(index=indices)
def test_a_slice_is_that_of_the_dense_tensor(name, index):
    tensor = TENSORS[name]
    got, want = tensor.slice(index), tensor.dense()[index]
    assert np.array_equal(got, want)
    assert np.shape(got) == np.shape(want)
    assert got.dtype == want.dtype


@pytest.mark.parametrize("name", TENSORS)
def test_flat_parts(name):
    tensor = TENSORS[name]
    flat = tensor.dense().reshape(-1)
    for start, stop in [(0, 120), (0, 0), (120, 120), (7, 63), (119, 120)]:
        assert np.array_equal(tensor.flat(start, stop), flat[start:stop])


@pytest.mark.parametrize(
    "index", [6, -7, (0, 4), (0, 0, 0, 0), (..., ...), [1, 2], "a", None, 1.0, (0, None)]
)
def test_indices_that_are_refused(index):
    with pytest.raises(InvalidArgument, match="index"):
        TENSORS["both"].slice(index)


def test_scalars_and_empty_tensors():
    scalar = Dense((), "int64", np.array([7]))
    assert scalar.slice(...) == 7
    assert scalar.slice(()) == 7
    with pytest.raises(InvalidArgument):
        scalar.slice(0)
    empty = Codebook((0, 3), "float32", np.zeros(0, np.uint8), np.zeros(0, "<f4"))
    assert empty.slice(slice(None)).shape == (0, 3)
    assert Dense((3, 0), "int8", np.zeros(0, "i1")).slice((slice(1, 3), ...)).shape == (2, 0)


def test_only_the_rows_become_dense():
    huge = SparseCodebook(
        (1 << 40, 8), "float32", np.array([8, 1 << 42]), np.array([0, 1], np.uint8), BOOK
    )
    assert huge.slice(1).tolist() == [-1, 0, 0, 0, 0, 0, 0, 0]
    assert huge.slice((slice((1 << 39) - 1, (1 << 39) + 1), 0)).tolist() == [0, 0.5]


def test_the_reader_touches_no_other_tensor():
    file = io.BytesIO()
    write(CompressedModel(TENSORS), file)
    data = bytearray(file.getvalue())
    with Reader(io.BytesIO(bytes(data))) as reader:
        other = reader.entry("dense")
        want = reader.tensor("both").dense()[2:4, 1]
    data[other.offset : other.offset + other.length] = bytes(other.length)
    with Reader(io.BytesIO(bytes(data))) as reader:
        assert np.array_equal(reader.slice("both", (slice(2, 4), 1)), want)
        with pytest.raises(InvalidArgument, match="no tensor 'none'"):
            reader.slice("none", 0)
