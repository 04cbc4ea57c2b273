"""The settings of a study, and the recipes of its arms, runs and training phases.

An arm is one way to pre-train, a run is one arm with one seed, and a run may train in several
phases. Recipes are immutable: a change creates a new recipe, which is validated completely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from maskwise.annotate.registry import annotator, check_layer_names
from maskwise.base.constants import DIFFUSION, NEXT_TOKEN, Kind
from maskwise.base.effects import Judgement, Nothing, Settings, Several, Weights, within
from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import Call, leaves, of_run, parse_call
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.learning.settings import LearningSettings
from maskwise.masking.draws import fold
from maskwise.masking.policies import LearnedPolicy, Policy
from maskwise.masking.settings import MaskingSettings
from maskwise.objectives import OBJECTIVES, ObjectiveSettings, objective_class, require_fit
from maskwise.recipe.applies import canonical, refuse, unused
from maskwise.recipe.comparison import StudySettings
from maskwise.recipe.explained import dotted_names, explain
from maskwise.recipe.setting_layers import (
    ARM_PARTS,
    PHASE_PARTS,
    applied,
    blamed,
    layer,
    nest,
    placed,
    require_changeable,
)
from maskwise.recipe.yamls import Plain, write_yaml
from maskwise.tasks.settings import FinetuneSettings
from maskwise.text.settings import CorpusSettings, TokenizerSettings
from maskwise.training.rates import falling_share
from maskwise.training.settings import ModelSettings, TrainingSettings

if TYPE_CHECKING:
    from maskwise.objectives.base import Objective

LEARNED = LearnedPolicy().annotators()
"""The annotators of a masking policy that the run itself learns before training."""


class Recipe(Settings):
    """All settings of an experiment.

    >>> recipe = Recipe(study={"arms": {"a": {}, "b": {"masking.ratio": 0.3}}})
    >>> [recipe.arm(name, seed=7).masking.ratio for name in recipe.study.arms]
    [0.15, 0.3]
    """

    name: Nothing[str] = "recipe"
    """The name of the study, in files and on its page."""
    description: Nothing[str] = ""
    """The question that the study answers, shown on the page."""
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    masking: MaskingSettings = MaskingSettings()
    objective: Weights[str | dict[str, ObjectiveSettings]] = "mlm"
    """``mlm``, ``clm`` or ``diffusion`` for encoders, ``denoise`` for encoder–decoders; or several
    objectives that train one encoder, keyed by name, such as ``{mlm: , cse: }``. An arm, a phase or
    a recipe that writes ``objective`` replaces all of them; ``objective.cse.masking.ratio`` changes
    one."""
    sampler: Weights[str] = "uniform"
    """The rule that chooses one of several objectives at every step, fixed or learned (mometas)."""
    training: TrainingSettings = TrainingSettings()
    phases: Weights[tuple[Plain, ...] | None] = None
    """Training phases, as a list of the settings that each phase changes, such as
    ``[{}, {corpus.length: 256}]``. A phase continues from the checkpoint of the previous phase."""
    evaluation: EvaluationSettings = EvaluationSettings()
    tasks: Judgement[Several[str]] = ()
    """Tasks to fine-tune on: bundled names, files, folders or ``hf:`` ids."""
    finetune: FinetuneSettings = FinetuneSettings()
    learning: LearningSettings | None = None
    """How to learn a masking policy from a task (``maskwise learn``); null to learn no policy."""
    study: StudySettings = StudySettings()

    _only: ObjectiveSettings = PrivateAttr()
    _sampling: Call = PrivateAttr()
    _remarks: list[str] = PrivateAttr(default_factory=list)

    @field_validator("tasks")
    @classmethod
    def _different_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if tasks.count(task) > 1:
                raise MaskwiseError("a task is named twice", got=task, do="name it once")
        return tasks

    @field_validator("corpus")
    @classmethod
    def _known_annotators(cls, corpus: CorpusSettings) -> CorpusSettings:
        # Annotators are created only to report wrong names early. No model is loaded.
        with blamed("layers"):
            check_layer_names([annotator(spec) for spec in of_run(corpus.layers, 0)])
        return corpus

    @staticmethod
    def _alone(value: str) -> ObjectiveSettings:
        """Parse the objective of a recipe that has no other."""
        settings = ObjectiveSettings(objective=value)
        kind = settings.kind
        if kind.alone and value not in OBJECTIVES:
            raise MaskwiseError(
                "an objective with arguments needs a name of its own",
                got=value,
                do=f"use objective={{NAME: {value}}}, or the name of the objective alone",
            )
        if not kind.alone:
            known = OBJECTIVES.without_plugins()
            raise MaskwiseError(
                "this objective cannot be trained alone",
                got=value,
                allowed=", ".join(name for name, kind in known.items() if kind.alone),
                do=f"combine it with another objective: objective={{{value}: {{}}, mlm: {{}}}}",
            )
        return settings

    @field_validator("phases", mode="before")
    @classmethod
    def _nested(cls, value: object) -> object:
        """Convert dotted names to nested settings; the value ``none`` means a single phase."""
        if value == "none":
            return None
        if isinstance(value, list | tuple):
            if not value:
                raise MaskwiseError("the list is empty", allowed="≥ 1 phase, or null for one phase")
            return [_phase(phase or {}, f"phases.{n}", len(value)) for n, phase in enumerate(value)]
        return value

    @field_validator(
        "objective",
        mode="before",
        json_schema_input_type=str | dict[str, ObjectiveSettings | str | None],
    )
    @classmethod
    def _by_name(cls, value: object) -> object:
        """Accept ``atd:`` for the objective atd, and ``mlm-40: mlm`` for mlm with another name."""
        if not isinstance(value, Mapping):
            return value
        if not value:
            raise MaskwiseError("no objective is named", do="name one, such as objective=mlm")
        arms = {}
        for name, arm in value.items():
            changes = nest(layer(arm)) if isinstance(arm, Mapping) else {"objective": arm or name}
            arms[name] = {"objective": name, **changes}
        return arms

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Recipe:
        if isinstance(self.objective, str):
            with within("objective", self.objective):
                self._only = self._alone(self.objective)
        self._sampling = parse_call(self.sampler)
        if self.objectives:
            # Samplers and objectives are imported when a recipe with them is read: they need torch.
            from maskwise.samplers import sampler

            sampler(self.sampling, list(self.objectives))
        # All objectives train the same encoder or encoder–decoder.
        kinds = {arm.kind.kind: name for name, arm in self.objectives.items()}
        if len(kinds) > 1:
            raise MaskwiseError(
                "all objectives must train models of one kind",
                got=" and ".join(f"{name} ({kind})" for kind, name in kinds.items()),
            )
        self._remarks = [*self._checked()]
        if self.study.search and self.study.search.by == "dev" and not self.tasks:
            raise MaskwiseError("study.search.by=dev needs tasks", do="add tasks, or use held-out")
        self._check_phases(**(info.context or {}))
        return self

    def _check_phases(self, arm: str = "", phase: str = "") -> None:
        """Check that all phases can train the model of the first phase.

        Args:
            arm: what stands before the names of the arm's settings in an override; "" for no arm.
            phase: the same of the phase, if this is the recipe of one.
        """
        links = self.links()
        positions = links[0].corpus.length
        for (prefix, changes), link in zip(self._changes.items(), links):
            setting = f"{prefix}corpus.length"
            length = link.corpus.length
            # An override names the arm and, if it has the setting, the phase. Therefore, what names
            # an override is checked in the recipe that has the phases, and not in that of a phase.
            own = {key.rpartition(".")[2] for key in layer(changes) if key.startswith("training.")}
            places = {True: f"{arm}{prefix}training", False: f"{arm}training"}
            if link.training.patience is not None and not link.training.eval_every:
                raise MaskwiseError(
                    "training.patience counts evaluations during training, and there are none",
                    got="training.eval_every=0",
                    do="set training.eval_every, such as to a twentieth of training.steps",
                )
            for name in ("patience", "lengths"):
                if phase or getattr(link.training, name) is None:
                    continue
                own_kinds = link.judged_on()
                if own_kinds and (not link.causal or NEXT_TOKEN in link.evaluation.masks):
                    continue
                raise MaskwiseError(
                    f"{prefix}training.{name} chooses by a held-out loss, and none that this "
                    "objective trains is measured",
                    got=", ".join(link.objectives) or str(link.objective),
                    do=f"set {places[name in own]}.{name}=null",
                )
            if link.training.lengths is not None:
                _require_stable(link)
                if link.training.patience is not None and not phase:
                    place = places[not own.isdisjoint({"patience", "lengths"})]
                    raise MaskwiseError(
                        f"{prefix}training.lengths: a training ends at one of its lengths, or when "
                        "its patience is exhausted",
                        got="both",
                        do=f"remove one of them, or set {place}.patience=null or "
                        f"{place}.lengths=null",
                    )
            mixed = link.corpus.stream or len(link.corpus.sources) > 1
            if link.training.group_by_length and mixed and not phase:
                raise MaskwiseError(
                    f"{prefix}training.group_by_length: rows of a stream or a mix cannot be "
                    "grouped by length",
                    do=f"set {places['group_by_length' in own]}.group_by_length=false",
                )
            if link.kind != self.kind:
                raise MaskwiseError(
                    f"all phases must train the model of the first phase, an {self.kind}",
                    got=f"{', '.join(link.trained_by)}, which trains an {link.kind}",
                )
            if self.has_new_positions and length > positions:
                raise MaskwiseError(
                    f"{setting} exceeds the number of positions of the new model",
                    got=length,
                    allowed=f"≤ corpus.length = {positions}",
                    do="use shorter rows, or give the model more positions: "
                    f"model.settings.max_position_embeddings={length}",
                )

    def require_used(self, written: Mapping[str, Any], *, in_file: bool = False) -> None:
        """Check that settings have an effect in at least one training of the recipe.

        Args:
            written: the settings to check, by dotted name. An arm is checked if it is among them.
            in_file: whether they are those of a file, which other recipes may extend.
        """
        arms = self.runs()
        _refuse(written, [*chain(*arms.values())], in_file=in_file)
        changed = {place[2] for place, _ in map(placed, written) if place[:2] == ("study", "arms")}
        for name, changes in self.study.arms.items():
            if name in changed:
                # Arms of a file are those of this recipe, also if another recipe extends it.
                origin, place = f"arm {name!r}", f"study.arms.{name}."
                _refuse(layer(changes), arms[name], origin=origin, place=place)

    def unused(self, written: Mapping[str, Any]) -> list[str]:
        """Return the names of those settings that have no effect in any training."""
        links = [link for run in chain(*self.runs().values()) for link in run.written_links()]
        return [name for name, _, _ in unused(written, links)]

    def runs(self) -> dict[str, list[Recipe]]:
        """Return the recipes of all runs with one seed, by arm; without arms, this recipe."""
        if not self.study.arms:
            return {"": [self]}
        said = self._said("study")
        return {
            name: [self._arm(said, name, more, 0) for more in self.study.settings_used(name)]
            for name in self.study.arms
        }

    def check_arm(self, name: str, runs: Iterable[Recipe]) -> None:
        """Check the runs of an arm with all settings that it uses, and that it has an outcome."""
        match = self.study.equal_by
        # The baseline may have steps of its own, from which those of the other arms are computed.
        of = self.arm(name, seed=0) if name == self.baseline else self
        for run in runs:
            links = run.links()
            if match != "steps" and any(link.objectives for link in links):
                raise MaskwiseError(
                    f"arm {name!r} has several objectives, and such arms can be matched by steps "
                    "only",
                    got=f"study.equal_by={match}",
                )
            if match != "steps" and links[0].training.steps != of.links()[0].training.steps:
                raise MaskwiseError(
                    f"arm {name!r} has training.steps, which study.equal_by={match} computes for "
                    "it",
                    got=links[0].training.steps,
                    do="leave out training.steps, or set study.equal_by=steps",
                )
        # The kinds of masks are the same for all settings of the grid, so only the last is checked.
        kinds = set()
        for link in links:
            kinds |= {kind.split()[0] for kind in link.judged_on()}
        masks = links[-1].evaluation.masks
        if not self.tasks and not kinds & set(masks):
            raise MaskwiseError(
                f"nothing measures arm {name!r}: there are no tasks, and evaluation.masks lacks "
                "its kind of masks",
                got=list(masks),
                allowed=" or ".join(sorted(kinds)) or "tasks",
            )

    @property
    def objectives(self) -> dict[str, ObjectiveSettings]:
        """The objectives among which the sampler chooses; empty if a single one trains."""
        return {} if isinstance(self.objective, str) else self.objective

    @property
    def only(self) -> ObjectiveSettings:
        """The settings of the objective, if a single one trains."""
        return self._only

    @property
    def in_names(self) -> Plain:
        """The objectives as names of stages contain them, which are hashes of these values.

        Before November 2026, ``objective`` and ``objectives`` were two settings. With their former
        shape, recorded stages keep their names.
        """
        if isinstance(self.objective, str):
            return {"objective": self.objective, "objectives": {}}
        several = {name: each.model_dump(mode="json") for name, each in self.objective.items()}
        return {"objective": "mlm", "objectives": several}

    @property
    def sampling(self) -> Call:
        """The setting ``sampler``, parsed, for ``samplers.sampler``."""
        return self._sampling

    @property
    def trained_by(self) -> dict[str, ObjectiveSettings]:
        """The settings of each objective, keyed by its name in messages."""
        if not self.objectives:
            return {f"objective {self.objective}": self.only}
        return {f"objective.{name}": each for name, each in self.objectives.items()}

    @property
    def masked(self) -> dict[str, tuple[type[Objective], MaskingSettings]]:
        """The class and the masking settings of each objective, keyed by its name in messages."""
        masked = {}
        for name, each in self.trained_by.items():
            with blamed(name):
                masked[name] = (each.kind, self.masking_of(each))
        return masked

    def masking_of(self, objective: ObjectiveSettings) -> MaskingSettings:
        """Return the masking settings of one of the objectives."""
        kind = objective.kind
        own = objective.own
        # The defaults of masked diffusion replace no value of the user. With several objectives, a
        # value counts if it is not the default, because the recipe of a stage sets all values.
        if kind.diffuses:
            said = self.masking.model_fields_set
            if not self._diffuses:
                said = {*self.masking.model_dump(exclude_defaults=True)}
            kept = MaskingSettings().replaced(self.masking, said)
            own = kept.replaced(own)
        return kind.settings(self.masking, own)

    def _checked(self) -> Iterator[str]:
        """Yield warnings about masking settings; raise an error if an objective cannot learn."""
        for name, (kind, settings) in self.masked.items():
            place = name if self.objectives else "masking.corruption"
            with blamed(place):
                who = f"objective {self.trained_by[name].objective}"
                require_fit(settings, kind, who=who)
            with blamed(name):
                remark = kind.check(kind.value_of(settings))
            if remark:
                yield f"{name}: {remark}"

    def remarks(self) -> list[str]:
        """Return the warnings about masking settings."""
        return self._remarks

    @property
    def _diffuses(self) -> bool:
        return not self.objectives and self.only.kind.diffuses

    @property
    def has_new_positions(self) -> bool:
        """Whether the model is new and has only as many positions as a row has tokens."""
        return not self.model.pretrained and "max_position_embeddings" not in self.model.settings

    @property
    def policies(self) -> dict[str, Policy]:
        """The masking policies of all objectives, keyed by their texts in the recipe."""
        masked = self.masked.values()
        return {masking.policy: masking.values["policy"] for _, masking in masked}

    @property
    def layers_read(self) -> dict[str, tuple[str, ...]]:
        """The annotation layers that masking reads, for all objectives, by who needs them."""
        found: dict[str, tuple[str, ...]] = {}
        for _, masking in self.masked.values():
            values = masking.values
            found[f"policy {masking.policy} needs"] = tuple(values["policy"].layers())
            found[f"corruption {masking.corruption} needs"] = tuple(values["corruption"].layers())
            if masking.keep:
                kept = found.get("masking.keep names", ())
                found["masking.keep names"] = (*kept, masking.keep)
        return found

    @property
    def masked_by(self) -> dict[str, Policy]:
        """The masking policies that are evaluated: the recipe's, or those of all objectives."""
        policies = {}
        for kind, masking in self.masked.values():
            if kind.inherits:
                policies[masking.policy] = masking.values["policy"]
        common = self.masking.policy
        return {common: policies[common]} if common in policies else policies

    @property
    def kind(self) -> Kind:
        """The kind of model that the objectives train."""
        return next(kind.kind for kind, _ in self.masked.values())

    @property
    def causal(self) -> bool:
        """Whether training predicts next tokens only."""
        return all(each.kind.causal for each in self.trained_by.values())

    @property
    def learns(self) -> bool:
        """Whether training masks with a policy that the run learns first."""
        return not set(LEARNED).isdisjoint(self._layers)

    @property
    def learned_task(self) -> str:
        """The spec of the task from which a masking policy is learned; an error without one."""
        if self.learning is None:
            do = "add learning: {method: supervised, task: …}, as in the recipe learn-supervised"
            if self.learns:
                do += ", or use a finished policy: learned('FOLDER')"
            raise MaskwiseError(f"recipe {self.name!r} learns no policy", do=do)
        if self.learning.task:
            return self.learning.task
        if not self.tasks:
            raise MaskwiseError("learning needs a task", do="set learning.task=FILE")
        return self.tasks[0]

    def unlearned(self) -> Recipe:
        """Return a copy without the annotation layers of a policy that the run learns."""
        layers = tuple(spec for spec in self.corpus.layers if spec not in LEARNED)
        return self.model_copy(update={"corpus": self.corpus.model_copy(update={"layers": layers})})

    def judged_on(self) -> tuple[str, ...]:
        """List the held-out losses that the arm trains; empty if it predicts no tokens."""
        if self._diffuses:
            return (DIFFUSION,)
        if self.causal:
            return (NEXT_TOKEN,)
        units: dict[str, None] = {}
        for policy in self.masked_by.values():
            units |= dict.fromkeys(policy.judged_on())
        if self.kind == "encoder":
            return tuple(units)
        # The loss of a decoder depends on its output format, which is therefore part of the kind.
        writes = self.masking.values["corruption"].writes
        return tuple(f"{unit} {writes}" for unit in units)

    @property
    def chooses(self) -> bool:
        """Whether a training of the study chooses its best state by held-out text."""
        return self.in_a_training("patience", "lengths")

    def in_a_training(self, *names: str) -> bool:
        """Return whether a training of the study has one of these settings, which may be None."""
        # Most recipes have no such key, and arms take milliseconds to build.
        written = self.model_dump_json(exclude={"learning"})
        if not any(name in written for name in names):
            return False
        runs = chain([self], *self.runs().values())
        trainings = [link.training for run in runs for link in run.links()]
        return any(getattr(each, name) is not None for each in trainings for name in names)

    @property
    def baseline(self) -> str | None:
        """The arm that other arms are compared with; None without arms."""
        return self.study.baseline or next(iter(self.study.arms), None)

    @property
    def tokenizer_name(self) -> str | None:
        """The tokenizer of the recipe, the model or the token ids; None to train a tokenizer."""
        return self.tokenizer.name or self.model.pretrained or self.corpus.tokens

    @property
    def _masking(self) -> MaskingSettings:
        """The masking settings, with the defaults of masked diffusion if it is the objective."""
        if not self._diffuses:
            return self.masking
        return self.masking_of(self.only)

    @property
    def _layers(self) -> tuple[str, ...]:
        """The annotators of the corpus and of the policies."""
        specs = dict.fromkeys(self.corpus.layers)
        for policy in self.policies.values():
            specs |= dict.fromkeys(policy.annotators())
        return tuple(specs)

    @property
    def _masks(self) -> tuple[str, ...]:
        """The held-out masks of all arms, including diffusion masks if any arm needs them."""
        masks = self._masks_of_user
        if DIFFUSION in masks:
            return masks
        last = self._last_objectives()
        diffuses = self._diffuses or any(_class_says("diffuses", each) for each in last)
        return (*masks, DIFFUSION) if diffuses else masks

    @property
    def _masks_of_user(self) -> tuple[str, ...]:
        """The setting ``evaluation.masks``, whose default depends on what the arms predict last."""
        masks = self.evaluation.masks
        if "masks" not in self.evaluation.model_fields_set:
            causal = [_class_says("causal", each) for each in self._last_objectives()]
            if any(causal):
                masks = (NEXT_TOKEN,) if all(causal) else (*masks, NEXT_TOKEN)
        return masks

    def _last_objectives(self) -> set[str]:
        """Return the objectives of the last phase of the recipe, and of each of its arms; "" stands
        for several.
        """
        own: Plain = {"objective": self.objective, "phases": self.phases}
        of_arms = [
            (self.study.arms[name], point)
            for name in self.study.arms
            for point in self.study.settings_used(name)
        ]
        found = set()
        for changes in [(), *of_arms]:
            # What is wrong in an arm is reported when the arm is made.
            with suppress(MaskwiseError):
                settings = own
                for each in changes:
                    settings = applied(settings, _in_sections(each, own))
                phases = settings.get("phases")
                last = phases[-1] if phases and isinstance(phases, list | tuple) else {}
                objective = applied(settings, _in_sections(last, ["objective"]))["objective"]
                names = [objective] if isinstance(objective, str) else [*objective]
                found.add(names[0] if len(names) == 1 else "")
        return found

    def links(self) -> tuple[Recipe, ...]:
        """Return one complete recipe for every training phase."""
        return tuple(map(canonical, self.written_links()))

    def written_links(self) -> tuple[Recipe, ...]:
        """Return one recipe for every training phase, also with settings that have no effect."""
        evaluation = self.evaluation.model_copy(update={"masks": self._masks_of_user})
        alone = self.model_copy(update={"phases": None, "evaluation": evaluation})
        links = []
        for n, (prefix, changes) in enumerate(self._changes.items()):
            link = alone
            changes = layer(changes)
            if changes:
                settings = applied(alone._said("study", "tasks"), changes)
                link = _validated(settings, origin=prefix.rstrip("."), phase=prefix)
            seed = self.training.seed
            # A phase with its own seed is the same in all runs, so it is trained only once.
            if "training.seed" in changes:
                seed = link.training.seed
            # A later phase needs a new seed, or it would repeat the order and masks of the first.
            elif n:
                seed = fold(seed, n)
            parts = {
                "masking": link._masking,
                "corpus": link.corpus.model_copy(update={"layers": link._layers}),
                "evaluation": link.evaluation.model_copy(update={"masks": link._masks}),
                # A phase changes no task, so it is read without them.
                "tasks": self.tasks,
            }
            links.append(link.model_copy(update=parts).seeded(seed))
        return tuple(links)

    @property
    def _changes(self) -> dict[str, Plain]:
        """The settings that each phase changes, keyed by the prefix of their dotted names."""
        if self.phases is not None:
            return {f"phases.{n}.": changes for n, changes in enumerate(self.phases)}
        return {"": {}}

    def settings_of(self, name: str) -> tuple[str, ...]:
        """Return the dotted names with which a setting is changed in each phase.

        >>> Recipe(phases=[{}, {"masking.ratio": 0.4}]).settings_of("training.steps")
        ('phases.0.training.steps', 'phases.1.training.steps')
        """
        return tuple(f"{prefix}{name}" for prefix in self._changes)

    def arm(self, name: str, *, seed: int, more: Mapping[str, object] | None = None) -> Recipe:
        """Return the recipe of one run of an arm.

        Args:
            name: the name of the arm.
            seed: the seed of the run.
            more: settings that override those of the arm, keyed by dotted name.

        Raises:
            MaskwiseError: an override is invalid, or changes a setting that arms may not change.
        """
        return self._arm(self._said("study"), name, more, seed)

    def _arm(self, said: Plain, name: str, more: Mapping[str, object] | None, seed: int) -> Recipe:
        settings: Plain = of_run(said, seed)
        for changes in (self.study.arms[name], more or {}):
            with blamed(f"arm {name!r}"):
                changes = of_run(layer(changes), seed)
            for key in changes:
                require_changeable(key, ARM_PARTS, who=f"arm {name!r}", known=dotted_names(Recipe))
            settings = applied(settings, changes)
        return _validated(settings, origin=f"arm {name!r}", arm=f"study.arms.{name}.").seeded(seed)

    def _said(self, *without: str) -> Plain:
        """Return what is written, as the layer on which arms and phases are put.

        The seed is 0, so that the recipes of an arm's runs are equal, and are validated only once.
        """
        plain = self.model_dump(mode="json", exclude={*without}, exclude_unset=True)
        # All arms have the same layers, except those of a learned policy, which few arms need.
        removed = {*LEARNED} - {*self.corpus.layers}
        return layer(plain) | {
            "evaluation.masks": [*self._masks],
            "corpus.layers": [spec for spec in self._layers if spec not in removed],
            "training.seed": 0,
        }

    def seeded(self, seed: int) -> Recipe:
        """Return a copy with a different training seed."""
        return self.model_copy(update={"training": self.training.model_copy(update={"seed": seed})})

    def unchanged(self) -> Recipe:
        """Return a copy whose model is that of its checkpoint, without changes."""
        return self.model_copy(update={"model": self.model.model_copy(update={"changes": ()})})

    def settings(self) -> Plain:
        """Return all settings as plain values, from which ``read_recipe`` makes the same recipe.

        Defaults that depend on the objective are left out: masking, and ``evaluation.masks``.
        """
        plain = self.model_dump(mode="json")
        plain["masking"] = self.masking.model_dump(mode="json", exclude_unset=True)
        if "masks" not in self.evaluation.model_fields_set:
            del plain["evaluation"]["masks"]
        return plain

    def to_yaml(self) -> str:
        """Return the recipe as YAML for ``read_recipe``, with all defaults filled in."""
        plain = self.model_dump(mode="json")
        # If phases, arms or a search change the objective, their masking defaults differ.
        points = [point for name in self.study.arms for point in self.study.points_of(name)]
        changes = [*(self.phases or ()), *self.study.arms.values(), *points]
        if self._diffuses or self.causal or any(map(_changes_objective, changes)):
            plain = self.settings()
        return write_yaml(plain)


