"""Overrides that a command does not read.

A recipe has the settings of all commands, and its arms and phases may set the same keys as an
override. An override has an effect if it changes the name of a stage that the command runs: these
names are hashes of all that a stage reads. Otherwise it is a mistake, and is refused. Settings that
are in no name, such as those of logs, are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from maskwise.errors import MaskwiseError
from maskwise.recipe import Recipe
from maskwise.recipe.comparison import StudySettings
from maskwise.recipe.described import declared
from maskwise.recipe.overrides import Plain, parse_override
from maskwise.specs import different_settings
from maskwise.study.plan import arms_of, make_run, task_contents

Names = frozenset[str]

FREE = ("speed", "nothing")
"""Effects of settings that are in no name of a stage."""

TITLES = {"name", "description"}
"""Settings that no stage reads."""

PHASE = re.compile(r"^(intermediate|phases\.\d+)\.")
"""The beginning of the keys of a phase."""

DO = {
    "study": ["an arm can be changed by study.arms.NAME.{key}"],
    "adapt": ["other arms can be compared in a study: maskwise new FILE"],
}
"""The commands that train several arms, with more advice."""

ALONE = "run"
"""The name of the only arm of ``maskwise pretrain``."""


def names_in_study(recipe: Recipe) -> Names:
    """Return the names of the stages of a study's runs with its first seed."""
    contents = task_contents(recipe)
    seed = recipe.study.first_seed
    runs = []
    for arm in arms_of(recipe, contents) if recipe.study.arms else ():
        # The unchanged model has no settings to search.
        used = recipe.study.settings_used(arm) if arm in recipe.study.arms else [{}]
        for more in used:
            runs.append(make_run(recipe, arm, seed, contents=contents, more=more))
    return frozenset(stage.name for run in runs for stage in run.stages)


def names_in_pretraining(recipe: Recipe) -> Names:
    """Return the names of the stages of ``maskwise pretrain``, and how it evaluates."""
    alone = {"study": StudySettings(arms={ALONE: {}}), "tasks": ()}
    seed = recipe.training.seed
    run = make_run(recipe.model_copy(update=alone), ALONE, seed, contents={}, evaluated=False)
    how = recipe.links()[-1].evaluation
    # Pre-training reads no other settings of evaluations.
    evaluated = str((how.masks, how.rows, how.ratios[:1]))
    return frozenset({evaluated, *(stage.name for stage in run.stages)})


def read_used(
    read: Callable[[Sequence[str]], Recipe],
    overrides: Sequence[str],
    *,
    names: Callable[[Recipe], object],
    command: str,
) -> Recipe:
    """Read a recipe for a command that uses all overrides.

    Overrides that restate the value of the recipe are accepted.

    Args:
        read: a function that reads the recipe with overrides.
        overrides: ``key=value`` settings.
        names: a function that returns what the command reads of a recipe.
        command: the name of the command, for the message.

    Raises:
        MaskwiseError: an override changes nothing of what the command does; see also ``read``.
    """
    recipe = read(overrides)
    refuse_unread(recipe, overrides, read=read, names=names, command=command)
    return recipe


def refuse_unread(
    recipe: Recipe,
    overrides: Sequence[str],
    *,
    read: Callable[[Sequence[str]], Recipe],
    names: Callable[[Recipe], object],
    command: str,
) -> None:
    """Raise ``MaskwiseError`` if an override of ``recipe`` is not used, as in ``read_used``."""
    # The names of stages need hashes of files.
    if not overrides:
        return
    effects = declared()
    has_arms = command in DO
    why = "it is not read"
    if has_arms:
        why = "it changes no training and no measurement: every arm or phase may have its own value"
    try:
        expected = names(recipe)
    except MaskwiseError:
        # The command will raise the same error.
        return
    do = "; ".join(["remove {key}", *DO.get(command, [])])
    for text in overrides:
        key, value = parse_override(text)
        # A value that removes a setting asks for nothing. ``check_study`` refuses the seed.
        if value in (None, [], {}) or (has_arms and key == "training.seed"):
            continue
        others = [each for each in overrides if each != text]
        try:
            without = read(others)
            changed = _changed(without, recipe)
            # Which runs there are, and what is concluded from them, is in no name of a stage.
            if has_arms:
                changed = [name for name in changed if not name.startswith("study.")]
            # What learning reads has the settings of logs, too.
            free = [name for name in changed if effects.get(PHASE.sub("", name)) in FREE]
            if len(free) == len(changed) and (command != "learn" or {*free} <= TITLES):
                continue
            used = names(without) != expected
        except MaskwiseError:
            # The other overrides need this one.
            continue
        if not used:
            raise MaskwiseError(
                f"{key} has no effect in maskwise {command}, because {why}",
                got=value,
                do=do.format(key=key),
            )


def _changed(one: Recipe, other: Recipe) -> list[str]:
    """Return the dotted names of the settings that differ, and mean something different."""
    changed = different_settings(_plain(one), _plain(other))
    # The tokenizer of a pre-trained model may be named, too.
    if one.tokenizer_name and one.tokenizer_name == other.tokenizer_name:
        changed = [name for name in changed if not name.startswith("tokenizer.")]
    return changed


def _plain(recipe: Recipe) -> Plain:
    """Return the settings of a recipe, with its phases by number."""
    plain = recipe.model_dump(mode="json")
    if plain["phases"]:
        plain["phases"] = {str(number): phase for number, phase in enumerate(plain["phases"])}
    return plain
