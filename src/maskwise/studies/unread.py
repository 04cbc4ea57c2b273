"""Overrides that a command does not read.

A recipe has the settings of all commands, and its arms and phases may set the same keys as an
override. An override has an effect if it changes what the command reads of the trainings that it
runs. Otherwise it is a mistake, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from maskwise.base.effects import UNNAMED
from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import different_settings
from maskwise.recipe import Recipe
from maskwise.recipe.described import declared
from maskwise.recipe.setting_layers import parse_override, placed

DO = {
    "study": "; an arm can be changed by study.arms.NAME.{key}",
    "adapt": "; other arms can be compared in a study: maskwise new FILE",
}
"""The commands that train several arms, with more advice."""
TEXT = ("corpus", "tokenizer", "model", "objective")
"""Sections that every training reads."""


def read_by_study(recipe: Recipe) -> list[Any]:
    """Return what a study reads of each of its trainings."""
    found = []
    links = (link for run in chain(*recipe.runs().values()) for link in run.links())
    for link in links:
        left_out = {"study", "name", "description", *([] if link.learns else ["learning"])}
        left_out |= {"finetune"} if not recipe.tasks else set()
        found.append(link.model_dump(mode="json", exclude=left_out))
    return found


def read_by_pretraining(recipe: Recipe) -> list[Any]:
    """Return what ``maskwise pretrain`` reads, and how it evaluates."""
    parts = {*TEXT, "masking", "sampler", "training"}
    links = recipe.model_copy(update={"study": type(recipe.study)()}).links()
    how = links[-1].evaluation
    return [
        *(link.model_dump(mode="json", include=parts) for link in links),
        how.masks,
        how.rows,
        how.ratios[:1],
    ]


def read_used(
    read: Callable[[Sequence[str]], Recipe],
    overrides: Sequence[str],
    *,
    content: Callable[[Recipe], object],
    command: str,
) -> Recipe:
    """Read a recipe for a command that uses all overrides.

    Overrides that restate the value of the recipe are accepted.

    Args:
        read: a function that reads the recipe with overrides.
        overrides: ``key=value`` settings.
        content: a function that returns what the command reads of a recipe.
        command: the name of the command, for the message.

    Raises:
        MaskwiseError: an override changes nothing of what the command does; see also ``read``.
    """
    recipe = read(overrides)
    refuse_unread(recipe, overrides, read=read, content=content, command=command)
    return recipe


def refuse_unread(
    recipe: Recipe,
    overrides: Sequence[str],
    *,
    read: Callable[[Sequence[str]], Recipe],
    content: Callable[[Recipe], object],
    command: str,
) -> None:
    """Raise ``MaskwiseError`` if an override of ``recipe`` is not used, as in ``read_used``."""
    effects = declared()
    has_arms = command in DO
    why = "it is not read"
    if has_arms:
        why = "it changes no training and no measurement: every arm or phase may have its own value"
    whole = recipe.model_dump(mode="json")

    @cache
    def expected() -> object:
        return content(recipe)

    for text in overrides:
        key, value = parse_override(text)
        free = effects.get(placed(key)[1]) in UNNAMED and not key.startswith("learning")
        # ``check_study`` refuses the seed, and says what to set instead.
        free = free or key.startswith("study.") or key == "training.seed"
        if value in (None, [], {}) or (has_arms and free):
            continue
        try:
            without = read([each for each in overrides if each != text])
            changed = different_settings(without.model_dump(mode="json"), whole)
            # What learning reads has the settings of logs, too.
            no_result = set() if command == "learn" else {"nothing"}
            # A restated value changes nothing, and neither does one that a later one replaces.
            harmless = {effects.get(name) for name in changed} <= no_result
            used = harmless or content(without) != expected()
        except MaskwiseError:
            # The other overrides need this one, or the command will raise the same error.
            continue
        if not used:
            do = f"remove {key}" + DO.get(command, "").format(key=key)
            raise MaskwiseError(
                f"{key} has no effect in maskwise {command}, because {why}", got=value, do=do
            )
