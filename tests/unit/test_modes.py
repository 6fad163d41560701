"""What is run on a model in evaluation mode leaves every module in the mode that it was in."""

import pytest
import torch
from torch import nn

import espalier
from espalier.modes import in_mode
from espalier.samples import Samples

X, Y = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(),
        nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


USES = {
    "evaluate": lambda m: espalier.evaluate(m, Samples(X, Y)),
    "fisher": lambda m: espalier.diagonal_fisher(m, [(X, Y)]),
    "curvature": lambda m: espalier.collect_curvature(m, [(X, Y)]),
    "re-estimate": lambda m: espalier.reestimate_batchnorm(m, [X]),
    "rd": lambda m: espalier.quantize_rd(
        m,
        1e-4,
        curvature=espalier.collect_curvature(m, [(X, Y)]),
        batches=[X],
        fold_batchnorm=False,
    ),
    "filters": lambda m: espalier.prune_filters(
        m, {"0": 0.5}, example=X[:1], criterion="taylor", batches=[(X, Y)]
    ),
    "factorize": lambda m: espalier.factorize(m, {"7": 1}, example=X[:1]),
    "merge": lambda m: espalier.merge(m, X[:1], parts="streamline", batches=[(X, Y)]),
    "profile": lambda m: espalier.profile(m, X, repeats=1, warmup=0),
    "speed": lambda m: espalier.compare_speed(m, m, X, runtimes=["eager"], repeats=1),
    "distill": lambda m: espalier.Distiller(network(), m)(X, torch.zeros(8, 3), Y),
}


@pytest.mark.parametrize("use", USES)
def test_a_frozen_batch_norm_stays_frozen(use):
    model = network().train()
    model[1].eval()
    before = [(module, module.training) for module in model.modules()]
    USES[use](model)
    left = set(model.modules())  # without those that an edit replaced
    assert all(module.training == mode for module, mode in before if module in left)
    assert model.training


def test_the_modes_are_back_after_an_error():
    model = network().train()
    model[1].eval()
    with pytest.raises(ZeroDivisionError), in_mode(model, training=True):
        raise ZeroDivisionError
    assert model.training
    assert not model[1].training
