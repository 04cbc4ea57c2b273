"""Generate the plans of a study in sequence. Later plans depend on the results of earlier plans.

    texts → search → main

A run trains and evaluates one arm with one seed. A plan is a list of runs that may run at the same
time. Most studies have only the main plan. Studies that match arms by cost first prepare all texts,
and studies with a search first run the grid. Every decision is computed from the results in the
folders of stages, so a resumed study makes the same decisions.

**Searching.** For every seed and arm, the search tries all settings of a grid and chooses the
setting with the best scores on dev rows (without tasks: the lowest held-out loss). Secondary tasks
(``study.secondary``) do not choose, as they do not decide. Contrasts never use the search runs,
because the best run of a grid is partly the luckiest. If the settings matter little to an arm, luck
decides more, and the arm would be favoured. Instead, contrasts use a new run at the chosen setting,
with ``FRESH_RUN`` added to the seed. Pairs of runs stay independent, and both arms are treated
alike. A poor choice of setting only adds variance to the differences.

**Matching.** By default, arms train for the same number of steps, and an arm with a higher masking
ratio then predicts more targets. If arms are matched by targets, this arm trains for fewer steps.
If arms are matched by FLOPs, the number of steps is in between. The cost of a run is its number of
steps times the mean cost of a step. The mean is measured on batches from the whole run, masked with
the arm's ratio, policy and budget. A scheduled masking ratio spans the whole run, so its mean does
not depend on the number of steps. In a run with several training phases, only the number of steps
of the first phase is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import of_run
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.results.files import Candidate, Record
from maskwise.results.measurements import Measurement
from maskwise.studies.costs import per_step
from maskwise.studies.plan import (
    Plan,
    Run,
    arms_of,
    make_run,
    recipe_arm,
    require_arms,
    task_contents,
)
from maskwise.studies.pretraining import masked_source
from maskwise.studies.stages import json_hash, named
from maskwise.studies.store import StageStore
from maskwise.studies.work import open_prepared
from maskwise.tasks.loading import load_task
from maskwise.training.building import config_from, empty_model_from

Scores = dict[str, float]
"""Scores keyed by outcome; higher is better."""


class Design:
    """The plans of a study, and the decisions between them.

    Args:
        recipe: the recipe of the study.
        store: the folders of the study's stages.
        seeds: the seeds to run; None for all seeds of the study.
        forecast: whether to assume that an unfinished search chooses the first point of the grid.

    Attributes:
        runs: the planned runs that the study reports, including runs for the gate (the contrast
            that must be decided before the others are tested).
        others: the search runs, which are not reported.
        chosen: the settings that the search chose, keyed by arm and seed.
        choices: the records of the search (kind "selection"), one for each arm and seed.
        failed: lists of failed search runs, keyed by arm and seed. An arm and seed is listed only
            if all its search runs failed; it then has no compared run.
        budget: the cost of a baseline run in targets or FLOPs; None if arms are matched by steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: StageStore,
        *,
        seeds: Sequence[int] | None = None,
        forecast: bool = False,
    ):
        require_arms(recipe)
        self.recipe = recipe
        self.store = store
        self.seeds = tuple(seeds or recipe.study.seed_list)
        self.forecast = forecast
        self.contents = task_contents(recipe)
        self.deciding = self._deciding() if recipe.study.search else self.contents
        self.arms = arms_of(recipe, self.contents)
        self.baseline = recipe.baseline or self.arms[0]
        self.chosen: dict[tuple[str, int], Plain] = {}
        self.runs: list[Run] = []
        self.others: list[Run] = []
        self.choices: list[Record] = []
        self.failed: dict[tuple[str, int], list[Run]] = {}
        self.budget: float | None = None

    @cached_property
    def inputs(self) -> str:
        """A hash of the settings of all stages and the contents of all files that they read.

        If files depend on the seed, those of the first seed count. Otherwise the seed is 0, so that
        the hash does not depend on the seeds.
        """
        seed = 0
        if "{seed}" in self.recipe.model_dump_json():
            seed = self.recipe.study.first_seed
        runs = [make_run(self.recipe, arm, seed, contents=self.contents) for arm in self.arms]
        return json_hash([stage.what for stage in Plan(tuple(runs)).stages()])

    def plans(self) -> Iterator[Plan]:
        """Yield the plans. The caller must execute a plan before it requests the next one."""
        study = self.recipe.study
        # The costs of runs are measured on their texts, so all texts are prepared first.
        if study.equal_by != "steps":
            seed = study.first_seed
            runs = []
            for arm in study.arms:
                for more in study.settings_used(arm):
                    run = make_run(self.recipe, arm, seed, contents={}, more=more)
                    runs.append(_texts_of(run))
            yield Plan(tuple(runs), "texts")
            spent = self._spent(self.baseline, {})
            self.budget = sum(spent) if spent else None
        if study.search:
            yield from self._search()
        # The outer loop is over seeds, because an interrupted study then has complete pairs of
        # runs.
        for seed in self.seeds:
            self.runs += [self._run(arm, seed, role="gate") for arm in self._gate_arms()]
            self.runs += self._compared(self.arms, seed)
        yield Plan(tuple(self.runs))

    def _deciding(self) -> dict[str, str]:
        """Return ``contents`` of the tasks that are not secondary, by which a search chooses."""
        seed = self.recipe.study.first_seed
        secondary = self.recipe.study.secondary
        deciding = {}
        for task, content in self.contents.items():
            if not secondary or load_task(of_run(task, seed)).name not in secondary:
                deciding[task] = content
        return deciding

    def settings_of(self, arm: str) -> list[Plain]:
        """List the settings that the search chose for an arm; ``[{}]`` without a search."""
        chosen = []
        for (name, _), setting in self.chosen.items():
            if name == arm:
                chosen.append(setting)
        return chosen or [{}]

    def _gate_arms(self) -> list[str]:
        """List the arms that need extra runs for the gate; empty without a search.

        The gate compares arms with the settings in the recipe. After a search, all other compared
        runs have the settings that the search chose, so the gate cannot use these runs.
        """
        study = self.recipe.study
        if study.gate is None or study.search is None:
            return []
        return [arm for arm in self.arms if arm in study.gate.contrast]

    def _compared(self, arms: Sequence[str], seed: int) -> list[Run]:
        """Plan the compared runs of a seed, with the settings that the search chose."""
        fresh = self.recipe.study.compared_seeds[seed]
        runs = []
        for arm in arms:
            if (arm, seed) not in self.failed:
                runs.append(self._run(arm, fresh, self.chosen.get((arm, seed))))
        return runs

    def _run(
        self,
        arm: str,
        seed: int,
        setting: Plain | None = None,
        *,
        role: str = "",
        by: str = "",
    ) -> Run:
        """Plan a run.

        Args:
            by: what to measure: "dev" for dev scores of the tasks that decide, "held-out" for
                held-out losses, "" for both and for secondary tasks. A search run needs only one of
                them.
        """
        setting = setting or {}
        run = make_run(
            self.recipe,
            arm,
            seed,
            contents={} if by == "held-out" else self.deciding if by else self.contents,
            more=setting | self._length(recipe_arm(self.recipe, arm), setting),
            evaluated=by != "dev",
            role=role,
        )
        return replace(run, setting=setting)

    def open_questions(self) -> Iterator[str]:
        """State what is not known before the study runs."""
        undone = [choice["chosen"] for choice in self.choices].count(None)
        if undone:
            yield (
                f"{undone} of {len(self.choices)} searches (one for each arm and seed) "
                "are not finished, so the settings of the runs after them are not known yet"
            )
        if any(run.prepared.what["corpus"].get("stream") for run in self.runs):
            yield (
                "the text is a stream: its length is unknown, and only its beginning is prepared "
                "before training"
            )
        if self.recipe.in_a_training("patience"):
            yield (
                "runs with training.patience may end before their last step, so their times are "
                "upper limits"
            )
        by = self.recipe.study.equal_by
        if by != "steps" and self.budget is None:
            yield (
                f"the steps of the arms will be matched by {by} after the texts are prepared; "
                "until then, the steps in the recipe are shown"
            )

    # Matching
    # --------------------------------------------------------------------------------------------

    def _length(self, arm: str, setting: Plain) -> Plain:
        """Return an override for the number of steps of an arm's first training phase, with which
        the arm spends the budget; {} without matching.
        """
        if self.budget is None:
            return {}
        spent = self._spent(arm, setting)
        # In a dry run, the arm's text may not be prepared yet.
        if spent is None:
            return {}
        own = self.recipe.arm(arm, seed=self.recipe.study.first_seed, more=setting)
        steps = matched_steps(own.links()[0].training.steps, spent, self.budget)
        if steps is None:
            raise MaskwiseError(
                f"arm {arm!r} cannot be matched to the baseline by {self.recipe.study.equal_by}",
                got=f"{self.budget:.4g} for the baseline, {sum(spent[1:]):.4g} for the "
                "later phases of this arm alone",
                do="shorten the later phases",
            )
        return {own.settings_of("training.steps")[0]: steps}

    def _spent(self, arm: str, more: Plain) -> list[float] | None:
        """Measure the cost of every training phase of an arm; None if a text is not prepared.

        The costs are in the quantity of ``study.equal_by``: targets or FLOPs.
        """
        seed = self.recipe.study.first_seed
        run = make_run(self.recipe, arm, seed, contents={}, more=more, evaluated=False)
        # Check all texts before the first measurement, because measurements are slow.
        if any(self.store.result(text) is None for text in run.texts):
            return None
        spent = []
        for link, text in zip(run.recipe.links(), run.texts):
            parts = {"corpus", "model", "masking", "objective", "training"}
            step = _measured_step(link.model_dump_json(include=parts), self.store.folder(text))
            if not step["flops"] and self.recipe.study.equal_by == "flops":
                raise MaskwiseError(
                    f"the FLOPs of the model of arm {arm!r} are not known",
                    got="study.equal_by=flops",
                    do="set study.equal_by=steps or study.equal_by=targets",
                )
            spent.append(link.training.steps * step[self.recipe.study.equal_by])
        return spent

    # Searching
    # --------------------------------------------------------------------------------------------

    def _search(self) -> Iterator[Plan]:
        """Plan a run at every grid point for every arm and seed, then choose one of its points.

        A point is a combination of settings.
        """
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
            kinds = self.recipe.arm(arm, seed=seed).links()[-1].judged_on()
            scores = [_scores(run, self.store, kinds) for run in trials]
            choice = best_point(scores)
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
                    "seed": study.compared_seeds[seed],
                    "search_seed": seed,
                    "by": by,
                    "candidates": candidates,
                    "chosen": chosen,
                    "tied": choice.tied,
                }
            )
            if chosen is not None:
                self.chosen[arm, seed] = chosen
            # A dry run does not know the choice, so it plans the compared runs at the first point.
            elif self.forecast:
                self.chosen[arm, seed] = trials[0].setting
            else:
                self.failed[arm, seed] = trials


