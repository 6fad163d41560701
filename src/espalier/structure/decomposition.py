"""tensorly's decompositions, on torch tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from espalier.errors import MissingDependency


@contextmanager
def tensorly(method: str) -> Iterator[Any]:
    """The package, computing with torch in this thread.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import tensorly as package
        import tensorly.decomposition
    except ImportError:
        raise MissingDependency(
            f"{method} needs tensorly: pip install 'espalier[structure]'"
        ) from None
    with package.backend_context("pytorch", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a rank is above the number of singular vectors
        yield package
