"""What pydantic finds wrong, in our words: the setting, what we got, what is allowed; one line for every mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from maskwise.errors import MaskwiseError, unknown_name

ALLOWED = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "text",
    "tuple_type": "a list", "list_type": "a list", "dict_type": "names with values",
    "greater_than": "> {gt}", "greater_than_equal": "≥ {ge}", "less_than": "< {lt}", "less_than_equal": "≤ {le}",
    "too_long": "{max_length} values", "too_short": "≥ {min_length} values",
}  # fmt: skip
"""By pydantic's type of error."""

# The alternatives of a field that takes several types stand in the place of an error like names.
_ALTERNATIVE = re.compile(r"(int|float|str|bool|(tuple|list|dict)\[.*\])$")


def explain(error: ValidationError, model: type[BaseModel], *, origin: str) -> MaskwiseError:
    """The first mistake in one line; where a field takes several types, all that it takes.

    Args:
        model: whose settings they are.
        origin: where they were said: a file, an arm, "" for nowhere in particular.
    """
    # A wrong name says more than what is missing for it.
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first = found[0]
    path = _path(first)
    if first["type"] == "extra_forbidden":
        known = [".".join([*path[:-1], name]) for name in _group(model, path[:-1]).model_fields]
        return unknown_name(f"setting in {origin}:" if origin else "setting", ".".join(path), known)
    if first["type"] == "value_error":
        return _own(first, _joined(origin, *path))
    alike = [one for one in found if _path(one)[: len(path)] == path]
    path = max(map(_path, alike), key=len)
    allowed = " or ".join(dict.fromkeys(_allowed(one, model) for one in alike if _path(one) == path))
    one = next(one for one in alike if _path(one) == path)
    here, got = _joined(origin, *path), one.get("input")
    if one["type"] == "missing":
        return MaskwiseError(f"{here} is missing", do="give it a value")
    near = difflib.get_close_matches(str(got), allowed.split(", "), n=1, cutoff=0.5)
    do = f"did you mean {near[0]!r}?" if near and one["type"] == "literal_error" else None
    return MaskwiseError(here, got="nothing" if got is None else repr(got), allowed=allowed, do=do)


def _joined(origin: str, *path: str) -> str:
    return ": ".join(part for part in (origin, ".".join(path)) if part)


def _own(error: Mapping[str, Any], place: str) -> MaskwiseError:
    """What a check of ours says, which knows what was wrong."""
    message, got = str(error["msg"]).removeprefix("Value error, "), error.get("input")
    said = "got " in message or (isinstance(got, str) and repr(got) in message)
    plain = not said and not isinstance(got, dict | BaseModel)
    return MaskwiseError(
        ": ".join(part for part in (place, message) if part), got=repr(got) if plain else None
    )


def _path(error: Mapping[str, Any]) -> list[str]:
    return [part for part in map(str, error["loc"]) if not _ALTERNATIVE.match(part)]


def _allowed(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    kind, more = error["type"], error.get("ctx") or {}
    if kind == "literal_error":
        return ", ".join(re.findall(r"'([^']*)'", more["expected"]))
    if kind == "model_type":
        return f"settings such as {', '.join(list(_group(model, _path(error)).model_fields)[:3])}"
    if kind in ALLOWED:
        return ALLOWED[kind].format(**more)
    return str(error["msg"])


def _group(model: Any, path: Iterable[str]) -> Any:
    """The class of the settings at a place; names that people chose, of arms and objectives, stand for no class."""
    for part in path:
        if part in model.model_fields:
            model = _model_of(model.model_fields[part].annotation)
    return model


def _model_of(annotation: Any) -> Any:
    """The class of a part that may be None, or of the members of a dict."""
    return next(
        (kind for kind in getattr(annotation, "__args__", ()) if hasattr(kind, "model_fields")), annotation
    )
