"""Filters removed: what goes with them, that nothing else changes, and that files bring it back."""

import copy

import pytest
import torch
from torch import nn

import espalier
from espalier import zoo
from espalier.errors import FormatError, InvalidArgument
from espalier.structure.budget import latency_ratio
from espalier.structure.channels import from_ranges, to_ranges
from espalier.structure.cost import cost
from espalier.structure.edit import edit_from_json
from espalier.structure.filter_criterion import FILTER_CRITERIA, FilterStats
from espalier.structure.graph import filter_groups

IMAGE = torch.zeros(1, 3, 32, 32)


class Inception(nn.Module):
    """Two branches that are concatenated, normalised, and read by a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.head = nn.Conv2d(10, 5, 3, stride=2)
        self.fc = nn.Linear(5 * 15 * 15, 7)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(torch.relu(self.head(torch.relu(self.norm(x)))).flatten(1))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 12, 3, groups=2)
        self.c = nn.Conv2d(12, 12, 3, groups=12)
        self.d = nn.Conv2d(12, 4, 1)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.c(torch.relu(self.b(x))))
        return self.d(x)


def silence(model: nn.Module, example: torch.Tensor, share: float) -> None:
    """Make the first filters of every group give zero, whatever comes in."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for group in filter_groups(model, example):
            if group.obstacle:
                continue
            width = group.filters // group.blocks
            count = width - max(1, round(width * share))
            gone = {b * width + i for b in range(group.blocks) for i in range(count)}
            for layer, side in group.outputs.items():
                index = [c for c, f in zip(side.channels, side.filters, strict=True) if f in gone]
                for name in ("weight", "bias", "running_mean"):
                    tensor = getattr(modules[layer], name, None)
                    if tensor is not None:
                        tensor[index] = 0


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (Inception, 32),
        (Grouped, 32),
        (zoo.resnet20, 32),
        (zoo.vgg16_cifar, 32),
        (zoo.lenet5, 28),
        pytest.param(zoo.squeezenet, 64, marks=pytest.mark.slow),
        pytest.param(zoo.mobilenet_v2, 64, marks=pytest.mark.slow),
        pytest.param(zoo.resnet50, 64, marks=pytest.mark.slow),
        pytest.param(zoo.googlenet, 64, marks=pytest.mark.slow),
    ],
)
def test_filters_that_give_zero_can_go_and_nothing_changes(build, size, tmp_path):
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 1 if build is zoo.lenet5 else 3, size, size)
    silence(model, x[:1], 0.5)
    before = model(x).detach()
    report = espalier.prune_filters(model, 0.5, example=x[:1])
    assert report.after.macs < report.before.macs
    assert report.after.parameters == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=build().eval())
    assert torch.equal(fresh(x), model(x))
    (edit,) = espalier.edits_of(model)
    assert [edit.makes_shapes_of(other) for other in espalier.edits_of(fresh)] == [True]


def test_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 1.0, -2.0]).view(3, 1, 1, 1))
    second = model[2].weight.clone()
    report = espalier.prune_filters(model, {"0": 0.67}, example=torch.zeros(1, 1, 2, 2))
    assert model[0].weight.flatten().tolist() == [3.0, -2.0]
    assert torch.equal(model[2].weight, second[:, [0, 2]])
    assert (report.before.macs, report.after.macs) == (4 * (3 + 6), 4 * (2 + 4))
    assert [(g.layers, g.filters, g.kept) for g in report.groups] == [(("0",), 3, 2)]
    assert [s.name for s in report.skipped] == ["2"]
    assert espalier.edits_of(model)[0].describe() == [
        "0: keeps 2 of 3 outputs",
        "2: keeps 2 of 3 inputs",
    ]


def test_scores_by_hand():
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.5]])
    norm = nn.BatchNorm2d(2)
    norm.weight.data = torch.tensor([-3.0, 1.0])
    pooled = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.2, 1.0], [0.9, 1.0]])
    stats = FilterStats(weight, norm, pooled, torch.tensor([0.25, 1.0]), torch.tensor([2.0, 1.0]))
    expected = {
        "l1": [3.0, 1.0],
        "l2": [5**0.5, 0.5**0.5],
        "batch-norm": [3.0, 1.0],
        "apoz": [0.75, 0.0],
        "taylor": [2.0, 1.0],
    }
    for name, scores in expected.items():
        found = FILTER_CRITERIA.make(name).score(stats)
        torch.testing.assert_close(found, torch.tensor(scores), msg=name)
    entropy = FILTER_CRITERIA.make("entropy", bins=2).score(stats)
    torch.testing.assert_close(
        entropy, torch.tensor([0.6931, 0.0], dtype=torch.float64), atol=1e-4, rtol=0
    )
    assert set(FILTER_CRITERIA.names()) == {*expected, "entropy"}


