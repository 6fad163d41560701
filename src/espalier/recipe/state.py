"""What a run keeps of its network, and a freshly built network brought back to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from espalier.parametrization import attach
from espalier.structure.edit import edit_from_json, edits_of, perform


def model_state(model: nn.Module) -> dict[str, Any]:
    """Weights, masks and codebooks of ``model``, and what was changed in its structure."""
    return {"model": model.state_dict(), "edits": [edit.to_json() for edit in edits_of(model)]}


def restore(model: nn.Module, kept: Mapping[str, Any]) -> nn.Module:
    """Bring a freshly built ``model`` to what :func:`model_state` gave; returns it."""
    perform(model, [edit_from_json(plain) for plain in kept.get("edits", [])])
    return attach(model, kept["model"])
