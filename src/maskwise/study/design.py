"""What a study runs, plan by plan: each is made when those before it are done.

    texts → search → main → companions

A study without a search or matching has one plan, or two with companions. Everything that was
decided on the way is a record; nothing is kept but in the folders of stages, so a study that is
resumed decides the same again.

**Searching.** Every seed chooses a setting for every arm, by its own dev rows, from runs that are
never compared: the best run of a grid was also the luckiest, and more so for an arm to which the
setting matters little. What is compared is a new run at the chosen setting, with the seed +
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

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from maskwise.constants import LOWER_IS_BETTER, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Candidate, Record
from maskwise.models import empty_model
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.costs import per_step, without_weights
from maskwise.study.plan import Plan, Run, arms_of, make_run, require_arms, task_contents
from maskwise.study.texts import open_text
from maskwise.study.work import masked_source
from maskwise.text import Prepared, Stream

Scores = dict[str, float]
"""By outcome, one number; more is better."""

Spending = dict[str, float]
"""What one training spends: ``steps``, and where that is known ``tokens``, ``targets`` and
``flops``.
"""


class Design:
    """A study's plans, and what was decided between them.

    Args:
        seeds: the seeds of the study that are run; None: all of them.
        forecast: count a search that is not done as if it had chosen the first point of its grid.

    Attributes:
        runs: the runs to be reported that are planned so far, those of a gate among them.
        others: runs that only serve a choice.
        choices: records of kind "selection".
        failed: by arm and seed, the runs of a search none of which succeeded; that run is missing.
        planned: by arm, what a whole run should spend; empty before texts are ready.
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
        self.arms = list(recipe.study.arms)
        self.contents = task_contents(recipe)
        self.chosen: dict[tuple[str, int], Plain] = {}
        self.runs: list[Run] = []
        self.others: list[Run] = []
        self.choices: list[Record] = []
        self.failed: dict[tuple[str, int], list[Run]] = {}
        self.planned: dict[str, Spending] = {}
        self.budget: float | None = None

    def plans(self) -> Iterator[Plan]:
        """The plans, to be done one after the other."""
        if self.recipe.study.match != "steps":
            yield self._texts()
            self.budget = self._spent(self._baseline, {})
        if self.recipe.study.search:
            yield from self._search()
        main = []
        for seed in self.seeds:
            main += [self._run(arm, seed, role="gate") for arm in self._gate_arms()]
            main += [
                self._compared(arm, seed) for arm in self._arms() if (arm, seed) not in self.failed
            ]
        self.runs += main
        yield Plan(tuple(main))
        shorter = []
        for seed in self.seeds:
            for share in sorted(self.recipe.study.companions, reverse=True):  # longest first
                there = [arm for arm in self.arms if (arm, seed) not in self.failed]
                shorter += [self._compared(arm, seed, share) for arm in there]
        self.runs += shorter
        if shorter:
            yield Plan(tuple(shorter), "companions")

    def kinds(self, arm: str) -> tuple[str, ...]:
        """The kinds of held-out masks that an arm is judged on: those that it was trained last
        with.
        """
        return self.recipe.arm(arm, seed=0).links()[-1].judged_on()

    def settings_of(self, arm: str) -> list[Plain]:
        """The different settings that were chosen for an arm's runs; as it is written where none
        was.
        """
        found = [setting for (name, _), setting in self.chosen.items() if name == arm]
        return list({str(setting): setting for setting in found}.values()) or [{}]

    def plan_costs(self) -> None:
        """Fill ``planned``, as far as texts are there: the mean over the settings of an arm."""
        for arm in self.arms:
            spent: list[Spending] = []
            for setting in self.settings_of(arm):
                links = self._spending(arm, setting | self._length(arm, setting))
                if links is not None:
                    known = [key for key in links[0] if all(key in link for link in links)]
                    spent.append({key: sum(link[key] for link in links) for key in known})
            if spent:
                mean = {key: float(np.mean([each[key] for each in spent])) for key in spent[0]}
                self.planned[arm] = {key: round(value, 1) for key, value in mean.items()}

    @property
    def _baseline(self) -> str:
        return self.recipe.baseline or self.arms[0]

    def _arms(self) -> list[str]:
        return arms_of(self.recipe, self.contents)

    def _gate_arms(self) -> list[str]:
        """The arms that a gate compares on runs of their own: where arms are searched, it does not
        wait for that.
        """
        study = self.recipe.study
        if study.gate is None or study.search is None:
            return []
        if {OWN_TASK, OTHER_TASKS} & {*study.gate.contrast}:
            return self._arms()
        return [arm for arm in self._arms() if arm in study.gate.contrast]

    def _compared(self, arm: str, seed: int, fraction: float = 1.0) -> Run:
        """The run of an arm that is compared: with a search a new one, at what the seed chose.

        The reference has nothing to choose.
        """
        setting = self.chosen.get((arm, seed), {})
        return self._run(arm, self.recipe.study.judged_seeds[seed], setting, fraction=fraction)

    def _run(
        self,
        arm: str,
        seed: int,
        setting: Plain | None = None,
        *,
        fraction: float = 1.0,
        role: str = "",
    ) -> Run:
        setting = setting or {}
        own = self._baseline if arm == REFERENCE else arm
        more = setting | self._length(own, setting, fraction)
        return make_run(
            self.recipe,
            arm,
            seed,
            contents=self.contents,
            more=more,
            fraction=fraction,
            setting=setting,
            role=role,
        )

    # Matching
    # ----------------------------------------------------------------------------------------------

    def _texts(self) -> Plan:
        """The texts of all arms as written: the length of runs depends on them."""
        seed = self.recipe.study.seed_list[0]
        runs = [make_run(self.recipe, arm, seed, contents={}, evaluated=False) for arm in self.arms]
        return Plan(tuple(replace(run, chain=run.chain_to(run.texts)) for run in runs), "texts")

    def _length(self, arm: str, setting: Plain, fraction: float = 1.0) -> Plain:
        """The steps of an arm's run, as overrides: those that spend the budget, and a share of
        them.
        """
        own = self.recipe.arm(arm, seed=0, more=setting)
        steps = [link.training.steps for link in own.links()]
        spending = self._spending(arm, setting) if self.budget is not None else None
        if spending is not None and self.budget is not None:
            steps[0] = matched_steps(spending, self.recipe.study.match, self.budget, arm=arm)
        return {
            key: max(1, round(count * fraction))
            for key, count in zip(own.settings_of("training.steps"), steps)
        }

    def _spent(self, arm: str, more: Plain) -> float | None:
        spending = self._spending(arm, more)
        return None if spending is None else sum(link[self.recipe.study.match] for link in spending)

    def _spending(self, arm: str, more: Plain) -> list[Spending] | None:
        """What each training of an arm's run spends; None while a text is not there."""
        seed = self.recipe.study.seed_list[0]
        texts = make_run(self.recipe, arm, seed, contents={}, more=more, evaluated=False).texts
        if any(text.result(self.stages) is None for text in texts):
            return None
        links = self.recipe.arm(arm, seed=seed, more=more).links()
        return [
            {
                key: link.training.steps * value
                for key, value in _step(link, text.folder(self.stages)).items()
            }
            for link, text in zip(links, texts)
        ]

    # Searching
    # ---------------------------------------------------------------------------------------------

    def _search(self) -> Iterator[Plan]:
        """Every arm at every point of its grid with every seed, which then keeps the best point for
        its new run.
        """
        search = self.recipe.study.search
        assert search is not None
        by = search.by or ("dev" if self.contents else "held-out")
        tried: dict[tuple[str, int], list[Run]] = {}
        for seed in self.seeds:
            for arm in self.arms:
                tried[arm, seed] = [
                    self._trial(arm, seed, point, by) for point in search.points_of(arm)
                ]
        self.others = list(chain.from_iterable(tried.values()))
        yield Plan(tuple(self.others), "search")
        for (arm, seed), trials in tried.items():
            scores = [self._scores(run) for run in trials]
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
                    "seed": self.recipe.study.judged_seeds[seed],
                    "search_seed": seed,
                    "by": by,
                    "candidates": candidates,
                    "chosen": chosen,
                    "tied": choice.tied,
                }
            )
            if chosen is None and self.forecast:
                chosen = trials[0].setting
            if chosen is None:
                self.failed[arm, seed] = trials
            else:
                self.chosen[arm, seed] = chosen

    def _trial(self, arm: str, seed: int, point: Plain, by: str) -> Run:
        """A run that is tried. Only what it is chosen by is measured of it."""
        run = make_run(
            self.recipe,
            arm,
            seed,
            contents=self.contents if by == "dev" else {},
            more=point | self._length(arm, point),
            evaluated=by == "held-out",
            setting=point,
            role="search",
        )
        return replace(run, overlaps=())

    def _scores(self, run: Run) -> Scores | None:
        """The scores of a run by outcome: dev scores of tasks, or held-out losses, times −1 where
        lower is better.

        None where the run is not done, or diverged.
        """
        scores: dict[str, float | None] = {}
        # by the recipe's name: each seed may have rows of its own
        for task, stage in run.tasks.items():
            judged = stage.result(self.stages)
            if judged is None or None in judged["dev"]:
                return None
            sign = -1 if judged["metric"] in LOWER_IS_BETTER else 1
            scores[task] = sign * float(np.mean(judged["dev"]))
        if run.evaluated:
            result = run.evaluated.result(self.stages)
            if result is None:
                return None
            for line in result["records"]:
                if line["kind"] == "heldout" and line["masks"] in self.kinds(run.arm):
                    name = f"heldout:{line['masks']}@{line['ratio']:g}"
                    scores[name] = None if line["loss"] is None else -line["loss"]
        known = {
            name: value
            for name, value in scores.items()
            if value is not None and math.isfinite(value)
        }
        return known if len(known) == len(scores) else None


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
    # is the one scale that all outcomes have: by it, tasks count alike whatever their unit. What
    # all points share counts nothing.
    totals = [0.0] * len(known)
    tied = len(known) > 1
    for outcome in known[0]:
        values = [point[outcome] for point in known]
        if min(values) == max(values):
            continue
        tied = False
        centre = float(np.mean(values))
        spread = float(np.std(values))
        totals = [total + (value - centre) / spread for total, value in zip(totals, values)]
    standardised = iter(total / max(1, len(known[0])) for total in totals)
    means = [None if point is None else next(standardised) for point in points]
    best = max(mean for mean in means if mean is not None)
    # Means that differ by rounding only are equal.
    place = next(i for i, mean in enumerate(means) if mean is not None and mean >= best - 1e-9)
    return Choice(means, place, tied)


