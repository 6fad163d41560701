"""Recipes: what they may say, and what is said where they are wrong."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import espalier
from espalier.errors import CorruptFile, InvalidArgument
from espalier.recipe import Recipe, builtin_recipes, load_recipe, run_recipe
from espalier.recipe.context import Context
from espalier.recipe.context import samples as recipe_samples
from espalier.recipe.network import reference_recipe
from espalier.recipe.refs import Split
from espalier.recipe.schema import parse_recipe
from espalier.samples import Samples
from espalier.training.checkpoint import load_checkpoint, save_checkpoint

GOOD = """
model: tests.unit.test_recipe:network
data: tests.unit.test_recipe:samples
holdout: 60
stages:
  - train: {epochs: 4, lr: 1e-2, batch_size: 32}
  - evaluate: {split: test, name: reference}
  - retrain: {epochs: 4, lr: 1e-2, batch_size: 32, prune: {density: 0.5, epochs: 2, every: 2}}
  - share: {bits: 3}
  - fine_tune: {epochs: 2, lr: 1e-3, batch_size: 32}
  - save: {path: out/model.esp}
  - evaluate: {split: test, name: compressed}
"""


def network(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))


def deeper() -> nn.Sequential:
    layers = [nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def samples(data_dir: object = None) -> tuple[Samples, Samples]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (400,), generator=generator)
    x = torch.randn(400, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4)
    return Samples(x[:300], y[:300]), Samples(x[300:], y[300:])


def test_the_whole_chain(tmp_path):
    result = run_recipe(parse_recipe(GOOD, "good"), tmp_path / "run")
    assert (tmp_path / "run" / "out" / "model.esp").stat().st_size == (
        result.saved()["ledger"]["file_bytes"]
    )
    assert result.stages[2].values["density"] == 0.5
    assert result.evaluation("compressed")["error"] <= result.evaluation("reference")["error"] + 10
    assert not list((tmp_path / "run").glob("stage-*"))


@pytest.mark.parametrize(
    "cut",
    [
        "prune: {density: 0.5}",
        "prune_filters: {keep: 0.5}",
        "factorize: {rank: 2}",
        "merge: {}",
        "train: {epochs: 1, prune: {density: 0.5, epochs: 1}}",
        "share: {bits: 3}",
        "quantize: {bits: 8}",
        "quantize_rd: {lambda: 1e-3}",
        "rate_aware: {epochs: 1, lambda: 1e-3}",
        "save: {path: a.esp}",
    ],
)
def test_the_reference_ends_before_the_first_stage_that_makes_it_smaller(cut):
    head = GOOD.split("  - retrain")[0]
    recipe = parse_recipe(f"{head}  - {cut}\n  - train: {{epochs: 1}}\n", "x")
    kinds = [stage.kind for stage in reference_recipe(recipe).stages]
    assert kinds == ["train", "evaluate"]


def test_batch_norms_are_trained_as_constants_until_another_stage_trains_them():
    head, rate = GOOD.split("  - retrain")[0], "  - rate_aware: {epochs: 1, lambda: 1e-3}\n"
    open_ = "  - rate_aware: {epochs: 1, lambda: 1e-3, freeze_norms: false}\n"
    for then, trained in ((rate, False), (open_, True), ("  - fine_tune: {epochs: 1}\n", True)):
        assert parse_recipe(head + rate + then, "x").trains_norms_after(2) is trained


class Interrupt(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("at", [("1/7 train", 10), ("3/7 retrain", 10), ("5/7 fine_tune", 9)])
def test_an_interrupted_run_resumes_to_the_same_file(tmp_path, at):
    recipe = parse_recipe(GOOD, "good")
    whole = run_recipe(recipe, tmp_path / "whole")

    def progress(stage: str, done: int, total: int, text: str) -> None:
        if (stage, done) == at:
            raise Interrupt

    with pytest.raises(Interrupt):
        run_recipe(recipe, tmp_path / "run", progress=progress)
    with pytest.raises(InvalidArgument, match="already holds a run; --resume"):
        run_recipe(recipe, tmp_path / "run")
    resumed = run_recipe(recipe, tmp_path / "run", resume=True)
    first, second = ((tmp_path / run / "out/model.esp").read_bytes() for run in ("whole", "run"))
    assert first == second
    assert resumed.evaluation("compressed") == whole.evaluation("compressed")
    again = run_recipe(recipe, tmp_path / "run", resume=True)
    assert again.to_json() == resumed.to_json()


def test_layer_by_layer_sharing_goes_on_with_the_layer_that_it_was_at(tmp_path, monkeypatch):
    head = GOOD.split("  - train")[0]
    text = head + "  - share: {bits: 2, layerwise: {epochs: 3, batch_size: 32}}\n"
    recipe = parse_recipe(text + "  - save: {path: b.esp}\n", "x")
    run_recipe(recipe, tmp_path / "whole")
    steps = []

    def stop_in_the_second_layer(stage: str, done: int, total: int, text: str) -> None:
        steps.append(done)
        if len(steps) == 21 + 10:  # three epochs of seven steps for each of two layers
            raise Interrupt

    with pytest.raises(Interrupt):
        run_recipe(recipe, tmp_path / "run", progress=stop_in_the_second_layer)
    kept = sorted(p.name for p in (tmp_path / "run").glob("stage-*.pt"))
    assert kept == ["stage-01-01.pt", "stage-01-02.pt"]
    steps.clear()
    resumed = run_recipe(recipe, tmp_path / "run", resume=True, progress=lambda *s: steps.append(s))
    assert len(steps) == 2 * 7  # one epoch of the second layer was done
    assert resumed.stages[0].values["layers"][0]["name"] == "0.weight"
    assert not list((tmp_path / "run").glob("stage-*.pt"))
    first, second = ((tmp_path / run / "b.esp").read_bytes() for run in ("whole", "run"))
    assert first == second


FILTERS = """
model: tests.unit.test_recipe:network
data: tests.unit.test_recipe:samples
holdout: 60
stages:
  - train: {epochs: 2, lr: 1e-2, batch_size: 32}
  - prune_filters: {keep: {"0": 0.25}, criterion: taylor, samples: 64}
  - retrain: {epochs: 3, lr: 1e-2, batch_size: 32, distill: 0.5}
  - share: {bits: 3}
  - save: {path: b.esp}
