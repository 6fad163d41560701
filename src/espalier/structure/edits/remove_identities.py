"""Steps that do nothing in evaluation: dropout and identities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from espalier.errors import InvalidArgument
from espalier.structure.edit import EDITS, StructuralEdit, check_steps
from espalier.structure.operations import DROPOUT, IDENTITY
from espalier.structure.traced import Traced


@EDITS.register("remove_identities")
@dataclass(frozen=True)
class RemoveIdentities(StructuralEdit):
    """Dropout and identities go; the network computes in evaluation what it did (exact).

    Parameters
    ----------
    layers : list of str
        The modules. Calls of functions are not named; all of them go.
    functions : int
        How many calls of functions there are.
    """

    layers: list[str]
    functions: int = 0

    def __post_init__(self) -> None:
        check_steps(self.layers, self.functions)

    def check(self, model: nn.Module) -> None:
        traced = Traced(model)
        found = removable(traced)
        for layer in self.layers:
            if layer not in found.layers:
                raise InvalidArgument(
                    f"{layer}: is no dropout or identity of the model; the edits are of another "
                    "architecture"
                )
        if found.functions != self.functions:
            raise InvalidArgument(
                f"dropout: is called {found.functions} times as a function, in the edit "
                f"{self.functions} times; the edits are of another architecture"
            )

    def apply(self, model: nn.Module) -> None:
        traced = Traced(model)
        traced.remove(
            node
            for node in traced.graph.nodes
            if traced.step(node).kind in (DROPOUT, IDENTITY)
            and (node.op != "call_module" or str(node.target) in self.layers)
        )
        traced.commit(rewrite=True)

    def describe(self) -> list[str]:
        lines = [f"{layer}: is left out" for layer in self.layers]
        return lines + ([f"dropout: {self.functions} calls are left out"] * bool(self.functions))


def removable(traced: Traced) -> RemoveIdentities:
    """The edit that leaves out every dropout and every identity."""
    layers: dict[str, None] = {}
    functions = 0
    for node in traced.graph.nodes:
        if traced.step(node).kind in (DROPOUT, IDENTITY):
            if node.op == "call_module":
                layers[str(node.target)] = None
            else:
                functions += 1
    return RemoveIdentities(list(layers), functions)
