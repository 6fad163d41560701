"""Products from packed weights: what NumPy computes, for any shape, density and dtype."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espalier.kernels.sparse_product import dense_reference, tile_product, vector_product
from espalier.runtime.convolution import PackedConv
from espalier.runtime.layers import PackedLinear
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


@settings(deadline=None, max_examples=60)
@given(matrices())
def test_packing_loses_nothing(dense):
    packed = PackedMatrix.of(dense)
    assert packed.nonzeros == int((dense != 0).sum())
    assert torch.equal(packed.dense(), dense)
    found = dense_reference(
        packed.words, packed.pointers, packed.table, packed.bits, tuple(dense.shape)
    )
    assert np.array_equal(found, dense.numpy())


@settings(deadline=None, max_examples=60)
@given(matrices(), st.integers(0, 2**32 - 1))
def test_the_kernels_agree_with_numpy(dense, seed):
    packed = PackedMatrix.of(dense)
    rows, columns = dense.shape
    random = np.random.default_rng(seed)
    real = packed.table.dtype
    x = random.standard_normal((columns, 8)).astype(real)
    bias = random.standard_normal(rows).astype(real)
    want = dense.numpy().astype(float) @ x.astype(float) + bias[:, None]
    near = {"rtol": 0, "atol": 1e-12 if real == np.float64 else 1e-3}

    parts = packed.words, packed.pointers, packed.table, packed.bits, bias
    y = np.full(rows, np.nan, real)
    vector_product(*parts, np.ascontiguousarray(x[:, 0]), y, 0, rows)
    np.testing.assert_allclose(y, want[:, 0], **near)

    y = np.full(rows * 8, np.nan, real)
    starts = np.arange(columns, dtype=np.int32) * 8
    middle = rows // 2
    for first, last in ((0, middle), (middle, rows)):
        tile_product(*parts, starts, x.reshape(-1), y, (0, 8), 8, first, last)
    np.testing.assert_allclose(y.reshape(rows, 8), want, **near)


@settings(deadline=None, max_examples=60)
@given(matrices(), st.booleans(), st.sampled_from([0, 1, 2, 8, 9, 45, 130]), st.booleans())
def test_a_linear_layer_agrees_with_the_dense_one(dense, has_bias, batch, turned):
    layer = nn.Linear(dense.shape[1], dense.shape[0], has_bias, dtype=dense.dtype).eval()
    layer.weight.data = dense
    packed = PackedLinear(PackedMatrix.of(dense), layer)
    x = torch.randn(batch, dense.shape[1], dtype=dense.dtype)
    if turned:
        x = x.t().contiguous().t()
    near = {"rtol": 0, "atol": 1e-12 if dense.dtype == torch.float64 else 1e-3}
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), **near)
        assert packed(x).is_contiguous()


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
    packed = PackedConv(PackedMatrix.of(PackedConv.rows(layer)), layer)
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
