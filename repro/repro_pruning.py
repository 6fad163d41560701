"""Pruning alone on LeNet-5: at most 2% of the weights, no more error than the reference network.

    python repro/repro_pruning.py [--recipes lenet5_pruning lenet5_pruning_shifts]

Three seeds of each recipe; writes ``repro/results/RECIPE.json``. Choices were made on images held
out of the training set; the test images decide nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from espalier.analysis.machine import machine
from espalier.recipe import run_recipe
from espalier.targets import find_targets

RECIPES = ("lenet5_pruning", "lenet5_pruning_shifts")
"""As the network is usually trained; and with shifts of up to two pixels, dense and pruned."""


def one_seed(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """Run the recipe, or read a finished run."""
    result = run_recipe(name, runs / f"{name}-seed{seed}", resume=True, seed=seed)
    weights = {t.name: t.value for t in find_targets(result.model) if t.by_default}
    kept = {name: int(w.count_nonzero()) for name, w in weights.items()}
    elements = {name: w.numel() for name, w in weights.items()}
    return {
        "seed": seed,
        "seconds": round(sum(stage.seconds for stage in result.stages), 1),
        "keep_percent": {name: 100 * kept[name] / n for name, n in elements.items()},
        "keep_percent_total": 100 * sum(kept.values()) / sum(elements.values()),
        "errors": {s: result.evaluation(s)["error"] for s in ("reference", "pruned")},
        "held_out_errors": [
            stage.values["held_out_error"] for stage in result.stages if "epochs" in stage.values
        ],
        "bytes": result.saved()["ledger"]["file_bytes"],
        "recipe": result.recipe.to_json(),
        "data": result.split.source.partition(",")[0],
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and worst over the seeds, and the bounds."""
    errors = {s: [run["errors"][s] for run in runs] for s in ("reference", "pruned")}
    above = [p - r for p, r in zip(errors["pruned"], errors["reference"], strict=True)]
    keep = max(run["keep_percent_total"] for run in runs)
    sizes = [run["bytes"] for run in runs]
    return {
        "keep_percent": {"worst": keep, "bound": 2.0},
        "error": {s: {"mean": mean(e), "worst": max(e)} for s, e in errors.items()},
        "points_above_reference": {"mean": mean(above), "worst": max(above), "bound": 0.0},
        "bytes": {"mean": mean(sizes), "worst": max(sizes)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.recipes:
        runs = [one_seed(name, seed, arguments.runs) for seed in arguments.seeds]
        found = {
            "summary": summary(runs),
            "machine": machine() | {"threads": arguments.threads},
            "runs": runs,
        }
        path = Path(__file__).parent / "results" / f"{name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    main()
