"""What a study runs, plan by plan: each is made when those before it are done.

    texts → search → main → companions

A study without a search or matching has one plan, or two with companions. Everything that was decided on the way is a
record; nothing is kept but in the folders of stages, so a study that goes on decides the same again.

**Matching.** Matched by steps (the usual way), a higher ratio buys more targets for nothing; matched by targets, it
pays for them with steps; FLOPs lie between. A run spends its number of steps times the mean of a step, and that mean
is measured on batches from the whole run, masked with the ratio, policy and budget of the arm. A schedule of the ratio
runs over a run's own length, so its mean does not depend on the length. Where there are several phases of
training, the first one's length is set and the others stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from maskwise.constants import LOWER_IS_BETTER, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Record
from maskwise.models import empty_model
from maskwise.recipe import Recipe
from maskwise.recipe.comparison import is_number
from maskwise.recipe.overrides import Plain
from maskwise.study.costs import per_step
from maskwise.study.plan import Plan, Run, arms_of, make_run, require_arms, task_contents
from maskwise.study.texts import open_text
from maskwise.study.work import masked_source
from maskwise.text import Prepared, Stream

Scores = dict[str, list[float]]
"""By outcome, one number per seed; more is better."""

Spending = dict[str, float]
"""What one training spends: ``steps``, and where that is known ``tokens``, ``targets`` and ``flops``."""


class Design:
    """A study's plans, and what was decided between them.

    Attributes:
        runs: the runs to be reported that are planned so far.
        others: runs that only serve a choice.
        choices: records of kind "selection".
        planned: by arm, what a whole run should spend; empty before texts are ready.
        budget: what the baseline spends, where the study matches arms by more than steps.
    """

    def __init__(self, recipe: Recipe, stages: Path):
        self.recipe, self.stages = recipe, stages
        require_arms(recipe)
        self.arms = list(recipe.study.arms)
        self.contents = task_contents(recipe)
        self.settings: dict[str, Plain] = {arm: {} for arm in self.arms}
        self.runs: list[Run] = []
        self.others: list[Run] = []
        self.choices: list[Record] = []
        self.planned: dict[str, Spending] = {}
        self.budget: float | None = None

    def plans(self) -> Iterator[Plan]:
        """The plans, to be done one after the other."""
        if self.recipe.study.match != "steps":
            yield self._texts()
            self.budget = self._spent(self._baseline, {})
        if self.recipe.study.search:
            yield from self._search()
        seeds, arms = self.recipe.study.seed_list, arms_of(self.recipe, self.contents)
        self.runs += [self._run(arm, seed) for seed in seeds for arm in arms]
        yield Plan(tuple(self.runs))
        shares = sorted(self.recipe.study.companions, reverse=True)  # longest first
        shorter = [self._run(arm, seed, share) for seed in seeds for share in shares for arm in self.arms]
        self.runs += shorter
        if shorter:
            yield Plan(tuple(shorter), "companions")

    def kinds(self, arm: str) -> tuple[str, ...]:
        """The kinds of held-out masks that an arm is judged on: those that it was trained last with."""
        last = self.recipe.arm(arm, seed=0, more=self.settings[arm]).links()[-1]
        return last.judged_on()

    def plan_costs(self) -> None:
        """Fill ``planned``, as far as texts are there."""
        for arm in self.arms:
            setting = self.settings[arm]
            links = self._spending(arm, setting | self._length(arm, setting))
            if links is not None:
                known = [key for key in links[0] if all(key in link for link in links)]
                self.planned[arm] = {key: round(sum(link[key] for link in links), 1) for key in known}

    @property
    def _baseline(self) -> str:
        return self.recipe.baseline or self.arms[0]

    def _run(self, arm: str, seed: int, fraction: float = 1.0) -> Run:
        own = self._baseline if arm == REFERENCE else arm
        more = self.settings[own] | self._length(own, self.settings[own], fraction)
        return make_run(self.recipe, arm, seed, contents=self.contents, more=more, fraction=fraction)

    # Matching ----------------------------------------------------------------------------------------------

    def _texts(self) -> Plan:
        """The texts of all arms as written: the length of runs depends on them."""
        seed = self.recipe.study.seed_list[0]
        runs = [make_run(self.recipe, arm, seed, contents={}, evaluated=False) for arm in self.arms]
        return Plan(tuple(replace(run, chain=run.chain_to(run.texts)) for run in runs), "texts")

    def _length(self, arm: str, setting: Plain, fraction: float = 1.0) -> Plain:
        """The steps of an arm's run, as overrides: those that spend the budget, and a share of them."""
        own = self.recipe.arm(arm, seed=0, more=setting)
        steps = [link.training.steps for link in own.links()]
        spending = self._spending(arm, setting) if self.budget is not None else None
        if spending is not None and self.budget is not None:
            steps[0] = matched_steps(spending, self.recipe.study.match, self.budget, arm=arm)
        return {key: max(1, round(count * fraction)) for key, count in zip(own.settings_of("training.steps"), steps)}

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
            {key: link.training.steps * value for key, value in _step(link, text.folder(self.stages)).items()}
            for link, text in zip(links, texts)
        ]

    # Searching ---------------------------------------------------------------------------------------------

    def _search(self) -> Iterator[Plan]:
        """Every arm at every point of the grid with every dev seed; each arm then keeps its best point."""
        search = self.recipe.study.search
        assert search is not None
        by = search.by or ("dev" if self.contents else "held-out")
        points = {arm: search.points_of(arm) for arm in self.arms}
        contents = self.contents if by == "dev" else {}
        runs = {
            (arm, place, seed): make_run(
                self.recipe, arm, seed, contents=contents, more=point | self._length(arm, point),
                evaluated=by == "held-out", setting=point,
            )
            for seed in search.seeds
            for arm in self.arms
            for place, point in enumerate(points[arm])
        }  # fmt: skip
        self.others += runs.values()
        yield Plan(tuple(runs.values()), "search")
        for arm in self.arms:
            mine = points[arm]
            scores = [self._scores([runs[arm, place, seed] for seed in search.seeds]) for place in range(len(mine))]
            choice = choose(mine, scores)
            chosen = None if choice.place is None else mine[choice.place]
            self.choices.append({
                "kind": "selection", "arm": arm, "by": by, "seeds": list(search.seeds),
                "candidates": [
                    {"setting": point, "scores": score, "mean": mean}
                    for point, score, mean in zip(mine, scores, choice.means)
                ],
                "chosen": chosen, "border": choice.border,
            })  # fmt: skip
            self.settings[arm] = chosen or {}

    def _scores(self, runs: Sequence[Run]) -> Scores | None:
        """The scores of one arm's runs by outcome: dev scores of tasks, or held-out losses, times −1 where
        lower is better.

        None where a run is not done, or diverged.
        """
        scores: dict[str, list[float | None]] = {}
        for run in runs:
            if any(stage.result(self.stages) is None for stage in run.chain):
                return None
            for task, stage in run.tasks.items():  # by the recipe's name: each seed may have rows of its own
                judged = stage.result(self.stages) or {"dev": [None], "metric": ""}
                dev = judged["dev"]
                sign = -1 if judged["metric"] in LOWER_IS_BETTER else 1
                mean = None if None in dev else sign * sum(dev) / len(dev)
                scores.setdefault(task, []).append(mean)
            if run.evaluated and not run.tasks:
                result = run.evaluated.result(self.stages)
                if result is None:
                    return None
                for line in result["records"]:
                    if line["kind"] == "heldout" and line["masks"] in self.kinds(run.arm):
                        loss = line["loss"]
                        name = f"heldout:{line['masks']}@{line['ratio']:g}"
                        scores.setdefault(name, []).append(None if loss is None else -loss)
        finite = {
            name: [value for value in values if value is not None and math.isfinite(value)]
            for name, values in scores.items()
        }
        return finite if all(len(finite[name]) == len(values) for name, values in scores.items()) else None


