"""Filter pruning on ResNet-20 and CIFAR-10: a quarter fewer multiply-accumulates, then retraining.

    python repro/repro_filters.py

Li's shape of cut (Li et al. 2017, section 3.3): the first layers of the residual blocks lose
filters, by L1 norm, and beside it by entropy; one share for all layers, the largest with at most
75 % of the multiply-accumulates. Then every network is retrained in the same way, the uncut one
too, since the published weights were not trained on these (JPEG) images and gain by it. Three
seeds, of the split, the order and the augmentation. The learning rate was not searched; the best
epoch is chosen on 2,000 images held out; the test images are looked at once. Writes
``repro/results/resnet20_filters.json``; epochs are kept in ``--runs``, and an interrupted run
goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import torch
from repro_resnet_rd import HELD_OUT, original

import espalier
from espalier.analysis.machine import machine
from espalier.samples import Samples
from espalier.training import Settings, evaluate
from espalier.zoo import DataSet, cifar10

NAME = "resnet20"
MACS = 0.75
SEEN = 1024
"""Training images that the entropy is measured on."""
METHODS = ("none", "l1", "entropy")


def one(method: str, seed: int, data: DataSet, epochs: int, runs: Path) -> dict[str, Any]:
    """One network cut and retrained, or read from a finished run."""
    folder = runs / f"{NAME}-{method}-seed{seed}"
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())  # type: ignore[no-any-return]
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = data.train.split(HELD_OUT, seed)
    model, example = original(NAME), train.x[:1]
    found: dict[str, Any] = {"method": method, "seed": seed, "cut": None}
    if method != "none":
        _, seen = train.split(SEEN, seed)
        report = espalier.prune_filters(
            model, example=example, macs=MACS, criterion=method, batches=[(seen.x, seen.y)]
        )
        found["cut"] = {
            "layers": [asdict(group) for group in report.groups],
            "macs_percent": 100 * report.after.macs / report.before.macs,
            "parameters_percent": 100 * report.after.parameters / report.before.parameters,
            "test_error_before_retraining": error(model, data.test),
        }
    settings = Settings(
        epochs=epochs, lr=0.02, optimizer="sgd", weight_decay=1e-4, augment="shift-flip", seed=seed
    )
    model.to(memory_format=torch.channels_last)
    start = process_time()
    history = espalier.train(
        model, train, settings, held_out=held_out, checkpoint=folder / "epochs.pt"
    )
    found |= {
        "settings": asdict(settings),
        "held_out_errors": [epoch.error for epoch in history.epochs],
        "cpu_seconds": round(process_time() - start, 1),
        "test_error": error(model, data.test),
        "file_bytes": espalier.save(model, folder / "model.esp").file_bytes,
    }
    done.write_text(json.dumps(found))
    print(json.dumps(found), flush=True)
    return found


def error(model: torch.nn.Module, data: Samples) -> float:
    """Percent."""
    return evaluate(model, data, batch_size=250).error


def over_seeds(rows: list[dict[str, Any]], before: float) -> dict[str, Any]:
    """Mean and worst test error, and points lost from the published weights."""
    errors = [row["test_error"] for row in rows]
    lost = [e - before for e in errors]
    return {
        "test_error": {"mean": mean(errors), "worst": max(errors)},
        "points_lost": {"mean": mean(lost), "worst": max(lost)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = cifar10()
    before = error(original(NAME), data.test)
    rows = [
        one(method, seed, data, arguments.epochs, arguments.runs)
        for seed in arguments.seeds
        for method in METHODS
    ]
    summary = {m: over_seeds([r for r in rows if r["method"] == m], before) for m in METHODS}
    results = {
        "original_test_error": before,
        "bars": {"macs_percent": 75, "points_lost": 0.3},
        "summary": summary,
        "machine": machine() | {"threads": arguments.threads},
        "runs": rows,
    }
    path = Path(__file__).parent / "results" / "resnet20_filters.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({"original_test_error": before} | summary, indent=1))


if __name__ == "__main__":
    main()
