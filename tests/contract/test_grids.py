"""What every method promises that puts weights on a grid; a new one is tested at once."""

import dataclasses

import numpy as np
import pytest
import torch

from espalier.fixed_point import to_groups
from espalier.grids import GRIDS
from espalier.grids.grid import grid_from_json
from espalier.grids.tensor import quantized_array
from espalier.parametrization.quantized_weight import QuantizedWeight

SHAPE = (6, 4, 3)


@pytest.fixture(params=GRIDS.names())
def grid(request):
    return GRIDS.make(request.param)


def block_of(grid):
    return SHAPE if grid.one_block else (1, 4, 3)


def weights(seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, SHAPE).astype(np.float32)


def parametrized(grid, weight, mask=None):
    block = block_of(grid)
    kept = np.ones(SHAPE, bool) if mask is None else mask
    found = grid.fit(to_groups(weight.astype(float), block), to_groups(kept, block))
    scales, zeros = (torch.from_numpy(part).float() for part in found)
    own = None if mask is None else torch.from_numpy(mask)
    return QuantizedWeight(grid, block, scales, zeros, own)


def test_methods_are_frozen_dataclasses_with_a_docstring():
    for cls in GRIDS:
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        assert "weight =" in cls.__doc__


def test_it_is_what_its_text_says(grid):
    assert grid_from_json(grid.to_json()) == grid


def test_numbers_are_among_those_it_has(grid):
    first, stride, levels = grid.numbers
    weight = torch.from_numpy(weights())
    found = parametrized(grid, weights()).on_grid(weight)
    codes = (found.numbers - first) / stride
    assert torch.equal(codes, codes.round())
    assert int(codes.min()) >= 0
    assert int(codes.max()) < levels


@pytest.mark.parametrize("sparse", [False, True])
def test_arrays_and_tensors_are_quantized_alike(grid, sparse):
    weight = weights()
    mask = weights(1) > 0 if sparse else None
    quantized = quantized_array(grid, block_of(grid), weight, "float32", mask)
    with torch.no_grad():
        by_torch = parametrized(grid, weight, mask)(torch.from_numpy(weight))
    np.testing.assert_allclose(by_torch.numpy(), quantized.dense(), rtol=1e-6)
    if sparse:
        assert not quantized.dense()[~mask].any()


def test_what_is_computed_with_gradients_is_the_same_to_the_bit(grid):
    quantized, latent = parametrized(grid, weights()), torch.from_numpy(weights())
    with torch.no_grad():
        plain = quantized(latent)
    latent.requires_grad_()
    through = quantized(latent)
    assert torch.equal(through, plain)
    through.sum().backward()
    assert torch.isfinite(latent.grad).all()
    assert latent.grad.abs().sum() > 0


def test_weights_in_other_places_in_memory(grid):
    weight = torch.from_numpy(weights()).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    found = parametrized(grid, weights())(weight)
    assert found.stride() == weight.stride()
    assert torch.equal(found, parametrized(grid, weights())(weight.contiguous()))


def test_all_zero_and_all_pruned(grid):
    for weight, mask in ((np.zeros(SHAPE, "f4"), None), (weights(), np.zeros(SHAPE, bool))):
        dense = quantized_array(grid, block_of(grid), weight, "float32", mask).dense()
        assert np.isfinite(dense).all()
        assert mask is None or not dense.any()
