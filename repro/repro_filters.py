"""Filter pruning on ResNet-20 and CIFAR-10: a quarter fewer multiply-accumulates, then retraining.

    python repro/repro_filters.py

The recipe ``resnet20_filters``, from the published weights in ``ESPALIER_DATA``, which are trained
on first, on the same (JPEG) images. Li's shape of cut (Li et al. 2017, sections 3.3 and 4.2): the
first layers of the residual blocks lose filters, most in the first stage and least in the last, by
L1 norm, and beside it by entropy. The shares were chosen among a dozen with as many
multiply-accumulates, before retraining, by the error on held-out images of seeds 0 and 1. Then ten
epochs of retraining with the network before the cut as a teacher, of which nothing was searched.
The last epoch counts: the published weights have seen the images that are held out here, so that
these favour early ones. ``--methods uncut`` trains the uncut network for the same ten epochs, to
see what they gain by themselves. Three seeds. Writes ``repro/results/resnet20_filters.json``, where
rows of the same recipe stay; runs are kept in ``--runs`` and resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from reference import FILE, from_reference, recipe_of, reference, stages_after

from espalier.analysis.machine import machine
from espalier.recipe import Recipe, load_recipe, run_recipe

NAME = "resnet20_filters"
METHODS = ("l1", "entropy", "uncut")
LOST = 0.3
"""Points that may be lost against the network before the cut."""


def after_reference(recipe: Recipe, method: str, weights: Path) -> Recipe:
    """What the recipe does to its trained network, by another criterion or without the cut."""
    stages = []
    for stage in stages_after(recipe):
        if stage.kind == "prune_filters":
            if method == "uncut":
                continue
            options = stage.options.model_copy(update={"criterion": method})
            stage = stage.model_copy(update={"options": options})
        stages.append(stage)
    return from_reference(recipe, weights, stages)


def one(method: str, seed: int, runs: Path) -> dict[str, Any]:
    """Cut and retrain one network, or read a finished run."""
    recipe = recipe_of(NAME, seed)
    start = runs / f"{NAME}-reference-seed{seed}"
    before = reference(recipe, start)
    folder = runs / f"{NAME}-{method}-seed{seed}"
    result = run_recipe(after_reference(recipe, method, start / FILE), folder, resume=True)
    errors = {"reference": before.evaluation("reference")["error"]} | {
        name: result.evaluation(name)["error"] for name in ("cut", "held_out", "retrained")
    }
    cut = next((s.values for s in result.stages if s.kind == "prune_filters"), None)
    found = {
        "method": method,
        "seed": seed,
        "errors": errors,
        "points_lost": errors["retrained"] - errors["reference"],
        "macs_percent": 100 * cut["macs"][1] / cut["macs"][0] if cut else 100.0,
        "parameters_percent": 100 * cut["parameters"][1] / cut["parameters"][0] if cut else 100.0,
        "bytes": result.saved()["ledger"]["file_bytes"],
        "seconds": round(sum(s.seconds for s in before.stages + result.stages), 1),
        "layers": cut["layers"] if cut else [],
    }
    print(folder.name, errors, file=sys.stderr)
    return found


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and worst over the seeds."""
    errors = {
        name: {"mean": mean(e), "worst": max(e)}
        for name in rows[0]["errors"]
        if (e := [row["errors"][name] for row in rows])
    }
    lost = [row["points_lost"] for row in rows]
    return {
        "seeds": len(rows),
        "error": errors,
        "points_lost": {"mean": mean(lost), "worst": max(lost)},
        "macs_percent": max(row["macs_percent"] for row in rows),
        "parameters_percent": max(row["parameters_percent"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = Path(__file__).parent / "results" / f"{NAME}.json"
    recipe = load_recipe(NAME).to_json()
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before.get("runs", []) if before.get("recipe") == recipe else []
    rows = {(row["method"], row["seed"]): row for row in kept}
    for seed in arguments.seeds:
        for method in arguments.methods:
            rows[method, seed] = one(method, seed, arguments.runs)
    runs = [rows[key] for key in sorted(rows, key=lambda key: (METHODS.index(key[0]), key[1]))]
    found = {
        "bars": {"macs_percent": 75, "points_lost": LOST},
        "summary": {
            method: over_seeds(own)
            for method in METHODS
            if (own := [row for row in runs if row["method"] == method])
        },
        "machine": machine() | {"threads": arguments.threads},
        "recipe": recipe,
        "runs": runs,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    main()
