"""Recipes: YAML, checked by pydantic, with ``key=value`` overrides. Configuration stops here.

Everything behind takes plain arguments. A recipe says what a study varies (``study.arms``: overrides of settings) and
what everything else is; it may ``extends`` another one. Unknown keys name the nearest one; every name is looked up
when the recipe is read, so that nothing fails after an hour.
"""

from maskwise.recipe.mistakes import explain
from maskwise.recipe.overrides import parse_value
from maskwise.recipe.reading import read_recipe, shipped
from maskwise.recipe.recipe import Recipe, validate

__all__ = ["Recipe", "explain", "parse_value", "read_recipe", "shipped", "validate"]
