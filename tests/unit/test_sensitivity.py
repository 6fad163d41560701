"""The sweep: what a point holds, what is kept, what is refused."""

import json
import math

import pytest
import torch
from torch import nn

import espalier
from espalier.analysis.axis import AXES, apply_setting, check_grid, stages_of
from espalier.analysis.bare import bare_sensitivity
from espalier.analysis.kept import fingerprint
from espalier.analysis.sensitivity import Sweep
from espalier.errors import CorruptFile, InvalidArgument
from espalier.interop import open_checkpoint

X = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
GRID = {"density": (0.25, 0.5), "bits": (1, 4)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


class Agreement:
    """Share of the inputs on which a model agrees with the first one it was shown, counted."""

    def __init__(self, model):
        self.calls = 0
        with torch.no_grad():
            self.labels = model(X).argmax(1)

    def __call__(self, model):
        self.calls += 1
        with torch.no_grad():
            return 100 * float((model(X).argmax(1) == self.labels).float().mean())


def test_every_point_is_the_metric_of_a_model_with_that_layer_changed(model):
    evaluate = Agreement(model)
    sweep = espalier.sensitivity(model, evaluate, GRID, jobs=1)
    assert sweep.baseline == 100.0
    assert [(p.layer, p.axis, p.value) for p in sweep.points] == [
        (layer, axis, value)
        for layer in ("0.weight", "2.weight")
        for axis, values in GRID.items()
        for value in values
    ]
    assert evaluate.calls == 1 + len(sweep.points)
    for point in sweep.points:
        changed = apply_setting(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), {})
        changed.load_state_dict(model.state_dict())
        if point.axis == "density":
            espalier.prune(changed, {point.layer: point.value})
        else:
            espalier.share(changed, {point.layer: point.value})
        assert point.metric == evaluate(changed)
        before = dict(model.named_parameters())[point.layer].detach().double()
        now = changed.get_submodule(point.layer[0]).weight.detach().double()
        relative = float((now - before).norm() / before.norm())
        assert point.relative_error == pytest.approx(relative, rel=1e-9)
        assert point.sqnr_db == pytest.approx(-20 * math.log10(relative), rel=1e-9)


def test_the_model_stays_as_it_was(model):
    espalier.prune(model, {"0": 0.5})
    before = fingerprint(model)
    model.train()
    espalier.sensitivity(model, Agreement(model), GRID, jobs=1)
    assert fingerprint(model) == before
    assert model.training
    assert not any(p.grad is not None for p in model.parameters())


def test_two_processes_find_what_one_finds(model):
    espalier.prune(model, {"0": 0.5})  # a parametrized model does not pickle by itself

    def evaluate(changed):  # nor does a function of a function
        with torch.no_grad():
            return float(changed(X).sum())

    one, two = (espalier.sensitivity(model, evaluate, GRID, jobs=jobs) for jobs in (1, 2))
    strip = [
        [(p.layer, p.axis, p.value, p.metric, p.size_bytes) for p in s.points] for s in (one, two)
    ]
    assert strip[0] == strip[1]


def test_without_data_the_weights_are_measured(model):
    sweep = espalier.sensitivity(model, grid={"bits": (1, 4)}, jobs=1)
    assert sweep.baseline is None
    assert all(p.metric is None and p.sqnr_db > 0 for p in sweep.points)
    coarse, fine = sweep.curve("0.weight", "bits")
    assert coarse.sqnr_db < fine.sqnr_db
    with pytest.raises(InvalidArgument, match="no metric"):
        sweep.loss(coarse)


def test_sizes_are_those_of_a_file(model, tmp_path):
    sweep = espalier.sensitivity(model, grid={"density": (0.25,)}, jobs=1)
    espalier.prune(model, {"0": 0.25})
    ledger = espalier.save(model, tmp_path / "m.esp")
    streams = ledger["0.weight"].total_bytes - ledger["0.weight"].header_bytes
    assert abs(sweep.points[0].size_bytes - streams) <= 32  # the name is written out in full
    assert sweep.points[0].density == 0.25


def test_finished_points_are_kept_and_not_measured_again(model, tmp_path):
    keep = tmp_path / "points.jsonl"
    evaluate = Agreement(model)
    first = espalier.sensitivity(model, evaluate, {"density": (0.25,)}, jobs=1, keep=keep)
    assert evaluate.calls == 3
    second = espalier.sensitivity(model, evaluate, {"density": (0.25, 0.5)}, jobs=1, keep=keep)
    assert evaluate.calls == 5
    assert set(first.points) <= set(second.points)


