"""Settings by dotted name. One small language: overrides on the command line, the arms of a study, the points of a
search, a further stage of training, and a recipe that extends another are all "these settings, changed"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from maskwise.errors import MaskwiseError


def put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``a.b.c`` in nested dicts."""
    *path, last = dotted.split(".")
    for part in path:
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise MaskwiseError(f"cannot set {dotted}", got=f"{part} is a value, not a group of settings")
    raw[last] = value


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``a.b.c``, value: a dict changes only the keys that it names."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_override(text: str) -> tuple[str, Any]:
    """``key=value`` as (key, value)."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise MaskwiseError("an override is key=value", got=text, do="for example training.steps=500")
    return key.strip(), parse_value(value)


class Yaml(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, and only true and false are truth values (as in YAML 1.2).

    In YAML 1.1 the first is a string, and ``precision: no`` or an arm called ``on`` would be a truth value. Settings
    that are true or false take yes, no, on and off all the same.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(text: str) -> Any:
    """Plain values from YAML.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=Yaml)


def parse_value(text: str) -> Any:
    """The value of an override."""
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the settings of ``own``. Arms are replaced whole, and with them what speaks of their names."""
    raw: dict[str, Any] = {}
    arms = [tree["study"].get("arms") if tree.get("study") else None for tree in (base, own)]
    gone = ("study.baseline", "study.contrasts", "study.search") if arms[1] else ()
    for tree, dropped in ((base, gone), (own, ())):
        for key, value in leaves(tree):
            if not any(f"{key}.".startswith(f"{name}.") for name in ("study.arms", *dropped)):
                put(raw, key, value)
    if arms[1] or arms[0]:
        put(raw, "study.arms", arms[1] or arms[0])
    return raw
