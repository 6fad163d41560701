"""``espalier convert``: compressed networks of other tools, to ``.esp`` files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli import console


def command(
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT.net", help="File of the original Deep Compression."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.esp", help="File to write.")
    ],
    prototxt: Annotated[
        Path,
        typer.Option(metavar="FILE.prototxt", help="Its Caffe description: names and shapes."),
    ],
    coder: console.Coder = "auto",
    effort: console.Effort = "default",
    force: console.Force = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Convert a file of the original Deep Compression, without Caffe.

    Codes and codebooks stay as they are, so every weight stays the same; fillers
    (codes for zeros between far-off weights) disappear. Tensors are called
    LAYER.weight and LAYER.bias.

    [bold]Example[/]

    espalier convert compressed_SqueezeNet.net --prototxt SqueezeNet_deploy.prototxt
    -o squeezenet.esp
    """
    from espalier.container import write
    from espalier.interop.deep_compression import read_deep_compression

    found = read_deep_compression(source, prototxt)
    ledger = write(found.model, output, coder=coder, effort=effort, force=force)
    before, after = source.stat().st_size, ledger.file_bytes
    if as_json:
        console.print_json(
            {
                "input": str(source),
                "output": str(output),
                "input_bytes": before,
                "output_bytes": after,
                "ratio": before / after,
                "original_bytes": ledger.original_bytes,
                "tensors": len(ledger),
                "entries": found.entries,
                "fillers": found.fillers,
            }
        )
    elif not quiet:
        typer.echo(
            f"{source}: {console.size(before)} bytes; of {console.size(found.entries)} entries "
            f"{console.size(found.fillers)} were fillers, which disappear\n"
            f"{output}: {console.size(after)} bytes, {console.percent(after, before)} of it, "
            f"{len(ledger)} tensors"
        )
