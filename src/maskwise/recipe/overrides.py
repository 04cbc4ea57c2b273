"""Read, change and validate settings with dotted names.

A dotted name, such as ``masking.ratio``, changes one setting of a recipe. It may be written in an
override on the command line, an arm, a search grid, a training phase, or a recipe with ``extends``.
``explain`` converts pydantic's errors to one-line errors.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cache, lru_cache
from itertools import chain
from numbers import Real
from pathlib import PurePath
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from maskwise.effects import OFF, kinds_of, turns_off
from maskwise.errors import MaskwiseError, did_you_mean, first_line, shortened, unknown_name
from maskwise.printing import note_of_rename
from maskwise.specs import leaves

Plain = dict[str, Any]
"""Nested settings, as in YAML or JSON."""

NAMES_ARMS = ("baseline", "contrasts", "gate", "outcome", "search")
"""Study settings that name arms, or that depend on the set of arms."""

ARM_PARTS = (
    "corpus",
    "tokenizer",
    "model",
    "masking",
    "objective",
    "sampler",
    "training",
    "phases",
    "intermediate",
    "finetune",
    "learning",
)
"""Sections of a recipe that an arm may change. Other sections are the same for all arms."""

PHASE_PARTS = ("corpus", "masking", "objective", "sampler", "training")
"""Sections of a recipe that a phase may change. All phases share a model and a tokenizer."""

MOST_NUMBER = 1 << 63
"""Limit on whole numbers, 64 bits. Python cannot print numbers of more than 4,300 digits: without a
limit, an error message about such a number would itself raise an error."""

MOST_LEVELS = 100
"""Limit on the levels of groups and lists in one YAML text. Pydantic allows 255."""

MOST_VALUES = 100_000
"""Limit on the number of values in one YAML text. YAML aliases repeat parts of a text, so a short
text can expand to billions of values."""


RENAMED = {
    "study.match": "study.equal_by",
    "study.looks": "study.interim_looks",
    "study.helps": "study.min_helped",
    "objectives": "objective",
}
"""New names of settings, by the former names, which are read until maskwise 0.2. An arm, a phase or
a point of a search grid may have the same settings."""

ARMS = ("study", "arms")
OF_ARMS = (ARMS, ("study", "search", "own"))
"""Groups whose keys are the names of arms."""

GROUPS = (
    (("study", "arms"), 3),
    (("study", "search", "grid"), 3),
    (("study", "search", "own"), 4),
    (("phases",), 2),
)
"""Groups that change settings of trainings, with the length of the path to such a setting's name,
which includes the name of an arm or the number of a phase."""

FORMER_PHASE = "intermediate"

GONE = {
    "study.share": "use benchmarks/oracle_shares.py, which reads the folder of a finished study",
    "study.companions": "add arms of their own training.steps, such as "
    "study.arms.half='{training.steps: 350}'",
    "study.transfer": "set study.contrasts, and use benchmarks/own_and_other_tasks.py, which reads "
    "the folder of a finished study",
}
"""Settings of earlier versions, with advice, which an error gives until maskwise 0.2. Values that
changed nothing are dropped, because recipes that maskwise wrote state them."""


def with_new_names(settings: Mapping[Any, object], above: tuple[str, ...] = ()) -> Plain:
    """Return settings with the new names of those that have a former one, and say so once.

    Settings that are gone are refused, unless their value changed nothing.

    Args:
        settings: settings, nested or with dotted names.
        above: the names of the groups that these settings are in.

    Raises:
        MaskwiseError: a setting has both names, or is gone.

    >>> with_new_names({"study": {"equal_by": "targets"}, "study.seeds": 6})
    {'study': {'equal_by': 'targets'}, 'study.seeds': 6}
    """
    found: Plain = {}
    renamed: Plain = {}
    for key, value in settings.items():
        parts = _parts(str(key), value, above=above)
        path = (*above, *parts)
        setting = ".".join(_in_training(path))
        if setting in GONE:
            if value:
                raise _gone(setting, value)
            continue
        if path[0] in ("study", "phases"):
            value = _inner(value, path)
        new = _renamed(parts, above)
        if new is None:
            found[key] = value
            continue
        # Recipes that earlier versions wrote state both names of the objective, one with its
        # default.
        if setting == "objectives" and value == {}:
            continue
        if new in settings and settings[new] != "mlm":
            both = ".".join(path)
            raise MaskwiseError(
                f"{both} is the former name of {'.'.join((*above, new))}",
                got="both",
                do=f"remove {both}",
            )
        renamed[new] = value
    return found | renamed


def _inner(value: object, path: tuple[str, ...]) -> object:
    """Return a group of settings, or a list of groups, with new names."""
    if isinstance(value, Mapping):
        return with_new_names(value, path)
    of_training = _in_training(path)
    # The list of phases, or of the points of a grid.
    if isinstance(value, list | tuple) and of_training in ((), ("phases",)):
        place = (*path, "0") if of_training else path
        return [_inner(each, place) for each in value]
    return value


def _renamed(parts: Sequence[str], above: tuple[str, ...]) -> str | None:
    """Return the dotted name of a setting with its new name; None if it has no former name."""
    for place, part in enumerate(parts):
        former = ".".join(_in_training((*above, *parts[:place], part)))
        if former in RENAMED:
            _say_new_name(former)
            new = RENAMED[former].rpartition(".")[2]
            return ".".join((*parts[:place], new, *parts[place + 1 :]))
    return None


def _parts(
    name: str, value: object, *, above: tuple[str, ...] = (), arms: Collection[str] = ()
) -> list[str]:
    """Split a dotted name at its dots, except those of the name of an arm.

    Args:
        name: the dotted name of a setting.
        value: its value.
        above: the names of the groups that it is in.
        arms: the names of known arms.

    >>> _parts("study.arms.v1.5.masking.ratio", 0.3)
    ['study', 'arms', 'v1.5', 'masking', 'ratio']
    """
    if above in OF_ARMS:
        return [name]
    parts = name.split(".")
    for group in OF_ARMS:
        size = len(group) - len(above)
        if (*above, *parts[:size]) == group and len(parts) > size > 0:
            inner = parts[size:]
            length = _length_of_arm(inner, value, arms)
            return [*parts[:size], ".".join(inner[:length]), *inner[length:]]
    return parts


def arm_of(name: str, value: object, arms: Collection[str]) -> str | None:
    """Return the arm that a dotted name changes; None if it changes no arm, or all of them.

    >>> arm_of("study.arms.v1.5.masking.ratio", 0.3, ["v1", "v1.5"])
    'v1.5'
    """
    parts = _parts(name, value, arms=arms)
    return parts[len(ARMS)] if (*parts[: len(ARMS)],) == ARMS and len(parts) > len(ARMS) else None


def _length_of_arm(parts: Sequence[str], value: object, arms: Collection[str]) -> int:
    """Return how many of these parts of a dotted name are the name of an arm.

    The name ends before a section of a recipe: first that of a known arm, and then at the first
    section. Without a section, settings and nothing (null) are the value of a whole arm, so all
    parts are its name. Other values are those of a misspelt setting.
    """
    sections = {*ARM_PARTS, *RENAMED}
    known = [n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in arms]
    named = [place for place, part in enumerate(parts) if place and part in sections]
    for length in known:
        if length == len(parts) or length in named:
            return length
    if named:
        return named[0]
    # The settings of an arm begin with a section.
    keys = value if isinstance(value, Mapping) else ()
    of_arm = all(str(key).partition(".")[0] in sections for key in keys)
    if value in (None, "none") or (isinstance(value, Mapping) and (of_arm or not known)):
        return len(parts)
    return known[0] if known else 1


def _in_training(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the name of a setting without the arm, phase or grid that changes it.

    >>> _in_training(("study", "arms", "a", "phases", "1", "masking", "ratio"))
    ('masking', 'ratio')
    """
    for group, length in GROUPS:
        if path[: len(group)] == group and len(path) >= length:
            return _in_training(path[length:])
    return path


