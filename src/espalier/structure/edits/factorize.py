"""Layers replaced by chains of smaller ones, whose product they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.structure.edit import EDITS, StructuralEdit, edits_of, named_module
from espalier.structure.factorization import (
    FACTORIZATIONS,
    Factorization,
    Ranks,
    block_shape,
    obstacle,
    product_of,
    weight_of,
)


@EDITS.register("factorize")
@dataclass(frozen=True)
class Factorize(StructuralEdit):
    """Each layer becomes an ``nn.Sequential`` of ordinary layers with the shapes of its factors.

    The weights are zeros until they are set (:func:`espalier.factorize`) or loaded; the bias is
    carried over.

    Parameters
    ----------
    layers : mapping of str to mapping
        For each layer ``{"of": [...], "method": name, "ranks": [...]}``; ``of`` is the shape of the
        weight that it had.
    """

    layers: Mapping[str, Mapping[str, object]]

    def __post_init__(self) -> None:
        for name, entry in self.layers.items():
            for key in ("of", "ranks"):
                if not _counts(entry[key]):
                    raise InvalidArgument(f"{name}: {key} {entry[key]!r} are no counts")
            if unknown := set(entry) - {"of", "method", "ranks"}:
                raise InvalidArgument(f"{name}: {sorted(unknown)} is not understood")
            FACTORIZATIONS.make(str(entry["method"]))

    def check(self, model: nn.Module) -> None:
        for name, entry in self.layers.items():
            layer = named_module(model, name)
            method, ranks = self._how(name)
            if why := obstacle(layer) or method.refuses(layer) or no_place(model, name):
                raise InvalidArgument(f"{name}: {why}")
            if list(weight_of(layer).shape) != entry["of"]:
                raise InvalidArgument(
                    f"{name}: has a weight of {list(weight_of(layer).shape)}, the edit is of a "
                    f"layer with {entry['of']}"
                )
            limits = method.limits(block_shape(layer))
            if len(ranks) != len(limits) or any(r > m for r, m in zip(ranks, limits, strict=True)):
                raise InvalidArgument(
                    f"{name}: {method.name} takes ranks of at most {list(limits)}, not "
                    f"{list(ranks)}"
                )

    def apply(self, model: nn.Module) -> None:
        for name in self.layers:
            layer = named_module(model, name)
            method, ranks = self._how(name)
            head, _, tail = name.rpartition(".")
            setattr(model.get_submodule(head), tail, _chain(layer, method.parts(layer, ranks)))

    def describe(self) -> list[str]:
        return [
            f"{name}: {e['method']} of rank {', '.join(map(str, e['ranks']))}"  # type: ignore[call-overload]
            for name, e in self.layers.items()
        ]

    def _how(self, name: str) -> tuple[Factorization, Ranks]:
        entry = self.layers[name]
        return FACTORIZATIONS.make(str(entry["method"])), tuple(entry["ranks"])  # type: ignore[arg-type]


def _counts(value: object) -> bool:
    """Whether it is a list of whole numbers of at least 1."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value)
    )


def no_place(model: nn.Module, name: str) -> str:
    """Why nothing can be put in place of a layer; empty if something can."""
    if not name:
        return "is the whole model; put it in an nn.Sequential"
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.TransformerEncoderLayer | nn.MultiheadAttention):
        return f"is read by its {type(parent).__name__}, not only called"
    return ""


def _chain(layer: nn.Module, parts: list[nn.Module]) -> nn.Sequential:
    """``parts`` with memory, zeros for weights, and the bias of ``layer`` on the last."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    chain = nn.Sequential(*parts)
    for one in parts:
        shape = weight_of(one).shape
        zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        one.weight = nn.Parameter(zeros, weight.requires_grad)
    parts[-1].bias = bias
    return chain.train(layer.training)


def factored_weight(model: nn.Module, name: str) -> Tensor:
    """The weight that the factors of the layer ``name`` stand for, as they are now.

    InvalidArgument if no edit of ``model`` has factored it.
    """
    for edit in reversed(edits_of(model)):
        if isinstance(edit, Factorize) and name in edit.layers:
            chain = named_module(model, name)
            assert isinstance(chain, nn.Sequential)
            return product_of(chain, FACTORIZATIONS.make(str(edit.layers[name]["method"])))
    raise InvalidArgument(f"{name}: is not factored")
