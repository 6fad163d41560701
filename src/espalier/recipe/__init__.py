"""Recipes: an ordered list of validated stages on the user's own model and data."""

from espalier.recipe.run import RunResult, StageResult, run_recipe
from espalier.recipe.schema import Recipe, builtin_recipes, load_recipe

__all__ = ["Recipe", "RunResult", "StageResult", "builtin_recipes", "load_recipe", "run_recipe"]
