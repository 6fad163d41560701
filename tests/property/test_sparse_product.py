"""Products from packed weights: what NumPy computes, for any shape, density and dtype."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espalier.kernels.sparse_product import (
    dense_reference,
    skipping_product,
    tile_product,
    vector_product,
)
from espalier.runtime.convolution import PackedConv
from espalier.runtime.layers import PACKED, SKIPPING, PackedLinear
from espalier.runtime.packed import PackedMatrix

DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def matrices(draw):
    """Sparse matrices: few values or many, empty rows, all zero, more columns than a block has."""
    rows = draw(st.integers(1, 40))
    columns = draw(st.sampled_from([1, 2, 31, 64, 300, 5000]))
    levels = draw(st.sampled_from([1, 2, 3, 32, 33, 256, 257, 0]))
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(DTYPES)
    if levels:
        values = torch.randn(levels, generator=random, dtype=dtype)
        dense = values[torch.randint(levels, (rows, columns), generator=random)]
    else:
        dense = torch.randn(rows, columns, generator=random, dtype=dtype)
    dense *= torch.rand(rows, columns, generator=random) < density
    dense[draw(st.integers(0, rows - 1))] = 0
    return dense


def parts(packed):
    return packed.words, packed.pointers, packed.table, packed.bits, packed.width


@settings(deadline=None, max_examples=60)
@given(matrices())
def test_packing_loses_nothing(dense):
    packed = PackedMatrix.of(dense)
    assert packed.nonzeros == int((dense != 0).sum())
    assert torch.equal(packed.dense(), dense)
    found = dense_reference(parts(packed), tuple(dense.shape))
    assert np.array_equal(found, dense.numpy())


def assert_near(found, dense, x, bias):
    """As near to ``dense @ x + bias`` as sums in any order are (Higham 2002, section 3.1)."""
    dense, x, bias = (np.asarray(part, np.float64) for part in (dense, x, bias))
    terms = dense.shape[1] + 2
    bound = terms * np.finfo(found.dtype).eps * (np.abs(dense) @ np.abs(x) + np.abs(bias))
    assert found.shape == bound.shape
    assert (np.abs(found - (dense @ x + bias)) <= bound).all()


@settings(deadline=None, max_examples=60)
@given(matrices(), st.integers(0, 2**32 - 1))
def test_the_kernels_agree_with_numpy(dense, seed):
    packed = PackedMatrix.of(dense)
    rows, columns = dense.shape
    random = np.random.default_rng(seed)
    real = packed.table.dtype
    x = random.standard_normal((columns, 8)).astype(real)
    x[random.random(columns) < 0.4] = 0
    one = np.ascontiguousarray(x[:, 0])
    bias = random.standard_normal(rows).astype(real)

    y = np.full(rows, np.nan, real)
    vector_product(parts(packed), bias, one, y, 0, rows)
    assert_near(y, dense, one, bias)

    turned = PackedMatrix.of(dense.t(), blocks=3)
    y = np.full(rows, np.nan, real)
    for block in range((turned.pointers.size - 1) // columns):
        skipping_product(parts(turned), bias, one, y, block)
    assert_near(y, dense, one, bias)

    y = np.full(rows * 8, np.nan, real)
    starts = np.arange(columns, dtype=np.int32) * 8
    middle = rows // 2
    for first, last in ((0, middle), (middle, rows)):
        tile_product(parts(packed), bias, starts, x.reshape(-1), y, (0, 8), 8, first, last)
    assert_near(y.reshape(rows, 8), dense, x, bias[:, None])


@settings(deadline=None, max_examples=60)
@given(matrices(), st.booleans(), st.sampled_from([0, 1, 2, 8, 9, 45, 130]), st.booleans())
def test_a_linear_layer_agrees_with_the_dense_one(dense, has_bias, batch, turned):
    layer = nn.Linear(dense.shape[1], dense.shape[0], has_bias, dtype=dense.dtype).eval()
    layer.weight.data = dense
    packed = PackedLinear(PackedMatrix.of(dense), layer)
    x = torch.relu(torch.randn(batch, dense.shape[1], dtype=dense.dtype))
    if turned:
        x = x.t().contiguous().t()
    bias = layer.bias.detach()[:, None] if has_bias else torch.zeros(len(dense), 1)
    packed.skip()
    for form in (PACKED, SKIPPING):
        packed.choice = {1: form}
        with torch.no_grad():
            y = packed(x)
        assert y.is_contiguous()
        assert_near(y.t().numpy(), dense, x.t(), bias)


@st.composite
def convolutions(draw):
    axes = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    kernel, stride, dilation = (draw(st.integers(1, n)) for n in (4, 3, 2))
    padding = draw(st.integers(0, 3))
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "replicate"]))
    if stride == 1 and mode == "zeros" and draw(st.booleans()):
        padding = "same"
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(
        4, 8, kernel, stride, padding, dilation, groups, draw(st.booleans()), padding_mode=mode
    ).eval()
    layer.weight.data *= torch.rand_like(layer.weight) < draw(st.sampled_from([0.0, 0.1, 0.5]))
    size = [draw(st.integers(7, 12)) for _ in range(axes)]
    return layer, torch.randn(draw(st.integers(0, 3)), 4, *size)


@settings(deadline=None, max_examples=80)
@given(convolutions(), st.booleans())
def test_a_convolution_agrees_with_the_dense_one(made, channels_last):
    layer, x = made
    packed = PackedConv(
        PackedMatrix.of(PackedConv.rows(layer.weight.detach(), layer.groups)), layer
    )
    assert torch.equal(packed.weight, layer.weight)
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(500, 700, generator=random)
    dense *= torch.rand(500, 700, generator=random) < 0.2
    packed = PackedMatrix.of(dense)
    x, bias = torch.randn(700, generator=random), torch.zeros(500)
    one = packed.times_vector(x, bias, 1)
    for _ in range(20):
        assert torch.equal(packed.times_vector(x, bias, threads), one)
