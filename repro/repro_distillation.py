"""ResNet-20 and CIFAR-10, a fifth of the weights: retrained with and without a teacher.

    python repro/repro_distillation.py

The published weights are first trained for an epoch on these (JPEG) images, which they gain by. The
network that comes out is the teacher of its own pruned copy (Hinton, Vinyals, Dean 2015): 20 % of
the weights stay, the largest over the whole network, and the rest is retrained twice from the same
start, in the same order and with the same augmentation, from the labels alone and from labels and
teacher. Three seeds, of split, order and augmentation. Neither the learning rate nor the share and
the temperature of the distillation were searched; the best epoch is chosen on 2,000 images
held out; the test images are looked at once. Writes ``repro/results/resnet20_distillation.json``;
epochs are kept in ``--runs``, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from repro_resnet_rd import HELD_OUT, original
from torch import nn

import espalier
from espalier.analysis.machine import machine
from espalier.samples import Samples
from espalier.training import Settings, evaluate
from espalier.zoo import DataSet, cifar10

NAME = "resnet20"
DENSITY = 0.2
COMMON = Settings(lr=0.02, optimizer="sgd", weight_decay=1e-4, augment="shift-flip")
METHODS: dict[str, dict[str, Any]] = {
    "labels": {},
    "teacher": {"distill": 0.7, "temperature": 4.0},
}


def trained(
    model: nn.Module,
    data: DataSet,
    settings: Settings,
    path: Path,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, or bring it to the end of a finished run; what came out."""
    train, held_out = data.train.split(HELD_OUT, settings.seed)
    history = espalier.train(
        model, train, settings, held_out=held_out, teacher=teacher, checkpoint=path
    )
    found = {
        "settings": asdict(settings),
        "held_out_errors": [epoch.error for epoch in history.epochs],
        "test_error": error(model, data.test),
    }
    print(path.stem, json.dumps(found), flush=True)
    return found


def error(model: nn.Module, data: Samples) -> float:
    """Percent."""
    return evaluate(model, data, batch_size=250).error


def one_seed(seed: int, data: DataSet, epochs: int, runs: Path) -> dict[str, Any]:
    """The dense network trained for an epoch, then both ways of retraining its pruned copy."""
    folder = runs / f"{NAME}-distillation-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    common = asdict(COMMON) | {"seed": seed}
    dense = original(NAME).to(memory_format=torch.channels_last)
    start = trained(dense, data, Settings(**common | {"epochs": 1}), folder / "dense.pt")
    pruned = deepcopy(dense)
    espalier.prune(pruned, density=DENSITY, scope="global")
    rows: dict[str, Any] = {
        "seed": seed,
        "dense": start,
        "test_error_before_retraining": error(pruned, data.test),
    }
    for method, options in METHODS.items():
        model = deepcopy(pruned)
        settings = Settings(**common | {"epochs": epochs} | options)
        teacher = dense if options else None
        rows[method] = trained(model, data, settings, folder / f"{method}.pt", teacher)
        rows[method]["bytes"] = espalier.save(
            model, folder / f"{method}.esp", force=True
        ).file_bytes
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = cifar10()
    runs = [one_seed(seed, data, arguments.epochs, arguments.runs) for seed in arguments.seeds]
    errors = {name: [run[name]["test_error"] for run in runs] for name in ("dense", *METHODS)}
    gained = [a - b for a, b in zip(errors["labels"], errors["teacher"], strict=True)]
    summary = {
        "test_error": {name: {"mean": mean(e), "worst": max(e)} for name, e in errors.items()},
        "points_gained_by_the_teacher": {"mean": mean(gained), "worst": min(gained)},
    }
    results = {
        "density": DENSITY,
        "summary": summary,
        "machine": machine() | {"threads": arguments.threads},
        "runs": runs,
    }
    path = Path(__file__).parent / "results" / f"{NAME}_distillation.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
