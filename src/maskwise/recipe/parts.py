"""The parts of a recipe: the five choices and what stands around them. Plain values, checked by pydantic."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from maskwise.annotate.registry import annotator, check_names
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.masking.corruptions import corruption
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.masking.select import BUDGETS, FILLS
from maskwise.objectives import objective_class


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusPart(Part):
    """Where the text comes from and how it is cut into rows."""

    source: str = "bundled:wikipedia"
    """A file or folder (.txt, .jsonl, .gz, .parquet), ``hf:NAME`` for a datasets id, or the sample."""
    text_field: str = "text"
    limit: int | None = Field(None, ge=1)
    """At most this many documents."""
    length: int = Field(64, ge=4)
    """Positions a row."""
    layout: Literal["packed", "document"] = "packed"
    """Rows filled with one document after another, or a document piece each."""
    held_out: float = Field(0.02, gt=0, lt=0.5)
    """Share of the documents that is never trained on."""
    layers: tuple[str, ...] = ()
    """Annotators whose layers the rows carry, such as pos and salient; stored("FOLDER") takes finished ones."""

    @field_validator("source")
    @classmethod
    def _one_spelling(cls, value: str) -> str:
        """``./a.txt`` is ``a.txt``, and so the same stage."""
        return value if value.startswith(("hf:", "bundled:")) else os.path.normpath(value)

    @field_validator("layers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names([annotator(spec) for spec in value])
        return value


class TokenizerPart(Part):
    """A tokenizer by name, or one trained on the corpus."""

    name: str | None = None
    """A folder, hub id, ``bundled:encoder`` or ``package:NAME``. None: the pre-trained model's own, or a new one."""
    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    vocab_size: int = Field(2048, ge=64)
    lowercase: bool = True


class ModelPart(Part):
    """A model from a configuration, or a pre-trained one to go on with."""

    pretrained: str | None = None
    """A folder, hub id, ``bundled:encoder`` or ``package:NAME`` (an installed one). None: fresh weights."""
    architecture: str = "modernbert"
    settings: dict[str, Any] = {}
    """Fields of the architecture's configuration, such as hidden_size."""
    unigram_bias: bool = True
    """Start the output bias of a new head at the log-frequencies of the training text."""

    @field_validator("settings")
    @classmethod
    def _truth(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Here no type says that ``no`` is meant as a truth value; and no setting of a model is a word like it."""
        words = {"yes": True, "on": True, "no": False, "off": False}
        return {key: words.get(str(setting), setting) for key, setting in value.items()}


class MaskingPart(Part):
    """What is masked, how much, and how it is shown."""

    policy: str = "token"
    ratio: str | float = 0.15
    budget: str = "exact"
    fill: str = "none"
    corruption: str = "bert"
    min_targets: int = Field(1, ge=0)
    predict: str | float = 1.0
    """The loss is taken on at most this share of each row's tokens."""

    @field_validator("policy", "ratio", "predict", "corruption")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        {"policy": policy, "corruption": corruption}.get(str(info.field_name), schedule)(value)
        return value

    @field_validator("corruption")
    @classmethod
    def _asks_for_tokens_in_place(cls, value: str) -> str:
        _fitting(value, "masked language models", in_place=True, detects=False)
        return value

    @field_validator("budget", "fill")
    @classmethod
    def _listed(cls, value: str, info: Any) -> str:
        names = BUDGETS if info.field_name == "budget" else FILLS
        if value not in names:
            raise unknown_name(str(info.field_name), value, names)
        return value


class ObjectivePart(Part):
    """One arm of a training on several objectives."""

    objective: str
    """Its name, with arguments: mlm, emlm, atd, dtd, cse(temperature=0.05), rtd, sbo."""
    masking: dict[str, Any] = {}
    """What its masks have of their own; the rest is the recipe's masking, for objectives that mask."""

    @field_validator("objective")
    @classmethod
    def _objective(cls, value: str) -> str:
        objective_class(value)
        return value

    @field_validator("masking")
    @classmethod
    def _masking(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key not in MaskingPart.model_fields:
                raise unknown_name("setting of masking", key, MaskingPart.model_fields)
        corruption(value.get("corruption", "bert"))  # which of them, the objective says
        MaskingPart(**{key: setting for key, setting in value.items() if key != "corruption"})
        return value

    @model_validator(mode="after")
    def _fits(self) -> ObjectivePart:
        kind = objective_class(self.objective)
        if wanted := self.masking.get("corruption"):
            _fitting(wanted, f"objective {self.objective}", in_place=kind.in_place, detects=kind.detects)
        return self


def _fitting(wanted: str, who: str, *, in_place: bool, detects: bool) -> None:
    """Refuse a corruption whose labels are not those that the loss reads."""
    shown = corruption(wanted)
    if in_place and not shown.keeps_length:
        do = f"for {who} take one that keeps lengths, such as bert"
        raise MaskwiseError(f"corruption {wanted} changes lengths", do=do)
    if shown.detects and not detects:
        do = f"for {who} take another target, or bert"
        raise MaskwiseError(f"corruption {wanted} has labels 0 and 1, not tokens", do=do)
    if detects and not shown.detects:
        do = f"for {who} take one with target='detect', such as replace(target='detect')"
        raise MaskwiseError(f"corruption {wanted} has tokens as labels, not 0 and 1", do=do)
