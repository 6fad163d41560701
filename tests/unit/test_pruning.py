"""``espalier.prune`` and ``Pruner`` on small models."""

import pytest
import torch
from torch import nn

import espalier
from espalier.errors import InvalidArgument, UnknownMethod
from espalier.parametrization import Mask
from espalier.pruning import CRITERIA, Stats


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))


def zeros(model: nn.Module) -> dict[str, int]:
    layers = {n: m for n, m in model.named_children() if hasattr(m, "weight")}
    return {n: int((m.weight == 0).sum()) for n, m in layers.items()}


def test_default_takes_weights_and_leaves_biases_and_norms_alone():
    model = network()
    report = espalier.prune(model, density=0.5)
    assert [layer.name for layer in report.layers] == ["0.weight", "3.weight"]
    assert zeros(model) == {"0": 24, "1": 0, "3": 12}
    assert report.density == 0.5


def test_smallest_magnitudes_go():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -3.0, 2.0, -0.2]]))
    espalier.prune(layer, density=0.5)
    assert layer.weight.tolist() == [[0.0, -3.0, 2.0, 0.0]]
    assert not torch.signbit(layer.weight[layer.weight == 0]).any()


def test_values_by_kind_and_by_name_and_what_has_none_is_listed():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 8), nn.Linear(8, 4), nn.Embedding(4, 4))
    report = espalier.prune(model, density={"conv": 1.0, "linear": 0.5, "2": 0.25})
    kept = {layer.name: layer.kept for layer in report.layers}
    assert kept == {"0.weight": 36, "1.weight": 16, "2.weight": 8}
    assert [(s.name, s.reason) for s in report.skipped] == [
        ("3.weight", "no density is set for it")
    ]


def test_other_parameters_only_when_named():
    model = network()
    espalier.prune(model, density={"*.bias": 0.5})
    assert int((model[0].bias == 0).sum()) == 3
    assert int((model[1].bias == 0).sum()) == 6  # all zero from the start
    assert isinstance(model[0].parametrizations["bias"][0], Mask)
    assert zeros(model) == {"0": 0, "1": 0, "3": 0}


def test_wildcards_on_weights_spare_norms():
    model = network()
    espalier.prune(model, density={"*.weight": 0.5})
    assert zeros(model) == {"0": 24, "1": 0, "3": 12}


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_of_all_dimensions(layer):
    model = layer(2, 4, 3)
    espalier.prune(model, density=0.25)
    assert int(model.weight.count_nonzero()) == round(model.weight.numel() / 4)


@pytest.mark.parametrize("layer", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_transposed_convolutions(layer):
    model = layer(2, 4, 3)
    espalier.prune(model, density=0.5)
    assert int(model.weight.count_nonzero()) == model.weight.numel() // 2


def test_tied_weights_are_one_weight():
    embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleList([embedding, head])
    report = espalier.prune(model, density=0.5)
    assert [layer.name for layer in report.layers] == ["0.weight"]
    assert torch.equal(embedding.weight, head.weight)
    assert len(list(model.parameters())) == 1
    head(embedding(torch.arange(10))).sum().backward()
    espalier.finalize(model)
    assert embedding.weight is head.weight
    assert int((head.weight == 0).sum()) == 20


def test_shared_modules_are_one_weight():
    block = nn.Linear(4, 4)
    report = espalier.prune(nn.Sequential(block, nn.ReLU(), block), density=0.5)
    assert len(report.layers) == 1


def test_pruning_again_never_brings_a_weight_back():
    model = network()
    espalier.prune(model, density=0.5)
    before = model[0].weight != 0
    espalier.prune(model, density=0.25)
    after = model[0].weight != 0
    assert int(after.sum()) == 12
    assert not (after & ~before).any()


def test_lamp_compares_layers():
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -2.0, 1.0]]))
        model[1].weight.copy_(torch.tensor([[0.1, -0.1]]))
    scores = [CRITERIA.make("lamp").score(layer.weight, Stats()) for layer in model]
    torch.testing.assert_close(scores[0], torch.tensor([[1, 4 / 13, 1 / 14]], dtype=torch.float64))
    torch.testing.assert_close(scores[1], torch.tensor([[1, 0.5]], dtype=torch.float64))
    assert not CRITERIA.make("lamp").score(torch.zeros(2, 2), Stats()).any()
    espalier.prune(model, density=0.6, criterion="lamp", scope="global")
    assert [int(layer.weight.count_nonzero()) for layer in model] == [1, 2]


