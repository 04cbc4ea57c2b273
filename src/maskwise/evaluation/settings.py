"""The ``evaluation`` section of a recipe. What it names is loaded by ``evaluate``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import (
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from maskwise.base.constants import WITHOUT_RATIO
from maskwise.base.effects import (
    Count,
    Judgement,
    Settings,
    Several,
    within,
    without_unset,
)
from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import parse_call, split_options
from maskwise.masking.policies import Policy, policy

ROWS = 256
"""The default of the maximum number of held-out rows."""


KEYS = ("pseudo_perplexity", "bound", "word_loss", "cloze", "pairs")
"""Settings of recorded studies, which named the measures that are in the list now."""


class EvaluationSettings(Settings):
    """Measures of a checkpoint besides its tasks. All arms of a study have the same measures: the
    loss of held-out text under fixed masks, which the other settings describe, and ``measures``.

    ``ratio: 0.15`` is accepted for ``ratios: [0.15]``.

    >>> EvaluationSettings(ratios=0.15, measures="pairs('bundled:pairs')").measures
    ("pairs('bundled:pairs')",)
    """

    ratios: Judgement[Several[float]] = (0.15, 0.40)
    """Masking ratios of the fixed masks. The loss curve during training uses the first ratio."""
    masks: Judgement[Several[str]] = ("token", "whole-word")
    """Kinds of fixed masks: names of policies, ``diffusion`` for the masked-diffusion bound, and
    ``next-token`` for the loss of next tokens. A model is measured by those that it can predict:
    a decoder by next tokens alone. By default, ``next-token`` is added if an arm ends with
    objective ``clm``, and is the only one if all arms do.
    """
    rows: Judgement[Count] = ROWS
    """Maximum number of held-out rows for the loss."""
    measures: Judgement[Several[str]] = ()
    """Further measures (``maskwise list measures``), optionally with arguments: ``bound(8)``,
    ``pseudo-perplexity(16)``, ``word-loss(100)``, ``by-length(512)``, ``pairs('bundled:pairs')``,
    ``cloze('facts.jsonl', items=500)``, ``text-loss('general.txt')``, or those of other packages.
    """

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, dump, "measures")

    _policies: dict[str, Policy] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_ratio(cls, raw: object) -> object:
        if isinstance(raw, dict) and "ratio" in raw:
            if "ratios" in raw:
                raise MaskwiseError(
                    "evaluation has both ratio and ratios", do="remove evaluation.ratio"
                )
            raw = {**raw, "ratios": raw["ratio"]}
            del raw["ratio"]
        if isinstance(raw, dict) and any(key in raw for key in KEYS):
            measures = as_measures(raw).get("measures", [])
            raise MaskwiseError(
                "measures are named in one list",
                got=", ".join(f"evaluation.{key}" for key in KEYS if key in raw),
                do=f"write evaluation.measures: {json.dumps(measures)}",
            )
        return raw

    @field_validator("ratios")
    @classmethod
    def _in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return checked_ratios("evaluation.ratios", value)

    @model_validator(mode="after")
    def _parse(self) -> Self:
        with within("masks", self.masks):
            self._policies.update(fixed_policies(self.masks))
        return self

    @property
    def named(self) -> set[str]:
        """The names of the further measures, without their arguments."""
        return {parse_call(measure).name for measure in self.measures}

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies of the fixed masks by name. Diffusion and next tokens have none."""
        return {name: self._policies[name] for name in self.masks if name not in WITHOUT_RATIO}


def as_measures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a recorded study, in which some measures had settings of their own.

    >>> as_measures({"bound": 8, "cloze": ["facts.jsonl(items=500)"], "pairs": []})
    {'measures': ['bound(8)', "cloze('facts.jsonl', items=500)"]}
    """
    kept = {key: value for key, value in evaluation.items() if key not in KEYS}
    rows = evaluation.get("rows", ROWS)
    measures = []
    for key in KEYS:
        value = evaluation.get(key) or ()
        for each in value if isinstance(value, list | tuple) else [value]:
            source, options = split_options(str(each))
            if key == "bound" and rows != ROWS:
                # The bound read as many rows as the held-out loss.
                options = f"rows={rows}"
            arguments = [repr(source) if isinstance(each, str) else source, options]
            measures.append(f"{key.replace('_', '-')}({', '.join(filter(None, arguments))})")
    more = kept.pop("measures", None) or ()
    measures += [more] if isinstance(more, str) else more
    return kept | ({"measures": measures} if measures else {})


def checked_ratios(setting: str, ratios: object) -> tuple[float, ...]:
    """Return masking ratios of fixed masks as a tuple. One number is read as one ratio.

    Raises:
        MaskwiseError: they are not different numbers above 0 and below 1, or there are none.
    """
    found = tuple(ratios) if isinstance(ratios, tuple | list) else (ratios,)
    in_range = all(isinstance(ratio, int | float) and 0 < ratio < 1 for ratio in found)
    if not found or not in_range or len(set(found)) < len(found):
        raise MaskwiseError(
            f"{setting} are invalid",
            got=[*found],
            allowed="one or more different numbers above 0 and below 1",
        )
    return found


def fixed_policies(masks: Iterable[str]) -> dict[str, Policy]:
    """Return the policies of fixed masks by name. Masked diffusion and next tokens have none.

    Raises:
        MaskwiseError: a name is unknown, or a policy has a ratio of its own.
    """
    found = {}
    for name in masks:
        if name in WITHOUT_RATIO:
            continue
        made = policy(name)
        if made.has_ratio:
            raise MaskwiseError(
                "fixed masks need a policy without a ratio of its own",
                got=name,
                do="choose another kind of masks, such as token",
            )
        found[name] = made
    return found
