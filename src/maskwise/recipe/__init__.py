"""Recipes: YAML files with all settings of a study, validated by pydantic.

A study compares arms, which are ways to pre-train. A recipe contains the settings that all arms
have in common, and the settings that each arm changes (``study.arms``). A recipe may extend another
recipe (``extends``), and ``key=value`` overrides change single settings. All names are checked when
a recipe is read, so a typo cannot make a run fail after an hour. The error for an unknown name
suggests the most similar known name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import yaml

from maskwise.base.errors import MaskwiseError, shortened
from maskwise.base.folders import recipe_path, shipped
from maskwise.recipe.explained import explain
from maskwise.recipe.recipe import Recipe, validate
from maskwise.recipe.setting_layers import (
    arms_in,
    layer,
    nest,
    on_base,
    parse_overrides,
    with_overrides,
    with_parts,
)
from maskwise.recipe.yamls import Plain, parse_value, plain_value, read_yaml

OF_DICT = "the recipe"
"""What errors call a recipe that is given as a dict."""
Read = TypeVar("Read")
LARGEST = 1 << 22
"""The most bytes of a recipe. Reading YAML takes about a second per 100 KB."""

__all__ = [
    "Recipe",
    "blaming_overrides",
    "explain",
    "layer_of_file",
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
        own = layer(plain_value(source, ""))
        return _read(own, overrides, name="study", origin=OF_DICT, folder=Path())
    if not isinstance(source, str | Path):
        raise MaskwiseError(
            "a recipe is a name, a file or a dict of settings", got=type(source).__name__
        )
    path = recipe_path(source)
    return _read(
        layer_of_file(path),
        overrides,
        name=path.stem,
        origin=str(source),
        folder=path.parent,
        # Overrides may replace what settings of a shipped recipe are for.
        checked=path not in shipped().values(),
    )


def recipe_of_text(text: str, *, name: str, origin: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from its text, as ``read_recipe`` reads a file.

    Args:
        text: the recipe in YAML.
        name: the name of the recipe, if the text gives none.
        origin: what to call the recipe in error messages.
        overrides: settings to change, as ``key=value``.
    """
    own = _layer_of_text(text, origin)
    return _read(own, overrides, name=name, origin=origin, folder=Path())


def _read(
    own: Plain,
    overrides: Iterable[str],
    *,
    name: str,
    origin: str,
    folder: Path,
    checked: bool = True,
) -> Recipe:
    """Validate a recipe with overrides and all of its arms, and check that all has an effect.

    Args:
        own: the layer of the recipe itself.
        overrides: settings to change, as ``key=value``.
        name: the name of the recipe, if the layer gives none.
        origin: what to call the recipe in error messages.
        folder: the folder of the recipe, in which one that it extends may be.
        checked: whether its own settings must have an effect, too.
    """
    overrides = [*overrides]
    settings = _whole_layer({"name": name, **own}, folder=folder)

    def validated(overrides: Sequence[str]) -> Recipe:
        recipe = validate(nest(with_overrides(settings, overrides)), origin=origin)
        runs = recipe.runs()
        for arm in recipe.study.arms:
            recipe.check_arm(arm, runs[arm])
        return recipe

    changes = parse_overrides(overrides)
    recipe = blaming_overrides(validated, overrides, origin=origin)
    if "study.contrasts" not in changes and recipe.study.contrasts:
        _require_compared(recipe, arms_in(settings))
    # The settings of a complete recipe, which maskwise writes for every run, need no effect.
    complete = {key.partition(".")[0] for key in own} >= Recipe.model_fields.keys()
    if checked and not complete:
        try:
            recipe.require_used(own, in_file=True)
        except MaskwiseError:
            # An override may leave a setting of the file without effect.
            if not overrides:
                raise
            validated([]).require_used(own, in_file=True)
    if changes:
        recipe.require_used(changes)
    return recipe


def _require_compared(recipe: Recipe, before: Collection[str]) -> None:
    """Raise an error if no contrast of the recipe names an arm that an override adds.

    ``before`` are the arms without overrides.
    """
    for name in recipe.study.arms:
        if name not in before and not any(name in pair for pair in recipe.study.pairs):
            raise MaskwiseError(
                f"study.arms.{name} adds an arm, and study.contrasts does not name it",
                got=f"study.contrasts={list(map(list, recipe.study.contrasts or ()))}",
                do="set study.contrasts=null to compare every arm with the baseline, or "
                f"study.contrasts='[[{name}, {recipe.baseline}]]'",
            )


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
        for text in overrides:
            # Without the override the recipe may be right, and reading it would import torch.
            keys = parse_overrides([text])
            if error.setting and any(f"{key}.".startswith(f"{error.setting}.") for key in keys):
                raise _of_overrides(error, [text], origin) from None
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


def _whole_layer(own: Plain, *, folder: Path, extending: tuple[Path, ...] = ()) -> Plain:
    """Return the layer of a recipe, put on that of the recipe that it extends.

    Args:
        own: the layer of the recipe itself.
        folder: the folder of the recipe.
        extending: the files that led to this one.
    """
    own = dict(own)
    other = own.pop("extends", None)
    if other is None:
        return with_parts(own)
    # Use a file in the same folder, even if a shipped recipe has the same name.
    beside = folder / str(other)
    path = recipe_path(beside if beside.is_file() else str(other))
    files = (*extending, path.resolve())
    if path.resolve() in extending:
        raise MaskwiseError(
            "these recipes extend each other", got=" → ".join(file.name for file in files)
        )
    base = _whole_layer(layer_of_file(path), folder=path.parent, extending=files)
    base.pop("name", None)
    base.pop("description", None)
    return on_base(base, own)


def layer_of_file(path: Path) -> Plain:
    """Return the layer of a recipe in a file, without that of the recipe that it extends."""
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
    return _layer_of_text(text, str(path), do=do)


def _layer_of_text(text: str, origin: str, *, do: str | None = None) -> Plain:
    """Return the settings of a recipe in YAML as a layer."""
    with _yaml_errors(origin, do=do):
        settings = read_yaml(text)
        if isinstance(settings, Mapping):
            return layer(settings)
    raise MaskwiseError(
        f"{origin} is not a recipe",
        got="no settings" if settings is None else type(settings).__name__,
        allowed="settings of the form key: value",
        do="add settings to the file, or use a shipped recipe (maskwise list recipes)",
    )


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
