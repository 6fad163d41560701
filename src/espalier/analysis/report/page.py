"""The page: one HTML file with its data, styles and scripts in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from espalier.analysis.figures import THEMES, Theme
from espalier.analysis.figures.figure import need
from espalier.analysis.report import drawn
from espalier.analysis.report.drawn import Captioned
from espalier.analysis.report.runs import ReportRun, open_runs
from espalier.analysis.tables import compressed_rows
from espalier.cache import cache_dir
from espalier.container import atomic_write
from espalier.errors import InvalidArgument


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    figures: str | os.PathLike[str] | None = None,
    sweep: str | os.PathLike[str] | None = None,
    title: str = "",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write one self-contained page about one or several runs; it opens without a network.

    Parameters
    ----------
    runs : sequence of path
        Folders of finished runs (``espalier run``, ``espalier demo``), or ``.esp`` files. Several
        stand side by side.
    out : path
        The page, ``report.html``.
    figures : path, optional
        A folder for the same figures as PNG and SVG; one folder for each run where there are
        several.
    sweep : path, optional
        What ``espalier sensitivity`` left: its folder, or ``sweep.json``. Without it a run's own
        ``sweep.json`` is shown.
    title : str, optional
        Heading of the page; the name of the run by default.
    force : bool
        Replace files that exist.
    progress : callable, optional
        Is told how many figures are written, and how many there are.

    Returns
    -------
    list of Path
        What was written, the page first.

    Raises
    ------
    InvalidArgument
        A run that is not finished or saved no file; an output that exists.
    CorruptFile
        A run's results or file are damaged.
    MissingDependency
        The extra ``report`` is not installed.

    Examples
    --------
    >>> espalier.write_report(["runs/lenet5"], "report.html")                      # doctest: +SKIP
    [PosixPath('report.html')]
    """
    opened = open_runs(runs, sweep)
    page = render(opened, title)
    with atomic_write(Path(out), force=force) as file:
        file.write(page.encode())
    written = [Path(out)]
    if figures is not None:
        written += _save_figures(opened, Path(figures), force, progress)
    return written


def _save_figures(
    runs: Sequence[ReportRun],
    folder: Path,
    force: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Path]:
    """Each figure as PNG and SVG, in a folder for each run where there are several."""
    several = len(runs) > 1
    places = [folder / run.name.replace("/", "-") if several else folder for run in runs]
    todo = [
        (place, figure)
        for place, run in zip(places, runs, strict=True)
        for figure in drawn.all_figures(run)
    ]
    todo += [(folder, shown.figure) for shown in drawn.comparison(list(runs)) if several]
    written: list[Path] = []
    for done, (place, figure) in enumerate(todo, 1):
        written += figure.save(place, force=force)
        if progress:
            progress(done, len(todo))
    return written


def render(runs: Sequence[ReportRun], title: str = "") -> str:
    """The page as text; the same for the same runs."""
    if not runs:
        raise InvalidArgument("a report takes at least one run")
    placed = _Placed()
    context = {
        "title": title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs"),
        "runs": [_run(run) for run in runs],
        "several": len(runs) > 1,
        "comparison": placed.all("compare", drawn.comparison(list(runs))),
        "overview": _side_by_side(runs, drawn.overview, placed),
        "training": _side_by_side(runs, drawn.training, placed),
        "sensitivity": _sensitivity(runs, placed),
        "layers": _layers(runs, placed),
        "omitted": max(run.omitted for run in runs),
        "css": _asset("page.css"),
        "variables": {name: _variables(theme) for name, theme in THEMES.items()},
        "script": _asset("page.js"),
        "library": _library(),
        "themes": _json({name: theme.config() for name, theme in THEMES.items()}),
    }
    context["figures"] = _json(placed.specs)
    jinja = need("jinja2")
    environment = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: f"{value:,}"
    page: str = environment.from_string(_asset("page.html.j2")).render(context)
    return page


