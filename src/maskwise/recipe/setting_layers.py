"""Layers of settings: a file, the recipe that it extends, overrides, an arm, a point, a phase.

A layer is a flat dict: each setting that somebody writes is one entry, with its dotted name as the
key. ``applied`` puts a later layer on an earlier one; nothing else merges settings. Five values are
not flat, because who writes one of them replaces it as a whole: several objectives, a mix of
sources, an arm, a search grid (both are layers themselves) and the list of phases (of layers).
A dotted name changes a part of them. Names that users choose have no dots.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from maskwise.base.constants import is_rate
from maskwise.base.errors import MaskwiseError, did_you_mean, require_known
from maskwise.base.specs import SINGLE_VALUES, leaves
from maskwise.recipe.yamls import Plain, parse_value

ARM_PARTS = (
    "corpus",
    "tokenizer",
    "model",
    "masking",
    "objective",
    "sampler",
    "training",
    "phases",
    "finetune",
    "learning",
)
"""Sections of a recipe that an arm may change. Other sections are the same for all arms."""

PHASE_PARTS = ("corpus", "masking", "objective", "sampler", "training")
"""Sections of a recipe that a phase may change. All phases share a model and a tokenizer."""

NAMES_ARMS = ("baseline", "contrasts", "gate", "outcome")
"""Study settings that name arms."""

ALTERNATIVES = (
    ("finetune.steps", "finetune.epochs"),
    ("training.patience", "training.lengths"),
)
"""Pairs of settings of which a training uses one. Who gives one of them takes back the other."""

ARMS = "study.arms."
"""What stands before the names of arms."""

LAYERS = re.compile(r"study\.(arms|search\.own)\.[^.]+|study\.search\.grid")
"""Settings that are layers themselves."""

GRID = "study.search.grid"
"""The search grid, of which a dotted name in a file is a part, until ``applied`` finds the rest."""

PHASE = re.compile(r"(^|\.)phases\.\d+$")
"""The name of a phase."""

PLACE = re.compile(rf"((?:{LAYERS.pattern})\.)?(phases\.\d+\.)?")
"""What stands before the name of a setting of an arm, a grid or a phase."""


def layer(tree: object) -> Plain:
    """Return nested settings, whose keys may be dotted names, as a layer; None has no settings.

    Raises:
        MaskwiseError: a setting is written twice, or these are no settings.

    >>> layer({"masking": {"ratio": 0.3}, "study.arms.a": {"masking": {"policy": "span"}}})
    {'masking.ratio': 0.3, 'study.arms.a': {'masking.policy': 'span'}}
    """
    if not isinstance(tree, Mapping | None):
        raise MaskwiseError(
            "a value in place of settings", got=tree, allowed="settings of the form {name: value}"
        )
    found: Plain = {}
    groups: set[str] = set()
    for name, value in _written(tree or {}):
        _require_once(name, value, found, groups)
        groups.update(before for before, _ in _splits(name))
        if name.startswith(f"{GRID}.") and GRID not in found:
            # A part of a grid, which may be that of another recipe.
            found[name] = value
        else:
            put(found, name, value, clear=False)
    return found


def _written(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield nested settings as pairs (dotted name, value), in which arms and grids are layers."""
    for name, value in leaves(tree, whole=_is_whole):
        if LAYERS.fullmatch(name) and isinstance(value, Mapping):
            with blamed(name):
                value = layer(value)
        yield name, value