def test_a_line_cut_short_is_dropped(model, tmp_path):
    keep = tmp_path / "points.jsonl"
    whole = espalier.sensitivity(model, Agreement(model), GRID, jobs=1, keep=keep)
    keep.write_bytes(keep.read_bytes()[:-9])
    evaluate = Agreement(model)
    again = espalier.sensitivity(model, evaluate, GRID, jobs=1, keep=keep)
    assert evaluate.calls == 1
    assert [p.metric for p in again.points] == [p.metric for p in whole.points]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda _: math.nan, "returned nan, not a finite number"),
        (lambda _: "good", "returned str, not a number"),
        (lambda _: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
)
def test_an_evaluate_that_fails_loses_nothing(model, tmp_path, returned, said):
    keep, good, failing = tmp_path / "points.jsonl", Agreement(model), [False]

    def evaluate(changed):
        failing[0] = good.calls == 4
        return returned(changed) if failing[0] else good(changed)

    with pytest.raises(InvalidArgument) as raised:
        espalier.sensitivity(model, evaluate, GRID, jobs=1, keep=keep)
    line = str(raised.value)
    assert line == f"evaluate, with 0.weight at bits 4: {said}"
    good = Agreement(model)
    espalier.sensitivity(model, good, GRID, jobs=1, keep=keep)
    assert good.calls == 5  # of nine


def test_failures_in_another_process_are_the_same_line(model):
    with pytest.raises(
        InvalidArgument, match=r"^evaluate, with .*returned nan, not a finite number"
    ):
        espalier.sensitivity(model, lambda _: math.nan, GRID, jobs=2)


def test_points_of_another_model_metric_or_data_are_refused(model, tmp_path):
    keep = tmp_path / "points.jsonl"
    grid = {"density": (0.5,)}
    espalier.sensitivity(model, Agreement(model), grid, jobs=1, keep=keep)
    held = keep.read_bytes()
    for options in ({"metric": "loss"}, {"data": "others"}):
        with pytest.raises(InvalidArgument, match=f"points of another {next(iter(options))}"):
            espalier.sensitivity(model, Agreement(model), grid, jobs=1, keep=keep, **options)
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with pytest.raises(InvalidArgument, match="points of another model"):
        espalier.sensitivity(model, Agreement(model), grid, jobs=1, keep=keep)
    assert keep.read_bytes() == held


@pytest.mark.parametrize("text", ["", "{}\n", "not json\n", '{"kind": "espalier points"'])
def test_a_file_that_holds_no_points(model, tmp_path, text):
    keep = tmp_path / "points.jsonl"
    keep.write_text(text)
    if not text:
        assert espalier.sensitivity(model, None, {"bits": (2,)}, jobs=1, keep=keep).points
        return
    with pytest.raises(CorruptFile, match=r"points\.jsonl"):
        espalier.sensitivity(model, None, GRID, jobs=1, keep=keep)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grid": {"density": (0.0,)}}, "density must be a number in"),
        ({"grid": {"bits": (17,)}}, "bits must be an integer from 1 to 16"),
        ({"grid": {"bits": ()}}, "bits: the grid is empty"),
        ({"grid": {}}, "no axis to sweep"),
        ({"layers": ["conv9"]}, "'conv9' matches nothing; there are 0 "),
        ({"better": "best"}, "better must be"),
    ],
)
def test_bad_options(model, options, said):
    with pytest.raises(InvalidArgument, match=said):
        espalier.sensitivity(model, Agreement(model), jobs=1, **options)


def test_an_axis_that_is_not_there(model):
    with pytest.raises(espalier.UnknownMethod, match="no axis is called 'width'"):
        check_grid({"width": (1,)})


def test_the_default_axes_are_densities_and_bits():
    assert list(check_grid(None)) == ["density", "bits"]