def _texts_of(run: Run) -> Run:
    """Reduce a run to the stages that prepare its texts, and the stages that these stages need.

    For example, a text that is scored by a learned policy needs the stage that learns the policy.
    """
    needed = set(named(run.texts))
    # In reverse topological order, a stage is visited before the stages that it needs.
    for stage in reversed(run.chain):
        if stage.name in needed:
            needed.update(stage.needs)
    chain = tuple(stage for stage in run.chain if stage.name in needed)
    return Run(run.arm, run.seed, run.recipe, chain)


def _scores(run: Run, store: StageStore, kinds: Sequence[str]) -> Scores | None:
    """Read the dev scores and held-out losses of a run; the sign is flipped if lower is better.

    Args:
        kinds: the kinds of held-out masks whose losses are read.

    Returns:
        The scores; None if the run is unfinished or diverged.
    """
    scores: Scores = {}
    # Tasks may be generated from the seed of the run. The keys of ``run.tasks`` are the names in
    # the recipe, which are the same for all seeds.
    for task, stage in run.tasks.items():
        result = store.result(stage)
        rows = [Measurement.of(line) for line in result["measurements"]] if result else []
        by_split = {row.split: row for row in rows if row.split != "further"}
        if "dev" not in by_split:
            return None
        dev = by_split["dev"]
        # A fine-tuning run that diverged has no score on dev.
        runs = [len(by_split[split].facts["fine_tuning"]) for split in ("dev", "test")]
        if runs[0] < runs[1] or dev.value is None:
            return None
        scores[task] = dev.sign * dev.value
    if run.evaluated:
        result = store.result(run.evaluated)
        if result is None:
            return None
        for row in map(Measurement.of, result["measurements"]):
            if row.kind == "heldout" and row.split == "test" and row.measure in kinds:
                # A loss that is not finite is stored as null, because JSON has no NaN.
                if row.value is None:
                    return None
                scores[row.outcome] = -row.value
    if not np.isfinite([*scores.values()]).all():
        return None
    return scores


