"""Optuna over a sweep's grid: what it finds, what it goes on with, what it refuses."""

import json

import pytest
import torch
from torch import nn

import espalier
from espalier.analysis.layer_options import file_bytes
from espalier.analysis.search import Goal, SearchResult, search
from espalier.errors import InvalidArgument

optuna = pytest.importorskip("optuna")

X = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
GRID = {"density": (0.2, 0.5), "bits": (1, 2, 4)}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


class Agreement:
    def __init__(self, model):
        self.calls = 0
        with torch.no_grad():
            self.labels = model(X).argmax(1)

    def __call__(self, model):
        self.calls += 1
        with torch.no_grad():
            return 100 * float((model(X).argmax(1) == self.labels).float().mean())


@pytest.fixture(scope="module")
def swept():
    model = network()
    evaluate = Agreement(model)
    return model, evaluate, espalier.sensitivity(model, evaluate, GRID, jobs=1)


def test_the_smallest_file_within_a_loss(swept):
    model, evaluate, sweep = swept
    result = search(model, evaluate, sweep, Goal(max_loss=5.0), trials=25, jobs=1)
    (best,) = result.front
    assert result.trials == 25
    assert best.baseline - best.metric <= 5.0
    assert best.file_bytes == file_bytes(model, best.setting) < sweep.file_bytes
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_the_best_network_in_so_many_bytes(swept):
    model, evaluate, sweep = swept
    room = sweep.file_bytes // 3
    (best,) = search(model, evaluate, sweep, Goal(max_bytes=room), trials=15, jobs=1).front
    assert best.file_bytes <= room + 16  # the directory may differ by some bytes
    assert best.metric > 50


def test_the_front_has_no_proposal_that_another_beats(swept):
    model, evaluate, sweep = swept
    front = search(model, evaluate, sweep, trials=25, jobs=1).front
    assert len(front) > 2
    sizes, metrics = [p.file_bytes for p in front], [p.metric for p in front]
    assert sizes == sorted(sizes)
    assert metrics == sorted(set(metrics))


def test_ranks_are_searched_with_bits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 4))
    model[2].weight.data = torch.randn(64, 2) @ torch.randn(2, 64) / 8  # loses nothing at rank 2
    evaluate = Agreement(model)
    grid = {"rank": (0.03, 0.25), "bits": (4, 8)}
    sweep = espalier.sensitivity(model, evaluate, grid, jobs=1)
    (best,) = search(model, evaluate, sweep, Goal(max_loss=2.0), trials=20, jobs=1).front
    assert best.setting["2.weight"]["rank"] == 0.03
    assert best.file_bytes == file_bytes(model, best.setting)
    names = [next(iter(stage)) for stage in best.stages()]
    assert names == ["factorize", "share", "save"]


def test_axes_that_change_other_layers_are_not_searched(swept):
    model, evaluate, _ = swept
    sweep = espalier.sensitivity(model, evaluate, {"filters": (0.5,)}, jobs=1)
    with pytest.raises(InvalidArgument, match="filters: what one layer loses changes the size"):
        search(model, evaluate, sweep, trials=2, jobs=1)


def test_a_database_is_gone_on_with(swept, tmp_path):
    model, _, sweep = swept
    url, goal = f"sqlite:///{tmp_path}/s.db", Goal(max_loss=5.0)
    first = search(model, Agreement(model), sweep, goal, trials=6, storage=url, jobs=1)
    evaluate = Agreement(model)
    again = search(model, evaluate, sweep, goal, trials=6, storage=url, jobs=1)
    assert evaluate.calls == 0
    assert again == first
    search(model, evaluate, sweep, goal, trials=9, storage=url, jobs=1)
    assert 1 <= evaluate.calls <= 3  # what comes up twice is not measured twice


def test_a_database_of_something_else_is_refused(swept, tmp_path):
    model, evaluate, sweep = swept
    url = f"sqlite:///{tmp_path}/s.db"
    search(model, evaluate, sweep, Goal(max_loss=5.0), trials=2, storage=url, jobs=1)
    held = (tmp_path / "s.db").read_bytes()
    with pytest.raises(InvalidArgument, match="holds the search of another goal; choose another"):
        search(model, evaluate, sweep, Goal(max_loss=1.0), trials=2, storage=url, jobs=1)
    other = network(1)
    swept_other = espalier.sensitivity(other, evaluate, GRID, jobs=1)
    with pytest.raises(InvalidArgument, match="holds the search of another model"):
        search(other, evaluate, swept_other, Goal(max_loss=5.0), trials=2, storage=url, jobs=1)
    assert (tmp_path / "s.db").read_bytes() == held


def test_a_database_of_someone_elses_study(swept, tmp_path):
    model, evaluate, sweep = swept
    url = f"sqlite:///{tmp_path}/s.db"
    theirs = optuna.create_study(study_name="espalier", storage=url)
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(InvalidArgument, match="holds trials that are not Espalier's"):
        search(model, evaluate, sweep, Goal(max_loss=1.0), trials=2, storage=url, jobs=1)


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/folder/s.db"])
def test_a_database_that_cannot_be_opened(swept, url):
    model, evaluate, sweep = swept
    with pytest.raises(InvalidArgument, match="cannot be opened") as raised:
        search(model, evaluate, sweep, trials=2, storage=url, jobs=1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({"max_loss": 1.0, "max_bytes": 9}, "give max_loss, max_bytes, or neither"),
        ({"max_loss": -1.0}, "max_loss must be at least 0"),
        ({"max_bytes": 0}, "max_bytes must be at least 1"),
    ],
)
def test_goals_that_cannot_be(goal, said):
    with pytest.raises(InvalidArgument, match=said):
        Goal(**goal)
