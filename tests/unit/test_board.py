"""``--tensorboard``: what a run logs is what its results say."""

import sys

import pytest

from espalier.errors import MissingDependency
from espalier.recipe import run_recipe
from espalier.recipe.schema import Recipe

pytest.importorskip("tensorboard")

STAGES = [
    {"train": {"epochs": 2, "batch_size": 8}},
    {"evaluate": {"split": "test", "name": "reference"}},
    {"prune": {"density": 0.5}},
    {"retrain": {"epochs": 2, "batch_size": 8}},
    {"share": {"bits": 2, "layerwise": {"epochs": 1, "batch_size": 8}}},
    {"save": {"path": "model.esp"}},
]


def recipe(stages=STAGES):
    plain = {"model": "espalier.zoo:lenet300", "data": "tests.unit.test_board:data"}
    return Recipe.model_validate(plain | {"holdout": 8, "stages": stages})


def data():
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 1, 28, 28, generator=generator)
    y = torch.arange(48) % 10
    return (x[:32], y[:32]), (x[32:], y[32:])


def scalars(folder):
    """Name to steps and values of everything that was logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    return found, set(tags["histograms"])


def test_training_densities_and_sizes_are_logged(tmp_path):
    result = run_recipe(recipe(), tmp_path / "run", tensorboard=True)
    logged, histograms = scalars(tmp_path / "run")
    epochs = [e for stage in result.stages for e in stage.values.get("epochs", ())]
    losses = [loss for _, loss in logged["train/loss"]]
    assert losses[:4] == pytest.approx([e["train_loss"] for e in epochs])
    assert [step for step, _ in logged["train/loss"]] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]  # three layers shared
    assert len(logged["held_out/error"]) == 7
    assert logged["test/error"][0][1] == pytest.approx(result.evaluation("reference")["error"])
    assert {value for _, value in logged["density/fc1"]} == {0.5}
    assert logged["size/model.esp"] == [(7, result.saved()["ledger"]["file_bytes"])]
    assert histograms == {"weights/fc1", "weights/fc2", "weights/fc3"}


def test_a_resumed_run_goes_on_at_its_step(tmp_path):
    class Stop(Exception):
        pass

    def stop(stage, done, _total, _text):
        if stage.startswith("4/") and done:
            raise Stop

    with pytest.raises(Stop):
        run_recipe(recipe(), tmp_path / "run", tensorboard=True, progress=stop)
    run_recipe(recipe(), tmp_path / "run", tensorboard=True, resume=True)
    logged, _ = scalars(tmp_path / "run")
    assert [step for step, _ in logged["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]
    run_recipe(recipe(STAGES[:1]), tmp_path / "run", tensorboard=True, force=True)
    logged, _ = scalars(tmp_path / "run")
    assert [step for step, _ in logged["train/loss"]] == [1, 2]


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependency, match=r"pip install 'espalier\[tensorboard\]'"):
        run_recipe(recipe(), tmp_path / "run", tensorboard=True)
