"""Rate-aware training: some seeds against the bars, and error against bytes by method.

    python repro/repro_rate_aware.py lenet300 lenet5
    python repro/repro_rate_aware.py resnet20

runs the recipes ``NAME_rate`` and writes ``repro/results/NAME_rate.json``. ResNet-20 starts from
the published weights in ``ESPALIER_DATA``, which are trained on first, on the same images; a seed
takes two hours of a core and more. With ``--curve``, for the LeNets, also ``NAME_rate_curve.json``,
and the figure of the docs from it: the first seed at other sizes, and the
same reference quantized without retraining at several lambdas; Deep Compression as in
``repro/results/NAME.json``. Runs are kept in ``--runs`` and resumed. Rates, temperatures, steps,
augmentation and targets were chosen on the 5,000 images that the recipes hold out.

The curve's other sizes are trained for half of the epochs, from the same reference.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from reference import FILE, from_reference, recipe_of, reference, stages_after

from espalier import collect_curvature, quantize_rd, save
from espalier.analysis.figures import Axis, curves
from espalier.analysis.machine import machine
from espalier.recipe import Recipe, load_recipe, run_recipe
from espalier.recipe.network import Network, open_network
from espalier.recipe.refs import build_model
from espalier.training import evaluate

HERE = Path(__file__).parent
RESULTS = HERE / "results"


class Bar(NamedTuple):
    """Bytes of the file and error of the compressed network at most, in %."""

    bytes: int
    error: float
    above: bool = False
    """The error is in points above that of the reference."""


BARS = {
    "lenet300": Bar(8_500, 1.6),
    "lenet5": Bar(5_000, 0.8),
    "resnet20": Bar(1_084_544 // 30, 1.0, above=True),
}
FACTORS = (0.3, 1.0, 2.0)
"""Of the recipe's lambda, or inversely of its target, for the points of the curve."""
PUBLISHED = {"lenet300": (27_000, 1.58), "lenet5": (44_000, 0.74)}
SHORTER = 2
LAMBDAS = (2e-9, 5e-9, 1e-8, 2e-8, 5e-8, 1e-7, 2e-7)
SAMPLES = 2048


def dense_bytes(recipe: Recipe) -> int:
    """Bytes of the network's tensors before anything was done to it."""
    return sum(t.numel() * t.element_size() for t in build_model(recipe).state_dict().values())


