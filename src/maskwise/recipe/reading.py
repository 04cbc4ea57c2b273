"""Read recipes: shipped ones by name, files, ``extends`` and overrides, and validate all of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from maskwise.errors import MaskwiseError
from maskwise.folders import recipe_path
from maskwise.recipe.overrides import Plain, merged, parse_override, put, read_yaml
from maskwise.recipe.recipe import Recipe, validate


def read_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, and validate the whole and each arm.

    Args:
        source: the name of a shipped recipe, or a file.
        overrides: settings to change, ``key=value``.

    Raises:
        MaskwiseError: no such recipe, no YAML, an unknown key or name, a value out of range.

    >>> read_recipe("quick-start", ["training.steps=10"]).training.steps
    10
    """
    settings = _settings(source)
    changes = dict(map(parse_override, overrides))
    old_arms = _arms(settings)
    for key, value in changes.items():
        put(settings, key, value)
    # Other settings of the file may name arms that the override dropped.
    if "study.arms" in changes:
        _forget_arms(settings["study"], old=old_arms, overridden=set(changes))
    recipe = validate(settings, origin=str(source))
    for name in recipe.study.arms:
        _check_arm(recipe, name)
    return recipe


def _arms(settings: Plain) -> set[str]:
    """Return the names of the arms; the settings may still be malformed."""
    study = settings.get("study")
    if isinstance(study, dict) and isinstance(study.get("arms"), dict):
        return set(study["arms"])
    return set()


def _check_arm(recipe: Recipe, name: str) -> None:
    """Validate an arm at every point of the search, and that it has an outcome."""
    search = recipe.study.search
    match = recipe.study.match
    points: list[Plain] = [{}]
    if search:
        points = search.points_of(name)
    for point in points:
        links = recipe.arm(name, seed=0, more=point).links()
        if match != "steps" and any(link.objectives for link in links):
            what = f"arm {name!r} trains on several objectives, which are matched by steps"
            raise MaskwiseError(what, got=f"study.match {match}")
    # A grid does not change the kinds of masks, so the last point serves for all.
    kinds = set()
    for link in links:
        kinds |= {kind.split()[0] for kind in link.judged_on()}
    masks = links[-1].evaluation.masks
    if not recipe.tasks and not kinds & set(masks):
        what = f"nothing is measured of arm {name!r}: no tasks, and no held-out masks of its kind"
        got = f"evaluation.masks {list(masks)}"
        raise MaskwiseError(what, got=got, allowed=" or ".join(sorted(kinds)) or "tasks")


def _settings(source: str | Path, *, extending: tuple[Path, ...] = ()) -> Plain:
    """Read the settings of a file, merged into those of the recipe that it extends."""
    path = recipe_path(source)
    chain = (*extending, path.resolve())
    if path.resolve() in extending:
        names = " → ".join(file.name for file in chain)
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
    # A file in the same folder takes precedence over a shipped recipe of that name.
    base_source: str | Path = path.parent / str(extends)
    if not Path(base_source).is_file():
        base_source = str(extends)
    base = _settings(base_source, extending=chain)
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
        # Some errors name only the place where the surrounding block begins.
        mark = error.problem_mark or error.context_mark
        assert mark is not None
        got = f"line {mark.line + 1}: {error.problem}"
        # The error may be at the end of the file, behind the last line.
        line = text.splitlines()[mark.line : mark.line + 1]
        do = None
        if "\t" in "".join(line):
            do = "write spaces: YAML takes no tabs there"
        raise MaskwiseError(f"{path} is not readable YAML", got=got, do=do) from None
    except yaml.YAMLError as error:
        # Characters that YAML does not allow come without a place.
        raise MaskwiseError(f"{path} is not readable YAML", got=str(error)) from None


def _forget_arms(study: Plain, *, old: set[str], overridden: set[str]) -> None:
    """Drop settings that name arms which an override of ``study.arms`` removed.

    If it adds no arm, the contrasts of the remaining arms stay.
    """
    arms = _arms({"study": study})
    removed = old - arms
    dropped = [key for key in ("baseline", "gate", "share") if removed & _names(study.get(key))]
    if arms - old:
        dropped += ["contrasts", "transfer"]
    elif isinstance(study.get("contrasts"), list) and "study.contrasts" not in overridden:
        contrasts = [pair for pair in study["contrasts"] if not removed & _names(pair)]
        # An empty list would mean no contrasts; None means the default ones.
        study["contrasts"] = contrasts or None
    for key in dropped:
        if f"study.{key}" not in overridden:
            study.pop(key, None)
    search = study.get("search")
    if isinstance(search, dict) and "study.search" not in overridden:
        own = search.get("own")
        # Anything else than a mapping is refused when the recipe is validated.
        if isinstance(own, dict):
            for arm in set(own) - arms:
                del own[arm]


def _names(value: object) -> set[str]:
    """Return every name in a setting: ``[a, b]`` or ``{contrast: [a, b], closes: [[c, d]]}``."""
    if isinstance(value, str):
        return {value}
    names = set()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            names |= _names(part)
    return names
