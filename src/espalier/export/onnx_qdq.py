"""8-bit integers in an ONNX graph: weights, biases and activations between Q and DQ operators.

A layer runs in integers where its input, its weight, its bias and its output are each rounded to a
grid, which the graph says by QuantizeLinear and DequantizeLinear around it:

==========  ==========================================================================
weight      int8, a scale for each output channel or one for all
bias        int32, scale = scale of the input * scale of the weight; float, where the
            output stays float
activation  uint8 (affine) or int8 (symmetric), one scale
==========  ==========================================================================

(Jacob et al. 2018, arXiv 1712.05877, section 2.) The numbers are the network's own, as
:func:`espalier.quantize` found them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np

from espalier.errors import InvalidArgument
from espalier.export.onnx_joints import Flow
from espalier.export.onnx_layers import Layer, layers_of
from espalier.export.onnx_weights import names_in, opset_of, refuse_clash, remove, tensor_proto
from espalier.fixed_point import FixedPoint
from espalier.quantized_inputs import InputGrid
from espalier.state import Array

MIN_OPSET = 13
"""QuantizeLinear takes a scale for each channel since then."""
_INT8, _UINT8, _INT32 = (-128, 127), (0, 255), 1 << 31


def fits(tensor: Any) -> TypeGuard[FixedPoint]:
    """Whether a weight can be int8: fixed point of 8 bits, one scale, or one for each channel."""
    return (
        isinstance(tensor, FixedPoint)
        and tensor.dtype == "float32"
        and tensor.bits <= 8
        and (tensor.axis is not None or tensor.scales.size == 1)
        and bool(np.all(np.abs(tensor.zeros.astype(np.int32)) <= 127))
    )


def check_grid(grid: InputGrid, where: str) -> None:
    """:class:`InvalidArgument` if a grid has more than 8 bits."""
    low, high = _INT8 if grid.signed else _UINT8
    if grid.low < low or grid.high > high:
        raise InvalidArgument(
            f"{where}: its inputs are quantized to {grid.bits} bits; int8 takes at most 8"
        )


def check_opset(model: Any) -> None:
    """:class:`InvalidArgument` if a model is too old for a scale for each channel."""
    opset = opset_of(model)
    if opset < MIN_OPSET:
        raise InvalidArgument(
            f"the graph is of ONNX opset {opset}, and int8 with a scale for each channel needs "
            f"{MIN_OPSET}: convert it by onnx.version_converter"
        )


class Quantized:
    """A graph, whose nodes are written anew with Q and DQ between them.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed by :meth:`write`.
    weights : mapping of str to FixedPoint
        By name of initialiser; all of them ``fits``.
    grids : mapping of str to InputGrid
        What enters the layer of each weight.
    values : mapping of (str, str) to InputGrid
        Of what else: (output of a node, input of it).
    """

    def __init__(
        self,
        model: Any,
        weights: Mapping[str, FixedPoint],
        grids: Mapping[str, InputGrid],
        values: Mapping[tuple[str, str], InputGrid],
    ) -> None:
        self.graph = model.graph
        self.weights, self.grids, self.values = weights, grids, values
        self.layers = {
            id(layer.node): layer
            for layer in layers_of(self.graph)
            if layer.weight in weights and layer.weight in grids
        }
        self._initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self._taken = names_in(self.graph)
        flow = Flow(self.graph, list(self.layers.values()))
        # A runtime computes a layer with a float output in floats, where a bias is exact as it is;
        # but a product of matrices in integers all the same.
        self._whole = {
            key
            for key, layer in self.layers.items()
            if layer.node.op_type == "Gemm" or flow.is_rounded(layer.node, values)
        }
        self._nodes: list[Any] = []
        self._known: dict[Any, str] = {}

    def write(self) -> dict[str, str]:
        """Rewrite the graph; which weights are int8 in it now, each with that word."""
        nodes = list(self.graph.node)
        for node in nodes:
            layer = self.layers.get(id(node))
            inputs = list(node.input)
            if layer is not None:
                grid = self.grids[layer.weight]
                inputs[0] = self._rounded(layer.data, grid)
                inputs[1] = self._weight(layer)
                if layer.bias in self._initializers and id(node) in self._whole:
                    inputs[2] = self._bias(layer, grid)
            for i, name in enumerate(inputs):
                wanted = self.values.get((node.output[0], name)) if node.output else None
                if wanted is not None:
                    inputs[i] = self._rounded(name, wanted)
            del node.input[:]
            node.input.extend(inputs)
            self._nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self._nodes)
        _drop_unused(self.graph)
        return dict.fromkeys(sorted({layer.weight for layer in self.layers.values()}), "int8")

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{output}.{operator}"
        refuse_clash(self._taken, [output])
        self._nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def _held(self, name: str, dtype: str, array: Any) -> str:
        refuse_clash(self._taken, [name])
        self.graph.initializer.append(tensor_proto(name, dtype, np.asarray(array, dtype)))
        return name

    def _rounded(self, name: str, grid: InputGrid) -> str:
        """A value, rounded to a grid: once for all that take it so."""
        key = name, grid
        if key not in self._known:
            suffix = sum(known[0] == name for known in self._known if isinstance(known, tuple))
            self._known[key] = self._round(name, grid, f"{name}.on{suffix or ''}")
        return self._known[key]

    def _round(self, name: str, grid: InputGrid, stem: str) -> str:
        dtype, whole = ("int8", _INT8) if grid.signed else ("uint8", _UINT8)
        scale = self._held(f"{stem}.scale", "float32", grid.scale)
        zero = self._held(f"{stem}.zero", dtype, grid.zero)
        if (grid.low, grid.high) != whole:  # the type holds more numbers than the grid
            ends = (np.array([grid.low, grid.high]) - grid.zero) * np.float64(grid.scale)
            least = self._held(f"{stem}.least", "float32", ends[0])
            most = self._held(f"{stem}.most", "float32", ends[1])
            name = self._node("Clip", [name, least, most], f"{stem}.clipped")
        numbers = self._node("QuantizeLinear", [name, scale, zero], f"{stem}.numbers")
        return self._node("DequantizeLinear", [numbers, scale, zero], stem)

    def _weight(self, layer: Layer) -> str:
        """The weight from integers, in the place and the order that the node takes it."""
        if layer.operand not in self._known:
            tensor, stem = self.weights[layer.weight], f"{layer.operand}.int8"
            numbers, axis = tensor.integers(), tensor.axis
            if layer.order is not None:
                numbers = numbers.transpose(layer.order)
                axis = None if axis is None else layer.order.index(axis)
            per_axis = axis is not None
            held = self._held(f"{stem}.numbers", "int8", numbers)
            scale = self._held(f"{stem}.scale", "float32", _one(tensor.scales, per_axis))
            zero = self._held(f"{stem}.zero", "int8", _one(tensor.zeros, per_axis))
            along = {"axis": axis} if per_axis else {}
            self._known[layer.operand] = self._node(
                "DequantizeLinear", [held, scale, zero], stem, **along
            )
        return self._known[layer.operand]

    def _bias(self, layer: Layer, grid: InputGrid) -> str:
        """The bias in 32 bits; as it was where that does not hold it."""
        from onnx import numpy_helper

        tensor = self.weights[layer.weight]
        bias = numpy_helper.to_array(self._initializers[layer.bias])
        scales = (np.float32(grid.scale) * tensor.scales).astype(np.float32)
        scales = np.broadcast_to(scales, bias.shape) if scales.size == 1 else scales
        if bias.dtype != np.float32 or bias.shape != scales.shape or not np.all(scales > 0):
            return layer.bias
        numbers = np.rint(bias.astype(np.float64) / scales)
        if np.abs(numbers).max(initial=0) >= _INT32:
            return layer.bias
        key = layer.bias, layer.weight, grid
        if key not in self._known:
            stem = f"{layer.node.output[0]}.bias"
            held = self._held(f"{stem}.numbers", "int32", numbers)
            scale = self._held(f"{stem}.scale", "float32", scales)
            zero = self._held(f"{stem}.zero", "int32", np.zeros(scales.shape))
            self._known[key] = self._node("DequantizeLinear", [held, scale, zero], stem, axis=0)
        return self._known[key]


def _one(parts: Array, per_axis: bool) -> Array:
    return parts if per_axis else parts.reshape(())


def _drop_unused(graph: Any) -> None:
    """Take out initialisers, and transposes of them, that nothing takes any more."""
    results = {output.name for output in graph.output}
    while True:
        used = results | {name for node in graph.node for name in _taken(node)}
        kept = [
            node
            for node in graph.node
            if node.op_type not in ("Transpose", "Identity") or used & {*node.output}
        ]
        if len(kept) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(kept)
    unused = {tensor.name: None for tensor in graph.initializer if tensor.name not in used}
    remove(graph.initializer, unused)
    remove(graph.input, unused)


def _taken(node: Any) -> Iterator[str]:
    """What a node takes, in the graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                yield from _taken(inner)
            yield from (output.name for output in graph.output)
