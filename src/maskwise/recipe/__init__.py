"""Recipes: YAML files with all settings of a study, validated by pydantic.

A study compares arms, which are ways to pre-train. A recipe contains the settings that all arms
have in common, and the settings that each arm changes (``study.arms``). A recipe may extend another
recipe (``extends``), and ``key=value`` overrides change single settings. All names are checked when
a recipe is read, so a typo cannot make a run fail after an hour. The error for an unknown name
suggests the most similar known name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import yaml

from maskwise.errors import MaskwiseError, require_known, shortened
from maskwise.folders import recipe_path, shipped
from maskwise.recipe.overrides import (
    NAMES_ARMS,
    Plain,
    arm_of,
    arms_in,
    each_setting,
    explain,
    merged,
    parse_overrides,
    parse_value,
    plain_value,
    put,
    read_yaml,
    refuse_former_phase,
    with_new_names,
    with_phases,
)
from maskwise.recipe.recipe import Recipe, validate
from maskwise.recipe.unused import remove_unused, value_at
from maskwise.specs import leaves

OF_DICT = "the recipe"
"""What errors call a recipe that is given as a dict."""
Read = TypeVar("Read")
LARGEST = 1 << 22
"""The most bytes of a recipe. Reading YAML takes about a second per 100 KB."""

__all__ = [
    "Recipe",
    "blaming_overrides",
    "explain",
    "parse_value",
    "read_recipe",
    "recipe_of_text",
    "shipped",
    "validate",
]


def read_recipe(
    source: str | Path | Mapping[str, object] | Recipe, overrides: Iterable[str] = ()
) -> Recipe:
    """Read a recipe, apply overrides, and validate the recipe and all of its arms.

    Args:
        source: the name of a shipped recipe, the path of a file, the settings themselves, or a
            recipe.
        overrides: settings to change, as ``key=value``.

    Raises:
        MaskwiseError: the recipe does not exist, is not valid YAML, contains an unknown key or
            name, contains a value that is not allowed, or sets a value that has no effect.

    >>> read_recipe("quick-start", ["training.steps=10"]).training.steps
    10
    >>> read_recipe({"extends": "quick-start", "name": "mine"}).name
    'mine'
    """
    if isinstance(source, Recipe):
        source = source.settings()
    if isinstance(source, Mapping):
        settings = with_new_names(plain_value(source, ""))
        written = _written(settings)
        extended = _extended(settings, name="study", origin=OF_DICT)
        return _validated(extended, overrides, written=written, origin=OF_DICT)
    if not isinstance(source, str | Path):
        raise MaskwiseError(
            "a recipe is a name, a file or a dict of settings", got=type(source).__name__
        )
    path = recipe_path(source)
    settings = _settings(source)
    # Overrides may replace what settings of a shipped recipe are for.
    written = {} if path in shipped().values() else _written(_read(path))
    return _validated(settings, overrides, written=written, origin=str(source))


def recipe_of_text(text: str, *, name: str, origin: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from its text, as ``read_recipe`` reads a file.

    Args:
        text: the recipe in YAML.
        name: the name of the recipe, if the text gives none.
        origin: what to call the recipe in error messages.
        overrides: settings to change, as ``key=value``.
    """
    with _yaml_errors(origin):
        settings = _named_anew(read_yaml(text))
    written = _written(settings)
    extended = _extended(settings, name=name, origin=origin)
    return _validated(extended, overrides, written=written, origin=origin)


def _validated(settings: Plain, overrides: Iterable[str], *, written: Plain, origin: str) -> Recipe:
    """Apply overrides, and validate the recipe and all of its arms.

    Args:
        written: the settings that must have an effect, keyed by dotted name.
    """
    overrides = list(overrides)
    changes = each_setting(parse_overrides(overrides), Recipe)
    alone = None
    if changes:
        # With other arms, for example, settings of the file may lose their effect.
        with suppress(MaskwiseError):
            alone = validate(copy.deepcopy(settings), origin=origin)
    old_arms = list(arms_in(settings))

    def changed(overrides: Sequence[str]) -> Recipe:
        plain = copy.deepcopy(settings)
        apply_overrides(plain, overrides)
        recipe = validate(plain, origin=origin)
        for name in recipe.study.arms:
            _check_arm(recipe, name)
        return recipe

    recipe = blaming_overrides(changed, overrides, origin=origin)
    refuse_former_phase(changes)
    if "study.contrasts" not in changes:
        _require_compared(recipe, [name for name in recipe.study.arms if name not in old_arms])
    try:
        recipe.require_used(written, in_file=True)
    except MaskwiseError:
        # An override may leave a setting of the file without effect.
        if alone is None:
            raise
        alone.require_used(written, in_file=True)
    flat = chain.from_iterable(leaves({key: value}) for key, value in changes.items())
    recipe.require_used(dict(flat))
    return recipe


