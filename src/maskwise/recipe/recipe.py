"""A whole experiment as plain values, and the recipe of each of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError, field_validator, model_validator

from maskwise.errors import MaskwiseError
from maskwise.evaluation import EvaluationSettings
from maskwise.keys import fold
from maskwise.objectives import objective_class
from maskwise.recipe.mistakes import explain
from maskwise.recipe.overrides import leaves, put
from maskwise.recipe.parts import CorpusPart, MaskingPart, ModelPart, ObjectivePart, Part, TokenizerPart
from maskwise.recipe.study import StudyPart
from maskwise.samplers import sampler
from maskwise.tasks import FinetuneSettings
from maskwise.training import TrainingSettings

ARM_PARTS = (
    "corpus", "tokenizer", "model", "masking", "objectives", "sampler", "training", "intermediate", "finetune",
)  # fmt: skip
"""What an arm may change. All else is how arms are judged, and must be the same for all."""

INTERMEDIATE_PARTS = ("corpus", "masking", "objectives", "sampler", "training")
"""What a second stage of training may change of the first; its model and tokenizer are the first one's."""


class Recipe(Part):
    """A whole experiment."""

    name: str = "recipe"
    description: str = ""
    corpus: CorpusPart = CorpusPart()
    tokenizer: TokenizerPart = TokenizerPart()
    model: ModelPart = ModelPart()
    masking: MaskingPart = MaskingPart()
    objectives: dict[str, ObjectivePart] = {}
    """Several objectives over one encoder, by the names of their arms; none: masked language modelling."""
    sampler: str = "uniform"
    """Which of the objectives trains at each step: a rule, or one that learns, such as mometas."""
    training: TrainingSettings = TrainingSettings()
    intermediate: dict[str, Any] | None = None
    """A second stage of pre-training, which goes on from the first one's checkpoint: the settings in which it differs
    (of corpus, masking, training), such as ``{corpus.source: news.jsonl, training.steps: 200}``. null: none."""
    evaluation: EvaluationSettings = EvaluationSettings()
    tasks: tuple[str, ...] = ()
    """What a checkpoint is judged by: bundled names, files, folders or ``hf:`` ids."""
    finetune: FinetuneSettings = FinetuneSettings()
    study: StudyPart = StudyPart()

    @field_validator("intermediate", mode="before")
    @classmethod
    def _nested(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return None if value == "none" else value
        nested: dict[str, Any] = {}
        for key, setting in leaves(value):
            if key.split(".")[0] not in INTERMEDIATE_PARTS or key == "training.seed":
                allowed = ", ".join(INTERMEDIATE_PARTS)
                raise MaskwiseError(f"intermediate cannot change {key}", allowed=allowed)
            put(nested, key, setting)
        return nested

    @field_validator("objectives", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """``atd:`` alone is the objective of that name, ``mlm-40: mlm`` one by another."""
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"objective": arm or name} if not isinstance(arm, Mapping) else {"objective": name, **arm}
            for name, arm in value.items()
        }

    @model_validator(mode="after")
    def _sampled(self) -> Recipe:
        if self.objectives:
            sampler(self.sampler, list(self.objectives))
        elif self.sampler != "uniform":
            raise MaskwiseError("a sampler needs objectives to choose from", got=f"sampler {self.sampler}")
        if self.objectives and self.study.match != "steps":
            what = "trainings on several objectives are matched by steps"
            raise MaskwiseError(what, got=f"study.match {self.study.match}")
        return self

    @model_validator(mode="after")
    def _learnable(self) -> Recipe:
        self.remarks()
        return self

    def remarks(self) -> list[str]:
        """What is no mistake and should be known of how the objectives' batches are masked.

        Raises:
            MaskwiseError: an objective that would learn nonsense from such batches.
        """
        common, found = self.masking.model_dump(), []
        for name, arm in self.objectives.items():
            kind = objective_class(arm.objective)
            try:
                said = kind.check(kind.settings(common, arm.masking))
            except MaskwiseError as error:
                raise MaskwiseError(f"objectives.{name}: {error}") from None
            found += [f"objectives.{name}: {said}"] if said else []
        return found

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        fresh = not self.model.pretrained and "max_position_embeddings" not in self.model.settings
        for what, length in [
            *([("finetune.max_length", self.finetune.max_length)] if self.tasks else []),
            *[("intermediate.corpus.length", link.corpus.length) for link in self.links()[1:]],
        ]:
            if fresh and length > self.corpus.length:
                raise MaskwiseError(
                    f"{what} is more than the positions that a new model has", got=length,
                    allowed=f"≤ corpus.length = {self.corpus.length}",
                )  # fmt: skip
        return self

    @property
    def baseline(self) -> str | None:
        """The arm that the others are compared with."""
        return self.study.baseline or next(iter(self.study.arms), None)

    @property
    def tokenizer_name(self) -> str | None:
        """Of the tokenizer: as said, or the pre-trained model's own. None: one is trained."""
        return self.tokenizer.name or self.model.pretrained

    def links(self) -> tuple[Recipe, ...]:
        """The chain of trainings: this recipe without its intermediate part, and what that makes of it."""
        if self.intermediate is None:
            return (self,)
        first = self.model_copy(update={"intermediate": None})
        raw = first.model_dump(mode="json", exclude={"study", "tasks"})
        for key, value in leaves(self.intermediate):
            put(raw, key, value)
        # Another seed: the order and the masks of the first stage would come again.
        raw["training"]["seed"] = fold(self.training.seed, 1)
        return first, validate(raw, origin="intermediate")

    def arm(self, name: str, *, seed: int, more: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of one run: the arm's overrides, ``more`` overrides and the seed put in."""
        raw = self.model_dump(mode="json", exclude={"study"})
        for over in (self.study.arms[name], more or {}):
            if over.get("intermediate", "") in (None, "none"):
                raw["intermediate"] = None
            for key, value in leaves(over):
                if key.split(".")[0] not in ARM_PARTS or key == "training.seed":
                    allowed = ", ".join(ARM_PARTS)
                    raise MaskwiseError(
                        f"arm {name!r} cannot change {key}", allowed=allowed, do="or all arms alike"
                    )
                put(raw, key, value)
        return validate({**raw, "training": {**raw["training"], "seed": seed}}, origin=f"arm {name!r}")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def validate(raw: Mapping[str, Any], *, origin: str) -> Recipe:
    """A recipe from plain values, or one line that says what is wrong with them."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise explain(error, Recipe, origin=origin) from None
