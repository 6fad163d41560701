"""``espalier decompress``: an ``.esp`` file back to a plain checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.cli import console


def command(
    source: Annotated[Path, typer.Argument(metavar="FILE.esp", help="File to read.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUTPUT",
            help="Checkpoint to write: .safetensors, .pt, .pth, .npz; or .onnx or a folder again.",
        ),
    ],
    jobs: console.Jobs = None,
    force: console.Force = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Write a plain checkpoint that needs nothing of Espalier to be loaded.

    [bold]Example[/]

    espalier decompress resnet20.esp -o resnet20.safetensors

    What was a folder becomes one again, with every file of it, if OUTPUT has none
    of these suffixes; what was .onnx can be one again, with its graph.
    """
    from espalier.container import Reader
    from espalier.interop import Content, TensorInfo, save_checkpoint
    from espalier.parallel import job_count
    from espalier.state import Array

    with Reader(source) as reader:
        names = reader.names()
        entries = [reader.entry(name) for name in names if name not in reader.aliases]
        infos = [TensorInfo(entry.name, entry.shape, entry.dtype) for entry in entries]
        total = sum(info.nbytes for info in infos)
        with console.progress(f"Decompressing {source.name}", total, quiet) as advance:

            def load(name: str) -> Array:
                tensor = reader.tensor(name)
                advance(tensor.nbytes)
                return tensor.dense()

            content = Content(
                infos,
                load,
                reader.aliases,
                _checkpoint_metadata(reader.metadata),
                _original(reader.metadata),
                job_count(jobs),
            )
            save_checkpoint(output, content, force=force)
    before, after = source.stat().st_size, _bytes_of(output)
    if as_json:
        console.print_json(
            {
                "input": str(source),
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


def _checkpoint_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What the original checkpoint said about itself, if the file came from one that did."""
    found = metadata.get("checkpoint")
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _original(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the file keeps of its original beside tensors."""
    found = metadata.get("original")
    return found if isinstance(found, dict) else {}


def _bytes_of(output: Path) -> int:
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(file.stat().st_size for file in files if file.is_file())
