"""Weights out of a Core ML package: what a device's compiler makes of its constants.

The message is read by its protobuf, the file of weights by the layout of its records: a mark, a
type, the length and the offset of the data. Nothing here takes part in writing a package.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from espalier.errors import CorruptFile, InvalidArgument, MissingDependency
from espalier.state import Array

_MARK = 0xDEADBEEF
_FEW_BITS = {"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6, "INT4": 4}
_DTYPES = {
    "FLOAT16": "<f2",
    "FLOAT32": "<f4",
    "INT8": "i1",
    "INT32": "<i4",
    "UINT8": "u1",
    "UINT32": "<u4",
}


def read_weights(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Every float constant of a package, expanded, by its name there (``fc1_weight``).

    Raises
    ------
    InvalidArgument
        There is no package of an ML Program at ``path``.
    CorruptFile
        The file of weights is not what the program says.
    MissingDependency
        The extra ``coreml`` is not installed.
    """
    return _Package(Path(path)).weights()


class _Package:
    def __init__(self, path: Path) -> None:
        try:
            from coremltools.proto import Model_pb2
            from google.protobuf.message import DecodeError
        except ImportError:
            raise MissingDependency(
                "to read Core ML takes the package coremltools: pip install 'espalier[coreml]'"
            ) from None
        data = path / "Data" / "com.apple.CoreML"
        if not (data / "model.mlmodel").is_file():
            raise InvalidArgument(f"{path}: is no Core ML package")
        model = Model_pb2.Model()
        try:
            model.ParseFromString((data / "model.mlmodel").read_bytes())
        except DecodeError:
            raise CorruptFile(f"{path}: its model.mlmodel cannot be parsed") from None
        if "main" not in model.mlProgram.functions:
            raise InvalidArgument(f"{path}: holds no ML Program")
        function = model.mlProgram.functions["main"]
        self.path = path
        self.block = function.block_specializations[function.opset]
        weights = data / "weights" / "weight.bin"
        self.blob = weights.read_bytes() if weights.is_file() else b""
        self.known: dict[str, Array] = {}

    def weights(self) -> dict[str, Array]:
        """Constants of several elements, by name; helpers on the way are left out."""
        for op in self.block.operations:
            if op.type == "const":
                self._keep(op, self._value(op.attributes["val"]))
            elif op.type.startswith("constexpr_"):
                self._keep(op, *self._expanded(op))
        taken = {
            argument.name
            for op in self.block.operations
            if not op.type.startswith("constexpr_")
            for given in op.inputs.values()
            for argument in given.arguments
        }
        return {
            name.removesuffix("_expanded").removesuffix("_to_fp16"): array
            for name, array in self.known.items()
            if name in taken and array.dtype.kind == "f" and array.ndim
        }

    def _keep(self, op: Any, *arrays: Array | None) -> None:
        for output, array in zip(op.outputs, arrays, strict=True):
            if array is not None:
                self.known[output.name] = array

    def _given(self, op: Any, key: str) -> Array:
        found: Array | None = None
        if key in op.attributes:
            found = self._value(op.attributes[key])
        elif key in op.inputs:
            (argument,) = op.inputs[key].arguments
            found = self.known.get(argument.name) if argument.name else self._value(argument.value)
        if found is None:
            raise CorruptFile(f"{self.path}: {op.type} has no constant {key!r}")
        return found

    def _expanded(self, op: Any) -> tuple[Array, ...]:
        kind = op.type.removeprefix("constexpr_")
        if kind == "lut_to_dense":
            lut, indices = self._given(op, "lut").reshape(-1), self._given(op, "indices")
            if "shape" in op.attributes:  # iOS 16: bits end to end
                shape = self._given(op, "shape")
                bits = lut.size.bit_length() - 1
                indices = _unpacked(indices.tobytes(), bits, int(np.prod(shape))).reshape(shape)
            return (lut[indices],)
        if kind == "lut_to_sparse":
            lut = self._given(op, "lut").reshape(-1)
            return self._given(op, "indices_mask"), lut[self._given(op, "indices_nonzero_data")]
        if kind == "sparse_to_dense":
            mask, values = self._given(op, "mask"), self._given(op, "nonzero_data")
            if "shape" in op.attributes:
                shape = self._given(op, "shape")
                mask = _unpacked(mask.tobytes(), 1, int(np.prod(shape))).reshape(shape)
            dense = np.zeros(mask.shape, values.dtype)
            dense[mask != 0] = values
            return (dense,)
        if kind == "blockwise_shift_scale":
            scale = self._given(op, "scale")
            numbers = self._given(op, "data").astype(scale.dtype)
            for axis, blocks in enumerate(scale.shape):
                scale = np.repeat(scale, numbers.shape[axis] // blocks, axis)
            if "offset" in op.inputs or "offset" in op.attributes:
                offset = self._given(op, "offset").astype(scale.dtype)
                for axis, blocks in enumerate(offset.shape):
                    offset = np.repeat(offset, numbers.shape[axis] // blocks, axis)
                numbers = numbers - offset
            return (numbers * scale,)
        raise InvalidArgument(f"{self.path}: the operator {op.type} is not known here")

    def _value(self, value: Any) -> Array | None:
        """A constant; None where it is none of numbers."""
        from coremltools.proto import MIL_pb2

        tensor = value.type.tensorType
        kind = MIL_pb2.DataType.Name(tensor.dataType)
        shape = tuple(d.constant.size for d in tensor.dimensions)
        if kind not in _FEW_BITS and kind not in _DTYPES:
            return None
        if value.HasField("blobFileValue"):
            data = self._record(value.blobFileValue.offset)
        else:
            data = _immediate(value.immediateValue.tensor, kind)
        if kind in _FEW_BITS:
            numbers = _unpacked(data, _FEW_BITS[kind], int(np.prod(shape)))
            if kind == "INT4":
                numbers = ((numbers.astype(np.int8) ^ 8) - 8).astype(np.int8)
            return numbers.reshape(shape)
        array = np.frombuffer(data, _DTYPES[kind])
        if array.size != int(np.prod(shape)):
            raise CorruptFile(f"{self.path}: {array.size} numbers for a constant of shape {shape}")
        return array.reshape(shape)

    def _record(self, offset: int) -> bytes:
        if offset + 24 > len(self.blob):
            raise CorruptFile(f"{self.path}: the file of weights ends before byte {offset}")
        mark, _, size, start = struct.unpack_from("<IIQQ", self.blob, offset)
        if mark != _MARK or start + size > len(self.blob):
            raise CorruptFile(f"{self.path}: no record of weights at byte {offset}")
        return self.blob[start : start + size]


def _immediate(tensor: Any, kind: str) -> bytes:
    held = tensor.WhichOneof("value")
    values = getattr(tensor, held).values
    return bytes(values) if held == "bytes" else np.array(values, _DTYPES[kind]).tobytes()


def _unpacked(data: bytes, bits: int, count: int) -> Array:
    """The inverse of :func:`espalier.export.coreml_weights.packed`."""
    every = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: bits * count]
    padded = np.zeros((count, 8), np.uint8)
    padded[:, :bits] = every.reshape(count, bits)
    return np.packbits(padded, axis=1, bitorder="little").reshape(-1)