def placed(name: str, value: object, arms: Collection[str]) -> tuple[tuple[str, ...], str]:
    """Split a dotted name into the place of the arm, phase or grid that it changes, and a setting.

    >>> placed("study.arms.v1.5.phases.0.training.steps", 9, ["v1.5"])
    (('study', 'arms', 'v1.5', 'phases', '0'), 'training.steps')
    >>> placed("study.arms.a.intermediate.training.steps", 9, ["a"])
    (('study', 'arms', 'a', 'phases', '1'), 'training.steps')
    """
    path = (*_parts(name, value, arms=arms),)
    setting = _in_training(path)
    place = path[: len(path) - len(setting)]
    if setting[:1] == (FORMER_PHASE,) and len(setting) > 1:
        return (*place, "phases", "1"), ".".join(setting[1:])
    return place, ".".join(setting)


def _gone(name: str, value: object) -> MaskwiseError:
    if not value:
        # In a recipe, such a value is dropped; an override is written by hand.
        return MaskwiseError(f"{name} is gone", got="nothing", do="leave it out")
    return MaskwiseError(f"{name} is gone", got=value, do=GONE[name])


@cache
def _say_new_name(former: str) -> None:
    note_of_rename(former, RENAMED[former])


def put(
    settings: Plain,
    name: str | Sequence[str],
    value: object,
    *,
    clear: bool = True,
    former: bool = True,
) -> None:
    """Set ``a.b.c`` in nested dicts, or ``a.1.c`` in the second dict of a list.

    Args:
        settings: nested dicts, which are changed in place.
        name: the dotted name of the setting, or its parts.
        value: the new value.
        clear: whether an empty dict may replace a dict that contains settings.
        former: whether the former name of the second phase is translated. That of an arm stands for
            a phase of the recipe, so it is translated when the arm is applied to the recipe.

    Raises:
        MaskwiseError: a part of the name is a value and not a group of settings, or it should be an
            index of a list and is not.

    >>> settings = {"training": {"steps": 10}, "phases": [{}, {"masking.ratio": 0.3}]}
    >>> put(settings, "training.seed", 3); put(settings, "phases.1.masking.ratio", 0.1); settings
    {'training': {'steps': 10, 'seed': 3}, 'phases': [{}, {'masking': {'ratio': 0.1}}]}
    """
    parts = _parts(name, value, arms=arms_in(settings)) if isinstance(name, str) else [*name]
    if former:
        parts, value = _of_last_phase(settings, parts, value)
    dotted = ".".join(map(str, parts))
    group: Any = settings
    above: list[str] = []
    while len(parts) > 1:
        part, *parts = parts
        key = _key(group, part, dotted)
        inner = group[key] if isinstance(group, list) else group.get(key)
        # An arm, or a phase, which is in a list.
        is_layer = isinstance(group, list) or (*above,) == ARMS
        above.append(part)
        # Several objectives, by name, replace the name of a single one.
        if inner is None or (part == "objective" and isinstance(inner, str)):
            inner = {}
        # A pair of arms is the contrast of a gate.
        elif above == ["study", "gate"] and isinstance(inner, list | tuple):
            inner = {"contrast": inner}
        # The keys of an arm and of a phase may be dotted names.
        elif is_layer:
            inner = nested(inner, former=False) if isinstance(inner, Mapping) else inner
        if not isinstance(inner, dict | list):
            raise MaskwiseError(
                f"cannot set {dotted}", got=f"{part} is a value, not a group of settings"
            )
        # Change a copy, because YAML aliases put the same object in several places.
        group[key] = inner.copy()
        group = group[key]
        if is_layer and _put_in_objective(group, parts, value):
            return
        if part == "objective" and isinstance(group, dict):
            length = _length_of_objective(parts, group, value)
            parts = [".".join(parts[:length]), *parts[length:]]
    key = _key(group, parts[0], dotted)
    if not clear and value == {} and isinstance(group, dict) and isinstance(group.get(key), dict):
        return
    group[key] = value