def blaming_overrides(
    read: Callable[[Sequence[str]], Read], overrides: Sequence[str], *, origin: str
) -> Read:
    """Return ``read(overrides)``; if only an override makes it fail, the error names the override.

    Args:
        read: a function that reads settings with overrides.
        origin: what errors of ``read`` call the settings; the override takes its place.
    """
    try:
        return read(overrides)
    except MaskwiseError as error:
        alone = [[text] for text in overrides]
        # Two overrides may both be wrong, or not go together.
        for wrong in [*alone, overrides] if overrides else ():
            try:
                read([text for text in overrides if text not in wrong])
            except MaskwiseError:
                continue
            raise _of_overrides(error, wrong, origin) from None
        raise


def _of_overrides(error: MaskwiseError, wrong: Sequence[str], origin: str) -> MaskwiseError:
    """Return an error with the overrides that cause it in place of the settings."""
    what = error.what.removeprefix(f"{origin}: ").replace(f" in {origin}:", ":", 1)
    key = wrong[0].partition("=")[0].strip()
    if len(wrong) > 1:
        what = f"overrides {shortened(' '.join(wrong), 150)}: {what}"
    elif what.startswith(key):
        what = f"override {what}"
    else:
        what = f"override {shortened(wrong[0], 150)}: {what}"
    return MaskwiseError(what, got=error.got, allowed=error.allowed, do=error.do)


def _written(settings: object) -> Plain:
    """Return the settings of a file that must have an effect, keyed by dotted name.

    The settings of a complete recipe, which maskwise writes for every run, need not have one.
    """
    if not isinstance(settings, dict) or settings.keys() >= Recipe.model_fields.keys():
        return {}
    return dict(leaves(settings))


def apply_overrides(settings: Plain, overrides: Iterable[str]) -> None:
    """Apply ``key=value`` overrides to nested settings, in place.

    ``study.arms.NAME=null`` removes an arm, and ``study.arms=a,b`` removes all arms except a and b.
    If a contrast names a removed arm, the validation of the recipe reports it. ``study.arms={…}``
    replaces the arms. If no arm of the recipe is left, what compares them is removed, too.

    Raises:
        MaskwiseError: an override has no key or value, or names an unknown arm.

    >>> settings = {"study": {"arms": {"a": {}, "b": {}, "c": {}}, "contrasts": [["c", "a"]]}}
    >>> apply_overrides(settings, ["study.arms.b=null"]); settings
    {'study': {'arms': {'a': {}, 'c': {}}, 'contrasts': [['c', 'a']]}}
    """
    changes = each_setting(parse_overrides(overrides), Recipe)
    old_arms = dict(arms_in(settings))
    remove_unused(settings, changes)
    for key, value in changes.items():
        known = arms_in(settings)
        arm = arm_of(key, value, known)
        if arm is not None and key == f"study.arms.{arm}" and value in (None, "none"):
            require_known("arm in study.arms", arm, known)
            key = "study.arms"
            value = [name for name in known if name != arm]
            if not value:
                raise MaskwiseError(
                    "no arm is left", got=f"study.arms.{arm}=null", do="keep at least one arm"
                )
        if key == "study.arms" and known and isinstance(value, str | list):
            names = value
            if isinstance(names, str):
                names = list(map(str.strip, names.split(",")))
            do = "to add an arm, give its settings: study.arms.NAME='{masking.ratio: 0.3}'"
            for name in names:
                require_known("arm in study.arms", name, known, do=do)
            value = {name: changes for name, changes in known.items() if name in names}
        elif (
            key == "study.arms"
            and known
            and isinstance(value, dict)
            and value.keys().isdisjoint(known)
        ):
            _remove_comparison(settings["study"], given=changes)
        if key == "study.arms" and isinstance(value, dict):
            _refuse_left_out(known, value, given=changes)
        put(settings, key, value)
    gone = old_arms.keys() - arms_in(settings).keys()
    own = value_at(settings, "study.search.own")
    if isinstance(own, dict):
        # The search grid of a single arm goes with the arm.
        settings["study"]["search"]["own"] = {
            arm: grid for arm, grid in own.items() if arm not in gone
        }


def _refuse_left_out(
    known: Collection[str], left: Collection[str], *, given: Mapping[str, object]
) -> None:
    """Raise an error if an override leaves out an arm that another one changes."""
    for key, value in given.items():
        arm = arm_of(key, value, known)
        if arm in known and arm not in left and value not in (None, "none"):
            raise MaskwiseError(
                f"study.arms leaves out the arm {arm!r}, which {key} changes",
                got=", ".join(map(str, left)),
                do=f"add {arm} to study.arms, or remove {key}",
            )


def _remove_comparison(study: Plain, *, given: Collection[str]) -> None:
    """Remove the settings that compare arms, except those that overrides give."""
    for name in NAMES_ARMS:
        if name != "search" and not any(f"{key}.".startswith(f"study.{name}.") for key in given):
            study.pop(name, None)


