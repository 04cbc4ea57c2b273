"""Make the plans of a study one after the other, with the decisions between them.

    texts → search → main → companions

A study without search or matching has one plan, or two with companions. Every decision follows from
the results in the folders of stages, so a resumed study decides the same way.

**Searching.** For every seed and arm, a setting is chosen by the scores on dev rows. Search runs
are never compared: the best run on a grid was also lucky, and luck matters more if an arm's curve
is flat. The compared run is a new run at the chosen setting, with the seed + ``FRESH_RUN``. This
keeps the pairs of runs independent and treats both arms the same way. Errors in the choice are part
of the differences between pairs.

**Matching.** If arms are matched by steps (the usual way), an arm with a higher ratio gets more
targets for free; if matched by targets, it trains for fewer steps; FLOPs lie in between. The cost
of a run is its number of steps times the mean cost of a step, which is measured on batches from the
whole run, masked with the arm's ratio, policy and budget. A scheduled ratio spans the length of the
run, so its mean does not depend on that length. If a run has several training phases, only the
length of the first phase is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskwise.constants import LOWER_IS_BETTER, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Candidate, Record
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.costs import per_step
from maskwise.study.plan import Plan, Run, arms_of, make_run, require_arms, task_contents
from maskwise.study.pretraining import masked_source
from maskwise.study.stages import named
from maskwise.study.work import open_text

Scores = dict[str, float]
"""One number for each outcome; higher is better."""


class Design:
    """A study's plans and decisions.

    Args:
        seeds: the block of the study's seeds to run; if None, all seeds.
        forecast: whether an unfinished search counts as if it had chosen the first point.

    Attributes:
        runs: the planned runs to report, including the runs of a gate.
        others: the search runs.
        chosen: for each arm and seed, the setting that a search chose.
        choices: records of kind "selection".
        failed: for each arm and seed whose search runs all failed, these runs; there is then no
            compared run.
        budget: what the baseline spends, if arms are matched by targets or FLOPs.
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
        """Yield the plans; each must be done before the next one is asked for."""
        study = self.recipe.study
        # Matched lengths depend on the texts, so the texts of all points are prepared first.
        if study.match != "steps":
            seed = study.seed_list[0]
            runs = []
            for arm in study.arms:
                points = study.points_of(arm)
                # The budget is what the baseline spends with its settings as written.
                if study.search:
                    points = [{}, *points]
                for point in points:
                    run = make_run(self.recipe, arm, seed, contents={}, more=point)
                    runs.append(_texts_of(run))
            yield Plan(tuple(runs), "texts")
            spent = self._spent(self.baseline, {})
            self.budget = sum(spent) if spent else None
        if study.search:
            yield from self._search()
        # Seeds are outermost, so that an interrupted study has whole pairs of runs.
        for seed in self.seeds:
            self.runs += [self._run(arm, seed, role="gate") for arm in self._gate_arms()]
            self.runs += self._compared(self.arms, seed)
        yield Plan(tuple(self.runs))
        shorter = []
        # Companions come last because verdicts need only the full runs.
        for seed in self.seeds:
            for share in sorted(study.companions, reverse=True):
                shorter += self._compared(list(study.arms), seed, share)
        if shorter:
            self.runs += shorter
            yield Plan(tuple(shorter), "companions")

    def settings_of(self, arm: str) -> list[Plain]:
        """List the settings chosen for an arm's runs; empty settings without a search."""
        chosen = []
        for (name, _), setting in self.chosen.items():
            if name == arm:
                chosen.append(setting)
        return chosen or [{}]

    def _gate_arms(self) -> list[str]:
        """List the arms of a gate in a study with a search.

        The gate compares them at the settings as written, so it needs runs of its own.
        """
        study = self.recipe.study
        if study.gate is None or study.search is None:
            return []
        pair = study.gate.contrast
        every = OWN_TASK in pair or OTHER_TASKS in pair
        return [arm for arm in self.arms if every or arm in pair]

    def _compared(self, arms: Sequence[str], seed: int, fraction: float = 1.0) -> list[Run]:
        """Plan the compared runs of a seed, at the settings that a search chose."""
        fresh = self.recipe.study.judged_seeds[seed]
        runs = []
        for arm in arms:
            if (arm, seed) not in self.failed:
                runs.append(self._run(arm, fresh, self.chosen.get((arm, seed)), fraction=fraction))
        return runs

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
        """Plan a run.

        Args:
            by: what a search chooses by ("dev" or "held-out"); search runs measure nothing else.
        """
        setting = setting or {}
        trained = self.baseline if arm == REFERENCE else arm
        run = make_run(
            self.recipe,
            arm,
            seed,
            contents={} if by == "held-out" else self.contents,
            more=setting | self._length(trained, setting, fraction),
            evaluated=by != "dev",
            role=role,
        )
        return replace(run, fraction=fraction, setting=setting)

    def open_questions(self) -> Iterator[str]:
        """State what is not known before the study runs."""
        undone = [choice["chosen"] for choice in self.choices].count(None)
        if undone:
            yield (
                f"{undone} of {len(self.choices)} searches (one for each arm and seed) "
                "are not done, so the settings of the runs after them are not known yet"
            )
        if any(run.prepared.what["corpus"].get("stream") for run in self.runs):
            yield (
                "the text is a stream: it is not counted in advance, and only its beginning is "
                "prepared"
            )
        by = self.recipe.study.match
        if by != "steps" and self.budget is None:
            yield (
                f"steps will be matched by {by} once the texts are prepared; "
                "until then they are counted as written"
            )

    # Matching
    # --------------------------------------------------------------------------------------------

    def _length(self, arm: str, setting: Plain, fraction: float) -> Plain:
        """Return overrides that set the steps of each training phase of an arm.

        These are a fraction of the steps as written, or of the steps that spend the budget.
        """
        own = self.recipe.arm(arm, seed=0, more=setting)
        steps = [link.training.steps for link in own.links()]
        if self.budget is not None:
            spent = self._spent(arm, setting)
            # A dry run may find only the texts of the baseline.
            if spent is not None:
                first = matched_steps(steps[0], spent, self.budget)
                if first is None:
                    raise MaskwiseError(
                        f"arm {arm!r} cannot be matched to the baseline by "
                        f"{self.recipe.study.match}",
                        got=f"{self.budget:.4g} in all, {sum(spent[1:]):.4g} after its first phase",
                    )
                steps[0] = first
        names = own.settings_of("training.steps")
        return {name: max(1, round(count * fraction)) for name, count in zip(names, steps)}

    def _spent(self, arm: str, more: Plain) -> list[float] | None:
        """Measure what each phase of an arm's run spends; None if a text is not prepared."""
        seed = self.recipe.study.seed_list[0]
        run = make_run(self.recipe, arm, seed, contents={}, more=more, evaluated=False)
        # The texts are checked first, because a measurement masks many batches.
        if any(text.result(self.stages) is None for text in run.texts):
            return None
        spent = []
        for link, text in zip(run.recipe.links(), run.texts):
            parts = {"corpus", "model", "masking", "objective", "objectives", "training"}
            step = _measured_step(link.model_dump_json(include=parts), text.folder(self.stages))
            spent.append(link.training.steps * step[self.recipe.study.match])
        return spent

    # Searching
    # --------------------------------------------------------------------------------------------

    def _search(self) -> Iterator[Plan]:
        """Plan every arm at every point of its grid with every seed, then choose points."""
        study = self.recipe.study
        assert study.search is not None
        by = study.search.by or ("dev" if self.contents else "held-out")
        tried = defaultdict(list)
        for seed in self.seeds:
            for arm in study.arms:
                for point in study.search.points_of(arm):
                    run = self._run(arm, seed, point, role="search", by=by)
                    tried[arm, seed].append(run)
        self.others = list(chain.from_iterable(tried.values()))
        yield Plan(tuple(self.others), "search")
        for (arm, seed), trials in tried.items():
            kinds = self.recipe.arm(arm, seed=0).links()[-1].judged_on()
            scores = [_scores(run, self.stages, kinds) for run in trials]
            choice = choose(scores)
            chosen = None
            if choice.place is not None:
                chosen = trials[choice.place].setting
            candidates: list[Candidate] = []
            for run, mean, found in zip(trials, choice.means, scores):
                candidates.append({"setting": run.setting, "score": mean, "scores": found})
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
            if chosen is not None:
                self.chosen[arm, seed] = chosen
            # A dry run counts the compared runs at the first point.
            elif self.forecast:
                self.chosen[arm, seed] = trials[0].setting
            else:
                self.failed[arm, seed] = trials


