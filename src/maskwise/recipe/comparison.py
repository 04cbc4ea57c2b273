"""The study part of a recipe: what is compared, with how many runs, and how the comparison is kept
fair.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from maskwise.constants import FRESH_RUN, MOST_PRIMARY, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.recipe.overrides import Plain, leaves

MOST_SEEDS = 1000
"""Runs of an arm. A plan holds every stage of every run; thirty runs decide what is worth deciding.
"""


class Settings(BaseModel):
    """Settings that refuse unknown keys and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Grid = dict[str, tuple[object, ...]] | tuple[Plain, ...]


def _as_grid(grid: object, name: str) -> object:
    """Lists by dotted setting, or a list of points by dotted settings."""
    if isinstance(grid, Mapping):
        grid = dict(leaves(grid))
        for key, values in grid.items():
            if not isinstance(values, list | tuple) or not values:
                raise MaskwiseError(f"{name}.{key} is a list of values", got=values)
        return grid
    if not isinstance(grid, list | tuple) or not all(isinstance(point, Mapping) for point in grid):
        raise MaskwiseError(name, got=grid, allowed="lists by setting, or a list of points")
    return [dict(leaves(point)) for point in grid]


def _points(grid: Grid) -> list[Plain]:
    if isinstance(grid, tuple):
        return [dict(point) for point in grid]
    return [dict(zip(grid, values)) for values in product(*grid.values())]


