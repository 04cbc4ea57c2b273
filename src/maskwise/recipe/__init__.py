"""Recipes: YAML, validated by pydantic, with ``key=value`` overrides.

A recipe combines the settings of all parts of the package below ``study``. It defines what a study
varies (``study.arms``: overrides of settings) and what all arms share, and may extend another
recipe (``extends``). The error for an unknown key suggests the most similar known key. Every name
is looked up when the recipe is read, so no run can fail after an hour because of a typo.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import yaml

from maskwise.errors import MaskwiseError, require_known, unknown_name
from maskwise.folders import recipe_path, shipped
from maskwise.recipe.overrides import (
    Plain,
    explain,
    merged,
    parse_override,
    parse_value,
    put,
    read_yaml,
)
from maskwise.recipe.recipe import Recipe, validate
from maskwise.tasks.finetuning import FinetuneSettings

__all__ = [
    "Recipe",
    "explain",
    "parse_value",
    "read_recipe",
    "shipped",
    "validate",
    "with_former",
    "without_former",
]


FORMER: Mapping[str, Plain] = {
    "training": {"keep_best": False},
    "finetune": {"patience": None},
    "study": {"noise": None},
    "meta": {
        "gradient": "finite-difference",
        "entropy": 0.0,
        "learn_rates": False,
        "outer": "same",
        "draws": 8,
    },
    "supervised": {
        "labels": None,
        "drop": 0.05,
        "finetune": {**FinetuneSettings().model_dump(mode="json"), "patience": None},
    },
}
"""Settings that no longer exist, with their defaults, for each section."""


def without_former(settings: Plain, section: str = "") -> Plain:
    """Copy settings without those that no longer exist and have their defaults.

    Earlier versions wrote all settings into ``recipe.yaml``, so their runs can be resumed.

    >>> without_former({"training": {"steps": 9, "keep_best": False}, "study.noise": None})
    {'training': {'steps': 9}}
    """
    kept: Plain = {}
    for key, value in settings.items():
        # Arms and phases may have dotted names.
        *outer, name = [section, *str(key).split(".")]
        former = FORMER.get(outer[-1], {})
        if name not in former or value != former[name]:
            kept[key] = _current(value, name)
    return kept


def _current(value: object, section: str = "") -> object:
    if isinstance(value, dict):
        return without_former(value, section)
    if isinstance(value, list):
        return list(map(_current, value))
    return value


def with_former(settings: Plain, section: str) -> Plain:
    """The inverse of ``without_former``: the settings of a section as stages are named after.

    >>> with_former({"seeds": 3}, "finetune")
    {'seeds': 3, 'patience': None}
    """
    named: Plain = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = with_former(value, name)
        named[name] = value
    return named | FORMER.get(section, {})


def read_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, and validate the whole recipe and each of its arms.

    Args:
        source: the name of a shipped recipe, or the path of a file.
        overrides: settings to change, each written as ``key=value``.

    Raises:
        MaskwiseError: the recipe does not exist, is not YAML, has an unknown key or name, or has a
            value out of range.

    >>> read_recipe("quick-start", ["training.steps=10"]).training.steps
    10
    """
    settings = _settings(source)
    apply_overrides(settings, overrides)
    recipe = validate(settings, origin=str(source))
    for name in recipe.study.arms:
        _check_arm(recipe, name)
    return recipe


def apply_overrides(settings: Plain, overrides: Iterable[str]) -> None:
    """Apply ``key=value`` overrides to nested settings; an override can also leave out arms.

    ``study.arms.tsdae=null`` leaves out one arm, and ``study.arms=a,b`` leaves out all arms but a
    and b. Settings that name a missing arm, such as contrasts and the gate, are then dropped.

    Raises:
        MaskwiseError: an override has no key or value, or names an unknown arm.

    >>> arms = {"a": {}, "b": {}, "c": {}}
    >>> settings = {"study": {"arms": arms, "contrasts": [["b", "a"], ["c", "a"]]}}
    >>> apply_overrides(settings, ["study.arms.b=null"]); settings
    {'study': {'arms': {'a': {}, 'c': {}}, 'contrasts': [['c', 'a']]}}
    """
    changes = dict(map(parse_override, overrides))
    old_arms = dict(_arms(settings))
    for key, value in changes.items():
        known = _arms(settings)
        arm = key.removeprefix("study.arms.")
        if arm != key and "." not in arm and value in (None, "none"):
            require_known("arm in study.arms", arm, known)
            key = "study.arms"
            value = [name for name in known if name != arm]
            if not value:
                raise MaskwiseError("no arm is left", got=f"study.arms.{arm}=null", do="keep one")
        if key == "study.arms" and known and isinstance(value, str | list):
            names = value
            if isinstance(names, str):
                names = list(map(str.strip, names.split(",")))
            _require_arms(names, known)
            value = {name: changes for name, changes in known.items() if name in names}
        put(settings, key, value)
    # Other settings of the file may name arms that were dropped.
    if _arms(settings).keys() != old_arms.keys():
        _follow_arms(settings["study"], old=old_arms.keys(), overridden=changes.keys())


