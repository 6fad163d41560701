"""The studies of Deep Compression: what each case is, what is kept, what is found."""

import json
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from espalier.analysis.study import Study, StudyPoint, study
from espalier.analysis.study_cases import FIGURES, Case, Tuning, cases, cut
from espalier.analysis.study_report import findings, study_tables
from espalier.errors import InvalidArgument
from espalier.samples import Samples
from espalier.targets import find_targets

X = torch.randn(256, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def small():
    """Made of torch's own classes, so that another process can unpack it."""
    layers = {"conv": nn.Conv2d(1, 8, 3), "relu": nn.ReLU(), "flat": nn.Flatten()}
    layers |= {"fc": nn.Linear(128, 32), "relu2": nn.ReLU(), "out": nn.Linear(32, 4)}
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return small()


@pytest.fixture
def evaluate(model):
    with torch.no_grad():
        labels = model(X).argmax(1)

    def agreement(changed):
        with torch.no_grad():
            return 100 * float((changed(X).argmax(1) == labels).float().mean())

    return agreement


def test_every_figure_without_training(model, evaluate):
    found = study(model, evaluate, jobs=1)
    assert found.baseline == 100.0
    assert {p.case.figure for p in found.points} == set(FIGURES)
    assert not any(p.case.tuned for p in found.points)
    assert {p.case.series for p in found.of("bits")} == {
        "conv, trained",
        "conv, pruned",
        "fc, trained",
        "fc, pruned",
    }
    for point in found.points:
        assert point.share == point.file_bytes / found.original_bytes
    eight, one = (found.of("compression", "sharing")[i] for i in (0, -1))
    assert (eight.case.conv_bits, one.case.fc_bits) == (8, 1)
    assert eight.metric > one.metric
    assert eight.file_bytes > one.file_bytes
    assert Study.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert all(f.paper in study_tables(found) or f.here for f in findings(found))


def test_two_processes_find_what_one_finds(model, evaluate):
    figures = ["bits", "table"]
    one, two = (study(model, evaluate, figures=figures, jobs=jobs) for jobs in (1, 2))
    strip = [[(p.case, p.metric, p.file_bytes) for p in s.points] for s in (one, two)]
    assert strip[0] == strip[1]


def test_with_training_points_are_kept_and_not_made_again(model, evaluate, tmp_path):
    with torch.no_grad():
        data = Samples(X, model(X).argmax(1))
    tuning = Tuning(batch_size=32, samples=64)
    options = {"figures": ["table"], "tuning": tuning, "jobs": 1, "keep": tmp_path / "p.jsonl"}
    calls = []

    def counting(changed):
        calls.append(changed)
        return evaluate(changed)

    first = study(model, counting, data, **options)
    assert len(calls) == 2 + 3
    assert all(p.case.tuned for p in first.points)
    assert study(model, counting, data, **options).points == first.points
    assert len(calls) == 5
    with pytest.raises(InvalidArgument, match="points of another tuning"):
        study(model, counting, data, **(options | {"tuning": replace(tuning, lr=0.1)}))


def test_training_moves_centroids_and_keeps_zeros_and_rank(model):
    with torch.no_grad():
        data = Samples(X, model(X).argmax(1))
    tuning = Tuning(batch_size=32)
    case = Case("", "", 0, density=0.2, conv_bits=2, fc_bits=3, tuned=True)
    cut(model, case, data, tuning)
    weights = [t.value for t in find_targets(model) if t.by_default]
    kept = sum(int(w.count_nonzero()) for w in weights)
    assert kept <= 0.2 * sum(w.numel() for w in weights) + 1
    assert model.conv.weight.unique().numel() <= 2**2 + 1
    assert model.fc.weight.unique().numel() <= 2**3 + 1
    other = small()
    cut(other, Case("", "", 0, energy=0.6, tuned=True), data, tuning)
    product = other.fc[1].weight @ other.fc[0].weight
    assert torch.linalg.matrix_rank(product.detach()) == other.fc[0].out_features < 32


def test_a_point_of_low_rank_is_a_file_of_factors(model, evaluate):
    found = study(model, evaluate, figures=["compression"], jobs=1)
    weight = model.fc.weight.detach()
    squares = torch.linalg.svdvals(weight).square()
    rank = int((squares.cumsum(0) < 0.4 * squares.sum()).sum()) + 1
    cut(model, Case("", "", 0, energy=0.4, method="svd"), None, None)
    left, right = model.fc[1].weight.detach(), model.fc[0].weight.detach()
    assert left.shape == (32, rank)
    lost = float((left @ right - weight).square().sum())
    assert lost == pytest.approx(float(squares[rank:].sum()), rel=1e-4)
    (point,) = (p for p in found.of("compression", "truncated SVD") if p.case.energy == 0.4)
    assert point.file_bytes < 4 * sum(p.numel() for p in model.parameters()) + 1500
    shares = [p.share for p in found.of("compression", "Tucker-2")]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 7


def test_some_series_alone(model, evaluate):
    options = {"figures": ["compression"], "jobs": 1}
    found = study(model, evaluate, series=["Tucker-2", "pruning"], **options)
    assert list(dict.fromkeys(p.case.series for p in found.points)) == ["pruning", "Tucker-2"]
    assert findings(found) == []
    with pytest.raises(InvalidArgument, match=r"series of these figures are pruning.*; not SVD"):
        study(model, evaluate, series=["SVD"], **options)


def test_a_pruned_network_can_be_studied_too(model, evaluate):
    cut(model, Case("", "", 0, density=0.5), None, None)
    cut(model, Case("", "", 0, energy=0.5), None, None)
    assert isinstance(model.fc, nn.Sequential)


def test_a_network_without_convolutions(evaluate):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))
    found = study(plain, lambda m: float(m(X).sum()), figures=["bits", "table"], jobs=1)
    assert {p.case.series for p in found.of("bits")} == {"fc, trained", "fc, pruned"}
    assert findings(found)


