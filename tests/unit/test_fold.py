"""Batch norms folded into the layers before them."""

import pytest
import torch
from torch import nn

import espalier
from espalier import zoo
from espalier.errors import InvalidArgument


def lively(model: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.track_running_stats:
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


@pytest.mark.parametrize(
    ("build", "shape", "norms"),
    [
        (zoo.resnet20, (3, 32, 32), 19),
        (zoo.vgg16_cifar, (3, 32, 32), 14),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,), 1),
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6, affine=False)), (4, 9), 1),
        (
            lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
            (4, 5, 5),
            1,
        ),
        pytest.param(zoo.resnet18, (3, 64, 64), 20, marks=pytest.mark.slow),
        pytest.param(zoo.resnet50, (3, 64, 64), 53, marks=pytest.mark.slow),
        pytest.param(zoo.mobilenet_v2, (3, 64, 64), 52, marks=pytest.mark.slow),
    ],
)
def test_the_network_computes_what_it_did(build, shape, norms, tmp_path):
    torch.manual_seed(0)
    model = lively(build())
    x = torch.randn(2, *shape)
    with torch.no_grad():
        before = model(x)
        report = espalier.fold_batch_norms(model)
        after = model(x)
    assert (len(report.folded), report.skipped) == (norms, ())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert float((after - before).norm() / before.norm()) < 1e-4
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=build().eval())
    assert torch.equal(fresh(x), model(x))


class Odd(nn.Module):
    """Batch norms that have to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.a = nn.Conv2d(3, 4, 1)
        self.norm_a = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 1)
        self.twice = nn.BatchNorm2d(4)
        self.c = nn.Conv2d(4, 4, 1)
        self.blind = nn.BatchNorm2d(4, track_running_stats=False)
        self.d = nn.Conv2d(4, 4, 1)
        self.norm_d = nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.a(self.first(x))
        y = self.norm_a(y) + y
        y = self.twice(self.twice(self.b(y)))
        return self.norm_d(self.d(self.blind(self.c(y))))


def test_what_has_to_stay_is_listed_with_its_reason():
    model = lively(Odd())
    espalier.prune(model, {"d": 0.5})
    report = espalier.fold_batch_norms(model)
    assert report.folded == ()
    assert {s.name: s.reason for s in report.skipped} == {
        "first": "no convolution or linear layer stands right before it",
        "norm_a": "the outputs of a are used elsewhere too",
        "twice": "it is called 2 times",
        "blind": "it keeps no statistics",
        "norm_d": "d is pruned or shared already; fold before that",
    }
    assert espalier.edits_of(model) == ()


def test_a_model_that_cannot_be_traced():
    class Forks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InvalidArgument, match=r"cannot be traced by torch\.fx"):
        espalier.fold_batch_norms(Forks())


def test_filters_then_batch_norms_then_masks(tmp_path):
    torch.manual_seed(0)
    model = lively(zoo.resnet20())
    x = torch.randn(2, 3, 32, 32)
    espalier.prune_filters(model, 0.5, example=x)
    espalier.fold_batch_norms(model)
    espalier.prune(model, 0.4)
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=zoo.resnet20().eval())
    assert torch.equal(fresh(x), model(x))
    assert [edit.name for edit in espalier.edits_of(fresh)] == ["keep_channels", "fold_batch_norm"]
    with pytest.raises(InvalidArgument, match=r"conv1: a Linear|another architecture"):
        espalier.load(tmp_path / "m.esp", into=zoo.lenet300())
