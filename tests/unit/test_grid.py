"""Rate-distortion rounding of one layer: by hand, and against a reference."""

from itertools import pairwise

import numpy as np
import pytest

from espalier.kernels.rounding import round_block, round_block_reference
from espalier.quantization.grid import Layer


def layer(rows: int = 12, columns: int = 100, seed: int = 0, *, moments: bool = True) -> Layer:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(400, columns)) @ rng.normal(size=(columns, columns)) / 10
    return Layer(
        rng.normal(0, 0.1, (rows, columns)),
        inputs.T @ inputs / 400 if moments else None,
        rng.uniform(0.5, 2, rows),
    )


def test_without_rate_each_weight_goes_to_its_nearest_value():
    weights = np.array([[0.24, -0.26, 0.7, -1.1]])
    symbols = np.empty((1, 4), np.int32)
    round_block(weights, np.ones((1, 4), bool), np.eye(4), np.ones(1), 0.5, np.zeros(7), symbols)
    assert symbols.tolist() == [[0, -1, 1, -2]]


def test_a_dear_symbol_is_left_for_a_cheap_one():
    bits = np.array([9.0, 9.0, 0.0, 9.0, 9.0])
    symbols = np.empty((1, 2), np.int32)
    weights, kept = np.array([[0.6, 2.0]]), np.ones((1, 2), bool)
    round_block(weights, kept, np.eye(2), np.full(1, 4.0), 1.0, bits, symbols)
    assert symbols.tolist() == [[0, 2]]  # 4 x 0.36 < 4 x 0.16 + 9, but 4 x 4 > 9


def test_an_error_is_made_up_for_by_the_next_column():
    factor = np.array([[1.0, -1.0], [0.0, 1.0]])  # the inputs move together
    symbols = np.empty((1, 2), np.int32)
    weights, kept = np.array([[0.4, 0.4]]), np.ones((1, 2), bool)
    round_block(weights, kept, factor, np.ones(1), 1.0, np.zeros(5), symbols)
    assert symbols.tolist() == [[0, 1]]


@pytest.mark.parametrize("seed", range(5))
def test_the_kernel_is_its_reference(seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (5, 7))
    factor = np.triu(rng.normal(size=(7, 7)) / 3)
    np.fill_diagonal(factor, rng.uniform(0.5, 2, 7))
    bits, scale, kept = rng.uniform(1, 9, 9), rng.uniform(0.1, 9, 5), rng.random((5, 7)) < 0.8
    outcomes = []
    for function in (round_block, round_block_reference):
        left, symbols = weights.copy(), np.empty((5, 7), np.int32)
        function(left, kept, factor, scale, 0.3, bits, symbols)
        outcomes.append((left, symbols))
    assert np.array_equal(outcomes[0][1], outcomes[1][1])
    np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=1e-12)


def test_distortion_and_bits_by_hand():
    found = Layer(np.array([[0.0, 1.1, 0.9, 0.0]]), None, np.array([2.0])).round(1.0, 1e-9)
    assert found.symbols.tolist() == [[0, 1, 1, 0]]
    assert found.distortion == pytest.approx(0.5 * 2 * 0.02)
    assert found.bits == pytest.approx(4 + 2 * 20)


@pytest.mark.parametrize("moments", [True, False])
def test_a_larger_lambda_costs_fewer_bits_and_more_distortion(moments):
    found = [layer(moments=moments).best(lam) for lam in (1e-6, 1e-5, 1e-4, 1e-3)]
    assert all(a.bits > b.bits for a, b in pairwise(found))
    assert all(a.distortion < b.distortion for a, b in pairwise(found))


def test_feedback_beats_rounding_each_weight_by_itself():
    with_feedback = layer()
    plain = Layer(with_feedback.weights, None, with_feedback.curvature)
    lam = 1e-5
    ours = with_feedback.best(lam)
    alone = plain.round(ours.step, lam)
    error = with_feedback.weights - alone.symbols * alone.step
    moments = with_feedback.moments
    distortion = 0.5 * with_feedback.curvature @ ((error @ moments) * error).sum(1)
    assert ours.distortion < 0.6 * distortion
    assert ours.bits < 1.01 * alone.bits


@pytest.mark.parametrize("weights", [np.zeros((3, 4)), np.full((2, 2), 0.5), np.ones((1, 1))])
def test_layers_with_nothing_to_choose(weights):
    found = Layer(weights, None, np.ones(len(weights))).best(1e-6)
    assert found.distortion <= 1e-4
    assert np.isfinite(found.bits)
    assert len(np.unique(found.symbols)) == 1


def test_a_column_without_input_costs_nothing():
    base = layer(columns=20)
    moments = base.moments.copy()
    moments[:, 3] = moments[3, :] = 0
    found = Layer(base.weights, moments, base.curvature).best(1e-4)
    assert np.isfinite(found.distortion)
    assert not found.symbols[:, 3].any()


@pytest.mark.parametrize("moments", [True, False])
def test_pruned_weights_stay_zero(moments):
    base = layer(moments=moments)
    kept = np.random.default_rng(1).random(base.weights.shape) < 0.3
    weights = np.where(kept, base.weights, 0)
    found = Layer(weights, base.moments, base.curvature, kept).best(1e-5)
    assert not found.symbols[~kept].any()
    assert found.symbols[kept].any()