class Choice(NamedTuple):
    """The best point of a grid.

    Attributes:
        means: the mean of every point over its standardised outcomes; None for a point that failed.
        place: the best point's place; None if all failed.
        border: whether a chosen number is the smallest or largest that was tried: a better one may lie outside.
    """

    means: list[float | None]
    place: int | None
    border: bool


def choose(points: Sequence[Plain], scores: Sequence[Scores | None]) -> Choice:
    """The point with the highest mean over outcomes, each standardised over all points and seeds.

    If that lies on the border of the grid, the best inner point is taken that is within one standard error of it: noise
    chooses borders as often as anything else, and a choice inside the grid leaves nothing better outside.

    >>> choose([{"lr": 1}, {"lr": 2}, {"lr": 3}], [{"a": [1.0]}, {"a": [3.0]}, None]).place
    1

    Args:
        points: settings by dotted name, in the order in which ties are settled.
        scores: the scores of every point, on dev rows and seeds that are never reported; None for a point that
            failed with any seed, which is never taken.
    """
    known = [score for score in scores if score is not None]
    spread = {
        outcome: (float(np.mean(values)), float(np.std(values)) or 1.0)
        for outcome in (known[0] if known else ())
        for values in [[value for score in known for value in score[outcome]]]
    }
    means = [
        None if score is None
        else float(np.mean([(np.mean(score[o]) - centre) / sd for o, (centre, sd) in spread.items()]))
        for score in scores
    ]  # fmt: skip
    best = max((mean for mean in means if mean is not None), default=None)
    if best is None:
        return Choice(means, None, border=False)
    # Means that differ by rounding only are a tie, which the first wins.
    place = next(i for i, mean in enumerate(means) if mean is not None and mean >= best - 1e-9)
    if _on_border(points, place):
        near = best - _standard_error(known, spread) - 1e-9
        inner = {
            i: mean for i, mean in enumerate(means) if mean is not None and mean >= near and not _on_border(points, i)
        }
        place = max(inner, key=lambda i: inner[i], default=place)
    return Choice(means, place, _on_border(points, place))