def _length_of_objective(parts: Sequence[str], known: Collection[str], value: object) -> int:
    """Return how many of these parts of a dotted name are the name of an objective.

    >>> _length_of_objective(["mlm-0", "4", "masking", "ratio"], ["mlm"], 0.3)
    2
    >>> _length_of_objective(["mlm-0", "4"], ["mlm"], {})  # the settings of a new objective
    2
    >>> _length_of_objective(["cse(temperature=0", "05)"], ["mlm"], None)
    2
    >>> _length_of_objective(["mlm-0", "4", "weight"], ["mlm"], 2)  # unknown setting
    2
    """
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in known:
            return length
    settings = ("objective", "masking")
    named = (place for place, part in enumerate(parts) if place and part in settings)
    # An objective is a group of settings, a name with arguments, or nothing beyond its own name.
    # Other values are those of a setting.
    whole = len(parts) == 1 or value is None or isinstance(value, str | Mapping)
    return next(named, len(parts) if whole else len(parts) - 1)


def _put_in_objective(layer: Plain, parts: Sequence[str], value: object) -> bool:
    """Change a part of the objectives of earlier layers in the settings of an arm or a phase.

    The dotted name stays the key, as in ``{"objective.cse.masking.ratio": 0.3}``. Nested, it would
    be the only objective of the layer.

    Returns:
        Whether the layer was changed. If not, the parts name another setting, or the layer has
        objectives of its own, in which they are changed.
    """
    setting = _in_training((*parts,))
    if setting[:1] == (FORMER_PHASE,):
        setting = setting[1:]
    if setting[:1] != ("objective",):
        return False
    place = len(parts) - len(setting) + 1
    own: object = layer
    for part in parts[:place]:
        # The phases of an arm have layers of their own.
        if isinstance(own, list):
            return False
        own = own.get(part) if isinstance(own, Mapping) else None
    name = ".".join(parts)
    for key in [key for key in layer if key.startswith(f"{name}.")]:
        del layer[key]
    if len(setting) == 1 or own is not None:
        return False
    for length in range(place + 1, len(parts)):
        outer = layer.get(".".join(parts[:length]))
        if isinstance(outer, dict):
            changed = copy.deepcopy(outer)
            put(changed, parts[length:], value)
            layer[".".join(parts[:length])] = changed
            return True
    layer[name] = value
    return True


def _of_last_phase(settings: Plain, parts: list[str], value: object) -> tuple[list[str], object]:
    """Translate ``intermediate``, a former name of the second of two phases, in place.

    It is read until maskwise 0.2.
    """
    first, *rest = parts
    if first != FORMER_PHASE:
        return parts, value
    _say_phases()
    no_phase = not rest and value in (None, "none")
    phases = settings.get("phases")
    if phases in (None, "none"):
        if no_phase:
            return ["phases"], None
        settings["phases"] = [{}, {}]
    elif not isinstance(phases, list | tuple) or len(phases) != 2:
        raise MaskwiseError(
            f"{FORMER_PHASE} is the former name of the second of two phases",
            got=f"phases={phases}",
            do="set phases.N.…; the first phase is 0",
        )
    if no_phase:
        return ["phases"], None
    return ["phases", "1", *rest], value


