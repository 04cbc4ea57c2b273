"""What a study runs: runs, each a chain of stages and what judges its end, and plans of runs to be
done together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

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
    """One arm with one seed: a chain of stages, and what judges its end.

    Attributes:
        arm: its name.
        seed: the seed of the pre-training run.
        recipe: its own: the arm's settings, the seed, and what a search or matching set.
        chain: texts, learnings of policies, and trainings, each behind what it needs; no training
            for the reference.
        prepared: the last text that is trained on.
        pretrained: the last training; None for the reference.
        evaluated: what is measured without fine-tuning; None for a reference that cannot fill
            masks.
        tasks: by task, the stage that fine-tunes on it.
        overlaps: whether its texts hold the tests of its tasks.
        fraction: its share of the whole run's steps.
        setting: the point of a search that it tries, or that was chosen for it, by dotted name.
        role: "" of a run that is compared, "search" of one that is tried, "gate" of one that a gate
            compares.
        title: what people read for the arm, if not its name.
    """

    arm: str
    seed: int
    recipe: Recipe
    chain: tuple[Stage, ...]
    prepared: Stage
    pretrained: Stage | None
    evaluated: Stage | None
    tasks: dict[str, Stage]
    overlaps: tuple[Stage, ...] = ()
    fraction: float = 1.0
    setting: Plain = field(default_factory=dict)
    role: str = ""
    title: str = ""

    @property
    def stages(self) -> Iterator[Stage]:
        """All stages, in the order in which they can be done."""
        yield from self.chain
        if self.evaluated:
            yield self.evaluated
        yield from self.tasks.values()
        yield from self.overlaps

    @property
    def trainings(self) -> list[Stage]:
        """The trainings of the chain."""
        return [stage for stage in self.chain if stage.kind == "pretrain"]

    @property
    def texts(self) -> list[Stage]:
        """The text of every training, in order."""
        named = {stage.name: stage for stage in self.chain}
        return [named[training.needs[0]] for training in self.trainings]

    def chain_to(self, wanted: Iterable[Stage]) -> tuple[Stage, ...]:
        """The part of the chain that some of its stages need, themselves included."""
        names = {stage.name for stage in wanted}
        for stage in reversed(self.chain):
            names |= set(stage.needs if stage.name in names else ())
        return tuple(stage for stage in self.chain if stage.name in names)

    @property
    def row(self) -> str:
        """What a table calls the run beside its seed."""
        parts = [self.title or self.arm]
        if self.fraction != 1:
            parts.append(f"{self.fraction:.0%} of the steps")
        if self.role == "search":
            parts.append(
                ", ".join(f"{key.split('.')[-1]}={value}" for key, value in self.setting.items())
            )
        elif self.role:
            parts.append(self.role)
        return " · ".join(parts)

    @property
    def who(self) -> Record:
        """How records name the run."""
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
        purpose: what they are for: texts, search, main or companions.
    """

    runs: tuple[Run, ...]
    purpose: str = "main"

    def stages(self) -> list[Stage]:
        """Every stage once, those that others need first; texts before all that need not come
        before them.
        """
        named = {stage.name: stage for run in self.runs for stage in run.stages}
        return sorted(
            named.values(), key=lambda stage: not (stage.kind == "prepare" and len(stage.needs) < 2)
        )


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
    arms, seeds = arms_of(recipe, contents), recipe.study.seed_list
    return Plan(
        tuple(make_run(recipe, arm, seed, contents=contents) for seed in seeds for arm in arms)
    )


def require_arms(recipe: Recipe) -> None:
    """Refuse a recipe that compares nothing."""
    if not recipe.study.arms:
        do = "give it study.arms, or use maskwise pretrain"
        raise MaskwiseError(f"recipe {recipe.name!r} compares nothing", do=do)


def arms_of(recipe: Recipe, contents: Mapping[str, str]) -> list[str]:
    """The arms, and the reference if anything can be measured of it: tasks, or how a start with a
    head fills masks.
    """
    start = baseline_of(recipe)
    return [*recipe.study.arms, *([REFERENCE] if contents or _fills_masks(start) else [])]


