"""Recipes from files: shipped ones by name, ``extends``, overrides; everything is checked before it
is returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path

import yaml

from maskwise.constants import OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.folders import recipe_path
from maskwise.recipe.overrides import NAMES_ARMS, Plain, merged, parse_override, put, read_yaml
from maskwise.recipe.recipe import ARM_PARTS, Recipe, require_changeable, validate


def read_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a shipped recipe (by name) or a file, apply ``key=value`` overrides, check everything.

    >>> read_recipe("quick-start", ["training.steps=10"]).training.steps
    10

    Raises:
        MaskwiseError: no such recipe, no YAML, an unknown key or name, a value out of range.
    """
    settings = _settings(source)
    changes = dict(parse_override(override) for override in overrides)
    study = settings.get("study")
    arms = study.get("arms") if isinstance(study, Mapping) else None
    known = set(arms) if isinstance(arms, Mapping) else set()
    for key, value in changes.items():
        put(settings, key, value)
    if isinstance(changes.get("study.arms"), Mapping):
        _forget_arms(settings["study"], known=known, changes=changes)
    recipe = validate(settings, origin=str(source))
    search = recipe.study.search
    tried = (
        [point for name in recipe.study.arms for point in search.points_of(name)] if search else []
    )
    for key in {
        key: None for point in [*(search.points if search else []), *tried] for key in point
    }:
        require_changeable(key, ARM_PARTS, who="study.search")
    if search and search.by == "dev" and not recipe.tasks:
        raise MaskwiseError("study.search.by: dev needs tasks", do="name tasks, or take held-out")
    for name in recipe.study.arms:
        _check_arm(recipe, name)
    return recipe


def _check_arm(recipe: Recipe, name: str) -> None:
    """The arm at every point of the search: now, and not after the first has been trained."""
    for point in recipe.study.search.points_of(name) if recipe.study.search else [{}]:
        arm = recipe.arm(name, seed=0, more=point)
        if recipe.study.match != "steps" and any(link.objectives for link in arm.links()):
            what = (
                f"arm {name!r} trains on several objectives, and such trainings are matched "
                f"by steps"
            )
            raise MaskwiseError(what, got=f"study.match {recipe.study.match}")
    kinds = {kind.split()[0] for link in arm.links() for kind in link.judged_on()}
    if not recipe.tasks and not kinds & set(recipe.evaluation.masks):
        what = (
            f"arm {name!r} would be judged by nothing: no tasks, and no held-out masks of its kind"
        )
        got = f"evaluation.masks {list(recipe.evaluation.masks)}"
        raise MaskwiseError(what, got=got, allowed=" or ".join(sorted(kinds)) or "tasks")


def _settings(source: str | Path, *, below: tuple[Path, ...] = ()) -> Plain:
    """The settings of a file, with those of the recipe that it extends under them."""
    path = recipe_path(source)
    if path.resolve() in below:
        raise MaskwiseError(
            "recipes extend each other in a circle", got=" → ".join(p.name for p in (*below, path))
        )
    settings = _read(path)
    if settings is None:
        do = "write settings into it, or name a shipped recipe: maskwise list recipes"
        raise MaskwiseError(f"{path} is no recipe", got="no settings", do=do)
    if not isinstance(settings, dict):
        raise MaskwiseError(
            f"{path} is not a recipe", got=type(settings).__name__, allowed="keys and values"
        )
    settings.setdefault("name", path.stem)
    base = settings.pop("extends", None)
    if base is None:
        return settings
    beside = path.parent / str(base)
    under = _settings(beside if beside.is_file() else str(base), below=(*below, path.resolve()))
    return merged(
        {key: value for key, value in under.items() if key not in ("name", "description")}, settings
    )


def _read(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        return read_yaml(text)
    except UnicodeDecodeError as error:
        raise MaskwiseError(f"{path} is not text in UTF-8", got=str(error)) from None
    except MaskwiseError as error:
        raise MaskwiseError(f"{path}: {error}") from None
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        number = where.line if where else 0
        tab = "\t" in "".join(text.splitlines()[number : number + 1])
        do = "write spaces: YAML takes no tabs there" if tab else None
        got = f"line {number + 1}: {error.problem}"
        raise MaskwiseError(f"{path} is not readable YAML", got=got, do=do) from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise MaskwiseError(f"{path} is not readable YAML", got=str(error)) from None


def _forget_arms(study: Plain, *, known: Set[str], changes: Mapping[str, object]) -> None:
    """Drop what names arms that are no longer there, after ``study.arms`` was replaced.

    Where arms were only left out, the contrasts of the others stay: they are what the recipe asks.
    """
    arms = study["arms"].keys()
    only_fewer = arms <= known
    there = {*arms, REFERENCE}
    if only_fewer:
        there |= {OWN_TASK, OTHER_TASKS}
    for key in NAMES_ARMS:
        if key not in study or f"study.{key}" in changes:
            continue
        value = study[key]
        if key == "search":  # the grid of all arms stays
            own = value.get("own") if isinstance(value, dict) else None
            if isinstance(own, Mapping):
                value["own"] = {arm: grid for arm, grid in own.items() if arm in arms}
        elif key == "contrasts" and only_fewer and isinstance(value, list):
            kept = [pair for pair in value if _names(pair) <= there]
            study[key] = kept or None
        elif not _names(value) <= there or (key in ("contrasts", "transfer") and not only_fewer):
            del study[key]


def _names(value: object) -> set[str]:
    """Every name in a setting: ``[a, b]`` or ``{contrast: [a, b], closes: [[c, d]]}``."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, Mapping):
        value = [*value.values()]
    return set().union(*map(_names, value)) if isinstance(value, list) else set()
