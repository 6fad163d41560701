"""Compressing without data, one tensor at a time, by cases worked by hand."""

import math

import numpy as np
import pytest
import torch

from espalier.compress import (
    AUTO,
    AUTO_ERROR,
    EXACT,
    Step,
    compress_tensor,
    from_numbers,
    kind_of,
    magnitude_positions,
    measure,
    plan,
    share,
    to_numbers,
)
from espalier.compress.exact import keep_exactly
from espalier.errors import InvalidArgument
from espalier.interop import TensorInfo
from espalier.options import kept_count
from espalier.state import Codebook, Dense, Sparse, SparseCodebook

RNG = np.random.default_rng(0)


def normal(*shape, dtype="<f4"):
    return RNG.normal(0, 0.1, shape).astype(dtype)


def info_of(array, name="w", dtype="float32"):
    return TensorInfo(name, array.shape, dtype)


def step(array, density=None, bits=None, dtype="float32", reason=""):
    return Step(info_of(array, dtype=dtype), density, bits, reason)


# ---------------------------------------------------------------- which elements stay


@pytest.mark.parametrize(
    ("density", "n", "kept"), [(1, 7, 7), (0.5, 5, 3), (0.1, 4, 1), (1e-9, 10, 1), (0.5, 0, 0)]
)
def test_kept_count(density, n, kept):
    assert kept_count(density, n) == kept


@pytest.mark.parametrize(
    ("values", "density", "positions"),
    [
        ([1, -3, 2, 0], 0.5, [1, 2]),
        ([1, 1, 1, 1], 0.5, [0, 1]),  # of equals the lower index stays
        ([1, -1, 2, 1], 0.75, [0, 1, 2]),
        ([0, 0, 0], 1 / 3, [0]),
        ([5], 1, [0]),
    ],
)
def test_exact_count_under_ties(values, density, positions):
    found = magnitude_positions(np.array(values, np.float32), density)
    assert found.tolist() == positions
    assert found.dtype == np.int64


# ---------------------------------------------------------------- numbers and their bits


def test_bfloat16_both_ways_as_torch_rounds():
    values = np.concatenate([normal(1000) * 10.0**e for e in (-30, -3, 0, 20)]).astype(np.float32)
    values = np.append(values, [1 + 2**-8, 1 + 3 * 2**-8]).astype(np.float32)  # ties, to even
    tensor = torch.from_numpy(values).bfloat16()
    bits = from_numbers(values, "bfloat16")
    assert np.array_equal(bits, tensor.view(torch.uint16).numpy())
    assert np.array_equal(to_numbers(bits, "bfloat16"), tensor.float().numpy())


def test_measure_by_hand():
    error = measure(np.array([3.0, 4.0]), np.array([3.0, 3.5]))
    assert error.relative == pytest.approx(0.1)
    assert error.sqnr_db == pytest.approx(20)
    assert error.max_abs == 0.5
    assert measure(np.ones(3), np.ones(3)) == EXACT


# ---------------------------------------------------------------- shared values


def test_few_distinct_values_stay_as_they_are():
    values = np.array([0.1, -0.7, 0.1, 1e-20, 0.3], np.float32)
    for bits in (AUTO, 3):
        codes, book = share(values, bits, "float32")
        assert np.array_equal(book[codes], values)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("bits", [1, 4, 9, AUTO])
def test_at_most_so_many_values_and_zeros_stay_zero(dtype, bits):
    values = normal(5000, dtype="<f8" if dtype == "float64" else "<f4")
    values[::7] = 0
    values = to_numbers(from_numbers(values, dtype), dtype)
    codes, book = share(values, bits, dtype)
    numbers = to_numbers(book, dtype)
    assert book.size <= (256 if bits == AUTO else 2**bits)
    assert np.all(np.diff(numbers) > 0)
    assert not numbers[codes[values == 0]].any()
    nearest = np.abs(values[:, None] - numbers).min(1)
    assert np.array_equal(np.abs(values - numbers[codes]), nearest)


def test_auto_takes_the_fewest_values_within_its_error():
    values = normal(20_000)
    codes, book = share(values, AUTO, "float32")
    error = measure(values, book[codes]).relative
    assert 0.95 * AUTO_ERROR < error <= AUTO_ERROR
    assert 150 < book.size < 256
    few = normal(400)
    assert share(few, AUTO, "float32")[1].size == 129  # a code has 8 bits all the same


def test_auto_does_not_give_up_the_rest_for_an_outlier():
    values = normal(20_000)
    values[7] = 1000
    codes, book = share(values, AUTO, "float32")
    assert book.size > 150
    rest = np.arange(20_000) != 7
    assert measure(values[rest], book[codes][rest]).relative < 1.1 * AUTO_ERROR


def test_rounding_the_codebook_costs_next_to_nothing():
    values = normal(20_000)
    codes, book = share(values, 8, "float32")
    assert book.size == 256
    low = book.view(np.uint32) & np.uint32(0x7FFF)
    assert not low.any()  # 8 bits of mantissa are left
    offset = values * 1e-4 + 1  # one where 8 bits would not tell the centroids apart
    codes, book = share(offset, 8, "float32")
    assert measure(offset - 1, book[codes] - 1).relative < 0.01


def test_all_equal_one_element_none():
    codes, book = share(np.full(9, 0.3, np.float32), AUTO, "float32")
    assert book.tolist() == [np.float32(0.3)]
    assert not codes.any()
    assert share(np.zeros(4, np.float32), 1, "float32")[1].tolist() == [0]
    codes, book = share(np.zeros(0, np.float32), 8, "float16")
    assert (codes.size, book.size, book.dtype) == (0, 0, np.float16)


# ---------------------------------------------------------------- one tensor


