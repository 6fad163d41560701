"""What a layer holds: histograms and symbols counted by hand."""

import numpy as np
import pytest

from espalier.analysis.distributions import (
    WeightHistogram,
    code_symbols,
    gap_symbols,
    is_weight,
    to_float,
    weight_histogram,
)
from espalier.state import Codebook, Dense, Sparse, SparseCodebook

VALUES = np.array([-2, -1, 0.5, 2], "<f4")


def sparse_codebook(positions, codes, levels, size=100):
    codebook = np.linspace(-1, 1, levels).astype("<f4")
    at, codes = np.array(positions, np.int64), np.array(codes, "u1")
    return SparseCodebook((size, 1), "float32", at, codes, codebook)


def test_exact_weights_are_counted_in_bins_between_the_extremes():
    found = weight_histogram("w", Dense((2, 2), "float32", VALUES))
    assert (found.low, found.high, sum(found.counts), found.centroids) == (-2.0, 2.0, 4, ())
    assert [i for i, n in enumerate(found.counts) if n] == [0, 20, 50, 79]
    rows = found.bins()
    assert (rows[0]["low"], rows[-1]["high"], rows[20]["weights"]) == (-2.0, 2.0, 1)
    assert WeightHistogram.from_json(found.to_json()) == found


def test_only_kept_weights_are_counted():
    tensor = Sparse((5, 2), "float32", np.array([1, 9], np.int64), VALUES[:2])
    assert sum(weight_histogram("w", tensor).counts) == 2


def test_shared_weights_are_counted_by_their_codes():
    tensor = Codebook((4, 1), "float32", np.array([0, 3, 3, 3], "u1"), VALUES)
    found = weight_histogram("w", tensor)
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (1, 3, 4)
    assert found.centroids == (-2.0, -1.0, 0.5, 2.0)


def test_values_that_are_not_finite_have_no_place_in_a_histogram():
    values = np.array([np.nan, np.inf, 1, 3], "<f4")
    found = weight_histogram("w", Dense((4, 1), "float32", values))
    assert (found.low, found.high, sum(found.counts)) == (1.0, 3.0, 2)


def test_bfloat16_lies_in_integers():
    assert to_float(np.array([0x3F80, 0xC000], "<u2"), "bfloat16").tolist() == [1.0, -2.0]


def test_codes_have_the_lengths_of_their_huffman_code():
    tensor = sparse_codebook([0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 1, 1, 2, 3], 4)
    found = code_symbols(tensor)
    assert [(r["symbol"], r["count"], r["bits"]) for r in found.rows] == [
        (0, 4, 1.0),
        (1, 2, 2.0),
        (2, 1, 3.0),
        (3, 1, 3.0),
    ]
    assert (found.fixed_bits, found.huffman_bits, found.entropy_bits) == (2, 1.75, 1.75)


def test_long_gaps_are_fillers_as_in_the_paper():
    # Gaps 0, 0, 0, 0, 9 and codes of 2 bits: (b + 2) * (5 + 9 // (2**b - 1)) is smallest at b = 3,
    # where a filler skips 7 zeros, and 2 are left.
    found = gap_symbols(sparse_codebook([0, 1, 2, 3, 13], [0, 0, 1, 2, 3], 4))
    assert found.fixed_bits == 3
    assert {r["symbol"]: r["count"] for r in found.rows} == {0: 4, 2: 1, 7: 1}


def test_what_is_dense_has_no_symbols_and_many_symbols_share_bars():
    dense = Dense((2, 2), "float32", VALUES)
    assert code_symbols(dense) is None
    assert gap_symbols(dense) is None
    codes = np.arange(1000, dtype="<u2")
    codebook = np.arange(1000, dtype="<f4")
    rows = code_symbols(Codebook((1000, 1), "float32", codes, codebook)).rows
    assert len(rows) <= 64
    assert sum(row["count"] for row in rows) == 1000
    assert (rows[0]["symbol"], rows[0]["last"], rows[1]["symbol"]) == (0, 15, 16)


@pytest.mark.parametrize(
    ("shape", "dtype", "kept"),
    [((2, 2), "float32", True), ((4,), "float32", False), ((2, 2), "int8", False)],
)
def test_weights_are_floating_point_with_two_dimensions(shape, dtype, kept):
    values = VALUES.astype("<f4" if dtype == "float32" else "i1")
    assert is_weight(Dense(shape, dtype, values)) is kept
