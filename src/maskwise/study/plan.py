"""What a study runs: runs, each a chain of stages and the stages that evaluate its checkpoint, and
plans of runs to be done together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, product

from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Record
from maskwise.models import has_head
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.stages import (
    Stage,
    evaluate_stage,
    finetune_stage,
    learn_stage,
    overlap_stage,
    prepare_stage,
    pretrain_stage,
)
from maskwise.tasks import load_task
from maskwise.text.settings import CorpusSettings
from maskwise.text.worlds import of_run


@dataclass(frozen=True)
class Run:
    """One arm with one seed: a chain of stages, and the stages that evaluate its checkpoint.

    Attributes:
        arm: its name.
        seed: the seed of the pre-training run.
        recipe: the arm's settings, the seed, and what a search or matching set.
        chain: texts, learnings of policies, and trainings, each after the stages it needs; no
            training for the reference.
        evaluated: the measures without fine-tuning; None for a reference that cannot fill masks.
        tasks: by task, the stage that fine-tunes on it.
        overlaps: whether its texts hold the tests of its tasks.
        fraction: its share of the whole run's steps.
        setting: the point of a search that it tries, or that was chosen for it, by dotted name.
        role: "" of a run that is compared, "search" of one that is tried, "gate" of one that a gate
            compares.
    """

    arm: str
    seed: int
    recipe: Recipe
    chain: tuple[Stage, ...]
    evaluated: Stage | None = None
    tasks: dict[str, Stage] = field(default_factory=dict)
    overlaps: tuple[Stage, ...] = ()
    fraction: float = 1.0
    setting: Plain = field(default_factory=dict)
    role: str = ""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order in which they can be done."""
        evaluated = (self.evaluated,) if self.evaluated else ()
        return (*self.chain, *evaluated, *self.tasks.values(), *self.overlaps)

    @property
    def trainings(self) -> list[Stage]:
        """The trainings of the chain."""
        return [stage for stage in self.chain if stage.kind == "pretrain"]

    @property
    def pretrained(self) -> Stage | None:
        """The last training; None for the reference."""
        return self.trainings[-1] if self.trainings else None

    @property
    def texts(self) -> list[Stage]:
        """The text of every training, in order; of the reference its one text."""
        named = {stage.name: stage for stage in self.chain}
        return [named[training.needs[0]] for training in self.trainings] or [self.chain[0]]

    @property
    def prepared(self) -> Stage:
        """The last text that is trained on."""
        return self.texts[-1]

    @property
    def row(self) -> str:
        """The run's label in a table of seeds."""
        label = reference_words(self.recipe) if self.arm == REFERENCE else self.arm
        if self.fraction != 1:
            label += f" · {self.fraction:.0%} of the steps"
        if self.role == "search":
            point = [f"{key.split('.')[-1]}={value}" for key, value in self.setting.items()]
            return f"{label} · {', '.join(point)}"
        return f"{label} · {self.role}" if self.role else label

    @property
    def who(self) -> Record:
        """The fields that name the run in records."""
        who: Record = {"arm": self.arm, "seed": self.seed}
        if self.fraction != 1:
            who["fraction"] = self.fraction
        if self.role:
            who["role"] = self.role
        return who

    @property
    def compared(self) -> bool:
        """Whether it is a whole run that the study's contrasts compare."""
        return self.fraction == 1 and not self.role


@dataclass(frozen=True)
class Plan:
    """Runs that can be done together, in the order of their start: one of every arm before the
    second of any.

    Attributes:
        purpose: texts, search, main or companions.
    """

    runs: tuple[Run, ...]
    purpose: str = "main"

    def stages(self) -> list[Stage]:
        """Every stage once, after those it needs; texts first, unless they wait for a policy."""
        every = dict.fromkeys(chain.from_iterable(run.stages for run in self.runs))
        return sorted(every, key=lambda stage: stage.kind != "prepare" or len(stage.needs) > 1)


def stages_of(plans: Iterable[Plan]) -> dict[str, Stage]:
    """The stages of several plans by name."""
    every = chain.from_iterable(plan.stages() for plan in plans)
    return {stage.name: stage for stage in every}


def make_plan(recipe: Recipe) -> Plan:
    """The whole runs of a recipe as it is written, without what searching and matching would
    change.

    >>> from maskwise.recipe import read_recipe
    >>> plan = make_plan(read_recipe("quick-start", ["study.seeds=1"]))
    >>> len(plan.runs), [stage.kind for stage in plan.stages()][:2]
    (3, ['prepare', 'pretrain'])

    Raises:
        MaskwiseError: a study without arms.
    """
    require_arms(recipe)
    contents = task_contents(recipe)
    arms = arms_of(recipe, contents)
    pairs = product(recipe.study.seed_list, arms)
    return Plan(tuple(make_run(recipe, arm, seed, contents=contents) for seed, arm in pairs))


