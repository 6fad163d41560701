"""The studies of Deep Compression (figures 6, 7 and 8, and table 6's bits) on LeNet-5 and MNIST.

    python repro/repro_studies.py

Writes ``repro/results/studies_lenet5.json``, ``studies_lenet5.md`` (the numbers, and which of the
paper's findings hold) and the figures beside them. The networks are those of the recipe ``lenet5``,
the reference and the pruned one after retraining, trained where ``--runs`` does not hold them.
Every point is kept in ``--runs``, and an interrupted study goes on. Nothing is chosen here, so
accuracies are on the test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.analysis.machine import machine
from espalier.analysis.study import Study, study
from espalier.analysis.study_cases import Tuning
from espalier.analysis.study_report import findings, study_figures, study_tables
from espalier.analysis.sweep_figures import save_figures
from espalier.recipe import load_recipe, run_recipe
from espalier.recipe.network import TopOne, open_network, reference_recipe
from espalier.recipe.refs import build_model
from espalier.torch_io import load

NAME = "studies_lenet5"
TUNING = Tuning(epochs=1, lr=1e-3, samples=10_000)


def networks(runs: Path, seed: int) -> tuple[Any, nn.Module]:
    """The reference network with its data, and the pruned one."""
    recipe = load_recipe("lenet5", seed=seed)
    reference = runs / f"lenet5-reference-seed{seed}"
    run_recipe(reference_recipe(recipe), reference, resume=True)
    whole = runs / f"lenet5-seed{seed}"
    run_recipe(recipe, whole, resume=True)
    pruned = load(whole / "pruned.esp", into=build_model(recipe), trainable=True)
    return open_network(str(reference)), pruned


def page(found: Study) -> str:
    """The numbers and the findings, in Markdown."""
    tuning = found.tuning
    trained = (
        f"{tuning.epochs} epoch on {tuning.samples or 'all'} training samples after each cut"
        if tuning
        else "nothing is retrained"
    )
    lines = ["# The studies of Deep Compression, on LeNet-5", ""]
    lines += [f"Made by `python repro/repro_studies.py`; {trained}. Errors on {found.data}.", ""]
    lines += ["| the paper finds | here | |", "| --- | --- | --- |"]
    lines += [
        f"| {f.paper} | {'holds' if f.holds else 'does not hold'} | {f.here} |"
        for f in findings(found)
    ]
    return "\n".join([*lines, "", study_tables(found)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network, pruned = networks(arguments.runs, arguments.seed)
    found = study(
        network.model,
        TopOne(lambda: network.samples("test")),
        network.split.train,
        pruned=pruned,
        tuning=TUNING,
        data=network.data_in_words("test"),
        jobs=arguments.jobs,
        keep=arguments.runs / f"{NAME}-seed{arguments.seed}.jsonl",
        progress=True,
    )
    out = Path(__file__).parent / "results"
    results = {
        "machine": machine() | {"threads": arguments.threads},
        "seed": arguments.seed,
        "findings": [vars(f) for f in findings(found)],
        "study": found.to_json(),
    }
    (out / f"{NAME}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{NAME}.md").write_text(page(found))
    save_figures(study_figures(found), out / NAME, ("svg",))
    print(page(found))


if __name__ == "__main__":
    main()
