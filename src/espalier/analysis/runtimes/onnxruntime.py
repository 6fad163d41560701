"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espalier.analysis.runtime import RUNTIMES, Call, Runtime
from espalier.errors import InvalidArgument
from espalier.export.onnx_graph import trace
from espalier.export.onnx_session import session


@RUNTIMES.register("onnxruntime")
@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """The model exported to ONNX, with all of the runtime's graph optimisations."""

    def prepare(self, model: nn.Module, inputs: Sequence[Any]) -> Call:
        if any(x.device.type != "cpu" for x in inputs if torch.is_tensor(x)):
            raise InvalidArgument("ONNX Runtime is timed on the CPU only")
        run = session(trace(model, inputs))
        names = [given.name for given in run.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return lambda: run.run(None, feed)