def _texts_of(run: Run) -> Run:
    """Reduce a run to its texts and the stages they need, such as one that learns a policy."""
    needed = set(named(run.texts))
    # In reverse order every stage comes before the stages it needs.
    for stage in reversed(run.chain):
        if stage.name in needed:
            needed.update(stage.needs)
    chain = tuple(stage for stage in run.chain if stage.name in needed)
    return Run(run.arm, run.seed, run.recipe, chain)


def _scores(run: Run, stages: Path, kinds: Sequence[str]) -> Scores | None:
    """Read the dev scores of a run's tasks, or its held-out losses, negated if lower is better.

    Args:
        kinds: the held-out masks that the arm is evaluated on.

    Returns:
        None if the run is not done or diverged.
    """
    scores: Scores = {}
    # Tasks are named as in the recipe, because their rows may differ between seeds.
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
                # JSON has null for a loss that is not finite.
                if line["loss"] is None:
                    return None
                scores[name] = -line["loss"]
    if not np.isfinite([*scores.values()]).all():
        return None
    return scores


class Choice(NamedTuple):
    """The best point of a grid.

    Attributes:
        means: the mean of each point over its standardised outcomes; None for a failed point.
        place: the index of the best point; None if all points failed.
        tied: whether all points have the same scores, so the choice of the first is arbitrary.
    """

    means: list[float | None]
    place: int | None
    tied: bool