class SearchSettings(Settings):
    """Settings that every seed of the study chooses for every arm, on runs and data that are not
    reported.

    >>> len(SearchSettings(grid={"training.learning_rate": [1e-3, 2e-3], "training.warmup": [0, 0.1]}).points)
    4
    """

    grid: Grid
    """Values by setting (all combinations are tried), or a list of points, each a dict of settings.
    """
    by: Literal["dev", "held-out"] | None = None
    """``dev``: scores on the tasks' dev rows. ``held-out``: loss on the arm's own kind of mask.
    None: dev where there are tasks."""
    own: dict[str, Grid] = {}
    """By arm: a grid of what this arm alone may choose, such as fixed shares, at every point of the
    common one.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_seeds(cls, settings: object) -> object:
        if isinstance(settings, Mapping) and "seeds" in settings:
            what = (
                "study.search.seeds is no longer a setting: every seed of the study chooses "
                "for itself"
            )
            raise MaskwiseError(what, got=settings["seeds"], do="remove it")
        return settings

    @field_validator("grid", mode="before")
    @classmethod
    def _dotted(cls, grid: object) -> object:
        return _as_grid(grid, "study.search.grid")

    @field_validator("own", mode="before")
    @classmethod
    def _dotted_own(cls, own: object) -> object:
        if not isinstance(own, Mapping):
            raise MaskwiseError("study.search.own", got=own, allowed="a grid by arm")
        return {arm: _as_grid(grid, f"study.search.own.{arm}") for arm, grid in own.items()}

    @model_validator(mode="after")
    def _offers_a_choice(self) -> SearchSettings:
        if len(self.points) < 2:
            what = "study.search.grid has nothing to choose from"
            raise MaskwiseError(what, got=self.grid, allowed="≥ 2 points")
        return self

    @property
    def points(self) -> list[Plain]:
        """The points that are tried, as settings by dotted name, in the order in which ties are
        settled.
        """
        return _points(self.grid)

    def points_of(self, arm: str) -> list[Plain]:
        """The points that are tried of one arm: those of all arms, each with every point of its own
        grid.

        >>> own = {"shares": {"sampler": ["shares(1, 3)", "shares(3, 1)"]}}
        >>> search = SearchSettings(grid={"training.learning_rate": [1e-3, 2e-3]}, own=own)
        >>> len(search.points_of("shares")), len(search.points_of("uniform"))
        (4, 2)
        """
        own = _points(self.own[arm]) if arm in self.own else [{}]
        return [point | more for point in self.points for more in own]


class GateSettings(Settings):
    """A positive control: a difference that must be found, or other contrasts are not judged.

    >>> GateSettings(contrast=("oracle", "random")).closes is None
    True
    """

    contrast: tuple[str, str]
    """[oracle, baseline]: the arm that must win, and the one that it must beat, at their settings
    as written.
    """
    closes: tuple[tuple[str, str], ...] | None = None
    """The primary contrasts, as [arm, baseline], that are not judged unless the oracle wins; null:
    all of them.
    """


class StudySettings(Settings):
    """What is compared, with how many runs, and how the comparison is kept fair."""

    arms: dict[str, Plain] = {}
    """By name: overrides of any setting, such as ``{masking.ratio: 0.30}``."""
    baseline: str | None = None
    """The arm that the others are compared with; None: the first one."""
    seeds: int | tuple[int, ...] = 3
    """Pre-training runs per arm (how many, or which seeds). They are the replicates, paired by
    seed.
    """
    contrasts: tuple[tuple[str, str], ...] | None = None
    """The primary ones, as [arm, baseline]; None: every arm against the baseline. At most six."""
    match: Literal["steps", "targets", "flops"] = "steps"
    """What every arm spends as much of as the baseline does: training.steps are set so (but for
    steps).
    """
    looks: tuple[int, ...] | None = None
    """Numbers of runs at which the study may be looked at, fixed beforehand: [10, 20]. ``seeds`` is
    one of them, and may be raised to the next. Without a plan, seeds that are added after a verdict
    cap the next one at *open*.
    """
    margin: float | None = Field(None, gt=0, lt=1)
    """The smallest difference that matters, in scores (0.05: five points) or nats. Arms whose
    interval lies within ± this have no difference that matters."""
    noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] | str | None = None
    """The standard deviation of paired differences, as ``margin`` is measured; or the folder of an
    earlier study that tells it. For what can be seen, which is said before any work; None: of an
    earlier study in the same folder.
    """
    helps: float = Field(0.75, ge=0, le=1)
    """A task counts in the primary outcome if pre-training helps on it in at least this share of
    the runs: the mean of all arms on dev rows is above the untouched start. 0 leaves no task
    out."""
    share: tuple[str, str] | None = None
    """Two arms, [oracle, random]: of what the first adds to the second, how much does every other
    arm add?
    """
    gate: GateSettings | None = None
    """A positive control, ``[oracle, baseline]`` or ``{contrast: [oracle, baseline], closes: [[arm,
    baseline], …]}``: the contrasts it closes (all, if none is named) are not judged unless the
    first arm is decided to beat the second. It is tested first, at the arms' settings as written,
    at the full level, and costs the others nothing.
    """
    transfer: bool = False
    """Arms learned their policies from the study's tasks: the primary contrasts are ``own-task``
    (for each task the arm that learned from it) and ``other-tasks`` (the mean of the others) with
    the baseline."""
    search: SearchSettings | None = None
    """A grid of settings, from which every seed chooses for every arm; a new run at that point is
    compared.
    """
    companions: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shorter runs beside the whole ones, as shares of the steps: for time-to-quality. Schedules of
    the ratio and of the learning rate run over a run's own length, so a run cut short is not a
    short run."""
    cache: str | None = None
    """A folder where stages are shared with other studies; None: ``stages/`` of the study's own."""

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_arms(cls, arms: object) -> object:
        """``token-15:`` alone is an arm that changes nothing."""
        return {name: over or {} for name, over in arms.items()} if isinstance(arms, dict) else arms

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
        number = seeds if isinstance(seeds, int) else len(seeds)
        if number < 1 or (isinstance(seeds, tuple) and len(set(seeds)) < number):
            raise MaskwiseError("a number of runs, or different seeds", got=seeds, allowed="≥ 1")
        if number > MOST_SEEDS:
            raise MaskwiseError("a number of runs", got=number, allowed=f"≤ {MOST_SEEDS}")
        return seeds

    @field_validator("gate", mode="before")
    @classmethod
    def _pair_alone(cls, gate: object) -> object:
        """A pair is short for a gate that closes everything."""
        return {"contrast": gate} if isinstance(gate, list | tuple) else gate

    @field_validator("looks")
    @classmethod
    def _rising(cls, looks: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if looks is not None and (
            len(looks) < 2 or looks[0] < 2 or sorted(set(looks)) != list(looks)
        ):
            raise MaskwiseError(
                "study.looks: rising numbers of runs",
                got=list(looks),
                allowed="≥ 2 of them, such as [10, 20]",
            )
        return looks

    @field_validator("companions")
    @classmethod
    def _shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(shares)))

    @model_validator(mode="after")
    def _consistent(self) -> StudySettings:
        if self.baseline is not None and self.baseline not in self.arms:
            raise unknown_name("baseline arm", self.baseline, self.arms)
        if not all(name.strip() for name in self.arms):
            raise MaskwiseError(
                "an arm of study.arms has no name", got=[*self.arms], do="give it one"
            )
        for name in {REFERENCE, OWN_TASK, OTHER_TASKS} & self.arms.keys():
            raise MaskwiseError(
                f"an arm cannot be called {name}: studies compare something else by that name"
            )
        for name in self.search.own if self.search else ():
            if name not in self.arms:
                raise unknown_name("arm in study.search.own", name, self.arms)
        shared = set(self.seed_list) & set(self.judged_seeds.values()) if self.search else set()
        if shared:
            what = (
                f"with a search, the run that is judged has the seed + {FRESH_RUN:,}, which "
                f"is in study.seeds too"
            )
            raise MaskwiseError(what, got=sorted(shared), do=f"give seeds below {FRESH_RUN:,}")
        known = [*self.arms, REFERENCE, *((OWN_TASK, OTHER_TASKS) if self.transfer else ())]
        for arm, baseline in self.contrasts or ():
            for name in (arm, baseline):
                if name not in known:
                    raise unknown_name("arm in study.contrasts", name, known)
            if arm == baseline:
                what = "a contrast names two different arms"
                raise MaskwiseError(what, got=[arm, baseline], allowed="[arm, baseline]")
        if self.looks and len(self.seed_list) not in self.looks:
            what = "study.seeds is not one of the numbers of runs at which a look is planned"
            raise MaskwiseError(
                what, got=len(self.seed_list), allowed=", ".join(map(str, self.looks))
            )
        gate = self.gate.contrast if self.gate else None
        for setting, pair, names in (("share", self.share, [*self.arms]), ("gate", gate, known)):
            for name in pair or ():
                if name not in names:
                    raise unknown_name(f"arm in study.{setting}", name, names)
            if pair and pair[0] == pair[1]:
                allowed = "[oracle, baseline]: the best arm and the one that it is better than"
                raise MaskwiseError(
                    f"study.{setting} names two different arms", got=list(pair), allowed=allowed
                )
        for pair in self.closed:
            if pair not in self.pairs[1:]:
                what = "study.gate.closes names what is no primary contrast"
                allowed = ", ".join(str(list(known_pair)) for known_pair in self.pairs[1:])
                raise MaskwiseError(what, got=list(pair), allowed=allowed)
        contrasts = len(self.pairs) - (self.gate is not None)
        if contrasts > MOST_PRIMARY:
            do = "name the ones that matter in study.contrasts"
            allowed = f"at most {MOST_PRIMARY}"
            raise MaskwiseError(
                "too many primary contrasts for one page", got=contrasts, allowed=allowed, do=do
            )
        return self

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of every arm's runs; with a search those of the runs that choose."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def judged_seeds(self) -> dict[int, int]:
        """The seed of the run that is compared, by seed of the study: with a search it is a new
        run.
        """
        offset = FRESH_RUN if self.search else 0
        return {seed: seed + offset for seed in self.seed_list}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is tested, as (arm, baseline): the gate, and then the primary contrasts."""
        if self.gate is None:
            return self.primary
        # Without a search the gate's own pair is one test; with one, which is better, each at its
        # best, is another.
        others = [pair for pair in self.primary if self.search or pair != self.gate.contrast]
        return [self.gate.contrast, *others]

    @property
    def primary(self) -> list[tuple[str, str]]:
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
    def closed(self) -> list[tuple[str, str]]:
        """The contrasts that are not judged while the gate is closed."""
        if self.gate is None:
            return []
        return self.pairs[1:] if self.gate.closes is None else list(self.gate.closes)
