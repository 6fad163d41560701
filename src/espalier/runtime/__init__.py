"""Networks that run from their compressed weights, or from dense ones laid out once."""

from espalier.runtime.api import accelerate
from espalier.runtime.report import BatchForm, Choice, PackedRow, PrepackedRow, RuntimeReport

__all__ = ["BatchForm", "Choice", "PackedRow", "PrepackedRow", "RuntimeReport", "accelerate"]
