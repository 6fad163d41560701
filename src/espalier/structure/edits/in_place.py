"""ReLUs that overwrite what they read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from espalier.errors import InvalidArgument
from espalier.structure.edit import EDITS, StructuralEdit, check_steps
from espalier.structure.operations import BATCH_NORM, CONVOLUTION, LINEAR, RELU
from espalier.structure.traced import Traced


@EDITS.register("in_place")
@dataclass(frozen=True)
class InPlace(StructuralEdit):
    """ReLUs that alone read what a convolution, linear layer or batch norm gives overwrite it.

    Exact; it saves the memory for their outputs, and the time to fetch it.

    Parameters
    ----------
    layers : list of str
        The ReLUs that are modules.
    functions : int
        How many calls of functions and methods there are.
    """

    layers: list[str]
    functions: int = 0

    def __post_init__(self) -> None:
        check_steps(self.layers, self.functions)

    def check(self, model: nn.Module) -> None:
        found = overwriting(Traced(model))
        for layer in {*self.layers} ^ {*found.layers}:
            can = "can" if layer in found.layers else "cannot"
            raise InvalidArgument(
                f"{layer}: {can} work in place; the edits are of another architecture"
            )
        if found.functions != self.functions:
            raise InvalidArgument(
                f"relu: {found.functions} calls can work in place, in the edit {self.functions}; "
                "the edits are of another architecture"
            )

    def apply(self, model: nn.Module) -> None:
        traced = Traced(model)
        for layer in self.layers:
            traced.modules[layer].inplace = True
        if self.functions:
            for node in _calls(traced):
                _overwrite(node)
            traced.commit(rewrite=True)

    def describe(self) -> list[str]:
        lines = [f"{layer}: works in place" for layer in self.layers]
        return lines + ([f"relu: {self.functions} calls work in place"] * bool(self.functions))


def overwriting(traced: Traced) -> InPlace:
    """The edit that makes every ReLU work in place that may, and does not yet."""
    layers = [
        layer
        for layer, calls in traced.calls.items()
        if isinstance(traced.modules[layer], nn.ReLU)
        and not getattr(traced.modules[layer], "inplace", True)
        and all(_may_overwrite(traced, call) for call in calls)
    ]
    return InPlace(layers, len(_calls(traced)))


def _calls(traced: Traced) -> list[fx.Node]:
    """Calls of functions and methods that may work in place, and do not yet."""
    return [
        node
        for node in traced.graph.nodes
        if node.op in ("call_function", "call_method")
        and traced.step(node).kind == RELU
        and node.target not in (torch.relu_, functional.relu_, "relu_")
        and not node.kwargs.get("inplace", False)
        and len(node.args) == 1
        and _may_overwrite(traced, node)
    ]


def _may_overwrite(traced: Traced, node: fx.Node) -> bool:
    before = node.args[0] if node.args else None
    # Their gradients need their inputs and weights, and not their outputs.
    makes = (CONVOLUTION, LINEAR, BATCH_NORM)
    return (
        isinstance(before, fx.Node) and len(before.users) == 1 and traced.step(before).kind in makes
    )


def _overwrite(node: fx.Node) -> None:
    if node.op == "call_method":
        node.target = "relu_"
    elif node.target is torch.relu:
        node.target = torch.relu_
    else:
        node.kwargs = {**node.kwargs, "inplace": True}