def test_each_request_gives_its_representation():
    array = normal(64, 64)
    for density, bits, expected, stored in [
        (None, 4, Codebook, 4096),
        (0.25, None, Sparse, 1024),
        (0.25, 4, SparseCodebook, 1024),
    ]:
        tensor, outcome = compress_tensor(step(array, density, bits), array)
        assert type(tensor) is expected
        assert tensor.stored == stored
        assert outcome.error == measure(array, tensor.dense())
        assert outcome.reason == ""
    tensor, outcome = compress_tensor(step(array, reason="asked for"), array)
    assert type(tensor) is Dense
    assert np.array_equal(tensor.dense(), array)
    assert outcome.error == EXACT


def test_sharing_that_does_not_pay_is_not_done():
    array = normal(4, 4)
    tensor, outcome = compress_tensor(step(array, bits=8), array)
    assert type(tensor) is Dense
    assert "16 exact values take 64" in outcome.reason
    tensor, outcome = compress_tensor(step(array, 0.5, 8), array)
    assert type(tensor) is Sparse
    assert outcome.density == 0.5
    assert outcome.bits is None


def test_a_pruned_tensor_stays_pruned_and_a_few_zeros_stay_zero():
    array = normal(100, 100)
    array[RNG.random((100, 100)) < 0.8] = 0
    tensor, _ = compress_tensor(step(array, bits=AUTO), array)
    assert type(tensor) is SparseCodebook
    assert tensor.stored == np.count_nonzero(array)
    array = normal(100, 100)
    array[0] = 0
    tensor, _ = compress_tensor(step(array, bits=AUTO), array)
    assert type(tensor) is Codebook
    assert not tensor.dense()[0].any()


def test_pruning_below_the_zeros_that_are_there():
    array = np.zeros((40, 50), "<f4")
    array[:, 0] = normal(40)
    tensor, _ = compress_tensor(step(array, 0.5), array)
    assert tensor.stored == 40  # zeros need not be written
    assert np.array_equal(tensor.dense(), array)


def test_bfloat16_tensors_are_shared_in_their_own_dtype():
    array = from_numbers(normal(64, 64), "bfloat16")
    tensor, outcome = compress_tensor(step(array, bits=4, dtype="bfloat16"), array)
    assert (tensor.dtype, tensor.codebook.dtype) == ("bfloat16", np.dtype("<u2"))
    assert 0 < outcome.error.relative < 0.2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_values_that_come_back_are_shared_over_256_levels_too(dtype):
    levels = from_numbers(normal(1000), dtype)
    array = levels[np.random.default_rng(0).integers(0, 1000, 50_000)]
    tensor = keep_exactly(TensorInfo("w", array.shape, dtype), array)
    assert isinstance(tensor, Codebook)
    assert np.array_equal(tensor.dense(), array)


def test_values_that_come_back_because_there_are_no_others_stay_byte_planes():
    array = from_numbers(normal(1 << 20), "bfloat16")  # codes would save half a percent
    assert np.unique(array).size < 1 << 12
    assert isinstance(keep_exactly(TensorInfo("w", array.shape, "bfloat16"), array), Dense)


@pytest.mark.parametrize(("value", "says"), [(np.nan, "1 NaN and 0"), (-np.inf, "0 NaN and 1")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_not_finite_is_refused_by_name(value, says, dtype):
    array = normal(8, 8)
    array[2, 3] = value
    stored = from_numbers(array, dtype)
    with pytest.raises(InvalidArgument, match=f"tensor 'w' holds {says} infinite"):
        compress_tensor(step(array, bits=8, dtype=dtype), stored)


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((2, 2), "linear"), ((2, 2, 2), "conv"), ((1,) * 5, "conv"), ((1,) * 6, "other")],
)
def test_kind_follows_from_the_dimensions(shape, kind):
    assert kind_of(TensorInfo("w", shape, "float32")) == kind


def test_plan_says_why_a_tensor_is_kept():
    infos = [
        TensorInfo("conv.weight", (8, 3, 3, 3), "float32"),
        TensorInfo("conv.bias", (8,), "float32"),
        TensorInfo("table", (8, 8), "int64"),
        TensorInfo("eight.weight", (8, 8), "float8_e4m3fn"),
        TensorInfo("none.weight", (0, 8), "float32"),
        TensorInfo("fc.weight", (8, 8), "bfloat16"),
    ]
    steps = plan(infos, bits={"conv": 5})
    assert [s.bits for s in steps] == [5, None, None, None, None, None]
    reasons = [s.reason for s in steps]
    for reason, part in zip(
        reasons, ["", "1-D", "int64", "float8", "no elements", "no density"], strict=True
    ):
        assert part in reason
    assert not reasons[0]
    assert [s.bits for s in plan(infos) if not s.reason] == [AUTO, AUTO]


def test_a_weight_answers_to_its_layer_and_to_its_name():
    infos = [TensorInfo("a.weight", (8, 8), "float32"), TensorInfo("a.other", (8, 8), "float32")]
    assert [s.bits for s in plan(infos, bits={"a": 3})] == [3, None]
    assert [s.bits for s in plan(infos, bits={"a.*": 3})] == [3, 3]
    with pytest.raises(InvalidArgument, match=r"matches nothing; there are a \(linear\), a\.other"):
        plan(infos, bits={"b": 3})


def test_range_of_density_and_bits():
    infos = [TensorInfo("a", (8, 8), "float32")]
    for density in (0, 1.1, math.nan):
        with pytest.raises(InvalidArgument, match="density"):
            plan(infos, density=density)
    for bits in (0, 17, 2.5, "many"):
        with pytest.raises(InvalidArgument, match="bits"):
            plan(infos, bits=bits)
