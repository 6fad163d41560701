"""`choose` on LeNet-5, beside the best file that exhaustive search over the same grid finds.

    python repro/repro_choose.py

Nothing is retrained: the reference network of the recipe ``lenet5`` is pruned and shared at once,
at most 0.1 point lost on the 5,000 images held out of the training set. Writes
``repro/results/choose_lenet5.json``. Test images are evaluated once at the end and decide nothing.

The exhaustive search is exact. A combination is a path through a tree of one level for each layer,
so that what the first layers compute is shared. Two cuts lose nothing: a path whose smallest file
is not smaller than the best known, and a combination that has more wrong answers among the images
looked at so far than are allowed among all. The images nearest to the decision boundary come first.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from espalier.analysis.axis import apply_setting
from espalier.analysis.choose import choose
from espalier.analysis.evaluations import Evaluations
from espalier.analysis.layer_options import Table, option_table
from espalier.analysis.machine import machine
from espalier.analysis.sensitivity import sensitivity
from espalier.recipe import load_recipe, run_recipe
from espalier.recipe.network import Network, TopOne, open_network, reference_recipe
from espalier.samples import Samples
from espalier.torch_io import save
from espalier.training.metrics import evaluate

GRID = {"density": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7), "bits": (3, 4, 5, 6)}
MAX_LOSS = 0.1
PARTS = (160, 840)  # images: most combinations fail on the first part, and few reach the rest


def stages(model: nn.Module) -> list[Any]:
    """LeNet-5 as four functions, each of one layer's weight, bias and input."""

    def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.max_pool2d(torch.conv2d(x, weight, bias), 2)

    def fc1(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.relu(nn.functional.linear(x.flatten(1), weight, bias))

    return [conv, conv, fc1, nn.functional.linear]


@dataclass
class Exhaustive:
    """Every combination of ``table`` whose file is smaller than ``best_bytes``."""

    model: nn.Module
    samples: Samples
    table: Table
    allowed: int  # wrong answers
    best_bytes: int
    best: tuple[int, ...]
    measured: int = 0
    skipped: int = 0

    def run(self) -> None:
        layers = [self.model.conv1, self.model.conv2, self.model.fc1, self.model.fc2]
        self.biases = [layer.bias.detach() for layer in layers]
        self.weights = [self._weights(i) for i in range(4)]
        self.last = torch.cat(self.weights[3])
        self.functions = stages(self.model)
        with torch.no_grad():
            top = self.model(self.samples.x).topk(2).values
            order = (top[:, 0] - top[:, 1]).argsort()
        hard = self.samples.subset(order)
        sizes = [*PARTS, len(hard) - sum(PARTS)]
        self.parts = list(zip(hard.x.split(sizes), hard.y.split(sizes), strict=True))
        self.sizes = [[option.size_bytes for option in row] for row in self.table.options]
        self.least = [sum(min(row) for row in self.sizes[i:]) for i in range(5)]
        with torch.no_grad():
            self._descend(0, self.parts[0][0], (), self.table.fixed_bytes)

    def _weights(self, index: int) -> list[Tensor]:
        name = self.table.layers[index]
        found = []
        for option in self.table.options[index]:
            changed = apply_setting(copy.deepcopy(self.model), {name: option.values})
            found.append(
                changed.get_submodule(name.removesuffix(".weight")).weight.detach().clone()
            )
        return found

    def _descend(self, level: int, x: Tensor, path: tuple[int, ...], size: int) -> None:
        order = sorted(range(len(self.sizes[level])), key=lambda o: self.sizes[level][o])
        for place, option in enumerate(order):
            total = size + self.sizes[level][option]
            if total + self.least[level + 1] >= self.best_bytes:
                self.skipped += self._below(level) * (len(order) - place)
                return
            y = self.functions[level](x, self.weights[level][option], self.biases[level])
            if level == 2:
                self._leaves(y, (*path, option), total)
            else:
                self._descend(level + 1, y, (*path, option), total)

    def _leaves(self, x: Tensor, path: tuple[int, ...], size: int) -> None:
        """All options of the last layer at once."""
        outputs = nn.functional.linear(x, self.last).view(len(x), -1, len(self.biases[3]))
        predicted = (outputs + self.biases[3]).argmax(2)
        wrong = (predicted != self.parts[0][1][:, None]).sum(0).tolist()
        self.measured += len(wrong)
        for option, first in enumerate(wrong):
            total = size + self.sizes[3][option]
            if total >= self.best_bytes or first > self.allowed:
                continue
            if self._wrong((*path, option), first) <= self.allowed:
                self.best_bytes, self.best = total, (*path, option)

    def _below(self, level: int) -> int:
        product = 1
        for row in self.sizes[level + 1 :]:
            product *= len(row)
        return product

    def _wrong(self, path: tuple[int, ...], wrong: int) -> int:
        """Wrong answers among all images; it stops counting above what is allowed."""
        for x, y in self.parts[1:]:
            for level, option in enumerate(path):
                x = self.functions[level](x, self.weights[level][option], self.biases[level])
            wrong += int((x.argmax(1) != y).sum())
            if wrong > self.allowed:
                break
        return wrong


def exhaustive(network: Network, table: Table, known: tuple[int, ...]) -> Exhaustive:
    """The best file of all combinations, given one that is allowed."""
    held_out = network.samples("held_out")
    assert isinstance(held_out, Samples)
    before = evaluate(network.model, held_out)
    allowed = before.wrong + int(MAX_LOSS * before.n / 100 + 1e-9)
    search = Exhaustive(network.model, held_out, table, allowed, table.size_bytes(known), known)
    search.run()
    return search


def path_of(table: Table, setting: dict[str, Any]) -> tuple[int, ...]:
    """The options that ``setting`` takes."""
    return tuple(
        next(i for i, option in enumerate(row) if option.values == setting.get(layer, {}))
        for layer, row in zip(table.layers, table.options, strict=True)
    )


def judged(network: Network, setting: dict[str, Any]) -> dict[str, Any]:
    """The file of a setting, and its errors."""
    model = apply_setting(copy.deepcopy(network.model), setting)
    return {
        "setting": setting,
        "file_bytes": save(model, io.BytesIO()).file_bytes,
        "held_out_error": evaluate(model, network.samples("held_out")).error,
        "test_error": evaluate(model, network.samples("test")).error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.runs / "choose-lenet5"
    folder.mkdir(parents=True, exist_ok=True)
    reference = arguments.runs / "lenet5-reference-seed0"
    run_recipe(reference_recipe(load_recipe("lenet5")), reference, resume=True)
    network = open_network(str(reference))
    words, keep = network.data_in_words("held_out"), folder / "points.jsonl"
    judge = TopOne(lambda: network.samples("held_out"))
    options: dict[str, Any] = {"data": words, "keep": keep, "jobs": arguments.jobs}
    start = monotonic()
    sweep = sensitivity(network.model, judge, GRID, **options)
    swept = monotonic()
    proposal = choose(network.model, judge, sweep, max_loss=MAX_LOSS, **options)
    chosen = monotonic()
    table = option_table(Evaluations(network.model, judge, **options), sweep)
    search = exhaustive(network, table, path_of(table, proposal.setting))
    done = monotonic()
    ours = judged(network, proposal.setting)
    best = judged(network, table.setting(search.best))
    results = {
        "summary": {
            "max_loss": MAX_LOSS,
            "choose_bytes": ours["file_bytes"],
            "exhaustive_bytes": best["file_bytes"],
            "above_the_best_percent": 100 * (ours["file_bytes"] / best["file_bytes"] - 1),
            "bound_percent": 5.0,
            "combinations": search.measured + search.skipped,
            "evaluations_of_choose": proposal.evaluations,
        },
        "seconds_this_time": {  # kept points are not measured again
            "sweep": round(swept - start, 1),
            "choose": round(chosen - swept, 1),
            "exhaustive": round(done - chosen, 1),
        },
        "machine": machine() | {"threads": arguments.threads},
        "grid": GRID,
        "reference": judged(network, {}),
        "choose": ours,
        "exhaustive": best,
        "data": words,
    }
    out = Path(__file__).parent / "results"
    (out / "choose_lenet5.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["summary"] | results["seconds_this_time"], indent=1))


if __name__ == "__main__":
    main()
