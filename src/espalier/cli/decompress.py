"""``espalier decompress``: an ``.esp`` file back to a plain checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from espalier.cli import console
from espalier.errors import InvalidArgument

_SHOWN = 8


def command(
    source: Annotated[str, typer.Argument(metavar="FILE.esp", help="File to read, or URL.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUTPUT",
            help="Checkpoint to write: .safetensors, .pt, .pth, .npz; or .onnx or a folder again.",
        ),
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Take out only tensors of such names; may be given more than once.",
            show_default="all",
        ),
    ] = None,
    jobs: console.Jobs = None,
    force: console.Force = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Write a plain checkpoint that needs nothing of Espalier to be loaded.

    [bold]Example[/]

    espalier decompress resnet20.esp -o resnet20.safetensors

    espalier decompress https://host/model.esp -o head.safetensors --only 'lm_head.*'

    Of a file at a URL only the tensors that are wanted are fetched.

    What was a folder becomes one again, with every file of it, if OUTPUT has none
    of these suffixes; what was .onnx can be one again, with its graph.
    """
    if only and output.suffix.lower() == ".onnx":
        raise typer.BadParameter("--only takes tensors out of their graph: .onnx cannot be written")

    from espalier.container import Reader
    from espalier.interop import content_of
    from espalier.parallel import job_count

    with Reader(source) as reader:
        names = reader.names() if not only else _matching(reader.names(), only)
        content = content_of(reader, names if only else None, jobs=job_count(jobs))
        console.save(f"Decompressing {console.short(source)}", content, output, force, quiet)
        before, after = reader.file_bytes, console.bytes_of(output)
    if as_json:
        console.print_json(
            {
                "input": source,
                "output": str(output),
                "input_bytes": before,
                "output_bytes": after,
                "tensors": len(names),
            }
        )
    elif not quiet:
        typer.echo(
            f"{source}: {console.size(before)} bytes\n{output}: {console.size(after)} bytes, "
            f"{len(names)} tensors"
        )


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern; each pattern must match one."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise InvalidArgument(f"--only {pattern!r} matches nothing; there are {shown}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
