"""``espalier.quantize_rd`` and what it needs to know of a network."""

import copy

import pytest
import torch
from torch import nn

import espalier
from espalier.errors import InvalidArgument


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def batches(n: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 2, 8, 8, generator=generator), torch.arange(16) % 5) for _ in range(n)]


def test_moments_and_gradients_by_hand():
    model, data = nn.Linear(3, 2), [(torch.randn(6, 3), torch.zeros(6).long())]
    (seen,) = espalier.collect_curvature(model, data, nn.functional.cross_entropy).values()
    x = data[0][0].double()
    torch.testing.assert_close(seen.moments, x.T @ x / 6, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen.mean_input, x.mean(0), rtol=1e-5, atol=1e-6)
    logits = model(data[0][0]).detach()
    gradient = logits.softmax(1) - torch.tensor([1.0, 0.0])
    torch.testing.assert_close(
        seen.curvature, gradient.square().mean(0).double(), rtol=1e-4, atol=1e-6
    )


def test_moments_of_a_convolution_are_those_of_its_patches():
    model, (x, y) = network(), batches(1)[0]
    seen = espalier.collect_curvature(model, [(x, y)])["0.weight"]
    patches = nn.functional.unfold(x, 3, padding=1, stride=2).permute(0, 2, 1).reshape(-1, 18)
    expected = (patches.T @ patches / len(patches)).double()
    torch.testing.assert_close(seen.moments, expected, rtol=1e-4, atol=1e-5)
    assert seen.rows == 16 * 16
    assert seen.samples == 16


def test_nothing_of_the_model_changes_while_looking():
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    curvature = espalier.collect_curvature(model, batches())
    assert set(curvature) == {"0.weight", "3.weight", "5.weight"}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not model[0]._forward_hooks


@pytest.mark.parametrize("with_data", [True, False])
def test_larger_lambda_smaller_file(tmp_path, with_data):
    sizes, bits = [], []
    for factor in (0.1, 1, 10):
        model = network()
        curvature = espalier.collect_curvature(model, batches()) if with_data else None
        report = espalier.quantize_rd(
            model, factor * (1e-5 if with_data else 0.01), curvature=curvature
        )
        bits.append(report.bits_per_weight)
        sizes.append(espalier.save(model, tmp_path / "model.esp").file_bytes)
        assert torch.equal(espalier.load(tmp_path / "model.esp")["5.weight"], model[5].weight)
    assert bits[0] > bits[1] > bits[2]
    assert sizes[0] > sizes[1] > sizes[2]


def test_weights_are_multiples_of_the_step():
    model = network()
    report = espalier.quantize_rd(model, 0.01)
    for layer in report.layers:
        value = model[int(layer.name[0])].weight
        ratio = value / layer.step
        torch.testing.assert_close(ratio, ratio.round(), rtol=1e-4, atol=1e-3)
        assert value.unique().numel() == layer.levels


def test_pruned_weights_stay_zero():
    model = network()
    espalier.prune(model, density=0.3)
    masks = {i: model[i].weight != 0 for i in (0, 3, 5)}
    espalier.quantize_rd(model, 1e-6, curvature=espalier.collect_curvature(model, batches()))
    assert not any((model[i].weight[~mask] != 0).any() for i, mask in masks.items())
    assert model[5].weight.any()


def test_the_bias_takes_up_the_mean_that_is_lost():
    torch.manual_seed(0)
    model, data = nn.Linear(16, 4), [(torch.randn(64, 16) + 3, torch.zeros(64).long())]
    curvature = espalier.collect_curvature(model, data)
    before = model(data[0][0]).mean(0)
    espalier.quantize_rd(model, 1e-3, curvature=curvature)
    torch.testing.assert_close(model(data[0][0]).mean(0), before, rtol=1e-4, atol=1e-4)


def test_the_largest_lambda_within_the_limit_is_found():
    model, (x, _) = network().eval(), batches(1)[0]
    wanted = model(x)

    def distance(candidate: nn.Module) -> float:
        return float((candidate(x) - wanted).square().mean().detach())

    lam = espalier.search_lambda(model, distance, 1e-3, evaluations=14)
    for factor, inside in ((1.0, True), (3.0, False)):
        candidate = network().eval()
        espalier.quantize_rd(candidate, lam * factor)
        assert (distance(candidate) <= 1e-3) == inside
    assert not hasattr(model[0], "parametrizations")
    with pytest.raises(InvalidArgument, match="no lambda down to"):
        espalier.search_lambda(model, distance, -1.0, evaluations=3)
    with pytest.raises(InvalidArgument, match="evaluate gave NaN"):
        espalier.search_lambda(model, lambda _m: float("nan"), 1.0)


def test_batch_norm_statistics_are_those_of_the_batches():
    model, data = network().eval(), batches(3)
    assert espalier.reestimate_batchnorm(model, data) == 1
    outputs = [model[0](x) for x, _ in data]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    assert not model[1].training
    assert model[1].momentum == 0.1
    assert espalier.reestimate_batchnorm(nn.Linear(2, 2), []) == 0
    with pytest.raises(InvalidArgument, match="no batches"):
        espalier.reestimate_batchnorm(model, [])


def test_what_cannot_be_quantized_is_listed():
    model = nn.ModuleList([nn.Embedding(9, 4), nn.Linear(4, 4), nn.Conv3d(1, 2, 3)])
    report = espalier.quantize_rd(model, 0.01)
    assert [layer.name for layer in report.layers] == ["1.weight"]
    assert [s.name for s in report.skipped] == ["0.weight", "2.weight"]


@pytest.mark.parametrize("lam", [0, -1.0, float("inf"), True, "small"])
def test_lambda_out_of_range(lam):
    with pytest.raises(InvalidArgument, match="lambda must be a finite number above 0"):
        espalier.quantize_rd(network(), lam)


def test_curvature_of_another_model_is_refused():
    curvature = espalier.collect_curvature(network(), batches())
    other = nn.Sequential(nn.Linear(7, 7))
    with pytest.raises(InvalidArgument, match=r"0\.weight: the curvature was not collected"):
        espalier.quantize_rd(other, 1e-6, curvature=curvature)
    assert not hasattr(other[0], "parametrizations")


def test_batch_norms_keep_their_own_statistics_but_for_what_changed():
    original, data = network().eval(), batches(3)
    original[1].running_mean.fill_(5.0)  # from other data than these
    model = copy.deepcopy(original)
    espalier.reestimate_batchnorm(model, data, like=original)
    torch.testing.assert_close(model[1].running_mean, torch.full((8,), 5.0))
    with torch.no_grad():
        model[0].bias += 2
        model[0].weight *= 2
        model[0].bias.sub_(2).mul_(2).add_(2)
    espalier.reestimate_batchnorm(model, data, like=original)
    seen = torch.stack([original[0](x).mean((0, 2, 3)) for x, _ in data]).mean(0)
    torch.testing.assert_close(
        model[1].running_mean, 5 + (2 * seen + 2) - seen, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        model[1].running_var, original[1].running_var * 4, rtol=1e-3, atol=1e-3
    )
    assert torch.equal(original[1].running_mean, torch.full((8,), 5.0))
    with pytest.raises(InvalidArgument, match="the batch norms of the two networks differ"):
        espalier.reestimate_batchnorm(model, data, like=nn.Linear(2, 2))
