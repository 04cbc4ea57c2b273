"""What a study runs, phase by phase: each is planned when those before it are done.

    texts → time → search → main (seed by seed, if arms may be dropped) → companions

A study without a search, matching or dropping has one phase, or two with companions. Everything that was decided on
the way is a record; nothing is kept but in the folders of stages, so a study that goes on decides the same again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskwise.constants import REFERENCE
from maskwise.masking.policies import policy
from maskwise.study.choosing import Scores, choose, hopeless
from maskwise.study.matching import matched_steps, rates, spent
from maskwise.study.plan import Plan, Run, arms_of, make_run, require_arms, task_contents
from maskwise.study.stages import Stage, time_stage, tokenizer_of


class Design:
    """A study's phases, and what was found between them.

    Attributes:
        runs: the runs to be reported that are planned so far.
        others: runs that only serve a choice.
        choices: records of kind "selection" and "stopped".
        planned: by arm, what a whole run should spend (steps, tokens, targets, flops); empty before texts are ready.
    """

    def __init__(self, recipe: Any, stages: Path):
        self.recipe, self.stages = recipe, stages
        require_arms(recipe)
        self.arms = list(recipe.study.arms)
        self.contents = task_contents(recipe)
        self.settings: dict[str, dict[str, Any]] = {arm: {} for arm in self.arms}
        self.runs: list[Run] = []
        self.others: list[Run] = []
        self.choices: list[dict[str, Any]] = []
        self.planned: dict[str, dict[str, float]] = {}
        self.budget: float | None = None

    def phases(self) -> Iterator[Plan]:
        """Plans, to be done one after the other."""
        yield from self._measure()
        yield from self._search()
        yield from self._main()
        yield from self._companions()

    # Matching ----------------------------------------------------------------------------------------------

    def _measure(self) -> Iterator[Plan]:
        """Texts (and timings) first, where the length of runs depends on them."""
        by = self.recipe.study.match
        if by == "steps":
            return
        runs = self._as_written()
        yield Plan(
            tuple(replace(run, chain=_texts(run), evaluated=None, tasks={}, overlaps=()) for run in runs),
            "texts",
        )
        if by == "seconds":
            search = self.recipe.study.search
            self.others = [
                replace(self._timed(run, point), evaluated=None, tasks={}, overlaps=())
                for run in runs
                for point in ({}, *(search.points if search else ()))
            ]
            yield Plan(tuple(self.others), "time", alone=True)
        self.budget = self._spends(self.recipe.baseline, {})

    def _timed(self, run: Run, point: dict[str, Any]) -> Run:
        """The texts of a run, and its trainings for the clock; points that change no speed share them."""
        links = self.recipe.arm(run.arm, seed=run.seed, more=point).links()
        run = make_run(self.recipe, run.arm, run.seed, contents={}, more=point)
        clocks = {(s := time_stage(link, text)).name: s for link, text in zip(links, _own_texts(run))}
        return replace(run, chain=(*_texts(run), *clocks.values()))

    def _spends(self, arm: str, more: dict[str, Any]) -> float | None:
        return spent(self._rates(arm, more), self.recipe.study.match)

    def _rates(self, arm: str, more: dict[str, Any]) -> list[dict[str, float]] | None:
        one = self.recipe.arm(arm, seed=self.recipe.study.seed_list[0], more=more)
        run = make_run(self.recipe, arm, one.training.seed, contents={}, more=more, evaluated=False)
        clock = self.recipe.study.match == "seconds"
        return rates(one, _own_texts(run), self.stages, clock=clock)

    def _length(self, arm: str, setting: dict[str, Any], fraction: float = 1.0) -> dict[str, Any]:
        """The steps of an arm's run, as overrides: those that spend the budget, and a share of them."""
        one = self.recipe.arm(arm, seed=0, more=setting)
        first, *further = (link.training.steps for link in one.links())
        if self.budget is not None:
            first = (
                matched_steps(self._rates(arm, setting), self.recipe.study.match, self.budget, arm=arm)
                or first
            )
        lengths = {"training.steps": first}
        if further:
            lengths["intermediate.training.steps"] = further[0]
        return {key: max(1, round(steps * fraction)) for key, steps in lengths.items()}

    # Searching ---------------------------------------------------------------------------------------------

    def _search(self) -> Iterator[Plan]:
        """Every arm at every point of the grid with every dev seed; each arm then keeps its best point."""
        search = self.recipe.study.search
        if search is None:
            return
        by = search.by or ("dev" if self.contents else "held-out")
        runs = {
            (arm, place, seed): make_run(
                self.recipe, arm, seed, contents=self.contents if by == "dev" else {},
                more=point | self._length(arm, point), evaluated=by == "held-out", setting=point,
            )
            for seed in search.seeds
            for place, point in enumerate(search.points)
            for arm in self.arms
        }  # fmt: skip
        self.others += runs.values()
        yield Plan(tuple(runs.values()), "search")
        for arm in self.arms:
            mine = [[runs[arm, place, seed] for seed in search.seeds] for place in range(len(search.points))]
            scores = [self._scores(point) for point in mine]
            found = choose(search.points, scores)
            chosen = None if found["chosen"] is None else search.points[found["chosen"]]
            candidates = [
                {"setting": point, "scores": one, "mean": mean}
                for point, one, mean in zip(search.points, scores, found["means"])
            ]
            record = {"kind": "selection", "arm": arm, "by": by, "seeds": list(search.seeds)}
            self.choices.append(
                {**record, "candidates": candidates, "chosen": chosen, "border": found["border"]}
            )
            self.settings[arm] = chosen or {}

    def _scores(self, runs: list[Run]) -> Scores | None:
        """Of the same arm with several seeds, by outcome: dev scores of tasks, or held-out losses times −1.
        None where a run is not done, or diverged."""
        by_outcome: Scores = {}
        for run in runs:
            judged = [*run.chain, *([run.evaluated] if run.evaluated else []), *run.tasks.values()]
            if any(stage.result(self.stages) is None for stage in judged):
                return None
            for stage in run.tasks.values():
                dev = (stage.result(self.stages) or {})["dev"]
                by_outcome.setdefault(stage.what["task"], []).append(sum(dev) / len(dev))
            if run.evaluated and not run.tasks:
                for line in (run.evaluated.result(self.stages) or {})["records"]:
                    if line["kind"] == "heldout" and line["masks"] in self.kinds(run.arm):
                        name = f"heldout:{line['masks']}@{line['ratio']:g}"
                        by_outcome.setdefault(name, []).append(-line["loss"])
        finite = all(math.isfinite(value) for values in by_outcome.values() for value in values)
        return by_outcome if finite else None

    def kinds(self, arm: str) -> tuple[str, ...]:
        """The kinds of held-out masks that an arm is judged on: those that it was trained last with."""
        return tuple(policy(self.recipe.arm(arm, seed=0).links()[-1].masking.policy).judged_on())

    # Running -----------------------------------------------------------------------------------------------

    def _main(self) -> Iterator[Plan]:
        """Whole runs; where arms may be dropped, seed by seed from the first look on."""
        study = self.recipe.study
        arms = arms_of(self.recipe, self.contents)
        stop, seeds = study.stop_hopeless, study.seed_list
        looks = range(stop.after, len(seeds)) if stop else []
        for first, end in zip([0, *looks], [*looks, len(seeds)]):
            runs = [self._run(arm, seed) for seed in seeds[first:end] for arm in arms]
            self.runs += runs
            yield Plan(tuple(runs))
            if stop and end < len(seeds):
                arms = [arm for arm in arms if arm not in self._stopped(arms, margin=stop.margin)]

    def _companions(self) -> Iterator[Plan]:
        """Shorter runs of the arms that were not dropped, longest first."""
        stopped = {record["arm"] for record in self.choices if record["kind"] == "stopped"}
        runs = [
            self._run(arm, seed, fraction)
            for seed in self.recipe.study.seed_list
            for fraction in sorted(self.recipe.study.companions, reverse=True)
            for arm in self.arms
            if arm not in stopped
        ]
        self.runs += runs
        if runs:
            yield Plan(tuple(runs), "companions")

    def _run(self, arm: str, seed: int, fraction: float = 1.0) -> Run:
        own = self.recipe.baseline if arm == REFERENCE else arm
        more = self.settings[own] | self._length(own, self.settings[own], fraction)
        return make_run(self.recipe, arm, seed, contents=self.contents, more=more, fraction=fraction)

    def _stopped(self, arms: list[str], *, margin: float) -> set[str]:
        """Arms that are clearly behind, each recorded. Arms that held-out loss cannot compare are not compared."""
        scores: dict[str, Scores] = {}
        for arm in arms:
            mine = self._scores([run for run in self.runs if run.arm == arm])
            if arm != REFERENCE and mine is not None:  # a failed run leaves an arm out: it is not paired
                scores[arm] = mine
        groups: dict[Any, dict[str, Scores]] = {}
        for arm, mine in scores.items():
            first = next(run for run in self.runs if run.arm == arm).chain[0]
            alike = None if self.contents else (self.kinds(arm), tokenizer_of(first))
            groups.setdefault(alike, {})[arm] = mine
        found = [one for group in groups.values() for one in hopeless(group, margin=margin)]
        found = [one for one in found if one["arm"] != self.recipe.baseline]
        by = "dev" if self.contents else "held-out"
        self.choices += [{"kind": "stopped", "by": by, "margin": margin, **one} for one in found]
        return {one["arm"] for one in found}

    # Facts -------------------------------------------------------------------------------------------------

    def _as_written(self) -> list[Run]:
        seed = self.recipe.study.seed_list[0]
        return [make_run(self.recipe, arm, seed, contents={}) for arm in self.arms]

    def plan_costs(self) -> None:
        """Fill ``planned``, as far as texts are there."""
        for arm in self.arms:
            setting = self.settings[arm]
            found = self._rates(arm, setting | self._length(arm, setting))
            if found is not None:
                known = [key for key in found[0] if all(key in link for link in found)]
                self.planned[arm] = {key: round(sum(link[key] for link in found), 1) for key in known}


def _texts(run: Run) -> tuple[Stage, ...]:
    return tuple(stage for stage in run.chain if stage.kind == "prepare")


def _own_texts(run: Run) -> list[Stage]:
    """The text of every training, in order."""
    named = {stage.name: stage for stage in run.chain}
    return [named[training.needs[0]] for training in run.trainings]