def baseline_of(recipe: Recipe) -> Recipe:
    """The recipe of the baseline's runs."""
    assert recipe.baseline is not None, "require_arms comes first"
    return recipe.arm(recipe.baseline, seed=0)


def _fills_masks(recipe: Recipe) -> bool:
    """Whether the start of a run can be evaluated as it is."""
    return recipe.model.pretrained is not None and has_head(recipe.model.pretrained)


def reference_words(recipe: Recipe) -> str:
    """What people read for the reference."""
    return "no further training" if baseline_of(recipe).model.pretrained else "no pre-training"


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
        contents: ``task_contents`` of the tasks that judge it.
        more: settings changed beside those of the arm.
        evaluated: also measure what needs no fine-tuning.
        fraction: the run's share of the whole run's steps.
        setting: the point of a search that the run tries, or that was chosen for it.
        role: what the run is for, as ``Run.role``.
    """
    reference = arm == REFERENCE
    own = recipe.arm((recipe.baseline or arm) if reference else arm, seed=seed, more=more)
    links = own.links()
    prepared = [prepare_stage(links[0].unlearned())]
    chain: tuple[Stage, ...] = (prepared[0],)
    trained: list[Stage] = []
    for link in [] if reference else links:
        before = trained[-1] if trained else None
        learned = (
            learn_stage(link, own.learned_task, prepared[0], after=before) if link.learns else None
        )
        text = prepare_stage(link, after=prepared[0], learned=learned)
        prepared.append(text)
        trained.append(pretrain_stage(link, text, after=before))
        chain += tuple(stage for stage in (learned, text, trained[-1]) if stage is not None)
    last = trained[-1] if trained else None
    # The yardstick is the study's last text, whatever an arm trains on; in rows as the arm's model
    # knows them.
    rows = links[-1].corpus.model_dump(include={"length", "layout", "attention"})
    last_text = recipe.links()[-1].unlearned().corpus.model_dump() | rows
    measured = own.model_copy(update={"corpus": CorpusSettings(**of_run(last_text, seed))})
    yardstick = prepare_stage(measured, after=prepared[0])
    judged = (
        evaluate_stage(own, yardstick, last) if evaluated and (last or _fills_masks(own)) else None
    )
    chain = tuple(
        {stage.name: stage for stage in (*chain, *([yardstick] if judged else []))}.values()
    )
    # A task in a world of the run's own has other rows in every run.
    asked = {task: (of_run(task, seed), content) for task, content in contents.items()}
    for task, (spec, _) in asked.items():
        if spec != task:
            asked[task] = spec, load_task(spec).fingerprint
    overlaps = [
        overlap_stage(link, spec, content)
        for spec, content in asked.values()
        for link in links[: len(trained)]
        if not link.corpus.stream  # it is read once, by who trains on it
    ]
    return Run(
        arm,
        seed,
        own,
        chain=chain,
        prepared=prepared[-1],
        pretrained=last,
        evaluated=judged,
        tasks={
            task: finetune_stage(own, spec, content, prepared=prepared[0], pretrained=last)
            for task, (spec, content) in asked.items()
        },
        overlaps=tuple({stage.name: stage for stage in overlaps}.values()),
        fraction=fraction,
        setting=setting or {},
        role=role,
        title=reference_words(recipe) if reference else "",
    )


def learned_from(recipe: Recipe) -> dict[str, str]:
    """By arm that learns its policy, the name of the task it is learned from.

    Raises:
        MaskwiseError: fewer than two tasks, or one that no policy is learned from.
    """
    own = {spec: load_task(spec).name for spec in recipe.tasks}
    links = {name: recipe.arm(name, seed=0).links()[-1] for name in recipe.study.arms}
    tasks = {name: load_task(link.learned_task).name for name, link in links.items() if link.learns}
    known = {name: task for name, task in tasks.items() if task in own.values()}
    if len(set(known.values())) < max(2, len(own)):
        raise MaskwiseError(
            "study.transfer compares policies that were learned from each of the study's "
            "tasks, two or more",
            got=f"policies learned from {', '.join(sorted(set(tasks.values()))) or 'no task'}",
            do=f"give arms masking.policy: learned and learning.task: one of "
            f"{', '.join(own.values())}",
        )
    return known
