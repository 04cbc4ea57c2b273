"""Settings without effect, such as the size of a tokenizer that is loaded by name.

A value that somebody writes must have an effect in some training, or a mistake would go unnoticed
(``refuse``). Most such settings say in their type when they have one (``effects.Only``); for the
others, it follows from the names of a policy, an objective or a file. Layers keep all values: where
a training is resolved, those without effect get their defaults (``canonical``), so that they do not
change names of stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from maskwise.base.effects import Only
from maskwise.base.errors import MaskwiseError
from maskwise.learning.settings import LearningSettings
from maskwise.masking.policies import Policy
from maskwise.recipe.explained import groups_in
from maskwise.text.source import unread_fields

if TYPE_CHECKING:
    from maskwise.recipe.recipe import Recipe


@dataclass(frozen=True)
class Reason:
    """Why a setting has no effect.

    Attributes:
        why: words that follow the name of the setting.
        for_others: whether a file may give the setting for recipes that extend it. For example,
            one-gpu has no policy that learns from losses, but a lag, and a new recipe has settings
            of fine-tuning before its tasks.
    """

    why: str
    for_others: bool = False


Reasons = dict[str, Reason]
"""Why settings have no effect, by dotted name. The name of a group stands for all its settings."""

OF_ONE_OBJECTIVE = ("ratio", "budget", "fill", "min_targets", "predict", "keep", "visits", "ends")
"""Masking settings that have no effect beside those of the objectives: arms are judged on the
common policy, and on what the common corruption writes."""

OF_TASKS = ("finetune", "study.secondary")
OF_FILES = ("text_field", "group_field", "text_per")

RESET = ("sampler", "masking", "masking.ratio", "learning.policy.longest")
"""Settings whose effect follows from names, and which have their defaults in names of stages. The
other ones keep their values, because names of recorded stages contain them."""

NOT_OF_POLICIES = ("freeze", "group_by_length", "lag", "lengths", "patience", "workers")
"""Settings of trainings that have no effect while a masking policy is trained on labels: a policy
has no encoder beside its head, and its rows are shuffled windows of texts in memory."""

_SEED_OF_RUN = Reason("has no effect in a recipe, because the seed of the run is used")
NEVER: Reasons = {
    "learning.meta.seed": _SEED_OF_RUN,
    "learning.supervised.training.seed": _SEED_OF_RUN,
} | dict.fromkeys(
    (f"learning.supervised.training.{name}" for name in NOT_OF_POLICIES),
    Reason("has no effect on the training of a policy"),
)
"""Settings that have no effect in any recipe."""


def value_at(settings: Any, name: str) -> Any:
    """Return the value of a dotted name in settings; None if a part of it is not there."""
    for part in name.split("."):
        if isinstance(settings, Mapping):
            settings = settings.get(part)
        else:
            settings = getattr(settings, part, None)
    return settings


@cache
def _marks(kind: type[BaseModel], above: str = "") -> dict[str, list[Only]]:
    """Return the marks of all settings of a class, with whole names of the settings they name."""
    found: dict[str, list[Only]] = {}
    for name, field in kind.model_fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, Only)]
        if marks:
            found[f"{above}{name}"] = [mark.within(above) for mark in marks]
        for group in groups_in(field.annotation):
            found |= _marks(group, f"{above}{name}.")
    return found


def without_effect(settings: BaseModel) -> Reasons:
    """Return the settings without effect whose types say so, by dotted name."""
    found: Reasons = {}
    for name, marks in _marks(type(settings)).items():
        for mark in marks:
            why = mark.why_not(value_at(settings, mark.key))
            if why is not None:
                found.setdefault(name, Reason(why))
    return found


def _by_name(link: Recipe) -> Reasons:
    """Return the settings without effect for which it follows from names, by dotted name."""
    found: Reasons = {}
    masked = [*link.masked.values()]
    if len(link.objectives) < 2:
        found["sampler"] = Reason("has nothing to choose from, because there is a single objective")
    if not any(kind.inherits for kind, _ in masked):
        found["masking"] = Reason("has no effect, because no objective masks")
    # The masked batches of several objectives may differ in all settings.
    if not link.objectives and masked[0][0].masks:
        written = link.masking.model_dump(exclude_unset=True)
        used = masked[0][0].batches.values.used(written)
        for name in written.keys() - used.keys():
            why = (
                f"has no effect with masking.policy={link.masking.policy}, masking.budget="
                f"{link.masking.budget} and objective={link.objective}"
            )
            found[f"masking.{name}"] = Reason(why, for_others=name == "fill")
    own = [each.masking for each in link.objectives.values() if each.kind.inherits]
    for name in OF_ONE_OBJECTIVE:
        if own and all(name in each for each in own):
            why = f"has no effect, because each objective has a masking.{name} of its own"
            found[f"masking.{name}"] = Reason(why)
    if not any(_may_lag(masking.values["policy"]) for _, masking in masked):
        why = "is only for masking policies that learn from the losses of every step, such as "
        found["training.lag"] = Reason(f"{why}pos-weighted", for_others=True)
    unread = [unread_fields(source) for source in link.corpus.sources]
    for name in OF_FILES:
        if unread and all(name in each for each in unread):
            found[f"corpus.{name}"] = Reason(unread[0][name], for_others=True)
    # The meta-gradient reads ``finetune.max_length``.
    if not link.tasks and not link.learning:
        why = "is for tasks, and this recipe has none"
        found |= dict.fromkeys(OF_TASKS, Reason(why, for_others=True))
    if link.learning and link.learning.head == "tokens":
        found["learning.policy.longest"] = Reason(
            "is only for policies that score spans (learning.policy.head)"
        )
    return found


def _may_lag(policy: Policy) -> bool:
    """Whether a policy learns, and can get the sums of the losses of every step late."""
    # This imports torch.
    from maskwise.training.learners import Learner, learner_of

    learner = learner_of(policy)
    # One that needs sums at few steps, as type-weighted does, does not get them late.
    offers = learner is not None and type(learner).offer is not Learner.offer
    return learner is not None and learner.may_wait and offers


def _reasons(link: Recipe) -> Reasons:
    """Return all settings without effect in a training, and why."""
    return _by_name(link) | without_effect(link) | NEVER


@cache
def _defaults(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the settings of a recipe in which nothing was set, as plain values."""
    learning = LearningSettings().model_dump(mode="json")
    return kind.model_construct().model_dump(mode="json") | {"learning": learning}


