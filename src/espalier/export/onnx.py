"""ONNX files from compressed networks: weights by codebook, as floats, or all in 8-bit integers."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.container import Reader, atomic_write
from espalier.errors import InvalidArgument
from espalier.export.onnx_graph import trace_by_name
from espalier.export.onnx_int8 import quantize_layers, to_int8
from espalier.export.onnx_weights import compress_weights
from espalier.interop import content_of
from espalier.interop.onnx_file import MAX_BYTES, ONNX, Onnx, parse
from espalier.parametrization import finalize
from espalier.quantized_inputs import InputGrid, input_grids
from espalier.state import CompressedTensor
from espalier.targets import unwrap
from espalier.torch_io import read_model

WEIGHTS = ("codebook", "float", "int8")
"""What the weights of an ONNX file can be."""


@dataclass(frozen=True)
class Exported:
    """A file that was written for another program.

    Attributes
    ----------
    path : Path
    file_bytes : int
        Bytes on disk, of all files of a package.
    forms : mapping of str to str
        How each weight that is not plain is stored, by name.
    """

    path: Path
    file_bytes: int
    forms: Mapping[str, str]

    def counts(self) -> dict[str, int]:
        """How many weights are stored in which way."""
        return dict(Counter(self.forms.values()))


def export_onnx(
    model: nn.Module,
    inputs: Any,
    path: str | os.PathLike[str],
    *,
    weights: str = "codebook",
    batches: Iterable[Any] | None = None,
    dynamic_batch: bool = True,
    force: bool = True,
) -> Exported:
    """Write a network to an ONNX file that any runtime computes the same outputs from.

    Parameters
    ----------
    model : nn.Module
        Read, not changed; exported in evaluation mode.
    inputs : Tensor, or sequence of what ``model`` takes
        An example; its values do not matter.
    path : path
        Appears whole or not at all.
    weights : str
        ``"codebook"``: shared and pruned weights as small integers, and standard operators that
        expand them when a runtime loads the file; the outputs are those of ``"float"``.
        ``"float"``: every weight in full. Both compute with floats. ``"int8"``: the layers that
        :func:`espalier.quantize` gave weights and inputs of at most 8 bits compute with integers,
        between QuantizeLinear and DequantizeLinear; other weights as by ``"codebook"``.
    batches : iterable of inputs, or of (inputs, targets); optional
        For ``"int8"``, some hundred training samples. Layers whose outputs are added or
        concatenated, and that itself, are in integers too, which makes such a network twice as
        fast; by rounding what the model in PyTorch does not round.
    dynamic_batch : bool
        Whether the first dimension of inputs and output may be another one than in ``inputs``.
    force : bool
        Whether an existing file is replaced.

    Returns
    -------
    Exported
        Its ``forms`` say how each weight is stored: ``"indices"`` (one small integer for each),
        ``"words"`` (several in an int64), ``"gaps"`` (those that are kept, and how far apart), or
        ``"int8"``.

    Raises
    ------
    InvalidArgument
        The model cannot be exported, has an operator that ONNX has not, or is over 2 GB; for
        ``"int8"``, no layer is quantized.
    MissingDependency
        The extra ``onnx`` is not installed.

    Examples
    --------
    >>> import tempfile, torch, espalier
    >>> model = torch.nn.Linear(256, 256)
    >>> _ = espalier.share(model, bits=4)
    >>> path = tempfile.mkdtemp() + "/model.onnx"
    >>> espalier.export_onnx(model, torch.randn(1, 256), path).forms
    {'weight': 'words'}
    """
    check_weights(weights)
    plain, example = plain_copy(model, inputs)
    found = read_model(model)
    tensors, grids = found.tensors, _grids(model, found.aliases)
    if batches is not None and weights != "int8":
        raise InvalidArgument(f"batches are for weights='int8', not {weights!r}")
    graph = parse(trace_by_name(plain, example, dynamic_batch=dynamic_batch), path)
    forms = to_int8(graph, tensors, grids, batches) if weights == "int8" else {}
    return write_onnx(graph, tensors, path, forms, weights=weights, force=force)


def _grids(model: nn.Module, aliases: Mapping[str, str]) -> dict[str, InputGrid]:
    """What enters the layer of each weight."""
    grids = {f"{layer}.weight": grid for layer, grid in input_grids(model).items()}
    for alias, name in aliases.items():
        if grids.get(alias) != grids.get(name):
            raise InvalidArgument(
                f"{name} and {alias} are one weight, and what enters their layers is not quantized "
                "alike; in ONNX layers are told apart by the weight"
            )
    return grids


def plain_copy(model: nn.Module, inputs: Any) -> tuple[nn.Module, list[Any]]:
    """A plain copy of the model, in evaluation mode and on the CPU, and its inputs there."""
    plain = finalize(copy.deepcopy(unwrap(model))).cpu().eval()
    given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    return plain, [x.detach().cpu() if torch.is_tensor(x) else x for x in given]


def convert_graph(
    reader: Reader,
    path: str | os.PathLike[str],
    *,
    weights: str = "codebook",
    batches: Iterable[Any] | None = None,
    force: bool = False,
) -> Exported:
    """The ONNX model that an ``.esp`` file was made from, with the weights that are in the file.

    Parameters
    ----------
    reader : Reader
    path, weights, force
        As for :func:`export_onnx`.
    batches : list of inputs, or of (inputs, targets)
        For ``"int8"``, which quantizes what is not in 8 bits in the file.

    Raises
    ------
    InvalidArgument
        The file has no graph in it, or there are no batches for ``"int8"``.
    """
    check_weights(weights)
    content = content_of(reader)
    if content.original.get("format") != ONNX:
        raise InvalidArgument(
            f"{reader.path}: has no ONNX graph, since it was not made from .onnx; give the network "
            "with --model, and --input-shape"
        )
    chosen = Onnx()
    chosen.check(content)
    whole = BytesIO()
    chosen.write(whole, content)
    graph = parse(whole.getvalue(), path)
    tensors = {name: reader.tensor(name) for name in reader.names()} if weights != "float" else {}
    forms: dict[str, str] = {}
    if weights == "int8":
        if batches is None:
            raise InvalidArgument(
                "int8 needs samples to see the ranges of activations: give --data"
            )
        seen = list(batches)
        tensors, grids = quantize_layers(graph, tensors, seen)
        forms = to_int8(graph, tensors, grids, seen)
    return write_onnx(graph, tensors, path, forms, weights=weights, force=force)


def write_onnx(
    graph: Any,
    tensors: Mapping[str, CompressedTensor],
    path: str | os.PathLike[str],
    forms: Mapping[str, str],
    *,
    weights: str,
    force: bool,
) -> Exported:
    """Write a model; initialisers that are left have the values of ``tensors``, and their forms."""
    if weights != "float":
        small = compress_weights(graph, tensors)
        forms = {**forms, **{name: form.kind for name, form in small.items()}}
    data = graph.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise InvalidArgument(f"{path}: {len(data):,} bytes are over the 2 GB of an ONNX file")
    with atomic_write(Path(path), force=force) as file:
        file.write(data)
    return Exported(Path(path), len(data), forms)


def check_weights(weights: str) -> None:
    """:class:`InvalidArgument` if ``weights`` is none of :data:`WEIGHTS`."""
    if weights not in WEIGHTS:
        raise InvalidArgument(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")
