"""Where, beside the inputs of layers, an ONNX graph is rounded to run in integers throughout.

A runtime computes a layer in integers only where its output is rounded too, and so the sum of two
branches, their concatenation, and averages. Between them stand operators that move numbers and
change none, which may as well move integers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from espalier.export.onnx_layers import Layer

Edge = tuple[str, str]
"""First output of a node, and an input of it."""

JOINTS = frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool"})
MOVES = frozenset(
    {"Dropout", "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
ACTIVATIONS = frozenset({"Relu", "Clip"})


@dataclass(frozen=True)
class Joint:
    """A value to round, where it goes over these edges.

    Operators that move numbers pass its grid on: the edges behind them are here too. ``layer``: the
    weight of a layer that takes the value and rounds it anyway, and whose grid will do; or None.
    """

    value: str
    edges: tuple[Edge, ...]
    layer: str | None


def find_joints(graph: Any, layers: list[Layer]) -> list[Joint]:
    """What beside the inputs of ``layers``, which are in integers, is to be rounded."""
    return Flow(graph, layers).joints()


class Flow:
    """What makes and what takes each value of a graph in which ``layers`` are in integers."""

    def __init__(self, graph: Any, layers: list[Layer]) -> None:
        self.nodes = list(graph.node)
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.takers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.takers[name].append(node)
        self.results = {output.name for output in graph.output}
        self.layers = {id(layer.node): layer for layer in layers}
        self.fixed = {tensor.name for tensor in graph.initializer}
        self.zeros = {tensor.name for tensor in graph.initializer if _is_zero(tensor)}
        for node in self.nodes:
            if node.op_type == "Constant" and any(_is_zero(a.t) for a in node.attribute):
                self.zeros.update(node.output)
            if all(not name or name in self.fixed for name in node.input):
                self.fixed.update(node.output)

    def joints(self) -> list[Joint]:
        """See :func:`find_joints`."""
        edges: dict[str, list[Edge]] = defaultdict(list)
        for node in self.nodes:
            if not self._is_joint(node):
                continue
            for name in self._data(node):
                source, path = self._back(name)
                edges[source] += [*path, (node.output[0], name)]
            after = self._after(node)
            if after not in self.results and self._feeds_integers(after):
                edges[after] += [
                    (taker.output[0], after)
                    for taker in self.takers[after]
                    if id(taker) not in self.layers
                ]
        return [
            Joint(name, tuple(dict.fromkeys(found)), self._layer(name))
            for name, found in edges.items()
            if found
        ]

    def _layer(self, name: str) -> str | None:
        ends = (self.layers.get(id(taker)) for taker in self._ends(name))
        return next((layer.weight for layer in ends if layer is not None), None)

    def is_rounded(self, node: Any, edges: Collection[Edge]) -> bool:
        """Whether all that take a node's output, or its activation's, round it."""
        open_ends = [self._after(node)]
        while open_ends:
            name = open_ends.pop()
            if name in self.results:
                return False
            for taker in self.takers[name]:
                if id(taker) in self.layers or (taker.output[0], name) in edges:
                    continue
                if not self._moves(taker):
                    return False
                open_ends.append(taker.output[0])
        return True

    def _is_joint(self, node: Any) -> bool:
        data = self._data(node)
        whole = len(data) == len(node.input)
        return node.op_type in JOINTS and bool(data) and whole and self._has_integers(data)

    def _data(self, node: Any) -> list[str]:
        return [name for name in node.input if name and name not in self.fixed]

    def _has_integers(self, data: list[str]) -> bool:
        """Whether a layer, or another joint, computes one of the inputs."""
        return any(self._comes_from_integers(name) for name in data)

    def _comes_from_integers(self, name: str) -> bool:
        while name in self.maker:
            node = self.maker[name]
            if id(node) in self.layers or node.op_type in JOINTS:
                return True
            if not self._moves(node) and node.op_type not in ACTIVATIONS:
                return False
            name = node.input[0]
        return False

    def _back(self, name: str) -> tuple[str, list[Edge]]:
        """The value that operators have moved to here, and the edges on the way."""
        path: list[Edge] = []
        while name in self.maker and self._moves(self.maker[name]):
            node = self.maker[name]
            path.append((node.output[0], node.input[0]))
            name = node.input[0]
        return name, path

    def _moves(self, node: Any) -> bool:
        """Whether the numbers that come out are among those that go in, or zero."""
        padding = node.input[2] if node.op_type == "Pad" and len(node.input) > 2 else ""
        return node.op_type in MOVES and (not padding or padding in self.zeros)

    def _after(self, node: Any) -> str:
        """The node's output, or what its activation makes of it."""
        takers = self.takers[node.output[0]]
        alone = len(takers) == 1 and takers[0].op_type in ACTIVATIONS
        return str(takers[0].output[0] if alone else node.output[0])

    def _feeds_integers(self, name: str) -> bool:
        return any(id(t) in self.layers or t.op_type in JOINTS for t in self._ends(name))

    def _ends(self, name: str) -> Iterator[Any]:
        """What takes a value, behind operators that move it."""
        for taker in self.takers[name]:
            if self._moves(taker):
                yield from self._ends(taker.output[0])
            else:
                yield taker


def _is_zero(tensor: Any) -> bool:
    """Whether a tensor of a graph is one zero."""
    from onnx import numpy_helper

    if list(tensor.dims) not in ([], [1]) or not tensor.data_type:
        return False
    return not numpy_helper.to_array(tensor).any()
