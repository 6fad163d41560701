"""``espalier.factorize``: weights written as products of smaller ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.options import Lookup, kept_count
from espalier.structure.budget import Budget, latency_ratio
from espalier.structure.candidate import Candidate, Shapes, input_shapes
from espalier.structure.cost import cost
from espalier.structure.edit import perform
from espalier.structure.edits.factorize import Factorize, no_place
from espalier.structure.factorization import (
    FACTORIZATIONS,
    Ranks,
    block_shape,
    default_method,
    obstacle,
    weight_of,
)
from espalier.targets import Skipped, Target, find_targets, refuse_nonfinite, unwrap

Rank: TypeAlias = int | float | str | Sequence[int]
"""A rank, the share of the full rank, ``"vbmf"``, or a rank for each mode."""


_Wanted: TypeAlias = list[tuple[Candidate, Ranks]]


@dataclass(frozen=True)
class FactoredLayer:
    """What became of one layer.

    Attributes
    ----------
    name, method : str
    ranks, full : tuple of int
        Those that it has now, and those that it would need to stay as it was; of each group.
    parameters : tuple of int
        Of the weight, and of its factors.
    macs : tuple of int, or None
        Multiply-accumulates of one sample, before and after, where an example was given.
    relative_error : float
        ||W - product of the factors||_F / ||W||_F.
    """

    name: str
    method: str
    ranks: Ranks
    full: Ranks
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    relative_error: float


@dataclass(frozen=True)
class FactorizeReport:
    """Every layer that was factored, every layer that was not, and what the network costs.

    ``parameters`` and ``macs`` are before and after; ``macs`` is None without an example.
    """

    layers: tuple[FactoredLayer, ...]
    skipped: tuple[Skipped, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None


def check_rank(value: object) -> Rank:
    """``value`` as a rank: a whole number, a share in (0, 1), ``"vbmf"``, or a rank by mode."""
    if value == "vbmf":
        return "vbmf"
    if _is_rank(value) or (isinstance(value, float) and 0 < value <= 1):
        return value  # type: ignore[return-value]
    if isinstance(value, list | tuple) and value and all(_is_rank(r) for r in value):
        return tuple(value)
    raise InvalidArgument(
        f"rank must be a whole number above 0, a share in (0, 1], a list of ranks, or 'vbmf', "
        f"not {value!r}"
    )


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_energy(value: object) -> float:
    """``value`` as the share of the squared norm that stays: a number in (0, 1]."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise InvalidArgument(f"energy must be a number in (0, 1], not {value!r}")


def check_method(value: object) -> str:
    """``value`` as the name of a factorization."""
    FACTORIZATIONS.get(str(value))
    return str(value)