def matched_steps(
    spending: Sequence[Spending],
    by: Literal["steps", "targets", "flops"],
    budget: float,
    *,
    arm: str,
) -> int:
    """The steps of the first training with which a run spends the budget.

    >>> matched_steps([{"steps": 10, "targets": 500}], "targets", 1000, arm="a")
    20

    Raises:
        MaskwiseError: the phases behind the first spend more than that already, or a step spends
            nothing.
    """
    first, *further = spending
    left, each = budget - sum(link[by] for link in further), first[by] / first["steps"]
    if left <= 0 or each <= 0:
        what = f"arm {arm!r} cannot spend as much as the baseline by {by}"
        raise MaskwiseError(
            what, got=f"{budget:.4g} in all, {budget - left:.4g} behind its first phase"
        )
    return max(1, round(left / each))


def _step(link: Recipe, text: Path) -> Spending:
    """What a step of a training spends on average, measured once for each recipe and text."""
    parts = {"corpus", "model", "masking", "objective", "objectives", "training"}
    return _measured_step(link.model_dump_json(include=parts), text)


@lru_cache(maxsize=1024)
def _measured_step(settings: str, text: Path) -> Spending:
    link = Recipe.model_validate_json(settings)
    if link.objectives:  # matched by steps alone: which objective will be drawn is not known before
        return {"steps": 1}
    data = _load(text)
    if isinstance(data.training, Stream):  # nothing of it is counted beforehand
        return {"steps": 1}
    config = link.model.config(data.tokenizer, link.corpus.length, kind=link.kind)
    # With the policy's weights of its beginning.
    return per_step(
        masked_source(data, link, config), without_weights(link.objective, empty_model(config))
    )


@lru_cache(maxsize=4)
def _load(text: Path) -> Prepared:
    return open_text(text)
