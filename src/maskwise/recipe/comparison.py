"""The study part of a recipe: arms, runs and contrasts, and the rules of a fair comparison."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from maskwise.constants import FRESH_RUN, MOST_PRIMARY, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.errors import MaskwiseError, require_known
from maskwise.recipe.overrides import Plain
from maskwise.specs import leaves

MOST_SEEDS = 1000
"""Limit on runs per arm, because a plan lists every stage of every run."""

Pair = tuple[str, str]
"""An arm and its baseline."""


class Settings(BaseModel):
    """Settings that refuse unknown keys and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _dotted(grid: object) -> object:
    """Flatten a grid, or each of its points, to dotted names."""
    if isinstance(grid, Mapping):
        return dict(leaves(grid))
    if isinstance(grid, list | tuple) and all(isinstance(point, Mapping) for point in grid):
        return [dict(leaves(point)) for point in grid]
    raise MaskwiseError("not a grid", got=grid, allowed="a list per setting, or a list of points")


Values = Annotated[tuple[object, ...], Field(min_length=1)]
Grid = Annotated[dict[str, Values] | tuple[Plain, ...], BeforeValidator(_dotted)]


def _points(grid: Grid) -> list[Plain]:
    """Return the points of a grid, each as a dict that maps dotted names to values."""
    if isinstance(grid, tuple):
        return [dict(point) for point in grid]
    points = []
    for values in product(*grid.values()):
        points.append(dict(zip(grid, values)))
    return points


class SearchSettings(Settings):
    """A grid from which each seed chooses settings for each arm, using runs that are not reported.

    >>> grid = {"training.learning_rate": [1e-3, 2e-3], "training.warmup": [0, 0.1]}
    >>> len(SearchSettings(grid=grid).points)
    4
    """

    grid: Grid
    """A list of values for each setting, of which all combinations are tried; or a list of points,
    each a dict of settings."""
    by: Literal["dev", "held-out"] | None = None
    """The criterion of the choice. ``dev``: scores on the tasks' dev rows. ``held-out``: loss on
    the arm's kind of mask. If null, ``dev`` if there are tasks, else ``held-out``."""
    own: dict[str, Grid] = {}
    """Additional grids for single arms, for example of fixed shares; each is combined with the
    common grid."""

    @model_validator(mode="after")
    def _offers_a_choice(self) -> SearchSettings:
        if len(self.points) < 2:
            raise MaskwiseError(
                "study.search.grid offers no choice", got=self.grid, allowed="≥ 2 points"
            )
        return self

    @property
    def points(self) -> list[Plain]:
        """The points of the common grid. If several points tie, the first one is chosen."""
        return _points(self.grid)

    def points_of(self, arm: str) -> list[Plain]:
        """Return the points tried for an arm: each common point with each point of the arm's grid.

        >>> own = {"shares": {"sampler": ["shares(1, 3)", "shares(3, 1)"]}}
        >>> search = SearchSettings(grid={"training.learning_rate": [1e-3, 2e-3]}, own=own)
        >>> len(search.points_of("shares")), len(search.points_of("uniform"))
        (4, 2)
        """
        points = []
        for point, more in product(self.points, _points(self.own.get(arm, ({},)))):
            points.append(point | more)
        return points


class GateSettings(Settings):
    """A positive control: a difference that must be found before other contrasts are tested.

    >>> GateSettings(contrast=("oracle", "random")).closes is None
    True
    """

    contrast: Pair
    """[oracle, baseline]: the arm that must win and the arm that it must beat. No search chooses
    their settings."""
    closes: tuple[Pair, ...] | None = None
    """The primary contrasts that are not tested unless the oracle wins; null means all of them."""


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise MaskwiseError("the seeds of a study must differ", got=list(seeds))
    return seeds


def _rising(looks: tuple[int, ...]) -> tuple[int, ...]:
    got = list(looks)
    if looks[0] < 2 or sorted(set(looks)) != got:
        raise MaskwiseError("looks must be increasing numbers of runs", got=got, allowed="[10, 20]")
    return looks


def _sorted(shares: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(set(shares)))


