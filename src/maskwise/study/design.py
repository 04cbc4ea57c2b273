"""What a study runs, plan by plan: each is made when those before it are done.

    texts → search → main → companions

A study without a search or matching has one plan, or two with companions. Every decision follows
from the results in the folders of stages, so a resumed study decides the same again.

**Searching.** Every seed chooses a setting for every arm, by its own dev rows, from runs that are
never compared: the best run of a grid was also the luckiest, and more so for an arm to which the
setting matters little. The compared run is a new one at the chosen setting, with the seed +
``FRESH_RUN``. So pairs of runs stay independent and alike for both arms, and an error in the choice
is part of the differences between pairs.

**Matching.** Matched by steps (the usual way), a higher ratio buys more targets for nothing;
matched by targets, it pays for them with steps; FLOPs lie between. A run spends its number of steps
times the mean of a step, and that mean is measured on batches from the whole run, masked with the
ratio, policy and budget of the arm. A schedule of the ratio runs over a run's own length, so its
mean does not depend on the length. Where there are several phases of training, the first one's
length is set and the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskwise.constants import LOWER_IS_BETTER, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Candidate, Record
from maskwise.models import empty_model
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.costs import per_step, without_weights
from maskwise.study.plan import Plan, Run, arms_of, make_run, require_arms, task_contents
from maskwise.study.pretraining import masked_source
from maskwise.study.work import open_text
from maskwise.text import Prepared

Scores = dict[str, float]
"""By outcome, one number; more is better."""


class Design:
    """A study's plans, and what was decided between them.

    Args:
        seeds: the seeds of the study that are run; None: all of them.
        forecast: count a search that is not done as if it had chosen the first point of its grid.

    Attributes:
        runs: the runs to be reported that are planned so far, those of a gate among them.
        others: runs that only serve a choice.
        chosen: by arm and seed, the setting that a search chose.
        choices: records of kind "selection".
        failed: by arm and seed, the runs of a search none of which succeeded; that run is missing.
        budget: what the baseline spends, where the study matches arms by more than steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        stages: Path,
        *,
        seeds: Sequence[int] | None = None,
        forecast: bool = False,
    ):
        require_arms(recipe)
        self.recipe = recipe
        self.stages = stages
        self.seeds = tuple(seeds or recipe.study.seed_list)
        self.forecast = forecast
        self.contents = task_contents(recipe)
        self.arms = arms_of(recipe, self.contents)
        self.baseline = recipe.baseline or self.arms[0]
        self.chosen: dict[tuple[str, int], Plain] = {}
        self.runs: list[Run] = []
        self.others: list[Run] = []
        self.choices: list[Record] = []
        self.failed: dict[tuple[str, int], list[Run]] = {}
        self.budget: float | None = None

    def plans(self) -> Iterator[Plan]:
        """The plans, to be done one after the other."""
        study = self.recipe.study
        # The length of runs depends on the texts, so these are prepared first.
        if study.match != "steps":
            seed = study.seed_list[0]
            runs = [make_run(self.recipe, arm, seed, contents={}) for arm in study.arms]
            yield Plan(tuple(_texts_of(run) for run in runs), "texts")
            spent = self._spent(self.baseline, {})
            self.budget = sum(spent) if spent else None
        if study.search:
            yield from self._search()
        # One seed after the other: an interrupted study has whole pairs of runs.
        for seed in self.seeds:
            self.runs += [self._run(arm, seed, role="gate") for arm in self._gate_arms()]
            self.runs += self._compared(self.arms, seed)
        yield Plan(tuple(self.runs))
        shorter = []
        # Companions come last: verdicts need the whole runs.
        for seed in self.seeds:
            for share in sorted(study.companions, reverse=True):  # longest first
                shorter += self._compared(list(study.arms), seed, share)
        if shorter:
            self.runs += shorter
            yield Plan(tuple(shorter), "companions")

    def settings_of(self, arm: str) -> list[Plain]:
        """The different settings chosen for an arm's runs; the arm as written where none was."""
        found = {str(setting): setting for (name, _), setting in self.chosen.items() if name == arm}
        return list(found.values()) or [{}]

    def _gate_arms(self) -> list[str]:
        """The arms that a gate compares on runs of their own: where arms are searched, it does not
        wait for that.
        """
        study = self.recipe.study
        if study.gate is None or study.search is None:
            return []
        pair = study.gate.contrast
        every = OWN_TASK in pair or OTHER_TASKS in pair
        return [arm for arm in self.arms if every or arm in pair]

    def _compared(self, arms: Sequence[str], seed: int, fraction: float = 1.0) -> list[Run]:
        """The compared runs of a seed: after a search new ones, at the settings that it chose."""
        judged = self.recipe.study.judged_seeds[seed]
        return [
            self._run(arm, judged, self.chosen.get((arm, seed)), fraction=fraction)
            for arm in arms
            if (arm, seed) not in self.failed
        ]

    def _run(
        self,
        arm: str,
        seed: int,
        setting: Plain | None = None,
        *,
        fraction: float = 1.0,
        role: str = "",
        by: str = "",
    ) -> Run:
        """A run; of one that is tried, only what it is chosen ``by`` is measured."""
        setting = setting or {}
        length = self._length(self.baseline if arm == REFERENCE else arm, setting, fraction)
        return make_run(
            self.recipe,
            arm,
            seed,
            contents={} if by == "held-out" else self.contents,
            more=setting | length,
            evaluated=by != "dev",
            fraction=fraction,
            setting=setting,
            role=role,
        )

    # Matching
    # --------------------------------------------------------------------------------------------

    def _length(self, arm: str, setting: Plain, fraction: float = 1.0) -> Plain:
        """A share of an arm's steps, or of those that spend the budget, as overrides."""
        own = self.recipe.arm(arm, seed=0, more=setting)
        steps = [link.training.steps for link in own.links()]
        spent = self._spent(arm, setting) if self.budget is not None else None
        if spent and self.budget is not None:
            first = matched_steps(steps[0], spent, self.budget)
            if first is None:
                raise MaskwiseError(
                    f"arm {arm!r} cannot spend as much as the baseline "
                    f"by {self.recipe.study.match}",
                    got=f"{self.budget:.4g} in all, {sum(spent[1:]):.4g} after its first phase",
                )
            steps[0] = first
        names = own.settings_of("training.steps")
        return {name: max(1, round(count * fraction)) for name, count in zip(names, steps)}

    def _spent(self, arm: str, more: Plain) -> list[float] | None:
        """What each training of an arm's run spends; None while a text is not there."""
        seed = self.recipe.study.seed_list[0]
        by = self.recipe.study.match
        run = make_run(self.recipe, arm, seed, contents={}, more=more, evaluated=False)
        if any(text.result(self.stages) is None for text in run.texts):
            return None
        spent = []
        for link, text in zip(run.recipe.links(), run.texts):
            parts = {"corpus", "model", "masking", "objective", "objectives", "training"}
            step = _measured_step(link.model_dump_json(include=parts), text.folder(self.stages))
            spent.append(link.training.steps * step[by])
        return spent

    # Searching
    # --------------------------------------------------------------------------------------------

    def _search(self) -> Iterator[Plan]:
        """Every arm at every point of its grid with every seed, which then keeps the best point for
        its new run.
        """
        study = self.recipe.study
        assert study.search is not None
        by = study.search.by or ("dev" if self.contents else "held-out")
        tried: dict[tuple[str, int], list[Run]] = {}
        for seed in self.seeds:
            for arm in study.arms:
                points = study.search.points_of(arm)
                tried[arm, seed] = [
                    self._run(arm, seed, point, role="search", by=by) for point in points
                ]
        self.others = list(chain.from_iterable(tried.values()))
        yield Plan(tuple(self.others), "search")
        for (arm, seed), trials in tried.items():
            kinds = self.recipe.arm(arm, seed=0).links()[-1].judged_on()
            # A point that failed has no scores and cannot be chosen.
            scores = [_scores(run, self.stages, kinds) for run in trials]
            choice = choose(scores)
            chosen = None if choice.place is None else trials[choice.place].setting
            candidates: list[Candidate] = [
                {"setting": run.setting, "score": mean, "scores": found}
                for run, mean, found in zip(trials, choice.means, scores)
            ]
            self.choices.append(
                {
                    "kind": "selection",
                    "arm": arm,
                    "seed": study.judged_seeds[seed],
                    "search_seed": seed,
                    "by": by,
                    "candidates": candidates,
                    "chosen": chosen,
                    "tied": choice.tied,
                }
            )
            # A dry run counts the runs that follow, whatever will be chosen.
            if chosen is None and self.forecast:
                chosen = trials[0].setting
            if chosen is None:
                self.failed[arm, seed] = trials
            else:
                self.chosen[arm, seed] = chosen


