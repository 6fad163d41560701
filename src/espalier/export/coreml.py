"""Core ML packages from compressed networks, with palettized and sparse weights."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from espalier.container import atomic_folder
from espalier.errors import InvalidArgument, MissingDependency, first_line
from espalier.export.coreml_weights import FLOATS, TARGETS, halved, smallest
from espalier.export.onnx import Exported, plain_copy
from espalier.state import CompressedTensor, Dense
from espalier.torch_io import read_model

SUFFIX = ".mlpackage"
_SCALES_WEIGHTS = {"common::fuse_conv_batchnorm", "common::fuse_conv_scale"}
"""Passes that would change weights, and leave no codebook: the device's compiler does the same."""


def export_coreml(
    model: nn.Module,
    inputs: Any,
    path: str | os.PathLike[str],
    *,
    target: str = "iOS18",
    precision: str = "float32",
    force: bool = True,
) -> Exported:
    """Write a network to a Core ML package (ML Program), its weights as they are here.

    Masks and codebooks go into the package as Core ML's own sparse and palettized weights, without
    clustering again; numbers on a grid as quantized ones. Expanded, they equal the model's weights
    bit for bit.

    Parameters
    ----------
    model : nn.Module
        Read, not changed; exported in evaluation mode, by tracing.
    inputs : Tensor, or sequence of Tensors
        An example; the package takes inputs of these shapes.
    path : path
        Ends in ``.mlpackage``: a folder, that appears whole or not at all.
    target : {"iOS18", "iOS16"}
        The oldest system that is to run it. Before iOS 18 (macOS 15) a weight is sparse or
        palettized and not both, and none is quantized.
    precision : {"float32", "float16"}
        What the network computes in. The Neural Engine takes float16, to which codebooks, values
        and scales are then rounded.
    force : bool
        Whether an existing package is replaced.

    Returns
    -------
    Exported
        Its ``forms``: ``"palettized"``, ``"sparse"``, ``"sparse, palettized"`` or ``"quantized"``.

    Raises
    ------
    InvalidArgument
        The model cannot be traced, or has an operator that Core ML has not.
    MissingDependency
        The extra ``coreml`` is not installed.

    Examples
    --------
    >>> model = espalier.load("lenet5.esp", into=lenet5(), trainable=True)    # doctest: +SKIP
    >>> espalier.export_coreml(model, x, "lenet5.mlpackage").forms            # doctest: +SKIP
    {'conv1.weight': 'sparse, palettized', ...}
    """
    target_path = Path(path)
    if target_path.suffix.lower() != SUFFIX:
        raise InvalidArgument(f"{path}: a Core ML package ends in {SUFFIX}")
    if target not in TARGETS:
        raise InvalidArgument(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    if precision not in FLOATS:
        raise InvalidArgument(f"precision must be {' or '.join(FLOATS)}, not {precision!r}")
    plain, example = plain_copy(model, inputs)
    with _quiet():
        tools = _coremltools()
        options = {
            "minimum_deployment_target": getattr(tools.target, target),
            "compute_precision": getattr(tools.precision, precision.upper()),
            "skip_model_load": True,
        }
        program = _program(tools, plain, example, options)
        tensors = {n: t for n, t in read_model(model).tensors.items() if t.dtype == "float32"}
        if precision == "float16":
            tensors = {name: halved(tensor) for name, tensor in tensors.items()}
        forms = _compress(program, tensors, target)
        none = tools.PassPipeline.EMPTY
        package = tools.convert(program, convert_to="mlprogram", pass_pipeline=none, **options)
        with (
            atomic_folder(target_path, force=force) as folder,
            tempfile.TemporaryDirectory() as made,
        ):
            package.save(f"{made}/model{SUFFIX}")
            shutil.copytree(f"{made}/model{SUFFIX}", folder, dirs_exist_ok=True)
    size = sum(file.stat().st_size for file in target_path.rglob("*") if file.is_file())
    return Exported(target_path, size, forms)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars, the hints and the warnings of coremltools."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _coremltools() -> Any:
    try:
        import coremltools
    except ImportError:
        raise MissingDependency(
            "to export to Core ML takes the package coremltools: pip install 'espalier[coreml]'"
        ) from None
    return coremltools


def _program(tools: Any, plain: nn.Module, example: list[Any], options: Mapping[str, Any]) -> Any:
    """The network as a program of Core ML's, with float weights."""
    if not example or not all(torch.is_tensor(x) for x in example):
        raise InvalidArgument("Core ML takes tensors as inputs, and nothing else")
    passes = tools.PassPipeline.DEFAULT
    passes.remove_passes(_SCALES_WEIGHTS)
    names = [f"input{i}" if i else "input" for i in range(len(example))]
    kinds = [np.float32 if x.is_floating_point() else np.int32 for x in example]
    given = [
        tools.TensorType(name=name, shape=tuple(x.shape), dtype=kind)
        for name, x, kind in zip(names, example, kinds, strict=True)
    ]
    try:
        with torch.no_grad():
            traced = torch.jit.trace(plain, tuple(example))
        return tools.convert(
            traced, inputs=given, convert_to="milinternal", pass_pipeline=passes, **options
        )
    except Exception as error:
        raise InvalidArgument(
            f"the model cannot be exported to Core ML: {first_line(error)}"
        ) from error


def _compress(program: Any, tensors: Mapping[str, CompressedTensor], target: str) -> dict[str, str]:
    """Put compressed weights in the place of constants that equal them; which became what."""
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

    by_value = {
        (tensor.shape, tensor.dense().tobytes()): name
        for name, tensor in tensors.items()
        if not isinstance(tensor, Dense)
    }
    forms: dict[str, str] = {}
    for function in program.functions.values():
        with function:
            for op in list(function.operations):
                value = op.outputs[0].val if op.op_type == "const" else None
                if not isinstance(value, np.ndarray):
                    continue
                name = by_value.get((value.shape, np.ascontiguousarray(value).tobytes()))
                form = smallest(tensors[name], target) if name is not None else None
                if form is None or name is None:
                    continue
                scopes = [
                    ScopeInfo(source=kind, data=data)
                    for kind, data in op.scopes.items()
                    if kind != ScopeSource.COREMLTOOLS_GRAPH_PASS  # it may hold but one name
                ]
                with Builder.scope(*scopes):
                    made = form.build(name=f"{op.name}_expanded", before_op=op)
                function.replace_uses_of_var_after_op(
                    anchor_op=op, old_var=op.outputs[0], new_var=made, force_replace=True
                )
                function.remove_ops([op])
                forms[name] = form.kind
    return forms