def _changes_objective(changes: Plain) -> bool:
    """Whether the changes of a phase, of an arm or of a point of a search name an objective."""
    for key, value in leaves(changes):
        phases = value if isinstance(value, list | tuple) else ()
        if "objective" in key.split(".") or any(
            _changes_objective(phase) for phase in phases if isinstance(phase, dict)
        ):
            return True
    return False


def _in_sections(changes: Mapping[str, Any], sections: Collection[str]) -> Plain:
    """Return those changes of an arm, a point or a phase that are in some sections."""
    found = layer(changes)
    return {name: found[name] for name in found if name.partition(".")[0] in sections}


def _class_says(what: Literal["causal", "diffuses"], objective: str) -> bool:
    """Return an attribute of the class of an objective; False if the name is misspelt."""
    with suppress(MaskwiseError):
        return getattr(objective_class(objective), what)
    return False


def _require_stable(link: Recipe) -> None:
    """Raise an error if decays cannot branch off from a training at several lengths."""
    training = link.training
    with blamed("training.lengths"):
        falls = falling_share(training.decay, training.decay_share)
        if not 0 < falls < 1:
            raise MaskwiseError(
                "the learning rate must stay high, and fall only at the end",
                got=f"training.decay={training.decay}, which falls in a share of {falls:g}",
                do="set training.decay: wsd, or training.decay_share above 0 and below 1",
            )
        ends = training.ends
        if len({*ends}) < len(ends):
            raise MaskwiseError(
                "two lengths are the same number of steps",
                got=f"{', '.join(map(str, ends))} of {training.steps} steps",
                do="give fewer lengths, or more steps",
            )
        begins = int(ends[0] * (1 - falls))
        rises = math.ceil(round(training.warmup * training.steps, 9))
        if begins + 1 < rises:
            raise MaskwiseError(
                "the first decay begins before the learning rate has risen",
                got=f"a decay from step {begins + 1}, and a warm-up of {rises} steps",
                allowed="a decay after the warm-up",
                do="give a longer first length, or a smaller training.warmup",
            )
        if link.objectives:
            raise MaskwiseError(
                "a training with several lengths has one objective",
                got=", ".join(link.objectives),
                do="use training.patience",
            )