"""


def test_layer_by_layer_filters_go_on_with_the_layer_that_they_were_at(tmp_path):
    head = FILTERS.split("  - train")[0].replace("recipe:network", "recipe:deeper")
    text = head + "  - train: {epochs: 1, batch_size: 32}\n"
    text += (
        "  - prune_filters: {keep: 0.25, layerwise: {epochs: 2, batch_size: 32, distill: 0.5}}\n"
    )
    recipe = parse_recipe(text + "  - save: {path: a.esp}\n", "x")
    whole = run_recipe(recipe, tmp_path / "whole")
    steps = []

    def stop_in_the_second_layer(stage: str, done: int, total: int, text: str) -> None:
        steps.append(done)
        if len(steps) == 7 + 14 + 10:
            raise Interrupt

    with pytest.raises(Interrupt):
        run_recipe(recipe, tmp_path / "run", progress=stop_in_the_second_layer)
    kept = sorted(p.name for p in (tmp_path / "run").glob("stage-*.pt"))
    assert kept == ["stage-02-01.pt", "stage-02-02.pt"]
    resumed = run_recipe(recipe, tmp_path / "run", resume=True)
    first, second = ((tmp_path / run / "a.esp").read_bytes() for run in ("whole", "run"))
    assert first == second
    layers = resumed.stages[1].values["layers"]
    assert [(row["layers"], row["kept"]) for row in layers] == [(("0",), 4), (("2",), 4)]
    assert whole.stages[1].values["parameters"][1] == sum(
        p.numel() for p in resumed.model.parameters()
    )


def test_a_run_that_removes_filters_resumes_too(tmp_path):
    recipe = parse_recipe(FILTERS, "x")
    whole = run_recipe(recipe, tmp_path / "whole")
    assert whole.model[0].out_features == 4
    assert whole.stages[1].values["macs"] == [4 * 16 + 16 * 3, 4 * 4 + 4 * 3]
    assert espalier.load(tmp_path / "whole" / "b.esp", into=network())[3].in_features == 4

    def progress(stage: str, done: int, total: int, text: str) -> None:
        if (stage, done) == ("3/5 retrain", 10):
            raise Interrupt

    with pytest.raises(Interrupt):
        run_recipe(recipe, tmp_path / "run", progress=progress)
    run_recipe(recipe, tmp_path / "run", resume=True)
    first, second = ((tmp_path / run / "b.esp").read_bytes() for run in ("whole", "run"))
    assert first == second


FACTORS = FILTERS.replace(
    'prune_filters: {keep: {"0": 0.25}, criterion: taylor, samples: 64}', "factorize: {rank: 2}"
)


def test_a_run_that_factors_layers_resumes_too(tmp_path):
    recipe = parse_recipe(FACTORS, "x")
    whole = run_recipe(recipe, tmp_path / "whole")
    values = whole.stages[1].values
    assert [layer["ranks"] for layer in values["layers"]] == [(2,), (2,)]
    assert values["macs"] == (4 * 16 + 16 * 3, 2 * (4 + 16) + 2 * (16 + 3))
    assert espalier.load(tmp_path / "whole" / "b.esp", into=network())[3][0].out_features == 2

    def progress(stage: str, done: int, total: int, text: str) -> None:
        if (stage, done) == ("3/5 retrain", 10):
            raise Interrupt

    with pytest.raises(Interrupt):
        run_recipe(recipe, tmp_path / "run", progress=progress)
    run_recipe(recipe, tmp_path / "run", resume=True)
    first, second = ((tmp_path / run / "b.esp").read_bytes() for run in ("whole", "run"))
    assert first == second


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{}", "give one of rank, energy, parameters, macs and latency"),
        ("{rank: 2, macs: 0.5}", "give one of rank"),
        ("{rank: 0}", "rank"),
        ("{rank: {a: much}}", "rank"),
        ("{energy: 1.5}", "energy"),
    ],
)
def test_a_stage_that_factors_is_checked_before_anything_runs(options, said):
    with pytest.raises(InvalidArgument, match=said):
        parse_recipe(FACTORS.replace("{rank: 2}", options), "x")


def test_ranks_in_a_recipe():
    text = "{rank: {'*': 0.5, a: 3, b: [2, 4], c: vbmf, d: null}, method: {conv: svd}}"
    options = parse_recipe(FACTORS.replace("{rank: 2}", text), "x").stages[1].options
    assert options.rank == {"*": 0.5, "a": 3, "b": [2, 4], "c": "vbmf", "d": None}


DISTILLED = GOOD.replace("prune: {density: 0.5", "distill: 0.7, prune: {density: 0.5").replace(
    "fine_tune: {epochs: 2", "fine_tune: {distill: 0.5, temperature: 2, epochs: 2"
)


@pytest.mark.parametrize("at", [("3/7 retrain", 10), ("5/7 fine_tune", 9)])
def test_an_interrupted_run_finds_its_teacher_again(tmp_path, at):
    recipe = parse_recipe(DISTILLED, "x")
    run_recipe(recipe, tmp_path / "whole")
    assert not (tmp_path / "whole" / "teacher.pt").exists()
    run_recipe(parse_recipe(GOOD, "x"), tmp_path / "plain")

    def progress(stage: str, done: int, total: int, text: str) -> None:
        if (stage, done) == at:
            raise Interrupt

    with pytest.raises(Interrupt):
        run_recipe(recipe, tmp_path / "run", progress=progress)
    teacher = (tmp_path / "run" / "teacher.pt").rename(tmp_path / "away.pt")
    with pytest.raises(InvalidArgument, match=r"learns from 1 networks, of which 0 are there"):
        run_recipe(recipe, tmp_path / "run", resume=True)
    teacher.rename(tmp_path / "run" / "teacher.pt")
    run_recipe(recipe, tmp_path / "run", resume=True)
    files = [(tmp_path / n / "out/model.esp").read_bytes() for n in ("whole", "run", "plain")]
    assert files[0] == files[1] != files[2]


def test_distillation_wants_somebody_to_learn_from():
    text = DISTILLED.replace("  - train: {epochs: 4, lr: 1e-2, batch_size: 32}\n", "")
    with pytest.raises(InvalidArgument, match="retrain: distill needs an earlier train stage"):
        parse_recipe(text, "x")
    assert parse_recipe(text + "weights: some.esp\n", "x").distills


def test_resume_wants_the_same_recipe_and_force_starts_again(tmp_path):
    recipe = parse_recipe(GOOD, "good")
    run_recipe(recipe, tmp_path)
    other = parse_recipe(GOOD, "good", seed=5)
    with pytest.raises(InvalidArgument, match="another recipe or seed"):
        run_recipe(other, tmp_path, resume=True)
    assert run_recipe(other, tmp_path, force=True).recipe.seed == 5


def test_a_run_goes_on_that_knows_fewer_options(tmp_path):
    recipe = parse_recipe(GOOD, "good")
    run_recipe(recipe, tmp_path)
    state = load_checkpoint(tmp_path / "state.pt")
    plain = json.loads(state["recipe"])
    del plain["stages"][0]["train"]["distill"]
    save_checkpoint(tmp_path / "state.pt", state | {"recipe": json.dumps(plain)})
    assert len(run_recipe(recipe, tmp_path, resume=True).stages) == 7
    plain["stages"][0]["train"]["distill"] = 0.5
    save_checkpoint(tmp_path / "state.pt", state | {"recipe": json.dumps(plain)})
    with pytest.raises((InvalidArgument, CorruptFile)):
        run_recipe(recipe, tmp_path, resume=True)


def test_two_seeds_differ_and_one_repeats(tmp_path):
    files = []
    for i, seed in enumerate((1, 1, 2)):
        run_recipe(parse_recipe(GOOD, "good", seed=seed), tmp_path / str(i))
        files.append((tmp_path / str(i) / "out/model.esp").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    "stages",
    [
        "  - prune: {quality: 0.5}",
        "  - prune: {density: {'3': 0.5}, criterion: obd, samples: 50}",
        "  - prune: {density: 0.3, scope: global}",
        "  - retrain: {epochs: 2, prune: {density: 0.2, epochs: 1, schedule: rounds}}",
        "  - retrain: {epochs: 2, prune: {density: 0.2, epochs: 1, schedule: surgery}}",
        "  - share: {bits: 2, init: linear, layerwise: {epochs: 1, batch_size: 32}}",
        "  - share: {bits: 2, refreshable: true}\n  - fine_tune: {epochs: 1, refresh_every: 3}",
        "  - prune: {density: 0.2}\n  - save: {path: a.esp, coder: fixed}",
        "  - share: {bits: 3}\n  - save: {path: a.esp, effort: max}",
    ],
)
def test_every_option_does_something(tmp_path, stages):
    head = GOOD.split("  - train")[0]
    result = run_recipe(parse_recipe(head + stages + "\n  - save: {path: b.esp}", "x"), tmp_path)
    kinds = {row["kind"] for row in result.saved()["ledger"]["tensors"]}
    assert kinds != {"dense"}


def test_layer_by_layer_training_takes_all_the_options_of_training(tmp_path):
    head = GOOD.split("  - train")[0]
    how = "{epochs: 2, batch_size: 32, dropout: 0.4, prune: {density: 0.5, epochs: 1, every: 2}}"
    text = head + f"  - share: {{bits: 2, layerwise: {how}}}\n  - save: {{path: b.esp}}\n"
    result = run_recipe(parse_recipe(text, "x"), tmp_path)
    assert result.model[2].p == 0.4
    assert int(result.model[0].weight.count_nonzero()) == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("density: 0.5", "density: 1.5"), r"stages\.2\.\S*density.*less than or equal to 1.*1\.5"),
        (("bits: 3", "bits: 0"), r"stages\.3\.\S*bits.*greater than or equal to 1"),
        (("bits: 3", "bit: 3"), r"stages\.3"),
        (("- share:", "- shaer:"), r"stages\.3: no stage is called 'shaer'; known are train,"),
        (("epochs: 4, lr", "epochs: four, lr"), r"stages\.0\.\S*epochs.*integer.*'four'"),
        (("model: tests", "modle: tests"), "model: Field required"),
        (("out/model.esp", "/etc/model.esp"), "must lie inside the run folder"),
        (("stages:", "stages: {"), "line .*not YAML"),
    ],
)
def test_a_wrong_recipe_is_said_in_one_line(change, message):
    with pytest.raises(InvalidArgument, match=message) as error:
        parse_recipe(GOOD.replace(*change), "my.yaml")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("my.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("test_recipe:network", "test_recipe"), "is not package.module:function"),
        (("test_recipe:network", "test_recipe:nothing"), "has no function 'nothing'"),
        (("tests.unit.test_recipe:network", "no.such:thing"), "cannot import no.such"),
        (("holdout: 60", "holdout: 600"), "holdout 600 must lie between 1 and 299"),
        (("holdout: 60", "model_options: {depth: 3}"), "unexpected keyword argument 'depth'"),
        (("test_recipe:samples", "test_recipe:network"), "gave a Sequential"),
        (("holdout: 60", "weights: nothing.pt"), "nothing.pt"),
    ],
)
def test_wrong_references(tmp_path, change, message):
    with pytest.raises(InvalidArgument, match=message):
        run_recipe(parse_recipe(GOOD.replace(*change), "x"), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_weights_to_start_from(tmp_path):
    run_recipe(parse_recipe(GOOD, "x"), tmp_path / "first")
    head = GOOD.split("stages:")[0] + f"weights: {tmp_path}/first/out/model.esp\n"
    text = head + "stages:\n  - evaluate: {split: test, name: start}\n"
    result = run_recipe(parse_recipe(text, "x"), tmp_path / "second")
    first = run_recipe(parse_recipe(GOOD, "x"), tmp_path / "first", resume=True)
    assert result.evaluation("start")["wrong"] == first.evaluation("compressed")["wrong"]


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_are_valid(name):
    recipe = load_recipe(name, seed=7)
    assert isinstance(recipe, Recipe)
    assert recipe.seed == 7
    assert recipe.holdout >= 1000
    assert Recipe.model_validate(recipe.to_json()) == recipe


def test_weights_from_a_plain_checkpoint(tmp_path):
    model = network()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    head = GOOD.split("stages:")[0] + f"weights: {tmp_path}/model.pt\n"
    text = head + "stages:\n  - save: {path: same.esp}\n"
    result = run_recipe(parse_recipe(text, "x"), tmp_path / "run")
    assert torch.equal(result.model[0].weight, model[0].weight)
    torch.save({"0.weight": model[0].weight}, tmp_path / "model.pt")
    with pytest.raises(InvalidArgument, match=r"missing \['0\.bias'"):
        run_recipe(parse_recipe(text, "x"), tmp_path / "other")


def test_a_run_takes_its_model_to_the_device(tmp_path, monkeypatch):
    moved = []
    to = nn.Module.to

    def follow(model: nn.Module, *place: object, **named: object) -> nn.Module:
        moved.extend(place)
        return to(model, *place, **named)

    monkeypatch.setattr(nn.Module, "to", follow)
    recipe = parse_recipe(GOOD.split("  - retrain")[0], "x")
    on_cpu = run_recipe(recipe, tmp_path / "cpu", device="cpu")
    assert moved == ["cpu"]
    as_built = run_recipe(recipe, tmp_path / "built")
    assert moved == ["cpu"]
    assert on_cpu.evaluation("reference") == as_built.evaluation("reference")


@pytest.mark.parametrize("loader", [False, True])
def test_stages_look_at_samples_where_the_model_is(tmp_path, loader):
    train, test = samples()
    data = DataLoader(TensorDataset(train.x, train.y), batch_size=50) if loader else train
    recipe = parse_recipe(GOOD, "x")
    model = network().to("meta")  # holds no values, and refuses what is elsewhere
    context = Context(model, Split(data, None, test, "x"), recipe, tmp_path, 0, None)
    seen = recipe_samples(context, 120)
    for _ in range(2):  # as often as a stage likes
        assert {model(x).shape[1] for x, _ in seen} == {3}
        assert {y.device.type for _, y in seen} == {"meta"}


def test_an_unknown_recipe_names_the_built_in_ones():
    with pytest.raises(InvalidArgument, match=r"no such recipe file; built in are .*lenet300"):
        load_recipe("lenet3000")


class WithNorm(nn.Module):
    """A convolution and its batch norm, on the samples as rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv1d(1, 6, 3), nn.BatchNorm1d(6), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x[:, None]))).flatten(1))