def _is_whole(name: str) -> bool:
    """Whether a dict of this name is one value."""
    return bool(LAYERS.fullmatch(name) or SINGLE_VALUES.search(name))


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield the groups that a dotted name is in, each with the rest of the name.

    >>> [*_splits("study.gate.contrast")]
    [('study', 'gate.contrast'), ('study.gate', 'contrast')]
    """
    for dot in re.finditer(r"\.", name):
        yield name[: dot.start()], name[dot.end() :]


def _require_once(name: str, value: Any, found: Plain, groups: Collection[str]) -> None:
    """Raise an error if a layer has a setting already, or another value for a group of it."""
    # A group without settings may stand beside its settings.
    if value == {} and (name in groups or found.get(name, {}) == {}):
        return
    before = {
        each: found[each]
        for each in (name, *(group for group, _ in _splits(name)))
        if each in found
    }
    for group, rest in _splits(name):
        if group in found and LAYERS.fullmatch(group):
            before = {name: found[group][rest]} if rest in found[group] else {}
    if name in groups:
        before |= {key: each for key, each in found.items() if key.startswith(f"{name}.")}
    written = {key: each for key, each in before.items() if each != {}}
    if written:
        # A group may stand in one place, and a part of it in another.
        whole = min(name, *written, key=len)
        raise MaskwiseError(
            f"{name} is written twice",
            got=" and ".join(map(str, [*written.values(), value])),
            do=f"write {whole} once",
        )


def put(settings: Plain, name: str, value: Any, *, clear: bool = True) -> None:
    """Set a dotted name in a layer, in place.

    Args:
        settings: the layer. Values of it that are changed are copied.
        name: the dotted name, which may go into an arm, a phase or one of several objectives.
        value: the new value.
        clear: whether {} replaces a group that has settings.

    Raises:
        MaskwiseError: a part of the name is a value and not a group of settings, or it should be
            the number of a phase and is not.

    >>> settings = {"training.steps": 10, "phases": [{}, {"masking.ratio": 0.3}]}
    >>> put(settings, "phases.1.masking.ratio", 0.1); settings
    {'training.steps': 10, 'phases': [{}, {'masking.ratio': 0.1}]}
    """
    # A gate may be written as its contrast alone.
    if name.startswith("study.gate.") and isinstance(settings.get("study.gate"), list | tuple):
        settings["study.gate.contrast"] = settings.pop("study.gate")
    for group, rest in _splits(name):
        whole = _with_part(settings, group, rest, value, clear=clear)
        if whole is not None:
            settings[group] = whole
            return
        # Nobody has given the group a value, or one without settings, which now has some.
        settings.pop(group, None)
    below = [key for key in settings if key.startswith(f"{name}.")]
    if value == {} and below and not clear:
        return
    for key in below:
        del settings[key]
    settings[name] = value


def _with_part(settings: Plain, group: str, rest: str, value: Any, *, clear: bool) -> Any:
    """Return a group of a layer that is one value, such as an arm, with another value in it.

    Args:
        settings: the layer.
        group: the name of the group.
        rest: the dotted name within the group.
        value: the new value.
        clear: see ``put``.

    Returns:
        The group; None if its settings are entries of the layer, or if it has none.

    Raises:
        MaskwiseError: the group is a value that has no parts.
    """
    before = settings.get(group)
    if LAYERS.fullmatch(group) and isinstance(before or {}, Mapping):
        own = dict(before or {})
        put(own, rest, value, clear=clear)
        return own
    if isinstance(before, list | tuple):
        return _with_item(before, rest, value, f"{group}.{rest}")
    # Several objectives replace the name of one, but a mix does not replace a single source.
    has_entries = isinstance(before, Mapping) or group.endswith("objective")
    if group in settings and has_entries and SINGLE_VALUES.search(group):
        return _with_entry(before, rest, value)
    if before is None or before == {}:
        return None
    raise _no_group(f"{group}.{rest}", group)


def _with_entry(entries: Any, name: str, value: Any) -> Plain:
    """Return several objectives, or a mix of sources, with another value in one of them.

    >>> _with_entry({"mlm": None, "cse": "cse(temperature=0.1)"}, "cse.masking.ratio", 0.3)
    {'mlm': None, 'cse': {'objective': 'cse(temperature=0.1)', 'masking': {'ratio': 0.3}}}
    """
    # A name in place of a dict is that of a single objective, which others replace.
    found = dict(entries) if isinstance(entries, Mapping) else {}
    key, _, setting = name.partition(".")
    if not setting:
        return found | {key: value}
    entry = found.get(key)
    if not isinstance(entry, Mapping):
        entry = {"objective": entry} if entry else {}
    own = layer(entry)
    put(own, setting, value)
    return found | {key: nest(own)}


def _with_item(items: Sequence[Any], rest: str, value: Any, name: str) -> list[Any]:
    """Return a list, such as the phases, with another value in one of its items."""
    number, _, setting = rest.partition(".")
    # Python refuses to read a text of thousands of digits as a number.
    if number not in map(str, range(len(items))):
        raise MaskwiseError(
            f"cannot set {name}: the list has no such entry (the first entry is 0)",
            got=number,
            allowed=[*range(len(items))],
        )
    found = [*items]
    before = found[int(number)]
    if setting and isinstance(before, list | tuple):
        value = _with_item(before, setting, value, name)
    elif setting and not isinstance(before or {}, Mapping):
        raise _no_group(name, number)
    elif setting:
        own = layer(before or {})
        put(own, setting, value)
        value = own
    found[int(number)] = value
    return found


def _no_group(name: str, group: str) -> MaskwiseError:
    """Return the error for a dotted name of which a part is the name of a value."""
    last = group.rpartition(".")[2]
    return MaskwiseError(f"cannot set {name}", got=f"{last} is a value, not a group of settings")


def nest(settings: Mapping[str, Any]) -> Plain:
    """Return a layer as nested settings. The layers in it stay flat.

    >>> nest({"training.steps": 9, "study.arms.a": {"masking.ratio": 0.3}})
    {'training': {'steps': 9}, 'study': {'arms': {'a': {'masking.ratio': 0.3}}}}
    """
    found: Plain = {}
    for name, value in settings.items():
        *above, last = name.split(".")
        group = found
        for part in above:
            group = group.setdefault(part, {})
        group[last] = value
    return found


def applied(settings: Plain, changes: Mapping[str, Any], *, clear: bool = False) -> Plain:
    """Return a layer with the changes of a later one.

    Settings of an earlier model that a later one does not have are left out, and so are the
    alternatives of settings that ``changes`` give.

    Args:
        settings: the earlier layer.
        changes: the later layer.
        clear: see ``put``.

    Raises:
        MaskwiseError: as for ``put``.

    >>> applied({"finetune.steps": 300, "masking.ratio": 0.15}, {"finetune.epochs": 3})
    {'finetune.steps': None, 'masking.ratio': 0.15, 'finetune.epochs': 3}
    """
    found = _of_the_model(settings, changes)
    for name, value in changes.items():
        put(found, name, value, clear=clear)
    for name, value in changes.items():
        other = _alternative(name)
        if other is not None and other not in changes and value is not None:
            put(found, other, None)
    return found


def _alternative(name: str) -> str | None:
    """Return the setting that another one replaces, at the same place.

    >>> _alternative("phases.1.training.patience")
    'phases.1.training.lengths'
    """
    place, setting = _divided(name)
    for pair in ALTERNATIVES:
        if setting in pair:
            return place + pair[1 - pair.index(setting)]
    return None


def _of_the_model(settings: Plain, changes: Mapping[str, Any]) -> Plain:
    """Return a layer without those settings of its model that the model of ``changes`` lacks."""
    found = dict(settings)
    own = [name for name in found if name.startswith("model.settings.")]
    names = [name.split(".")[2] for name in own]
    before = found.get("model.architecture", "modernbert")
    architecture = changes.get("model.architecture", before)
    if changes.get("model.pretrained"):
        if "model.architecture" not in changes:
            found.pop("model.architecture", None)
        # Of a checkpoint, only rates of dropout can be other ones.
        known = {name for name in names if is_rate(name)}
    elif architecture != before and isinstance(architecture, str) and own:
        # This import takes a second.
        from maskwise.models.loading import known_fields

        known = {*known_fields(architecture, names)}
    else:
        return found
    for name, field in zip(own, names):
        if field not in known:
            del found[name]
    return found


def with_parts(own: Plain) -> Plain:
    """Return the layer of a recipe that extends no other, whose grid has all its parts."""
    whole: Plain = {}
    for name, value in own.items():
        put(whole, name, value, clear=False)
    return whole


def on_base(base: Plain, own: Plain) -> Plain:
    """Return the layer of a recipe on that of the recipe that it extends.

    If it has arms, those of the other, and the settings that name them, are left out: two arms of
    the same name are not merged, because nobody wrote the resulting arm.
    """
    if any(name.startswith(ARMS) for name in own):
        base = _without_arms(base, ("arms", "search", *NAMES_ARMS))
    return applied(base, own)


def _without_arms(settings: Plain, gone: Iterable[str]) -> Plain:
    """Return a layer without some of the settings of its study."""
    groups = tuple(f"study.{name}." for name in gone)
    return {name: each for name, each in settings.items() if not f"{name}.".startswith(groups)}


def arms_in(settings: Plain) -> Plain:
    """Return the arms in a layer, by name."""
    return {
        name.removeprefix(ARMS): each for name, each in settings.items() if name.startswith(ARMS)
    }


# Overrides
# ----------------------------------------------------------------------------


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` into key and value.

    Raises:
        MaskwiseError: this is no text with an equals sign and a key before it.

    >>> parse_override("training.learning_rate=1e-3")
    ('training.learning_rate', 0.001)
    """
    key, sign, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not sign or not key.strip():
        raise MaskwiseError(
            "an override has the form key=value",
            got=repr(text),
            do='for example, "training.steps=500"',
        )
    with blamed(f"override {key.strip()}"):
        return key.strip(), parse_value(value)


