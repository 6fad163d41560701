"""From a PyTorch module to an ONNX graph."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from espalier.errors import InvalidArgument, MissingDependency, first_line

OPSET = 17
"""Of graphs that are made here: known to every ONNX Runtime since 1.12."""


def trace(model: nn.Module, inputs: Sequence[Any], **options: Any) -> bytes:
    """``torch.onnx.export`` of a model in evaluation mode, as the bytes of a model.

    Raises
    ------
    MissingDependency
        The package ``onnx`` is not installed.
    InvalidArgument
        The model cannot be exported: an operator that ONNX has not, for example.
    """
    try:
        import onnx  # noqa: F401 - torch asks for it late, in words of its own
    except ImportError:
        raise MissingDependency(
            "to export to ONNX takes the package onnx: pip install 'espalier[onnx]'"
        ) from None
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
                **options,
            )
    except Exception as error:
        raise InvalidArgument(
            f"the model cannot be exported to ONNX: {first_line(error)}"
        ) from error
    return buffer.getvalue()


def trace_by_name(model: nn.Module, inputs: Sequence[Any], *, dynamic_batch: bool) -> bytes:
    """The same, with every parameter an initialiser of its own name and value.

    Nothing is folded into the weights, batch norms neither: a runtime does that when it loads the
    model, and a folded weight has no codebook any more.
    """
    names = [f"input{i}" if i else "input" for i in range(len(inputs))]
    batched = [n for n, x in zip(names, inputs, strict=True) if torch.is_tensor(x) and x.dim()]
    axes = {name: {0: "batch"} for name in [*batched, "output"]} if dynamic_batch else {}
    return trace(
        model,
        inputs,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=names,
        output_names=["output"],
        dynamic_axes=axes,
    )