def _refuse(
    given: Mapping[str, Any],
    runs: Sequence[Recipe],
    *,
    origin: str = "",
    place: str = "",
    in_file: bool = False,
) -> None:
    """Raise ``MaskwiseError`` if a value has no effect in any training that it is for.

    Args:
        given: a layer, in which a value of a phase has its name, such as phases.1.masking.ratio.
        runs: the recipes of all runs that use these values.
        origin, place, in_file: see ``applies.refuse``.
    """
    # The values of the whole recipe have the key None, and those of a phase its number.
    by_phase: dict[int | None, Plain] = {None: {}}
    for name, value in given.items():
        if name == "phases" and isinstance(value, list | tuple):
            for number, changes in enumerate(value):
                by_phase.setdefault(number, {}).update(layer(changes or {}))
        elif name.startswith("phases."):
            _, phase, *setting = name.split(".", 2)
            own = {setting[0]: value} if setting else layer(value or {})
            by_phase.setdefault(int(phase), {}).update(own)
        else:
            by_phase[None][name] = value
    links = [run.written_links() for run in runs]
    for at, own in by_phase.items():
        used = [
            *chain.from_iterable(links if at is None else (each[at : at + 1] for each in links))
        ]
        inner = place if at is None else f"{place}phases.{at}."
        # An override may leave out a phase of the file.
        if used:
            refuse(own, used, origin=origin, place=inner, in_file=in_file)


