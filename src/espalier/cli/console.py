"""What commands print: tables and JSON on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from espalier.interop import Content

MAX_WIDTH = 1000

Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Coder = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Entropy coder: auto (the smallest for each stream), huffman, rans, context or fixed.",
    ),
]
Effort = Annotated[
    str, typer.Option(metavar="LEVEL", help="What auto tries: fast, default or max.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N",
        min=1,
        help="Threads; each holds a tensor. The result is the same for any number.",
        show_default="one for each processor, 4 at most",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def short(source: str) -> str:
    """The last part of a path or URL, for a progress bar."""
    return source.rstrip("/").rpartition("/")[2]


def note(message: str) -> None:
    """One line on standard error."""
    typer.echo(f"espalier: {message}", err=True)


def print_json(value: Any) -> None:
    """``value`` as JSON on standard output; numbers that JSON lacks become null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] = ()
) -> None:
    """A table on standard output: the first column to the left, the others to the right."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        last = i == len(columns) - 1 and column == ""
        justify: Any = "left" if i == 0 or last else "right"
        table.add_column(column, justify=justify, no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if total:
        table.add_section()
        table.add_row(*map(Text, total))
    # A narrow terminal, or none, must not cost a digit: lines are as long as they have to be.
    wide = console.options.update(max_width=MAX_WIDTH)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table, crop=False)


@contextmanager
def progress(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, in bytes; yields a function that advances it.

    There is none unless on a terminal. Any thread may advance it.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _amount: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


def save(what: str, content: Content, output: Path, force: bool, quiet: bool) -> None:
    """Write a checkpoint, with a bar of the bytes of tensors."""
    from espalier.interop import counted, save_checkpoint

    with progress(what, sum(info.nbytes for info in content.infos), quiet) as advance:
        save_checkpoint(output, counted(content, advance), force=force)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


@contextmanager
def stages(quiet: bool) -> Iterator[Callable[[str, int, int, str], None] | None]:
    """A bar for each stage of a run; yields what the run reports to, or None.

    The report takes (stage, steps done, steps in all, a short text). Where standard error is no
    terminal, each stage is one line when it begins.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        begun: set[str] = set()

        def say(stage: str, _done: int, _total: int, _text: str) -> None:
            if stage not in begun:
                begun.add(stage)
                note(stage)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[text]}", markup=False),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def report(stage: str, done: int, total: int, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, text=text)
            bar.update(tasks[stage], completed=done, total=total, text=text)

        yield report


@contextmanager
def work(what: str, quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """One bar with the time left; yields what takes (done, in all, a short text), or None."""
    with stages(quiet) as report:
        yield None if report is None else partial(report, what)


def size(n: int) -> str:
    """A number of bytes, exactly: ``1,098,576``."""
    return f"{n:,}"


def ratio(original: int, compressed: int) -> str:
    """``original / compressed``, as in ``4.32x``."""
    return f"{original / compressed:.2f}x" if compressed else "-"


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole``, as in ``23.1%``."""
    return f"{100 * part / whole:.1f}%" if whole else "-"
