"""safetensors files, read and written without the library: the header is a page of JSON.

The format: eight bytes with the length of the header, the header, the tensors' bytes without a
hole. Reading it here keeps torch out of the process, gives every dtype as raw bits, and lets
each way in which a file can be wrong have its own message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from espalier.errors import CorruptFile, InvalidArgument, TruncatedFile
from espalier.interop.base import FORMATS, Checkpoint, Content, Format, TensorInfo
from espalier.state import Array, count, storage_dtype

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation

DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
"""From the names in the file to PyTorch's. What is not here is skipped, and said."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Of one tensor, what the header says; ``begin`` and ``end`` count from behind the header."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A header that has been checked: its entries by name, in its order, leave no hole.

    ``raw`` are its bytes with the eight of its length, behind which the tensors begin.
    """

    raw: bytes
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return max((entry.end for entry in self.entries.values()), default=0)


class SafetensorsCheckpoint(Checkpoint):
    """An open safetensors file: the header is in memory, tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.header = read_header(path)
        infos, skipped = {}, {}
        for name, entry in self.header.entries.items():
            if entry.code not in DTYPES:
                skipped[name] = f"dtype {entry.code} is not supported"
                continue
            infos[name] = TensorInfo(name, entry.shape, DTYPES[entry.code])
            if entry.nbytes != infos[name].nbytes:
                raise CorruptFile(
                    f"{path}: tensor {name!r} has {entry.nbytes} bytes, but its shape "
                    f"{list(entry.shape)} of {entry.code} needs {infos[name].nbytes}"
                )
        super().__init__(path, infos, skipped=skipped, metadata=self.header.metadata)

    def raw(self, name: str) -> Array:
        """The bytes of a tensor of any dtype, those too that are skipped."""
        return self._read(name, np.dtype(np.uint8), self.header.entries[name].nbytes)

    def _load(self, info: TensorInfo) -> Array:
        return self._read(info.name, storage_dtype(info.dtype), info.size).reshape(info.shape)

    def _read(self, name: str, dtype: np.dtype[Any], n: int) -> Array:
        offset = len(self.header.raw) + self.header.entries[name].begin
        flat = np.fromfile(self.path, dtype, n, offset=offset)
        if flat.size != n:
            raise TruncatedFile(f"{self.path}: ends inside tensor {name!r}")
        return flat


def read_header(path: Path) -> Header:
    """The header of a file, checked against the file's length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise TruncatedFile(f"{path}: {size} bytes are too few for a safetensors file")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise CorruptFile(f"{path}: not a safetensors file (a header of {length} bytes)")
        if 8 + length > size:
            raise TruncatedFile(
                f"{path}: ends inside its header ({size} bytes, the header needs {8 + length})"
            )
        raw = prefix + file.read(length)
    return parse_header(raw, path, size - len(raw))


def parse_header(raw: bytes, path: Path, available: int | None = None) -> Header:
    """Check a header, given with the eight bytes of its length.

    ``available``: how many bytes of tensors there are; by default as many as it says.
    """
    try:
        header = json.loads(raw[8:].decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: the safetensors header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise CorruptFile(f"{path}: the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CorruptFile(f"{path}: __metadata__ is not a mapping of strings")
    entries = {name: _parse_entry(path, name, entry) for name, entry in header.items()}
    parsed = Header(raw, entries, metadata)
    _check_spans(path, entries, parsed.nbytes if available is None else available)
    return parsed


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries


def _parse_entry(path: Path, name: str, entry: Any) -> Entry:
    def natural(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    wrong = CorruptFile(f"{path}: the header's entry of tensor {name!r} is malformed")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise wrong
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise wrong
    if len(offsets) != 2 or not all(map(natural, shape)) or not all(map(natural, offsets)):
        raise wrong
    if offsets[0] > offsets[1] or count(tuple(shape)) >= 2**63:
        raise wrong
    return Entry(code, tuple(shape), offsets[0], offsets[1])


def _check_spans(path: Path, entries: Mapping[str, Entry], available: int) -> None:
    """The tensors must cover the rest of the file: no hole, no overlap, nothing behind."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "overlaps the one before it" if entry.begin < at else "leaves a hole before it"
            raise CorruptFile(f"{path}: tensor {name!r} {what}")
        if entry.end > available:
            raise TruncatedFile(
                f"{path}: ends inside tensor {name!r} ({available} bytes of tensors, "
                f"{entry.end} are needed)"
            )
        at = entry.end
    if at != available:
        raise CorruptFile(f"{path}: {available - at} bytes follow the last tensor")


def write_array(file: BinaryIO, array: Array, dtype: str) -> None:
    """Write the bytes of an array, little-endian, in the storage dtype of ``dtype``."""
    array = np.ascontiguousarray(array, storage_dtype(dtype))
    file.write(array.reshape(-1).view(np.uint8).data)


@FORMATS.register("safetensors")
@dataclass(frozen=True)
class Safetensors(Format):
    """``.safetensors``, all its dtypes but the ones below eight bits."""

    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)

    def recognises(self, head: bytes, path: Path) -> bool:
        length = int.from_bytes(head[:8], "little")
        return head[8:9] == b"{" and length <= MAX_HEADER_BYTES

    def open(self, path: Path) -> Checkpoint:
        return SafetensorsCheckpoint(path)

    def check(self, content: Content) -> None:
        for info in content.infos:
            if info.dtype not in _CODES:
                raise InvalidArgument(
                    f"safetensors cannot hold tensor {info.name!r} of {info.dtype}; "
                    "choose the suffix .pt"
                )

    def write(self, file: BinaryIO, content: Content) -> None:
        tensors = content.untied()
        # Readers view the bytes in place, so wider types come first and stay aligned; the header
        # itself keeps the order of the model.
        placed = sorted(tensors, key=lambda item: -storage_dtype(item[0].dtype).itemsize)
        spans, at = {}, 0
        for info, _ in placed:
            spans[info.name] = [at, at + info.nbytes]
            at += info.nbytes
        header: dict[str, Any] = {}
        if content.metadata:
            header["__metadata__"] = dict(content.metadata)
        for info, _ in tensors:
            header[info.name] = {
                "dtype": _CODES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": spans[info.name],
            }
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        with content.arrays(name for _, name in placed) as arrays:
            for (info, _), array in zip(placed, arrays, strict=True):
                write_array(file, array, info.dtype)