def factorize(
    model: nn.Module,
    rank: Rank | Mapping[str, Rank | None] | None = None,
    *,
    method: str | Mapping[str, str | None] | None = None,
    energy: float | Mapping[str, float | None] | None = None,
    parameters: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    example: Any = None,
) -> FactorizeReport:
    """Replace layers by chains of smaller ones, whose weights multiply to about what they were.

    Saves disk, memory and time, on any runtime. What was done is recorded on the model as an edit
    (:func:`espalier.edits_of`), goes into the file with :func:`espalier.save`, and is done again by
    :func:`espalier.load` on a freshly built model.

    Parameters
    ----------
    model : nn.Module
        Changed in place. The parameters of factored layers are new: make a new optimizer.
    rank : int, float, "vbmf", sequence of int, or mapping
        A rank; a share in (0, 1] of the full rank; the rank that variational Bayes finds (Nakajima
        et al. 2013, JMLR 14), as Kim et al. 2016 do; or, with ``"tucker2"``, the ranks of outputs
        and inputs. One value, or values by ``"*"``, kind (``"conv"``, ``"linear"``) and name
        pattern; what has none stays. Of a grouped convolution the ranks are those of each group.
    method : str or mapping, optional
        ``"svd"``, ``"spatial_svd"``, ``"tucker2"``, ``"cp"``; values as for ``rank``. By default
        Tucker-2 for convolutions with a kernel, and SVD for all other layers.
    energy : float or mapping, optional
        In place of ``rank``: the least ranks that hold this share of the squared Frobenius norm of
        each unfolding.
    parameters, macs, latency : float, optional
        In place of ``rank``: the share of the network's parameters, its multiply-accumulates, or
        its measured time that may stay, reached from below by one energy for all layers. The time
        is that of one forward pass on ``example``, by PyTorch as it is, measured in turn with the
        original's.
    example : Tensor or tuple of Tensors
        Inputs, for ``macs`` and ``latency``. Where they are given, a layer whose factors would take
        more multiply-accumulates stays too.

    Returns
    -------
    FactorizeReport
        Factors that would cost more than their layer are not made; it is listed with the reason.

    Raises
    ------
    InvalidArgument
        A value out of range, a pattern that matches nothing, no layer that can be factored, a
        budget that cannot be reached; the model is then as it was.
    MissingDependency
        Tucker-2 and CP need tensorly, of the extra ``structure``.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(),
    ...     torch.nn.Linear(32, 4))
    >>> report = espalier.factorize(model, {"0": 8})
    >>> model[0]
    Sequential(
      (0): Linear(in_features=64, out_features=8, bias=False)
      (1): Linear(in_features=8, out_features=32, bias=True)
    )
    >>> report.layers[0].parameters
    (2048, 768)
    """
    model = unwrap(model)
    budget = Budget.of(parameters=parameters, macs=macs, latency=latency)
    if sum(value is not None for value in (rank, energy, budget)) != 1:
        raise InvalidArgument("give one of rank, energy, parameters, macs and latency")
    if budget is not None and budget.what != "parameters" and example is None:
        raise InvalidArgument(f"{budget.what} needs an example, to run the network on")
    how = _lookup(rank, energy)
    seen = None if example is None else input_shapes(model, example)
    chosen, skipped = _chosen(model, how, _methods(method), seen)
    for candidate, value in chosen:
        if rank is None or value == "vbmf":
            candidate.look()
    wanted = [(c, _ranks(c, value, energy is not None)) for c, value in chosen]
    before = _totals(model, example)
    if budget is not None:
        wanted = _within([c for c, _ in chosen], budget, _spending(budget, model, example, before))
    made: list[tuple[Candidate, Ranks, list[Tensor], float]] = []
    for candidate, ranks in wanted:
        if why := candidate.dearer(ranks):
            skipped.append(Skipped(candidate.name, why))
        else:
            made.append((candidate, ranks, *candidate.decomposed(ranks)))
    return _replaced(model, made, skipped, before, example)


def _lookup(rank: Any, energy: Any) -> Lookup[Any]:
    if rank is not None:
        return Lookup(rank, "rank", check_rank)
    return Lookup(1.0 if energy is None else energy, "energy", check_energy)


def _methods(method: Any) -> Lookup[str] | None:
    return None if method is None else Lookup(method, "method", check_method)


def _chosen(
    model: nn.Module, how: Lookup[Any], methods: Lookup[str] | None, seen: dict[str, Shapes] | None
) -> tuple[list[tuple[Candidate, Any]], list[Skipped]]:
    """The layers that can be factored, with the value that each has, and the others."""
    targets = [t for t in find_targets(model) if t.kind in ("linear", "conv")]
    names = [(t.answers_to, t.kind) for t in targets]
    values = how.resolve(names)
    named = [None] * len(targets) if methods is None else methods.resolve(names)
    chosen: list[tuple[Candidate, Any]] = []
    skipped = []
    for target, value, name in zip(targets, values, named, strict=True):
        layer = target.name.rpartition(".")[0]
        module = target.sites[0].module
        if value is None:
            why = f"no {how.what} is set for it"
        elif methods is not None and name is None:
            why = "no method is set for it"
        else:
            why = _obstacle(model, target, layer)
        if not why and seen is not None and layer not in seen:
            why = "is not called on the example: its weight may be read in another way"
        if not why:
            found = FACTORIZATIONS.make(name or default_method(module))
            why = found.refuses(module)
        if why:
            skipped.append(Skipped(layer, why))
        else:
            refuse_nonfinite(target, target.value)
            chosen.append((Candidate(layer, module, found, (seen or {}).get(layer, [])), value))
    if not chosen:
        reasons = "; ".join(f"{s.name or 'the model'}: {s.reason}" for s in skipped[:3])
        raise InvalidArgument(f"no layer of the model can be factored ({reasons or 'it has none'})")
    return chosen, skipped


