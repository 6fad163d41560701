"""Ranges of values in an ONNX graph, as ONNX Runtime computes them on a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from espalier.errors import InvalidArgument, first_line
from espalier.export.onnx_session import session
from espalier.quantization.activations import Seen, grid_of, range_of
from espalier.quantized_inputs import InputGrid


def calibrate(model: Any, names: Sequence[str], batches: Iterable[Any]) -> dict[str, InputGrid]:
    """A grid of 8 bits for each of these values of a graph, as for the inputs of layers.

    Parameters
    ----------
    model : onnx.ModelProto
        Not changed.
    names : sequence of str
        Float values that nodes compute, or inputs of the graph.
    batches : iterable of inputs, or of (inputs, targets)
    """
    from onnx import TensorProto, helper

    watched = type(model)()
    watched.CopyFrom(model)
    given = [value.name for value in model.graph.input]
    del watched.graph.output[:]
    inside = [name for name in names if name not in given]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inside
    )
    seen = {name: Seen() for name in names}
    run = session(watched.SerializeToString())
    feeds = [value.name for value in run.get_inputs()]
    if len(feeds) != 1:
        raise InvalidArgument(f"batches are of one input, and the graph takes {len(feeds)}")
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        array = np.asarray(x.detach().cpu() if torch.is_tensor(x) else x)
        try:
            found = run.run(inside, {feeds[0]: array}) if inside else []
        except Exception as error:  # as above
            raise InvalidArgument(
                f"the graph fails on a batch of shape {array.shape}: {first_line(error)}"
            ) from error
        for name, values in zip(inside, found, strict=True):
            seen[name].add(torch.from_numpy(values))
        if feeds[0] in seen:
            seen[feeds[0]].add(torch.from_numpy(array))
    if not all(one.values for one in seen.values()):
        raise InvalidArgument("batches: there are none to see the ranges of values in")
    wanted = range_of(8, {"calibration": "mse"})
    return {name: grid_of(wanted, one) for name, one in seen.items()}
