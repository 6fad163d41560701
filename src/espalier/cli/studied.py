"""What the commands of analysis share: which network, judged by what, written where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli import console
from espalier.errors import CorruptFile, InvalidArgument, MissingDependency

if TYPE_CHECKING:
    from espalier.analysis.figures import Figure
    from espalier.analysis.sensitivity import Sweep
    from espalier.recipe.network import Network

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="[INPUT]",
        help="Folder of a finished run, or a recipe, or a built-in one's name.",
        show_default=False,
    ),
]
SweepFolder = Annotated[Path, typer.Argument(metavar="DIR", help="What espalier sensitivity left.")]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="PKG.MOD:FUNCTION", help="Builds the network, without an INPUT.", show_default=False
    ),
]
DataFunction = Annotated[
    str | None,
    typer.Option(
        metavar="PKG.MOD:FUNCTION", help="Gives (train, [held out,] test).", show_default=False
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Checkpoint that --model starts from.", show_default=False),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        metavar="PKG.MOD:FUNCTION",
        help="Takes the model, gives a number, in place of the accuracy on --data.",
        show_default=False,
    ),
]
MetricName = Annotated[str, typer.Option(metavar="NAME", help="What --evaluate measures.")]
Lower = Annotated[bool, typer.Option("--lower-is-better", help="So it is with --evaluate.")]
SplitName = Annotated[str, typer.Option(metavar="NAME", help="held_out or test.")]
Holdout = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Training samples to hold out.", show_default="the recipe's"
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        metavar="P,P,...", help="Layers, by name pattern or kind.", show_default="all of them"
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        metavar="X", min=0, help="The smallest file that loses at most X.", show_default=False
    ),
]
MaxBytes = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="The best network in N bytes.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for results.", show_default="runs/COMMAND-INPUT"),
]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="D", help="Where data is looked for first.", show_default=False),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N",
        min=1,
        help="Processes.",
        show_default="one for each processor, 4 at most",
    ),
]


ASKED = "asked.json"
POINTS, SWEEP = "points.jsonl", "sweep.json"


@dataclass(frozen=True)
class Asked:
    """Which network the user means, and how it is judged: the options above."""

    source: str | None
    model: str | None
    data: str | None
    weights: str | None
    evaluate: str | None
    metric: str
    lower: bool
    split: str
    holdout: int | None
    data_dir: Path | None

    def __post_init__(self) -> None:
        if self.split not in ("held_out", "test"):
            raise typer.BadParameter(f"--split must be held_out or test, not {self.split!r}")
        if (self.lower or self.metric != "accuracy") and not self.evaluate:
            raise typer.BadParameter("--metric and --lower-is-better go with --evaluate")
        if (self.source is None) == (self.model is None):
            raise typer.BadParameter("give either INPUT or --model")

    @property
    def name(self) -> str:
        """Short, for folders."""
        if self.source is not None:
            return Path(self.source).stem or "network"
        return str(self.model).rpartition(":")[2]

    @property
    def better(self) -> str:
        """Which way the metric is better."""
        return "lower" if self.lower else "higher"

    @classmethod
    def of_sweep(cls, folder: Path, data_dir: Path | None) -> Asked:
        """What the sweep in ``folder`` was asked."""
        try:
            plain = json.loads((folder / ASKED).read_text())["network"]
            return cls(**plain, data_dir=data_dir)
        except FileNotFoundError:
            raise InvalidArgument(
                f"{folder}: holds no sweep; espalier sensitivity makes one"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise CorruptFile(f"{folder / ASKED}: is not what a sweep was asked") from None

    def to_json(self) -> dict[str, Any]:
        """Everything but where this machine keeps its data."""
        plain = asdict(self)
        del plain["data_dir"]
        return plain

    def folder(self, out: Path | None, command: str) -> Path:
        """The folder for results, made if it is not there."""
        folder = out or Path("runs") / f"{command}-{self.name}"
        if folder.exists() and not folder.is_dir():
            raise InvalidArgument(f"{folder}: is a file; --out takes a folder")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def network(self, folder: Path, quiet: bool) -> Network:
        """The network; trained in ``folder`` where INPUT is a recipe without weights."""
        from espalier.recipe.network import open_network

        with console.stages(quiet) as report:
            return open_network(
                self.source,
                model=self.model,
                data=self.data,
                weights=self.weights,
                holdout=self.holdout,
                data_dir=self.data_dir,
                out=folder,
                progress=report,
            )

    def judge(self, network: Network) -> tuple[Callable[[Any], Any], str]:
        """``evaluate``, and in words what it looks at."""
        from espalier.recipe.network import TopOne
        from espalier.recipe.refs import resolve

        if self.evaluate:
            return resolve(self.evaluate, "--evaluate"), self.evaluate
        if not network.recipe.data:
            raise InvalidArgument("give --data or --evaluate: there is nothing to judge by")
        return TopOne(lambda: network.samples(self.split)), network.data_in_words(self.split)


def is_checkpoint(source: str) -> bool:
    """Whether ``source`` is a bare checkpoint: a file or folder that is neither recipe nor run."""
    path = Path(source)
    if path.is_dir():
        from espalier.recipe.run import RESULTS, STATE

        return not any((path / name).exists() for name in (STATE, RESULTS))
    return path.is_file() and path.suffix not in (".yaml", ".yml")


def read_sweep(folder: Path) -> Sweep:
    """The finished sweep that ``folder`` holds."""
    from espalier.analysis.sensitivity import Sweep

    path = folder / SWEEP
    if not path.is_file():
        raise InvalidArgument(f"{folder}: its sweep is not finished; espalier sensitivity goes on")
    try:
        return Sweep.from_json(json.loads(path.read_text()))
    except ValueError as error:  # InvalidArgument is one
        raise CorruptFile(f"{path}: {' '.join(str(error).split())}") from None


def digest_of(source: str | None) -> str | None:
    """What the bytes that INPUT stands for hash to; None where they are not known."""
    if source is None:
        return None
    path = Path(source)
    path = path / "state.pt" if path.is_dir() else path
    if not path.is_file() or path.suffix in (".yaml", ".yml"):
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """``value`` as JSON in ``path``, whole or not at all."""
    from espalier.container.atomic import atomic_write

    with atomic_write(path, force=True) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def patterns(text: str | None) -> list[str] | None:
    """``"conv*,fc1"`` as a list."""
    if text is None:
        return None
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise typer.BadParameter(f"--layers: {text!r} names no layer")
    return found


def save_figures(make: Callable[[], list[Figure]], folder: Path, quiet: bool) -> None:
    """Write figures as PNG, SVG and HTML; without the extra ``report``, say so and go on."""
    try:
        from espalier.analysis.sweep_figures import save_figures

        save_figures(make(), folder)
    except MissingDependency as error:
        if not quiet:
            console.note(str(error))


def write_recipe(
    network: Network, stages: list[dict[str, Any]], folder: Path, quiet: bool
) -> Path | None:
    """A recipe that does ``stages`` to the network, and the network itself beside it."""
    if not network.recipe.data:
        if not quiet:
            console.note("no recipe is written: a recipe needs --data")
        return None

    from espalier.container.atomic import atomic_write
    from espalier.recipe.network import recipe_for
    from espalier.torch_io import save

    weights, path = folder / "network.esp", folder / "recipe.yaml"
    save(network.model, weights)
    text = recipe_for(network, weights, stages)
    with atomic_write(path, force=True) as file:
        file.write(text.encode())
    return path
