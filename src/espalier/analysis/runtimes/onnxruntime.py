"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espalier.analysis.runtime import RUNTIMES, Call, Runtime
from espalier.errors import InvalidArgument, MissingDependency
from espalier.export.onnx_graph import trace


@RUNTIMES.register("onnxruntime")
@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """The model exported to ONNX, with all of the runtime's graph optimisations."""

    def prepare(self, model: nn.Module, inputs: Sequence[Any]) -> Call:
        try:
            import onnxruntime
        except ImportError:
            raise MissingDependency(
                "ONNX Runtime is not installed: pip install 'espalier[onnx]'"
            ) from None
        if any(x.device.type != "cpu" for x in inputs if torch.is_tensor(x)):
            raise InvalidArgument("ONNX Runtime is timed on the CPU only")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            trace(model, inputs), options, providers=["CPUExecutionProvider"]
        )
        names = [given.name for given in session.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return lambda: session.run(None, feed)
