"""``Masking``: what is masked, how much and how it is shown, as one parsed and checked value.

A recipe's section, the arguments of ``Masker`` and the settings of an objective all become such a
value, and nothing after it parses or checks a setting again. ``MaskingSettings`` is the section of
a recipe: the texts that a user wrote, of which the names of stages are hashes, and beside them the
values that were parsed from these texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Self

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from maskwise.base.effects import OrOff, Settings, Several, Weights, within, without_unset
from maskwise.base.errors import MaskwiseError, items_of, require_known, whole_number
from maskwise.base.specs import Call
from maskwise.masking import corruptions, policies, schedules
from maskwise.masking.corruptions import Bert, Corruption
from maskwise.masking.policies import Policy, Token, UnitKind
from maskwise.masking.schedules import Schedule, constant
from maskwise.masking.select import BUDGETS, FILLS

MOST_TARGETS = 2**31 - 1
"""The largest ``min_targets``. No piece has more tokens."""

# How the masks of a row in different epochs depend on each other, for a ratio of r:
#
# ``random``: each epoch draws a new mask.
# ``complement``: epochs form pairs. The second epoch of a pair masks the units that the first epoch
# left visible. Its ratio is thus 1 − r.
#
# Both epochs of a pair use the same draws. Units are not split, so an epoch may mask one unit more
# or one unit less than the ratio asks for, and may mask nothing in a short piece. If the ratio
# changes over the steps, or a policy learns its weights during training, the two epochs of a pair
# divide the units at other places, or in another order, and ``complement`` holds only
# approximately.
#
# Source: masked diffusion models of 2025.
VISITS = ("random", "complement")

ENDS = ("none", "token", "padding")
"""What a model learns of the ends of texts, in masked diffusion: nothing; the end token; or the end
token in all places behind the text, up to the end of the row."""


def _unchanged(value: Any) -> Any:
    return value


def _targets(number: Any) -> int:
    return whole_number("min_targets", number, least=0, most=MOST_TARGETS)


def _tokens(names: Any) -> tuple[str, ...]:
    """Return the tokens of ``exclude`` as a tuple."""
    return tuple(items_of("exclude", names, of="tokens"))


PARSERS: dict[str, Callable[..., Any]] = {
    "policy": policies.policy,
    "ratio": schedules.schedule,
    "predict": schedules.schedule,
    "corruption": corruptions.corruption,
    "min_targets": _targets,
    "exclude": _tokens,
}
"""The functions that parse settings. Each returns a value that is parsed already as it is."""
PARSED = {"policy": Policy, "ratio": Schedule, "predict": Schedule, "corruption": Corruption}
KNOWN = {"budget": BUDGETS, "fill": FILLS, "visits": VISITS, "ends": ENDS}


def parsed_setting(name: str, written: Any) -> Any:
    """Return the value of a setting: that which a text means, or the value itself."""
    return PARSERS.get(name, _unchanged)(written)


def _require_known(name: str, value: str) -> None:
    if name == "visits" and value == "coverage":
        raise MaskwiseError("there is no visits: coverage any more", do="use visits: complement")
    require_known(name, value, KNOWN[name])


TOKEN = Token()
BERT = Bert()
USUAL_RATIO = constant(0.15)
ALL = constant(1.0)


@dataclass(frozen=True)
class Masking:
    """All settings of a masker but its tokenizer and its seed; ``Masker`` describes them.

    Raises:
        MaskwiseError: a value is not allowed, or not beside the other values.

    >>> Masking.of(policy="whole-word", ratio="linear(0.30, 0.15)").ratio(0, 100)
    0.3
    """

    policy: Policy = TOKEN
    ratio: Schedule = USUAL_RATIO
    budget: str = "expected"
    corruption: Corruption = BERT
    fill: str = "none"
    min_targets: int = 1
    predict: Schedule = ALL
    keep: str | None = None
    visits: str = "random"
    exclude: tuple[str, ...] = ()
    ends: str = "none"

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Parse settings: names, numbers and calls, or the values themselves.

        Raises:
            MaskwiseError: as for the class; also if a setting has no effect beside the others, such
                as a ratio with a policy that has its own.
        """
        known = [each.name for each in fields(cls)]
        usual = cls()
        values = {}
        for name, value in settings.items():
            require_known("masking setting", name, known)
            default = getattr(usual, name)
            if value is None and default is not None:
                raise MaskwiseError(
                    f"{name} has no value", got="None", do=f"leave it out for {default}"
                )
            values[name] = parsed_setting(name, value)
        made = cls(**values)
        for name, why in cls.unused(made.policy, made.budget, made.fill).items():
            value = getattr(made, name)
            # A minimum of 0 or 1 is a default, of masked diffusion or of other objectives.
            asked = value > 1 if name == "min_targets" else value != getattr(usual, name)
            if name in settings and asked:
                raise MaskwiseError(f"{name} {why}", got=settings[name], do=f"leave {name} out")
        return made

    @classmethod
    def shared(cls, settings: Mapping[str, Any]) -> Self:
        """Parse settings that are shared with other objectives or arms, which may use more of them.

        Settings without effect beside the others are left out, and not parsed.
        """
        chosen = policies.policy(settings.get("policy", TOKEN))
        return cls.of(**cls.used({**settings, "policy": chosen}))

    def __post_init__(self) -> None:
        for name, kind in PARSED.items():
            if not isinstance(getattr(self, name), kind):
                raise MaskwiseError(
                    f"{name} is not parsed", got=repr(getattr(self, name)), do="use Masking.of(…)"
                )
        _targets(self.min_targets)
        for name in KNOWN:
            _require_known(name, getattr(self, name))
        if self.keep is not None and not isinstance(self.keep, str):
            raise MaskwiseError("keep must be the name of an annotation layer", got=repr(self.keep))
        if self.budget == "bernoulli" and self.policy.splits_budget:
            raise MaskwiseError(
                "budget bernoulli has no budget to split, but this policy splits one between units",
                got=self.policy,
                do="use budget exact or expected",
            )
        in_place = self.corruption.keeps_length and self.corruption.writes is None
        if not (self.predict.always(1) or in_place):
            raise MaskwiseError(
                "predict needs a corruption that keeps lengths, and whose labels no decoder writes",
                got=self.corruption,
                do="leave predict at 1.0",
            )
        self._check()

    def _check(self) -> None:
        """Raise if ``visits`` fixes which units are masked, and another setting may change them; or
        if ``ends`` are asked, which only masked diffusion predicts.
        """
        if self.ends != "none":
            raise MaskwiseError(
                "ends of texts are targets in masked diffusion only",
                got=f"ends: {self.ends}",
                do="leave ends out, or set objective: diffusion",
            )
        if self.visits == "random":
            return
        if self.policy.needs_ratio:
            raise MaskwiseError(
                f"visits: {self.visits} needs a policy whose units do not depend on the ratio",
                got=f"policy {self.policy}",
                do="use visits: random",
            )
        possible = {"budget": ("expected",), "fill": ("none", "random"), "min_targets": (0, 1)}
        for setting, values in possible.items():
            value = getattr(self, setting)
            if value not in values:
                raise MaskwiseError(
                    f"visits: {self.visits} does not allow this {setting}",
                    got=value,
                    allowed=values,
                )

    @staticmethod
    def unused(chosen: Policy | str | Call, budget: str, fill: str) -> dict[str, str]:
        """Return the arguments without effect beside this policy, budget and fill, and why.

        >>> [*Masking.unused("t5-span(3, 0.2)", "exact", "none")]
        ['ratio', 'fill']
        >>> [*Masking.unused("whole-word", "bernoulli", "none")]
        ['min_targets', 'fill']
        """
        made = policies.policy(chosen)
        found = {}
        if made.has_ratio:
            found["ratio"] = f"has no effect, because policy {chosen} has its own ratio"
        independent = budget == "bernoulli"
        # Adding words to reach the minimum would distort the probabilities of all words.
        words = independent and made.unit_kind is not UnitKind.TOKEN
        if words:
            found["min_targets"] = (
                "has no effect with budget bernoulli, unless the policy masks single tokens"
            )
        if not made.has_zero_weights:
            found["fill"] = f"has no effect, because policy {chosen} can mask every unit"
        elif words or (independent and fill == "skip-row"):
            found["fill"] = "has no effect, because budget bernoulli has no budget to use"
        return found

    @classmethod
    def used(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out the arguments that would be refused. Arms have settings in common with others.

        >>> Masking.used({"policy": "t5-span(3, 0.2)", "ratio": 0.3, "fill": "random"})
        {'policy': 't5-span(3, 0.2)'}
        """
        usual = {each.name: each.default for each in fields(cls)}
        names = ("policy", "budget", "fill")
        unused = cls.unused(*(settings.get(name, usual[name]) for name in names))
        return {name: value for name, value in settings.items() if name not in unused}

    @property
    def changing(self) -> list[Schedule | Policy]:
        """The settings that change over training."""
        found: list[Schedule | Policy] = [
            each for each in (self.ratio, self.predict) if each.varies
        ]
        return [*found, self.policy] if self.policy.varies else found

    @property
    def needs_total(self) -> bool:
        """Whether a setting changes over training, so that masking needs ``total_steps``."""
        return any(part.needs_total for part in (self.ratio, self.predict, self.policy))


class MaskingSettings(Settings):
    """The masking settings of a recipe.

    >>> MaskingSettings(policy="whole-word", ratio="linear(0.30, 0.15)").corruption
    'bert'
    """

    policy: Weights[str] = "token"
    """The masking policy: which tokens are masked together, and how likely. A name from ``list
    policies``."""
    ratio: Weights[str | float] = 0.15
    """The share of eligible tokens that is masked: a number, or a schedule such as ``linear(0.30,
    0.15)``."""
    budget: Weights[str] = "expected"
    """How closely masks follow the ratio. The budget of a text is ratio × tokens. ``expected``
    masks the budget on average, and exceeds it by at most one unit (such as a word). ``exact``
    never exceeds the budget and skips units that do not fit. ``bernoulli`` masks each unit
    independently, with probability ratio × weight."""
    fill: Weights[str] = "none"
    """What to do if the policy offers too few units, such as salient spans, to use the whole
    budget. ``none`` masks fewer tokens, ``random`` also masks other units, and ``skip-row`` masks
    nothing in this text."""
    corruption: Weights[str] = "bert"
    """How masked tokens are replaced, and what the model predicts: a name from ``list
    corruptions``."""
    min_targets: Weights[OrOff[int]] = Field(1, ge=0, le=MOST_TARGETS)
    """The minimum number of tokens to mask in a text. Texts whose ratio × tokens is below 0.5 have
    no minimum. The minimum of 1 masks more than the ratio in short texts; 0 meets it on average."""
    predict: Weights[str | float] = 1.0
    """The largest share of each row's tokens that get a loss: a number or a schedule."""
    keep: Weights[str | None] = None
    """The name of an annotation layer, such as ``prompt``. Tokens that this layer marks are never
    masked."""
    visits: Weights[str] = "random"
    """How the masks of a text in different epochs depend on each other. With ``random``, every
    epoch draws a new mask. With ``complement``, every second epoch masks the units that the epoch
    before left visible; if the ratio changes over the steps, only approximately."""
    exclude: Weights[Several[str]] = ()
    """Tokens that are never masked in training and never used as random replacements, as the
    tokenizer writes them. Special tokens, unknown tokens, the wildcards of proteins and DNA (such
    as X, B, Z and gaps) and spare tokens (such as ``[unused17]``) never are, in training and in
    evaluations."""
    ends: Weights[str] = "none"
    """What a model of masked diffusion learns of the ends of texts: ``none``, nothing; ``token``,
    the end token is a target like any other; ``padding``, the places behind the text have the end
    token and are targets, too (as in LLaDA), so that a text may end anywhere in a row. Text that it
    generates then stops at the first end token."""

    _values: dict[str, Any] = PrivateAttr()

    @model_validator(mode="after")
    def _parse(self) -> Self:
        self._values = {**_usual_values()}
        for name in self.model_fields_set:
            written = getattr(self, name)
            with within(name, written):
                if name in KNOWN:
                    _require_known(name, written)
                self._values[name] = parsed_setting(name, written)
        return self

    @property
    def values(self) -> dict[str, Any]:
        """The values that were parsed from the texts, by name."""
        return self._values

    def replaced(self, by: MaskingSettings, names: Iterable[str] | None = None) -> MaskingSettings:
        """Return a copy with the settings ``names`` of ``by``, by default those that it sets.

        Nothing is parsed again.

        >>> spans = MaskingSettings(policy="span", ratio=0.3)
        >>> both = spans.replaced(MaskingSettings(ratio=0.4))
        >>> both.policy, both.ratio, str(both.values["ratio"])
        ('span', 0.4, 'constant(0.4)')
        """
        names = by.model_fields_set if names is None else names
        made = self.model_copy(update={name: getattr(by, name) for name in names})
        made._values = {**self._values, **{name: by.values[name] for name in names}}
        return made

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, dump, "exclude", "ends")


@cache
def _usual_values() -> dict[str, Any]:
    fields = MaskingSettings.model_fields.items()
    return {name: parsed_setting(name, field.default) for name, field in fields}
