"""``espalier.share``, refreshed codes, and sharing layer by layer."""

import pytest
import torch
from torch import nn

import espalier
from espalier.errors import InvalidArgument


def layer(values: list[float]) -> nn.Linear:
    linear = nn.Linear(len(values), 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([values]))
    return linear


def test_two_clusters_by_hand():
    model = layer([0.0, 0.2, 1.0, 1.2])
    report = espalier.share(model, bits=1)
    torch.testing.assert_close(model.weight, torch.tensor([[0.1, 0.1, 1.1, 1.1]]))
    assert report.layers[0].sse == pytest.approx(0.04)
    assert report.layers[0].levels == 2


def test_pruned_weights_take_no_part():
    model = layer([0.0, 0.2, 1.0, 1.2])
    espalier.prune(model, density=0.5)
    espalier.share(model, bits=1)
    torch.testing.assert_close(model.weight, torch.tensor([[0.0, 0.0, 1.0, 1.2]]))


@pytest.mark.parametrize("init", ["linear", "density", "random", "kmeans++", "gaussian", "sample"])
def test_any_initialisation(init):
    torch.manual_seed(0)
    model = nn.Linear(32, 32)
    espalier.share(model, bits=3, init=init)
    assert 1 < model.weight.unique().numel() <= 8


def test_empty_clusters_are_reseeded_and_counted():
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    espalier.prune(model, density=0.1)  # nothing is left around zero: linear steps there are empty
    levels = {}
    for reseed in (True, False):
        twin = espalier.attach(nn.Linear(64, 64), model.state_dict())
        layer = espalier.share(twin, bits=5, init="linear", reseed=reseed).layers[0]
        levels[reseed] = layer.levels
        assert (layer.reseeded > 0) == reseed
    assert levels[False] < levels[True] == 32


@pytest.mark.parametrize("values", [[0.5] * 4, [1.0], [0.0, 0.0]])
def test_fewer_distinct_values_than_centroids(values):
    model = layer(values)
    before = model.weight.detach().clone()
    espalier.share(model, bits=5)
    assert torch.equal(model.weight, before)


def test_importance_pulls_the_centroid():
    model = layer([0.0, 1.0])
    weights = {model.weight: torch.tensor([[3.0, 1.0]])}
    espalier.share(model, bits={"weight": 1}, importance=weights)
    assert model.weight.tolist() == [[0.0, 1.0]]
    model = layer([0.0, 1.0, 10.0])
    espalier.share(model, bits=1, importance={model.weight: torch.tensor([[3.0, 1.0, 1.0]])})
    torch.testing.assert_close(model.weight, torch.tensor([[0.25, 0.25, 10.0]]))


@pytest.mark.parametrize("bits", [0, 17, 4.0, True, "8"])
def test_bits_out_of_range(bits):
    with pytest.raises(InvalidArgument, match="bits must be an integer from 1 to 16"):
        espalier.share(nn.Linear(4, 4), bits=bits)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = bad
    with pytest.raises(InvalidArgument, match=r"1\.weight holds 1 values"):
        espalier.share(model, bits=2)
    assert not hasattr(model[0], "parametrizations")


def test_refreshed_codes_follow_the_latent_weights():
    model = layer([0.0, 0.2, 1.0, 1.2])
    espalier.share(model, bits=1, refreshable=True)
    refresher = espalier.Refresher(model, every=2)
    with torch.no_grad():
        model.parametrizations.weight.original[0, 0] = 0.9
    assert refresher.step() == 0
    assert refresher.step() == 1
    torch.testing.assert_close(model.weight, torch.tensor([[1.1, 0.1, 1.1, 1.1]]))
    assert refresher.step() == 0


def test_the_gradient_reaches_codebook_and_latent_weights():
    model = layer([0.0, 0.2, 1.0, 1.2])
    espalier.prune(model, density={"weight": 0.75})
    espalier.share(model, bits=1, refreshable=True)
    (model.weight * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    held = model.parametrizations.weight
    assert held.original.grad.tolist() == [[0.0, 2.0, 3.0, 4.0]]
    assert held[0].codebook.grad.tolist() == [2.0, 7.0]


def test_refresher_wants_refreshable_weights():
    model = nn.Linear(4, 4)
    espalier.share(model, bits=2)
    with pytest.raises(InvalidArgument, match="refreshable=True"):
        espalier.Refresher(model, every=10)


def test_layer_by_layer_freezes_what_is_finished():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    seen = []
    for done in espalier.share_layerwise(model, bits={"0": 2, "2": 3}):
        trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        seen.append((done.name, [n for n in trainable if "weight" in n]))
    assert seen == [
        ("0.weight", ["0.parametrizations.weight.original", "1.weight", "2.weight"]),
        ("2.weight", ["1.weight", "2.parametrizations.weight.original"]),
    ]
    assert all(p.requires_grad for p in model.parameters())


def test_sharing_twice_shares_what_is_there():
    model = nn.Linear(16, 16)
    espalier.share(model, bits=4)
    espalier.share(model, bits=2)
    assert model.weight.unique().numel() == 4
