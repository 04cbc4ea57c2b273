"""Errors of pydantic in one line, with the setting, its value and the allowed values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from maskwise.base.effects import OFF, kinds_of, turns_off
from maskwise.base.errors import MaskwiseError, did_you_mean, unknown_name

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
    found = _explained(errors, settings, origin)
    whole = isinstance(errors[0].get("input"), dict | BaseModel)
    # What a validator refuses about several settings is not wrong because of one of them.
    if not (whole and errors[0]["type"] == "value_error"):
        found.setting = ".".join(_path(errors[0]))
    return found


def _explained(
    errors: Sequence[ErrorDetails], settings: type[BaseModel], origin: str
) -> MaskwiseError:
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
        places = [*_places(settings, str(name).rpartition(".")[2])]
        if group or not places:
            return unknown_name(what, str(name), known)
        meant = f"did you mean {' or '.join(places)}?"
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
    for dotted in dotted_names(settings):
        if dotted.rpartition(".")[2] == name:
            yield dotted


def dotted_names(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings."""
    for field, info in settings.model_fields.items():
        yield prefix + field
        for kind in groups_in(info.annotation):
            yield from dotted_names(kind, f"{prefix}{field}.")


def _group(settings: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """Return the settings class of the group at a path.

    Parts of the path that are not fields, such as the names of arms, are skipped.
    """
    for part in path:
        if part in settings.model_fields:
            settings = next(groups_in(settings.model_fields[part].annotation), settings)
    return settings
