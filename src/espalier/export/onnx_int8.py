"""A float ONNX graph made one of 8-bit integers: which grids, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from espalier.errors import InvalidArgument
from espalier.export.onnx_calibrate import calibrate
from espalier.export.onnx_joints import find_joints
from espalier.export.onnx_layers import Layer, layers_of
from espalier.export.onnx_qdq import Quantized, check_grid, check_opset, fits
from espalier.fixed_point import FixedPoint, from_groups, to_groups
from espalier.grids import GRIDS, blocks_of
from espalier.quantized_inputs import InputGrid
from espalier.state import CompressedTensor

BITS = 8


def to_int8(
    model: Any,
    tensors: Mapping[str, CompressedTensor],
    grids: Mapping[str, InputGrid],
    batches: Iterable[Any] | None,
) -> dict[str, str]:
    """Round layers, and with ``batches`` what joins them, to 8-bit integers.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place.
    tensors : mapping of str to CompressedTensor
        By the names of initialisers. Those become int8 that fit, and whose layer has a grid.
    grids : mapping of str to InputGrid
        What enters the layer of each weight.
    batches : iterable of inputs, or of (inputs, targets); optional
        To see the ranges of sums and concatenations.

    Returns
    -------
    dict of str to str
        Which weights are int8 now.

    Raises
    ------
    InvalidArgument
        No layer can be in integers.
    """
    check_opset(model)
    for weight, grid in grids.items():
        check_grid(grid, weight)
    weights = {name: tensor for name, tensor in tensors.items() if fits(tensor) and name in grids}
    layers = [layer for layer in layers_of(model.graph) if layer.weight in weights]
    if not layers:
        raise InvalidArgument(
            "no layer has weights and inputs of at most 8 bits: first "
            "espalier.quantize(model, bits=8, activations=8, batches=...)"
        )
    values: dict[tuple[str, str], InputGrid] = {}
    if batches is not None:
        joints = find_joints(model.graph, layers)
        unknown = [joint.value for joint in joints if joint.layer is None]
        seen = calibrate(model, unknown, batches) if unknown else {}
        for joint in joints:
            grid = seen[joint.value] if joint.layer is None else grids[joint.layer]
            values |= dict.fromkeys(joint.edges, grid)
    return Quantized(model, weights, grids, values).write()


def quantize_layers(
    model: Any, tensors: Mapping[str, CompressedTensor], batches: Iterable[Any]
) -> tuple[dict[str, CompressedTensor], dict[str, InputGrid]]:
    """Weights of 8 bits, by output channel, and grids of what enters their layers.

    Parameters
    ----------
    model : onnx.ModelProto
        Not changed.
    tensors : mapping of str to CompressedTensor
        Those in 8 bits already stay as they are; so do those that several layers share, which would
        need a grid for the inputs of each.
    batches : iterable of inputs, or of (inputs, targets)

    Returns
    -------
    tensors, grids : dict
        As :func:`to_int8` takes them.
    """
    made: dict[str, CompressedTensor] = dict(tensors)
    every = layers_of(model.graph)
    times = Counter(layer.weight for layer in every)
    layers = {
        layer.weight: layer
        for layer in every
        if layer.weight in tensors
        and tensors[layer.weight].dtype == "float32"
        and times[layer.weight] == 1
    }
    for name, layer in layers.items():
        if not fits(made[name]):
            made[name] = _by_channel(name, made[name], _channels(layer))
    seen = calibrate(model, [layer.data for layer in layers.values()], batches)
    return made, {name: seen[layer.data] for name, layer in layers.items()}


def _channels(layer: Layer) -> int:
    """The dimension of the weight, as it is stored, that the outputs are along."""
    node = layer.node
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    last = 0 if transposed else -1
    return last if layer.order is None else layer.order[last]


def _by_channel(name: str, tensor: CompressedTensor, axis: int) -> FixedPoint:
    array = tensor.dense()
    if not np.isfinite(array).all():
        raise InvalidArgument(f"{name} holds values that are NaN or infinite")
    block = blocks_of(array.shape, "channel", axis=axis % array.ndim)
    grid = GRIDS.make("fixed", bits=BITS)
    rows = to_groups(array.astype(np.float64), block)
    every = np.ones(rows.shape, np.bool_)
    scales, zeros = grid.fit(rows, every)
    numbers = grid.round(rows, every, scales, zeros)
    first, stride, levels = grid.numbers
    codes = from_groups((numbers - first) // stride, array.shape, block).astype(np.uint8)
    parts = scales.reshape(-1).astype(np.float32), zeros.reshape(-1).astype(np.int16)
    return FixedPoint(
        array.shape, "float32", codes.reshape(-1), *parts, block, first, stride, levels
    )
