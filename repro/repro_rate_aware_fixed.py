"""What is left to gain after rate-aware training, with the symbols as they are.

    python repro/repro_rate_aware_fixed.py

reads what ``repro_rate_aware.py lenet300`` left in ``--runs`` (``runs/repro``), and trains each
file on for two epochs at a tenth of the recipe's learning rate, on the labels: the steps alone, as
:meth:`espalier.RateAware.fix_symbols` leaves them, or all levels, each free. Writes error and loss
on the recipe's 5,000 held-out images and the bytes of the file, before and after, to
``repro/results/lenet300_rate_fixed.json``. The test images are not looked at.
"""

from __future__ import annotations

import argparse
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

import espalier
from espalier.analysis.machine import machine
from espalier.recipe import load_recipe
from espalier.recipe.refs import Split, build_data, build_model
from espalier.training import Settings, evaluate, set_dropout, train

OUTPUT = Path(__file__).parent / "results" / "lenet300_rate_fixed.json"
SEEDS = (0, 1, 2)
EPOCHS = 2
LR = 2e-4


def measured(model: torch.nn.Module, split: Split) -> dict[str, float]:
    assert split.held_out is not None
    metrics = evaluate(model, split.held_out)
    size = espalier.save(model, BytesIO(), effort="max").file_bytes
    return {"error": metrics.error, "loss": round(metrics.loss, 5), "bytes": size}


def trained_on(file: Path, seed: int, what: str) -> dict[str, Any]:
    """Train the ``steps`` or the ``levels`` of a file; before and after."""
    recipe = load_recipe("lenet300_rate", seed=seed)
    split = build_data(recipe, None)
    model = build_model(recipe)
    set_dropout(model, 0.0)
    espalier.load(file, into=model, trainable=True)
    before = measured(model, split)
    callbacks = []
    if what == "steps":
        rate = espalier.RateAware(model, 1e-6, steps=1, grid="kept")
        rate.fix_symbols()
        callbacks = [rate]
    how = Settings(EPOCHS, LR, batch_size=256, augment="shift", choose="last", seed=seed)
    train(model, split.train, how, callbacks=callbacks)
    for rate in callbacks:
        rate.finish()
    return {"seed": seed, "trained": what, "before": before, "after": measured(model, split)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for seed in SEEDS:
        file = args.runs / f"lenet300_rate-seed{seed}" / "model.esp"
        for what in ("steps", "levels"):
            rows.append(trained_on(file, seed, what))
            print(json.dumps(rows[-1]), flush=True)
    report = {"machine": machine(), "epochs": EPOCHS, "lr": LR, "runs": rows}
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
