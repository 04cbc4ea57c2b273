"""From a recipe to stages: arms × seeds × tasks, with every shared piece of work named once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from maskwise.errors import MaskwiseError
from maskwise.study.stages import Stage, finetune_stage, prepare_stage, pretrain_stage
from maskwise.tasks import load_task

REFERENCE = "no-pretraining"
"""The arm of checkpoints that were never pre-trained: what the tasks alone teach."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm: its name. seed: of the pre-training run.
        prepared, pretrained: its stages; ``pretrained`` is None for the reference.
        tasks: by task spec, the stage that fine-tunes on it.
    """

    arm: str
    seed: int
    prepared: Stage
    pretrained: Stage | None
    tasks: dict[str, Stage]

    @property
    def stages(self) -> Iterator[Stage]:
        """In the order in which they can be done."""
        yield self.prepared
        if self.pretrained:
            yield self.pretrained
        yield from self.tasks.values()


@dataclass(frozen=True)
class Plan:
    """All runs of a study, in the order of their start: one run of every arm before the second of any."""

    runs: tuple[Run, ...]

    def stages(self) -> list[Stage]:
        """Every stage once, those that others need first."""
        named = {stage.name: stage for run in self.runs for stage in run.stages}
        order = {"prepare": 0, "pretrain": 1, "finetune": 1}
        return sorted(named.values(), key=lambda stage: order[stage.kind])


def make_plan(recipe: Any) -> Plan:
    """The plan of a recipe.

    Raises:
        MaskwiseError: a study without arms.
    """
    if not recipe.study.arms:
        raise MaskwiseError(
            f"recipe {recipe.name!r} compares nothing", do="give it study.arms, or use maskwise pretrain"
        )
    contents = {task: load_task(task).fingerprint for task in recipe.tasks}
    runs = []
    for seed in recipe.study.seed_list:
        for arm in (*recipe.study.arms, REFERENCE):
            reference = arm == REFERENCE
            one = recipe.arm(recipe.baseline if reference else arm, seed=seed)
            if reference and not one.tasks:
                continue
            prepared = prepare_stage(one)
            pretrained = None if reference else pretrain_stage(one, prepared)
            tasks = {
                task: finetune_stage(one, task, content, prepared=prepared, pretrained=pretrained)
                for task, content in contents.items()
            }
            runs.append(Run(arm, seed, prepared, pretrained, tasks))
    return Plan(tuple(runs))
