"""Factored layers compute what the layer with the product of the factors computes."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import espalier
from espalier.structure.factorization import FACTORIZATIONS, blocks_of

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, dilation = each(1, 4), each(1, 2)
    stride = each(1, 3)
    padding = each(0, 2)
    if draw(st.booleans()) and set(stride) == {1}:
        padding = draw(st.sampled_from(["same", "valid"]))
    return CONVOLUTIONS[dims](
        groups * draw(st.integers(1, 5)),
        groups * draw(st.integers(1, 6)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )


@settings(max_examples=150, deadline=None)
@given(
    layer=convolutions(),
    name=st.sampled_from(FACTORIZATIONS.names()),
    share=st.floats(0.05, 0.6),
    seed=st.integers(0, 9),
)
def test_a_convolution_is_its_factors(layer, name, share, seed):
    torch.manual_seed(seed)
    nn.init.normal_(layer.weight)
    method = FACTORIZATIONS.make(name)
    if method.refuses(layer):
        return
    before = copy.deepcopy(layer)
    model = nn.Sequential(layer).eval()
    report = espalier.factorize(model, share, method=name)
    if not report.layers:
        assert "weights, the layer" in report.skipped[0].reason
        return
    (done,) = report.layers
    blocks = blocks_of(before)
    kept = [method.product(method.factors(block, done.ranks)) for block in blocks]
    before.weight.data = torch.cat(kept)
    x = torch.randn(2, before.in_channels, *[9] * len(before.kernel_size))
    wanted, found = before(x), model(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    parts = [part.weight.numel() for part in model[0]]
    assert done.parameters == (before.weight.numel(), sum(parts))


@settings(max_examples=60, deadline=None)
@given(
    layer=convolutions(),
    name=st.sampled_from(["svd", "spatial_svd", "tucker2"]),
    seed=st.integers(0, 9),
)
def test_nothing_is_lost_at_full_rank(layer, name, seed):
    torch.manual_seed(seed)
    method = FACTORIZATIONS.make(name)
    if method.refuses(layer):
        return
    for block in blocks_of(layer):
        factors = method.factors(block, method.limits(block.shape))
        torch.testing.assert_close(method.product(factors), block, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(2, 6), min_size=3, max_size=5),
    name=st.sampled_from(["svd", "tucker2", "cp"]),
    seed=st.integers(0, 9),
)
def test_a_kernel_of_rank_one_is_its_factors(shape, name, seed):
    generator = torch.Generator().manual_seed(seed)
    block = torch.ones(())
    for extent in shape:
        block = torch.tensordot(block, torch.randn(extent, generator=generator), 0)
    layer = CONVOLUTIONS[len(shape) - 2](shape[1], shape[0], shape[2:], bias=False)
    layer.weight.data = block
    model = nn.Sequential(layer)
    for energy in (1.0, 0.5):
        (done,) = espalier.factorize(copy.deepcopy(model), method=name, energy=energy).layers
        assert set(done.ranks) == {1}
        assert done.relative_error < 1e-5
