"""Measurements that are kept as they are made, one JSON line each, so that a sweep can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from espalier.analysis.axis import Setting
from espalier.errors import CorruptFile, InvalidArgument
from espalier.torch_io import to_array

_KIND = "espalier points"


def fingerprint(model: nn.Module) -> str:
    """A digest of every tensor of ``model``: two models that compute the same have the same."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        dtype, array = to_array(value)
        digest.update(f"{name} {dtype} {tuple(value.shape)}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()[:32]


def key_of(setting: Setting) -> str:
    """One string for each setting, whatever the order of its keys."""
    return json.dumps({layer: dict(v) for layer, v in setting.items()}, sort_keys=True)


class Kept:
    """An append-only file of measurements, or a dict where there is no file.

    The first line says of what: of which model, by which metric, on which data. A last line that
    was cut short by a kill is dropped.

    Parameters
    ----------
    path : path or None
    about : mapping of str to str
        What the measurements are of; a file about something else is refused.

    Raises
    ------
    InvalidArgument
        The file is about another model, metric or data.
    CorruptFile
        It is no such file.
    """

    def __init__(self, path: str | os.PathLike[str] | None, about: Mapping[str, str]) -> None:
        self.path = Path(path) if path is not None else None
        self._records: dict[str, dict[str, Any]] = {}
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise InvalidArgument(f"{self.path}: the folder {self.path.parent} is missing")
        head = {"kind": _KIND, "version": 1} | dict(about)
        if self.path.exists() and self.path.stat().st_size:
            self._read(head)
        else:
            self._append(head)

    def __len__(self) -> int:
        return len(self._records)

    def get(self, setting: Setting) -> dict[str, Any] | None:
        """What is kept of ``setting``, or None."""
        return self._records.get(key_of(setting))

    def put(self, setting: Setting, record: Mapping[str, Any]) -> None:
        """Keep ``record``; it is on disk when this returns."""
        self._records[key_of(setting)] = dict(record)
        if self.path is not None:
            self._append({"setting": {k: dict(v) for k, v in setting.items()}} | dict(record))

    def _append(self, value: Mapping[str, Any]) -> None:
        assert self.path is not None
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        # One write in append mode: processes that share the file do not cut each other's lines.
        with open(self.path, "ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())

    def _read(self, head: Mapping[str, Any]) -> None:
        assert self.path is not None
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        found = self._parse(lines[0], 1) if lines else {}
        if found.get("kind") != _KIND:
            raise CorruptFile(f"{self.path}: does not hold points that a sweep kept")
        for what in head:
            if found.get(what) != head[what]:
                raise InvalidArgument(
                    f"{self.path}: holds points of another {what} ({found.get(what)}, not "
                    f"{head[what]}); choose another folder, or --force to start again"
                )
        for number, line in enumerate(lines[1:], 2):
            record = self._parse(line, number)
            setting = record.pop("setting", None)
            if not isinstance(setting, dict):
                raise CorruptFile(f"{self.path}, line {number}: has no setting")
            self._records[key_of(setting)] = record
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise CorruptFile(f"{self.path}, line {number}: is not a point")
        return value
