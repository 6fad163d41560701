"""ONNX models: initialisers are tensors, and the graph travels with them.

Needs the package ``onnx`` (the extra of that name). What is left of the model without the data of
its initialisers, a few kilobytes for most, is kept whole, so that the model can be given back: with
exact tensors it is the same message, field for field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from espalier.errors import CorruptFile, InvalidArgument, MissingDependency, TruncatedFile
from espalier.interop.base import (
    FORMATS,
    Checkpoint,
    Content,
    Format,
    Pieces,
    TensorInfo,
    whole,
)
from espalier.state import Array, storage_dtype

ONNX = "onnx"
MAX_BYTES = (1 << 31) - 1
"""Of a message: protobuf's limit."""
MAX_GRAPH_BYTES = 1 << 28
"""Of a model without its initialisers, which is held in memory."""
GRAPH = "graph.onnx"
"""The name of that model among the files of the ``.esp`` file."""

DTYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    19: "float8_e5m2",
}
"""From ``TensorProto.DataType`` to PyTorch's names."""

_RAW = "raw_data"
_OTHER_FILE = 1  # TensorProto.DataLocation
_LISTS = {
    "float32": "float_data",
    "float64": "double_data",
    "int32": "int32_data",
    "int64": "int64_data",
    "uint64": "uint64_data",
}
"""Fields that hold numbers instead of bytes, where they are those of the dtype itself."""


class OnnxCheckpoint(Checkpoint):
    """An open ONNX model: its tensors' bytes, and the rest of the message.

    An initialiser that cannot be a tensor here (strings, 4 bits) stays in the graph. Data that lay
    in files of its own is read when asked for, and comes back inside the model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CorruptFile(f"{path}: {size:,} bytes are over the 2 GB of an ONNX file")
        model = parse(path.read_bytes(), path)
        infos: dict[str, TensorInfo] = {}
        notes: list[str] = []
        self._data: dict[str, Array] = {}
        self._files: dict[str, tuple[Path, int]] = {}
        self._lists: dict[str, str] = {}
        self._kept: list[str] = []
        for tensor in model.graph.initializer:
            name = tensor.name
            if name in infos or name in self._kept:
                raise CorruptFile(f"{path}: two initialisers are called {name!r}")
            info = _info(tensor, path)
            reason = self._take(tensor, info) if isinstance(info, TensorInfo) else info
            if isinstance(info, TensorInfo) and not reason:
                infos[name] = info
                continue
            self._kept.append(name)
            notes.append(f"{name!r} stays in the graph: {reason}")
        if self._files:
            notes.append(f"{len(self._files)} tensors of other files will come back inside it")
        self._graph = model.SerializeToString(deterministic=True)
        if len(self._graph) > MAX_GRAPH_BYTES:
            raise InvalidArgument(
                f"{path}: has {len(self._graph):,} bytes beside its initialisers, and "
                f"{MAX_GRAPH_BYTES:,} can be kept; are weights in nodes of type Constant?"
            )
        super().__init__(path, infos, notes=notes)

    def _take(self, tensor: Any, info: TensorInfo) -> str:
        """Take the data out of an initialiser; or say why not, and leave it as it was."""
        path = self.path
        if tensor.data_location == _OTHER_FILE:
            file, offset, length = _external(tensor, path)
            _check_length(info, length, path)
            self._files[info.name] = file, offset
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            return ""
        if tensor.HasField(_RAW):
            raw = np.frombuffer(tensor.raw_data, np.uint8)
            _check_length(info, raw.size, path)
            if info.dtype == "bool" and raw.max() > 1:
                return "it has bools other than 0 and 1"
            self._data[info.name] = raw
            tensor.ClearField(_RAW)
            return ""
        field = _LISTS.get(info.dtype)
        if field is None:
            return f"its {info.dtype} are not raw bytes"
        array = np.array(getattr(tensor, field), storage_dtype(info.dtype))
        _check_length(info, array.nbytes, path)
        # As a number of Python's a signalling NaN may become another one.
        again = type(tensor)()
        getattr(again, field).extend(array.tolist())
        if np.array(getattr(again, field), array.dtype).tobytes() != array.tobytes():
            return "its values cannot be told from others"
        self._data[info.name] = array.view(np.uint8)
        self._lists[info.name] = field
        tensor.ClearField(field)
        return ""

    @property
    def file_bytes(self) -> int:
        files = {self.path, *(file for file, _ in self._files.values())}
        return sum(file.stat().st_size for file in files)

    def _load(self, info: TensorInfo) -> Array:
        dtype = storage_dtype(info.dtype)
        if info.name in self._data:
            return self._data[info.name].view(dtype).reshape(info.shape).copy()
        file, offset = self._files[info.name]
        flat = np.fromfile(file, np.uint8, info.nbytes, offset=offset)
        if flat.size != info.nbytes:
            raise TruncatedFile(f"{self.path}: {file.name} ends inside tensor {info.name!r}")
        if info.dtype == "bool" and flat.max() > 1:
            raise CorruptFile(f"{self.path}: tensor {info.name!r} has bools other than 0 and 1")
        return flat.view(dtype).reshape(info.shape)

    def original(self) -> dict[str, Any]:
        """The fields of tensors that are not raw bytes, and the names of those that stay there."""
        return {"format": ONNX, "lists": self._lists, "kept": self._kept}

    def files(self) -> dict[str, Pieces]:
        """The message without its tensors."""
        return {GRAPH: lambda: [self._graph]}


def parse(data: bytes, path: str | os.PathLike[str]) -> Any:
    """The message in the bytes of an ONNX file; :class:`CorruptFile` if it is not whole."""
    try:
        import onnx
    except ImportError:
        raise MissingDependency(
            f"{path}: ONNX files need the package onnx: pip install 'espalier[onnx]'"
        ) from None
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise CorruptFile(f"{path}: not a whole ONNX model (protobuf cannot parse it)") from None
    if not model.HasField("graph") or not model.ir_version:
        raise CorruptFile(f"{path}: not an ONNX model (it has no graph, or no ir_version)")
    return model


def _info(tensor: Any, path: Path) -> TensorInfo | str:
    """Info of an initialiser; or why it can be no tensor here."""
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape):
        raise CorruptFile(f"{path}: initialiser {tensor.name!r} has the shape {list(shape)}")
    if tensor.data_type not in DTYPES:
        return f"data type {tensor.data_type} is not supported"
    info = TensorInfo(tensor.name, shape, DTYPES[tensor.data_type])
    if tensor.HasField("segment"):
        return "it is a segment of a tensor"
    return info if info.size else "it has no elements"


def _check_length(info: TensorInfo, held: int, path: Path) -> None:
    if held != info.nbytes:
        raise CorruptFile(
            f"{path}: initialiser {info.name!r} has {held} bytes, but its shape "
            f"{list(info.shape)} of {info.dtype} needs {info.nbytes}"
        )


def _external(tensor: Any, path: Path) -> tuple[Path, int, int]:
    """File, offset and length of data that lies in a file of its own, inside the model's folder."""
    where = f"{path}: initialiser {tensor.name!r}"
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
        size = file.stat().st_size if file.is_file() else -1
        offset = int(fields.get("offset", "0"))
        length = int(fields.get("length", str(size - offset)))
    except (ValueError, OSError, RuntimeError):
        raise CorruptFile(f"{where}: its external data is described wrongly") from None
    if not file.is_relative_to(folder):
        raise CorruptFile(f"{where}: refused to read {location[:80]!r}, outside the model's folder")
    if size < 0:
        raise InvalidArgument(f"{where}: its data is in {location[:80]!r}, which is no file there")
    if offset < 0 or length < 0 or offset + length > size:
        raise TruncatedFile(f"{where}: {location[:80]!r} ends before its data")
    return file, offset, length


