"""What a setting changes. Every key of a recipe declares it in its type: ``steps: Weights[Count]``.

``maskwise.recipe.described.declared`` returns the declarations of all keys. They decide which
settings are part of the names of training stages (the steps of a study whose weights are reused).
Tests compare them with these names, and with the weights of short trainings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails

from maskwise.base.errors import MaskwiseError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Only:
    """The mark of a setting that has an effect only with some values of another setting.

    Attributes:
        key: the other setting: of the same group, or with "/" before its name, of the recipe.
        values: the values with which there is an effect; () for all values but ``but``.
        but: the values with which there is none.
    """

    key: str
    values: tuple[Any, ...] = ()
    but: tuple[Any, ...] = ()

    def within(self, above: str) -> Only:
        """Return the mark with the whole dotted name of the other setting.

        >>> Only("optimizer", ("muon",)).within("training.").key
        'training.optimizer'
        """
        key = self.key[1:] if self.key.startswith("/") else f"{above}{self.key}"
        return replace(self, key=key)

    def why_not(self, value: Any) -> str | None:
        """Say why there is no effect with this value of the other setting; None if there is one.

        >>> Only("optimizer", ("muon",)).why_not("adamw")
        'needs optimizer=muon'
        >>> Only("decay", but=("constant",)).why_not("constant")
        'has no effect with decay=constant'
        """
        if value in self.but:
            return f"has no effect with {self.key}={value}"
        if not self.values or value in self.values:
            return None
        words = {None: "null", True: "true"}
        wanted = " or ".join(f"{self.key}={words.get(each, each)}" for each in self.values)
        return f"needs {wanted}"


@dataclass(frozen=True)
class Changes:
    """The mark in the type of a setting."""

    what: str


Weights = Annotated[Value, Changes("weights")]
"""Changes the weights of a trained, fine-tuned or learned model. Such a setting is part of the name
of the stage that makes these weights."""

Rounding = Annotated[Value, Changes("rounding")]
"""Changes speed or memory use, and weights only by rounding. It is part of the name, too, because
equal names mean bitwise equal weights."""

Speed = Annotated[Value, Changes("speed")]
"""Changes speed or memory use, but no weight. This and the following effects are not part of the
name of a stage that makes weights."""

Judgement = Annotated[Value, Changes("judgement")]
"""Changes which runs and measurements there are, and what is concluded from them."""

Nothing = Annotated[Value, Changes("nothing")]
"""Changes what is reported, logged or saved, or what happens if a run fails. A run that finishes
has the same weights."""


def _as_list(value: object) -> object:
    # Nothing is no value, and the error for it names the default.
    return value if value is None or isinstance(value, list | tuple) else (value,)


AS_LIST = BeforeValidator(_as_list)


class _OneOrMore:
    """The mark of a list in whose place a JSON schema allows one of its values."""

    @staticmethod
    def __get_pydantic_json_schema__(kind: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        listed = handler(kind)
        return {"anyOf": [listed["items"], listed]}


Several = Annotated[tuple[Value, ...], AS_LIST, _OneOrMore]
"""A list of values, for settings such as ``tasks: Judgement[Several[str]]``. One value is read as a
list of one."""

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
"""Numbers with their limits, for settings such as ``steps: Weights[Count]``."""


class Off:
    """The mark in the type of a number of which 0 turns something off."""


OrOff = Annotated[Value, Off()]
"""A number of which 0 turns something off, such as ``clip: Weights[OrOff[NotNegative]]``."""

OFF = "0 turns this off"


class Settings(BaseModel, extra="forbid", frozen=True):
    """Immutable settings without unknown keys, whose numbers are not true or false.

    >>> class Mine(Settings):
    ...     clip: OrOff[float] = 1.0
    >>> Mine(clip=0).clip
    0.0
    """

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: object, info: ValidationInfo) -> object:
        """Raise an error for a number that is true or false, which pydantic reads as 1 or 0."""
        within, values = "", [value]
        if isinstance(value, Mapping):
            within, values = "dict", [*value.values()]
        elif isinstance(value, list | tuple):
            within, values = "list", [*value]
        name = info.field_name or ""
        allowed = _numbers_in(cls).get((name, within))
        if allowed is None:
            return value
        for each in values:
            if isinstance(each, bool):
                do = OFF if turns_off(cls.model_fields[name]) and each is False else None
                raise MaskwiseError("this is not a number", got=value, allowed=allowed, do=do)
        return value


@cache
def _numbers_in(kind: type[BaseModel]) -> dict[tuple[str, str], str]:
    """Return words for the numbers that settings may be or contain, keyed by the setting and by
    what contains the numbers (``kinds_of``)."""
    found = {}
    for name, field in kind.model_fields.items():
        kinds = defaultdict[str, set[Any]](set)
        for each, within in kinds_of(field.annotation):
            kinds[within].add(each)
        # Pydantic keeps the marks of the whole type apart from it.
        if AS_LIST in field.metadata:
            kinds[""] |= kinds["list"]
        for within, types in kinds.items():
            if types & {int, float} and bool not in types:
                found[name, within] = "a number" if float in types else "a whole number"
        if (name, "") in found and (name, "list") in found:
            found[name, ""] += f" or a list of {found[name, 'list'].removeprefix('a ')}s"
    return found


def kinds_of(annotation: Any, within: str = "") -> Iterator[tuple[Any, str]]:
    """Yield the types of a setting, each with what contains it: "list", "dict" or "" for nothing.

    The types in a list that may be written as one value (``Several``) are yielded for both forms.

    >>> [*kinds_of(str | dict[str, float] | None)]
    [(<class 'str'>, ''), (<class 'float'>, 'dict'), (<class 'NoneType'>, '')]
    >>> [*kinds_of(Several[float])]
    [(<class 'float'>, ''), (<class 'float'>, 'list')]
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *marks = parts
        if AS_LIST in marks:
            yield from ((each, within) for each, _ in kinds_of(inner))
        yield from kinds_of(inner, within)
    elif origin is dict:
        yield from kinds_of(parts[1], "dict")
    elif origin in (Union, UnionType, list, tuple):
        inside = "list" if origin in (list, tuple) else within
        for part in parts:
            yield from kinds_of(part, inside)
    elif annotation is not Ellipsis:
        yield annotation, within


