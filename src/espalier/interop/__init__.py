"""Checkpoints of other tools: one contract to read them, one to write them, one file per format."""

from espalier.interop.base import (
    Checkpoint,
    Content,
    Pieces,
    TensorInfo,
    open_checkpoint,
    save_checkpoint,
    writer_for,
)

__all__ = [
    "Checkpoint",
    "Content",
    "Pieces",
    "TensorInfo",
    "open_checkpoint",
    "save_checkpoint",
    "writer_for",
]
