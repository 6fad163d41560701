"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from espalier.errors import InvalidArgument, MissingDependency, first_line


def session(model: bytes) -> Any:
    """An ONNX Runtime session of a model, on the CPU, with as many threads as PyTorch has.

    Raises
    ------
    MissingDependency
        The extra ``onnx`` is not installed.
    InvalidArgument
        ONNX Runtime refuses the model: it has not one of its operators, for example.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependency(
            "ONNX Runtime is not installed: pip install 'espalier[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common base of their own
        raise InvalidArgument(f"ONNX Runtime refuses the model: {first_line(error)}") from error
