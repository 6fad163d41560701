"""What every criterion and every schedule promises; a new one is tested at once."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

import espalier
from espalier.pruning import CRITERIA, SCHEDULES, Stats
from espalier.pruning.schedule import Schedule


def stats(weight: torch.Tensor, seed: int = 0) -> Stats:
    generator = torch.Generator().manual_seed(seed)
    return Stats(None, torch.rand(weight.shape, generator=generator), generator)


@pytest.fixture(params=CRITERIA.names())
def criterion(request):
    return CRITERIA.make(request.param)


@pytest.fixture(params=SCHEDULES.names())
def schedule(request) -> Schedule:
    return SCHEDULES.make(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 3, 2, 2)])
def test_scores_have_the_shape_and_are_never_nan(criterion, shape, dtype):
    for weight in (torch.randn(shape), torch.zeros(shape), torch.full(shape, -2.5)):
        scores = criterion.score(weight.to(dtype), stats(weight))
        assert scores.shape == weight.shape
        assert not scores.isnan().any()


def test_scores_depend_on_the_generator_alone(criterion):
    weight = torch.randn(50)
    first, second = (criterion.score(weight, stats(weight, seed=3)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_sign_does_not_matter(criterion):
    weight = torch.randn(50)
    assert torch.equal(
        criterion.score(weight, stats(weight)), criterion.score(-weight, stats(weight))
    )


def test_methods_are_frozen_dataclasses_with_a_docstring():
    for cls in [*CRITERIA, *SCHEDULES]:
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        assert cls.__doc__
        assert "=" in cls.__doc__


def test_exact_counts_with_every_criterion(criterion):
    model = nn.Linear(20, 10)
    batches = [(torch.randn(16, 20), torch.randint(0, 10, (16,)))]
    espalier.prune(model, density=0.37, criterion=criterion, batches=batches)
    assert int(model.weight.count_nonzero()) == 74


@pytest.mark.parametrize("final", [0.01, 0.3, 1.0])
def test_density_falls_to_the_final_one_and_stays(schedule, final):
    steps = range(5000)
    densities = [schedule.density(step, final) for step in steps]
    assert all(final <= d <= 1 for d in densities)
    assert all(a >= b for a, b in itertools.pairwise(densities))
    done = next(step for step in steps if schedule.done(step))
    assert densities[done] == final


def test_it_is_due_when_it_is_done(schedule):
    done = next(step for step in range(5000) if schedule.done(step))
    assert schedule.due(done)
    assert not any(schedule.due(step) for step in range(done + 1, 5000))


def test_it_drives_a_pruner_to_the_exact_count(schedule):
    model = nn.Linear(20, 10)
    pruner = espalier.Pruner(model, density=0.1, schedule=schedule)
    while not pruner.done:
        pruner.step()
    assert int(model.weight.count_nonzero()) == 20
    assert pruner.density == 0.1
