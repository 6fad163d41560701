"""``espalier.RateAware``: the size of the file as one more term of the loss.

    loss = L(network) + lambda R,   R = sum over weights of the bits of q,   weight = step * q

after Oktay et al. 2020 (entropy-penalised reparameterisation, arXiv 1906.06624) and Choi et al.
2017 (arXiv 1612.01543), with code lengths that follow the coder's own contexts
(:mod:`espalier.rate_aware.lengths`), where these fit a density.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import InvalidArgument
from espalier.modes import evaluating
from espalier.progress import Progress, reporting
from espalier.rate_aware import norms as rate_norms
from espalier.rate_aware.control import FIRST, Controller, Ramp
from espalier.rate_aware.dead_units import remove_dead_units
from espalier.rate_aware.grid import GridInTraining, GridTensor, Steps, chosen_targets
from espalier.rate_aware.refine import Loss, Refined, Refiner
from espalier.structure.filters import PrunedFilters
from espalier.targets import Skipped, refuse_nonfinite
from espalier.torch_io import save

ROUNDINGS = ("straight-through", "noise", "annealed")
SHARPNESS = 2.0, 12.0
"""Of soft rounding, at the beginning and where straight-through rounding takes over."""
MEASURE = 1.1
"""The file is measured again when the bits have changed by this factor; till then it is scaled."""
MEASURE_EVERY = 10
"""After the ramp bits hardly change any more, but what a bit comes to in the file still does: there
every so many looks end in a measurement."""
NEAR_TARGET = 1.05
"""A file larger than the target by no more is left to :meth:`RateAware.refine`."""


@dataclass(frozen=True)
class RateReport:
    """What :meth:`RateAware.finish` left, and the size of the file with everything in it."""

    layers: tuple[GridTensor, ...]
    skipped: tuple[Skipped, ...]
    file_bytes: int


class RateAware:
    """Put the weights of ``model`` on grids with learned steps, and the bits into the loss.

    Add :meth:`loss` to the loss of each batch, call :meth:`step` after each optimizer step, and
    :meth:`finish` at the end: the weights are codebooks then, and :func:`espalier.save` writes
    them. Begin with a trained network, or from scratch. Saves disk; dead units can be taken out,
    which saves time (:meth:`remove_dead_units`).

    Parameters
    ----------
    model : nn.Module
        Its weights get :class:`~espalier.parametrization.RateAwareWeight` at once, so that an
        optimizer made after this holds the right parameters; Adam is meant. Pruned weights stay
        zero, shared ones begin as the values that they share. Wrap it for distributed training
        after this.
    lam : float, optional
        What a bit may cost, in the unit of the loss; 1e-6 to 1e-5 for small classifiers.
    target : int, optional
        The size of the whole file in bytes, as ``effort="max"`` writes it. A controller leads
        lambda there, from ``lam`` or, where none is given, 1e-6; give what an earlier stage ended
        with, where there is no ramp.
    steps : int
        How many optimizer steps there will be.
    grid : float or mapping
        First step of each tensor's grid, in standard deviations of its weights; or ``"kept"``, the
        step that its values are multiples of since an earlier :meth:`finish`, and 1 where they are
        not. One value, or values by ``"*"``, kind and name pattern; None leaves a tensor as it is.
    biases : bool
        Whether biases, norms' scales and the like have grids too.
    rounding : {"straight-through", "noise", "annealed"}
        How symbols follow the weights (:mod:`espalier.parametrization.rate_aware_weight`).
        ``"noise"``, and ``"annealed"``, which is soft rounding that becomes sharper, give way to
        straight-through rounding after the share ``harden`` of the steps.
    ramp : float
        Share of the steps in which lambda rises from zero to ``lam``, or the size falls to
        ``target``.
    harden : float
    every : int
        Steps between two looks at the symbols, when code lengths and lambda are set anew.
    groups : float
        Beside the bits, so many for the norm of each row of weights, in steps, and of what reads
        each input: whole units go then (:mod:`espalier.rate_aware.dead_units`).
    freeze_norms : bool
        Whether batch norms train as the scales and shifts that they are in evaluation, their
        statistics constant, until :meth:`finish`. Take False to begin from scratch; the file then
        holds their statistics exactly.

    Raises
    ------
    InvalidArgument
        A number out of range, a pattern that matches nothing, NaN in a weight (by name).

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Linear(64, 8)
    >>> rate = espalier.RateAware(model, lam=1e-3, steps=20, every=5)
    >>> optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    >>> x = torch.randn(32, 64)
    >>> for _ in range(20):
    ...     loss = model(x).square().mean() + rate.loss()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     rate.step()
    >>> report = rate.finish()
    >>> report.layers[0].nonzero < 512
    True
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float | None = None,
        *,
        target: int | None = None,
        steps: int,
        grid: Steps = 1.0,
        biases: bool = True,
        rounding: str = "straight-through",
        ramp: float = 0.3,
        harden: float = 0.7,
        every: int = 50,
        groups: float = 0.0,
        freeze_norms: bool = True,
    ) -> None:
        if lam is None and target is None:
            raise InvalidArgument("give lam or target")
        _check_positive(lam=lam, target=target, steps=steps, every=every)
        if not (math.isfinite(groups) and groups >= 0):
            raise InvalidArgument(f"groups must be at least 0, not {groups}")
        for name, share in (("ramp", ramp), ("harden", harden)):
            if not 0 <= share <= 1:
                raise InvalidArgument(f"{name} must lie in [0, 1], not {share}")
        if rounding not in ROUNDINGS:
            raise InvalidArgument(
                f"rounding must be one of {', '.join(ROUNDINGS)}, not {rounding!r}"
            )
        self.model, self.steps, self.every = model, steps, every
        self.rounding, self.harden, self.groups = rounding, harden, groups
        over = round(ramp * steps)
        first = FIRST if lam is None else lam
        self.control: Ramp | Controller = (
            Ramp(first, over) if target is None else Controller(float(target), over, first)
        )
        self.steps_done, self.bits = 0, 0.0
        self._fixed_bytes, self._scale, self._measured = 0.0, 1.0, 0.0
        chosen, self._skipped = chosen_targets(model, grid, biases)
        self._hooks = rate_norms.freeze_norms(model) if freeze_norms else []
        self._grids = [GridInTraining.on(target, value) for target, value in chosen]
        self._round()
        self._look()

    @property
    def lam(self) -> float:
        """lambda as it is now. Set it between steps for a schedule of your own, not the ramp.

        Raises
        ------
        InvalidArgument
            Training is led to a target, or the value is not a number above 0.
        """
        return self.control.at(self.steps_done)

    @lam.setter
    def lam(self, lam: float) -> None:
        if isinstance(self.control, Controller):
            raise InvalidArgument("lam cannot be set: training is led to a target of bytes")
        _check_positive(lam=lam)
        self.control = Ramp(lam, 0)

    @property
    def file_bytes(self) -> float:
        """The size of the file, from the bits of the symbols at the last look at them.

        With ``lam``, until :meth:`measure` is called, that of the coded symbols alone.
        """
        return self._fixed_bytes + self._scale * self.bits / 8

    @property
    def done(self) -> bool:
        """Whether the ramp is over, symbols are rounded straight through, and a target is near.

        Or they are fixed: then nothing changes the file any more.
        """
        share = self.steps_done / self.steps
        hard = self.rounding == "straight-through" or share >= self.harden
        aim = self.control.target if isinstance(self.control, Controller) else math.inf
        near = self.file_bytes <= NEAR_TARGET * aim
        return self.fixed or (hard and self.steps_done >= self.control.steps and near)

    @property
    def fixed(self) -> bool:
        """Whether :meth:`fix_symbols` was called."""
        return any(grid.held.unit is not None for grid in self._grids)

    def loss(self) -> Tensor:
        """lambda times the bits of all grids: to be added to the loss of a batch.

        Once the symbols are fixed there is nothing to be gained any more, and it is 0.
        """
        if not self._grids:
            raise InvalidArgument("the grids are finished: make a new RateAware to train on")
        if self.fixed:
            return torch.zeros((), device=self._grids[0].held.log_step.device)
        bits = [grid.bits(self.groups) for grid in self._grids]
        return self.lam * torch.stack([b.to(bits[0].device) for b in bits]).sum()

    def step(self) -> None:
        """Count one optimizer step; where it is due, look at the symbols."""
        self.steps_done += 1
        self._round()
        if self.steps_done % self.every == 0 and not self.fixed:
            self._look()

    def _round(self) -> None:
        """How the weights are rounded in the next step."""
        share = self.steps_done / self.steps
        rounding = self.rounding if share < self.harden else "straight-through"
        low, high = SHARPNESS
        sharpness = low * (high / low) ** (share / self.harden) if rounding == "annealed" else low
        for grid in self._grids:
            grid.held.rounding = "soft" if rounding == "annealed" else rounding
            grid.held.sharpness = sharpness

    @torch.no_grad()
    def _look(self) -> None:
        self.bits = sum(grid.lengths.refresh(grid.symbols()) for grid in self._grids)
        if isinstance(self.control, Controller):
            ratio = self.bits / self._measured if self._measured else 0.0
            after = self.steps_done - self.control.steps
            due = after >= 0 and after // self.every % MEASURE_EVERY == 0
            if due or not 1 / MEASURE < ratio < MEASURE:
                self.measure()
            self.control.update(self.steps_done, self.file_bytes)

    @torch.no_grad()
    def measure(self) -> int:
        """Bytes of the file that :func:`espalier.save` would write now, with ``effort="max"``."""
        ledger = save(self.model, BytesIO(), effort="max")
        names = {grid.target.name for grid in self._grids}
        coded = sum(t.positions_bytes + t.codes_bytes for t in ledger.rows if t.name in names)
        self._scale = 8 * coded / self.bits if self.bits else 1.0
        self._fixed_bytes, self._measured = ledger.file_bytes - coded, self.bits
        return ledger.file_bytes

    @torch.no_grad()
    def remove_dead_units(self, example: Any) -> tuple[PrunedFilters, ...]:
        """Take out filters and units whose symbols have become zero, as an edit of the structure.

        Recorded like the edits of :func:`espalier.prune_filters`, and replayed by
        :func:`espalier.load`. Saves time and memory too. Parameters are new: make a new optimizer.

        Parameters
        ----------
        example : Tensor or tuple of Tensors
            Inputs to trace the model with.

        Returns
        -------
        tuple of PrunedFilters
            The groups of layers that lost any.

        Raises
        ------
        InvalidArgument
            The model cannot be run on ``example``.
        """
        found = remove_dead_units(self.model, self._grids, example)
        self.bits = sum(grid.lengths.refresh(grid.symbols()) for grid in self._grids)
        return found

    def refine(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        loss: Loss | None = None,
        *,
        lam: float | None = None,
        limit: int | None = None,
        rounds: int = 40,
        progress: Progress | bool | None = None,
    ) -> Refined:
        """After training: move symbols by one wherever loss and measured file together fall.

        See :mod:`espalier.rate_aware.refine`. Then, where the file is still larger than ``limit``,
        symbols move towards zero where a bit costs the loss least, until it is not.

        Parameters
        ----------
        batches : iterable of (inputs, targets)
            Some thousand training samples; the curvature is taken on the first 1,024.
        loss : callable, optional
            ``loss(outputs, targets)``, the mean over a batch; cross-entropy by default.
        lam : float, optional
            lambda as training left it, by default.
        limit : int, optional
            Bytes of the whole file; by default the ``target`` that training was led to.
        rounds : int
            At most so many trials at ``lam``.
        progress : bool or callable, optional
            As for :func:`espalier.train`; begins anew, in bytes, where the file is above ``limit``.

        Raises
        ------
        InvalidArgument
            There are no samples; the limit is below what zeros alone take.
        """
        lam = self.lam if lam is None else lam
        if limit is None and isinstance(self.control, Controller):
            limit = round(self.control.target)
        with evaluating(self.model), reporting(progress) as report:
            search = Refiner(
                self.model,
                self._grids,
                self.measure,
                list(batches),
                loss or functional.cross_entropy,
                report,
            )
            return search.run(lam, limit, rounds)

    def fix_symbols(self) -> None:
        """After training: keep the symbols, and with them the size of the file.

        Train on, and the steps alone learn, with whatever has no grid; :meth:`loss` is 0. Weights
        want no gradients then: make a new optimizer, and wrap the model anew for distributed
        training.

        Raises
        ------
        InvalidArgument
            The grids are finished.
        """
        if not self._grids:
            raise InvalidArgument("the grids are finished: make a new RateAware to train on")
        for grid in self._grids:
            grid.fix()

    @torch.no_grad()
    def finish(self) -> RateReport:
        """Leave codebooks on the model, as :func:`espalier.share` does: zeros stay zero from here.

        Their levels are multiples of a step, which the file stores as such; train on, and they are
        free levels. Parameters are new: make a new optimizer.
        """
        layers = []
        for grid in self._grids:
            refuse_nonfinite(grid.target, grid.target.latent)
            layers.append(grid.described())
            grid.finish()
        for hook in self._hooks:
            hook.remove()
        size = self.measure()
        self._grids = []
        return RateReport(tuple(layers), self._skipped, size)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model's own state."""
        return {
            "steps_done": self.steps_done,
            "control": asdict(self.control),
            "size": [self.bits, self._fixed_bytes, self._scale, self._measured],
            "lengths": [grid.lengths.state_dict() for grid in self._grids],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; steps and latent weights come with the model's, before.

        Raises
        ------
        InvalidArgument
            The state is of a run with ``lam`` in place of ``target``, or of other tensors.
        """
        led = "target" if "target" in state["control"] else "lam"
        own = "target" if isinstance(self.control, Controller) else "lam"
        shapes = [tuple(kept["rows"].shape) for kept in state["lengths"]]
        if led != own:
            raise InvalidArgument(f"the state is of a run with {led}, and this one has {own}")
        if shapes != [grid.lengths.shape for grid in self._grids]:
            raise InvalidArgument(
                f"the state is of tensors of the shapes {shapes}, and those with grids here have "
                f"{[grid.lengths.shape for grid in self._grids]}"
            )
        self.steps_done = int(state["steps_done"])
        self.control = type(self.control)(**state["control"])
        self.bits, self._fixed_bytes, self._scale, self._measured = state["size"]
        for grid, kept in zip(self._grids, state["lengths"], strict=True):
            grid.lengths.load_state_dict(kept)
            if grid.held.unit is not None:
                grid.fix()
        self._round()


def _check_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not (math.isfinite(number) and number > 0):
            raise InvalidArgument(f"{name} must be a number above 0, not {number}")
