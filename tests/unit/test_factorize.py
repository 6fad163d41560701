"""Layers factored: what the factors compute, that files bring them back, what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier import zoo
from espalier.errors import FormatError, InvalidArgument, UnknownMethod
from espalier.structure.edit import edit_from_json
from espalier.structure.edits.factorize import factored_weight
from espalier.structure.spectrum import spectrum
from espalier.structure.vbmf import threshold, vbmf_rank


def low_rank(rows: int, columns: int, rank: int) -> torch.Tensor:
    return torch.randn(rows, rank) @ torch.randn(rank, columns)


def linear(weight: torch.Tensor) -> nn.Sequential:
    """A network of one linear layer with that weight."""
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
    model[0].weight.data = weight
    return model


def test_by_hand():
    # [[3, 0], [0, 1]] beside zeros: the best of rank 1 keeps the 3, and 9 of 10 of the energy.
    weight = torch.zeros(4, 6)
    weight[0, 0], weight[1, 1] = 3, 1
    model = linear(weight)
    bias = model[0].bias.detach().clone()
    report = espalier.factorize(model, 1)
    product = model[0][1].weight @ model[0][0].weight
    expected = torch.zeros(4, 6)
    expected[0, 0] = 3
    torch.testing.assert_close(product, expected)
    assert torch.equal(model[0][1].bias, bias)
    assert model[0][0].bias is None
    (layer,) = report.layers
    assert (layer.name, layer.method, layer.ranks, layer.full) == ("0", "svd", (1,), (4,))
    assert layer.parameters == (24, 4 + 6)
    assert layer.relative_error == pytest.approx((1 / 10) ** 0.5)
    assert report.parameters == (24 + 4, 10 + 4)
    assert (report.macs, layer.macs) == (None, None)
    assert espalier.edits_of(model)[0].describe() == ["0: svd of rank 1"]


def test_a_matrix_of_low_rank_is_found_out():
    torch.manual_seed(0)
    weight = low_rank(20, 30, 4)
    for how in ({"energy": 1.0}, {"rank": 4}, {"rank": "vbmf"}, {"rank": 0.2}):
        model = linear(weight.clone())
        x = torch.randn(5, 30)
        before = model(x)
        (layer,) = espalier.factorize(model, **how).layers
        assert layer.ranks == (4,), how
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


def test_energy_by_hand():
    found = spectrum(torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))[:, :3])
    np.testing.assert_allclose(found.energies, [4, 1, 1])
    assert [found.rank_for(e) for e in (0.1, 4 / 6, 0.7, 5 / 6, 0.9, 1.0)] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("rows", "columns"), [(60, 200), (200, 60), (100, 100)])
@pytest.mark.parametrize("rank", [0, 1, 5, 12])
def test_variational_bayes_finds_the_rank_under_noise(rows, columns, rank):
    rng = np.random.default_rng(rank)
    signal = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    noisy = 3 * signal + rng.normal(size=(rows, columns))
    energies = np.linalg.svd(noisy, compute_uv=False) ** 2
    assert vbmf_rank(energies, rows, columns) == rank
    assert vbmf_rank(1e-6 * energies, rows, columns) == rank


@pytest.mark.parametrize(("less", "more"), [(10, 10), (10, 40), (30, 2000)])
def test_the_threshold_is_where_keeping_a_component_begins_to_pay(less, more):
    # Nakajima et al. 2013: a component is kept if the free energy with it is less than without,
    # M log(g e / (M s2) + 1) + L log(g e / (L s2) + 1) + (-2 g e + L M c2) / s2 <= 0 at s2 = 1,
    # where e is its estimate and c2 the product of the variances of its priors.
    def difference(g2: float) -> float:
        g = g2**0.5
        mean = g2 - less - more
        root = (mean**2 - 4 * less * more) ** 0.5
        c2 = (mean + root) / (2 * less * more)
        e = (mean + root) / (2 * g)
        return (
            more * np.log(g * e / more + 1)
            + less * np.log(g * e / less + 1)
            - 2 * g * e
            + less * more * c2
        )

    limit = more * threshold(less / more)
    assert difference(limit * 1.001) < 0 < difference(limit * 0.999)


def test_files_bring_it_back(tmp_path):
    torch.manual_seed(0)
    model = zoo.lenet300().eval()
    report = espalier.factorize(model, {"fc1": 20, "fc2": 0.2})
    assert [layer.name for layer in report.layers] == ["fc1", "fc2"]
    assert [(s.name, s.reason) for s in report.skipped] == [("fc3", "no rank is set for it")]
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=zoo.lenet300().eval())
    x = torch.randn(3, 1, 28, 28)
    assert torch.equal(fresh(x), model(x))
    assert espalier.edits_of(fresh) == espalier.edits_of(model)
    assert isinstance(fresh.fc1, nn.Sequential)


IMAGE = torch.zeros(1, 3, 32, 32)


def test_methods_by_kind_of_layer():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv1d(16, 16, 5), nn.Linear(16, 16)
    )
    report = espalier.factorize(model, 0.25)
    assert [layer.method for layer in report.layers] == ["tucker2", "svd", "tucker2", "svd"]
    assert report.layers[0].ranks == (4, 1)
    assert [type(part) for part in model[2]] == [nn.Conv1d] * 3
    again = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 16))
    methods = {"0": "cp", "conv": "svd", "2": None}
    report = espalier.factorize(again, 2, method=methods)
    assert [layer.method for layer in report.layers] == ["cp", "svd"]
    assert [(s.name, s.reason) for s in report.skipped] == [("2", "no method is set for it")]
    assert [tuple(part.weight.shape) for part in again[0]] == [
        (2, 3, 1, 1),
        (2, 1, 3, 1),
        (2, 1, 1, 3),
        (16, 2, 1, 1),
    ]


def test_ranks_of_outputs_and_inputs():
    model = nn.Sequential(nn.Conv2d(8, 16, 3))
    espalier.factorize(model, {"0": (5, 3)})
    shapes = [tuple(part.weight.shape) for part in model[0]]
    assert shapes == [(3, 8, 1, 1), (5, 3, 3, 3), (16, 5, 1, 1)]
    assert espalier.edits_of(model)[0].describe() == ["0: tucker2 of rank 5, 3"]


@pytest.mark.parametrize(
    ("ranks", "shapes"),
    [
        ((5, 4), [(5, 4, 3, 3), (6, 5, 1, 1)]),
        ((6, 3), [(3, 4, 1, 1), (6, 3, 3, 3)]),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_factor_that_would_keep_the_channels_is_left_out(ranks, shapes, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias)).double()
    # Of the ranks that are asked for, so that the factors are exact.
    full, x = copy.deepcopy(model), torch.randn(2, 4, 9, 9, dtype=torch.float64)
    espalier.factorize(full, {"0": ranks})
    weight = factored_weight(full, "0")
    model[0].weight.data = weight.clone()
    again = copy.deepcopy(model)
    espalier.factorize(again, {"0": ranks})
    assert [tuple(part.weight.shape) for part in again[0]] == shapes
    assert [part.bias is not None for part in again[0]] == [False, bias]
    torch.testing.assert_close(again(x), model(x), rtol=1e-9, atol=1e-9)


def test_tucker_is_at_least_as_good_as_the_leading_vectors_alone():
    # The error of the truncated higher-order SVD is at most that of its two truncations together.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(12, 20, 3))
    weight = model[0].weight.detach()
    lost = 0.0
    for rank, matrix in ((6, weight.flatten(1)), (4, weight.transpose(0, 1).flatten(1))):
        lost += float(torch.linalg.svdvals(matrix)[rank:].square().sum())
    (layer,) = espalier.factorize(model, (6, 4)).layers
    assert layer.relative_error <= (lost / float(weight.square().sum())) ** 0.5


@pytest.mark.parametrize("what", ["parameters", "macs"])
@pytest.mark.parametrize("build", [zoo.resnet20, zoo.lenet5])
def test_a_budget_is_kept_and_nearly_used(what, build):
    torch.manual_seed(0)
    model = build()
    example = IMAGE if build is zoo.resnet20 else torch.zeros(1, 1, 28, 28)
    report = espalier.factorize(model, example=example, **{what: 0.5})
    before, after = getattr(report, what)
    assert 0.47 < after / before <= 0.5
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())
    assert model(example).shape == (1, 10)


def test_a_time_is_measured_and_kept(monkeypatch):
    # Time is what this says: half for what the layers cost, half for what nothing changes.
    asked = []

    def ratio(candidate, original, example):
        asked.append(sum(p.numel() for p in candidate.parameters()))
        return 0.5 + 0.5 * asked[-1] / sum(p.numel() for p in original.parameters())

    monkeypatch.setattr("espalier.structure.factorize.latency_ratio", ratio)
    torch.manual_seed(0)
    model, x = zoo.lenet300(), torch.zeros(1, 1, 28, 28)
    report = espalier.factorize(model, latency=0.75, example=x)
    assert 0.45 < report.parameters[1] / report.parameters[0] <= 0.5
    assert report.parameters[1] in asked
    with pytest.raises(InvalidArgument, match=r"latency: 0\.4 cannot be reached"):
        espalier.factorize(zoo.lenet300(), latency=0.4, example=x)


def test_a_real_clock():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2048, 2048), nn.Linear(2048, 2048))
    x = torch.randn(8, 2048)
    report = espalier.factorize(model, latency=0.6, example=x)
    assert report.parameters[1] < 0.9 * report.parameters[0]


def test_macs_by_hand():
    # 8 x 8 inputs, stride 2: the first 1x1 convolution is at all 64 places, the others at 16.
    model = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1))
    (layer,) = espalier.factorize(model, (4, 2), example=torch.zeros(3, 8, 8, 8)).layers
    assert layer.macs == (16 * 16 * 8 * 9, 64 * 2 * 8 + 16 * 4 * 2 * 9 + 16 * 16 * 4)


def test_what_would_cost_more_stays_and_is_listed():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 40), nn.Conv2d(4, 8, 3, stride=4))
    report = espalier.factorize(model, {"0": 5, "1": 4, "2": 1.0}, method="svd")
    assert [layer.name for layer in report.layers] == ["1"]
    assert {s.name: s.reason for s in report.skipped} == {
        "0": "svd at rank 5 has 100 weights, the layer 100",
        "2": "svd at rank 8 has 352 weights, the layer 288",
    }
    # Fewer weights, but at stride 4 the 1x1 convolution in front is at 16 times the places.
    wide = nn.Sequential(nn.Conv2d(16, 8, 3, stride=4))
    report = espalier.factorize(wide, (8, 8), example=torch.zeros(1, 16, 32, 32))
    assert "multiply-accumulates, the layer 73,728" in report.skipped[0].reason
    assert espalier.edits_of(wide) == ()


class Odd(nn.Module):
    """Layers that have to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 3)
        self.tied = nn.Linear(8, 8, bias=False)
        self.other = nn.Linear(8, 8, bias=False)
        self.other.weight = self.tied.weight
        self.masked = nn.Linear(8, 8)
        self.hooked = nn.Linear(8, 8)
        self.hooked.register_forward_hook(lambda *_: None)
        self.zero = nn.Linear(8, 8)
        nn.init.zeros_(self.zero.weight)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16)
        self.fine = nn.Linear(64, 64)
        espalier.prune(self, {"masked": 0.5})