def test_quality_is_a_threshold_in_standard_deviations():
    layer = nn.Linear(100, 100, bias=False)
    espalier.prune(layer, quality=1.0)
    weight = layer.parametrizations.weight.original
    expected = weight.abs() >= weight.std(correction=0)
    assert torch.equal(layer.weight != 0, expected)


def test_global_scope_compares_layers():
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(100)
    espalier.prune(model, density=0.7, scope="global")
    assert zeros(model)["0"] < 24
    assert zeros(model)["3"] > 12
    assert sum(zeros(model).values()) == 72 - round(0.7 * 72)


def test_global_scope_takes_one_density():
    with pytest.raises(
        InvalidArgument, match=r"one density for all layers, not several: 0\.1, 0\.5"
    ):
        espalier.prune(network(), density={"0": 0.1, "3": 0.5}, scope="global")


def test_random_choice_stays_near_the_threshold():
    weight = torch.linspace(0.01, 1, 1000)
    generator = torch.Generator().manual_seed(0)
    scores = CRITERIA.make("magnitude-random", width=0.02).score(weight, Stats(generator=generator))
    kept = scores >= scores.kthvalue(501).values
    assert not kept[:350].any()
    assert kept[-350:].all()
    assert not torch.equal(kept, weight >= weight.kthvalue(501).values)


def test_second_order_prunes_what_the_loss_does_not_feel():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[5.0, 0.5], [5.0, 0.5]]))
    x = torch.stack([torch.zeros(64), torch.randn(64)], 1)  # the first input is always 0
    espalier.prune(layer, density=0.5, criterion="obd", batches=[(x, torch.zeros(64).long())])
    assert (layer.weight != 0).tolist() == [[False, True], [False, True]]


def test_fisher_is_the_mean_of_squared_gradients():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4), torch.randn(10, 3), torch.randint(0, 4, (10,))
    fisher = espalier.diagonal_fisher(model, [(x[:7], y[:7]), (x[7:], y[7:])], chunk=4)
    expected = torch.zeros(4, 3)
    for i in range(10):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        expected += model.weight.grad**2 / 10
    torch.testing.assert_close(fisher[model.weight], expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"density": 0.0}, InvalidArgument, r"density must be a number in \(0, 1\], not 0\.0"),
        ({"density": 1.5}, InvalidArgument, "not 1.5"),
        ({"density": float("nan")}, InvalidArgument, "not nan"),
        ({"density": True}, InvalidArgument, "not True"),
        ({"density": {"cnv*": 0.5}}, InvalidArgument, r"'cnv\*' matches nothing"),
        ({"density": 0.5, "scope": "world"}, InvalidArgument, "scope must be"),
        ({"density": 0.5, "criterion": "magic"}, UnknownMethod, "no criterion is called 'magic'"),
        ({"density": 0.5, "criterion": "obd"}, InvalidArgument, "needs batches"),
        ({}, InvalidArgument, "either density or quality"),
        ({"density": 0.5, "quality": 1.0}, InvalidArgument, "either density or quality"),
        ({"quality": -1.0}, InvalidArgument, "quality must be a number of at least 0"),
    ],
)
def test_wrong_options_leave_the_model_as_it_was(options, error, message):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=message):
        espalier.prune(model, **options)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nan_is_refused_by_name():
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    with pytest.raises(InvalidArgument, match=r"3\.weight holds 1 values that are NaN"):
        espalier.prune(model, density=0.5)
    assert not hasattr(model[0], "parametrizations")


