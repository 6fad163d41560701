"""LeNet-5 on MNIST at 8 bits, binary and ternary, trained: three seeds, mean and worst.

    python repro/repro_lenet5_formats.py
    python repro/repro_lenet5_formats.py --unpruned

Runs the recipes ``lenet5_int8``, ``lenet5_binary`` and ``lenet5_ternary``; of each seed the pruned
network that ``lenet5``, with shared weights, has too is trained once, and its state handed on to
all three. ``--unpruned`` leaves the pruning out, and trains binary and ternary weights for four
epochs. Writes ``repro/results/lenet5_formats.json`` or ``lenet5_formats_unpruned.json``, with the
files of shared weights (``lenet5.json``) beside them. Runs are kept in ``runs/`` and resumed. Every
choice was made on 5,000 images held out of the training set; test images are evaluated once at the
end of a stage and decide nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from espalier.analysis.machine import machine
from espalier.recipe import load_recipe, run_recipe
from espalier.recipe.schema import Recipe
from espalier.training.checkpoint import load_checkpoint, save_checkpoint

HERE = Path(__file__).parent
BOUNDS = {"lenet5_int8": 0.80, "lenet5_binary": 1.2, "lenet5_ternary": 1.0}
COMMON = 5
"""Stages that the recipes begin with alike: to the file of the pruned network."""
REFERENCE = 2
"""Of these, the training before pruning, and its evaluation."""
LONGER = {"epochs": 4, "lr": 1e-3}
"""How binary and ternary weights are trained where nothing is pruned."""


def recipe_of(name: str, seed: int, unpruned: bool) -> Recipe:
    """A built-in recipe, or what is left of it without pruning."""
    recipe = load_recipe(name, seed=seed)
    if not unpruned:
        return recipe
    stages = recipe.stages[:REFERENCE] + recipe.stages[COMMON:]
    if name != "lenet5_int8":
        at = next(i for i, stage in enumerate(stages) if stage.kind == "fine_tune")
        longer = stages[at].options.model_copy(update=LONGER)
        stages[at] = stages[at].model_copy(update={"options": longer})
    return recipe.model_copy(update={"stages": stages})


def before(seed: int, runs: Path, unpruned: bool) -> Path:
    """The state of the network of ``seed`` before quantization."""
    recipe = load_recipe("lenet5_int8", seed=seed)
    out = runs / f"lenet5-{'reference' if unpruned else 'pruned'}-seed{seed}"
    stages = recipe.stages[: REFERENCE if unpruned else COMMON]
    run_recipe(recipe.model_copy(update={"stages": stages}), out, resume=True)
    return out / "state.pt"


def handed_on(state: Path, recipe: Recipe, out: Path) -> None:
    """Let a run of ``recipe`` begin behind its common stages."""
    if not (out / "state.pt").exists():
        kept = load_checkpoint(state)
        kept["recipe"] = json.dumps(recipe.to_json(), sort_keys=True)
        out.mkdir(parents=True, exist_ok=True)
        save_checkpoint(out / "state.pt", kept)


def one_run(name: str, seed: int, runs: Path, unpruned: bool) -> dict[str, Any]:
    """Run a recipe, or read a finished run."""
    recipe = recipe_of(name, seed, unpruned)
    out = runs / f"{name}{'-unpruned' if unpruned else ''}-seed{seed}"
    handed_on(before(seed, runs, unpruned), recipe, out)
    result = run_recipe(recipe, out, resume=True)
    ledger = result.saved("model.esp")["ledger"]
    evaluations = [stage for stage in result.stages if stage.kind == "evaluate"]
    fine_tuned = next(s.values for s in result.stages if s.kind == "fine_tune")
    found = {
        "seed": seed,
        "seconds": round(sum(stage.seconds for stage in result.stages), 1),
        "bytes": ledger["file_bytes"],
        "held_out_error": fine_tuned["held_out_error"],
        "errors": {stage.values["name"]: stage.values["error"] for stage in evaluations},
        "data": result.split.source.partition(",")[0],
        "ledger": ledger,
    }
    print(json.dumps({"recipe": name} | found | {"ledger": None}), flush=True)
    return found


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and worst over the seeds, and whether the worst is within the bound."""
    errors = [run["errors"]["compressed"] for run in runs]
    sizes = [run["bytes"] for run in runs]
    return {
        "error": {"mean": mean(errors), "worst": max(errors), "bound": BOUNDS[name]},
        "bytes": {"mean": mean(sizes), "worst": max(sizes)},
        "within": max(errors) <= BOUNDS[name],
    }


def shared_weights() -> dict[str, Any]:
    """What Deep Compression's shared weights take, from its own results."""
    found = json.loads((HERE / "results" / "lenet5.json").read_text())["summary"]
    return {"error": found["error"]["compressed"], "bytes": found["bytes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=list(BOUNDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--unpruned", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.names}
    for seed in arguments.seeds:
        for name, runs in found.items():
            runs.append(one_run(name, seed, arguments.runs, arguments.unpruned))
    results = {
        "summary": {name: summary(name, runs) for name, runs in found.items()}
        | {"shared weights (lenet5)": shared_weights()},
        "machine": machine() | {"threads": arguments.threads},
        "runs": found,
    }
    out = f"lenet5_formats{'_unpruned' if arguments.unpruned else ''}.json"
    (HERE / "results" / out).write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["summary"], indent=1))


if __name__ == "__main__":
    main()
