"""Two networks timed in turn: rounds, ratios, verdicts, and runtimes that cannot."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import espalier
from espalier.analysis.runtime import RUNTIMES, Runtime
from espalier.analysis.speed import SpeedRow
from espalier.errors import InvalidArgument, UnknownMethod
from espalier.timing import Clock, Spread, compare

IMAGE = torch.zeros(2, 3, 8, 8)


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
    )


class Script(Clock):
    """A clock that tells what it is given."""

    def __init__(self, takes: dict[str, float]) -> None:
        self.now, self.takes, self.calls = 0.0, takes, []

    def mark(self) -> float:
        return self.now

    def between(self, start: float, end: float) -> float:
        return end - start

    def call(self, name: str):
        def run() -> None:
            self.calls.append(name)
            self.now += self.takes[name]

        return run


def test_rounds_run_in_turn_and_the_first_changes():
    clock = Script({"a": 3.0, "b": 2.0})
    found = compare(clock.call("a"), clock.call("b"), clock, repeats=4, warmup=1)
    assert "".join(clock.calls) == "ab" + "ba" + "ab" + "ba" + "ab"
    assert found.first == Spread(3.0, 3.0, 3.0)
    assert found.second == Spread(2.0, 2.0, 2.0)
    assert found.ratio == Spread(1.5, 1.5, 1.5)


def test_a_long_comparison_stops_after_three_rounds():
    clock = Script({"a": 1.0, "b": 1.0})
    compare(clock.call("a"), clock.call("b"), clock, repeats=50, warmup=0, seconds=0)
    assert len(clock.calls) == 6


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Spread(2, 1.5, 3), "faster"),
        (Spread(0.5, 0.4, 0.9), "slower"),
        (Spread(1.2, 0.9, 1.4), "no difference"),
        (None, "not measured"),
    ],
)
def test_a_verdict_needs_quartiles_that_agree(ratio, verdict):
    assert SpeedRow("eager", 1, ratio=ratio).verdict == verdict


def test_the_networks_stay_as_they_were():
    model, x = network(), torch.zeros(1, 3, 8, 8)
    model(x)
    espalier.prune(model, density=0.5)
    model.train()
    before = copy.deepcopy(model.state_dict())
    espalier.compare_speed(model, model, x, runtimes=["eager"], batches=[1], repeats=1)
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.slow
def test_every_runtime_measures_every_batch_size():
    pytest.importorskip("onnxruntime")
    model, small, x = network(64), network(8), torch.zeros(1, 3, 8, 8)
    model(x), small(x)
    found = espalier.compare_speed(model, small, x, batches=[1, 3], repeats=3, warmup=1)
    assert [(r.runtime, r.batch) for r in found.rows] == [
        (name, n) for name in ("eager", "compile", "onnxruntime") for n in (1, 3)
    ]
    assert [row.note for row in found.rows] == [""] * 6
    assert all(row.ratio.low > 0 for row in found.rows)
    assert found.to_json()["rows"][0]["ratio"]["median"] == found.rows[0].ratio.median


@pytest.mark.parametrize("name", RUNTIMES.names())
def test_a_runtime_computes_what_the_model_does(name):
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model, x = network(), torch.randn(2, 3, 8, 8)
    model.eval()(x)
    with torch.no_grad():
        runtime = RUNTIMES.make(name)
        runtime.reset()
        found = runtime.prepare(model, [x])()
        found = torch.as_tensor(found[0]) if isinstance(found, list) else found
        torch.testing.assert_close(found, model(x), atol=1e-5, rtol=1e-4)


@dataclass(frozen=True)
class Broken(Runtime):
    name = "broken"

    def prepare(self, model, inputs):
        raise InvalidArgument("it knows no such operator")


def test_a_runtime_that_cannot_says_so_in_its_row():
    model, x = network(), torch.zeros(1, 3, 8, 8)
    model(x)
    found = espalier.compare_speed(
        model, model, x, runtimes=[Broken(), "eager"], batches=[1], repeats=1
    )
    assert [row.note for row in found.rows] == ["it knows no such operator", ""]
    assert found.rows[0].verdict == "not measured"


def test_bad_input():
    model, x = network(), torch.zeros(1, 3, 8, 8)
    model(x)
    with pytest.raises(InvalidArgument, match="repeats 0 must be at least 1"):
        espalier.compare_speed(model, model, x, repeats=0)
    with pytest.raises(InvalidArgument, match=r"batches \[0\] must be numbers from 1 on"):
        espalier.compare_speed(model, model, x, batches=[0])
    with pytest.raises(InvalidArgument, match=r"fails on inputs of shape \(1, 4, 8, 8\)"):
        espalier.compare_speed(model, model, torch.zeros(1, 4, 8, 8))
    with pytest.raises(InvalidArgument, match="no sample"):
        espalier.compare_speed(model, model, x[:0])
    with pytest.raises(UnknownMethod, match="no runtime is called 'tpu'"):
        espalier.compare_speed(model, model, x, runtimes=["tpu"])
