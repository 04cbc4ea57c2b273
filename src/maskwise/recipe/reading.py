"""Recipes from files: shipped ones by name, ``extends``, overrides; all of it checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from maskwise.errors import MaskwiseError
from maskwise.folders import recipe_path
from maskwise.recipe.overrides import Plain, merged, parse_override, put, read_yaml
from maskwise.recipe.recipe import Recipe, validate


def read_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a shipped recipe (by name) or a file, apply ``key=value`` overrides, check everything.

    >>> read_recipe("quick-start", ["training.steps=10"]).training.steps
    10

    Raises:
        MaskwiseError: no such recipe, no YAML, an unknown key or name, a value out of range.
    """
    settings = _settings(source)
    changes = dict(parse_override(override) for override in overrides)
    # An override of all arms replaces those of the file, which other settings may name.
    before = _arms(settings)
    for key, value in changes.items():
        put(settings, key, value)
    if "study.arms" in changes:
        _forget_arms(settings["study"], before=before, said=set(changes))
    recipe = validate(settings, origin=str(source))
    for name in recipe.study.arms:
        _check_arm(recipe, name)
    return recipe


def _arms(settings: Plain) -> set[str]:
    study = settings.get("study")
    arms = study.get("arms") if isinstance(study, dict) else None
    return set(arms) if isinstance(arms, dict) else set()


def _check_arm(recipe: Recipe, name: str) -> None:
    """Validate an arm at every point of the search, and that something is measured of it."""
    search, match = recipe.study.search, recipe.study.match
    for point in search.points_of(name) if search else [{}]:
        links = recipe.arm(name, seed=0, more=point).links()
        if match != "steps" and any(link.objectives for link in links):
            what = f"arm {name!r} trains on several objectives, which are matched by steps"
            raise MaskwiseError(what, got=f"study.match {match}")
    # All points of an arm have the same kinds of masks: look at the last.
    kinds = {kind.split()[0] for link in links for kind in link.judged_on()}
    masks = links[-1].evaluation.masks
    if not recipe.tasks and not kinds & set(masks):
        what = f"nothing is measured of arm {name!r}: no tasks, and no held-out masks of its kind"
        got = f"evaluation.masks {list(masks)}"
        raise MaskwiseError(what, got=got, allowed=" or ".join(sorted(kinds)) or "tasks")


def _settings(source: str | Path, *, extending: tuple[Path, ...] = ()) -> Plain:
    """The settings of a file over those of the recipe that it extends."""
    path = recipe_path(source)
    chain = (*extending, path.resolve())
    if path.resolve() in extending:
        names = " → ".join(each.name for each in chain)
        raise MaskwiseError("recipes extend each other in a circle", got=names)
    settings = _read(path)
    if settings is None:
        do = "write settings into it, or name a shipped recipe: maskwise list recipes"
        raise MaskwiseError(f"{path} is no recipe", got="no settings", do=do)
    if not isinstance(settings, dict):
        got = type(settings).__name__
        raise MaskwiseError(f"{path} is not a recipe", got=got, allowed="keys and values")
    settings.setdefault("name", path.stem)
    extends = settings.pop("extends", None)
    if extends is None:
        return settings
    # A file next to this one goes before a shipped recipe of the name.
    near = path.parent / str(extends)
    base = _settings(near if near.is_file() else str(extends), extending=chain)
    for key in ("name", "description"):
        base.pop(key, None)
    return merged(base, settings)


def _read(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        return read_yaml(text)
    except UnicodeDecodeError as error:
        raise MaskwiseError(f"{path} is not text in UTF-8", got=str(error)) from None
    except MaskwiseError as error:
        raise MaskwiseError(f"{path}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        tab = "\t" in "".join(text.splitlines()[line : line + 1])
        got = f"line {line + 1}: {error.problem}"
        do = "write spaces: YAML takes no tabs there" if tab else None
        raise MaskwiseError(f"{path} is not readable YAML", got=got, do=do) from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise MaskwiseError(f"{path} is not readable YAML", got=str(error)) from None


def _forget_arms(study: Plain, *, before: set[str], said: set[str]) -> None:
    """Drop settings that name arms which an override of ``study.arms`` left out.

    Where it only leaves arms out, the contrasts of the others stay; new arms ask anew.
    """
    now = _arms({"study": study})
    gone = before - now
    dropped = [key for key in ("baseline", "gate", "share") if gone & _names(study.get(key))]
    if now - before:
        dropped += ["contrasts", "transfer"]
    elif isinstance(study.get("contrasts"), list) and "study.contrasts" not in said:
        study["contrasts"] = [p for p in study["contrasts"] if not gone & _names(p)] or None
    for key in dropped:
        if f"study.{key}" not in said:
            study.pop(key, None)
    search = study.get("search")
    if isinstance(search, dict) and "own" in search and "study.search" not in said:
        search["own"] = {arm: grid for arm, grid in search["own"].items() if arm in now}


def _names(value: object) -> set[str]:
    """Every name in a setting: ``[a, b]`` or ``{contrast: [a, b], closes: [[c, d]]}``."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        value = [*value.values()]
    return set().union(*map(_names, value)) if isinstance(value, list) else set()