def made(points):
    """A study of given (figure, series, x, metric, share)."""
    return Study(
        "accuracy",
        "",
        99.0,
        99.0,
        1000,
        None,
        tuple(
            StudyPoint(Case(figure, series, x), metric, int(1000 * share), share, 0.0)
            for figure, series, x, metric, share in points
        ),
    )


def test_findings_hold_where_the_numbers_say_so():
    points = [
        ("bits", f"{kind}, {base}", x, 99.0 if x >= enough else 90.0, 0.5)
        for kind, enough in (("conv", 4), ("fc", 2))
        for base in ("trained", "pruned")
        for x in (1, 2, 3, 4, 5)
    ]
    points += [("compression", "pruning", 0.1, 98.9, 0.08)]
    points += [("compression", "sharing", 4, 98.8, 0.09)]
    points += [("compression", "pruning and sharing", 0.1, 98.9, 0.03)]
    points += [("compression", "truncated SVD", 0.1, 98.9, 0.4)]
    assert all(f.holds for f in findings(made(points)))
    worse = [(f, s, x, 99.0 if s == "fc, trained" else m, z) for f, s, x, m, z in points]
    worse = [(f, s, x, m, 0.2 if s == "pruning and sharing" else z) for f, s, x, m, z in worse]
    failed = {f.paper for f in findings(made(worse)) if not f.holds}
    assert any("both together hold to a smaller size" in paper for paper in failed)
    assert any("pruning does not hurt" in paper for paper in failed)


@pytest.mark.parametrize("figures", [["nine"], []])
def test_figures_that_there_are_not(model, evaluate, figures):
    with pytest.raises(InvalidArgument, match="figures are compression, bits"):
        study(model, evaluate, figures=figures, jobs=1)


def test_cases_are_each_once():
    found = cases(FIGURES, ("conv", "linear"), tuned=True)
    assert len(set(found)) == len(found)