def one_run(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Run a recipe, or read a finished run."""
    result = run_recipe(recipe, folder, resume=True)
    stage = [s for s in result.stages if s.kind == "rate_aware"][-1]
    seconds: dict[str, float] = {}
    for done in result.stages:
        seconds[done.kind] = round(seconds.get(done.kind, 0.0) + done.seconds, 1)
    kept = ("lambda", "file_bytes", "density", "refined", "layers")
    found = {
        "seed": recipe.seed,
        "bytes": result.saved()["ledger"]["file_bytes"],
        "original": dense_bytes(recipe),
        "errors": {
            name: result.evaluation(name)["error"]
            for name in ("reference", "held_out", "compressed")
        },
        "seconds": seconds,
        "rate_aware": {key: stage.values[key] for key in kept},
        "ledger": result.saved()["ledger"],
    }
    print(folder.name, found["bytes"], found["errors"], file=sys.stderr)
    return found


def summary(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Mean and worst over the seeds, and whether the worst is within the bar."""
    sizes = [run["bytes"] for run in runs]
    bar = BARS[name]
    judged = [
        run["errors"]["compressed"] - (run["errors"]["reference"] if bar.above else 0)
        for run in runs
    ]
    errors = {
        key: {"mean": mean(e), "worst": max(e)}
        for key in runs[0]["errors"]
        if (e := [run["errors"][key] for run in runs])
    }
    return {
        "bytes": {"mean": mean(sizes), "worst": max(sizes), "bar": bar.bytes},
        "ratio": {"worst": min(run["original"] / run["bytes"] for run in runs)},
        "error": errors | {"bar_above_reference" if bar.above else "bar": bar.error},
        "within": max(sizes) <= bar.bytes and max(judged) <= bar.error,
    }


def shorter(recipe: Recipe, factor: float, reference: Path) -> Recipe:
    """What the recipe does to its reference, with half the rate-aware epochs, to another size."""
    stages = []
    for stage in stages_after(recipe):
        if stage.kind == "rate_aware":
            options = stage.options
            changed: dict[str, Any] = {"epochs": max(1, options.epochs // SHORTER)}
            if options.lam is None:
                changed["target"] = round(options.target / factor)
            else:
                changed["lam"] = options.lam * factor
            options = options.model_copy(update=changed)
            stage = stage.model_copy(update={"options": options})
        stages.append(stage)
    return from_reference(recipe, reference, stages)


def trained(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """One point of the curve."""
    result = run_recipe(recipe, folder, resume=True)
    epochs = sum(len(s.values["epochs"]) for s in result.stages if s.kind == "rate_aware")
    return {
        "method": f"rate-aware, {epochs} epochs",
        "bytes": result.saved()["ledger"]["file_bytes"],
        "error": result.evaluation("compressed")["error"],
    }


def without_retraining(recipe: Recipe, network: Network) -> list[dict[str, Any]]:
    """The reference on grids by rate and distortion, at several lambdas."""
    data = network.split.train
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(recipe.seed))
    seen = data.subset(order[:SAMPLES])
    batches = list(zip(seen.x.split(256), seen.y.split(256), strict=True))
    curvature = collect_curvature(network.model, batches)
    rows = []
    for lam in LAMBDAS:
        model = copy.deepcopy(network.model)
        quantize_rd(model, lam, curvature=curvature, batches=batches)
        size = save(model, BytesIO(), effort="max").file_bytes
        error = evaluate(model, network.samples("test")).error
        rows.append({"method": "rate-distortion, no retraining", "bytes": size, "error": error})
    return rows


def curve(name: str, seed: int, runs: Path, first: dict[str, Any]) -> list[dict[str, Any]]:
    """Error against bytes, by method."""
    recipe = recipe_of(f"{name}_rate", seed)
    folder = runs / f"{name}_rate-reference-seed{seed}"
    reference(recipe, folder)
    network = open_network(str(folder))
    rows = without_retraining(recipe, network)
    for factor in FACTORS:
        changed = shorter(recipe, factor, folder / FILE)
        rows.append(trained(changed, runs / f"{name}_rate-{factor}-seed{seed}"))
    stage = next(s for s in recipe.stages if s.kind == "rate_aware")
    rows.append(
        {
            "method": f"rate-aware, {stage.options.epochs} epochs",
            "bytes": first["bytes"],
            "error": first["errors"]["compressed"],
        }
    )
    own = next(
        run
        for run in json.loads((RESULTS / f"{name}.json").read_text())["runs"]
        if run["seed"] == seed
    )
    for method, size, error in (
        ("Deep Compression", own["sizes"]["coded"], own["errors"]["compressed"]),
        ("Deep Compression, published", *PUBLISHED[name]),
    ):
        rows.append({"method": method, "bytes": size, "error": error})
    return rows


def draw(name: str, rows: list[dict[str, Any]]) -> None:
    """The figure of the docs."""
    figure = curves(
        rows,
        Axis("bytes", "bytes of the file", log=True, format=",d"),
        Axis("error", "test error, %"),
        series="method",
        title="Error against bytes, by method",
        name=f"rate-aware-{name}",
    )
    (HERE.parent / "docs" / "images" / f"rate-aware-{name}.svg").write_text(figure.svg())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=["lenet300", "lenet5"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--curve", action="store_true", help="other sizes and methods too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine_now = machine() | {"threads": arguments.threads}
    for name in arguments.names:
        runs = [
            one_run(recipe_of(f"{name}_rate", seed), arguments.runs / f"{name}_rate-seed{seed}")
            for seed in arguments.seeds
        ]
        over = summary(runs, name)
        recipe = load_recipe(f"{name}_rate").to_json()
        found = {"summary": over, "machine": machine_now, "recipe": recipe, "runs": runs}
        (RESULTS / f"{name}_rate.json").write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(over, indent=1))
        if arguments.curve and name in PUBLISHED:
            rows = curve(name, arguments.seeds[0], arguments.runs, runs[0])
            text = json.dumps({"machine": machine_now, "rows": rows}, indent=1)
            (RESULTS / f"{name}_rate_curve.json").write_text(text + "\n")
            draw(name, rows)


if __name__ == "__main__":
    main()
