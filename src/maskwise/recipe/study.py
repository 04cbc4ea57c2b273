"""``study:``: what is compared, with how many runs, and how the comparison is kept fair."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from maskwise.constants import MOST_PRIMARY, REFERENCE
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.recipe.overrides import leaves
from maskwise.recipe.parts import Part

Match = Literal["steps", "targets", "flops", "seconds"]


class SearchPart(Part):
    """Settings chosen for every arm alike, on runs and data that are not reported."""

    grid: dict[str, tuple[Any, ...]] | tuple[dict[str, Any], ...]
    """Values by setting (all combinations are tried), or a list of points, each a dict of settings."""
    seeds: tuple[int, ...] = (1000, 1001)
    """Of the runs that choose; none may be a seed of the study."""
    by: Literal["dev", "held-out"] | None = None
    """``dev``: scores on the tasks' dev rows. ``held-out``: loss on the arm's own kind of mask.
    If not said, dev where there are tasks."""

    @field_validator("grid", mode="before")
    @classmethod
    def _plain(cls, grid: Any) -> Any:
        if isinstance(grid, Mapping):
            grid = dict(leaves(grid))
            for key, values in grid.items():
                if not isinstance(values, list | tuple) or not values:
                    raise MaskwiseError(f"study.search.grid.{key} is a list of values", got=values)
            return grid
        if not isinstance(grid, list | tuple) or not all(isinstance(point, Mapping) for point in grid):
            raise MaskwiseError(
                "study.search.grid", got=grid, allowed="lists by setting, or a list of points"
            )
        return [dict(leaves(point)) for point in grid]

    @model_validator(mode="after")
    def _worth_it(self) -> SearchPart:
        if len(self.points) < 2:
            raise MaskwiseError(
                "study.search.grid has nothing to choose from", got=self.grid, allowed="≥ 2 points"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise MaskwiseError("study.search.seeds: different dev seeds", got=self.seeds, allowed="≥ 1")
        return self

    @property
    def points(self) -> list[dict[str, Any]]:
        """What is tried, in the order in which ties are settled: settings by dotted name."""
        if isinstance(self.grid, tuple):
            return [dict(point) for point in self.grid]
        return [dict(zip(self.grid, values)) for values in product(*self.grid.values())]


class StopPart(Part):
    """Hopeless arms are dropped. Saves compute, and biases what is left: see docs/studies.md."""

    after: int = Field(3, ge=3)
    """Paired runs before the first look; a paired-t interval of two has no meaning."""
    margin: float = Field(0.0, ge=0)
    """How far the interval must lie below the best arm, in spreads between runs."""


class StudyPart(Part):
    """What is compared."""

    arms: dict[str, dict[str, Any]] = {}
    """By name: overrides of any setting, such as ``{masking.ratio: 0.30}``."""
    baseline: str | None = None
    """The arm that the others are compared with; the first one if not said."""
    seeds: int | tuple[int, ...] = 3
    """Pre-training runs per arm (how many, or which seeds). They are the replicates, paired by seed."""
    contrasts: tuple[tuple[str, str], ...] | None = None
    """The primary ones, as [arm, baseline]; every arm against the baseline if not said. At most six."""
    match: Match = "steps"
    """What every arm spends as much of as the baseline: training.steps are set so (but for steps)."""
    search: SearchPart | None = None
    """A grid of settings, searched for every arm on dev seeds."""
    companions: tuple[float, ...] = ()
    """Shorter runs beside the whole ones, as shares of the steps: for time-to-quality. Schedules of the ratio and of
    the learning rate run over a run's own length, so a run cut short is not a short run."""
    stop_hopeless: StopPart | None = None
    """Drop arms that are clearly behind."""
    cache: str | None = None
    """A folder where stages are shared with other studies; if not said, ``stages/`` of the study's own."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyPart:
        if self.baseline is not None and self.baseline not in self.arms:
            raise unknown_name("baseline arm", self.baseline, self.arms)
        if REFERENCE in self.arms:
            raise MaskwiseError(f"an arm cannot be called {REFERENCE}: the reference of every study is")
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            raise MaskwiseError(
                "study.seeds: a number of runs, or different seeds", got=self.seeds, allowed="≥ 1"
            )
        both = set(self.seed_list) & set(self.search.seeds if self.search else ())
        if both:
            what = "study.search.seeds are seeds of the study: what chooses a setting must not judge it"
            raise MaskwiseError(what, got=sorted(both), do="give search other seeds, such as 1000, 1001")
        if len(self.pairs) > MOST_PRIMARY:
            raise MaskwiseError(
                "too many primary contrasts for one page", got=len(self.pairs),
                allowed=f"at most {MOST_PRIMARY}", do="name the ones that matter in study.contrasts",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _known_contrasts(self) -> StudyPart:
        for pair in self.contrasts or ():
            for name in pair:
                if name not in (*self.arms, REFERENCE):
                    raise unknown_name("arm in study.contrasts", name, [*self.arms, REFERENCE])
            if pair[0] == pair[1]:
                raise MaskwiseError(
                    "a contrast names two different arms", got=list(pair), allowed="[arm, baseline]"
                )
        return self

    @field_validator("arms", mode="before")
    @classmethod
    def _nothing_changed(cls, arms: Any) -> Any:
        """``token-15:`` alone is an arm that changes nothing."""
        return {name: over or {} for name, over in arms.items()} if isinstance(arms, dict) else arms

    @field_validator("seeds", mode="before")
    @classmethod
    def _paired(cls, seeds: Any) -> Any:
        if isinstance(seeds, Mapping):
            what = "study.seeds are the same for every arm: runs are paired by seed"
            raise MaskwiseError(what, got=dict(seeds), allowed="a number of runs, or a list of seeds")
        return seeds

    @field_validator("contrasts", mode="before")
    @classmethod
    def _two_names(cls, contrasts: Any) -> Any:
        bad = next((c for c in contrasts or () if not isinstance(c, list | tuple) or len(c) != 2), None)
        if bad is not None:
            raise MaskwiseError("study.contrasts holds pairs of arms", got=bad, allowed="[arm, baseline]")
        return contrasts

    @field_validator("companions")
    @classmethod
    def _shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share < 1 for share in shares) or len(set(shares)) < len(shares):
            raise MaskwiseError(
                "study.companions", got=shares, allowed="different shares of the steps, 0 < f < 1"
            )
        return tuple(sorted(shares))

    @property
    def seed_list(self) -> tuple[int, ...]:
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The primary contrasts."""
        base = self.baseline or next(iter(self.arms), "")
        return list(dict.fromkeys(self.contrasts or [(arm, base) for arm in self.arms if arm != base]))
