"""Methods by name: a method is one file, found because it lies beside its siblings.

A family (criteria, schedules, quantizers, coders) is a :class:`Registry`. A method is a frozen
dataclass whose fields are its whole configuration, registered by a short name. Packages outside
Espalier add methods through the entry point group ``espalier.methods``: an entry point is loaded
when its family is first asked for, and registers itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from espalier.errors import InvalidArgument, UnknownMethod

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """A family of methods.

    Parameters
    ----------
    family : str
        What one of them is called in messages: ``"criterion"``.
    package : str
        The package whose modules are imported when the family is first asked for.

    Examples
    --------
    >>> from espalier.pruning.criterion import CRITERIA
    >>> "magnitude" in CRITERIA.names()
    True
    """

    def __init__(self, family: str, package: str) -> None:
        self.family = family
        self.package = package
        self._classes: dict[str, type[T]] = {}
        self._discovered = False
        self._discovering = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: register a frozen dataclass under ``name``."""

        def decorate(cls: C) -> C:
            if name in self._classes and self._classes[name].__qualname__ != cls.__qualname__:
                raise InvalidArgument(f"{self.family} {name!r} is registered twice")
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        """The names of all registered methods, sorted."""
        self._discover()
        return sorted(self._classes)

    def __iter__(self) -> Iterator[type[T]]:
        return (self._classes[name] for name in self.names())

    def get(self, name: str) -> type[T]:
        """The class registered under ``name``."""
        self._discover()
        try:
            return self._classes[name]
        except KeyError:
            known = ", ".join(sorted(self._classes))
            raise UnknownMethod(f"no {self.family} is called {name!r}; known are {known}") from None

    def make(self, spec: str | T, **options: Any) -> T:
        """An instance from a name and options, or ``spec`` itself if it is one already."""
        if not isinstance(spec, str):
            if options:
                raise InvalidArgument(f"options {sorted(options)} given beside {spec!r}")
            return spec
        cls = self.get(spec)
        known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
        unknown = sorted(set(options) - set(known))
        if unknown:
            takes = ", ".join(known) or "no options"
            raise InvalidArgument(f"{self.family} {spec!r} takes {takes}, not {', '.join(unknown)}")
        return cls(**options)

    def _discover(self) -> None:
        if self._discovered:
            return
        # Another thread must not see the family before all of it is there; this one may, since a
        # module that is being imported can ask for it.
        with self._lock:
            if self._discovered or self._discovering:
                return
            self._discovering = True
            try:
                package = importlib.import_module(self.package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self.package}.{module.name}")
                for point in entry_points(group="espalier.methods"):
                    point.load()
                self._discovered = True
            finally:
                self._discovering = False