def test_what_cannot_be_factored_is_listed_with_its_reason():
    model = Odd()
    report = espalier.factorize(model, 4)
    assert [layer.name for layer in report.layers] == ["fine"]
    reasons = {s.name: s.reason for s in report.skipped}
    encoder = "is read by its TransformerEncoderLayer, not only called"
    assert reasons == {
        "up": "a transposed convolution is not factored",
        "tied": "shares its weight with another layer",
        "masked": "is pruned or shared already; factorize before that",
        "hooked": "has hooks, which its factors would not have",
        "zero": "its weights are all zero",
        "encoder.self_attn": "a MultiheadAttention is not factored",
        "encoder.self_attn.out_proj": "a NonDynamicallyQuantizableLinear is not factored",
        "encoder.linear1": encoder,
        "encoder.linear2": encoder,
    }


def test_a_weight_that_is_read_and_not_called():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.called = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.called(nn.functional.linear(x, self.read.weight))

    report = espalier.factorize(Reads(), 2, example=torch.zeros(1, 8))
    assert [layer.name for layer in report.layers] == ["called"]
    assert report.skipped[0].reason.startswith("is not called on the example")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "give one of rank, energy, parameters, macs and latency"),
        ({"rank": 2, "energy": 0.5}, "give one of"),
        ({"rank": 0}, "rank must be a whole number above 0"),
        ({"rank": 1.5}, "rank must be"),
        ({"rank": True}, "rank must be"),
        ({"rank": "all"}, "rank must be"),
        ({"rank": {"conv1": (2, 0)}}, "'conv1': rank must be"),
        ({"rank": {"nothing*": 2}}, "the pattern 'nothing\\*' matches nothing"),
        ({"rank": {"linear": (2, 3)}}, "linear: svd takes 1 rank, not 2"),
        ({"rank": (1, 2, 3)}, "conv1: tucker2 takes 2 ranks, not 3"),
        ({"energy": 0.0}, "energy must be a number in"),
        ({"parameters": 1.5}, "parameters must be a number in"),
        ({"parameters": 0.001}, "parameters: 0.001 cannot be reached, rank 1 in every layer"),
        ({"macs": 0.5}, "macs needs an example"),
        ({"latency": 0.5}, "latency needs an example"),
        ({"latency": 0.5, "macs": 0.5}, "give one of parameters, macs, latency, not macs and"),
        ({"macs": 0.5, "example": torch.zeros(1, 5, 32, 32)}, "cannot be run on the example"),
        ({"rank": {"linear": 2}, "method": "cp"}, "no layer of the model can be factored"),
    ],
)
def test_wrong_use_is_said_and_changes_nothing(how, message):
    torch.manual_seed(0)
    model = zoo.resnet20()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidArgument, match=message):
        espalier.factorize(model, **how)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert espalier.edits_of(model) == ()


