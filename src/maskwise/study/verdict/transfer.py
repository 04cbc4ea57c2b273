"""Transfer: does a policy that was learned from one task serve another?

A study whose arms learned their policies from its tasks has a score in every cell of a table, arms
by tasks. Its *diagonal* (``OWN_TASK``) takes for every task the arm that learned from it, and the
rest (``OTHER_TASKS``) the mean of the arms that learned from other tasks of the study. Both are
arms made of arms: they have a score for every task and seed, and are compared with the baseline by
the same paired test as any arm. The cells get intervals and no test.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskwise.constants import OTHER_TASKS, OWN_TASK
from maskwise.files import TransferCell
from maskwise.study.statistics import estimated, paired_differences


def diagonal(
    by_arm: Mapping[str, dict[int, float]], task: str, learned: Mapping[str, str]
) -> dict[str, dict[int, float]]:
    """The scores on one task of ``OWN_TASK`` and of ``OTHER_TASKS``, on the seeds that all of their
    arms have.

    >>> learned = {"from-a": "a", "from-b": "b"}
    >>> scores = {"random": {0: 0.1}, "from-a": {0: 0.5}, "from-b": {0: 0.3}}
    >>> diagonal(scores, "a", learned)
    {'own-task': {0: 0.5}, 'other-tasks': {0: 0.3}}

    Args:
        by_arm: scores on the task by arm and seed.
        learned: by arm, the task that its policy was learned from.
    """
    sides = {
        OWN_TASK: [arm for arm, source in learned.items() if source == task],
        OTHER_TASKS: [arm for arm, source in learned.items() if source != task],
    }
    made = {}
    for side, arms in sides.items():
        seeds = set.intersection(*(set(by_arm.get(arm, {})) for arm in arms)) if arms else set()
        made[side] = {
            seed: float(np.mean([by_arm[arm][seed] for arm in arms])) for seed in sorted(seeds)
        }
    return made


def cells(
    outcomes: Mapping[str, Mapping[str, dict[int, float]]],
    tasks: list[str],
    learned: Mapping[str, str],
    baseline: str,
    sign: Mapping[str, int],
) -> list[TransferCell]:
    """What every learned policy adds to the baseline on every task, with its 95 % interval over
    pairs of runs.

    Args:
        sign: by task, −1 where lower is better: what is added is above 0 where the policy helps.
    """
    table: list[TransferCell] = []
    for arm, source in learned.items():
        for task in tasks:
            mine, other = outcomes[task].get(arm, {}), outcomes[task].get(baseline, {})
            shared = sorted(mine.keys() & other.keys())
            gains = sign[task] * paired_differences(
                {s: mine[s] for s in shared}, {s: other[s] for s in shared}
            )
            cell: TransferCell = {
                "arm": arm,
                "learned_from": source,
                "task": task,
                "n": len(gains),
                **estimated(gains),
            }
            table.append(cell)
    return table
