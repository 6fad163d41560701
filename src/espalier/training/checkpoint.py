"""Checkpoints that appear whole or not at all, and hold tensors and plain data only."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from espalier.container import atomic_write
from espalier.errors import CorruptFile, InvalidArgument


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write ``state``, made of tensors and plain Python values, to ``path``."""
    with atomic_write(Path(path), force=True) as file:
        torch.save(state, file)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; never runs code that a file holds."""
    if not Path(path).is_file():
        raise InvalidArgument(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CorruptFile(f"{path}: not a checkpoint ({error})") from None
    if not isinstance(state, dict):
        raise CorruptFile(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state
