"""Blocks of any tensor, and the scales that calibration finds for them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.fixed_point import from_groups, to_groups
from espalier.grids.calibration import CALIBRATIONS, Range
from espalier.grids.methods.fixed import Fixed
from espalier.grids.tensor import quantized_array


@st.composite
def shapes_and_blocks(draw):
    block = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    return tuple(b * draw(st.integers(1, 3)) for b in block), block


@given(shapes_and_blocks())
def test_groups_are_the_blocks_and_go_back(found):
    shape, block = found
    array = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    groups = to_groups(array, block)
    assert np.array_equal(from_groups(groups, shape, block), array)
    for i, group in enumerate(groups):
        grid = tuple(d // b for d, b in zip(shape, block, strict=True))
        at = np.unravel_index(i, grid) if grid else ()
        part = tuple(slice(p * b, (p + 1) * b) for p, b in zip(at, block, strict=True))
        assert np.array_equal(array[part].reshape(-1), group)
    tensor = torch.from_numpy(array)
    assert np.array_equal(to_groups(tensor, block).numpy(), groups)
    assert torch.equal(from_groups(to_groups(tensor, block), shape, block), tensor)


def rows(seed, n):
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(), 10.0 ** rng.integers(-4, 4), (3, n))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(2, 8), st.booleans(), st.booleans())
def test_scales_are_sound_and_least_squares_the_best(seed, n, bits, symmetric, power_of_two):
    values = rows(seed, n)
    kept = np.ones_like(values, bool)
    half = 1 << (bits - 1)
    ends = (1 - half, half - 1) if symmetric else (-half, half - 1)
    errors = {}
    for calibration in CALIBRATIONS:
        wanted = Range(*ends, symmetric, power_of_two, calibration)
        scales, zeros = wanted.fit(values, kept)
        assert (scales > 0).all()
        assert np.isfinite(scales).all()
        assert ((zeros >= ends[0]) & (zeros <= ends[1]) & (zeros == np.rint(zeros))).all()
        if symmetric:
            assert not zeros.any()
        if power_of_two:
            assert (np.frexp(scales)[0] == 0.5).all()
        numbers = np.clip(np.rint(values / scales) + zeros, *ends)
        errors[calibration] = np.square((numbers - zeros) * scales - values).sum(-1)
        if calibration == "minmax":  # what is covered is off by half a step, and a shifted zero
            off = np.abs((numbers - zeros) * scales - values)
            assert (off <= scales * (0.501 if symmetric else 1.001)).all()
    assert (errors["mse"] <= errors["minmax"] * (1 + 1e-9)).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 99), st.sampled_from(["float16", "float32", "float64"]), st.booleans())
def test_each_weight_has_the_nearest_number(seed, dtype, symmetric):
    weight = rows(seed, 20).astype(dtype)
    if dtype == "float16":
        weight = np.clip(weight, -1000, 1000)
    wide = weight.astype("float64" if dtype == "float64" else "float32")
    found = quantized_array(Fixed(4, symmetric=symmetric), (1, 20), wide, dtype)
    first, levels = found.first, found.levels
    for row, scale, zero, original in zip(
        found.integers(), found.scales, found.zeros, wide, strict=True
    ):
        values = (np.arange(first, first + levels) - zero) * float(scale)
        nearest = np.abs(values[None] - original[:, None].astype(float)).min(1)
        own = np.abs((row - zero) * float(scale) - original.astype(float))
        assert (own <= nearest + 1e-5 * float(scale)).all()