def test_more_that_is_refused():
    with pytest.raises(UnknownMethod, match="no factorization is called 'qr'; known are cp"):
        espalier.factorize(nn.Sequential(nn.Linear(4, 4)), 2, method="qr")
    with pytest.raises(InvalidArgument, match="is the whole model"):
        espalier.factorize(nn.Linear(4, 4), 2)
    broken = nn.Sequential(nn.Linear(4, 4))
    broken[0].weight.data[0, 0] = torch.nan
    with pytest.raises(InvalidArgument, match=r"0\.weight holds 1 values"):
        espalier.factorize(broken, 2)


def test_modes_dtypes_and_gradients_are_carried_over():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    model[1].eval()
    bias = model[1].bias
    espalier.factorize(model, 4, example=torch.zeros(1, 32, dtype=torch.bfloat16))
    assert model.training
    assert not model[1].training
    assert not model[1][0].training
    assert model[1][1].bias is bias
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert [p.requires_grad for p in model.parameters()] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("method", ["svd", "spatial_svd", "tucker2", "cp"])
def test_files_bring_every_method_back(method, tmp_path):
    torch.manual_seed(0)
    model = zoo.resnet20().eval()
    espalier.factorize(model, {"layer2*": 3, "layer3.0*": 2}, method=method)
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=zoo.resnet20().eval())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh(x), model(x))
    assert espalier.load(tmp_path / "m.esp", into=fresh) is fresh  # nothing is left to be done
    assert len(espalier.edits_of(copy.deepcopy(fresh))) == 1