class SearchChoice(NamedTuple):
    """The best point of a grid.

    Attributes:
        means: for every point, the mean of its standardised scores; None if its run failed.
        place: the index of the best point; None if the runs of all points failed.
        tied: whether all points have equal scores; the first point is then chosen.
    """

    means: list[float | None]
    place: int | None
    tied: bool


def best_point(points: Sequence[Scores | None]) -> SearchChoice:
    """Choose the grid point with the highest mean score. The first point wins ties.

    Before the mean over outcomes is taken, the scores are standardised over the points.

    >>> best_point([{"a": 1.0}, {"a": 3.0}, None]).place
    1

    Args:
        points: the scores of one arm and seed at every point of the grid, or None for a point whose
            run failed. Such a point is never chosen.
    """
    means: list[float | None] = [None] * len(points)
    known = {place: point for place, point in enumerate(points) if point is not None}
    if not known:
        return SearchChoice(means, None, tied=False)
    # With one run per point, the noise of scores cannot be estimated. Therefore scores are divided
    # by their SD over the points, which gives all outcomes equal weight, whatever their unit.
    values = np.array([list(point.values()) for point in known.values()], float)
    differ = values.min(axis=0) < values.max(axis=0)
    spread = np.where(differ, values.std(axis=0), 1.0)
    standardised = np.where(differ, (values - values.mean(axis=0)) / spread, 0.0)
    totals = standardised.sum(axis=1) / max(1, values.shape[1])
    for place, total in zip(known, totals.tolist()):
        means[place] = total
    # Means that are equal in exact arithmetic may differ by rounding errors.
    best = np.argmax(totals >= totals.max() - 1e-9)
    return SearchChoice(means, list(known)[best], tied=len(known) > 1 and not differ.any())