class Images(nn.Module):
    """Two convolutions whose outputs are added, and one behind."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12 * 9, 4)

    def forward(self, x):
        x = torch.relu(self.left(x) + self.right(x))
        return self.fc(torch.relu(self.head(x)).flatten(1))


PICTURES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def score(model):
    with torch.no_grad():
        return float(model(PICTURES).square().mean())


def test_ranks_are_swept(tmp_path):
    torch.manual_seed(0)
    model = Images()
    found = espalier.sensitivity(model, score, {"rank": (0.25, 1.0)}, jobs=1)
    assert [(p.layer, p.value) for p in found.points] == [
        (f"{layer}.weight", value)
        for layer in ("left", "right", "head", "fc")
        for value in (0.25, 1.0)
    ]
    half, full = (p for p in found.points if p.layer == "head.weight")
    changed = Images()
    changed.load_state_dict(model.state_dict())
    report = espalier.factorize(changed, {"head": 0.25})
    assert half.metric == pytest.approx(score(changed))
    assert half.relative_error == pytest.approx(report.layers[0].relative_error, rel=1e-4)
    weights, ours = report.layers[0].parameters
    assert half.density == pytest.approx(ours / weights)
    # At full rank the factors would cost more: it is the layer itself.
    assert (full.metric, full.relative_error) == (pytest.approx(found.baseline), 0.0)
    assert full.size_bytes == next(x for x in found.layers if x.name == "head.weight").size_bytes


def test_without_data_ranks_are_swept_on_the_weights(tmp_path):
    model = Images()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    grid = {"rank": (0.25, 0.5)}
    bare = bare_sensitivity(open_checkpoint(tmp_path / "m.pt"), grid, jobs=1)
    judged = espalier.sensitivity(model, None, grid, jobs=1)
    for one, other in zip(bare.points, judged.points, strict=True):
        assert (one.layer, one.value, one.density) == (other.layer, other.value, other.density)
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-4)
    with pytest.raises(InvalidArgument, match="filters: a bare checkpoint does not say"):
        bare_sensitivity(open_checkpoint(tmp_path / "m.pt"), {"filters": (0.5,)})


@pytest.mark.parametrize("jobs", [1, 2])
def test_filters_are_swept_a_group_at_a_time(jobs):
    torch.manual_seed(0)
    model = Images()
    found = espalier.sensitivity(model, score, {"filters": (0.5,), "bits": (4,)}, jobs=jobs)
    swept = {p.layer: p for p in found.points if p.axis == "filters"}
    assert list(swept) == ["left.weight", "head.weight"]  # right goes with left, fc has to stay
    assert {p.layer for p in found.points if p.axis == "bits"} == {
        f"{layer}.weight" for layer in ("left", "right", "head", "fc")
    }
    changed = Images()
    changed.load_state_dict(model.state_dict())
    espalier.prune_filters(changed, {"left": 0.5}, example=PICTURES[:1])
    assert swept["left.weight"].metric == pytest.approx(score(changed))
    assert swept["left.weight"].relative_error is None
    with pytest.raises(InvalidArgument, match="filters: which channels go together shows"):
        espalier.sensitivity(model, None, {"filters": (0.5,)}, jobs=1)
    with pytest.raises(InvalidArgument, match="evaluate does not call the model"):
        espalier.sensitivity(model, lambda m: 1.0, {"filters": (0.5,)}, jobs=1)


def test_what_comes_after_ranks_is_done_to_the_factors():
    torch.manual_seed(0)
    setting = {"head.weight": {"rank": 0.25, "density": 0.5, "bits": 3}, "fc.weight": {"bits": 2}}
    model = apply_setting(Images(), setting)
    for part in model.head:
        values = part.weight.detach()
        assert int(values.count_nonzero()) <= math.ceil(values.numel() / 2)
        assert values[values != 0].unique().numel() <= 2**3
    assert model.fc.weight.unique().numel() <= 2**2
    stages = stages_of(setting)
    assert stages == [
        {"factorize": {"rank": {"head.weight": 0.25}}},
        {"prune": {"density": {"head.*weight": 0.5}}},
        {"share": {"bits": {"head.*weight": 3, "fc.weight": 2}}},
    ]
    (point,) = espalier.sensitivity(
        Images(), None, {"rank": (0.25,)}, layers=["head"], jobs=1
    ).points
    assert point.sqnr_db is not None


def test_layers_are_chosen_by_pattern(model):
    sweep = espalier.sensitivity(model, None, {"bits": (2,)}, layers=["2"], jobs=1)
    assert {p.layer for p in sweep.points} == {"2.weight"}


def test_json_gives_the_sweep_back(model):
    sweep = espalier.sensitivity(model, Agreement(model), GRID, jobs=1)
    assert Sweep.from_json(json.loads(json.dumps(sweep.to_json()))) == sweep
    with pytest.raises(InvalidArgument, match="not a sweep"):
        Sweep.from_json({"version": 1})


def test_every_axis_has_a_grid_it_accepts():
    for cls in AXES:
        axis = cls()
        assert [axis.check(v) for v in axis.grid] == list(axis.grid)
        assert axis.parse(f"{axis.grid[0]:g}") == axis.grid[0]
