"""Entropy-constrained scalar quantization: the kernel, the iteration, and the option."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import espalier
from espalier.errors import InvalidArgument
from espalier.kernels.scalar import assign, assign_reference
from espalier.quantization.ecsq import CODEBOOK_BITS, entropy_constrained
from espalier.quantization.rates import LEVEL_BITS


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 40), st.sampled_from([0.0, 0.5])
)
def test_the_kernel_finds_the_least_cost(seed, k, n, price):
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.choice(np.arange(-20, 20) / 4, k, replace=False))
    values, importance = rng.normal(size=n), rng.random(n) * rng.integers(0, 2, n)
    prices = price * rng.random(k)
    codes = np.empty(n, np.int32)
    assign(values, importance, levels, prices, codes)

    def cost(chosen):
        return importance * (values - levels[chosen]) ** 2 + prices[chosen]

    best = cost(assign_reference(values, importance, levels, prices))
    np.testing.assert_allclose(cost(codes), best, atol=1e-12)


def test_by_hand():
    # Without a price for bits worth speaking of, every value is a level of its own.
    values = np.array([0.0, 1.0, 1.0, 4.0])
    found = entropy_constrained(values, np.ones(4), 1e-9)
    assert found.levels.tolist() == [0.0, 1.0, 4.0]
    assert found.codes.tolist() == [0, 1, 1, 2]
    assert found.distortion == 0
    assert found.bits == pytest.approx(2 + 1 + 1 + 2 + 3 * (LEVEL_BITS + CODEBOOK_BITS))
    # Where bits cost much, one level is left.
    assert entropy_constrained(values, np.ones(4), 1e3).levels.size == 1


def test_a_level_is_the_weighted_mean_of_its_weights():
    values = np.array([1.0, 2.0, 101.0, 102.0])
    found = entropy_constrained(values, np.array([3.0, 1.0, 1.0, 1.0]), 0.02)
    np.testing.assert_allclose(found.levels, [1.25, 101.5])
    assert found.distortion == pytest.approx(3 * 0.25**2 + 0.75**2 + 2 * 0.25)


def test_small_weights_become_exactly_zero():
    rng = np.random.default_rng(0)
    values = rng.laplace(size=5000)
    found = entropy_constrained(values, np.ones(5000), 0.3)
    quantized = found.levels[found.codes]
    assert np.mean(quantized == 0) > 0.4
    # The dead zone is wider than the other intervals.
    zero = np.abs(values[quantized == 0]).max()
    first = found.levels[found.levels > 0].min()
    assert zero > first / 2


@pytest.mark.parametrize("lam", [1e-3, 1e-2, 1e-1])
def test_it_comes_to_what_theory_says_of_a_laplacian(lam):
    """At a high rate the entropy lies 0.25 bits above the rate-distortion bound at that D."""
    rng = np.random.default_rng(1)
    values = rng.laplace(size=40_000)
    found = entropy_constrained(values, np.ones(values.size), lam)
    counts = np.bincount(found.codes)
    bits = -(counts * np.log2(counts / values.size)).sum() / values.size
    shannon = np.log2(2 * np.e) - 0.5 * np.log2(2 * np.pi * np.e * found.distortion / values.size)
    assert shannon < bits < shannon + 0.27


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 2, 8, 8, generator=generator), torch.arange(32) % 5)]


@pytest.mark.parametrize("looked", [False, True])
def test_a_model_on_free_levels_is_saved_and_loaded(tmp_path, looked):
    model = network()
    espalier.prune(model, {"3": 0.5})
    mask = model[3].weight != 0
    curvature = espalier.collect_curvature(model, batches()) if looked else None
    lam = 1e-5 if looked else 0.02
    report = espalier.quantize_rd(model, lam, quantizer="ecsq", curvature=curvature)
    assert [layer.step for layer in report.layers] == [None, None]
    assert not model[3].weight[~mask].any()
    for layer, module in zip(report.layers, (model[0], model[3]), strict=True):
        assert module.weight.unique().numel() <= layer.levels < 200
        assert layer.distortion > 0
    espalier.save(model, tmp_path / "m.esp")
    loaded = espalier.load(tmp_path / "m.esp", into=network())
    x = batches()[0][0]
    assert torch.equal(loaded(x), model(x))


def test_more_importance_means_less_error():
    model, ((x, y),) = network(), batches()
    x = x * torch.tensor([3.0, 0.1]).view(1, 2, 1, 1)  # errors on the second channel cost little
    curvature = espalier.collect_curvature(model, [(x, y)])
    wanted = model(x).log_softmax(1)

    def divergence(other: nn.Module) -> float:
        return float((wanted.exp() * (wanted - other(x).log_softmax(1))).sum(1).mean())

    seeing = copy.deepcopy(model)
    how = {"quantizer": "ecsq", "correct_bias": False}
    seen = espalier.quantize_rd(seeing, {"0": 3e-6}, curvature=curvature, **how)
    lam, bits = 1.0, 0.0
    while bits < seen.layers[0].bits:  # at least as many bits, spent without data
        blind, lam = copy.deepcopy(model), lam / 1.1
        bits = espalier.quantize_rd(blind, {"0": lam}, quantizer="ecsq").layers[0].bits
    assert divergence(seeing) < 0.5 * divergence(blind)


def test_no_such_quantizer():
    with pytest.raises(InvalidArgument, match="quantizer must be uniform or ecsq, not 'lattice'"):
        espalier.quantize_rd(network(), 0.01, quantizer="lattice")
