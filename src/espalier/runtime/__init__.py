"""Networks that run from their compressed weights."""

from espalier.runtime.api import accelerate
from espalier.runtime.report import Choice, PackedRow, RuntimeReport

__all__ = ["Choice", "PackedRow", "RuntimeReport", "accelerate"]