def _phase(changes: object, name: str, phases: int) -> object:
    """Return the settings of a phase as a layer."""
    # If the value is no mapping, pydantic raises an error that names the setting.
    if not isinstance(changes, Mapping):
        return changes
    for key in layer(changes):
        # With a fixed seed, all runs share a phase. If they shared the last one, they were equal.
        if not (key == "training.seed" and name == "phases.0" and phases > 1):
            require_changeable(key, PHASE_PARTS, who=name, known=dotted_names(Recipe))
    return layer(changes)


def validate(settings: Mapping[str, object], *, origin: str, **place: str) -> Recipe:
    """Build a recipe from plain values; errors state the ``origin`` of the values.

    Args:
        place: the prefix of an arm or a phase (``Recipe._check_phases``), if the recipe is its own.
    """
    try:
        return Recipe.model_validate(settings, context=place)
    except ValidationError as error:
        raise explain(error, Recipe, origin=origin) from None


def _validated(settings: Plain, *, origin: str, **place: str) -> Recipe:
    """Build a recipe from a layer; see ``validate``."""
    return _validate_once(json.dumps(settings, default=str), origin, **place)


@lru_cache(maxsize=4096)
def _validate_once(settings: str, origin: str, **place: str) -> Recipe:
    """Build a recipe from the JSON of a layer. Validation takes milliseconds, so it is cached."""
    return validate(nest(json.loads(settings)), origin=origin, **place)