def _texts_of(run: Run) -> Run:
    """A run reduced to its texts, and to what they need (such as a policy that is learned)."""
    needed = {stage.name for stage in run.texts}
    # Stages come after those they need.
    for stage in reversed(run.chain):
        if stage.name in needed:
            needed.update(stage.needs)
    chain = tuple(stage for stage in run.chain if stage.name in needed)
    return Run(run.arm, run.seed, run.recipe, chain)


def _scores(run: Run, stages: Path, kinds: Sequence[str]) -> Scores | None:
    """The scores of a run by outcome: dev scores of tasks, or held-out losses, times −1 where
    lower is better.

    Args:
        kinds: the held-out masks that the arm is evaluated on.

    Returns:
        None where the run is not done, or diverged.
    """
    scores: dict[str, float | None] = {}
    # By the recipe's name of a task: each seed may have rows of its own.
    for task, stage in run.tasks.items():
        result = stage.result(stages)
        if result is None or None in result["dev"]:
            return None
        sign = -1 if result["metric"] in LOWER_IS_BETTER else 1
        scores[task] = sign * float(np.mean(result["dev"]))
    if run.evaluated:
        result = run.evaluated.result(stages)
        if result is None:
            return None
        for line in result["records"]:
            if line["kind"] == "heldout" and line["masks"] in kinds:
                name = f"heldout:{line['masks']}@{line['ratio']:g}"
                scores[name] = None if line["loss"] is None else -line["loss"]
    known = {name: value for name, value in scores.items() if value is not None}
    return known if len(known) == len(scores) and np.isfinite([*known.values()]).all() else None


