"""The file of the original Deep Compression: ``compressed_SqueezeNet.net`` and its kind.

Published with SqueezeNet by its authors (Han, Mao and Dally 2016; Iandola et al. 2016), described
by the program that reads it. Little-endian, no padding, no magic number, no shapes: those are in
the network's Caffe description (:mod:`espalier.interop.prototxt`).

1. ``uint32`` for each convolution, in the order of the description: its number of entries E.
2. For each convolution: 256 ``float32``, the codebook, of which entry 0 is 0; a ``float32`` bias
   for each filter; E bytes of codes; (E + 1) // 2 bytes of gaps, four bits each, low half first.

Entry j lies at sum over 0..j of (gap + 1), less 1. An entry with code 0 is a filler: it stands for
a run of zeros too long for four bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espalier.entropy.cursor import Cursor
from espalier.errors import CorruptFile, FormatError, InvalidArgument, TruncatedFile
from espalier.interop.prototxt import MAX_BYTES, Convolution, convolutions
from espalier.state import CompressedModel, CompressedTensor, Dense, SparseCodebook, count

LEVELS = 256
_MAX_ELEMENTS = 1 << 48  # of a tensor in an .esp file


@dataclass(frozen=True, eq=False)
class DeepCompression:
    """What :func:`read_deep_compression` found.

    Attributes
    ----------
    model : CompressedModel
        ``LAYER.weight``, with the codes and the codebook of the file, and ``LAYER.bias``.
    entries : int
        Codes in the file.
    fillers : int
        How many of them were fillers, which are not in ``model``.
    """

    model: CompressedModel
    entries: int
    fillers: int


def read_deep_compression(
    path: str | os.PathLike[str], prototxt: str | os.PathLike[str]
) -> DeepCompression:
    """Read a ``.net`` file of the original Deep Compression, without Caffe.

    Parameters
    ----------
    path : path-like
        The ``.net`` file.
    prototxt : path-like
        The Caffe description of the network, which holds names and shapes.

    Raises
    ------
    FormatError
        One of the files is malformed, cut short, or they do not belong together. Nothing is
        allocated before the length of the file has been found right.
    InvalidArgument
        One of the files is not there.

    Examples
    --------
    >>> found = read_deep_compression(                                       # doctest: +SKIP
    ...     "compressed_SqueezeNet.net", "SqueezeNet_deploy.prototxt")
    >>> found.entries, found.fillers                                         # doctest: +SKIP
    (422083, 6162)
    """
    path, prototxt = Path(path), Path(prototxt)
    for needed in (path, prototxt):
        if not needed.is_file():
            raise InvalidArgument(f"{needed}: no such file")
    if prototxt.stat().st_size > MAX_BYTES:
        raise CorruptFile(f"{prototxt}: not a network's description (over {MAX_BYTES:,} bytes)")
    try:
        layers = convolutions(prototxt.read_bytes().decode("utf-8"))
        for layer in layers:
            if count(layer.shape) > _MAX_ELEMENTS:
                raise CorruptFile(f"layer {layer.name!r} has over 2**48 weights")
    except UnicodeDecodeError:
        raise CorruptFile(f"{prototxt}: not a network's description (not UTF-8)") from None
    except FormatError as error:
        raise type(error)(f"{prototxt}: {error}") from None
    if not layers:
        raise CorruptFile(f"{prototxt}: describes no convolution")
    try:
        with path.open("rb") as file:
            head = file.read(4 * len(layers))
            entries = _check_length(head, layers, path.stat().st_size)
            cursor = Cursor(file.read())
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from None
    tensors: dict[str, CompressedTensor] = {}
    for layer, n in zip(layers, entries, strict=True):
        try:
            weight, bias = _read_layer(cursor, layer, n)
        except FormatError as error:
            raise type(error)(f"{path}: layer {layer.name!r}: {error}") from None
        tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"] = weight, bias
    kept = sum(t.stored for t in tensors.values() if isinstance(t, SparseCodebook))
    return DeepCompression(CompressedModel(tensors), sum(entries), sum(entries) - kept)


def _check_length(head: bytes, layers: list[Convolution], size: int) -> list[int]:
    """The numbers of entries, if with them the file has the length that it must have."""
    if len(head) < 4 * len(layers):
        raise TruncatedFile(f"{size} bytes are too few for {len(layers)} convolutions")
    entries = [int(n) for n in np.frombuffer(head, "<u4")]
    needed = len(head)
    for layer, n in zip(layers, entries, strict=True):
        if n > count(layer.shape):
            raise CorruptFile(
                f"layer {layer.name!r}: {n} entries for {count(layer.shape)} weights; "
                "is this a Deep Compression file, and of this network?"
            )
        needed += 4 * LEVELS + 4 * layer.shape[0] + n + (n + 1) // 2
    if needed != size:
        wrong = TruncatedFile if size < needed else CorruptFile
        raise wrong(f"has {size} bytes, and {needed} are needed for the layers described")
    return entries


def _read_layer(cursor: Cursor, layer: Convolution, n: int) -> tuple[SparseCodebook, Dense]:
    """Weights and biases of one layer; the cursor is known to hold them."""
    filters = layer.shape[0]
    book = np.frombuffer(cursor.take(4 * LEVELS, "codebook"), "<f4")
    bias = np.frombuffer(cursor.take(4 * filters, "biases"), "<f4")
    codes = np.frombuffer(cursor.take(n, "codes"), np.uint8)
    packed = np.frombuffer(cursor.take((n + 1) // 2, "gaps"), np.uint8)
    if book.view("<u4")[0]:  # its bits: a filler must be +0
        raise CorruptFile(f"entry 0 of the codebook is {book[0]}, not 0")
    gaps = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[:n]
    positions = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if n and positions[-1] >= count(layer.shape):
        raise CorruptFile(
            f"its last entry lies at {positions[-1]}, and there are {count(layer.shape)} weights"
        )
    kept = codes != 0
    weight = SparseCodebook(layer.shape, "float32", positions[kept], codes[kept], book)
    return weight, Dense((filters,), "float32", bias)
