"""Masked batch in, loss out. An objective stands with its head; a downstream task is an objective
too.

Imports ``masking`` and below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from maskwise.errors import unknown_name
from maskwise.objectives.base import Objective, Outcome
from maskwise.objectives.boundary import SpanBoundary
from maskwise.objectives.clm import CausalLanguageModelling
from maskwise.objectives.contrastive import ContrastiveSentences
from maskwise.objectives.denoising import Denoising, predicting
from maskwise.objectives.detection import AddedTokenDetection, DeletedTokenDetection
from maskwise.objectives.diffusion import MaskedDiffusion
from maskwise.objectives.mlm import EntityMaskedLanguageModelling, MaskedLanguageModelling
from maskwise.objectives.replaced import ReplacedTokenDetection
from maskwise.objectives.tasks import (
    Classification,
    MultiLabel,
    MultipleChoice,
    Regression,
    SpanQuestionAnswering,
)
from maskwise.objectives.tsdae import DenoisingAutoencoder
from maskwise.specs import Call, build, parse_call

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OBJECTIVES: dict[str, type[Objective]] = {
    "mlm": MaskedLanguageModelling,
    "emlm": EntityMaskedLanguageModelling,
    "atd": AddedTokenDetection,
    "dtd": DeletedTokenDetection,
    "cse": ContrastiveSentences,
    "rtd": ReplacedTokenDetection,
    "sbo": SpanBoundary,
    "clm": CausalLanguageModelling,
    "diffusion": MaskedDiffusion,
    "tsdae": DenoisingAutoencoder,
    "denoise": Denoising,
}


def objective_class(spec: str | Call) -> type[Objective]:
    """The class of the objective that ``cse(temperature=0.1)`` names.

    Raises:
        MaskwiseError: an unknown name.
    """
    name = parse_call(spec).name if isinstance(spec, str) else spec.name
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def objective(spec: str | Call, model: PreTrainedModel) -> Objective:
    """An objective over a model, from its name with arguments."""
    makers: dict[str, Callable[..., Objective]] = {
        n: partial(made, model) for n, made in OBJECTIVES.items()
    }
    return build("objective", spec, makers)


__all__ = [
    "OBJECTIVES",
    "CausalLanguageModelling",
    "Classification",
    "ContrastiveSentences",
    "Denoising",
    "DenoisingAutoencoder",
    "MaskedDiffusion",
    "MaskedLanguageModelling",
    "MultiLabel",
    "MultipleChoice",
    "Objective",
    "Outcome",
    "Regression",
    "SpanQuestionAnswering",
    "objective",
    "objective_class",
    "predicting",
]
