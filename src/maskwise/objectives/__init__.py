"""Objectives: classes that compute the loss of a model on a batch, in pre-training and on tasks.

This package may import from ``masking`` and from the layers below ``masking``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr, model_validator

from maskwise.base.effects import Settings, Weights, within
from maskwise.base.errors import MaskwiseError, PlugInError, require_known
from maskwise.base.plugins import Table, on_first_use, require_call
from maskwise.base.specs import Call, bind, build, find
from maskwise.masking.settings import Masking, MaskingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from maskwise.objectives.base import Objective

OBJECTIVES: Table[type[Objective]] = Table(
    "objective",
    "maskwise.objectives",
    {
        "mlm": "maskwise.objectives.mlm:MaskedLanguageModelling",
        "mntp": "maskwise.objectives.mlm:MaskedNextTokenPrediction",
        "emlm": "maskwise.objectives.mlm:EntityMaskedLanguageModelling",
        "atd": "maskwise.objectives.discriminative:AddedTokenDetection",
        "dtd": "maskwise.objectives.discriminative:DeletedTokenDetection",
        "cse": "maskwise.objectives.discriminative:ContrastiveSentences",
        "rtd": "maskwise.objectives.discriminative:ReplacedTokenDetection",
        "clm": "maskwise.objectives.denoising:CausalLanguageModelling",
        "diffusion": "maskwise.objectives.mlm:MaskedDiffusion",
        "tsdae": "maskwise.objectives.denoising:DenoisingAutoencoder",
        "denoise": "maskwise.objectives.denoising:Denoising",
        "distil": "maskwise.objectives.distil:Distillation",
        "retromae": "maskwise.objectives.retromae:RetroMae",
    },
)
"""The objectives by their names in recipes."""


def objective_class(spec: str | Call) -> type[Objective]:
    """Return the class of an objective such as ``cse(temperature=0.1)``.

    Raises:
        MaskwiseError: the name is unknown.
    """
    return _found(spec)[1]


def _found(spec: str | Call) -> tuple[Call, type[Objective]]:
    call, kind = find("objective", spec, OBJECTIVES)
    # Whoever finds an objective has imported this module.
    from maskwise.objectives.base import Objective

    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise PlugInError(
            f"objective {call.name} is not an objective",
            got=repr(kind),
            allowed="a subclass of maskwise.objectives.Objective",
        )
    require_call(f"objective {call.name}: forward", kind.forward, "self", "batch")
    return call, kind


def objective(spec: str | Call, model: PreTrainedModel) -> Objective:
    """Build an objective for a model from the name and the arguments of the objective."""
    call, kind = _found(spec)
    return build("objective", call, {call.name: partial(kind, model)})


class ObjectiveSettings(Settings):
    """The settings of one objective in a training run with several objectives.

    >>> ObjectiveSettings(objective="cse(temperature=0.1)").kind.__name__
    'ContrastiveSentences'
    """

    objective: Weights[str]
    """The name of the objective, with or without arguments: mlm, mntp, emlm, atd, dtd,
    cse(temperature=0.05), rtd, clm, diffusion, tsdae, denoise, distil("bundled:encoder"),
    retromae.
    """
    masking: Weights[dict[str, Any]] = {}
    """Masking settings of this objective. They replace the settings ``masking`` of the recipe."""

    _call: Call = PrivateAttr()
    _kind: type[Objective] = PrivateAttr()
    _own: MaskingSettings = PrivateAttr()

    @model_validator(mode="after")
    def _parse(self) -> Self:
        with within("objective", self.objective):
            self._call, self._kind = _found(self.objective)
            # The model comes later.
            bind("objective", self._call, partial(self._kind, None))
        with within("masking", self.masking):
            for key in self.masking:
                require_known("masking setting", key, MaskingSettings.model_fields)
            self._own = MaskingSettings(**self.masking)
        return self

    @property
    def call(self) -> Call:
        """The objective with its arguments, for ``objective``."""
        return self._call

    @property
    def kind(self) -> type[Objective]:
        """The class of the objective."""
        return self._kind

    @property
    def starts(self) -> tuple[str, ...]:
        """The models that exist and that arguments name, such as a teacher."""
        given = bind("objective", self._call, partial(self._kind, None)).arguments
        return tuple(given[name] for name in self._kind.starts if name in given)

    @property
    def own(self) -> MaskingSettings:
        """The settings ``masking``, parsed."""
        return self._own


def require_fit(settings: MaskingSettings, kind: type[Objective], *, who: str) -> None:
    """Raise ``MaskwiseError`` if an objective cannot use the labels of a corruption.

    Args:
        settings: the masking settings of the objective.
        kind: the class of the objective.
        who: words for the objective in the error message, such as "objective mlm".
    """
    shown = settings.corruption
    corrupts = settings.values["corruption"]
    if kind.kind == "encoder-decoder":
        kind.check(Masking(corruption=corrupts))
    if kind.in_place and not corrupts.keeps_length:
        raise MaskwiseError(
            f"corruption {shown} changes the length of a text",
            do=f"for {who}, choose a corruption that keeps the length, such as mask-only",
        )
    if corrupts.detects != kind.detects:
        has = "labels 0 and 1, not tokens" if corrupts.detects else "tokens as labels, not 0 and 1"
        other = "target='detect'" if kind.detects else "another target, or the corruption bert"
        raise MaskwiseError(f"corruption {shown} has {has}", do=f"for {who}, choose {other}")


__getattr__ = on_first_use(
    __name__,
    {
        "Classification": "base",
        "Loss": "base",
        "MultiLabel": "base",
        "InBatchNegatives": "base",
        "MultipleChoice": "base",
        "Objective": "base",
        "Regression": "base",
        "SpanQuestionAnswering": "base",
        "CausalLanguageModelling": "denoising",
        "Denoising": "denoising",
        "DenoisingAutoencoder": "denoising",
        "predicting": "denoising",
        "AddedTokenDetection": "discriminative",
        "ContrastiveSentences": "discriminative",
        "DeletedTokenDetection": "discriminative",
        "ReplacedTokenDetection": "discriminative",
        "Distillation": "distil",
        "RetroMae": "retromae",
        "EntityMaskedLanguageModelling": "mlm",
        "MaskedDiffusion": "mlm",
        "MaskedLanguageModelling": "mlm",
        "MaskedNextTokenPrediction": "mlm",
    },
)
