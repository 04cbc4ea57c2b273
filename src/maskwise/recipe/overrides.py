"""Settings by dotted name: how they are read, changed, and refused.

Overrides on the command line, the arms of a study, the points of a search, a second stage of
training, and a recipe that extends another are all the same thing: these settings, changed.
``explain`` turns what pydantic says against settings into one line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from maskwise.errors import MaskwiseError, unknown_name

Plain = dict[str, Any]
"""Nested settings as YAML or JSON has them."""

MOST_VALUES = 100_000
"""Values in one YAML text, counting what its aliases repeat: "billion laughs" is 30 lines that
unfold to 10⁹ values.
"""


NAMES_ARMS = ("baseline", "contrasts", "gate", "search", "share", "transfer")
"""Settings of a study that name its arms, or ask something of all of them: other arms replace these
too.
"""

MOST_NUMBER = 1 << 63
"""Whole numbers are smaller: no setting needs more, and Python itself reads at most 4,300 digits.
"""


def put(settings: Plain, dotted: str, value: object, *, clear: bool = True) -> None:
    """Set ``a.b.c`` in nested dicts, or ``a.1.c`` in the second dict of a list.

    ``clear=False``: an empty group leaves what stands in a group of its name.

    >>> settings = {"training": {"steps": 10}, "phases": [{}, {"masking.ratio": 0.3}]}
    >>> put(settings, "training.seed", 3); put(settings, "phases.1.masking.ratio", 0.1); settings
    {'training': {'steps': 10, 'seed': 3}, 'phases': [{}, {'masking': {'ratio': 0.1}}]}

    Raises:
        MaskwiseError: a value stands where a group of settings would have to be, or a list has no
            such place.
    """
    *path, last = dotted.split(".")
    group: Plain | list[Any] = settings
    for part in path:
        if isinstance(group, list):
            place = _place(group, part, dotted=dotted)
            group[place] = inside = nested(group[place] or {})
        else:
            inside = group[part] = {} if group.get(part) is None else group[part]
        if not isinstance(inside, dict | list):
            raise MaskwiseError(
                f"cannot set {dotted}", got=f"{part} is a value, not a group of settings"
            )
        group = inside
    if isinstance(group, list):
        group[_place(group, last, dotted=dotted)] = value
    elif clear or value != {} or not isinstance(group.get(last), dict):
        group[last] = value


def _place(group: list[Any], part: str, *, dotted: str) -> int:
    """The place in a list that a part of a dotted name says."""
    if not part.isdecimal() or int(part) >= len(group):
        allowed = (
            f"0 to {len(group) - 1}"
            if len(group) > 1
            else "0"
            if group
            else "none, for it is empty"
        )
        raise MaskwiseError(
            f"cannot set {dotted}: places in a list are counted from 0", got=part, allowed=allowed
        )
    return int(part)


def nested(tree: Mapping[str, object]) -> Plain:
    """Settings whose keys may be dotted, as dicts in dicts.

    >>> nested({"masking.ratio": 0.3, "masking": {"policy": "span"}})
    {'masking': {'ratio': 0.3, 'policy': 'span'}}
    """
    settings: Plain = {}
    for key, value in leaves(tree):
        put(settings, key, value, clear=False)
    return settings


def leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested settings as pairs of ``a.b.c`` and value: a dict changes only the keys that it names.

    An empty dict is a value too: ``objectives: {mlm: {}}`` names an objective and says no more of
    it. A mix of sources is one value: it is replaced as a whole, and the names in it hold dots.
    """
    for key, value in tree.items():
        if isinstance(value, dict) and value and not f"{prefix}{key}".endswith("corpus.source"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merged(base: Plain, own: Plain) -> Plain:
    """``base`` with the settings of ``own``. Arms are replaced as a whole, and with them what names
    them.
    """
    settings: Plain = {}
    base_arms, own_arms = ((tree.get("study") or {}).get("arms") for tree in (base, own))
    replaced = tuple(f"study.{name}" for name in NAMES_ARMS) if own_arms else ()
    for tree, dropped in ((base, replaced), (own, ())):
        for key, value in leaves(tree):
            if not any(f"{key}.".startswith(f"{name}.") for name in ("study.arms", *dropped)):
                put(settings, key, value, clear=False)
    if own_arms or base_arms:
        put(settings, "study.arms", own_arms or base_arms)
    return settings


def parse_override(text: str) -> tuple[str, object]:
    """``key=value`` as (key, value).

    >>> parse_override("training.learning_rate=1e-3")
    ('training.learning_rate', 0.001)

    Raises:
        MaskwiseError: no equals sign, or no key.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise MaskwiseError(
            "an override is key=value", got=text, do="for example training.steps=500"
        )
    return key.strip(), parse_value(value)


def parse_value(text: str) -> object:
    """The value of an override: YAML, and plain text where it is none."""
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


class Yaml(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, and only true and false are truth values (as in
    YAML 1.2).

    In YAML 1.1 the first is a string, and ``precision: no`` or an arm called ``on`` would be a
    truth value. Settings that are true or false take yes, no, on and off all the same.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """The value of a node; what looks like a date, say, and is none is an error of YAML, with
        its line.
        """
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= MOST_NUMBER:
                raise ValueError
        except (ValueError, LookupError, AttributeError):
            problem = f"cannot read {str(node.value)[:40]!r} as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(
                problem=problem, problem_mark=node.start_mark
            ) from None
        return value


Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(text: str) -> object:
    """Plain values from YAML.

    Raises:
        yaml.YAMLError: it is not YAML.
        MaskwiseError: it is nested too deeply, or unfolds to more values than anybody writes.
    """
    loader = Yaml(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        # Counted before it is unfolded: a merge key (<<) copies what its aliases stand for.
        if _count(root, {}) > MOST_VALUES:
            raise MaskwiseError("settings hold too many values", allowed=f"at most {MOST_VALUES:,}")
        return _unshared(loader.construct_document(root))
    except RecursionError:
        raise MaskwiseError("settings are nested too deeply", do="write fewer levels") from None
    finally:
        loader.dispose()


def _unshared(value: Any) -> Any:
    """The same values, of which no two are one object, as an anchor and its aliases are: each is
    changed by itself.
    """
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    return [_unshared(part) for part in value] if isinstance(value, list) else value


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """The values below a node; what an alias repeats is counted each time and looked at once."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        # until it is counted: a value that holds itself has no end
        known[id(node)] = MOST_VALUES + 1
        parts = (
            [pair[1] for pair in node.value] if isinstance(node, yaml.MappingNode) else node.value
        )
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


# What is wrong with settings
# -----------------------------------------------------------------------------------

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
    "dict_type": "names with values",
    "greater_than": "> {gt}",
    "greater_than_equal": "≥ {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "≤ {le}",
    "too_long": "{max_length} values",
    "too_short": "≥ {min_length} values",
}
"""What is allowed, by pydantic's type of error."""