def turns_off(field: FieldInfo) -> bool:
    """Return whether a setting is a number of which 0 turns something off."""
    return any(isinstance(mark, Off) for mark in field.metadata)


UNNAMED = ("speed", "judgement", "nothing")
"""The effects of settings that are not part of the name of a stage that makes weights."""


def without_unset(
    settings: BaseModel, dump: SerializerFunctionWrapHandler, *names: str
) -> dict[str, Any]:
    """Return settings as plain values, without those of ``names`` that have their defaults.

    Names of stages are hashes of these values. A setting that is left out here is newer than
    recorded studies, and without it, their stages keep their names.
    """
    values: dict[str, Any] = dump(settings)
    for name in names:
        if getattr(settings, name) == type(settings).model_fields[name].default:
            values.pop(name, None)
    return values


@contextmanager
def within(setting: str, written: object) -> Iterator[None]:
    """Say in errors to which setting they belong, in a validator of a whole group of settings.

    Args:
        setting: the name of the setting in its group.
        written: its value, as the user wrote it.
    """
    found = []
    try:
        yield
    except ValidationError as error:
        for line in error.errors():
            place = (setting, *line["loc"])
            found.append(
                InitErrorDetails(
                    type=line["type"], loc=place, input=line["input"], ctx=line.get("ctx", {})
                )
            )
    except MaskwiseError as error:
        context = {"error": error}
        found.append(
            InitErrorDetails(type="value_error", loc=(setting,), input=written, ctx=context)
        )
    if found:
        raise ValidationError.from_exception_data("settings", found)


def effect_of(field: FieldInfo) -> str | None:
    """Return what a setting declares that it changes; None if it declares nothing."""
    for mark in field.metadata:
        if isinstance(mark, Changes):
            return mark.what
    return None