def unused(given: Mapping[str, Any], links: Sequence[Recipe]) -> Iterator[tuple[str, Any, Reason]]:
    """Yield the values that have no effect in any of these trainings, with their names and why.

    Default values count as used, because recipes that maskwise writes state them.

    Args:
        given: values keyed by dotted name.
        links: the recipes of all trainings that use these values.
    """

    @cache
    def reasons(number: int) -> Reasons:
        return _reasons(links[number])

    for name, value in given.items():
        if value is None or value == value_at(_defaults(type(links[0])), name):
            continue
        # Most values have an effect in the first training, so the others are not looked at.
        found = (_reason(name, reasons(number)) for number in range(len(links)))
        first = next(found)
        if first is not None and all(found):
            yield name, value, first


def refuse(
    given: Mapping[str, Any],
    links: Sequence[Recipe],
    *,
    origin: str = "",
    place: str = "",
    in_file: bool = False,
) -> None:
    """Raise ``MaskwiseError`` if a value has no effect in any of these trainings.

    Args:
        given, links: see ``unused``.
        origin: words for who wrote the values, for the error message.
        place: what stands before the names of the settings in an override, such as "phases.0.".
        in_file: whether the values are those of a file, which other recipes may extend.
    """
    for name, value, reason in unused(given, links):
        if in_file and reason.for_others:
            continue
        do = f"remove {place}{name}"
        needed = reason.why.removeprefix("needs ")
        if needed != reason.why and " or " not in needed:
            do = f"{do}, or set {place}{needed}"
        what = f"{origin}: {name}" if origin else name
        raise MaskwiseError(f"{what} {reason.why}", got=value, do=do)


def _reason(name: str, reasons: Reasons) -> Reason | None:
    """Return why a setting, or a group that it is in, has no effect; None if it has one."""
    for setting, reason in reasons.items():
        if f"{name}.".startswith(f"{setting}."):
            return reason
    return None


def canonical(link: Recipe) -> Recipe:
    """Return the recipe of a training in which settings without effect have their defaults."""
    by_name = _by_name(link)
    for name in (*without_effect(link), *(name for name in RESET if name in by_name)):
        link = _with_default(link, name)
    return link


def _with_default(settings: Any, name: str) -> Any:
    """Return settings in which one has its default."""
    first, _, rest = name.partition(".")
    before = getattr(settings, first)
    if not rest:
        value = type(settings).model_fields[first].get_default(call_default_factory=True)
    elif before is None:
        return settings
    else:
        value = _with_default(before, rest)
    return settings if value == before else settings.model_copy(update={first: value})
