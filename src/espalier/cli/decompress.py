"""``espalier decompress``: an ``.esp`` file back to a plain checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli import console
from espalier.errors import InvalidArgument

if TYPE_CHECKING:
    from espalier.container import Reader
    from espalier.interop import Pieces, TensorInfo

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
    from espalier.interop import Content, save_checkpoint
    from espalier.parallel import job_count
    from espalier.state import Array

    with Reader(source) as reader:
        names = reader.names() if not only else _matching(reader.names(), only)
        infos, aliases = _tensors(reader, names)
        total = sum(info.nbytes for info in infos)
        with console.progress(f"Decompressing {console.short(source)}", total, quiet) as advance:

            def load(name: str) -> Array:
                array = reader.dense(name)
                advance(array.nbytes)
                return array

            content = Content(
                infos,
                load,
                aliases,
                _checkpoint_metadata(reader.metadata),
                {} if only else _original(reader.metadata),
                job_count(jobs),
                {} if only else files_of(reader),
            )
            save_checkpoint(output, content, force=force)
        before, after = reader.file_bytes, _bytes_of(output)
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


def _tensors(reader: Reader, names: Sequence[str]) -> tuple[list[TensorInfo], dict[str, str]]:
    """Infos of the tensors of those names, and further names of tied ones among them."""
    from espalier.interop import TensorInfo

    infos: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    for name in names:
        entry = reader.entry(name)
        if entry.name in infos:
            aliases[name] = infos[entry.name].name
        else:
            infos[entry.name] = TensorInfo(name, entry.shape, entry.dtype)
    return list(infos.values()), aliases


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


def files_of(reader: Reader) -> dict[str, Pieces]:
    """The files that travel with the tensors, by name."""
    return {name: partial(reader.file, name) for name in reader.files}


def _bytes_of(output: Path) -> int:
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(file.stat().st_size for file in files if file.is_file())
