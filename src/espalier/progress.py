"""A progress bar for those who train from a script or a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Progress = Callable[[int, int, str], None]
"""Receives (steps done, steps in all, a short text)."""


def reporting(progress: Progress | bool | None) -> AbstractContextManager[Progress | None]:
    """What a run reports to: the caller's own function, a bar on standard error, or nothing."""
    if progress is True:
        return _bar()
    return nullcontext(progress or None)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None)

        def report(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield report
