"""Rate-distortion rounding of one layer: by hand, and against a reference."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.kernels.rounding import descend, descend_reference, round_block, round_block_reference
from espalier.quantization.grid import SEARCH_ELEMENTS, Layer
from espalier.quantization.rates import classes_of, code_lengths, total_bits


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
    assert found.step == pytest.approx(1.0)  # (1.1 + 0.9) / 2
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
    assert ours.cost(lam) < 0.9 * (distortion + lam * alone.bits)


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


@pytest.mark.parametrize("seed", range(4))
def test_descent_is_its_reference(seed):
    rng = np.random.default_rng(seed)
    rows, columns, step = 4, 6, 0.4
    half, other = rng.normal(size=(20, columns)), rng.normal(size=(20, rows))
    moments, outputs = half.T @ half / 20, other.T @ other / 20
    if seed % 2:
        outputs = np.diag(outputs)[:, None].copy()
    kept = rng.random((rows, columns)) < 0.8
    weights = np.where(kept, rng.normal(size=(rows, columns)), 0)
    start = np.rint(weights / step).astype(np.int32)
    error = (start * step - weights) @ moments
    gradient = outputs * error if seed % 2 else outputs @ error
    contexts = rng.integers(0, 2, (rows, columns)).astype(np.uint8)
    bits = rng.uniform(1, 9, (2, 2 * (np.abs(start).max() + 1) + 1))
    outcomes = []
    for function in (descend, descend_reference):
        symbols, slope = start.copy(), gradient.copy()
        changed = function(symbols, kept, slope, moments, outputs, step, 0.01, bits, contexts)
        outcomes.append((changed, symbols, slope))
    assert outcomes[0][0] == outcomes[1][0] > 0
    assert np.array_equal(outcomes[0][1], outcomes[1][1])
    np.testing.assert_allclose(outcomes[0][2], outcomes[1][2], rtol=1e-9, atol=1e-12)
    error = (outcomes[0][1] * step - weights) @ moments
    expected = outputs * error if seed % 2 else outputs @ error
    np.testing.assert_allclose(outcomes[0][2], expected, rtol=1e-9, atol=1e-12)


def test_an_error_is_made_up_for_by_another_output():
    outputs = np.array([[1.0, 0.9], [0.9, 1.0]])
    found = Layer(np.full((2, 1), 0.45), np.eye(1), np.ones(2), None, outputs).round(1.0, 1e-9)
    assert sorted(found.symbols.reshape(-1).tolist()) == [0, 1]
    assert found.step == pytest.approx(0.45 * 1.9)  # as one output has both errors to answer for
    error = np.array([0.45, 0.45 - 0.45 * 1.9])
    assert found.distortion == pytest.approx(0.5 * error @ outputs @ error)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 12),
    seed=st.integers(0, 1000),
    moments=st.booleans(),
    step=st.floats(0.01, 2),
    lam=st.floats(1e-8, 1),
)
@settings(max_examples=60, deadline=None)
def test_never_worse_than_plain_rounding(rows, columns, seed, moments, step, lam):
    base = layer(rows, columns, seed, moments=moments)
    found = base.round(step, lam)
    symbols = np.rint(base.weights / step).astype(np.int32)
    error = base.weights - symbols * step
    spread = error if base.moments is None else error @ base.moments
    distortion = 0.5 * base.curvature @ (spread * error).sum(1)
    plain = distortion + lam * total_bits(symbols, base._classes(symbols))
    assert found.cost(lam) <= plain * (1 + 1e-9)


def test_neighbours_tell_large_weights_from_small_ones():
    rng = np.random.default_rng(0)
    wide = np.repeat([1, 6], 40)[:, None]  # rows of two sizes
    symbols = np.rint(rng.normal(0, wide, (80, 90))).astype(np.int32)
    classes = classes_of(symbols, 9)
    assert classes.max() <= 12
    assert classes[:40].max() < classes[40:].min()
    counts = np.unique(symbols, return_counts=True)[1]
    order_0 = -(counts * np.log2(counts / counts.sum())).sum() + 20 * counts.size
    assert total_bits(symbols, classes) < 0.95 * order_0
    lengths = code_lengths(symbols, classes, 30)
    assert lengths.shape == (classes.max() + 1, 61)
    small, large = np.unique(classes)[[0, -1]]
    assert lengths[small, 30] < lengths[large, 30]  # zero is cheap among small ones
    assert (lengths[:, 60] > 20).all()  # a level that is not there


@pytest.mark.parametrize("shape", [(1, 8000), (8000, 1), (10, 810), (90, 90)])
def test_a_class_does_not_tell_the_symbol_itself(shape):
    symbols = np.random.default_rng(0).geometric(0.4, shape).astype(np.int32) - 1
    classes = classes_of(symbols, 9 if shape[1] % 9 == 0 else 1)
    counts = np.unique(symbols, return_counts=True)[1]
    order_0 = -(counts * np.log2(counts / counts.sum())).sum() + 20 * counts.size
    assert total_bits(symbols, classes) > 0.98 * order_0


def test_a_large_layer_chooses_its_step_on_some_rows():
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, (3 * SEARCH_ELEMENTS // 512, 512))
    whole = Layer(weights, None, np.full(len(weights), 2 / 0.01))
    assert len(whole._part().weights) == len(weights) // 3
    found = whole.best(0.02)
    neighbours = [whole.round(found.step * factor, 0.02).cost(0.02) for factor in (0.8, 1.25)]
    assert found.cost(0.02) < min(neighbours)
