"""PyTorch checkpoints, ``weights_only`` always: a pickle with code in it is refused by name."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from espalier.errors import CorruptFile, FormatError, InvalidArgument, TruncatedFile
from espalier.interop.base import FORMATS, Checkpoint, Content, Format, TensorInfo
from espalier.interop.npz_file import zip_members
from espalier.state import STORAGE_DTYPES, Array

if TYPE_CHECKING:
    import torch

WEIGHT_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "weights")
"""Where training scripts put the weights, tried in this order."""

_PICKLE_HEADS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class TorchCheckpoint(Checkpoint):
    """An open ``.pt`` file; with ``mmap`` its storages are read when a tensor is asked for."""

    def __init__(self, path: Path) -> None:
        where, found = _find_weights(path, _load_weights_only(path))
        notes = [] if not where else [f"weights found under {where!r}"]
        infos: dict[str, TensorInfo] = {}
        aliases: dict[str, str] = {}
        skipped: dict[str, str] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        seen: dict[Any, str] = {}
        for key, value in found.items():
            name = str(key)
            reason = _unsupported(value)
            if reason:
                skipped[name] = reason
                continue
            identity = _identity(value)
            if identity in seen:
                aliases[name] = seen[identity]
                continue
            if value.numel():
                seen[identity] = name
            self._tensors[name] = value
            infos[name] = TensorInfo(name, tuple(value.shape), _dtype_name(value))
        super().__init__(path, infos, aliases=aliases, skipped=skipped, notes=notes)

    def _load(self, info: TensorInfo) -> Array:
        from espalier.torch_io import to_array

        tensor = self._tensors[info.name].resolve_conj().resolve_neg()
        return np.array(to_array(tensor)[1]).reshape(info.shape)  # a copy: the file may be mapped


def _load_weights_only(path: Path) -> Any:
    import torch

    zipped = zipfile.is_zipfile(path)
    if not zipped and path.read_bytes()[:4] == b"PK\x03\x04":
        raise TruncatedFile(f"{path}: the PyTorch archive is cut short (no directory at its end)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001 - torch raises whatever broken bytes provoke
        if "TorchScript" in str(error):
            raise InvalidArgument(
                f"{path}: is a TorchScript program, not a checkpoint; save model.state_dict()"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptFile(f"{path}: not a sound PyTorch checkpoint ({reason})") from None


def _refused(path: Path, message: str) -> FormatError:
    """The error for a pickle that needs more than tensors, naming what it asked for."""
    asked = re.search(r"GLOBAL ([\w.]+)|(?:global|class|type) `?([\w.]+\.[\w.]+)", message)
    if asked:
        name = asked.group(1) or asked.group(2)
        return FormatError(
            f"{path}: refused, the pickle inside asks for {name}, which may run code; "
            "save model.state_dict() instead of the whole object"
        )
    lines = [line for line in message.splitlines() if "WeightsUnpickler" in line] or ["bad pickle"]
    return CorruptFile(f"{path}: not a sound PyTorch checkpoint ({lines[0].strip()})")


def _find_weights(path: Path, loaded: Any) -> tuple[str, Mapping[Any, Any]]:
    """The mapping that holds the tensors, and the keys that lead there (empty: the top)."""
    if not isinstance(loaded, Mapping):
        raise FormatError(
            f"{path}: holds a {type(loaded).__name__}, not a state_dict (names to tensors)"
        )
    for key in WEIGHT_KEYS:
        inner = loaded.get(key)
        if isinstance(inner, Mapping) and _has_tensors(inner):
            return key, inner
    if _has_tensors(loaded):
        return "", loaded
    for key in WEIGHT_KEYS:
        inner = loaded.get(key)
        if isinstance(inner, Mapping) and inner:
            where, found = _find_weights(path, inner)
            return ".".join([key, where]).rstrip("."), found
    inside = [k for k, v in loaded.items() if isinstance(v, Mapping) and _has_tensors(v)]
    if len(inside) == 1:
        return str(inside[0]), loaded[inside[0]]
    keys = ", ".join(map(str, list(loaded)[:8])) or "nothing"
    raise FormatError(
        f"{path}: holds no state_dict (found {keys}); looked under {', '.join(WEIGHT_KEYS)}"
    )


def _has_tensors(mapping: Mapping[Any, Any]) -> bool:
    import torch

    return any(isinstance(v, torch.Tensor) for v in mapping.values())


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _unsupported(value: Any) -> str:
    """Why an entry of a state_dict cannot be represented; empty if it can."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}, not a tensor"
    if value.layout != torch.strided:
        return f"layout {value.layout} is not supported"
    if value.is_quantized:
        return "quantized tensors are not supported"
    if value.is_meta:
        return "a tensor without data"
    if _dtype_name(value) not in STORAGE_DTYPES:
        return f"dtype {_dtype_name(value)} is not supported"
    return ""


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are one: same memory, seen the same way."""
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


@FORMATS.register("PyTorch")
@dataclass(frozen=True)
class Torch(Format):
    """``.pt`` and ``.pth``: a ``state_dict``, at the top or where training scripts put it."""

    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth")

    def recognises(self, head: bytes, path: Path) -> bool:
        if head.startswith(_PICKLE_HEADS):
            return True
        members = zip_members(path) if head.startswith(b"PK") else []
        return any(member.endswith("data.pkl") for member in members)

    def open(self, path: Path) -> Checkpoint:
        return TorchCheckpoint(path)

    def check(self, content: Content) -> None:
        """Any dtype of ours is one of PyTorch's."""

    def write(self, file: BinaryIO, content: Content) -> None:
        import torch

        from espalier.torch_io import to_tensor

        tensors = OrderedDict(
            (info.name, to_tensor(content.load(info.name).reshape(info.shape), info.dtype))
            for info in content.infos
        )
        for alias, name in content.aliases.items():
            tensors[alias] = tensors[name]
        try:
            torch.save(tensors, file)
        except RuntimeError as error:
            # Closing its archive, torch fails again and hides what the system said: a full disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