def test_what_cannot_be_pruned_is_listed_with_its_reason():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    report = espalier.prune(model, density=0.5)
    assert [layer.name for layer in report.layers] == ["1.weight"]
    (skipped,) = report.skipped
    assert skipped.name == "0.weight"
    assert "several parameters" in skipped.reason


def test_surgery_lets_a_weight_come_back_and_counts_stay_exact():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    pruner = espalier.Pruner(layer, 0.5, schedule="surgery", steps=4, every=1, ramp=0.0, margin=0.0)
    pruner.step()
    assert layer.weight.tolist() == [[4.0, 3.0, 0.0, 0.0]]
    layer.weight.sum().backward()  # the gradient reaches pruned weights
    latent = layer.parametrizations.weight.original
    assert latent.grad.tolist() == [[1.0, 1.0, 1.0, 1.0]]
    with torch.no_grad():
        latent[0, 3] = 9.0
    pruner.step()
    assert layer.weight.tolist() == [[4.0, 0.0, 0.0, 9.0]]
    for _ in range(3):
        pruner.step()
    assert pruner.done
    assert not layer.parametrizations.weight[0].straight_through


def test_a_kept_weight_wins_within_the_margin():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.9]]))
    pruner = espalier.Pruner(layer, 0.5, schedule="surgery", steps=9, every=1, ramp=0.0, margin=0.5)
    pruner.step()
    with torch.no_grad():
        layer.parametrizations.weight.original[0, 1] = 1.4
    pruner.step()
    assert (layer.weight != 0).tolist() == [[True, False]]
    with torch.no_grad():
        layer.parametrizations.weight.original[0, 1] = 1.6
    pruner.step()
    assert (layer.weight != 0).tolist() == [[False, True]]


def test_a_resumed_pruner_goes_on_where_it_was():
    def run(interrupt: bool) -> torch.Tensor:
        torch.manual_seed(1)
        model = nn.Linear(16, 16)
        options = {"schedule": "rounds", "rounds": 4, "every": 3, "criterion": "magnitude-random"}
        pruner = espalier.Pruner(model, 0.1, **options)
        for step in range(12):
            if interrupt and step == 5:
                state, kept = model.state_dict(), pruner.state_dict()
                model = espalier.attach(nn.Linear(16, 16), state)
                pruner = espalier.Pruner(model, 0.1, **options)
                pruner.load_state_dict(kept)
            pruner.step()
        assert pruner.done
        return model.weight.detach()

    assert torch.equal(run(False), run(True))


def test_shared_weights_cannot_regrow():
    model = nn.Linear(8, 8)
    espalier.share(model, bits=2)
    with pytest.raises(InvalidArgument, match="shared cannot regrow"):
        espalier.Pruner(model, 0.5, schedule="surgery")


def test_pruning_after_sharing_keeps_both():
    model = nn.Linear(8, 8)
    espalier.share(model, bits=2)
    espalier.prune(model, density=0.25)
    assert int(model.weight.count_nonzero()) == 16
    assert model.weight.unique().numel() <= 5


def test_recurrent_cells_are_pruned_and_recurrent_layers_are_listed():
    model = nn.ModuleList([nn.GRUCell(4, 4), nn.LSTM(4, 4)])
    report = espalier.prune(model, density=0.5)
    assert [layer.name for layer in report.layers] == ["0.weight_ih", "0.weight_hh"]
    assert [s.name for s in report.skipped] == ["1.weight_ih_l0", "1.weight_hh_l0"]
    assert "flat list" in report.skipped[0].reason
    assert model[0](torch.randn(2, 4)).shape == (2, 4)
    assert int(model[0].weight_ih.count_nonzero()) == 24


def test_weights_without_values_are_listed():
    model = nn.Sequential(nn.Linear(4, 4, device="meta"), nn.LazyLinear(4), nn.Linear(4, 4))
    report = espalier.prune(model, density=0.5)
    assert [s.reason.split(":")[0] for s in report.skipped] == [
        "it is on the meta device, where it has no values",
        "it is not initialised yet",
    ]
