"""ONNX files from compressed networks: weights as floats, or by codebook."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.container import Reader, atomic_write
from espalier.errors import InvalidArgument
from espalier.export.onnx_graph import trace_by_name
from espalier.export.onnx_weights import compress_weights
from espalier.interop import content_of
from espalier.interop.onnx_file import MAX_BYTES, ONNX, Onnx, parse
from espalier.parametrization import finalize
from espalier.state import CompressedTensor
from espalier.targets import unwrap
from espalier.torch_io import read_model

WEIGHTS = ("codebook", "float")
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
        ``"float"``: every weight in full.
    dynamic_batch : bool
        Whether the first dimension of inputs and output may be another one than in ``inputs``.
    force : bool
        Whether an existing file is replaced.

    Returns
    -------
    Exported
        Its ``forms`` say how each weight is stored: ``"indices"`` (one small integer for each),
        ``"words"`` (several in an int64) or ``"gaps"`` (those that are kept, and how far apart).

    Raises
    ------
    InvalidArgument
        The model cannot be exported, has an operator that ONNX has not, or is over 2 GB.
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
    data = trace_by_name(plain, example, dynamic_batch=dynamic_batch)
    tensors = read_model(model).tensors
    return write_onnx(data, tensors, path, weights=weights, force=force)


def plain_copy(model: nn.Module, inputs: Any) -> tuple[nn.Module, list[Any]]:
    """A plain copy of the model, in evaluation mode and on the CPU, and its inputs there."""
    plain = finalize(copy.deepcopy(unwrap(model))).cpu().eval()
    given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    return plain, [x.detach().cpu() if torch.is_tensor(x) else x for x in given]


def convert_graph(
    reader: Reader, path: str | os.PathLike[str], *, weights: str = "codebook", force: bool = False
) -> Exported:
    """The ONNX model that an ``.esp`` file was made from, with the weights that are in the file.

    Raises
    ------
    InvalidArgument
        The file has no graph in it.
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
    tensors = {name: reader.tensor(name) for name in reader.names()} if weights != "float" else {}
    return write_onnx(whole.getvalue(), tensors, path, weights=weights, force=force)


def write_onnx(
    data: bytes,
    tensors: Mapping[str, CompressedTensor],
    path: str | os.PathLike[str],
    *,
    weights: str,
    force: bool,
) -> Exported:
    """Write a model whose initialisers have the values of ``tensors``, in the form asked for."""
    forms: dict[str, str] = {}
    if weights == "codebook":
        model = parse(data, path)
        forms = {name: form.kind for name, form in compress_weights(model, tensors).items()}
        data = model.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise InvalidArgument(f"{path}: {len(data):,} bytes are over the 2 GB of an ONNX file")
    with atomic_write(Path(path), force=force) as file:
        file.write(data)
    return Exported(Path(path), len(data), forms)


def check_weights(weights: str) -> None:
    """:class:`InvalidArgument` if ``weights`` is none of :data:`WEIGHTS`."""
    if weights not in WEIGHTS:
        raise InvalidArgument(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")