RATE = """
model: tests.unit.test_recipe:WithNorm
data: tests.unit.test_recipe:samples
holdout: 60
stages:
  - train: {epochs: 2, lr: 1e-2, batch_size: 32}
  - quantize_rd: {lambda: 1e-5, samples: 100}
"""


def test_free_levels_are_an_option_of_the_stage(tmp_path):
    text = RATE.replace("samples: 100", "samples: 100, quantizer: ecsq")
    result = run_recipe(parse_recipe(text, "rate"), tmp_path / "run")
    assert [layer["step"] for layer in result.stages[1].values["layers"]] == [None, None]


@pytest.mark.parametrize(("after", "folded"), [("", True), ("  - fine_tune: {epochs: 1}", False)])
def test_batch_norms_are_folded_unless_a_later_stage_trains(tmp_path, after, folded):
    result = run_recipe(parse_recipe(RATE + after, "rate"), tmp_path / "run")
    assert result.stages[1].values["bits_per_weight"] < 8
    assert bool((result.model.norm.running_mean == 0).all()) == folded
    if after:
        wrong = RATE.replace("samples: 100", "samples: 100, fold_batchnorm: true") + after
        with pytest.raises(InvalidArgument, match="fold_batchnorm is for a network that no later"):
            parse_recipe(wrong, "rate")


