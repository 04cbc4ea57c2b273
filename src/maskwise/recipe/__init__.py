"""Recipes: YAML, checked by pydantic, with ``key=value`` overrides. Imports every room below the
study.

A recipe is a record of the rooms' own settings. It says what a study varies (``study.arms``:
overrides of settings) and what everything else is; it may ``extends`` another one. Unknown keys
name the nearest one; every name is looked up when the recipe is read, so that nothing fails after
an hour.
"""

from maskwise.folders import shipped
from maskwise.recipe.overrides import explain, parse_value
from maskwise.recipe.reading import read_recipe
from maskwise.recipe.recipe import Recipe, validate

__all__ = ["Recipe", "explain", "parse_value", "read_recipe", "shipped", "validate"]