# Where a field takes several types, pydantic puts each alternative into the place of an error as if
# it were a name.
_ALTERNATIVE = re.compile(r"(int|float|str|bool|constrained-float|(tuple|list|dict)\[.*\])$")


def explain(error: ValidationError, settings: type[BaseModel], *, origin: str) -> MaskwiseError:
    """The first mistake in one line: the setting, what it got, and all that it takes.

    Args:
        settings: the class that was validated.
        origin: where the settings come from: a file, an arm, or "" for nowhere in particular.
    """
    # A wrong name says more than the setting that is missing for it.
    errors = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    first, path = errors[0], _path(errors[0])
    if first["type"] == "extra_forbidden":
        known = [".".join([*path[:-1], name]) for name in _group(settings, path[:-1]).model_fields]
        return unknown_name(f"setting in {origin}:" if origin else "setting", ".".join(path), known)
    if first["type"] == "value_error":  # a validator of ours, which may say itself what it got
        message, got = first["msg"].removeprefix("Value error, "), first.get("input")
        said = "got " in message or (isinstance(got, str) and repr(got) in message)
        hidden = said or isinstance(got, dict | BaseModel)
        return MaskwiseError(
            _joined(origin, *path, sentence=message), got=None if hidden else repr(got)
        )
    # Where a field takes several types, pydantic has an error for each; the deepest place is the
    # mistake.
    below = [detail for detail in errors if _path(detail)[: len(path)] == path]
    path = max(map(_path, below), key=len)
    alternatives = [detail for detail in below if _path(detail) == path]
    kind, got, place = alternatives[0]["type"], alternatives[0].get("input"), _joined(origin, *path)
    if kind == "missing":
        return MaskwiseError(f"{place} is missing", do="give it a value")
    allowed = " or ".join(dict.fromkeys(_allowed(detail, settings) for detail in alternatives))
    near = difflib.get_close_matches(str(got), allowed.split(", "), n=1, cutoff=0.5)
    do = f"did you mean {near[0]!r}?" if near and kind == "literal_error" else None
    return MaskwiseError(place, got="nothing" if got is None else repr(got), allowed=allowed, do=do)


def _joined(origin: str, *path: str, sentence: str = "") -> str:
    return ": ".join(part for part in (origin, ".".join(path), sentence) if part)


def _path(error: ErrorDetails) -> list[str]:
    return [part for part in map(str, error["loc"]) if not _ALTERNATIVE.match(part)]


def _allowed(error: ErrorDetails, settings: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "literal_error":
        return ", ".join(re.findall(r"'([^']*)'", context["expected"]))
    if kind == "model_type":
        return (
            f"settings such as {', '.join(list(_group(settings, _path(error)).model_fields)[:3])}"
        )
    return ALLOWED[kind].format(**context) if kind in ALLOWED else error["msg"]


def _group(settings: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The class of the settings at a place; names that people chose, of arms and objectives, stand
    for no class.
    """
    for part in path:
        if part in settings.model_fields:
            annotation = settings.model_fields[part].annotation  # X, X | None or dict[str, X]
            kinds = (annotation, *get_args(annotation))
            settings = next((kind for kind in kinds if hasattr(kind, "model_fields")), settings)
    return settings