class _Placed:
    """The figures of a page, each under an id of its own."""

    def __init__(self) -> None:
        self.specs: dict[str, Any] = {}

    def all(self, prefix: str, figures: Sequence[Captioned]) -> list[dict[str, str]]:
        """Place figures; what the template needs of each."""
        return [self._one(prefix, shown) for shown in figures]

    def _one(self, prefix: str, shown: Captioned) -> dict[str, str]:
        figure = shown.figure
        key = f"{prefix}-{figure.name}"
        self.specs[key] = dict(figure.spec)
        return {
            "id": key,
            "title": figure.title,
            "description": figure.description,
            "caption": shown.caption,
        }


def _run(run: ReportRun) -> dict[str, Any]:
    ledger = run.ledger
    both = run.before_and_after
    recipe = dict(run.recipe) if run.recipe else None
    return {
        "name": run.name,
        "file": Path(run.file).name,
        "ledger": ledger,
        "ratio": ledger["original_bytes"] / ledger["file_bytes"],
        "kept": _kept(ledger),
        "before": both[0] if both else None,
        "after": both[1] if both else (run.evaluations[-1] if run.evaluations else None),
        "evaluations": run.evaluations,
        "stages": run.stages,
        "seconds": sum(stage["seconds"] for stage in run.stages),
        "model": recipe["model"].rpartition(":")[2] if recipe else "",
        "data": run.data.partition(",")[0],
        "recipe": yaml.safe_dump(recipe, sort_keys=False, width=88) if recipe else "",
    }


def _side_by_side(
    runs: Sequence[ReportRun], draw: Callable[[ReportRun], list[Captioned]], placed: _Placed
) -> list[dict[str, Any]]:
    """Groups of figures: all of one run, or of several runs each figure beside its like."""
    each = [placed.all(f"r{i}", draw(run)) for i, run in enumerate(runs)]
    if len(runs) == 1:
        return [{"title": "", "figures": each[0]}] if each[0] else []
    groups: dict[str, list[dict[str, str]]] = {}
    for run, figures in zip(runs, each, strict=True):
        for figure in figures:
            groups.setdefault(figure["title"], []).append(figure | {"title": run.name})
    return [{"title": title, "figures": figures} for title, figures in groups.items()]


def _kept(ledger: Mapping[str, Any]) -> float:
    """Share of weights that are kept, of the tensors that are pruned or shared."""
    rows = compressed_rows(ledger)
    return sum(row["stored"] for row in rows) / max(1, sum(row["elements"] for row in rows))


def _sensitivity(runs: Sequence[ReportRun], placed: _Placed) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    seen: list[Any] = []
    for i, run in enumerate(runs):
        if run.sweep is not None and not any(run.sweep is sweep for sweep in seen):
            seen.append(run.sweep)
            figures = placed.all(f"r{i}", drawn.sensitivity(run.sweep))
            shown.append({"run": run.name, "figures": figures})
    return shown


def _layers(runs: Sequence[ReportRun], placed: _Placed) -> list[dict[str, Any]]:
    """Layer by layer, in the order in which they first come up, every run that has it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for i, run in enumerate(runs):
        rows = {row["name"]: row for row in run.ledger["tensors"]}
        for view in run.layers:
            row = rows[view.name]
            figures = placed.all(f"r{i}", drawn.layer(view, row))
            found.setdefault(view.name, []).append(
                {"run": run.name, "row": row, "figures": figures}
            )
    return [{"name": name, "runs": shown} for name, shown in found.items()]


def _variables(theme: Theme) -> str:
    """The theme's colours for the style sheet."""
    colours = {
        "background": theme.background,
        "surface": theme.surface,
        "ink": theme.ink,
        "muted": theme.muted,
        "rule": theme.rule,
        "accent": theme.categories[2],
        "link": theme.categories[0],
    }
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def _json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it closes one."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (resources.files("espalier.analysis.report") / name).read_text("utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, as vl-convert carries them.

    Making it takes seconds, so it is kept in the user's cache folder.
    """
    vl_convert = need("vl_convert")
    kept = cache_dir() / f"vega-{vl_convert.__version__}.js"
    try:
        script = kept.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        script = vl_convert.javascript_bundle()
        with suppress(OSError):  # a folder that cannot be written costs time, nothing else
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(kept, force=True) as file:
                file.write(script.encode())
    return script.replace("</script", "<\\/script")