def parse_overrides(texts: Iterable[str], *, section: str = "") -> Plain:
    """Return the values of ``key=value`` overrides, keyed by dotted name.

    Of two values of a setting, the last one counts, so that overrides can be added to a list.

    Args:
        texts: the overrides.
        section: a section of a recipe, whose name may stand before a setting or be left out.

    Raises:
        MaskwiseError: as for ``parse_override``.

    >>> parse_overrides(["training={steps: 500, seed: 1}", "training.steps=9"])
    {'training.seed': 1, 'training.steps': 9}
    """
    found: Plain = {}
    for key, value in map(parse_override, texts):
        _add(found, key.removeprefix(f"{section}."), value)
    return found


def _add(changes: Plain, key: str, value: Any) -> None:
    """Add a value, or those of a group, to changes by dotted name, in place."""
    pairs = _written({key: value})
    if PHASE.search(key) and isinstance(value, Mapping):
        # Who writes a phase replaces it.
        pairs = iter([(key, layer(value))])
    for name, each in pairs:
        # The order of settings is that of the values which count.
        changes.pop(name, None)
        changes[name] = each


def with_overrides(settings: Plain, texts: Iterable[str]) -> Plain:
    """Return a layer with ``key=value`` overrides.

    ``study.arms.NAME=null`` removes an arm, and ``study.arms=a,b`` all arms but a and b. If a
    contrast names a removed arm, the validation of the recipe reports it. ``study.arms={…}``
    replaces the arms; if no arm of the recipe is left, what compares them is removed, too.

    Raises:
        MaskwiseError: an override has no key or value, or names an unknown arm.

    >>> with_overrides({"study.arms.a": {}, "study.arms.b": {}}, ["study.arms.b=null", "tasks=[]"])
    {'study.arms.a': {}, 'tasks': []}
    """
    given = [*_given(texts)]
    arms = arms_in(settings).keys()
    left = _arms_left([*arms], given)
    found = _without_replaced(settings, given)
    for arm in arms - {*left}:
        found.pop(f"{ARMS}{arm}", None)
        # The search grid of a single arm goes with the arm.
        found.pop(f"study.search.own.{arm}", None)
    changes: Plain = {}
    for key, value in given:
        if not _chooses_arms(key, value, arms):
            _add(changes, key, value)
    return applied(found, changes, clear=True)