RATE_AWARE = """
model: tests.unit.test_recipe:network
data: tests.unit.test_recipe:samples
holdout: 60
stages:
  - train: {epochs: 3, lr: 1e-2, batch_size: 32}
  - rate_aware: {target: 250, epochs: 6, lr: 1e-2, batch_size: 32, every: 3, distill: 0.5,
                 remove_dead: 2, refine: 200, fixed_epochs: 2}
  - evaluate: {split: test, name: compressed}
  - save: {path: b.esp, effort: max}
"""


@pytest.mark.parametrize("interrupted", ["epoch 3/3", "epoch 2/2"])
def test_rate_aware_training_resumes_to_the_same_file(tmp_path, interrupted):
    pytest.importorskip("torch_pruning")
    recipe = parse_recipe(RATE_AWARE, "rate")
    whole = run_recipe(recipe, tmp_path / "whole")
    assert whole.stages[1].values["file_bytes"] == whole.saved()["ledger"]["file_bytes"] <= 250

    def progress(stage: str, done: int, total: int, text: str) -> None:
        if stage == "2/4 rate_aware" and text.startswith(interrupted):
            raise Interrupt

    with pytest.raises(Interrupt):
        run_recipe(recipe, tmp_path / "run", progress=progress)
    run_recipe(recipe, tmp_path / "run", resume=True)
    first, second = ((tmp_path / run / "b.esp").read_bytes() for run in ("whole", "run"))
    assert first == second
    refined, fixed = (whole.stages[1].values[phase] for phase in ("refined", "fixed"))
    assert whole.saved()["ledger"]["file_bytes"] == refined["file_bytes"][1]
    assert len(fixed["epochs"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{epochs: 2}", "give lambda or target"),
        ("{epochs: 2, target: 3, refresh_every: 3}", "do not go with grids"),
        ("{epochs: 2, target: 3, rounding: up}", "rounding"),
    ],
)
def test_wrong_rate_aware_stages(options, message):
    head = RATE_AWARE.split("  - rate_aware")[0]
    with pytest.raises(InvalidArgument, match=message):
        parse_recipe(head + f"  - rate_aware: {options}\n", "rate")