def require_arms(recipe: Recipe) -> None:
    """Refuse a recipe that compares nothing."""
    if not recipe.study.arms:
        raise MaskwiseError(
            f"recipe {recipe.name!r} compares nothing",
            do="give it study.arms, or use maskwise pretrain",
        )


def arms_of(recipe: Recipe, contents: Mapping[str, str]) -> list[str]:
    """The arms, and the reference if anything can be measured of it: tasks, or how a start with a
    head fills masks.
    """
    # A new model without tasks has nothing that could be measured.
    if contents or _fills_masks(baseline_of(recipe)):
        return [*recipe.study.arms, REFERENCE]
    return list(recipe.study.arms)


def baseline_of(recipe: Recipe) -> Recipe:
    """The recipe of the baseline's runs."""
    assert recipe.baseline is not None, "require_arms comes first"
    return recipe.arm(recipe.baseline, seed=0)


def _fills_masks(recipe: Recipe) -> bool:
    """Whether the start of a run can be evaluated as it is."""
    return recipe.model.pretrained is not None and has_head(recipe.model.pretrained)


def reference_words(baseline: Recipe) -> str:
    """The label of the reference, for the recipe of the baseline."""
    return "no further training" if baseline.model.pretrained else "no pre-training"


def task_contents(recipe: Recipe) -> dict[str, str]:
    """The hash of every task's rows, by task."""
    return {task: load_task(task).fingerprint for task in recipe.tasks}


def make_run(
    recipe: Recipe,
    arm: str,
    seed: int,
    *,
    contents: Mapping[str, str],
    more: Mapping[str, object] | None = None,
    evaluated: bool = True,
    fraction: float = 1.0,
    setting: Plain | None = None,
    role: str = "",
) -> Run:
    """The stages of one run.

    Args:
        contents: ``task_contents`` of the tasks that it is evaluated on.
        more: settings changed in addition to those of the arm.
        evaluated: also measure what needs no fine-tuning.
        fraction, setting, role: as in ``Run``.
    """
    reference = arm == REFERENCE
    own = recipe.arm((recipe.baseline or arm) if reference else arm, seed=seed, more=more)
    links = own.links()
    # The first text trains the tokenizer of all the others.
    text = prepare_stage(links[0].unlearned())
    chain = [text]
    last: Stage | None = None
    trained = () if reference else links
    for link in trained:
        learned = None
        if link.learns:
            learned = learn_stage(link, own.learned_task, text, after=last)
            chain.append(learned)
        prepared = prepare_stage(link, after=text, learned=learned)
        last = pretrain_stage(link, prepared, after=last)
        chain += [prepared, last]
    judged = None
    if evaluated and (last or _fills_masks(own)):
        # All arms are evaluated on the study's last text, in rows as the arm's model knows them.
        rows = links[-1].corpus.model_dump(include={"length", "layout", "attention"})
        corpus = of_run(recipe.links()[-1].unlearned().corpus.model_dump() | rows, seed)
        measured = own.model_copy(update={"corpus": CorpusSettings(**corpus)})
        held_out = prepare_stage(measured, after=text)
        chain.append(held_out)
        judged = evaluate_stage(own, held_out, last)
    tasks: dict[str, Stage] = {}
    overlaps: list[Stage] = []
    # The overlap of a task and a text does not depend on the run, so arms share that stage.
    for task, content in contents.items():
        spec = of_run(task, seed)
        if spec != task:  # a task in a world of the run's own has other rows in every run
            content = load_task(spec).fingerprint
        tasks[task] = finetune_stage(own, spec, content, prepared=text, pretrained=last)
        if role == "search":  # dev rows choose, so test items in the corpus do not matter
            continue
        # A stream is read once, by the training.
        whole = [link for link in trained if not link.corpus.stream]
        overlaps += [overlap_stage(link, spec, content) for link in whole]
    return Run(
        arm,
        seed,
        own,
        chain=tuple(dict.fromkeys(chain)),
        evaluated=judged,
        tasks=tasks,
        overlaps=tuple(dict.fromkeys(overlaps)),
        fraction=fraction,
        setting=setting or {},
        role=role,
    )


def learned_from(recipe: Recipe) -> dict[str, str]:
    """By arm that learns its policy, the name of the task it is learned from.

    Raises:
        MaskwiseError: fewer than two tasks, or one that no policy is learned from.
    """
    tasks = [load_task(spec).name for spec in recipe.tasks]
    learned: dict[str, str] = {}
    for name in recipe.study.arms:
        link = recipe.arm(name, seed=0).links()[-1]
        if link.learns:
            learned[name] = load_task(link.learned_task).name
    known = {name: task for name, task in learned.items() if task in tasks}
    if len(set(known.values())) < max(2, len(tasks)):
        raise MaskwiseError(
            "study.transfer compares policies that were learned from each of the study's tasks, "
            "two or more",
            got=f"policies learned from {', '.join(sorted(set(learned.values()))) or 'no task'}",
            do=f"give arms masking.policy: learned and learning.task: one of {', '.join(tasks)}",
        )
    return known
