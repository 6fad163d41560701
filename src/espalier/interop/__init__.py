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
from espalier.interop.content import content_of, content_of_checkpoint, counted, files_of, like

__all__ = [
    "Checkpoint",
    "Content",
    "Pieces",
    "TensorInfo",
    "content_of",
    "content_of_checkpoint",
    "counted",
    "files_of",
    "like",
    "open_checkpoint",
    "save_checkpoint",
    "writer_for",
]