def _require_compared(recipe: Recipe, added: Iterable[str]) -> None:
    """Raise an error if no contrast of the recipe names an arm that an override adds."""
    if not recipe.study.contrasts:
        return
    for name in added:
        if not any(name in pair for pair in recipe.study.pairs):
            raise MaskwiseError(
                f"study.arms.{name} adds an arm, and study.contrasts does not name it",
                got=f"study.contrasts={list(map(list, recipe.study.contrasts))}",
                do="set study.contrasts=null to compare every arm with the baseline, or "
                f"study.contrasts='[[{name}, {recipe.baseline}]]'",
            )


def _check_arm(recipe: Recipe, name: str) -> None:
    """Validate an arm with all settings that it uses, and check that it has an outcome."""
    match = recipe.study.equal_by
    # The baseline may have steps of its own, from which those of the other arms are computed.
    of = recipe.arm(name, seed=0) if name == recipe.baseline else recipe
    for point in recipe.study.settings_used(name):
        links = recipe.arm(name, seed=0, more=point).links()
        if match != "steps" and any(link.objectives for link in links):
            raise MaskwiseError(
                f"arm {name!r} has several objectives, and such arms can be matched by steps only",
                got=f"study.equal_by={match}",
            )
        if match != "steps" and links[0].training.steps != of.links()[0].training.steps:
            raise MaskwiseError(
                f"arm {name!r} has training.steps, which study.equal_by={match} computes for it",
                got=links[0].training.steps,
                do="leave out training.steps, or set study.equal_by=steps",
            )
    # The kinds of masks are the same for all settings of the grid, so only the last is checked.
    kinds = set()
    for link in links:
        kinds |= {kind.split()[0] for kind in link.judged_on()}
    masks = links[-1].evaluation.masks
    if not recipe.tasks and not kinds & set(masks):
        raise MaskwiseError(
            f"nothing measures arm {name!r}: there are no tasks, and evaluation.masks lacks its "
            "kind of masks",
            got=list(masks),
            allowed=" or ".join(sorted(kinds)) or "tasks",
        )


def _settings(source: str | Path, *, extending: tuple[Path, ...] = ()) -> Plain:
    """Read the settings of a file, merged into those of the recipe that it extends."""
    path = recipe_path(source)
    files = (*extending, path.resolve())
    if path.resolve() in extending:
        raise MaskwiseError(
            "these recipes extend each other", got=" → ".join(file.name for file in files)
        )
    return _extended(_read(path), name=path.stem, origin=str(path), path=path, extending=files)


def _extended(
    settings: object,
    *,
    name: str,
    origin: str,
    path: Path = Path("recipe"),
    extending: tuple[Path, ...] = (),
) -> Plain:
    """Merge settings into those of the recipe that they extend, which may be beside ``path``."""
    if not isinstance(settings, dict):
        got = "no settings"
        if settings is not None:
            got = type(settings).__name__
        raise MaskwiseError(
            f"{origin} is not a recipe",
            got=got,
            allowed="settings of the form key: value",
            do="add settings to the file, or use a shipped recipe (maskwise list recipes)",
        )
    settings.setdefault("name", name)
    extends = settings.pop("extends", None)
    if extends is None:
        return with_phases(settings)
    # Use a file in the same folder, even if a shipped recipe has the same name.
    base_source: str | Path = path.parent / str(extends)
    if not Path(base_source).is_file():
        base_source = str(extends)
    base = _settings(base_source, extending=extending)
    for key in ("name", "description"):
        base.pop(key, None)
    return merged(base, settings, before=partial(remove_unused, clear=False))


def _read(path: Path) -> object:
    do = None
    if path.suffix not in (".yaml", ".yml"):
        do = f"if this is a file with texts, write a recipe for it: maskwise new {path}"
    if path.stat().st_size > LARGEST:
        raise MaskwiseError(
            f"{path} is too large for a recipe",
            got=f"{path.stat().st_size:,} bytes",
            allowed=f"at most {LARGEST:,}",
            do=do,
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MaskwiseError(f"{path} is not a UTF-8 text file", got=str(error), do=do) from None
    with _yaml_errors(str(path), do=do):
        return _named_anew(read_yaml(text))


def _named_anew(settings: object) -> object:
    return with_new_names(settings) if isinstance(settings, dict) else settings


@contextmanager
def _yaml_errors(origin: str, *, do: str | None = None) -> Iterator[None]:
    """Turn errors of the parser of YAML into one-line errors with the name of the recipe."""
    try:
        yield
    except MaskwiseError as error:
        raise MaskwiseError(f"{origin}: {error}") from None
    except yaml.YAMLError as error:
        got = str(error)
        # Errors about forbidden characters have no position.
        if isinstance(error, yaml.MarkedYAMLError):
            # Some errors state only where the surrounding block begins.
            mark = error.problem_mark or error.context_mark
            assert mark is not None
            got = f"line {mark.line + 1}: {error.problem}"
            do = error.note or do
            if "'\\t'" in got:
                tabs = "replace tabs with spaces, because YAML allows only spaces for indentation"
                do = do or tabs
        raise MaskwiseError(f"{origin} is not valid YAML", got=got, do=do) from None