@pytest.mark.parametrize("criterion", FILTER_CRITERIA.names())
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_criterion_and_scope(criterion, scope):
    torch.manual_seed(0)
    model = zoo.resnet20()
    batches = [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))]
    report = espalier.prune_filters(
        model, 0.5, example=IMAGE, criterion=criterion, scope=scope, batches=batches
    )
    assert model(IMAGE).shape == (1, 10)
    assert sum(g.kept for g in report.groups) < sum(g.filters for g in report.groups)
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_taylor_sees_what_the_loss_depends_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        model[3].weight.view(2, 4, 36)[:, 1] = 0  # the loss does not depend on filter 1
    batches = [(torch.randn(16, 1, 8, 8), torch.randint(0, 2, (16,)))]
    kept = {"0": 0.75}
    espalier.prune_filters(
        model, kept, example=torch.zeros(1, 1, 8, 8), criterion="taylor", batches=batches
    )
    assert espalier.edits_of(model)[0].layers["0"]["out"] == "0,2-3"


@pytest.mark.parametrize("target", ["macs", "parameters"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_budget_is_kept_and_nearly_used(target, scope):
    torch.manual_seed(0)
    model = zoo.vgg16_cifar()
    report = espalier.prune_filters(model, example=IMAGE, scope=scope, **{target: 0.4})
    share = getattr(report.after, target) / getattr(report.before, target)
    assert 0.37 < share <= 0.4


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (torch.nn.Conv2d(3, 8, 3), (3, 8, 8), 3 * 9 * 8 * 36),
        (torch.nn.Conv1d(3, 8, 3), (3, 8), 3 * 3 * 8 * 6),
        (torch.nn.ConvTranspose2d(3, 8, 3), (3, 8, 8), 3 * 9 * 8 * 64),
        (torch.nn.Linear(4, 5), (4,), 20),
        (torch.nn.Linear(4, 5), (2, 7, 4), 7 * 20),
    ],
)
def test_multiply_accumulates_by_hand(model, shape, macs):
    assert cost(model, torch.zeros(shape)).macs == macs
    if len(shape) == len(model.weight.shape) - 1:  # the same with a batch axis
        assert cost(model, torch.zeros(4, *shape)).macs == macs


def test_measured_time_is_a_budget(monkeypatch):
    torch.manual_seed(0)
    model, example, seen = zoo.vgg16_cifar(), torch.zeros(4, 3, 32, 32), []

    def ratio(candidate, original, given):
        assert original is model
        assert given is example
        seen.append(candidate)
        return cost(candidate, IMAGE).macs / cost(original, IMAGE).macs  # as if time were that

    monkeypatch.setattr("espalier.structure.budget.latency_ratio", ratio)
    report = espalier.prune_filters(model, example=example, latency=0.4)
    assert 0.3 < report.after.macs / report.before.macs <= 0.4
    assert len(seen) == 8  # the narrowest, and seven halvings
    assert len(espalier.edits_of(model)) == 1


def test_the_ratio_of_a_network_that_does_a_tenth_is_less_than_one():
    wide, narrow = nn.Linear(2000, 2000), nn.Linear(2000, 20)
    assert latency_ratio(narrow, wide, torch.zeros(8, 2000)) < 0.7


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_layer_by_layer_ranks_each_group_when_its_turn_comes(criterion):
    torch.manual_seed(0)
    model = zoo.resnet20()
    batches = [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))]
    keep = {"*": None, "layer1.*": 0.5, "layer2.1.conv1": 0.25, "layer3.0.conv1": 1.0}
    seen = []
    for group in espalier.prune_filters_layerwise(
        model, keep, example=IMAGE, criterion=criterion, batches=batches
    ):
        seen.append((group.layers, group.filters, group.kept))
        if group.layers == ("layer1.0.conv1",):  # as if retraining had made two filters important
            with torch.no_grad():
                model.layer1[1].conv1.weight.zero_()
                model.layer1[1].conv1.weight[[3, 7, 8, 9, 12, 13, 14, 15]] = 1
    assert seen == [
        (("layer1.0.conv1",), 16, 8),
        (("layer1.1.conv1",), 16, 8),
        (("layer1.2.conv1",), 16, 8),
        (("layer2.1.conv1",), 32, 8),
    ]
    if criterion == "l1":
        assert espalier.edits_of(model)[1].layers["layer1.1.conv1"]["out"] == "3,7-9,12-15"
    assert len(espalier.edits_of(model)) == 4
    assert model(IMAGE).shape == (1, 10)


