"""Read recipes: shipped ones by name, files, ``extends`` and overrides, and validate all of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from maskwise.errors import MaskwiseError, unknown_name
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
    apply_overrides(settings, overrides)
    recipe = validate(settings, origin=str(source))
    for name in recipe.study.arms:
        _check_arm(recipe, name)
    return recipe


def apply_overrides(settings: Plain, overrides: Iterable[str]) -> None:
    """Change nested settings by ``key=value``; arms can be left out, as in any recipe.

    ``study.arms.tsdae=null`` leaves out one arm, and ``study.arms=a,b`` all but these. Baseline,
    contrasts and gate then follow the remaining arms.

    Raises:
        MaskwiseError: an override without a key or value, or an unknown arm.

    >>> arms = {"a": {}, "b": {}, "c": {}}
    >>> settings = {"study": {"arms": arms, "baseline": "a", "contrasts": [["b", "a"]]}}
    >>> apply_overrides(settings, ["study.arms.b=null"]); settings
    {'study': {'arms': {'a': {}, 'c': {}}, 'baseline': 'a', 'contrasts': [['c', 'a']]}}
    """
    changes = dict(map(parse_override, overrides))
    old_arms = _arms(settings)
    for key, value in changes.items():
        arm = key.removeprefix("study.arms.")
        if key == "study.arms":
            value = _chosen_arms(settings, value)
        elif arm != key and "." not in arm and value in (None, "none"):
            _leave_out(settings, arm)
            continue
        put(settings, key, value)
    # Other settings of the file may name arms that were dropped.
    if "study.arms" in changes or old_arms - _arms(settings):
        _forget_arms(settings["study"], old=old_arms, overridden=set(changes))


def _chosen_arms(settings: Plain, value: object) -> object:
    """Read ``a,b`` or ``[a, b]`` as the arms of these names; anything else is returned as it is."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    known = _arms(settings)
    if not known or not isinstance(value, list):
        return value
    for name in value:
        if name not in known:
            raise unknown_name("arm in study.arms", name, known)
    return {name: changes for name, changes in settings["study"]["arms"].items() if name in value}


def _leave_out(settings: Plain, arm: str) -> None:
    known = _arms(settings)
    if arm not in known:
        raise unknown_name(
            "arm to leave out",
            arm,
            known,
            do=f"for a new arm that changes nothing: study.arms.{arm}={{}}",
        )
    if known == {arm}:
        raise MaskwiseError("no arm is left", got=f"study.arms.{arm}=null", do="keep one")
    del settings["study"]["arms"][arm]


def _arms(settings: Plain) -> set[str]:
    """Return the names of the arms; the settings may still be malformed."""
    study = settings.get("study")
    if isinstance(study, dict) and isinstance(study.get("arms"), dict):
        return set(study["arms"])
    return set()


def _check_arm(recipe: Recipe, name: str) -> None:
    """Validate an arm at every point of the search, and that it has an outcome."""
    match = recipe.study.match
    for point in recipe.study.points_of(name):
        links = recipe.arm(name, seed=0, more=point).links()
        if match != "steps" and any(link.objectives for link in links):
            raise MaskwiseError(
                f"arm {name!r} trains on several objectives, which are matched by steps",
                got=f"study.match {match}",
            )
    # A grid does not change the kinds of masks, so the last point serves for all.
    kinds = set()
    for link in links:
        kinds |= {kind.split()[0] for kind in link.judged_on()}
    masks = links[-1].evaluation.masks
    if not recipe.tasks and not kinds & set(masks):
        raise MaskwiseError(
            f"nothing is measured of arm {name!r}: no tasks, and no held-out masks of its kind",
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
    if settings is None:
        raise MaskwiseError(
            f"{path} is no recipe",
            got="no settings",
            do="write settings into it, or name a shipped recipe: maskwise list recipes",
        )
    if not isinstance(settings, dict):
        raise MaskwiseError(
            f"{path} is not a recipe", got=type(settings).__name__, allowed="keys and values"
        )
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
    """Drop settings that name arms which an override removed.

    If it adds no arm, the contrasts of the remaining arms stay. If none stays, and all of them had
    one baseline, every remaining arm is compared with it.
    """
    arms = _arms({"study": study})
    removed = old - arms
    gate = study.get("gate")
    if isinstance(gate, dict) and isinstance(gate.get("closes"), list):
        gate["closes"] = [pair for pair in gate["closes"] if not removed & _names(pair)]
    dropped = [key for key in ("baseline", "gate", "share") if removed & _names(study.get(key))]
    if arms - old:
        # The outcome may not suit other arms, such as a loss with arms of other units.
        dropped += ["contrasts", "outcome", "transfer"]
    elif isinstance(study.get("contrasts"), list) and "study.contrasts" not in overridden:
        contrasts = [pair for pair in study["contrasts"] if not removed & _names(pair)]
        # An empty list would mean no contrasts; None means the default ones.
        study["contrasts"] = contrasts or _same_baseline(study, removed)
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


def _same_baseline(study: Plain, removed: set[str]) -> list[list[str]] | None:
    """Compare every arm with the one baseline that all contrasts had; None if it was removed."""
    baselines = {pair[-1] for pair in study["contrasts"] if isinstance(pair, list) and pair}
    if len(baselines) != 1 or baselines & removed:
        return None
    (baseline,) = baselines
    return [[arm, baseline] for arm in study["arms"] if arm != baseline] or None


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