Count = Annotated[int, Field(ge=1, le=MOST_SEEDS)]
Seeds = Annotated[
    tuple[int, ...], Field(min_length=1, max_length=MOST_SEEDS), AfterValidator(_distinct)
]
Looks = Annotated[tuple[int, ...], Field(min_length=2), AfterValidator(_rising)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Fractions = Annotated[tuple[Fraction, ...], AfterValidator(_sorted)]


class StudySettings(Settings):
    """The arms, runs and contrasts of a study, and the rules of a fair comparison."""

    arms: dict[str, Plain] = {}
    """For each arm, by its name, overrides of settings, such as ``{masking.ratio: 0.30}``."""
    baseline: str | None = None
    """The arm with which the other arms are compared; if null, the first arm."""
    seeds: Count | Seeds = 3
    """The number of pre-training runs of each arm, or a list of their seeds. The runs are the
    replicates, and arms are compared between runs with the same seed.
    """
    contrasts: tuple[Pair, ...] | None = None
    """The primary contrasts, at most six, each as [arm, baseline]; if null, every other arm is
    compared with the baseline."""
    outcome: str | None = None
    """A held-out loss that decides, such as ``heldout:token@0.15``, or ``heldout:token`` for the
    mean over ``evaluation.ratios``. If null, the tasks decide if there are any, else the loss on
    the arm's own kind of mask. If one side of a contrast has no such loss (a new model without
    training), the contrast is decided as if this setting were null.
    """
    match: Literal["steps", "targets", "flops"] = "steps"
    """The quantity that is equal for all arms. For targets and FLOPs, ``training.steps`` is derived
    from the baseline's steps.
    """
    looks: Looks | None = None
    """Planned numbers of runs at which results are read, such as [10, 20]. ``seeds`` must be one of
    these numbers, and may later be raised to the next. Without planned looks, if seeds are added
    after a verdict, the next verdict is *open* at best.
    """
    margin: Fraction | None = None
    """The smallest difference that matters, in scores (0.05: five points) or nats. If the interval
    of a contrast lies within ± margin, there is no difference that matters."""
    helps: float = Field(0.75, ge=0, le=1)
    """A task counts in the primary outcome if pre-training helps on it in at least this share of
    the runs, that is, if the mean score of all arms on dev rows is above that of the untouched
    start. With 0, all tasks count."""
    share: Pair | None = None
    """[oracle, random]: the gain of the other arms over ``random`` is also given as a share of the
    gain of ``oracle``."""
    gate: GateSettings | None = None
    """A positive control, ``[oracle, baseline]`` or ``{contrast: [oracle, baseline], closes: [[arm,
    baseline], …]}``. The contrasts in ``closes`` (by default all) are tested only if it is decided
    that the oracle beats the baseline. The gate is tested first, without a search, at the full
    level of significance, and does not lower the level of the other contrasts.
    """
    transfer: bool = False
    """Whether arms learned their policies from the study's tasks. The primary contrasts are then
    ``own-task`` (for each task, the arm that learned from this task) and ``other-tasks`` (for each
    task, the mean of the arms that learned from other tasks), each with the baseline."""
    search: SearchSettings | None = None
    """A grid from which each seed chooses settings for each arm. A new run with the chosen settings
    is then compared.
    """
    companions: Fractions = ()
    """The lengths of additional shorter runs, as shares of the steps, to show quality against
    compute. Schedules of the ratio and of the learning rate depend on the length of a run, so a
    long run that is cut short cannot replace a short run.
    """
    cache: str | None = None
    """A folder where stages are shared with other studies; if null, ``stages/`` in the study's
    folder."""

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_arms(cls, arms: object) -> object:
        """Read ``token-15:`` without a value as an arm that changes nothing."""
        if not isinstance(arms, dict):
            return arms
        return {name: changes or {} for name, changes in arms.items()}

    @field_validator("gate", mode="before")
    @classmethod
    def _pair_alone(cls, gate: object) -> object:
        """Read a pair as a gate that closes all contrasts."""
        if isinstance(gate, list | tuple):
            return {"contrast": gate}
        return gate

    @model_validator(mode="after")
    def _consistent(self) -> StudySettings:
        self._check_names()
        if self.search:
            # Runs used to choose a setting look better than they are, so they are not compared.
            shared = set(self.seed_list) & set(self.judged_seeds.values())
            if shared:
                raise MaskwiseError(
                    f"with a search, the seed of a compared run is its search seed + {FRESH_RUN:,}",
                    got=sorted(shared),
                    do=f"use seeds below {FRESH_RUN:,}",
                )
        if self.looks and len(self.seed_list) not in self.looks:
            raise MaskwiseError(
                "study.seeds is not one of study.looks",
                got=len(self.seed_list),
                allowed=list(self.looks),
            )
        # The gate is tested at its own level, so it does not count among the primary contrasts.
        tested = self._ungated
        for pair in self.closed:
            if pair not in tested:
                raise MaskwiseError(
                    "study.gate.closes names a pair that is not a primary contrast",
                    got=pair,
                    allowed=tested,
                )
        if len(tested) > MOST_PRIMARY:
            raise MaskwiseError(
                "too many primary contrasts",
                got=len(tested),
                allowed=f"at most {MOST_PRIMARY}",
                do="name the contrasts that matter in study.contrasts",
            )
        return self

    def _check_names(self) -> None:
        """Refuse reserved or empty names of arms, and settings that name unknown arms."""
        for name in self.arms:
            if not name.strip():
                raise MaskwiseError("an arm of study.arms has no name", got=[*self.arms])
            if name in (REFERENCE, OWN_TASK, OTHER_TASKS):
                raise MaskwiseError(f"an arm cannot be called {name}: the name is reserved")
        compared = [*self.arms, REFERENCE]
        if self.transfer:
            compared += [OWN_TASK, OTHER_TASKS]
        # The untouched start can be a side of contrasts, but is not an arm that is trained.
        pairs = [("contrasts", pair, compared) for pair in self.contrasts or ()]
        if self.gate:
            pairs.append(("gate", self.gate.contrast, compared))
        if self.share:
            pairs.append(("share", self.share, [*self.arms]))
        for setting, (arm, baseline), known in pairs:
            if arm == baseline:
                raise MaskwiseError(
                    f"study.{setting} must name two different arms", got=[arm, baseline]
                )
            require_known(f"arm in study.{setting}", arm, known)
            require_known(f"arm in study.{setting}", baseline, known)
        if self.search:
            for arm in self.search.own:
                require_known("arm in study.search.own", arm, self.arms)
        if self.baseline is not None:
            require_known("arm in study.baseline", self.baseline, self.arms)

    def points_of(self, arm: str) -> list[Plain]:
        """Return the points of the search for an arm; without a search, a single empty point."""
        if self.search is None:
            return [{}]
        return self.search.points_of(arm)

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of each arm's runs; with a search, the seeds of the search runs."""
        if isinstance(self.seeds, int):
            return tuple(range(self.seeds))
        return self.seeds

    @property
    def judged_seeds(self) -> dict[int, int]:
        """For each seed of the study, the seed of the run that is compared. After a search, that
        run is a new run with a new seed.
        """
        offset = 0
        if self.search:
            offset = FRESH_RUN
        return {seed: seed + offset for seed in self.seed_list}

    @property
    def pairs(self) -> list[Pair]:
        """The tested contrasts, as (arm, baseline): first the gate, then the primary contrasts."""
        if self.gate is None:
            return self.primary
        return [self.gate.contrast, *self._ungated]

    @property
    def _ungated(self) -> list[Pair]:
        """The primary contrasts without the gate."""
        others = self.primary
        # With a search, the gate and a primary contrast of the same pair are different tests.
        if self.gate and not self.search and self.gate.contrast in others:
            others.remove(self.gate.contrast)
        return others

    @property
    def primary(self) -> list[Pair]:
        """The primary contrasts as (arm, baseline)."""
        base = self.baseline or next(iter(self.arms), "")
        if self.contrasts is not None:
            pairs = list(self.contrasts)
        elif self.transfer:
            pairs = [(OWN_TASK, base), (OTHER_TASKS, base)]
        else:
            pairs = [(arm, base) for arm in self.arms if arm != base]
        return list(dict.fromkeys(pairs))

    @property
    def closed(self) -> list[Pair]:
        """The contrasts that are not tested while the gate is closed."""
        if self.gate is None:
            return []
        if self.gate.closes is None:
            return self._ungated
        return list(self.gate.closes)
