"""``espalier.Pruner``: masks that change while the user's own loop trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from espalier.errors import InvalidArgument
from espalier.options import Lookup, check_density
from espalier.parametrization import Mask, current
from espalier.pruning.api import Densities, PruneReport, apply, choose, fisher_for, score
from espalier.pruning.criterion import CRITERIA, Criterion
from espalier.pruning.fisher import Batches, Loss
from espalier.pruning.schedule import SCHEDULES, Schedule
from espalier.targets import select


class Pruner:
    """Lower the density of ``model`` along a schedule, one :meth:`step` for each optimizer step.

    Parameters
    ----------
    model : nn.Module
        Gets a mask on every chosen weight at once, with nothing pruned yet, so that an optimizer
        made after this holds the right parameters.
    density : float or mapping
        The final density, as for :func:`espalier.prune`.
    schedule : str or Schedule
        ``"once"``, ``"rounds"``, ``"cubic"``, ``"surgery"``, or an instance.
    criterion, scope, loss, seed :
        As for :func:`espalier.prune`.
    batches : callable, optional
        For criteria that need data: called with nothing whenever the masks are due, gives batches.
    **options
        Fields of the schedule: ``steps=5000, every=100``.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Linear(10, 10)
    >>> pruner = espalier.Pruner(model, density=0.1, schedule="cubic", steps=100, every=10)
    >>> for _ in range(101):
    ...     pruner.step()  # after optimizer.step()
    >>> int(model.weight.count_nonzero())
    10
    """

    def __init__(
        self,
        model: nn.Module,
        density: Densities,
        *,
        schedule: str | Schedule = "cubic",
        criterion: str | Criterion = "magnitude",
        scope: str = "layer",
        batches: Callable[[], Batches] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.model = model
        self.schedule = SCHEDULES.make(schedule, **options)
        self.criterion = CRITERIA.make(criterion)
        if self.criterion.needs_fisher and batches is None:
            raise InvalidArgument(
                f"criterion {self.criterion.name!r} needs batches, a callable that gives batches"
            )
        chosen, skipped = select(model, Lookup(density, "density", check_density))
        self._targets = [target for target, _ in chosen]
        self._densities = [value for _, value in chosen]
        taken = [t.name for t in self._targets if not isinstance(current(t), Mask | None)]
        if self.schedule.regrows and taken:
            names = ", ".join(taken)
            raise InvalidArgument(f"weights that are quantized or shared cannot regrow: {names}")
        self.scope, self._batches, self._loss, self._seed = scope, batches, loss, seed
        self._skipped = tuple(skipped)
        self.steps_done = 0
        full = [torch.ones_like(t.value, dtype=torch.bool) for t in self._targets]
        self.report = apply(self._targets, full, self._skipped)
        self._set_straight_through(self.schedule.regrows)

    @property
    def density(self) -> float:
        """Share kept over all chosen weights together, now."""
        return self.report.density

    @property
    def done(self) -> bool:
        """Whether the schedule has ended: the masks will not change any more."""
        return self.steps_done > 0 and self.schedule.done(self.steps_done - 1)

    def step(self) -> None:
        """Count one optimizer step, and estimate the masks again where the schedule says so."""
        now = self.steps_done
        self.steps_done += 1
        if self.schedule.due(now):
            self._estimate(now)
        if self.done:
            self._set_straight_through(False)

    @torch.no_grad()
    def _estimate(self, step: int) -> PruneReport:
        regrows = self.schedule.regrows
        batches = self._batches() if self._batches is not None else None
        fisher = fisher_for(self.model, self.criterion, batches, self._loss)
        # From the step, not from a running state: a resumed run draws what the first would have.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        scores = [
            score(
                target,
                self.criterion,
                fisher,
                generator,
                regrow=regrows,
                margin=self.schedule.margin if regrows else 0.0,
            )
            for target in self._targets
        ]
        densities = [self.schedule.density(step, final) for final in self._densities]
        masks = choose(self._targets, scores, densities, self.scope)
        self.report = apply(self._targets, masks, self._skipped, straight_through=regrows)
        return self.report

    def _set_straight_through(self, on: bool) -> None:
        for target in self._targets:
            held = current(target)
            if isinstance(held, Mask):
                held.straight_through = on

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model's own state."""
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; the masks come with the model's."""
        self.steps_done = int(state["steps_done"])
        self._set_straight_through(self.schedule.regrows and not self.done)
        masks = [current(t) for t in self._targets]
        kept = [m.mask for m in masks if isinstance(m, Mask)]
        if len(kept) == len(self._targets):
            self.report = apply(
                self._targets,
                kept,
                self._skipped,
                straight_through=self.schedule.regrows and not self.done,
            )