def matched_steps(steps: int, spent: Sequence[float], budget: float) -> int | None:
    """Return the number of first-phase steps with which a run spends the budget.

    >>> matched_steps(10, [500], 1000)
    20

    Args:
        steps: the number of first-phase steps in the recipe.
        spent: the cost of every phase with the steps in the recipe.
        budget: the cost of the whole run after matching.

    Returns:
        The number of steps; None if the later phases exceed the budget or a step costs nothing.
    """
    # Later phases keep their number of steps, so the first phase gets the rest of the budget.
    left = budget - sum(spent[1:])
    if left <= 0 or spent[0] <= 0:
        return None
    return max(1, round(left / (spent[0] / steps)))


@lru_cache(maxsize=1024)
def _measured_step(settings: str, text: Path) -> dict[str, float]:
    """Measure the mean cost of a training step, in targets and FLOPs.

    Results are cached: points and seeds often have the same recipe settings and text.
    """
    link = Recipe.model_validate_json(settings)
    data = _load(text)
    config = config_from(link.model, data.tokenizer, link.corpus.length, kind=link.kind)
    # A masking policy that learns during training has its initial weights here.
    source = masked_source(data, link, config)
    return per_step(source, link.only.objective, empty_model_from(link.model, config))


_load = lru_cache(maxsize=4)(open_prepared)
