"""From a recipe to stages: arms × seeds × tasks, with every shared piece of work named once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.models import has_head
from maskwise.study.stages import (
    Stage,
    evaluate_stage,
    finetune_stage,
    overlap_stage,
    prepare_stage,
    pretrain_stage,
)
from maskwise.tasks import load_task


@dataclass(frozen=True)
class Run:
    """One arm with one seed: a chain of stages, and what judges its end.

    Attributes:
        arm: its name. seed: of the pre-training run.
        chain: texts and trainings, in order; no training for the reference.
        prepared: the last text that is trained on. pretrained: the last training; None for the reference.
        evaluated: what is measured without fine-tuning; None for a reference that cannot fill masks.
        tasks: by task spec, the stage that fine-tunes on it.
        overlaps: whether its texts hold the tests of its tasks.
        fraction: of the whole run's steps. setting: the point of a search, by dotted name.
        title: what people read for the arm, if not its name.
    """

    arm: str
    seed: int
    chain: tuple[Stage, ...]
    prepared: Stage
    pretrained: Stage | None
    evaluated: Stage | None
    tasks: dict[str, Stage]
    overlaps: tuple[Stage, ...] = ()
    fraction: float = 1.0
    setting: dict[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def stages(self) -> Iterator[Stage]:
        """In the order in which they can be done."""
        yield from self.chain
        if self.evaluated:
            yield self.evaluated
        yield from self.tasks.values()
        yield from self.overlaps

    @property
    def trainings(self) -> list[Stage]:
        return [stage for stage in self.chain if stage.kind == "pretrain"]

    @property
    def row(self) -> str:
        """What a table calls it beside its seed."""
        point = ", ".join(f"{key.split('.')[-1]}={value}" for key, value in self.setting.items())
        share = f"{self.fraction:.0%} of the steps" if self.fraction != 1 else ""
        return " · ".join(part for part in (self.title or self.arm, share, point) if part)

    @property
    def who(self) -> dict[str, Any]:
        """How records name it."""
        share = {"fraction": self.fraction} if self.fraction != 1 else {}
        return {"arm": self.arm, "seed": self.seed, **share}


@dataclass(frozen=True)
class Plan:
    """Runs that can be done together, in the order of their start: one of every arm before the second of any.

    Attributes:
        phase: what they are for: main, search, companions, texts, time.
        alone: one stage at a time, for the clock.
    """

    runs: tuple[Run, ...]
    phase: str = "main"
    alone: bool = False

    def stages(self) -> list[Stage]:
        """Every stage once, those that others need first."""
        named = {stage.name: stage for run in self.runs for stage in run.stages}
        return sorted(named.values(), key=lambda stage: stage.kind != "prepare")


def make_plan(recipe: Any) -> Plan:
    """The whole runs of a recipe as it is written, without what searching and matching would change.

    Raises:
        MaskwiseError: a study without arms.
    """
    require_arms(recipe)
    contents = task_contents(recipe)
    arms = arms_of(recipe, contents)
    return Plan(
        tuple(
            make_run(recipe, arm, seed, contents=contents) for seed in recipe.study.seed_list for arm in arms
        )
    )


def arms_of(recipe: Any, contents: Mapping[str, str]) -> list[str]:
    """The arms, and the reference if anything can be measured of it: tasks, or how a start with a head fills masks."""
    start = recipe.arm(recipe.baseline, seed=0)
    return [*recipe.study.arms, *([REFERENCE] if contents or _fills_masks(start) else [])]


def _fills_masks(one: Any) -> bool:
    """Whether the start of a run can be evaluated as it is."""
    return bool(one.model.pretrained) and has_head(one.model.pretrained)


def reference_words(recipe: Any) -> str:
    """What people read for the reference."""
    return (
        "no further training" if recipe.arm(recipe.baseline, seed=0).model.pretrained else "no pre-training"
    )


def require_arms(recipe: Any) -> None:
    """Refuse a recipe that compares nothing."""
    if not recipe.study.arms:
        raise MaskwiseError(
            f"recipe {recipe.name!r} compares nothing", do="give it study.arms, or use maskwise pretrain"
        )


def task_contents(recipe: Any) -> dict[str, str]:
    """The hash of every task's rows, by spec."""
    return {task: load_task(task).fingerprint for task in recipe.tasks}


def make_run(
    recipe: Any, arm: str, seed: int, *, contents: Mapping[str, str], more: Mapping[str, Any] | None = None,
    evaluated: bool = True, **facts: Any,
) -> Run:  # fmt: skip
    """The stages of one run.

    Args:
        contents: ``task_contents`` of the tasks that judge it.
        more: settings changed beside those of the arm.
        evaluated: also measure what needs no fine-tuning.
        facts: ``fraction`` and ``setting`` of the run.
    """
    reference = arm == REFERENCE
    one = recipe.arm(recipe.baseline if reference else arm, seed=seed, more=more)
    first, *further = one.links()
    prepared = [prepare_stage(first)]
    trained = [] if reference else [pretrain_stage(first, prepared[0])]
    for link in [] if reference else further:
        prepared.append(prepare_stage(link, after=prepared[0]))
        trained.append(pretrain_stage(link, prepared[-1], after=trained[-1]))
    last = trained[-1] if trained else None
    # The yardstick is the study's last text, whatever an arm trains on; in rows as the arm's model knows them.
    rows = one.links()[-1].corpus.model_dump(include={"length", "layout"})
    text = recipe.links()[-1].corpus.model_copy(update=rows)
    yardstick = prepare_stage(one.model_copy(update={"corpus": text}), after=prepared[0])
    tasks = {
        task: finetune_stage(one, task, content, prepared=prepared[0], pretrained=last)
        for task, content in contents.items()
    }
    judged = evaluate_stage(one, yardstick, last) if evaluated and (last or _fills_masks(one)) else None
    texts = {stage.name: stage for stage in (*prepared, *([yardstick] if judged else []))}
    chain = (*texts.values(), *trained)
    overlaps = {
        stage.name: stage
        for task, content in contents.items()
        for link in one.links()[: len(trained)]
        for stage in [overlap_stage(link, task, content)]
    }
    title = reference_words(recipe) if reference else ""
    found = tuple(overlaps.values())
    return Run(arm, seed, chain, prepared[-1], last, judged, tasks, found, title=title, **facts)
