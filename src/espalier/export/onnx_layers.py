"""The layers of an ONNX graph: operators that multiply by a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Layer:
    """An operator that multiplies by a weight: node, name of the weight, and how it lies there.

    ``order``: of the weight's dimensions, where the graph transposes it; None where it does not.
    """

    node: Any
    weight: str
    order: tuple[int, ...] | None

    @property
    def operand(self) -> str:
        """What the node has for the weight."""
        return str(self.node.input[1])

    @property
    def data(self) -> str:
        """What enters the layer."""
        return str(self.node.input[0])

    @property
    def bias(self) -> str:
        """Empty where there is none."""
        return str(self.node.input[2]) if len(self.node.input) > 2 else ""


def layers_of(graph: Any) -> list[Layer]:
    """The layers of a graph whose weights are initialisers, in order."""
    held = {tensor.name for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type not in LAYERS or len(node.input) < 2:
            continue
        name, order = node.input[1], None
        while name in made and made[name].op_type in ("Identity", "Transpose"):
            source = made[name]
            if source.op_type == "Transpose":
                if order is not None or not source.attribute:
                    break
                order = tuple(source.attribute[0].ints)
            name = source.input[0]
        if name in held:
            found.append(Layer(node, name, order))
    return found
