"""Settings that have no effect because of another setting, such as the size of a tokenizer that is
loaded by name.

A setting that somebody writes must change something, or a mistake would go unnoticed. Therefore a
value without effect is refused. But recipes are written in layers: a recipe extends another recipe,
and overrides, arms and phases change single settings. If a layer makes a setting of an earlier
layer ineffective, the earlier value is removed. For example, ``model.pretrained`` removes the
settings of the quick start's new model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from maskwise.constants import is_rate
from maskwise.errors import MaskwiseError
from maskwise.masking.settings import MaskingSettings
from maskwise.objectives import objective_class
from maskwise.recipe.overrides import (
    Plain,
    arms_in,
    nested,
    once_each,
    placed,
    put,
    with_changes,
)
from maskwise.specs import leaves
from maskwise.text.readers import unread_fields
from maskwise.training.learners import Learner, learner_of


@dataclass(frozen=True)
class Unused:
    """Settings that have no effect in some recipes.

    Attributes:
        keys: the dotted names of the settings. The name of a group stands for all its settings.
        when: whether these settings have no effect, for nested settings that may be incomplete.
        why: words for the reason, which follow the name of the setting in the error message.
        removed: whether a layer that makes a setting of an earlier layer ineffective removes it.
            If not, the setting stays, because names of stages of recorded studies contain it.
        for_others: whether a file may give the settings for recipes that extend it. For example,
            one-gpu has no policy that learns from losses, but a lag, and a new recipe has settings
            of fine-tuning before its tasks. Overrides and arms may not.
        unless: the override with which the settings have an effect, such as
            ``learning.policy.pretrained=null``; "" if there is no single one. It may depend on the
            other settings.
    """

    keys: tuple[str, ...]
    when: Callable[[Plain], bool]
    why: str
    removed: bool = True
    for_others: bool = False
    unless: str | Callable[[Plain], str] = ""

    def override(self, settings: Plain) -> str:
        """Return the override with which the settings have an effect; "" without one."""
        return self.unless if isinstance(self.unless, str) else self.unless(settings)


ALTERNATIVES = (
    ("finetune.steps", "finetune.epochs"),
    ("training.patience", "training.lengths"),
)
"""Pairs of settings of which a training uses one. A layer that gives one of them removes the other
from the layers before it."""


def value_at(settings: Plain, key: str, default: Any = None) -> Any:
    """Return the value of a dotted name in nested settings, or the default."""
    value: Any = settings
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return default if value is None else value


def _tokenizer_names(settings: Plain) -> list[str]:
    """List the settings that name a tokenizer."""
    names = ("tokenizer.name", "model.pretrained", "corpus.tokens")
    return [name for name in names if value_at(settings, name)]


def _new_tokenizer(settings: Plain) -> str:
    """Return the override with which a tokenizer is trained; "" if it takes several, or if the
    corpus has token ids."""
    names = _tokenizer_names(settings)
    return f"{names[0]}=null" if len(names) == 1 and names[0] != "corpus.tokens" else ""


def _objectives(settings: Plain) -> list[tuple[str, Plain]]:
    """Return the objectives, each with its own masking settings."""
    chosen = value_at(settings, "objective", "mlm")
    if isinstance(chosen, str):
        return [(chosen, {})]
    found = []
    for name, arm in chosen.items():
        arm = arm if isinstance(arm, dict) else {"objective": arm or name}
        found.append((arm.get("objective", name), arm.get("masking", {})))
    return found


def _masks_nothing(settings: Plain) -> bool:
    return not any(objective_class(name).inherits for name, _ in _objectives(settings))


def _without_spans(settings: Plain) -> bool:
    """Whether a learned policy scores tokens and not spans."""
    usual = "tokens" if value_at(settings, "learning.method") == "meta" else "spans"
    return bool(value_at(settings, "learning.policy.head", usual) != "spans")


def _no_muon(group: str) -> Callable[[Plain], bool]:
    return lambda settings: value_at(settings, f"{group}.optimizer", "adamw") != "muon"


def _no_bf16(group: str) -> Callable[[Plain], bool]:
    return lambda settings: value_at(settings, f"{group}.precision") == "no"


def _constant(group: str) -> Callable[[Plain], bool]:
    return lambda settings: value_at(settings, f"{group}.decay") == "constant"


def _unread(name: str) -> Callable[[Plain], bool]:
    """Return a function that tells whether no source reads the corpus setting ``name``."""

    def ineffective(settings: Plain) -> bool:
        source = value_at(settings, "corpus.source", "")
        sources = [source] if isinstance(source, str) else [*source]
        return all(name in unread_fields(str(each)) for each in sources)

    return ineffective


def _masking(name: str) -> Callable[[Plain], bool]:
    """Return a function that tells whether the masking setting ``name`` has no effect."""

    def ineffective(settings: Plain) -> bool:
        masking = value_at(settings, "masking", {})
        chosen = value_at(settings, "objective", "mlm")
        # The masked batches of several objectives may differ in all other settings.
        if not isinstance(chosen, str):
            return False
        made = objective_class(chosen)
        if not made.masks:
            return False
        return name in masking and name not in made.batches.values.used(masking)

    return ineffective


def _own_in_all(name: str) -> Callable[[Plain], bool]:
    """Return a function that tells whether all objectives have a masking setting of their own."""

    def ineffective(settings: Plain) -> bool:
        own = [given for spec, given in _objectives(settings) if objective_class(spec).inherits]
        return bool(own) and all(name in given for given in own)

    return ineffective


OF_ONE_OBJECTIVE = ("ratio", "budget", "fill", "min_targets", "predict", "keep", "visits")
"""Masking settings that have no effect beside those of the objectives: arms are judged on the
common policy, and on what the common corruption writes."""


def _learns_at_no_step(settings: Plain) -> bool:
    """Whether no masking policy needs sums of the losses of every step."""
    common = value_at(settings, "masking", {})
    for name, own in _objectives(settings):
        kind = objective_class(name)
        merged = kind.settings(MaskingSettings(**common), MaskingSettings(**own))
        learner = learner_of(merged.values["policy"])
        # Learners that need sums at few steps, as type-weighted does, do not get them late.
        if learner is None or not learner.may_wait:
            continue
        if type(learner).offer is not Learner.offer:
            return False
    return True


NOT_OF_POLICIES = ("freeze", "group_by_length", "lag", "lengths", "patience", "workers")
"""Settings of trainings that have no effect while a masking policy is trained on labels: a policy
has no encoder beside its head, and its rows are shuffled windows of texts in memory."""

UNUSED = (
    Unused(
        (
            "tokenizer.kind",
            "tokenizer.k",
            "tokenizer.vocab_size",
            "tokenizer.lowercase",
            "tokenizer.sentinels",
        ),
        lambda settings: bool(_tokenizer_names(settings)),
        "is for a new tokenizer, and this recipe has the tokenizer of tokenizer.name, "
        "model.pretrained or corpus.tokens",
        unless=_new_tokenizer,
    ),
    Unused(
        ("tokenizer.k",),
        lambda settings: value_at(settings, "tokenizer.kind") != "k-mer",
        "is only for tokenizer.kind=k-mer",
        unless="tokenizer.kind=k-mer",
    ),
    Unused(
        ("corpus.attention",),
        lambda settings: value_at(settings, "corpus.layout") == "document",
        "is only for packed rows (corpus.layout)",
    ),
    Unused(
        ("training.muon_learning_rate",),
        _no_muon("training"),
        "needs training.optimizer=muon",
        unless="training.optimizer=muon",
    ),
    Unused(
        ("finetune.muon_learning_rate",),
        _no_muon("finetune"),
        "needs finetune.optimizer=muon",
        unless="finetune.optimizer=muon",
    ),
    Unused(
        ("learning.supervised.training.muon_learning_rate",),
        _no_muon("learning.supervised.training"),
        "needs learning.supervised.training.optimizer=muon",
        unless="learning.supervised.training.optimizer=muon",
    ),
    *(
        Unused(
            (f"{group}.residual",),
            _no_bf16(group),
            f"needs training in bf16, and {group}.precision is no",
        )
        for group in ("training", "learning.supervised.training")
    ),
    Unused(
        ("training.weight_decay",),
        lambda settings: value_at(settings, "training.freeze") == "old-rows",
        "has no effect, because training.freeze=old-rows trains without weight decay",
        removed=False,
    ),
    Unused(
        ("training.decay_share",),
        _constant("training"),
        "has no effect, because with training.decay=constant the learning rate does not fall",
    ),
    Unused(
        ("learning.supervised.training.decay_share",),
        _constant("learning.supervised.training"),
        "has no effect, because with decay=constant the learning rate does not fall",
    ),
    Unused(
        ("finetune.epochs",),
        lambda settings: value_at(settings, "finetune.steps") is not None,
        "has no effect beside finetune.steps",
        unless="finetune.steps=null",
    ),
    Unused(
        ("finetune", "study.min_helped", "study.secondary"),
        # The meta-gradient reads ``finetune.max_length``.
        lambda settings: not value_at(settings, "tasks", []) and not value_at(settings, "learning"),
        "is for tasks, and this recipe has none",
        removed=False,
        for_others=True,
    ),
    Unused(
        ("sampler",),
        lambda settings: len(_objectives(settings)) == 1,
        "has nothing to choose from, because there is a single objective",
    ),
    Unused(("masking",), _masks_nothing, "has no effect, because no objective masks"),
    Unused(
        ("masking.ratio",),
        _masking("ratio"),
        "has no effect, because masking.policy has its own ratio",
    ),
    Unused(
        ("masking.min_targets",),
        _masking("min_targets"),
        "has no effect with budget bernoulli, unless masking.policy masks single tokens, or with "
        "objective diffusion",
    ),
    Unused(
        ("masking.fill",),
        _masking("fill"),
        "has no effect, because masking.policy can mask every unit or budget bernoulli has no "
        "budget to use",
        removed=False,
        for_others=True,
    ),
    *(
        Unused(
            (f"masking.{name}",),
            _own_in_all(name),
            f"has no effect, because each objective has a masking.{name} of its own",
            removed=False,
        )
        for name in OF_ONE_OBJECTIVE
    ),
    *(
        Unused(
            (f"corpus.{name}",),
            _unread(name),
            why,
            removed=False,
            for_others=True,
        )
        for name, why in (
            ("text_field", "has no effect, because no file of corpus.source has fields"),
            ("group_field", "has no effect, because no file of corpus.source has fields"),
            ("text_per", "has no effect, because corpus.source is not plain text (.txt)"),
        )
    ),
    Unused(
        ("training.lag",),
        _learns_at_no_step,
        "is only for masking policies that learn from the losses of every step, such as "
        "pos-weighted",
        removed=False,
        for_others=True,
    ),
    Unused(
        ("training.keep",),
        lambda settings: not value_at(settings, "training.save_every", 0),
        "needs training.save_every, because only the state after a signal is saved",
        removed=False,
    ),
    Unused(
        ("training.workers",),
        lambda settings: not value_at(settings, "corpus.stream", False),
        "is only for streams (corpus.stream)",
        removed=False,
        unless="corpus.stream=true",
    ),
    Unused(
        ("learning.meta",),
        lambda settings: value_at(settings, "learning.method", "supervised") != "meta",
        "needs learning.method=meta",
        unless="learning.method=meta",
    ),
    Unused(
        ("learning.supervised",),
        lambda settings: value_at(settings, "learning.method", "supervised") != "supervised",
        "needs learning.method=supervised",
        unless="learning.method=supervised",
    ),
    Unused(
        ("learning.policy.longest",),
        _without_spans,
        "is only for policies that score spans (learning.policy.head)",
    ),
    Unused(
        ("learning.policy.architecture", "learning.policy.settings"),
        lambda settings: bool(value_at(settings, "learning.policy.pretrained")),
        "is for a new encoder, and this recipe has learning.policy.pretrained",
        unless="learning.policy.pretrained=null",
    ),
    Unused(
        ("learning.meta.seed", "learning.supervised.training.seed"),
        lambda settings: True,
        "has no effect in a recipe, because the seed of the run is used",
    ),
    Unused(
        tuple(f"learning.supervised.training.{name}" for name in NOT_OF_POLICIES),
        lambda settings: True,
        "has no effect on the training of a policy",
    ),
    Unused(
        ("learning.supervised.training.keep",),
        lambda settings: not value_at(settings, "learning.supervised.training.save_every", 0),
        "needs learning.supervised.training.save_every, because only the state after a signal is "
        "saved",
        removed=False,
    ),
)
"""Which settings have no effect in which recipes."""

NEW_MODEL = Unused(
    ("model.architecture", "model.settings"),
    lambda settings: bool(value_at(settings, "model.pretrained")),
    "is for a new model, and this recipe has model.pretrained",
)
"""The settings of a new model. ``ModelSettings`` refuses those that a checkpoint cannot have."""


def active(rules: Iterable[Unused], settings: Plain) -> Iterator[Unused]:
    """Yield the rules whose settings have no effect in these settings."""
    for rule in rules:
        try:
            ineffective = rule.when(settings)
        except (ValueError, AttributeError, TypeError):
            # A setting has a wrong value, which the validation of the recipe will report.
            continue
        if ineffective:
            yield rule


def remove_unused(settings: Plain, changes: Mapping[str, object], *, clear: bool = True) -> None:
    """Remove the settings that ``changes`` make ineffective, in place.

    Settings that ``changes`` themselves give stay, and so do settings that had no effect before.
    Both are mistakes, which the validation of the recipe will report.

    Args:
        settings: nested settings.
        changes: the settings of the next layer, keyed by dotted name. They are not applied here.
        clear: see ``overrides.put``.

    >>> settings = {"model": {"architecture": "bert", "settings": {"hidden_size": 64}}}
    >>> remove_unused(settings, {"model.pretrained": "bundled:encoder"}); settings
    {'model': {}}
    """
    if not settings:
        return
    _remove_alternatives(settings, changes)
    _remove_of_other_architecture(settings, changes)
    rules = [rule for rule in (*UNUSED, NEW_MODEL) if rule.removed]
    before = set(active(rules, settings))
    after: Plain = {}
    for layer in (dict(leaves(settings)), changes):
        for key, value in layer.items():
            try:
                put(after, key, value, clear=clear)
            except MaskwiseError:
                # The caller will put the same value, and raise the same error.
                continue
    newly = [rule for rule in active(rules, after) if rule not in before]
    trainings = [*_trainings(after)] if newly else []
    for rule in newly:
        if _is_active_in_all(rule, trainings):
            _remove_all(settings, rule, changes)


def without_alternatives(settings: Plain, changes: Mapping[str, object]) -> Plain:
    """Return the settings of a layer without those for which a later layer gives an alternative.

    Args:
        settings: the settings of a recipe, an arm or a point of a search, keyed by dotted name.
        changes: those of the later layer.

    >>> without_alternatives({"finetune.steps": 300, "phases": None}, {"finetune.epochs": 3})
    {'phases': None}
    """
    return _without(settings, {*_replaced(changes, ())})


Placed = tuple[tuple[str, ...], str]
"""The place of an arm, phase or grid, and the dotted name of a setting (``overrides.placed``)."""


def _replaced(changes: Mapping[str, object], arms: Collection[str]) -> Iterator[Placed]:
    """Yield the settings of earlier layers for which ``changes`` give an alternative.

    >>> [*_replaced({"phases.1.training.patience": 3}, ())]
    [(('phases', '1'), 'training.lengths')]
    """
    given = {placed(name, value, arms): value for name, value in changes.items()}
    for (place, setting), value in given.items():
        for pair in ALTERNATIVES:
            for own, other in (pair, pair[::-1]):
                if setting == own and value is not None and (place, other) not in given:
                    yield place, other


def _without(settings: Plain, gone: Collection[Placed]) -> Plain:
    """Return settings, keyed by dotted name, without those that are ``gone``."""
    kept = {}
    for name, value in settings.items():
        if placed(name, value, ()) in gone:
            continue
        if name == "phases" and isinstance(value, list | tuple):
            value = [*value]
            for number, phase in enumerate(value):
                for place, setting in gone:
                    if place == ("phases", str(number)):
                        phase = _phase_without(phase, setting)
                value[number] = phase
        kept[name] = value
    return kept


def _remove_alternatives(settings: Plain, changes: Mapping[str, object]) -> None:
    """Remove the settings for which ``changes`` give an alternative (``ALTERNATIVES``), in place.

    A setting is replaced where it is given: in the recipe, an arm or a phase. A phase or an arm
    keeps its own, which replaces that of the recipe.

    >>> settings = {"finetune": {"steps": 300}, "study": {"arms": {"a": {"finetune.steps": 2}}}}
    >>> _remove_alternatives(settings, {"finetune.epochs": 3}); settings
    {'finetune': {}, 'study': {'arms': {'a': {'finetune.steps': 2}}}}
    """
    for place, setting in _replaced(changes, arms_in(settings)):
        if place:
            _remove_at(settings, place, setting)
        else:
            _remove(settings, setting, changes)


def _remove_of_other_architecture(settings: Plain, changes: Mapping[str, object]) -> None:
    """Remove the settings of a new model that the architecture in ``changes`` does not have.

    Those that it has, such as hidden_size, stay, in place.
    """
    architecture = changes.get("model.architecture")
    own = value_at(settings, "model.settings")
    before = value_at(settings, "model.architecture", "modernbert")
    if not isinstance(architecture, str) or architecture == before or not isinstance(own, dict):
        return
    # This import takes a second.
    from maskwise.models import known_fields

    known = known_fields(architecture, map(str, own))
    settings["model"]["settings"] = {name: own[name] for name in own if str(name) in known}


def _remove_at(settings: Plain, place: Sequence[str], setting: str) -> None:
    """Remove a setting from the changes of an arm, a grid or a phase, which are at ``place``."""
    of_phase = place[-2:] if place[-2:-1] == ("phases",) else ()
    group: Any = settings
    # What is wrong with the place or the changes is reported when other changes are put there.
    with suppress(LookupError, ValueError, TypeError, AttributeError, MaskwiseError):
        outer = place[: len(place) - len(of_phase)]
        for part in outer:
            group = group[part]
        given = once_each(group) if outer else {"phases": group["phases"]}
        without = _without(given, {((*of_phase,), setting)})
        if without != given:
            put(settings, outer or ("phases",), without if outer else without["phases"])


def drop_unused(settings: Plain, given: Mapping[str, object]) -> None:
    """Remove the settings that have no effect in any training, in place.

    Args:
        settings: nested settings.
        given: settings that stay, keyed by dotted name. Somebody gave them, so the validation of
            the recipe shall report that they have no effect.

    >>> settings = {"training": {"optimizer": "adamw", "muon_learning_rate": 0.01}}
    >>> drop_unused(settings, {}); settings
    {'training': {'optimizer': 'adamw'}}
    """
    trainings = [*_trainings(settings)]
    for rule in UNUSED:
        if rule.removed and _is_active_in_all(rule, trainings):
            _remove_all(settings, rule, given)
            trainings = [*_trainings(settings)]


def _is_active_in_all(rule: Unused, trainings: Iterable[Plain]) -> bool:
    """Return whether the settings of a rule have no effect in any of these trainings."""
    # An arm or a phase may need a setting that has no effect in the others.
    return all(any(active((rule,), each)) for each in trainings)


def _remove_all(settings: Plain, rule: Unused, changes: Mapping[str, object]) -> None:
    """Remove the settings of a rule, except those that ``changes`` give."""
    for key in rule.keys:
        _remove(settings, key, changes)
        # Phases change the same settings.
        phases = settings.get("phases")
        if isinstance(phases, list) and "phases" not in changes:
            settings["phases"] = [_phase_without(phase, key) for phase in phases]


def _trainings(settings: Plain) -> Iterator[Plain]:
    """Yield the settings of each training of a recipe: of each phase of each arm."""
    arms = value_at(settings, "study.arms", {})
    for changes in arms.values() if isinstance(arms, dict) and arms else ({},):
        of_arm = _with(settings, changes)
        phases = of_arm.get("phases")
        for phase in phases if isinstance(phases, list) and phases else ({},):
            yield _with(of_arm, phase)


def _with(settings: Plain, changes: object) -> Plain:
    """Return settings with the changes of an arm or a phase, if they are settings."""
    if not changes or not isinstance(changes, Mapping):
        return settings
    # The validation of the recipe will report what is wrong in them.
    return with_changes(settings, changes, lenient=True)


def _remove(settings: Plain, key: str, changes: Mapping[str, object]) -> None:
    """Remove a setting, or all settings of a group, except those that ``changes`` give."""
    *path, last = key.split(".")
    group: Any = settings
    for part in path:
        group = group.get(part) if isinstance(group, dict) else None
    if not isinstance(group, dict) or last not in group:
        return
    inside = [name for name in changes if name == key or name.startswith(f"{key}.")]
    whole = [name for name in changes if key.startswith(f"{name}.")]
    # ``changes`` replace the settings that they give.
    if whole or key in inside:
        return
    if key == "model.settings" and isinstance(group[last], dict):
        # A checkpoint can have other rates of dropout, or refuses those that it does not know.
        group[last] = {name: rate for name, rate in group[last].items() if is_rate(name)}
        if group[last]:
            return
    del group[last]


def _phase_without(phase: object, key: str) -> object:
    if not isinstance(phase, dict):
        return phase
    settings = nested(phase)
    _remove(settings, key, {})
    return settings


def ineffective(settings: Plain, *, in_file: bool = False) -> dict[str, Unused]:
    """Return the settings that have no effect in a complete recipe, and the rule that says why, by
    dotted name.

    Args:
        settings: the settings of the recipe, as nested values.
        in_file: leave out settings that a file may give for other recipes.
    """
    found: dict[str, Unused] = {}
    rules = [rule for rule in UNUSED if not (in_file and rule.for_others)]
    for rule in active(rules, settings):
        for key in rule.keys:
            found.setdefault(key, rule)
    return found


def refuse_unused(
    given: Mapping[str, object],
    recipes: Sequence[Plain],
    default: Plain,
    *,
    origin: str = "",
    place: str = "",
    in_file: bool = False,
) -> None:
    """Raise ``MaskwiseError`` if somebody gives a value that has no effect.

    Args:
        given: the values that somebody wrote, keyed by dotted name.
        recipes: the complete settings of all trainings that use these values, as nested values. A
            value must have an effect in one of them.
        default: the complete settings of a recipe in which nothing was set. Default values are
            never refused, because recipes that maskwise writes state them.
        origin: words for who wrote the values, for the error message.
        place: what stands before the names of the settings in an override, such as "phases.0.".
        in_file: whether the values are those of a file, which other recipes may extend.
    """

    @cache
    def unused(number: int) -> Mapping[str, Unused]:
        return ineffective(recipes[number], in_file=in_file)

    for key, value in given.items():
        if value is None or value == value_at(default, key):
            continue
        # Most values have an effect in the first training, so the others are not looked at.
        reasons = (_rule_of(key, unused(number)) for number in range(len(recipes)))
        first = next(reasons, None)
        if first and all(reasons):
            what = f"{origin}: {key}" if origin else key
            do = f"remove {place}{key}"
            if override := first.override(recipes[0]):
                do = f"{do}, or set {place}{override}"
            raise MaskwiseError(f"{what} {first.why}", got=value, do=do)


def _rule_of(key: str, unused: Mapping[str, Unused]) -> Unused | None:
    """Return the rule by which a setting has no effect, or None if it has one."""
    for name, rule in unused.items():
        if key == name or key.startswith(f"{name}."):
            return rule
    return None
