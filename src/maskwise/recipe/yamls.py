"""Read and write YAML 1.2, and turn values of Python into plain values."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from numbers import Real
from pathlib import PurePath
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel

from maskwise.base.errors import MaskwiseError, first_line, shortened

Plain = dict[str, Any]
"""Settings as plain values, as in YAML or JSON: nested, or keyed by dotted name."""
MOST_NUMBER = 1 << 63
"""Limit on whole numbers, 64 bits. Python cannot print numbers of more than 4,300 digits: without a
limit, an error message about such a number would itself raise an error."""

MOST_LEVELS = 100
"""Limit on the levels of groups and lists in one YAML text. Pydantic allows 255."""

MOST_VALUES = 100_000
"""Limit on the number of values in one YAML text. YAML aliases repeat parts of a text, so a short
text can expand to billions of values."""


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


_NO_NAMES = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null"))
"""The types that YAML gives to keys without quotes."""


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
        lines: dict[str, int] = {}
        for key, _ in node.value:
            # Only a scalar can be a valid key, and the text of a collection may be very long.
            if not isinstance(key, yaml.ScalarNode):
                continue
            # Keys are names: an arm 1e-4 or true is called as it is written.
            if key.tag in _NO_NAMES:
                key.tag = self.DEFAULT_SCALAR_TAG
            if key.value in lines:
                problem = f"the key {key.value!r} is in line {lines[key.value]} already"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
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
