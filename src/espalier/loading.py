"""``espalier.load``: tensors of PyTorch where it is there, arrays of NumPy where it is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

from espalier.container import Reader
from espalier.errors import InvalidArgument, MissingDependency
from espalier.floats import widened
from espalier.state import Array

if TYPE_CHECKING:
    from torch import nn


def load(
    path: str | os.PathLike[str] | BinaryIO,
    into: nn.Module | None = None,
    *,
    strict: bool = True,
    trainable: bool = False,
    as_numpy: bool = False,
) -> Any:
    """Read an ``.esp`` file: as a plain ``state_dict``, as NumPy arrays, or into a model.

    Where PyTorch cannot be imported, the result is that of ``as_numpy=True``: to read a file takes
    NumPy and numba alone.

    Parameters
    ----------
    path : path, URL or binary file
    into : nn.Module, optional
        Gets the weights, bit for bit, and is returned. Freshly built: structural edits that the
        file holds, removed filters for example, are done on it first. Without it the result is a
        dict in the order of the original ``state_dict``; tied names share one tensor.
    strict : bool
        Whether the file and the model must have the same names.
    trainable : bool
        With ``into``: put masks and codebooks on the model too, so that training can go on.
        Otherwise the weights are plain.
    as_numpy : bool
        A dict of NumPy arrays, and PyTorch is not imported. NumPy has no bfloat16 and no 8-bit
        floats: such tensors become float32, every value exactly. (Their bits, as unsigned integers,
        are what :meth:`espalier.container.Reader.arrays` gives.)

    Raises
    ------
    FormatError
        The file is not whole, or not an ``.esp`` file.
    InvalidArgument
        Names or shapes do not fit the model, which is then as it was; or ``as_numpy`` with a model.
    MissingDependency
        ``into`` where PyTorch cannot be imported.

    Examples
    --------
    >>> import tempfile, torch, espalier
    >>> path = tempfile.mkdtemp() + "/model.esp"
    >>> _ = espalier.save(torch.nn.Linear(3, 2).bfloat16(), path)
    >>> {name: str(array.dtype) for name, array in load(path, as_numpy=True).items()}
    {'weight': 'float32', 'bias': 'float32'}
    >>> load(path)["weight"].dtype
    torch.bfloat16
    """
    if as_numpy:
        if into is not None or trainable:
            raise InvalidArgument("load: as_numpy gives arrays; leave out into and trainable")
        return _arrays(path)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        if into is None and not trainable:
            return _arrays(path)
        raise MissingDependency(
            f"load into a model needs PyTorch, which cannot be imported ({error}): "
            "pip install torch; without a model, load gives NumPy arrays"
        ) from None
    from espalier import torch_io

    return torch_io.load(path, into, strict=strict, trainable=trainable)


def _arrays(path: str | os.PathLike[str] | BinaryIO) -> dict[str, Array]:
    with Reader(path) as reader:
        bits = reader.arrays()
        wide = {name: widened(bits[name], reader.entry(name).dtype) for name in bits}
        # Tied names share one array, widened or not.
        return wide | {alias: wide[name] for alias, name in reader.aliases.items()}
