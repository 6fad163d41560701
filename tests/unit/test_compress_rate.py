"""Rate and distortion on a bare checkpoint: grids from the weights alone."""

import numpy as np
import pytest

from espalier.compress import compress_tensor, plan
from espalier.compress.rate import quantize, quantize_within
from espalier.errors import InvalidArgument
from espalier.interop import TensorInfo
from espalier.quantization.rates import LEVEL_BITS
from espalier.state import SparseCodebook


def normal(n: int = 20_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, n).astype(np.float32)


def bits(codes: np.ndarray) -> float:
    counts = np.bincount(codes)
    counts = counts[counts > 0]
    entropy = -(counts * np.log2(counts / counts.sum())).sum()
    return float(entropy + LEVEL_BITS * counts.size)


def cost(values: np.ndarray, now: np.ndarray, codes: np.ndarray, lam: float) -> float:
    squares = np.square(values.astype(np.float64) - now).sum() / np.mean(np.square(values))
    return float(squares + lam * bits(codes))


def test_values_are_whole_multiples_of_one_step():
    codes, book = quantize(normal(), 0.01, "float32")
    step = np.diff(np.sort(book)).min()
    np.testing.assert_allclose(book / step, np.rint(book / step), atol=1e-3)
    assert codes.dtype == np.uint8
    assert 0.0 in book


@pytest.mark.parametrize("lam", [0.003, 0.03, 0.3])
def test_no_plain_grid_is_better(lam):
    values = normal()
    codes, book = quantize(values, lam, "float32")
    ours = cost(values, book[codes], codes, lam)
    for step in 0.1 * np.geomspace(0.1, 8, 15):
        symbols = np.rint(values / step).astype(int)
        assert ours <= cost(values, symbols * step, symbols - symbols.min(), lam)


@pytest.mark.parametrize("limit", [0.01, 0.1, 0.5])
def test_the_limit_is_kept_and_used(limit):
    values = normal()
    codes, book, lam = quantize_within(values, limit, "float32")
    relative = np.linalg.norm(values - book[codes]) / np.linalg.norm(values)
    assert 0.9 * limit < relative <= limit
    assert lam > 0


def test_a_limit_finer_than_the_dtype_is_refused():
    with pytest.raises(InvalidArgument, match="cannot be reached in bfloat16"):
        quantize_within(normal(1000), 1e-7, "bfloat16")


@pytest.mark.parametrize("values", [np.zeros(300), np.full(300, 0.25), np.arange(2.0)])
def test_nothing_to_choose(values):
    values = values.astype(np.float32)
    codes, book, _ = quantize_within(values, 0.1, "float32")
    np.testing.assert_allclose(book[codes], values, rtol=0.1)


def info(shape: tuple[int, ...], name: str = "fc.weight") -> TensorInfo:
    return TensorInfo(name, shape, "float32")


def test_pruned_weights_stay_zero_and_keep_their_places():
    array = normal(10_000).reshape(100, 100)
    (step,) = plan([info((100, 100))], density=0.2, lam=0.01)
    tensor, outcome = compress_tensor(step, array)
    assert isinstance(tensor, SparseCodebook)
    assert tensor.stored == 2000
    kept = np.zeros(10_000, bool)
    kept[tensor.positions] = True
    assert not tensor.dense()[~kept.reshape(100, 100)].any()
    assert outcome.lam == 0.01
    assert outcome.density == 0.2


def test_lambda_by_name_and_the_rest_exactly():
    infos = [info((100, 100), "a.weight"), info((100, 100), "b.weight"), info((100,), "b.bias")]
    steps = plan(infos, lam={"*": 0.01, "b*": None})
    assert [s.lam for s in steps] == [0.01, None, None]
    assert steps[1].reason == "no density and no lambda are set for it"


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), True])
def test_lambda_and_limit_out_of_range(wrong):
    with pytest.raises(InvalidArgument, match="lambda must be a finite number above 0"):
        plan([info((9, 9))], lam=wrong)
    with pytest.raises(InvalidArgument, match="must lie between 0 and 1"):
        plan([info((9, 9))], limit=wrong)
    with pytest.raises(InvalidArgument, match="exclude each other"):
        plan([info((9, 9))], bits=4, lam=0.1)


def test_what_a_network_has_takes_the_place_of_the_checkpoints():
    array = normal(10_000).reshape(100, 100)
    (step,) = plan([info((100, 100))])
    (other,) = plan([info((50, 200))])
    prepared, _ = compress_tensor(*[plan([info((100, 100))], lam=0.1)[0], array])
    tensor, outcome = compress_tensor(step, array, prepared)
    assert tensor is prepared
    assert 0 < outcome.error.relative < 0.5
    with pytest.raises(InvalidArgument, match=r"'fc\.weight' is float32 \(50, 200\) in the check"):
        compress_tensor(other, array.reshape(50, 200), prepared)
