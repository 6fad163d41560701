"""The ``.esp`` file: layout, writer, reader, ledger. ``SPEC.md`` is its contract."""

from espalier.container.atomic import atomic_folder, atomic_write
from espalier.container.ledger import Ledger, TensorRow
from espalier.container.reader import Reader, read
from espalier.container.writer import Writer, write

__all__ = [
    "Ledger",
    "Reader",
    "TensorRow",
    "Writer",
    "atomic_folder",
    "atomic_write",
    "read",
    "write",
]