def _require_arms(names: Iterable[str], known: Plain) -> None:
    for name in names:
        if name not in known:
            do = "to add an arm, name what it changes: study.arms.NAME='{masking.ratio: 0.3}'"
            raise unknown_name("arm in study.arms", name, known, do=do)


def _arms(settings: Plain) -> Plain:
    """Return the arms; an empty dict if the settings are malformed."""
    study = settings.get("study")
    if isinstance(study, dict) and isinstance(study.get("arms"), dict):
        return study["arms"]
    return {}


def _follow_arms(study: Plain, *, old: Collection[str], overridden: Collection[str]) -> None:
    """Drop settings that name a missing arm; if arms were added, also drop settings that may not
    fit the new arms.
    """
    arms = _arms({"study": study})
    gone = {*old} - {*arms}
    own = study.get("search")
    if isinstance(own, dict) and isinstance(own.get("own"), dict):
        own["own"] = {arm: grid for arm, grid in own["own"].items() if arm in arms}
    added = {*arms} - {*old}
    for key in ("baseline", "gate", "share", "contrasts", "outcome", "transfer"):
        if f"study.{key}" in overridden:
            continue
        # A loss, for example, may not be comparable between arms with different units.
        if added and key in ("contrasts", "outcome", "transfer"):
            study.pop(key, None)
        else:
            study[key] = _without(study.get(key), gone)
            # If no contrasts are given, every arm is compared with the baseline.
            if study[key] in (None, []):
                del study[key]


def _without(setting: object, gone: set[str]) -> object:
    """Return a setting without the pairs that contain an arm that is gone.

    None if the setting itself is such an arm or pair.
    """
    if isinstance(setting, dict):
        kept = {key: _without(value, gone) for key, value in setting.items()}
        if kept.get("contrast", "") is None:
            return None
        return kept
    if not isinstance(setting, list):
        if setting in gone:
            return None
        return setting
    if any(isinstance(part, str) for part in setting):
        if gone & {*map(str, setting)}:
            return None
        return setting
    return [pair for pair in (_without(part, gone) for part in setting) if pair is not None]


def _check_arm(recipe: Recipe, name: str) -> None:
    """Validate an arm at every point of the search, and check that it has an outcome."""
    match = recipe.study.match
    for point in recipe.study.points_of(name):
        links = recipe.arm(name, seed=0, more=point).links()
        if match != "steps" and any(link.objectives for link in links):
            raise MaskwiseError(
                f"arm {name!r} trains on several objectives, which are matched by steps",
                got=f"study.match {match}",
            )
    # A grid does not change the kinds of masks, so it is enough to check the last point.
    kinds = set()
    for link in links:
        kinds |= {kind.split()[0] for kind in link.judged_on()}
    masks = links[-1].evaluation.masks
    if not recipe.tasks and not kinds & set(masks):
        raise MaskwiseError(
            f"arm {name!r} is not measured: no tasks, and no held-out masks of the arm's kind",
            got=f"evaluation.masks {list(masks)}",
            allowed=" or ".join(sorted(kinds)) or "tasks",
        )


def _settings(source: str | Path, *, extending: tuple[Path, ...] = ()) -> Plain:
    """Read the settings of a file, merged into those of the recipe that it extends."""
    path = recipe_path(source)
    chain = (*extending, path.resolve())
    if path.resolve() in extending:
        raise MaskwiseError(
            "recipes extend each other in a circle", got=" → ".join(file.name for file in chain)
        )
    settings = _read(path)
    if not isinstance(settings, dict):
        got = "no settings"
        if settings is not None:
            got = type(settings).__name__
        raise MaskwiseError(
            f"{path} is not a recipe",
            got=got,
            allowed="keys and values",
            do="write settings into the file, or name a shipped recipe: maskwise list recipes",
        )
    try:
        settings = without_former(settings)
    except RecursionError:
        # An alias may refer to the settings that contain it.
        raise MaskwiseError(
            f"{path}: settings are nested too deeply", do="write fewer levels"
        ) from None
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
        raise MaskwiseError(f"{path} is not a UTF-8 text file", got=str(error)) from None
    except MaskwiseError as error:
        raise MaskwiseError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        got = str(error)
        do = None
        # Errors about characters that YAML does not allow have no position.
        if isinstance(error, yaml.MarkedYAMLError):
            # Some errors have only the position where the surrounding block begins.
            mark = error.problem_mark or error.context_mark
            assert mark is not None
            got = f"line {mark.line + 1}: {error.problem}"
            if "'\\t'" in got:
                do = "replace the tabs with spaces: YAML is indented only with spaces"
        if path.suffix not in (".yaml", ".yml"):
            do = f"to write a recipe for a file of texts: maskwise study --new {path}"
        raise MaskwiseError(f"{path} is not valid YAML", got=got, do=do) from None
