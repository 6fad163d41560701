"""ONNX Runtime, on the CPU."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espalier.analysis.runtime import RUNTIMES, Call, Runtime
from espalier.errors import InvalidArgument, MissingDependency, first_line

OPSET = 17


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
            _exported(model, inputs), options, providers=["CPUExecutionProvider"]
        )
        names = [given.name for given in session.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return lambda: session.run(None, feed)


def _exported(model: nn.Module, inputs: Sequence[Any]) -> bytes:
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                tuple(inputs),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
            )
    except Exception as error:
        raise InvalidArgument(
            f"the model cannot be exported to ONNX: {first_line(error)}"
        ) from error
    return buffer.getvalue()