@FORMATS.register("ONNX")
@dataclass(frozen=True)
class Onnx(Format):
    """``.onnx``; written only where the graph is in the file, which then came from one."""

    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    def recognises(self, head: bytes, path: Path) -> bool:
        # The field ir_version comes first; protobuf has no magic number.
        return path.suffix.lower() == ".onnx" and head.startswith(b"\x08")

    def open(self, path: Path) -> Checkpoint:
        return OnnxCheckpoint(path)

    def check(self, content: Content) -> None:
        if content.original.get("format") != ONNX:
            raise InvalidArgument(
                "the graph is not in the file, which was not made from .onnx; choose the suffix "
                ".safetensors, .pt or .npz"
            )
        total = sum(info.nbytes for info in content.infos)
        if total + len(whole(content.files, GRAPH, MAX_GRAPH_BYTES)) > MAX_BYTES:
            raise InvalidArgument(
                f"{total:,} bytes of tensors are over the 2 GB of an ONNX file; choose the suffix "
                ".safetensors"
            )

    def write(self, file: BinaryIO, content: Content) -> None:
        model = parse(whole(content.files, GRAPH, MAX_GRAPH_BYTES), "the ONNX graph")
        kept, lists = content.original.get("kept"), content.original.get("lists")
        if not isinstance(kept, list) or not isinstance(lists, dict):
            raise CorruptFile("the ONNX graph: what belongs into it is not said")
        infos = {info.name: info for info in content.infos}
        empty = [tensor for tensor in model.graph.initializer if tensor.name not in kept]
        for tensor in empty:
            info = infos.get(tensor.name)
            if info is None or info != _info(tensor, Path("the ONNX graph")):
                raise CorruptFile(f"the ONNX graph: tensor {tensor.name!r} is not there, or not so")
        with content.arrays(tensor.name for tensor in empty) as arrays:
            for tensor, array in zip(empty, arrays, strict=True):
                field = lists.get(tensor.name, _RAW)
                if field == _RAW:
                    tensor.raw_data = np.ascontiguousarray(array).tobytes()
                elif field == _LISTS.get(infos[tensor.name].dtype):
                    getattr(tensor, field).extend(array.reshape(-1).tolist())
                else:
                    raise CorruptFile(
                        f"the ONNX graph: tensor {tensor.name!r} has no field {field!r}"
                    )
        file.write(model.SerializeToString(deterministic=True))
