"""``espalier.merge``: layers merged into fewer, exactly or with weights fitted anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from espalier.errors import InvalidArgument
from espalier.structure.cost import Cost, cost
from espalier.structure.edit import StructuralEdit, edits_of, perform
from espalier.structure.edits.in_place import InPlace
from espalier.structure.edits.merge_branches import MergeBranches
from espalier.structure.edits.streamline import Streamline
from espalier.structure.exact import merge_exactly
from espalier.structure.filter_stats import Batches
from espalier.structure.filters import prune_filters
from espalier.structure.merge_fit import fit_plan
from espalier.structure.merge_plans import Plan, find_plans
from espalier.structure.traced import Traced
from espalier.targets import Skipped, unwrap

PARTS = ("exact", "streamline", "branch")
STARTS = ("fit", "random")


@dataclass(frozen=True)
class Merged:
    """One merge: the layers whose weights are new, and what was done, in words.

    ``error``: ||outputs - wanted||^2 / ||wanted - mean||^2 of each new layer on the batches, as it
    starts; none where the merge is exact or the start random.
    """

    part: str
    name: str
    layers: tuple[str, ...]
    what: str
    error: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeReport:
    """What was merged, what could not be, and what the network costs.

    ``before`` and ``after``: multiply-accumulates of one sample, and parameters.
    """

    merged: tuple[Merged, ...]
    skipped: tuple[Skipped, ...]
    before: Cost
    after: Cost


def merge(
    model: nn.Module,
    example: Any,
    *,
    parts: str | Sequence[str] = PARTS,
    layers: str | Sequence[str] = "*",
    batches: Batches | None = None,
    start: str = "fit",
    relu: bool = True,
    width: float = 1.0,
    seed: int = 0,
) -> MergeReport:
    """Merge layers, so that fewer steps are left; poolings and normalisations cost time too.

    DeepRebirth (Li, Wang and Kong 2018, arXiv 1708.04728, section 3). Three parts:

    ``"exact"``
        Batch norms into the layers before them, linear maps that follow each other into one,
        dropout and identities left out, ReLUs in place. In evaluation the network computes what it
        did.
    ``"streamline"``
        A convolution followed by any run of local response normalisation, batch norm, ReLU,
        pooling and dropout that holds more than batch norm, ReLU and dropout becomes one
        convolution with the combined stride, whose kernel and padding keep the output's shape.
    ``"branch"``
        Where branches of one input meet in a concatenation, those of 1x1 kernels and poolings go,
        and the others give their outputs too, or, with ``width``, some of them, and the layers
        behind take fewer. What follows the concatenation is merged as above.

    A merged layer starts from a least-squares fit to the outputs of what it replaces. Then train:
    with ten times the learning rate for merged layers, as :func:`parameter_groups` gives them and
    :func:`espalier.train` does. Recorded as edits. Saves time, on any runtime; sizes change little.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Has to be traceable by ``torch.fx``. Its parameters are new: make a new
        optimizer.
    example : Tensor or tuple of Tensors
        Inputs of the size that the network is for; paddings depend on it.
    parts : str or sequence of str
    layers : str or sequence of str
        Patterns of the convolutions, or blocks, to streamline and merge.
    batches : iterable of (inputs, targets), optional
        For the fit; a few hundred samples. Targets are not looked at.
    start : {"fit", "random"}
    relu : bool
        Whether one ReLU stays behind a merged convolution that had one in its run, as in the paper.
    width : float
        Share of the outputs of 1x1 and pooling branches that the others take over, in (0, 1]; those
        with the largest filters by L1 norm.
    seed : int
        Of random weights, and of the positions in feature maps that the fit looks at.

    Returns
    -------
    MergeReport

    Raises
    ------
    InvalidArgument
        The model cannot be traced or run on ``example``, a pattern matches nothing, no batches for
        the fit, nothing can be merged; the model is then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(),
    ...     torch.nn.LocalResponseNorm(3), torch.nn.MaxPool2d(2))
    >>> images = torch.randn(64, 1, 8, 8)
    >>> report = espalier.merge(model, images[:1], batches=[(images, None)])
    >>> model[0]
    Conv2d(1, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    >>> print(espalier.edits_of(model)[-1].describe()[0])
    0: relu, lrn, max_pool 2x2/2x2+0x0 are merged into it, a convolution 3 x 3 with stride 2 x 2
    """
    how = _How.of(parts, layers, start, relu, width, seed)
    steps = _Merger(model, example, how, batches)
    before = cost(unwrap(model), example)
    merged = tuple(steps.run())
    return MergeReport(merged, tuple(steps.skipped), before, cost(unwrap(model), example))


def merge_layerwise(
    model: nn.Module,
    example: Any,
    *,
    parts: str | Sequence[str] = PARTS,
    layers: str | Sequence[str] = "*",
    batches: Batches | None = None,
    start: str = "fit",
    relu: bool = True,
    width: float = 1.0,
    seed: int = 0,
) -> Iterator[Merged]:
    """Merge one layer or block at a time; train after each.

    As in the paper's table 2. What is exact comes first, all at once. A layer is fitted to what the
    network gave there when this was called, from inputs as the network has them by then.

    Parameters
    ----------
    model, example, parts, layers, batches, start, relu, width, seed
        As in :func:`merge`.

    Yields
    ------
    Merged

    Examples
    --------
    >>> import torch, espalier
    >>> model = espalier.zoo.alexnet(10)
    >>> image = torch.zeros(1, 3, 227, 227)
    >>> for merged in espalier.merge_layerwise(model, image, parts="streamline", start="random"):
    ...     print(merged.name)  # and train here
    conv1
    conv2
    conv5
    """
    how = _How.of(parts, layers, start, relu, width, seed)
    steps = _Merger(model, example, how, batches)
    return steps.run(layerwise=True)


@dataclass(frozen=True)
class _How:
    """The options of :func:`merge`, checked."""

    parts: tuple[str, ...]
    layers: tuple[str, ...]
    start: str
    relu: bool
    width: float
    seed: int

    @classmethod
    def of(
        cls,
        parts: str | Sequence[str],
        layers: str | Sequence[str],
        start: str,
        relu: bool,
        width: float,
        seed: int,
    ) -> _How:
        """Checks what a user gave."""
        chosen = (parts,) if isinstance(parts, str) else tuple(parts)
        if not chosen or set(chosen) - set(PARTS):
            raise InvalidArgument(f"parts must be of {', '.join(PARTS)}, not {parts!r}")
        if start not in STARTS:
            raise InvalidArgument(f"start must be 'fit' or 'random', not {start!r}")
        if not (isinstance(width, int | float) and 0 < width <= 1):
            raise InvalidArgument(f"width must be a number in (0, 1], not {width!r}")
        patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        in_order = tuple(part for part in PARTS if part in chosen)
        return cls(in_order, patterns, start, relu, width, seed)

    def wants(self, plan: Plan) -> bool:
        """Whether one of the patterns names the block or one of its layers."""
        return any(_named(plan, pattern) for pattern in self.layers)


class _Merger:
    """The state of one call; everything that can be wrong is found before anything is changed."""

    def __init__(self, model: nn.Module, example: Any, how: _How, batches: Batches | None) -> None:
        self.model, self.how = unwrap(model), how
        trial = copy.deepcopy(self.model)
        exact, self.skipped = merge_exactly(trial) if "exact" in how.parts else ([], [])
        self.first = [("exact", edit) for edit in exact]
        found, skipped = find_plans(trial, example, how.parts, how.relu)
        if how.width < 1:
            wanted = [plan for plan in found if how.wants(plan)]
            narrowed = _narrowed(trial, example, wanted, how.width)
            self.first += [("branch", edit) for edit in narrowed]
            found, skipped = find_plans(trial, example, how.parts, how.relu)
        self.skipped += skipped
        _refuse_unmatched(how.layers, found)
        self.plans = [plan for plan in found if how.wants(plan)]
        if not self.plans and all(isinstance(edit, InPlace) for _, edit in self.first):
            reasons = "; ".join(f"{s.name}: {s.reason}" for s in self.skipped[:3])
            raise InvalidArgument(
                f"parts {', '.join(how.parts)}: nothing in the model can be merged "
                f"({reasons or 'it has no such layers'})"
            )
        self.batches = list(batches) if batches is not None else []
        if self.plans and how.start == "fit" and not self.batches:
            raise InvalidArgument(
                "start 'fit' needs batches=[(inputs, targets), ...]; or ask for start='random'"
            )
        self.original = trial.eval(), Traced(trial).graph

    def run(self, layerwise: bool = False) -> Iterator[Merged]:
        """Merge, and say what; all at once for the model unless ``layerwise``."""
        for part, edit in self.first:
            perform(self.model, [edit])
            for line in edit.describe():
                yield Merged(part, line.partition(":")[0], (), line)
        if not layerwise:
            perform(self.model, _together(self.plans))
        for i, plan in enumerate(self.plans):
            if layerwise:
                perform(self.model, [plan.edit])
            error = self._begin(plan, i)
            what = plan.edit.describe()[0]
            yield Merged(plan.part, plan.name, tuple(plan.edit.new_layers), what, error)

    def _begin(self, plan: Plan, index: int) -> dict[str, float]:
        """Give the new layers of ``plan`` the weights that they start from."""
        seed = self.how.seed
        if self.how.start == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 1_000_003 + index)
                for name in plan.goals:
                    layer = self.model.get_submodule(name)
                    assert isinstance(layer, _ConvNd)
                    layer.reset_parameters()
            return {}
        return fit_plan(self.model, self.original, plan, self.batches, seed * 1009 + index)


def _narrowed(
    model: nn.Module, example: Any, plans: Sequence[Plan], width: float
) -> list[StructuralEdit]:
    """Cut the outputs of branches that ``plans`` merge, on ``model``; the edits."""
    cut = {layer: width for plan in plans for layer in plan.gone}
    if not cut:
        return []
    before = len(edits_of(model))
    prune_filters(model, cut, example=example)
    return list(edits_of(model)[before:])


def _named(plan: Plan, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (plan.name, *plan.goals))


def _refuse_unmatched(patterns: Sequence[str], plans: Sequence[Plan]) -> None:
    for pattern in patterns:
        if pattern != "*" and not any(_named(plan, pattern) for plan in plans):
            known = ", ".join(plan.name for plan in plans) or "none"
            raise InvalidArgument(
                f"layers: {pattern!r} matches nothing that can be merged; there is {known}"
            )


def _together(plans: Sequence[Plan]) -> list[StructuralEdit]:
    """One edit of each kind; plans have no layer in common."""
    edits = [plan.edit for plan in plans]
    layers = {name: m for e in edits if isinstance(e, Streamline) for name, m in e.layers.items()}
    blocks = {
        name: b for e in edits if isinstance(e, MergeBranches) for name, b in e.blocks.items()
    }
    joined: list[StructuralEdit] = [Streamline(layers)] if layers else []
    return joined + ([MergeBranches(blocks)] if blocks else [])


def parameter_groups(model: nn.Module, lr: float, factor: float = 10.0) -> list[dict[str, Any]]:
    """Groups for an optimizer: merged layers learn ``factor`` times as fast as the rest.

    Li et al. 2018, section 3.1. Layers whose merge is exact are of the rest.

    Parameters
    ----------
    model : nn.Module
        That edits were made to. Without any there is one group.
    lr : float
        Learning rate of the rest.
    factor : float

    Returns
    -------
    list of dict
        ``{"params": [...], "lr": ...}``; parameters that want no gradient are in none.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.MaxPool2d(2),
    ...     torch.nn.Flatten(), torch.nn.Linear(36, 2))
    >>> _ = espalier.merge(model, torch.zeros(1, 1, 8, 8), start="random")
    >>> optimizer = torch.optim.SGD(espalier.parameter_groups(model, lr=0.01), momentum=0.9)
    >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
    [(2, 0.01), (2, 0.1)]
    """
    for what, value in (("lr", lr), ("factor", factor)):
        if not (math.isfinite(value) and value > 0):
            raise InvalidArgument(f"{what} must be positive, not {value}")
    model = unwrap(model)
    names = {name for edit in edits_of(model) for name in edit.new_layers}
    merged = {
        id(parameter)
        for name, module in model.named_modules()
        if name in names
        for parameter in module.parameters()
    }
    wanted = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if (id(p) in merged) == new], "lr": lr * scale}
        for new, scale in ((False, 1.0), (True, factor))
    ]
    return [group for group in groups if group["params"]]
