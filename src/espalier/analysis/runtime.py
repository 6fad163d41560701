"""What a network can be run by, to see how fast it is there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import nn

from espalier.registry import Registry

Call = Callable[[], object]


class Runtime(ABC):
    """One way to run a network. A frozen dataclass, registered by name."""

    name: ClassVar[str]

    def reset(self) -> None:  # noqa: B027 - most have nothing to forget
        """Forget what was prepared before; called before each comparison."""

    @abstractmethod
    def prepare(self, model: nn.Module, inputs: Sequence[Any]) -> Call:
        """A call that runs ``model``, which is in evaluation mode, once on ``inputs``.

        Raises
        ------
        InvalidArgument
            This runtime cannot run the model; the message says why.
        MissingDependency
            It is not installed.
        """


RUNTIMES: Registry[Runtime] = Registry("runtime", "espalier.analysis.runtimes")
"""Ways to run a network, one file each."""
