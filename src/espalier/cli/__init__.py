"""The command ``espalier``: one file per command, and here how all of them begin and end.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.

Exit status: 0 done; 1 failed, with one line on standard error; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from espalier import __version__
from espalier.cli import (
    choose,
    compress,
    convert,
    decompress,
    demo,
    inspect,
    profile,
    report,
    run,
    search,
    sensitivity,
    speed,
    study,
    verify,
)
from espalier.errors import EspalierError

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

# Typer carries its own copy of Click, whose class of usage errors has no public name.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="espalier",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _module in (
    demo,
    compress,
    decompress,
    inspect,
    verify,
    run,
    sensitivity,
    choose,
    search,
    study,
    profile,
    speed,
    report,
    convert,
):
    app.command(_module.__name__.rpartition(".")[2])(_module.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"espalier {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Make trained neural networks small enough to ship: prune, share weights, entropy-code."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    # An exception, unlike the default action, lets temporary files be removed.
    raise SystemExit(TERMINATED)


def _fail(message: str) -> None:
    line = " ".join(message.split())
    print(f"espalier: {line}", file=sys.stderr)  # noqa: T201


def main(args: list[str] | None = None) -> int:
    """Run the command line ``args`` (by default those of the process); the exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    command = typer.main.get_command(app)
    try:
        status = command.main(args, prog_name="espalier", standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        _fail(f"{_usage_of(error)} (see 'espalier {_command_of(error)}--help')")
        return 2
    except BrokenPipeError:
        _drop_output()
        return 1
    except (EspalierError, NotImplementedError) as error:
        _fail(str(error))
        return 1
    except OSError as error:
        _fail(_os_error(error))
        _drop_output()
        return 1
    except MemoryError:
        _fail("not enough memory")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except SystemExit as error:
        status = error.code
    if status in (INTERRUPTED, TERMINATED):
        _fail("interrupted" if status == INTERRUPTED else "terminated")
    return status if isinstance(status, int) else 0


def _usage_of(error: Exception) -> str:
    return str(error.format_message() if hasattr(error, "format_message") else error)


def _command_of(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "espalier").split()[1:]
    return " ".join([*path, ""])


def _drop_output() -> None:
    """Forget what standard output could not take: at exit it would fail once more, and say so."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return where + (error.strerror or str(error))