def choose(points: Sequence[Scores | None]) -> Choice:
    """Choose the point with the highest mean over outcomes, each standardised over the points.

    Among equal points the first is chosen.

    >>> choose([{"a": 1.0}, {"a": 3.0}, None]).place
    1

    Args:
        points: the scores of one arm and seed at every point of the grid; None for a point that
            failed, which is never chosen.
    """
    means: list[float | None] = [None] * len(points)
    known = {place: point for place, point in enumerate(points) if point is not None}
    if not known:
        return Choice(means, None, tied=False)
    # With one run per point the noise is unknown. Outcomes are divided by their SD over the points
    # instead, so that tasks count equally whatever their unit.
    values = np.array([list(point.values()) for point in known.values()], float)
    differ = values.min(axis=0) < values.max(axis=0)
    spread = np.where(differ, values.std(axis=0), 1.0)
    standardised = np.where(differ, (values - values.mean(axis=0)) / spread, 0.0)
    totals = standardised.sum(axis=1) / max(1, values.shape[1])
    for place, total in zip(known, totals.tolist()):
        means[place] = total
    # Means may differ by rounding alone.
    best = np.argmax(totals >= totals.max() - 1e-9)
    return Choice(means, list(known)[best], tied=len(known) > 1 and not differ.any())


def matched_steps(steps: int, spent: Sequence[float], budget: float) -> int | None:
    """Compute with how many steps of the first phase a run spends the budget.

    >>> matched_steps(10, [500], 1000)
    20

    Args:
        steps: the steps of the first phase as written.
        spent: what each phase spends as written.

    Returns:
        None if the later phases alone spend the budget, or a step spends nothing.
    """
    # Later phases keep their steps, so the first one pays for the difference.
    left = budget - sum(spent[1:])
    if left <= 0 or spent[0] <= 0:
        return None
    return max(1, round(left / (spent[0] / steps)))


@lru_cache(maxsize=1024)
def _measured_step(settings: str, text: Path) -> dict[str, float]:
    """Measure what a training step spends on average, once for each recipe and text."""
    link = Recipe.model_validate_json(settings)
    data = _load(text)
    config = link.model.config(data.tokenizer, link.corpus.length, kind=link.kind)
    # A policy that learns is measured with its initial weights.
    source = masked_source(data, link, config)
    return per_step(source, link.objective, link.model.empty(config))


_load = lru_cache(maxsize=4)(open_text)
