"""A whole experiment as a record of the rooms' own settings, and the recipe of each of its runs.

A recipe is frozen, and whatever changes it makes another one that is validated as a whole, once for
each combination of settings: a study resolves its arms here, and everything behind works with typed
recipes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

import yaml
from pydantic import ValidationError, field_validator, model_validator

from maskwise.annotate.registry import annotator, check_names
from maskwise.constants import CONTROL, DIFFUSION
from maskwise.errors import MaskwiseError
from maskwise.evaluation import EvaluationSettings
from maskwise.families import Kind
from maskwise.keys import fold
from maskwise.learning.settings import LearningSettings
from maskwise.masking.corruptions import corruption
from maskwise.masking.policies import Learned, policy
from maskwise.masking.settings import MaskingSettings
from maskwise.models import ModelSettings
from maskwise.objectives import MaskedDiffusion, objective_class
from maskwise.objectives.settings import ObjectiveSettings, require_fit
from maskwise.recipe.comparison import Settings, StudySettings
from maskwise.recipe.overrides import Plain, explain, leaves, nested, put
from maskwise.samplers import sampler
from maskwise.tasks import FinetuneSettings
from maskwise.text.settings import CorpusSettings, TokenizerSettings
from maskwise.text.worlds import of_run
from maskwise.training import TrainingSettings

ARM_PARTS = (
    "corpus",
    "tokenizer",
    "model",
    "masking",
    "objective",
    "objectives",
    "sampler",
    "training",
    "phases",
    "intermediate",
    "finetune",
    "learning",
)
"""What an arm may change. All else is how arms are judged, and must be the same for all."""

PHASE_PARTS = ("corpus", "masking", "objective", "objectives", "sampler", "training")
"""What a phase of training may change of the recipe; all phases have one model and one tokenizer.
"""

ALONE = ("mlm", "clm", "diffusion", "denoise")
"""Objectives that train a model alone: each makes a language model, of its kind."""


def require_changeable(key: str, parts: Sequence[str], *, who: str) -> None:
    """Refuse a setting outside some parts of the recipe; the seed of a training comes from its run."""
    if key.split(".")[0] not in parts or key == "training.seed":
        raise MaskwiseError(f"{who} cannot change {key}", allowed=", ".join(parts))


class Recipe(Settings):
    """A whole experiment.

    >>> recipe = Recipe(study={"arms": {"a": {}, "b": {"masking.ratio": 0.3}}})
    >>> [recipe.arm(name, seed=7).masking.ratio for name in recipe.study.arms]
    [0.15, 0.3]
    """

    name: str = "recipe"
    description: str = ""
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    masking: MaskingSettings = MaskingSettings()
    objective: str = "mlm"
    """What is learnt: masked tokens (``mlm``, at rates of their own ``diffusion``) or next ones
    (``clm``) by encoders, ``denoise`` by encoder–decoders."""
    objectives: dict[str, ObjectiveSettings] = {}
    """Several objectives over one encoder, by the names of their arms; none: ``objective`` alone.
    """
    sampler: str = "uniform"
    """Which of the objectives trains at each step: a rule, or one that learns, such as mometas."""
    training: TrainingSettings = TrainingSettings()
    phases: tuple[Plain, ...] | None = None
    """Trainings one after the other, each from the checkpoint of the one before. Of each: the
    settings in which it differs from the recipe (corpus, masking, objectives, training), as in
    ``[{}, {corpus.length: 256}]``. null: one.
    """
    intermediate: Plain | None = None
    """The short form of two phases, ``phases: [{}, …]``: the settings in which the second one
    differs. null: none.
    """
    evaluation: EvaluationSettings = EvaluationSettings()
    tasks: tuple[str, ...] = ()
    """What a checkpoint is judged by: bundled names, files, folders or ``hf:`` ids."""
    finetune: FinetuneSettings = FinetuneSettings()
    learning: LearningSettings | None = None
    """How a masking policy is learned from a task (``maskwise learn``); null: none is."""
    study: StudySettings = StudySettings()

    @field_validator("corpus")
    @classmethod
    def _known_annotators(cls, corpus: CorpusSettings) -> CorpusSettings:
        try:
            check_names([annotator(spec) for spec in corpus.annotators])
        except MaskwiseError as error:
            raise MaskwiseError(f"layers: {error}") from None
        return corpus

    @field_validator("objective")
    @classmethod
    def _alone(cls, value: str) -> str:
        if value not in ALONE:
            objective_class(value)
            do = f"list it in objectives, with others: objectives: {{{value}: {{}}, mlm: {{}}}}"
            raise MaskwiseError(
                "objective", got=value, allowed=f"{', '.join(ALONE[:-1])} or {ALONE[-1]}", do=do
            )
        return value

    @field_validator("intermediate", mode="before")
    @classmethod
    def _nested(cls, value: object) -> object:
        return None if value == "none" else _phase(value, "intermediate")

    @field_validator("phases", mode="before")
    @classmethod
    def _in_order(cls, value: object) -> object:
        if value == "none":
            return None
        if isinstance(value, list | tuple) and not value:
            do = "leave it out for one training"
            raise MaskwiseError("the list is empty", got="[]", allowed="≥ 1 phase", do=do)
        if not isinstance(value, list | tuple):
            return value
        return [
            _phase({} if phase is None else phase, f"phases.{n}") for n, phase in enumerate(value)
        ]

    @field_validator("objectives", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        """``atd:`` alone is the objective of that name, ``mlm-40: mlm`` one by another."""
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"objective": arm or name}
            if not isinstance(arm, Mapping)
            else {"objective": name, **arm}
            for name, arm in value.items()
        }

    @model_validator(mode="after")
    def _sampled(self) -> Recipe:
        if self.objectives:
            sampler(self.sampler, list(self.objectives))
        elif self.sampler != "uniform":
            raise MaskwiseError(
                "a sampler needs objectives to choose from", got=f"sampler {self.sampler}"
            )
        kinds = {arm.kind.kind: name for name, arm in self.objectives.items()}
        if len(kinds) > 1:
            got = " and ".join(f"{name} ({kind})" for kind, name in kinds.items())
            raise MaskwiseError("objectives are for models of one kind", got=got)
        if self.objectives and self.study.match != "steps":
            what = "trainings on several objectives are matched by steps"
            raise MaskwiseError(what, got=f"study.match {self.study.match}")
        return self

    @model_validator(mode="after")
    def _gated(self) -> Recipe:
        """A control that does not say what it must see proves nothing by seeing nothing."""
        if self.name.endswith(CONTROL) and self.study.arms and self.study.gate is None:
            do = (
                "name the arm that must win and the one that it must beat: study.gate: [oracle, "
                "baseline]"
            )
            raise MaskwiseError(
                f"{self.name} is a positive control by its name, and has no gate", do=do
            )
        return self

    @model_validator(mode="after")
    def _masked_for_diffusion(self) -> Recipe:
        """What its masking leaves unsaid is what masked diffusion wants."""
        if self._diffuses:
            wanted = MaskingSettings(
                **MaskedDiffusion.settings(self.masking.model_dump(), {})
            ).model_dump()
            said = {
                name
                for name in self.masking.model_fields_set
                if getattr(self.masking, name) == wanted[name]
            }
            # what was put in counts as unsaid: ``_given``
            masking = MaskingSettings.model_construct(said, **wanted)
            object.__setattr__(self, "masking", masking)  # settings are frozen for all others
        arms = [arm.get("objective") for arm in self.study.arms.values()]
        if (self._diffuses or "diffusion" in arms) and DIFFUSION not in self.evaluation.masks:
            # by which all arms can be compared
            masks = {"masks": (*self.evaluation.masks, DIFFUSION)}
            object.__setattr__(self, "evaluation", self.evaluation.model_copy(update=masks))
        return self

    @model_validator(mode="after")
    def _learnable(self) -> Recipe:
        try:
            who = (
                "masked language models"
                if self.objective == "mlm"
                else f"objective {self.objective}"
            )
            require_fit(self.masking.corruption, objective_class(self.objective), who=who)
        except MaskwiseError as error:
            raise MaskwiseError(f"masking.corruption: {error}") from None
        self.remarks()
        return self

    @model_validator(mode="after")
    def _with_layers(self) -> Recipe:
        """A policy that names its annotators brings their layers into the corpus."""
        brought = dict.fromkeys(
            spec for name in self.policies for spec in policy(name).annotators()
        )
        if lacking := [spec for spec in brought if spec not in self.corpus.layers]:
            corpus = self.corpus.model_copy(update={"layers": (*self.corpus.layers, *lacking)})
            object.__setattr__(self, "corpus", corpus)  # settings are frozen for all others
        return self

    @model_validator(mode="after")
    def _chained(self) -> Recipe:
        """Each phase is a recipe of its own, and goes on with the model of the first."""
        if self.phases is not None and self.intermediate is not None:
            do = "make it the last of the phases"
            raise MaskwiseError(
                "intermediate is the short form of two phases, and this recipe has phases", do=do
            )
        links = self.links()
        first = links[0]
        for setting, link in zip(self.settings_of("corpus.length"), links):
            if link.training.group_by_length and (
                link.corpus.stream or len(link.corpus.sources) > 1
            ):
                what = (
                    f"rows of a {'stream' if link.corpus.stream else 'mix'} are not grouped "
                    f"by length"
                )
                raise MaskwiseError(what, do="leave out training.group_by_length")
            if link.kind != self.kind:
                what = f"all phases train one model, an {self.kind}"
                raise MaskwiseError(
                    what, got=f"objective {link.objective}, which trains an {link.kind}"
                )
            if self.has_new_positions and link.corpus.length > first.corpus.length:
                what = f"{setting} is more than the positions that a new model has"
                do = f"or give it more: model.settings.max_position_embeddings={link.corpus.length}"
                allowed = f"≤ corpus.length = {first.corpus.length}"
                raise MaskwiseError(what, got=link.corpus.length, allowed=allowed, do=do)
        return self

    def remarks(self) -> list[str]:
        """Warnings about how the objectives' batches are masked.

        Raises:
            MaskwiseError: an objective that would learn nonsense from such batches.
        """
        common, remarks = self.masking.model_dump(), []
        if self._diffuses and (remark := MaskedDiffusion.check(common)):
            remarks.append(f"objective diffusion: {remark}")
        for name, arm in self.objectives.items():
            try:
                remark = arm.kind.check(arm.kind.settings(common, arm.masking))
            except MaskwiseError as error:
                raise MaskwiseError(f"objectives.{name}: {error}") from None
            remarks += [f"objectives.{name}: {remark}"] if remark else []
        return remarks

    @property
    def _diffuses(self) -> bool:
        return not self.objectives and objective_class(self.objective) is MaskedDiffusion

    @property
    def has_new_positions(self) -> bool:
        """Whether the model is new and has as many positions as a row of the corpus."""
        return not self.model.pretrained and "max_position_embeddings" not in self.model.settings

    @property
    def policies(self) -> list[str]:
        """The policies of the training: one, or one for each objective that masks."""
        if not self.objectives:
            return [self.masking.policy]
        common = self.masking.model_dump()
        arms = [arm.kind.settings(common, arm.masking) for arm in self.objectives.values()]
        return list(dict.fromkeys(arm.get("policy", "token") for arm in arms))

    @property
    def learns(self) -> bool:
        """Whether this training is masked by a policy that the run itself learns before it."""
        return any(spec in self.corpus.layers for spec in Learned().annotators())

    @property
    def learned_task(self) -> str:
        """The task that a policy is learned from.

        Raises:
            MaskwiseError: the recipe learns no policy, or names no task.
        """
        if self.learning is None:
            do = (
                "give it learning: {method: supervised, task: …}; maskwise learn "
                "learn-supervised is an example"
            )
            if self.learns:
                do += "; or name a policy that is learned already, learned('FOLDER')"
            raise MaskwiseError(f"recipe {self.name!r} learns no policy", do=do)
        task = self.learning.task or next(iter(self.tasks), None)
        if task is None:
            raise MaskwiseError("learning needs a task", do="name one: learning.task=FILE")
        return task

    def unlearned(self) -> Recipe:
        """The same recipe, whose text no policy of the run's own has scored."""
        layers = tuple(spec for spec in self.corpus.layers if spec not in Learned().annotators())
        if len(layers) == len(self.corpus.layers):
            return self
        return self.model_copy(update={"corpus": self.corpus.model_copy(update={"layers": layers})})

    @property
    def kind(self) -> Kind:
        """The kind of model that is trained."""
        arms = [arm.kind.kind for arm in self.objectives.values()]
        return arms[0] if arms else objective_class(self.objective).kind

    @property
    def masked_by(self) -> list[str]:
        """The policies whose masks are predicted: the recipe's, or those of objectives that all
        have their own.
        """
        if not self.objectives:
            return [self.masking.policy] if objective_class(self.objective).inherits else []
        common, arms = self.masking.model_dump(), self.objectives.values()
        own = dict.fromkeys(
            arm.kind.settings(common, arm.masking)["policy"] for arm in arms if arm.kind.inherits
        )
        return [self.masking.policy] if self.masking.policy in own else [*own]

    def judged_on(self) -> tuple[str, ...]:
        """The kinds of held-out masks that tell what a training has learnt: its own; none where
        nothing is masked.
        """
        if self._diffuses:
            return (DIFFUSION,)
        units = dict.fromkeys(kind for name in self.masked_by for kind in policy(name).judged_on())
        if self.kind == "encoder":
            return tuple(units)
        return tuple(f"{unit} {corruption(self.masking.corruption).writes}" for unit in units)

    @property
    def baseline(self) -> str | None:
        """The arm that the others are compared with."""
        return self.study.baseline or next(iter(self.study.arms), None)

    @property
    def tokenizer_name(self) -> str | None:
        """The name of the tokenizer: the recipe's, or the pre-trained model's own. None: one is
        trained.
        """
        return self.tokenizer.name or self.model.pretrained

    def links(self) -> tuple[Recipe, ...]:
        """The chain of trainings: the recipe of each phase, without phases of its own."""
        alone = self.model_copy(update={"phases": None, "intermediate": None})
        base = alone._given("study", "tasks")
        chain = [
            _changed(base, changes, origin=setting.removesuffix(".")) if changes else alone
            for setting, changes in zip(self.settings_of(""), self._changes)
        ]
        # Other seeds: otherwise the order and the masks of the first phase would come again.
        seed = self.training.seed
        return tuple(link.seeded(fold(seed, n) if n else seed) for n, link in enumerate(chain))

    @property
    def _changes(self) -> tuple[Plain, ...]:
        """The settings in which each phase differs from the recipe."""
        if self.phases is not None:
            return self.phases
        return ({},) if self.intermediate is None else ({}, self.intermediate)

    def settings_of(self, name: str) -> tuple[str, ...]:
        """The dotted name under which each phase's own value of a setting stands.

        >>> Recipe(intermediate={"masking.ratio": 0.4}).settings_of("training.steps")
        ('training.steps', 'intermediate.training.steps')
        """
        if self.phases is not None:
            return tuple(f"phases.{n}.{name}" for n in range(len(self.phases)))
        return (name,) if self.intermediate is None else (name, f"intermediate.{name}")

    def arm(self, name: str, *, seed: int, more: Mapping[str, object] | None = None) -> Recipe:
        """The recipe of one run: the arm's overrides, ``more`` overrides and the seed put in.

        Raises:
            MaskwiseError: an override of what must be the same for all arms, or settings that do
                not fit.
        """
        changes: Plain = {}
        for overrides in (self.study.arms[name], more or {}):
            for key, value in leaves(overrides):
                require_changeable(key, ARM_PARTS, who=f"arm {name!r}")
                changes[key] = of_run(value, seed)
        base = of_run(self._given("study"), seed)
        return _changed(base, changes, origin=f"arm {name!r}").seeded(seed)

    def _given(self, *without: str) -> Plain:
        """The settings from which arms and phases begin: without what an objective or a policy of
        the recipe put in, because they may have others."""
        learned = {spec for name in self.policies for spec in policy(name).annotators()} & {
            *Learned().annotators()
        }
        plain = (self.unlearned() if learned else self).model_dump(
            mode="json", exclude={*without, "masking"}
        )
        return plain | {"masking": self.masking.model_dump(mode="json", exclude_unset=True)}

    def seeded(self, seed: int) -> Recipe:
        """The same recipe with another seed of the training."""
        return self.model_copy(update={"training": self.training.model_copy(update={"seed": seed})})

    def to_yaml(self) -> str:
        """The recipe with every default filled in, as a file that ``read_recipe`` reads again."""
        plain = self.model_dump(mode="json")
        if any("objective" in changes for changes in (*self.study.arms.values(), *self._changes)):
            # What masked diffusion put in is not said, or an arm or phase of another objective
            # would take it for given.
            plain["masking"] = MaskingSettings(
                **self.masking.model_dump(exclude_unset=True)
            ).model_dump(mode="json")
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _phase(value: object, name: str) -> object:
    """The settings in which a phase differs, nested; what is no group of settings is left to
    pydantic.
    """
    if not isinstance(value, Mapping):
        return value
    for key, _ in leaves(value):
        require_changeable(key, PHASE_PARTS, who=name)
    return nested(value)


def validate(settings: Mapping[str, object], *, origin: str) -> Recipe:
    """A recipe from plain values.

    Raises:
        MaskwiseError: what is wrong with them; ``origin`` says where they come from.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise explain(error, Recipe, origin=origin) from None


def _changed(base: Plain, changes: Mapping[str, object], *, origin: str) -> Recipe:
    """A recipe with changes by dotted name; its seed is to be set."""
    base["training"]["seed"] = 0
    return _validate_once(json.dumps(base), json.dumps(list(leaves(changes)), default=str), origin)


@lru_cache(maxsize=4096)
def _validate_once(base: str, changes: str, origin: str) -> Recipe:
    """Each combination of settings is validated once; a validation costs some milliseconds."""
    settings: Plain = json.loads(base)
    for key, value in json.loads(changes):
        put(settings, key, value, clear=False)
    return validate(settings, origin=origin)