def refuse_former_phase(given: Mapping[str, object]) -> None:
    """Raise an error if settings have phases, and the former name of the second one."""
    if any(str(key).partition(".")[0] == FORMER_PHASE for key in given):
        for key, value in given.items():
            if str(key).partition(".")[0] == "phases" and value not in (None, "none"):
                raise _both_names(FORMER_PHASE)


def once_each(settings: Mapping[str, object]) -> Plain:
    """Return the values of settings by dotted name, as ``specs.leaves``.

    Raises:
        MaskwiseError: a setting is written twice, as in ``{"a.b": 1, "a": {"b": 2}}``.
    """
    found: Plain = {}
    groups: set[str] = set()
    for name, value in leaves(settings):
        parts = name.split(".")
        above = {".".join(parts[:place]) for place in range(1, len(parts))}
        # An empty dict changes nothing in a group that has settings.
        twice = name in found or (name in groups and value != {})
        if twice or any(found.get(group, {}) != {} for group in above):
            own = [*above, name]
            values = [
                before for key, before in found.items() if key in own or key.startswith(f"{name}.")
            ]
            raise MaskwiseError(
                f"{name} is written twice",
                got=" and ".join(map(str, [*values, value])),
                do="write it once",
            )
        found[name] = value
        groups |= above
    return found


def _both_names(former: str) -> MaskwiseError:
    return MaskwiseError(
        "a recipe cannot have both phases and their former name",
        got=former,
        do="move its settings to phases",
    )


def with_phases(settings: Plain) -> Plain:
    """Translate ``intermediate`` in settings that extend no others."""
    former = [key for key in settings if str(key).partition(".")[0] == FORMER_PHASE]
    found = {key: value for key, value in settings.items() if key not in former}
    for key in former:
        # Recipes that maskwise wrote state that there is no such phase.
        if settings[key] is None:
            continue
        if found.get("phases") is not None and "phases" in settings:
            raise _both_names(key)
        put(found, key, settings[key])
    return found


@cache
def _say_phases() -> None:
    note_of_rename(FORMER_PHASE, "phases: [{}, …], and its settings phases.1.…")


def _key(group: Plain | list[object], part: str, dotted: str) -> Any:
    """Return a part of a dotted name as a key of a dict or an index of a list."""
    if isinstance(group, dict):
        return part
    if not part.isdecimal() or int(part) >= len(group):
        raise MaskwiseError(
            f"cannot set {dotted}: the list has no such entry (the first entry is 0)",
            got=part,
            allowed=list(range(len(group))),
        )
    return int(part)


@contextmanager
def blamed(place: str) -> Iterator[None]:
    """Prefix errors with the name of the setting that causes them."""
    try:
        yield
    except MaskwiseError as error:
        raise MaskwiseError(f"{place}: {error}") from None


def require_changeable(
    key: str, parts: Sequence[str], *, who: str, settings: type[BaseModel]
) -> None:
    """Raise an error if a setting is outside the sections ``parts``, or is the training seed.

    The training seed comes from ``study.seeds``, for every run. ``who`` is named in the error.

    Args:
        settings: the class of a whole recipe.
    """
    if key.split(".")[0] in parts and key != "training.seed":
        return
    fields = settings.model_fields
    do = None
    if key.split(".")[0] not in fields:
        known = [name for name in _names(settings) if name.split(".")[0] in parts]
        last = key.rpartition(".")[2]
        do = did_you_mean(key, [name for name in known if name.rpartition(".")[2] == last] or known)
    allowed = ", ".join(part for part in parts if part in fields)
    raise MaskwiseError(f"{who} cannot change {key}", allowed=allowed, do=do)


def with_changes(settings: Plain, changes: Mapping[str, object], *, lenient: bool = False) -> Plain:
    """Return settings with the changes of an arm or a phase; those given are not changed.

    Args:
        settings: nested settings.
        changes: values keyed by dotted name, or in groups.
        lenient: whether changes that cannot be made are left out, because the caller does not
            report what is wrong in them.

    Raises:
        MaskwiseError: as for ``put``.

    >>> with_changes({"masking": {"ratio": 0.15}}, {"masking.policy": "span"})
    {'masking': {'ratio': 0.15, 'policy': 'span'}}
    """
    # The groups below are copied where they are changed.
    changed = {**settings}
    for key, value in leaves(changes):
        try:
            put(changed, key, value, clear=False)
        except MaskwiseError:
            if not lenient:
                raise
    return changed


def nested(tree: Mapping[str, object], *, former: bool = True) -> Plain:
    """Convert settings with dotted keys to nested dicts.

    Args:
        former: see ``put``.

    Raises:
        MaskwiseError: a setting is written twice.

    >>> nested({"masking.ratio": 0.3, "masking": {"policy": "span"}})
    {'masking': {'ratio': 0.3, 'policy': 'span'}}
    """
    settings: Plain = {}
    refuse_former_phase(tree)
    for key, value in once_each(tree).items():
        if not _put_in_objective(settings, key.split("."), value):
            put(settings, key, value, clear=False, former=former)
    return settings


