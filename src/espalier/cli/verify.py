"""``espalier verify``: is an ``.esp`` file whole, and how far is it from the original?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli import console
from espalier.errors import FormatError

if TYPE_CHECKING:
    from espalier.container import Reader
    from espalier.interop import Checkpoint
    from espalier.state import Array

_SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """One tensor of the file beside the original: both zero where every bit is the same."""

    name: str
    relative: float
    max_abs: float


def command(
    source: Annotated[str, typer.Argument(metavar="FILE.esp", help="File to check, or URL.")],
    against: Annotated[
        Path | None,
        typer.Option(metavar="INPUT", help="The checkpoint that it was made from."),
    ] = None,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Check every checksum, decode every tensor, and measure the distance from the original.

    Exit status 1 where the file is corrupt, or holds other names, shapes or
    dtypes than the original.

    [bold]Example[/]

    espalier verify resnet20.esp --against resnet20.safetensors
    """
    from espalier.container import Reader

    with Reader(source) as reader:
        _verify(reader, source, against, as_json, quiet)


def _verify(reader: Reader, source: str, against: Path | None, as_json: bool, quiet: bool) -> None:
    entries = [reader.entry(name) for name in reader.names() if name not in reader.aliases]
    total = sum(entry.length for entry in entries)
    with console.progress(f"Checking {console.short(source)}", total, quiet) as advance:
        for entry in entries:
            reader.tensor(entry.name)
            advance(entry.length)
        for name in reader.files:
            for _ in reader.file(name):
                pass
    report: dict[str, Any] = {"file": source, "sound": True, "tensors": len(reader.names())}
    differences: list[Difference] = []
    if against is not None:
        from espalier.interop import open_checkpoint

        checkpoint = open_checkpoint(against)
        _check_same_tensors(source, reader, checkpoint)
        with console.progress(f"Comparing {console.short(source)}", total, quiet) as advance:
            for entry in entries:
                differences.append(_difference(entry.name, reader, checkpoint))
                advance(entry.length)
        report["against"] = str(against)
        report["differences"] = [vars(d) for d in differences]
        report["largest"] = max((d.max_abs for d in differences), default=0.0)
    if as_json:
        console.print_json(report)
    elif not quiet:
        _print(source, against, len(reader.names()), differences)


def _check_same_tensors(source: str, reader: Reader, checkpoint: Checkpoint) -> None:
    """Names, shapes and dtypes must be those of the original, tied or not."""
    from espalier.interop import files_of

    entries = {name: reader.entry(name) for name in reader.names()}
    ours = {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
    theirs = {name: (info.shape, info.dtype) for name, info in checkpoint.infos.items()}
    theirs |= {alias: theirs[name] for alias, name in checkpoint.aliases.items()}
    wrong = [f"{name!r} is missing" for name in theirs if name not in ours]
    wrong += [f"{name!r} is not in the original" for name in ours if name not in theirs]
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            (shape, dtype), (shape0, dtype0) = ours[name], theirs[name]
            wrong.append(f"{name!r} is {list(shape)} {dtype}, not {list(shape0)} {dtype0}")
    wrong += checkpoint.missing_from(reader.metadata.get("original", {}), files_of(reader))
    if wrong:
        shown = ", ".join(sorted(wrong)[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise FormatError(f"{source}: does not hold what {checkpoint.path} holds: {shown}{more}")


def _difference(name: str, reader: Reader, checkpoint: Checkpoint) -> Difference:
    import numpy as np

    from espalier.compress import FLOATS, measure, to_numbers

    dtype = reader.entry(name).dtype
    ours: Array = reader.dense(name).reshape(-1)
    theirs: Array = checkpoint.load(name)[1].reshape(-1)
    if np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)):
        return Difference(name, 0.0, 0.0)
    if dtype in FLOATS:
        error = measure(to_numbers(theirs, dtype), to_numbers(ours, dtype))
    elif dtype.startswith("float8"):
        return Difference(name, float("nan"), float("nan"))
    else:
        error = measure(theirs, ours)
    return Difference(name, error.relative, error.max_abs)


def _print(source: str, against: Path | None, tensors: int, differences: list[Difference]) -> None:
    changed = [d for d in differences if d.max_abs != 0]
    if changed:
        console.print_table(
            f"Differences from {against}",
            ["tensor", "relative error", "largest"],
            [[d.name, f"{d.relative:.2e}", f"{d.max_abs:.2e}"] for d in changed],
        )
    typer.echo(f"{source}: sound, {tensors} tensors decoded")
    if against is None:
        return
    same = len(differences) - len(changed)
    typer.echo(f"{against}: {same} tensors equal, {len(changed)} not")
    if changed:
        largest = max(changed, key=lambda d: d.max_abs)
        typer.echo(f"Largest difference: {largest.max_abs:.3e} in {largest.name}")