class Choice(NamedTuple):
    """The best point of a grid.

    Attributes:
        means: the mean of every point over its standardised outcomes; None for a point that failed.
        place: the best point's place; None if all failed.
        tied: whether all points have the same scores, so that the first of them is as good a choice
            as any.
    """

    means: list[float | None]
    place: int | None
    tied: bool


def choose(points: Sequence[Scores | None]) -> Choice:
    """The point with the highest mean over outcomes, each standardised over the points; the first
    of equal ones.

    >>> choose([{"a": 1.0}, {"a": 3.0}, None]).place
    1

    Args:
        points: the scores of one arm and seed at every point of the grid, on dev rows; None for a
            point that failed, which is never taken.
    """
    known = [point for point in points if point is not None]
    if not known:
        return Choice([None] * len(points), None, tied=False)
    # There is one run of a point, so nothing tells noise from effect. The spread between the points
    # is the one scale that all outcomes have: by it, tasks count alike whatever their unit.
    values = np.array([list(point.values()) for point in known], float)
    differ = values.min(axis=0) < values.max(axis=0)
    spread = np.where(differ, values.std(axis=0), 1.0)
    standardised = np.where(differ, (values - values.mean(axis=0)) / spread, 0.0)
    totals = standardised.sum(axis=1) / max(1, values.shape[1])
    remaining = iter(totals.tolist())
    means = [None if point is None else next(remaining) for point in points]
    # Means that differ by rounding only are equal.
    best = [mean is not None and mean >= totals.max() - 1e-9 for mean in means]
    return Choice(means, best.index(True), tied=len(known) > 1 and not differ.any())


def matched_steps(steps: int, spent: Sequence[float], budget: float) -> int | None:
    """The steps of the first training with which a run spends the budget.

    >>> matched_steps(10, [500], 1000)
    20

    Args:
        steps: of the first training.
        spent: by each training.

    Returns:
        None where the later phases alone spend the budget, or a step spends nothing.
    """
    # Later phases keep their steps, so the first one pays for the difference.
    left = budget - sum(spent[1:])
    if left <= 0 or spent[0] <= 0:
        return None
    return max(1, round(left / (spent[0] / steps)))


@lru_cache(maxsize=1024)
def _measured_step(settings: str, text: Path) -> dict[str, float]:
    """What a step of a training spends on average, measured once for each recipe and text."""
    link = Recipe.model_validate_json(settings)
    data = _load(text)
    config = link.model.config(data.tokenizer, link.corpus.length, kind=link.kind)
    # The policy has the weights of its beginning.
    source = masked_source(data, link, config)
    return per_step(source, without_weights(link.objective, empty_model(config)))


@lru_cache(maxsize=4)
def _load(text: Path) -> Prepared:
    return open_text(text)