def test_edits_stack_in_any_order(tmp_path):
    torch.manual_seed(0)
    model = zoo.resnet20().eval()
    x = torch.randn(2, 3, 32, 32)
    espalier.prune_filters(model, 0.75, example=IMAGE)
    espalier.factorize(model, energy=0.7, example=IMAGE)
    espalier.fold_batch_norms(model)
    espalier.factorize(model, {"layer3*.0": 2, "layer3*.2": 2})  # factors of factors
    espalier.prune_filters(model, {"layer2.1.conv1*": 0.5}, example=IMAGE)
    espalier.prune(model, 0.5)
    espalier.share(model, bits=4)
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=zoo.resnet20().eval())
    assert torch.equal(fresh(x), model(x))
    assert [edit.name for edit in espalier.edits_of(fresh)] == [
        "keep_channels",
        "factorize",
        "fold_batch_norm",
        "factorize",
        "keep_channels",
    ]
    onward = espalier.load(tmp_path / "m.esp", into=zoo.resnet20().eval(), trainable=True)
    assert torch.equal(onward(x), model(x))


def layered() -> nn.Sequential:
    """Convolutions with everything that can be merged into them, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.LocalResponseNorm(3),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    ).eval()


def test_filters_then_merging_then_factors_then_masks_and_codebooks(tmp_path):
    torch.manual_seed(0)
    model, x = layered(), torch.randn(32, 3, 16, 16)
    espalier.prune_filters(model, 0.75, example=x[:1])
    espalier.merge(model, x[:1], batches=[(x, None)])
    report = espalier.factorize(model, 0.4, example=x[:1])
    assert {layer.method for layer in report.layers} == {"tucker2", "svd"}
    espalier.prune(model, 0.5)
    espalier.share(model, bits=4)
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=layered())
    assert torch.equal(fresh(x), model(x))
    names = [edit.name for edit in espalier.edits_of(fresh)]
    assert names[0] == "keep_channels"
    assert names[-1] == "factorize"
    assert "streamline" in names


def test_edits_of_another_architecture_leave_the_model_as_it_was(tmp_path):
    model = zoo.resnet20()
    espalier.factorize(model, {"layer1*": 4})
    espalier.save(model, tmp_path / "m.esp")
    wide = zoo.resnet20()
    wide.layer1[0].conv1 = nn.Conv2d(16, 20, 3)
    grouped = zoo.resnet20()
    grouped.layer1[0].conv1 = nn.Linear(3, 3)
    for other, message in (
        (zoo.lenet5(), r"layer1.0.conv1.*another architecture"),
        (wide, r"layer1.0.conv1: has a weight of \[20, 16, 3, 3\], the edit is of a layer with"),
        (grouped, r"layer1.0.conv1: tucker2 is for convolutions"),
    ):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(InvalidArgument, match=message):
            espalier.load(tmp_path / "m.esp", into=other)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
        assert espalier.edits_of(other) == ()


@pytest.mark.parametrize(
    "layers",
    [
        {"a": {"of": [4, 4], "method": "qr", "ranks": [2]}},
        {"a": {"of": [4, 4], "method": "svd", "ranks": []}},
        {"a": {"of": [4, 4], "method": "svd", "ranks": [0]}},
        {"a": {"of": [4, "4"], "method": "svd", "ranks": [2]}},
        {"a": {"of": [4, 4], "method": "svd", "ranks": [2], "more": 1}},
        {"a": {"of": [4, 4], "ranks": [2]}},
        {"a": 3},
        [],
    ],
)
def test_edits_that_are_none(layers):
    with pytest.raises(FormatError, match="structural edit"):
        edit_from_json({"edit": "factorize", "layers": layers})


def test_ranks_out_of_range_in_a_file(tmp_path):
    model = nn.Sequential(nn.Linear(6, 4))
    for ranks in ([5], [1, 1]):
        edit = edit_from_json(
            {"edit": "factorize", "layers": {"0": {"of": [4, 6], "method": "svd", "ranks": ranks}}}
        )
        with pytest.raises(InvalidArgument, match=r"0: svd takes ranks of at most \[4\]"):
            edit.check(model)


def test_without_tensorly(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorly", None)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 8))
    with pytest.raises(espalier.MissingDependency, match=r"espalier\[structure\]"):
        espalier.factorize(model, 2)
    assert espalier.edits_of(model) == ()
    assert espalier.factorize(model, 2, method="svd").layers
