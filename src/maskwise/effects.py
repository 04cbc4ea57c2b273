"""What a setting changes. Every key of a recipe declares this in its type: ``steps: Weights[int]``.

``maskwise.recipe.described.declared`` returns the declarations of all keys. They decide which
settings are part of the names of training stages (the steps of a study whose weights are reused).
Tests compare them with these names, and with the weights of short trainings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, SerializerFunctionWrapHandler
from pydantic.fields import FieldInfo

Value = TypeVar("Value")


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


def effect_of(field: FieldInfo) -> str | None:
    """Return what a setting declares that it changes; None if it declares nothing."""
    for mark in field.metadata:
        if isinstance(mark, Changes):
            return mark.what
    return None
