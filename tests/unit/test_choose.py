"""From a sweep to a proposal: the knapsack, the search, and what is measured."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.analysis.axis import apply_setting
from espalier.analysis.choose import Proposal, choose
from espalier.analysis.layer_options import Option, Table
from espalier.analysis.path_search import Search, _knapsack, best_metric, smallest_file
from espalier.errors import InvalidArgument
from espalier.recipe.schema import parse_recipe
from espalier.samples import Samples

GRID = {"density": (0.2, 0.5), "bits": (2, 4)}


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_is_the_best_of_all_combinations(seed):
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, 9, 4) for _ in range(3)]
    for row in costs:
        row[rng.integers(4)] = 0
    values = [rng.random(4) for _ in range(3)]
    for room in (0, 3, 10, 30):
        path = _knapsack(costs, values, room)
        assert sum(c[i] for c, i in zip(costs, path, strict=True)) <= room
        best = min(
            sum(v[i] for v, i in zip(values, p, strict=True))
            for p in itertools.product(range(4), repeat=3)
            if sum(c[i] for c, i in zip(costs, p, strict=True)) <= room
        )
        assert sum(v[i] for v, i in zip(values, path, strict=True)) == pytest.approx(best)


def interacting(seed, layers=4, options=7):
    """A table, and real losses that its own losses do not add up to."""
    rng = np.random.default_rng(seed)
    rows, hidden = [], []
    for _ in range(layers):
        strength = np.sort(rng.random(options - 1))
        sizes = np.round(1000 * rng.uniform(1, 40) * (1.02 - strength)).astype(int)
        losses = np.round(rng.uniform(0.2, 2) * strength**3, 2)
        rows.append(
            (
                Option({}, int(sizes.max() * 4), 0.0),
                *(
                    Option({"bits": i + 1}, int(s), float(x))
                    for i, (s, x) in enumerate(zip(sizes, losses, strict=True))
                ),
            )
        )
        hidden.append(np.concatenate([[0.0], losses * rng.uniform(0.5, 2.0, options - 1)]))
    table = Table(tuple(f"layer{i}" for i in range(layers)), tuple(rows), 100)

    def oracle(paths):
        found = []
        for path in paths:
            own = np.array([row[i] for row, i in zip(hidden, path, strict=True)])
            found.append(round(float(own.sum() + 2 * own.max() * own.sum()), 2))
        return found

    return table, oracle


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batch", [1, 2])
def test_the_search_comes_within_five_percent_of_the_best_file(seed, batch):
    table, oracle = interacting(seed)
    found = smallest_file(Search(table, oracle, batch), 0.3, evaluations=120)
    paths = list(itertools.product(range(7), repeat=4))
    losses = oracle(paths)
    best = min(table.size_bytes(p) for p, x in zip(paths, losses, strict=True) if x <= 0.3)
    assert oracle([found])[0] <= 0.3
    assert table.size_bytes(found) <= 1.05 * best


@pytest.mark.parametrize("seed", range(4))
def test_the_best_network_in_so_many_bytes(seed):
    table, oracle = interacting(seed)
    room = table.size_bytes((3, 3, 3, 3))
    found = best_metric(Search(table, oracle), room, evaluations=120)
    assert table.size_bytes(found) <= room
    paths = [p for p in itertools.product(range(7), repeat=4) if table.size_bytes(p) <= room]
    losses = sorted(oracle(paths))
    assert oracle([found])[0] <= losses[len(losses) // 50]  # among the best 2 %
    assert best_metric(Search(table, oracle), 100, evaluations=9) is None


def test_evaluations_are_not_more_than_asked_for():
    table, oracle = interacting(0)
    asked = []

    def counting(paths):
        asked.extend(paths)
        return oracle(paths)

    smallest_file(Search(table, counting, batch=4), 0.3, evaluations=10)
    assert len(asked) <= 10


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x = torch.randn(800, 16)
    y = x[:, :4].argmax(1)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    espalier.train(model, Samples(x, y), epochs=15, batch_size=32, lr=5e-3)

    def evaluate(changed):
        with torch.no_grad():
            return 100 * float((changed(x).argmax(1) == y).float().mean())

    sweep = espalier.sensitivity(model, evaluate, GRID, jobs=1)
    return model, evaluate, sweep


def test_a_proposal_is_measured_on_the_real_network(trained, tmp_path):
    model, evaluate, sweep = trained
    found = choose(model, evaluate, sweep, max_loss=1.0, jobs=1)
    assert found.baseline - found.metric <= 1.0
    assert found.file_bytes < sweep.file_bytes
    changed = apply_setting(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)), {})
    changed.load_state_dict(model.state_dict())
    apply_setting(changed, found.setting)
    assert evaluate(changed) == found.metric
    assert espalier.save(changed, tmp_path / "m.esp").file_bytes == found.file_bytes
    assert Proposal.from_json(json.loads(json.dumps(found.to_json()))) == found
    parse_recipe(
        json.dumps({"model": "a:b", "data": "a:c", "stages": found.stages()}), "the proposal"
    )


def test_a_given_size_is_kept(trained):
    model, evaluate, sweep = trained
    room = sweep.file_bytes // 4
    found = choose(model, evaluate, sweep, max_bytes=room, jobs=1)
    assert found.file_bytes <= room
    smaller = choose(model, evaluate, sweep, max_bytes=room // 2, jobs=1)
    assert smaller.file_bytes <= room // 2
    assert smaller.metric <= found.metric


def test_nothing_may_be_lost(trained):
    model, evaluate, sweep = trained
    found = choose(model, evaluate, sweep, max_loss=0.0, jobs=1)
    assert found.metric >= found.baseline


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give either max_loss or max_bytes"),
        ({"max_loss": 1.0, "max_bytes": 9}, "give either"),
        ({"max_loss": -1.0}, "max_loss must be at least 0"),
        ({"max_loss": float("nan")}, "max_loss must be at least 0"),
        ({"max_bytes": 50}, "the smallest file of this grid has"),
        ({"max_loss": 1.0, "evaluations": 0}, "evaluations must be at least 1"),
    ],
)
def test_limits_that_cannot_be(trained, options, said):
    model, evaluate, sweep = trained
    with pytest.raises(InvalidArgument, match=said):
        choose(model, evaluate, sweep, jobs=1, **options)


def test_a_sweep_of_another_model_or_without_a_metric(trained):
    model, evaluate, sweep = trained
    other = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    with pytest.raises(InvalidArgument, match="the sweep is of another model"):
        choose(other, evaluate, sweep, max_loss=1.0, jobs=1)
    bare = espalier.sensitivity(model, None, GRID, jobs=1)
    with pytest.raises(InvalidArgument, match="the sweep has no metric"):
        choose(model, evaluate, bare, max_loss=1.0, jobs=1)