def _standard_error(scores: Sequence[Scores], spread: Mapping[str, tuple[float, float]]) -> float:
    """That of the difference of two points, from what is left without the effects of points and of seeds; 0 where
    that is nothing, as with one seed."""
    each = [
        np.mean([(np.array(score[o]) - centre) / sd for o, (centre, sd) in spread.items()], axis=0) for score in scores
    ]
    table = np.array(each)
    points, seeds = table.shape
    if points < 2 or seeds < 2:
        return 0.0
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    return math.sqrt(2 / seeds * float((rest**2).sum()) / ((points - 1) * (seeds - 1)))


def _on_border(points: Sequence[Plain], place: int) -> bool:
    for key, value in points[place].items():
        tried = {point[key] for point in points if is_number(point.get(key))}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            return True
    return False


def matched_steps(
    spending: Sequence[Spending], by: Literal["steps", "targets", "flops"], budget: float, *, arm: str
) -> int:
    """The steps of the first training with which a run spends the budget.

    >>> matched_steps([{"steps": 10, "targets": 500}], "targets", 1000, arm="a")
    20

    Raises:
        MaskwiseError: the phases behind the first spend more than that already, or a step spends nothing.
    """
    first, *further = spending
    left, each = budget - sum(link[by] for link in further), first[by] / first["steps"]
    if left <= 0 or each <= 0:
        what = f"arm {arm!r} cannot spend as much as the baseline by {by}"
        raise MaskwiseError(what, got=f"{budget:.4g} in all, {budget - left:.4g} behind its first phase")
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
    return per_step(masked_source(data, link, config), empty_model(config))


@lru_cache(maxsize=4)
def _load(text: Path) -> Prepared:
    return open_text(text)
