"""Filter pruning on ResNet-20 and CIFAR-10: a quarter fewer multiply-accumulates, then retraining.

    python repro/repro_filters.py

The recipe ``resnet20_filters``, from the published weights in ``ESPALIER_DATA``, which are trained
on first, on the same (JPEG) images. Li's shape of cut (Li et al. 2017, section 3.3): the first
layers of the residual blocks lose filters, by L1 norm, and beside it by entropy; one share for all
layers, the largest with at most 75 % of the multiply-accumulates. Then ten epochs of retraining
with the network before the cut as a teacher. The uncut network is trained for the same ten epochs
too, so that what the epochs gain is not taken for what the cut costs. Three seeds; nothing was
searched; the best epoch is chosen on 5,000 images held out; the test images are looked at at the
end. Writes ``repro/results/resnet20_filters.json``; runs are kept in ``--runs`` and resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from reference import FILE, recipe_of, reference

from espalier.analysis.machine import machine
from espalier.recipe import Recipe, load_recipe, run_recipe
from espalier.recipe.network import reference_recipe

NAME = "resnet20_filters"
METHODS = ("l1", "entropy", "uncut")
LOST = 0.3
"""Points that may be lost against the network before the cut."""


def after_reference(recipe: Recipe, method: str, weights: Path) -> Recipe:
    """What the recipe does to its trained network, by another criterion or without the cut."""
    stages = []
    for stage in recipe.stages[len(reference_recipe(recipe).stages) :]:
        if stage.kind == "prune_filters":
            if method == "uncut":
                continue
            options = stage.options.model_copy(update={"criterion": method})
            stage = stage.model_copy(update={"options": options})
        stages.append(stage)
    return recipe.model_copy(update={"weights": str(weights), "stages": stages})


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
        "error": errors,
        "points_lost": {"mean": mean(lost), "worst": max(lost)},
        "macs_percent": max(row["macs_percent"] for row in rows),
        "parameters_percent": max(row["parameters_percent"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [
        one(method, seed, arguments.runs)
        for seed in arguments.seeds
        for method in arguments.methods
    ]
    found = {
        "bars": {"macs_percent": 75, "points_lost": LOST},
        "summary": {
            method: over_seeds([row for row in rows if row["method"] == method])
            for method in arguments.methods
        },
        "machine": machine() | {"threads": arguments.threads},
        "recipe": load_recipe(NAME).to_json(),
        "runs": rows,
    }
    # A part of the work is printed and does not replace the committed whole.
    if list(arguments.methods) == list(METHODS):
        path = Path(__file__).parent / "results" / f"{NAME}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    main()
