"""What several scripts start from: a recipe with its published weights, and its reference."""

from __future__ import annotations

import os
from pathlib import Path

from espalier import save
from espalier.recipe import Recipe, RunResult, load_recipe, run_recipe
from espalier.recipe.network import reference_recipe
from espalier.recipe.schema import Stage

STARTS = {"espalier.zoo:resnet20": "resnet_cifar10/resnet20.safetensors"}
"""Weights in ``ESPALIER_DATA`` that a model's recipes start from."""
FILE = "reference.esp"


def recipe_of(name: str, seed: int) -> Recipe:
    """A built-in recipe, from the published weights of its model where there are any."""
    recipe = load_recipe(name, seed=seed)
    if recipe.model in STARTS:
        start = Path(os.environ["ESPALIER_DATA"]) / STARTS[recipe.model]
        recipe = recipe.model_copy(update={"weights": str(start)})
    return recipe


def reference(recipe: Recipe, folder: Path) -> RunResult:
    """The network before it is made smaller, trained in ``folder`` or read, and in its ``FILE``."""
    result = run_recipe(reference_recipe(recipe), folder, resume=True)
    save(result.model, folder / FILE, force=True)
    return result


def stages_after(recipe: Recipe) -> list[Stage]:
    """What the recipe does to its reference."""
    return recipe.stages[len(reference_recipe(recipe).stages) :]


def from_reference(recipe: Recipe, weights: Path, stages: list[Stage]) -> Recipe:
    """The recipe with these stages alone, from the file of its reference."""
    return recipe.model_copy(update={"weights": str(weights), "stages": stages})
