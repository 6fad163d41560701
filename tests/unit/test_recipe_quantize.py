"""The stage ``quantize`` of recipes."""

import pytest

import espalier
from espalier.errors import InvalidArgument
from espalier.quantized_inputs import input_grids
from espalier.recipe import run_recipe
from espalier.recipe.schema import parse_recipe
from espalier.torch_io import read_model

RECIPE = """
model: tests.unit.test_recipe:deeper
data: tests.unit.test_recipe:samples
holdout: 60
stages:
  - train: {epochs: 2, lr: 1e-2, batch_size: 32}
  - prune: {density: 0.5}
  - quantize: STAGE
  - fine_tune: {epochs: 3, lr: 1e-2, batch_size: 32}
  - save: {path: model.esp}
"""


class Interrupt(Exception):
    """Stands for Ctrl-C."""


def recipe(stage):
    return parse_recipe(RECIPE.replace("STAGE", stage), "test")


@pytest.mark.parametrize(
    ("stage", "kinds"),
    [
        ("{bits: 4, granularity: group, group_size: 4}", ["sparse fixed point"] * 3),
        ("{method: ternary, threshold: 0.5}", ["sparse", "sparse fixed point", "sparse"]),
    ],
)
def test_it_quantizes_and_trains_on(tmp_path, stage, kinds):
    result = run_recipe(recipe(stage), tmp_path)
    (values,) = (s.values for s in result.stages if s.kind == "quantize")
    assert len(values["layers"]) + len(values["skipped"]) == 3
    ledger = {row["name"]: row["kind"] for row in result.saved("model.esp")["ledger"]["tensors"]}
    assert [ledger[f"{i}.weight"] for i in (0, 2, 4)] == kinds
    found = espalier.load(tmp_path / "model.esp")
    for name, array in read_model(result.model).dense().items():
        assert found[name].numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_file(tmp_path, at):
    stages = recipe("{bits: 4, activations: 8, samples: 200}")

    def progress(stage: str, done: int, total: int, text: str) -> None:
        if (stage, done) == ("4/5 fine_tune", at):
            raise Interrupt

    run_recipe(stages, tmp_path / "whole")
    with pytest.raises(Interrupt):
        run_recipe(stages, tmp_path / "cut", progress=progress)
    result = run_recipe(stages, tmp_path / "cut", resume=True)
    whole, cut = (tmp_path / name / "model.esp" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    assert len(input_grids(result.model)) == 3


@pytest.mark.parametrize(
    ("stage", "match"),
    [
        ("{bits: 1}", "bits"),
        ("{granularity: group}", "group_size belongs to granularity: group"),
        ("{bits: 4, calibration: best}", "calibration"),
        ("{bits: 4, samples: 0}", "samples"),
        ("{bit: 4}", "bit: Extra inputs"),
    ],
)
def test_a_wrong_stage_is_said_before_anything_runs(stage, match):
    with pytest.raises(InvalidArgument, match=match):
        recipe(stage)