def test_what_cannot_be_removed_is_listed_with_its_reason():
    model = zoo.resnet20()
    report = espalier.prune_filters(model, 0.5, example=IMAGE)
    reasons = {s.name: s.reason for s in report.skipped}
    assert reasons["linear"] == "its outputs are the network's"
    assert "filters and not 16" in reasons["conv1"]  # its shortcuts pad channels
    assert {g.layers for g in report.groups} == {
        (f"layer{i}.{j}.conv1",) for i in (1, 2, 3) for j in (0, 1, 2)
    }


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"keep": 0.0}, "keep must be a number in"),
        ({"keep": {"nothing*": 0.5}}, "nothing"),
        ({}, "give one of keep, macs, parameters and latency"),
        ({"macs": 0.5, "latency": 0.5}, "give one of macs, parameters, latency, not macs and lat"),
        ({"latency": 1.5}, r"latency must be a number in \(0, 1\], not 1.5"),
        ({"keep": 0.5, "macs": 0.5}, "give one of"),
        ({"keep": 0.5, "scope": "all"}, "scope must be"),
        ({"keep": 0.5, "criterion": "entropy"}, "needs batches"),
        ({"keep": 0.5, "criterion": "entropy", "batches": []}, "no batches were given"),
        ({"keep": {"linear": 0.5}}, "no filter of the model can be removed"),
        ({"keep": {"*": 0.5, "layer1*": 0.3}, "scope": "global"}, "takes one value"),
        ({"keep": 0.5, "example": torch.zeros(1, 5, 32, 32)}, "cannot be run on the example"),
        ({"macs": 0.0001}, "cannot be reached"),
    ],
)
def test_wrong_use_is_said_and_changes_nothing(how, message):
    torch.manual_seed(0)
    model = zoo.resnet20()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidArgument, match=message):
        espalier.prune_filters(model, **{"example": IMAGE} | how)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert espalier.edits_of(model) == ()


def test_weights_that_are_masked_or_tied_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    espalier.prune(model, {"0": 0.5})
    with pytest.raises(InvalidArgument, match="pruned or shared already"):
        espalier.prune_filters(model, {"0": 0.5}, example=IMAGE)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1))
    model[1].weight = model[0].weight
    with pytest.raises(InvalidArgument, match="shares its weight"):
        espalier.prune_filters(model, {"0": 0.5}, example=IMAGE)


def test_edits_stack_with_masks_and_codebooks(tmp_path):
    torch.manual_seed(0)
    model = zoo.resnet20().eval()
    espalier.prune_filters(model, 0.5, example=IMAGE)
    espalier.prune_filters(model, {"layer3*": 0.5}, example=IMAGE)
    espalier.prune(model, 0.3)
    espalier.share(model, bits=4)
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=zoo.resnet20().eval())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh(x), model(x))
    assert len(espalier.edits_of(fresh)) == 2
    again = espalier.load(tmp_path / "m.esp", into=fresh)
    assert torch.equal(again(x), model(x))
    assert len(espalier.edits_of(copy.deepcopy(model))) == 2


def test_edits_of_another_architecture_leave_the_model_as_it_was(tmp_path):
    model = zoo.resnet20()
    espalier.prune_filters(model, 0.5, example=IMAGE)
    espalier.save(model, tmp_path / "m.esp")
    other = zoo.lenet5()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InvalidArgument, match=r"layer1.0.conv1.*another architecture"):
        espalier.load(tmp_path / "m.esp", into=other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    wide = zoo.resnet20()
    wide.layer1[0].conv1 = nn.Conv2d(16, 20, 3)
    with pytest.raises(InvalidArgument, match=r"layer1.0.conv1: has 16 inputs and 20 outputs"):
        espalier.load(tmp_path / "m.esp", into=wide)
    pruned = zoo.resnet20()
    espalier.prune_filters(pruned, 0.25, example=IMAGE)
    with pytest.raises(InvalidArgument, match="changed in another way"):
        espalier.load(tmp_path / "m.esp", into=pruned)


def test_ranges():
    assert from_ranges(to_ranges([0, 2, 3, 4, 9]), 10) == [0, 2, 3, 4, 9]
    for wrong in ("", "a", "3-1", "1,1", "5", "0-99999999999", "-1"):
        with pytest.raises(InvalidArgument):
            from_ranges(wrong, 5)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {"edit": "no such"},
        {"edit": "keep_channels"},
        {"edit": "keep_channels", "layers": {}, "more": 1},
        {"edit": "keep_channels", "layers": {"a": {"of": [1, "x"]}}},
        {"edit": "keep_channels", "layers": {"a": {"of": [8, 8], "out": "0-9"}}},
        {"edit": "keep_channels", "layers": {"a": 3}},
    ],
)
def test_edits_that_are_none(plain):
    with pytest.raises(FormatError, match="structural edit"):
        edit_from_json(plain)


def test_a_file_tells_how_many_channels_stay_and_a_model_which(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 200, 1), nn.ReLU(), nn.Conv2d(200, 2, 1))
    with torch.no_grad():
        model[0].weight[::2] *= 100  # every other filter stays
    espalier.prune_filters(model, {"0": 0.5}, example=torch.zeros(1, 3, 4, 4))
    (edit,) = espalier.edits_of(model)
    assert edit.layers["0"]["out"].startswith("0,2,4,")
    assert edit.for_file(model).layers == {
        "0": {"of": [3, 200], "out": "0-99"},
        "2": {"of": [200, 2], "in": "0-99"},
    }
    assert edit.makes_shapes_of(edit.for_file(model))
    espalier.save(model, tmp_path / "m.esp")
    fresh = nn.Sequential(nn.Conv2d(3, 200, 1), nn.ReLU(), nn.Conv2d(200, 2, 1))
    espalier.load(tmp_path / "m.esp", into=fresh)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(fresh(x), model(x))
    espalier.load(tmp_path / "m.esp", into=model)  # it has seen this edit
    assert torch.equal(fresh(x), model(x))