def arms_in(settings: Plain) -> Plain:
    """Return the arms in nested settings; an empty dict if the settings are malformed."""
    study = settings.get("study")
    if isinstance(study, dict) and isinstance(study.get("arms"), dict):
        return study["arms"]
    return {}


def _with_whole_arms(
    tree: Mapping[str, object], arms: Collection[str], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield settings as pairs (parts of the name, value), in which the settings of an arm, if they
    are in a dict, are a single value.
    """
    for key, value in tree.items():
        # The name of an arm that is a number will be refused.
        parts = [key] if above == ARMS else _parts(str(key), value, above=above, arms=arms)
        path = (*above, *parts)
        is_value = path[:-1] == ARMS or _in_training(path) in (("corpus", "source"), ("objective",))
        if isinstance(value, dict) and value and not is_value:
            yield from _with_whole_arms(value, arms, path)
        else:
            yield path, value


def merged(
    base: Plain, own: Plain, *, before: Callable[[Plain, Plain], None] = lambda *_: None
) -> Plain:
    """Merge the settings of a recipe (``own``) into those of the recipe it extends (``base``).

    If ``own`` has arms, the arms of ``base`` and the settings that name these arms are dropped.

    Args:
        before: called before the settings of ``own`` are applied, with the settings so far and with
            those of ``own``, keyed by dotted name.

    Raises:
        MaskwiseError: ``own`` has a setting twice.
    """
    refuse_former_phase(own)
    changes = once_each(own)
    written = [*_with_whole_arms(own, arms_in(own))]
    # Two arms of the same name are not merged, because nobody wrote the resulting arm.
    has_arms = any(path[:2] == ARMS and len(path) > len(ARMS) for path, _ in written)
    dropped = ("arms", *NAMES_ARMS) if has_arms else ()
    settings: Plain = {}
    for path, value in _with_whole_arms(base, arms_in(base)):
        if path[0] != "study" or len(path) < 2 or path[1] not in dropped:
            put(settings, path, value, clear=False)
    before(settings, changes)
    for path, value in written:
        put(settings, path, value, clear=False)
    return settings


def parse_override(text: str) -> tuple[str, object]:
    """Split ``key=value`` into key and value.

    Raises:
        MaskwiseError: the text has no equals sign or no key, or the setting is gone.

    >>> parse_override("training.learning_rate=1e-3")
    ('training.learning_rate', 0.001)
    """
    if not isinstance(text, str):
        raise MaskwiseError(
            "an override is a text of the form key=value",
            got=repr(text),
            do='for example, "training.steps=500"',
        )
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise MaskwiseError(
            "an override has the form key=value", got=text, do="for example, training.steps=500"
        )
    with blamed(f"override {key.strip()}"):
        parsed = parse_value(value)
    if key.strip() in GONE:
        raise _gone(key.strip(), parsed)
    # The former way to say that there is only one.
    if parsed == {} and key.strip().split(".")[-1] == "objectives":
        parsed = "mlm"
    [named] = with_new_names({key.strip(): parsed}).items()
    return named


def parse_overrides(texts: Iterable[str], *, section: str = "") -> Plain:
    """Return the values of ``key=value`` overrides, keyed by the dotted names of settings.

    Of two values of a setting, the last one counts, so that overrides can be added to a list.

    Args:
        texts: the overrides.
        section: a section of a recipe, whose name may stand before a setting or be left out.

    Raises:
        MaskwiseError: as for ``parse_override``.

    >>> parse_overrides(["training.steps=500", "masking.ratio=0.3"])
    {'training.steps': 500, 'masking.ratio': 0.3}
    """
    found: Plain = {}
    for key, value in map(parse_override, texts):
        name = key.removeprefix(f"{section}.")
        # The order of settings is that of the values which count.
        found.pop(name, None)
        found[name] = value
    return found


STARTS = ("architecture", "pretrained")
"""Settings of ``model`` that name a model."""


def each_setting(changes: Mapping[str, object], whole: type[BaseModel]) -> Plain:
    """Return changes in which a group of settings, such as ``training={steps: 5}``, is one change
    for each of its settings, so that its other settings keep their values.

    A dict that is no group, such as the arms or the objectives by name, stays one value, and so
    does a ``model`` with an architecture or a start.

    Args:
        changes: values keyed by dotted name.
        whole: the class of a whole recipe.
    """
    found: Plain = {}
    for key, value in changes.items():
        path = _in_training(tuple(_parts(key, value)))
        inner: Plain = {key: value}
        # The settings of one model mean nothing for another, so a new model replaces the group.
        another = path == ("model",) and isinstance(value, Mapping) and {*STARTS} & {*value}
        if isinstance(value, Mapping) and value and path and group_at(whole, path) and not another:
            given = {f"{key}.{name}": each for name, each in value.items()}
            inner = each_setting(given, whole)
        for name, each in inner.items():
            found.pop(name, None)
            found[name] = each
    return found


def parse_value(text: str) -> object:
    """Parse the value of an override as YAML; return it unchanged if it is not valid YAML.

    Raises:
        MaskwiseError: the text is in brackets, as a list or as settings, and is not valid YAML; or
            as for ``read_yaml``.
    """
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        given = text.strip()
        in_brackets = given[:1] + given[-1:] in ("{}", "[]")
        # A path may begin with the seed of the run.
        if not in_brackets or given.startswith("{seed}"):
            return text
        problem = getattr(error, "problem", None) or first_line(error)
        note = getattr(error, "note", None)
        raise MaskwiseError(
            f"cannot read {shortened(given, 100)} as YAML",
            got=problem,
            do=note or "put texts with brackets, commas or colons in quotes",
        ) from None


class Yaml(yaml.SafeLoader):
    """A safe loader that reads numbers and booleans as in YAML 1.2.

    1e-3 is a number, and only true and false are booleans. PyYAML follows YAML 1.1, which reads
    ``precision: no`` or an arm called ``on`` as a boolean, ``010`` as 8, ``1:30`` as 90, and
    ``2024-01-01`` as a date: here, these are texts. For settings of type bool, pydantic also
    accepts the texts yes, no, on and off; for numbers, ``010`` is 10.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Raise an error if a key occurs twice; PyYAML would silently keep only the last value."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            # Only a scalar can be a valid key, and the text of a collection may be very long.
            if not isinstance(key, yaml.ScalarNode):
                continue
            # The number 1 and the text "1" are different keys.
            name = (key.tag, key.value)
            if name in lines:
                problem = f"the key {key.value!r} is in line {lines[name]} already"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[name] = key.start_mark.line + 1
        if node.flow_style:
            self._refuse_cut_in(node.value)
        return node

    def _refuse_cut_in(self, pairs: Sequence[tuple[yaml.Node, yaml.Node]]) -> None:
        """Raise an error if a mapping has a text such as linear(0.45, 0.15) without quotes."""
        parts: list[yaml.Node | None] = []
        for key, value in pairs:
            # The part behind a comma is a key without a value. Any other key ends the text.
            is_part = isinstance(value, yaml.ScalarNode) and value.value == ""
            parts += [key] if is_part else [None, value]
        _refuse_cut(parts)

    def compose_sequence_node(self, anchor: str | None) -> yaml.SequenceNode:
        """Raise an error if a list has a text such as linear(0.45, 0.15) without quotes."""
        node = super().compose_sequence_node(anchor)
        if node.flow_style:
            _refuse_cut(node.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """Return the value of a node, or raise an error that states the line."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= MOST_NUMBER:
                raise ValueError
        # PyYAML does not catch the errors of tags such as !!timestamp and !!int.
        except (ValueError, LookupError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            problem = f"cannot read {str(node.value)[:40]!r} as {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        return value


_CALL = re.compile(r"[A-Za-z][\w.-]*\(\S")


def _refuse_cut(parts: Sequence[yaml.Node | None]) -> None:
    """Raise an error if YAML has cut a text without quotes at the commas in its parentheses."""
    for place, node in enumerate(parts):
        if node is None or not _is_plain(node) or not _CALL.match(node.value):
            continue
        text = node.value
        for after in parts[place + 1 :]:
            if text.count("(") <= text.count(")") or after is None or not _is_plain(after):
                break
            text = f"{text}, {after.value}"
            if text.count("(") == text.count(")"):
                raise yaml.MarkedYAMLError(
                    problem=f"a comma ends the text {node.value}",
                    problem_mark=node.start_mark,
                    note=f'put it in quotes: "{text}"',
                )


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style


# A resolver decides the type of a plain value by its first character and a pattern. Leave out those
# of YAML 1.1 for booleans, numbers and dates.
_OF_1_1 = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp"))
for first_character, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
    others = [resolver for resolver in resolvers if resolver[0] not in _OF_1_1]
    Yaml.yaml_implicit_resolvers[first_character] = others
for kind, pattern, characters in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
):
    Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), list(characters))


class YamlWriter(yaml.SafeDumper):
    """A safe dumper that puts texts in quotes which ``Yaml``, or YAML 1.1, reads as other values,
    such as 1e-4 and no.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [*Yaml.yaml_implicit_resolvers.get(first, ()), *resolvers]
        for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def write_yaml(settings: Mapping[str, object]) -> str:
    """Write plain values as YAML that ``read_yaml`` reads as the same values.

    >>> write_yaml({"1e-4": "no"})
    "'1e-4': 'no'\\n"
    """
    return yaml.dump(settings, Dumper=YamlWriter, sort_keys=False, allow_unicode=True)


def plain_value(value: object, place: str, levels: int = MOST_LEVELS) -> Any:
    """Return a value of a recipe in Python's own types: NumPy's numbers and arrays become numbers
    and lists, and paths become texts.

    Args:
        value: the value.
        place: its dotted name, for the error message.
        levels: how many levels of groups and lists may follow.

    Raises:
        MaskwiseError: a value has another type, or is nested too deeply.

    >>> from pathlib import PurePosixPath
    >>> plain_value({"corpus": {"source": PurePosixPath("a.txt")}, "tasks": ()}, "")
    {'corpus': {'source': 'a.txt'}, 'tasks': []}
    """
    if levels < 0:
        raise MaskwiseError(
            "the settings are nested too deeply", do="use fewer levels of groups or lists"
        )
    if value is None or isinstance(value, bool | BaseModel):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, str):
        return "".join(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        found: dict[Any, Any] = {}
        for key, each in value.items():
            name = key
            if isinstance(key, str | PurePath):
                name = plain_value(key, place)
            found[name] = plain_value(each, f"{place}.{name}" if place else str(name), levels - 1)
        return found
    if isinstance(value, list | tuple | range):
        return [plain_value(each, place, levels - 1) for each in value]
    # Numbers and arrays of NumPy and PyTorch.
    if callable(as_list := getattr(value, "tolist", None)) and not isinstance(value, type):
        return plain_value(as_list(), place, levels - 1)
    if isinstance(value, Real | Decimal):
        return float(value)
    raise MaskwiseError(
        place or "a recipe",
        got=f"a value of the type {type(value).__name__}",
        allowed="texts, numbers, booleans, None, lists and dicts",
    )


def read_yaml(text: str) -> object:
    """Read plain values from YAML.

    Raises:
        yaml.YAMLError: the text is not YAML.
        MaskwiseError: the text is nested too deeply, or has more than ``MOST_VALUES`` values.
    """
    return copy.deepcopy(_values(text))


# A command reads the same recipe and those that it extends several times, with other overrides.
@lru_cache(maxsize=64)
def _values(text: str) -> object:
    loader = Yaml(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # Count the values before they are constructed. Constructing copies the values of merge keys
        # (<<), so a malicious text would fill the memory.
        values, levels = _size(node, {})
        if levels > MOST_LEVELS:
            raise RecursionError
        if values > MOST_VALUES:
            raise MaskwiseError(
                "the settings contain too many values", allowed=f"at most {MOST_VALUES:,}"
            )
        return loader.construct_document(node)
    except RecursionError:
        raise MaskwiseError(
            "the settings are nested too deeply", do="use fewer levels of groups or lists"
        ) from None


def _size(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values of a node and of its levels, with aliases expanded.

    ``known`` contains the sizes of finished nodes.
    """
    if node not in known:
        inner: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = chain.from_iterable(node.value)
        values = levels = 0
        # A node that contains itself is never finished, so its size is never stored. The recursion
        # then ends in a RecursionError, which ``read_yaml`` reports.
        for each in inner:
            inner_values, inner_levels = _size(each, known)
            values += inner_values
            levels = max(levels, inner_levels)
        known[node] = (values + 1, levels + 1)
    return known[node]


ALLOWED = {
    "int_parsing_size": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "settings of the form {{name: value}}",
    "greater_than": "> {gt}",
    "greater_than_equal": "≥ {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "≤ {le}",
    "too_long": "{max_length} values",
    "too_short": "≥ {min_length} values",
}
"""Phrases for allowed values, keyed by pydantic's error type. Pydantic gives the fields' values."""

OFF_WORDS = ("none", "no", "off", "false", "")
"""Values with which users turn settings off."""

# If a field accepts several types, pydantic reports an error for each type, and appends the name of
# the type to the location of the error.
_ALTERNATIVE = re.compile(r"(int|float|str|bool|constrained-\w+|(function|tuple|list|dict).*\])$")


def explain(error: ValidationError, settings: type[BaseModel], *, origin: str) -> MaskwiseError:
    """Return a one-line error with the setting, its value and the allowed values.

    Args:
        error: pydantic's error.
        settings: the settings class that pydantic validated.
        origin: the source of the settings, such as a file or an arm; "" to name no source.
    """
    # Only one error is reported. An unknown name comes first, because a misspelt name also causes
    # an error about the setting that is then missing.
    errors = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    first = errors[0]
    path = _path(first)
    if first["type"] == "extra_forbidden":
        *above, name = first["loc"]
        group = _path({**first, "loc": tuple(above)})
        what = "setting"
        if group:
            what = f"setting of {'.'.join(group)}"
        if origin:
            what = f"{what} in {origin}:"
        known = [*_group(settings, group).model_fields]
        section, _, rest = str(name).partition(".")
        places = [*_places(settings, str(name).rpartition(".")[2])]
        if group or not places:
            return unknown_name(what, str(name), known)
        meant = f"did you mean {' or '.join(places)}?"
        if rest and section in known:
            meant = f"at the top level, write {section}: {{{rest}: {first.get('input')}}}"
        allowed = ", ".join(sorted(known))
        return MaskwiseError(f"unknown {what} {str(name)!r}", allowed=allowed, do=meant)
    # If a field accepts several types, there is an error for each type. The error with the longest
    # path is the mistake, because the value matched this type down to there.
    below = [detail for detail in errors if _path(detail)[: len(path)] == path]
    for detail in below:
        # The value has an allowed type, and a validator of this package refused it.
        if detail["type"] == "value_error":
            return _refused(detail, origin)
    path = max(map(_path, below), key=len)
    place = _place(origin, path)
    alternatives = [detail for detail in below if _path(detail) == path]
    first = alternatives[0]
    if path[-1] == "[key]":
        return MaskwiseError(
            f"{_place(origin, path[:-2])}: a name must be a text",
            got=first.get("input"),
            do=f"write it in quotes: '{first.get('input')}'",
        )
    if first["type"] == "missing":
        return MaskwiseError(f"{place} is missing", do="add this setting")
    value = first.get("input")
    got = "nothing"
    if value is not None:
        got = repr(value)
    allowed = " or ".join(dict.fromkeys(_allowed(detail, settings) for detail in alternatives))
    do = None
    if value is None:
        do = _instead_of_nothing(settings, path)
    elif first["type"] == "literal_error":
        do = did_you_mean(value, allowed.split(", "))
    field = _group(settings, path[:-1]).model_fields.get(path[-1])
    if field is not None and turns_off(field) and str(value).lower() in OFF_WORDS:
        do = "; ".join(filter(None, (OFF, do)))
    return MaskwiseError(place, got=got, allowed=allowed, do=do)


def _instead_of_nothing(settings: type[BaseModel], path: Sequence[str]) -> str | None:
    """Say how to get the default of a setting, which null does not mean."""
    *above, name = path
    field = _group(settings, above).model_fields.get(name)
    if field is None:
        return None
    if field.is_required():
        group = _group(settings, above[:-1]).model_fields.get(above[-1]) if above else None
        no_group = group is not None and not group.is_required() and group.default is None
        return f"leave out all of {'.'.join(above)}, or set it to null" if no_group else None
    default = field.get_default(call_default_factory=True)
    # In a recipe that extends another, {} as arms keeps those of the other.
    if isinstance(default, BaseModel) or [*path] == ["study", "arms"]:
        return "leave it out"
    plain = TypeAdapter(type(default)).dump_json(default).decode()
    return f"leave it out, or set the default, {'.'.join(path)}={plain}"


def _refused(error: ErrorDetails, origin: str) -> MaskwiseError:
    """Return the error of a validator in this package, with the value if its message lacks it."""
    what = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    got = None
    if not isinstance(value, dict | BaseModel) and "got " not in what and repr(value) not in what:
        got = repr(value)
    place = _place(origin, _path(error))
    if place:
        what = f"{place}: {what}"
    return MaskwiseError(what, got=got)


def _place(origin: str, path: Sequence[str]) -> str:
    """Return "ORIGIN: SETTING", or one of them if the other is empty."""
    return ": ".join(filter(None, (origin, ".".join(path))))


def _path(error: ErrorDetails) -> list[str]:
    return [part for part in map(str, error["loc"]) if not _ALTERNATIVE.match(part)]


def _allowed(error: ErrorDetails, settings: type[BaseModel]) -> str:
    """Return a phrase for the allowed values."""
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        return ", ".join(re.findall(r"'([^']*)'", context["expected"]))
    if error["type"] == "model_type":
        names = [*_group(settings, _path(error)).model_fields]
        return f"settings such as {', '.join(names[:3])}"
    return ALLOWED.get(error["type"], error["msg"]).format(**context)


def group_at(settings: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """Return the class of a group of settings; None for other settings, such as a dict of arms.

    >>> from maskwise.recipe import Recipe
    >>> group_at(Recipe, ["study", "gate"]).__name__, group_at(Recipe, ["study", "arms"])
    ('GateSettings', None)
    """
    found: type[BaseModel] | None = settings
    for part in path:
        field = found.model_fields.get(part) if found else None
        if field is None:
            return None
        models = (kind for kind, within in kinds_of(field.annotation) if not within)
        found = next(filter(_is_group, models), None)
    return found


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def groups_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the classes of settings that the type of a setting contains.

    >>> class Settings(BaseModel): pass
    >>> [kind.__name__ for kind in groups_in(str | dict[str, Settings] | None)]
    ['Settings']
    """
    yield from (kind for kind, _ in kinds_of(annotation) if _is_group(kind))


def _places(settings: type[BaseModel], name: str) -> Iterator[str]:
    """Yield the dotted names of the settings that have this name in some group."""
    for dotted in _names(settings):
        if dotted.rpartition(".")[2] == name:
            yield dotted


def _names(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings."""
    for field, info in settings.model_fields.items():
        yield prefix + field
        for kind in groups_in(info.annotation):
            yield from _names(kind, f"{prefix}{field}.")


def _group(settings: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """Return the settings class of the group at a path.

    Parts of the path that are not fields, such as the names of arms, are skipped.
    """
    for part in path:
        if part in settings.model_fields:
            settings = next(groups_in(settings.model_fields[part].annotation), settings)
    return settings