def _without_replaced(settings: Plain, given: Iterable[tuple[str, Any]]) -> Plain:
    """Return a layer without the model and the arms that overrides replace as a whole."""
    found = dict(settings)
    for key, value in given:
        if not isinstance(value, Mapping) or not value:
            continue
        if key == "model" and {"architecture", "pretrained"} & value.keys():
            # The settings of one model mean nothing for another.
            found = {name: each for name, each in found.items() if not name.startswith("model.")}
        elif key == "study.arms":
            # Without any of the former arms, nothing that names them has a meaning.
            is_new = arms_in(found).keys().isdisjoint(value)
            found = _without_arms(found, ("arms", *NAMES_ARMS) if is_new else ("arms",))
    return found


def _given(texts: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of overrides; those of study={…} one by one."""
    for key, value in map(parse_override, texts):
        if key == "study" and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        else:
            yield key, value


def _chooses_arms(name: str, value: Any, arms: Collection[str]) -> bool:
    """Whether an override removes an arm, or all arms but some."""
    if name == "study.arms":
        return isinstance(value, str | list) and bool(arms)
    return name.startswith(ARMS) and name.count(".") == 2 and value in (None, "none")


def _arms_left(arms: Sequence[str], given: Iterable[tuple[str, Any]]) -> list[str]:
    """Return the arms after some overrides, which may add, remove and replace arms.

    Raises:
        MaskwiseError: an unknown arm is named, no arm is left, or an override leaves out an arm
            that another one changes.
    """
    left = [*arms]
    changed: dict[str, str] = {}
    do = "to add an arm, give its settings: study.arms.NAME='{masking.ratio: 0.3}'"
    for key, value in given:
        arm = key.split(".")[2] if key.startswith(ARMS) else ""
        if _chooses_arms(key, value, arms):
            named = [arm]
            if key == "study.arms":
                named = value.split(",") if isinstance(value, str) else value
                named = [str(name).strip() for name in named]
            for name in named:
                require_known("arm in study.arms", name, {*arms, *changed}, do=None if arm else do)
            left = [name for name in left if name != arm] if arm else named
            if not left:
                raise MaskwiseError("no arm is left", got=key, do="keep at least one arm")
        elif arm:
            is_new = arm not in arms or isinstance(value, Mapping)
            changed[arm] = key
            left += [arm] if is_new and arm not in left else []
        elif key == "study.arms" and isinstance(value, Mapping) and value:
            left = [*value]
        for name in changed.keys() - {*left}:
            raise MaskwiseError(
                f"study.arms leaves out the arm {name!r}, which {changed[name]} changes",
                got=", ".join(left),
                do=f"add {name} to study.arms, or remove {changed[name]}",
            )
    return left


# Places and checks
# ----------------------------------------------------------------------------


def _divided(name: str) -> tuple[str, str]:
    """Divide a dotted name at the end of the place of an arm, a grid or a phase."""
    found = PLACE.match(name)
    assert found is not None  # the pattern matches nothing, too
    return found[0], name[found.end() :]


def placed(name: str) -> tuple[tuple[str, ...], str]:
    """Split a dotted name into the place of the arm, grid or phase that it changes, and a setting.

    >>> placed("study.arms.a.phases.0.training.steps")
    (('study', 'arms', 'a', 'phases', '0'), 'training.steps')
    >>> placed("study.arms.a")
    (('study', 'arms', 'a'), '')
    """
    place, setting = _divided(f"{name}.")
    return (*place.split(".")[:-1],), setting.removesuffix(".")


@contextmanager
def blamed(place: str) -> Iterator[None]:
    """Prefix errors with the name of the setting that causes them."""
    try:
        yield
    except MaskwiseError as error:
        raise MaskwiseError(f"{place}: {error}") from None


def require_changeable(name: str, parts: Sequence[str], *, who: str, known: Iterable[str]) -> None:
    """Raise an error if a setting is outside the sections ``parts``, or is the training seed.

    The training seed comes from ``study.seeds``, for every run.

    Args:
        name: the dotted name of the setting.
        parts: the sections that may be changed.
        who: who changes it, for the error.
        known: the dotted names of all settings of a recipe.
    """
    section, _, _ = name.partition(".")
    if section in parts and name != "training.seed":
        return
    known = [*known]
    do = None
    if section not in known:
        last = name.rpartition(".")[2]
        within = [key for key in known if key.split(".")[0] in parts]
        do = did_you_mean(name, [key for key in within if key.rpartition(".")[2] == last] or within)
        _, _, rest = name.partition(".")
        if parts == ARM_PARTS and (rest in known or do is None):
            do = "the names of arms have no dots"
    raise MaskwiseError(f"{who} cannot change {name}", allowed=", ".join(parts), do=do)