def _obstacle(model: nn.Module, target: Target, layer: str) -> str:
    module = target.sites[0].module
    if len(target.names) > 1:
        return "shares its weight with another layer"
    if why := obstacle(module) or target.obstacle or no_place(model, layer):
        return why
    return "" if target.value.any() else "its weights are all zero"


def _ranks(candidate: Candidate, value: Any, is_energy: bool) -> Ranks:
    """The ranks that ``value`` means for a layer."""
    full = candidate.full
    if is_energy or value == "vbmf":
        return candidate.ranks_for(value if is_energy else None)
    if isinstance(value, float):
        wanted = tuple(kept_count(value, m) for m in full)
    elif isinstance(value, int):
        wanted = (value,) * len(full)
    else:
        wanted = tuple(value)
        if len(wanted) != len(full):
            raise InvalidArgument(
                f"{candidate.name}: {candidate.method.name} takes {len(full)} rank"
                f"{'s' if len(full) > 1 else ''}, not {len(wanted)}"
            )
    return candidate.method.clip(block_shape(candidate.layer), wanted)


def _totals(model: nn.Module, example: Any) -> tuple[int, int]:
    """(parameters, multiply-accumulates) of the network; 0 of those without an example."""
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, 0 if example is None else cost(model, example).macs


def _spending(
    budget: Budget, model: nn.Module, example: Any, before: tuple[int, int]
) -> Callable[[_Wanted], float]:
    """What share the network spends with factors that are not made yet."""

    def counted(wanted: _Wanted) -> float:
        what = 0 if budget.what == "parameters" else 1
        return 1 - sum(c.saved(ranks)[what] for c, ranks in wanted) / before[what]

    def timed(wanted: _Wanted) -> float:
        candidate = copy.deepcopy(model)
        edit = _edit([(c, ranks) for c, ranks in wanted if not c.dearer(ranks)])
        if edit.layers:
            perform(candidate, [edit])  # its weights are zeros, which take no other time
        return latency_ratio(candidate, model, example)

    return timed if budget.what == "latency" else counted


def _within(
    candidates: list[Candidate], budget: Budget, spent: Callable[[_Wanted], float]
) -> _Wanted:
    """The ranks of the largest energy whose network spends no more than the budget allows.

    The ranks change only where an energy is what some rank of some layer holds; the search is over
    those, by bisection, so that nothing is between it and the budget.
    """
    held = [s.kept for c in candidates for of_rank in c.spectra for s in of_rank]
    steps = np.unique(np.concatenate(held))

    def ranks(step: int) -> _Wanted:
        return [(c, c.ranks_for(float(steps[step]))) for c in candidates]

    least = spent(ranks(0))
    if least > budget.limit:
        raise InvalidArgument(
            f"{budget.what}: {budget.limit:g} cannot be reached, rank 1 in every layer leaves "
            f"{least:.3g}"
        )
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(ranks(middle)) <= budget.limit else (low, middle)
    return ranks(low)


def _edit(wanted: _Wanted) -> Factorize:
    return Factorize(
        {
            c.name: {
                "of": list(weight_of(c.layer).shape),
                "method": c.method.name,
                "ranks": list(ranks),
            }
            for c, ranks in wanted
        }
    )


def _replaced(
    model: nn.Module,
    made: list[tuple[Candidate, Ranks, list[Tensor], float]],
    skipped: list[Skipped],
    before: tuple[int, int],
    example: Any,
) -> FactorizeReport:
    """Put the factors in place, and say what became of each layer."""
    layers = []
    for candidate, ranks, _, error in made:
        (weights, macs), (ours, our_macs) = candidate.own(), candidate.cost(ranks)
        layers.append(
            FactoredLayer(
                name=candidate.name,
                method=candidate.method.name,
                ranks=ranks,
                full=candidate.full,
                parameters=(weights, ours),
                macs=(macs, our_macs) if candidate.seen else None,
                relative_error=error,
            )
        )
    if made:
        perform(model, [_edit([(candidate, ranks) for candidate, ranks, *_ in made])])
    for candidate, _, factors, _ in made:
        chain = model.get_submodule(candidate.name)
        for one, factor in zip(chain.children(), factors, strict=True):
            assert isinstance(one.weight, nn.Parameter)
            one.weight.data = factor
    after = _totals(model, example)
    return FactorizeReport(
        tuple(layers),
        tuple(skipped),
        (before[0], after[0]),
        None if example is None else (before[1], after[1]),
    )
