"""Descriptions of all keys of a recipe, from the docstrings of the settings.

``maskwise list keys`` prints them, and the docs have them as a page. ``maskwise list schema``
prints them as a JSON Schema, by which editors complete and check recipes.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maskwise.base.effects import effect_of
from maskwise.base.printing import json_text
from maskwise.recipe.explained import groups_in
from maskwise.recipe.recipe import Recipe

LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
"""Signs of the limits in a JSON schema."""
SCHEMA_FILE = ".maskwise.schema.json"
"""The JSON Schema beside a recipe. It is hidden, because the folder may be a corpus or a task."""


class Key(NamedTuple):
    """A key of a recipe.

    Attributes:
        name: the dotted name; NAME stands for a name that the user chooses.
        default: the default as JSON; "" for a key that must be set, and for one with nested keys.
        allowed: the values, or the range of values, that are allowed; "" if the type decides.
        what: the description.
        changes: what the key changes, one of the effects in ``effects``; "" for a key with nested
            keys.
    """

    name: str
    default: str
    allowed: str
    what: str
    changes: str = ""


def recipe_keys() -> dict[str, Key]:
    """Return all keys of a recipe by their names.

    >>> key = recipe_keys()["corpus.held_out"]
    >>> key.default, key.allowed
    ('0.02', '> 0, < 0.5')
    """
    return {key.name: key for key in settings_of_group(Recipe)}


def declared() -> dict[str, str | None]:
    """Return what each key of a recipe changes, by dotted name; None if a key does not say it.

    The result has every key that a recipe may set, also those that ``recipe_keys`` leaves out.

    >>> changes = declared()
    >>> [changes[f"training.{name}"] for name in ("steps", "precision", "workers", "log_every")]
    ['weights', 'rounding', 'speed', 'nothing']
    """
    return {name: effect_of(field) for name, field in _fields(Recipe)}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipe files.

    It comes from the types of the settings, so it checks types, choices and ranges. Names of
    policies and other members, and settings that exclude each other, are left to ``read_recipe``.

    >>> schema = recipe_schema()["$defs"]["CorpusSettings"]["properties"]["held_out"]
    >>> schema["exclusiveMinimum"], schema["exclusiveMaximum"]
    (0, 0.5)
    """
    schema = Recipe.model_json_schema()
    for settings in {*_groups(Recipe)}:
        of_group = schema if settings is Recipe else schema["$defs"][settings.__name__]
        of_group["description"] = (inspect.getdoc(settings) or "").partition("\n\n")[0]
        # Nested settings may be written as dotted names, too.
        of_group["patternProperties"] = {r"\.": {}}
        # What is required may stand in the recipe that this one extends.
        of_group.pop("required", None)
        for name, of_key in of_group["properties"].items():
            of_key.pop("title", None)
            what = _docstring(settings, name)
            if what:
                of_key["description"] = what
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "The shipped recipe, or the file, whose settings this recipe changes.",
    }
    return schema


def _groups(settings: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the class of settings, and those of all settings inside of it."""
    yield settings
    for field in settings.model_fields.values():
        for kind in groups_in(field.annotation):
            yield from _groups(kind)


def with_schema(name: str, recipe: str) -> dict[str, str]:
    """Return the texts of a recipe's JSON Schema and of its file, keyed by the names of the files.

    Editors find the schema by the first line of the recipe. They read its path from the folder of
    the recipe, so that both files work on another machine, too. The recipe is the last one, so that
    there is none if the schema cannot be written.
    """
    line = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
    return {SCHEMA_FILE: json_text(recipe_schema()), name: line + recipe}


def _fields(settings: type[BaseModel], before: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name and the field of every setting that has no nested settings."""
    for name, field in settings.model_fields.items():
        group, within = _group(field, before + name)
        # The value of ``objective`` is a name, or settings by name.
        if group is None or effect_of(field):
            yield before + name, field
        if group is not None:
            yield from _fields(group, within)


def _group(field: FieldInfo, name: str) -> tuple[type[BaseModel] | None, str]:
    """Return the class of a field's nested settings, if any, and the prefix of their names."""
    alternatives = (field.annotation, *get_args(field.annotation))
    by_name = any(get_origin(kind) is dict for kind in alternatives)
    for kind in groups_in(field.annotation):
        return kind, f"{name}.NAME." if by_name else f"{name}."
    return None, name


def settings_of_group(settings: type[BaseModel], before: str = "") -> Iterator[Key]:
    """Yield the keys of a group of settings; a key is followed by its nested keys."""
    schema = settings.model_json_schema()["properties"]
    for name, field in settings.model_fields.items():
        group, within = _group(field, before + name)
        what = _docstring(settings, name)
        if group is None or effect_of(field):
            default = json.dumps(schema[name].get("default"), ensure_ascii=False)
            if field.is_required():
                default = ""
            allowed = _allowed(schema[name])
            yield Key(before + name, default, allowed, what, effect_of(field) or "")
        else:
            what = what or inspect.getdoc(group) or ""
            yield Key(before + name, "", "", what.partition("\n\n")[0])
        if group is None:
            continue
        # These sections of a policy have the same keys as those of a recipe.
        if not before or name not in Recipe.model_fields:
            yield from settings_of_group(group, within)


def _docstring(settings: type[BaseModel], name: str) -> str:
    """Return the string below a field in the source of its class, or of a class above it."""
    for above in settings.__mro__:
        found = _docstrings(above)
        if name in found:
            return found[name]
    return ""


@cache
def _docstrings(settings: type) -> dict[str, str]:
    """Return the strings below the fields of a class. Python itself does not keep them."""
    try:
        source = inspect.getsource(settings)
    # Classes written in C, and installations without sources.
    except (OSError, TypeError):
        return {}
    tree = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in pairwise(tree.body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def _allowed(schema: dict[str, Any]) -> str:
    """Return the values, or the range of values, that a JSON schema allows."""
    one = schema.get("anyOf", [schema])[0]
    if "enum" in one:
        return ", ".join(one["enum"])
    return ", ".join(f"{sign} {one[limit]}" for limit, sign in LIMITS.items() if limit in one)
