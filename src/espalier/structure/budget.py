"""How much of a network may stay: multiply-accumulates, parameters, or measured time."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from espalier.errors import InvalidArgument
from espalier.modes import evaluating
from espalier.options import check_share
from espalier.structure.cost import Cost
from espalier.structure.edit import perform
from espalier.structure.edits.keep_channels import KeepChannels
from espalier.timing import clock_for, compare

Candidate = TypeVar("Candidate")

LEAST = 1e-9
"""A share of filters so small that one is left to a layer."""


@dataclass(frozen=True)
class Budget:
    """At most ``limit``, a share in (0, 1], of what the original spends of ``what``.

    ``steps``: how often the share of filters is halved in on; measuring time is not worth more.
    """

    what: str
    limit: float
    steps: int

    @classmethod
    def of(cls, **limits: float | None) -> Budget | None:
        """The one budget that is given, or None; InvalidArgument if several are."""
        given = {what: limit for what, limit in limits.items() if limit is not None}
        if not given:
            return None
        if len(given) > 1:
            raise InvalidArgument(f"give one of {', '.join(limits)}, not {' and '.join(given)}")
        ((what, limit),) = given.items()
        return cls(what, check_share(limit, what), 7 if what == "latency" else 20)


def spending(
    budget: Budget, model: nn.Module, example: Any, before: Cost
) -> Callable[[KeepChannels], float]:
    """What share the network spends after an edit that is not made yet."""

    def counted(edit: KeepChannels) -> float:
        after: int = getattr(before.after(edit), budget.what)
        return after / getattr(before, budget.what)

    def timed(edit: KeepChannels) -> float:
        candidate = deepcopy(model)
        if edit.layers:
            perform(candidate, [edit])
        return latency_ratio(candidate, model, example)

    return timed if budget.what == "latency" else counted


@torch.no_grad()
def latency_ratio(model: nn.Module, original: nn.Module, example: Any, repeats: int = 15) -> float:
    """Median time of a forward pass by that of the original, both in turn."""
    inputs = example if isinstance(example, tuple) else (example,)
    with evaluating(model, original):
        found = compare(
            lambda: model(*inputs),
            lambda: original(*inputs),
            clock_for(original, inputs),
            repeats=repeats,
            warmup=3,
        )
    return found.ratio.median


def largest_within(
    budget: Budget,
    make: Callable[[float], Candidate],
    spent: Callable[[Candidate], float],
) -> Candidate:
    """Of ``make(share)``, what has the largest share and spends no more than the budget allows.

    By bisection: spending is taken to rise with the share.
    """
    low, high = 0.0, 1.0
    best = make(LEAST)
    if spent(best) > budget.limit:
        raise InvalidArgument(
            f"{budget.what}: {budget.limit:g} cannot be reached, one filter to a layer is more "
            "than that"
        )
    for _ in range(budget.steps):
        middle = (low + high) / 2
        candidate = make(middle)
        if spent(candidate) <= budget.limit:
            low, best = middle, candidate
        else:
            high = middle
    return best
