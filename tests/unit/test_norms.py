"""Batch norms of quantized networks: found, folded, moved and rounded."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier.errors import InvalidArgument
from espalier.quantization.norms import fold_batchnorm, move_norms, round_bias


class Network(nn.Module):
    """Two convolutions with batch norms; ``shared``: the second one's output is used twice."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.shared = shared
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, -0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.1, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv2(torch.relu(self.bn1(self.conv1(x))))
        y = self.bn2(z) + z if self.shared else self.bn2(z)
        return self.fc(torch.relu(y).mean((2, 3)))


def batches(n: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 2, 8, 8, generator=generator), torch.arange(32) % 5) for _ in range(n)]


def constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def test_folding_by_hand_and_the_same_network():
    model, (x, _) = Network(), batches(1)[0]
    wanted = model(x)
    scale = model.bn1.weight / (model.bn1.running_var + 1e-5).sqrt()
    shift = model.bn1.bias + scale * (model.conv1.bias - model.bn1.running_mean)
    weight = fold_batchnorm(model.conv1, model.bn1, model.conv1.weight)
    torch.testing.assert_close(weight, model.conv1.weight * scale.view(-1, 1, 1, 1))
    torch.testing.assert_close(model.bn1.bias, shift)
    assert not model.conv1.bias.any()
    with torch.no_grad():
        model.conv1.weight.copy_(weight)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


def test_norms_are_found_behind_their_layers():
    seen = espalier.collect_curvature(Network(), batches())
    assert list(seen) == ["conv1.weight", "conv2.weight", "fc.weight"]
    assert [layer.norm for layer in seen.values()] == ["bn1", "bn2", ""]
    # The gradient before a batch norm is its scale times the one behind it.
    norm, layer = Network().bn2, seen["conv2.weight"]
    scale = (norm.weight / (norm.running_var + 1e-5).sqrt()).detach().double()
    expected = layer.normed.products * torch.outer(scale, scale)
    torch.testing.assert_close(layer.outputs.products, expected, rtol=1e-3, atol=1e-9)
    of_bias = layer.normed.of_bias * scale**2
    torch.testing.assert_close(layer.outputs.of_bias, of_bias, rtol=1e-3, atol=1e-9)


def test_a_norm_that_is_not_alone_is_left():
    seen = espalier.collect_curvature(Network(shared=True), batches())
    assert all(layer.norm == "" and layer.normed is None for layer in seen.values())


@pytest.mark.parametrize("moved", [True, False])
def test_a_quantized_network_needs_one_vector_of_four_or_two(tmp_path, moved):
    model, original = Network(), Network()
    seen = espalier.collect_curvature(model, batches())
    shown = batches() if moved else None
    espalier.quantize_rd(model, 1e-6, curvature=seen, batches=shown)
    for norm in (model.bn1, model.bn2):
        assert all(map(constant, (norm.running_mean, norm.running_var)))
        assert constant(norm.weight) or moved
        assert ((norm.weight * 128) % 1 == 0).all()
        mantissa = np.frexp(norm.bias.detach().numpy())[0] * 2**12
        assert (mantissa == np.rint(mantissa)).all()
    espalier.save(model, tmp_path / "model.esp")
    fresh = espalier.load(tmp_path / "model.esp", into=Network()).eval()
    x = batches(1)[0][0]
    assert torch.equal(fresh(x), model.eval()(x))
    change = (model(x) - original(x)).square().mean() / original(x).var()
    assert change < 0.02


def test_norms_stay_exact_where_they_are_not_folded():
    model = Network()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("bn")}
    seen = espalier.collect_curvature(model, batches())
    espalier.quantize_rd(model, 1e-6, curvature=seen, fold_batchnorm=False)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    model = Network()
    espalier.quantize_rd(model, 1e-6, curvature=seen, fold_batchnorm=False, batches=batches())
    changed = {k for k, v in before.items() if not torch.equal(model.state_dict()[k], v)}
    # (The bias of conv1 has already made up for its mean.)
    assert changed == {"bn1.running_var", "bn2.running_mean", "bn2.running_var"}


def test_what_changed_is_taken_out():
    original = Network()
    model = copy.deepcopy(original)
    with torch.no_grad():
        model.bn1.bias += 0.5
        model.conv2.weight *= 0.8
        model.bn2.bias -= 1
        model.fc.bias += 0.3
    move_norms(model, batches(), original, ["bn1", "bn2", "fc"])
    torch.testing.assert_close(model.bn1.bias, original.bn1.bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.fc.bias, original.fc.bias, rtol=1e-2, atol=1e-2)
    x = batches(1)[0][0]
    torch.testing.assert_close(model(x), original(x), rtol=0.01, atol=0.01)
    torch.testing.assert_close(model.bn2.weight, original.bn2.weight * 1.25, rtol=1e-3, atol=1e-4)


def test_means_that_change_downstream_need_batches():
    original, x = Network(), torch.cat([x for x, _ in batches(8)])
    seen = espalier.collect_curvature(Network(), batches(8))

    def means(model: Network) -> Tensor:
        return model.bn2(model.conv2(torch.relu(model.bn1(model.conv1(x))))).mean((0, 2, 3))

    changes = []
    for shown in (None, batches(8)):
        model = Network()
        espalier.quantize_rd(model, 1e-8, curvature=seen, batches=shown)
        changes.append(float((means(model) - means(original)).square().sum().detach()))
    assert changes[1] < 0.1 * changes[0]
    with pytest.raises(InvalidArgument, match="batches: they are for use with curvature"):
        espalier.quantize_rd(Network(), 0.01, batches=batches())


def test_biases_are_rounded_to_a_power_of_two():
    bias = torch.tensor([0.3, -1.26, 0.0])
    round_bias(bias, torch.full((3,), 12.0), np.log(2) / 16)  # step 1/4
    assert bias.tolist() == [0.25, -1.25, 0.0]
    untouched = torch.tensor([0.3])
    round_bias(untouched, torch.zeros(1), 1.0)
    assert untouched.tolist() == pytest.approx([0.3])
