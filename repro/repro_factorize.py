"""Low rank beside pruning: accuracy against size of ResNet-20 and LeNet-300-100.

    python repro/repro_factorize.py

Figure 6 of ``espalier study``: for LeNet-300-100 pruning, sharing, both, and truncated SVD; for
ResNet-20 pruning and Tucker-2. And ranks by variational Bayes, in one shot, as Kim
et al. 2016 (arXiv 1511.06530) choose them. After each cut the network is trained a little.

ResNet-20 begins from the published weights in ``$ESPALIER_DATA``. Its CIFAR-10 images are a lossy
copy, on which the weights were not trained: so the network is first trained for one epoch on 10,000
of them, and that is the baseline; half of the test images, drawn once, show the accuracy.
LeNet-300-100 is the reference of the recipe ``lenet300``, made where ``--runs`` does not hold it.
Nothing is chosen here, so accuracies are on test images. Writes ``repro/results/factorize_NETWORK``
as JSON and Markdown; every point is kept in ``--runs``.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import espalier
from espalier.analysis.machine import machine
from espalier.analysis.study import Study, study
from espalier.analysis.study_cases import Tuning
from espalier.analysis.study_report import study_tables
from espalier.recipe import load_recipe, run_recipe
from espalier.recipe.network import open_network, reference_recipe
from espalier.samples import Samples
from espalier.training.checkpoint import load_checkpoint, save_checkpoint
from espalier.zoo import DataSet, cifar10, mnist, resnet20

FIRST = {"epochs": 1, "lr": 1e-3, "batch_size": 128}
FIRST_SAMPLES = 10_000
TUNING = {
    "resnet20": Tuning(epochs=1, lr=5e-4, samples=2_560),
    "lenet300": Tuning(epochs=2, lr=1e-3),
}
SERIES = {"resnet20": ("pruning", "Tucker-2")}
"""Of figure 6, where all of it would take too long."""


def part(data: Samples, count: int, seed: int) -> Samples:
    """So many samples, drawn once."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[:count])


def resnet(runs: Path, data: DataSet, seed: int) -> nn.Module:
    """ResNet-20, used to the images."""
    model, kept = resnet20(), runs / f"factorize-resnet20-seed{seed}.pt"
    if kept.exists():
        model.load_state_dict(load_checkpoint(kept)["model"])
        return model
    source = Path(os.environ["ESPALIER_DATA"]) / "resnet_cifar10" / "resnet20.safetensors"
    model.load_state_dict(load_file(source), strict=False)  # no batch counters in the file
    espalier.train(model, part(data.train, FIRST_SAMPLES, seed), seed=seed, **FIRST)
    save_checkpoint(kept, {"model": model.state_dict()})
    return model


def lenet(runs: Path, seed: int) -> nn.Module:
    """LeNet-300-100, the reference of its recipe."""
    folder = runs / f"lenet300-reference-seed{seed}"
    run_recipe(reference_recipe(load_recipe("lenet300", seed=seed)), folder, resume=True)
    return open_network(str(folder)).model


def network(name: str, runs: Path, seed: int) -> tuple[nn.Module, DataSet]:
    """A network and its images."""
    if name == "lenet300":
        return lenet(runs, seed), mnist()
    data = cifar10()
    half = part(data.test, len(data.test) // 2, seed)
    return resnet(runs, data, seed), replace(data, test=half)


class Accuracy:
    """Percent of the test images."""

    def __init__(self, data: DataSet) -> None:
        self.data = data

    def __call__(self, model: nn.Module) -> float:
        return 100.0 - espalier.evaluate(model, self.data.test, batch_size=250).error


def by_variational_bayes(
    model: nn.Module, data: DataSet, tuning: Tuning, seed: int
) -> dict[str, Any]:
    """The network with the ranks of variational Bayes, before and after training."""
    factored = copy.deepcopy(model)
    report = espalier.factorize(factored, "vbmf", example=data.test.x[:1])
    accuracy = [Accuracy(data)(factored)]
    some = part(data.train, tuning.samples or len(data.train), tuning.seed)
    how = {"epochs": tuning.epochs, "lr": tuning.lr, "batch_size": tuning.batch_size}
    espalier.train(factored, some, seed=seed, **how)
    accuracy.append(Accuracy(data)(factored))
    return {
        "accuracy": {"at once": accuracy[0], "trained": accuracy[1]},
        "file_bytes": espalier.save(factored, io.BytesIO()).file_bytes,
        "parameters": report.parameters,
        "macs": report.macs,
        "layers": [asdict(layer) for layer in report.layers],
        "skipped": [asdict(layer) for layer in report.skipped],
    }


def run(name: str, model: nn.Module, data: DataSet, arguments: argparse.Namespace) -> Any:
    """The study of one network, and its ranks by variational Bayes."""
    found = study(
        model,
        Accuracy(data),
        data.train,
        figures=["compression"],
        series=SERIES.get(name),
        tuning=TUNING[name],
        data=f"{data.name}, {len(data.test):,} test images",
        jobs=1,
        keep=arguments.runs / f"factorize-{name}-seed{arguments.seed}.jsonl",
        progress=True,
    )
    bayes = by_variational_bayes(model, data, TUNING[name], arguments.seed)
    return found, bayes


def page(name: str, found: Study, bayes: dict[str, Any]) -> str:
    """The numbers, in Markdown."""
    tuning = TUNING[name]
    before, after = bayes["parameters"]
    images = f"{tuning.samples:,}" if tuning.samples else "all"
    lines = [
        f"# Low rank beside pruning: {name}",
        "",
        f"Made by `python repro/repro_factorize.py`. {found.data}; after each cut {tuning.epochs} "
        f"epoch{'s' if tuning.epochs > 1 else ''} on {images} training images, learning rate "
        f"{tuning.lr:g}.",
        "",
        f"Ranks by variational Bayes: {before:,} -> {after:,} parameters, "
        f"{bayes['file_bytes']:,} bytes, accuracy {bayes['accuracy']['at once']:.2f} at once and "
        f"{bayes['accuracy']['trained']:.2f} trained.",
        "",
        study_tables(found),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--networks", nargs="+", choices=list(TUNING), default=list(TUNING))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    out = Path(__file__).parent / "results"
    for name in arguments.networks:
        model, data = network(name, arguments.runs, arguments.seed)
        found, bayes = run(name, model, data, arguments)
        written = {
            "machine": machine() | {"threads": arguments.threads},
            "seed": arguments.seed,
            "first": FIRST | {"samples": FIRST_SAMPLES} if name == "resnet20" else None,
            "study": found.to_json(),
            "variational Bayes": bayes,
        }
        (out / f"factorize_{name}.json").write_text(json.dumps(written, indent=1) + "\n")
        (out / f"factorize_{name}.md").write_text(page(name, found, bayes))
        print(page(name, found, bayes))


if __name__ == "__main__":
    main()
