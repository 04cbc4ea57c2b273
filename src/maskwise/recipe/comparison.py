"""The study part of a recipe: what is compared, with how many runs, and how the comparison is kept
fair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.recipe.overrides import Plain, leaves

MOST_SEEDS = 1000
"""Runs of an arm. A plan holds every stage of every run; thirty runs decide what is worth deciding.
"""

Pair = tuple[str, str]
"""Two arms: the one that should win, and its baseline."""


class Settings(BaseModel):
    """Settings that refuse unknown keys and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _dotted(grid: object) -> object:
    if isinstance(grid, Mapping):
        return dict(leaves(grid))
    if isinstance(grid, list | tuple) and all(isinstance(point, Mapping) for point in grid):
        return [dict(leaves(point)) for point in grid]
    raise MaskwiseError("not a grid", got=grid, allowed="lists by setting, or a list of points")


Values = Annotated[tuple[object, ...], Field(min_length=1)]
Grid = Annotated[dict[str, Values] | tuple[Plain, ...], BeforeValidator(_dotted)]


def _points(grid: Grid) -> list[Plain]:
    if isinstance(grid, tuple):
        return [dict(point) for point in grid]
    return [dict(zip(grid, values)) for values in product(*grid.values())]


class SearchSettings(Settings):
    """Settings that every seed chooses for every arm, on runs and data that are not reported.

    >>> grid = {"training.learning_rate": [1e-3, 2e-3], "training.warmup": [0, 0.1]}
    >>> len(SearchSettings(grid=grid).points)
    4
    """

    grid: Grid
    """Values by setting (all combinations are tried), or a list of points, each a dict of settings.
    """
    by: Literal["dev", "held-out"] | None = None
    """``dev``: scores on the tasks' dev rows. ``held-out``: loss on the arm's own kind of mask.
    None: dev where there are tasks."""
    own: dict[str, Grid] = {}
    """By arm: a grid that this arm alone combines with the common one, such as fixed shares."""

    @model_validator(mode="after")
    def _offers_a_choice(self) -> SearchSettings:
        if len(self.points) < 2:
            what = "study.search.grid has nothing to choose from"
            raise MaskwiseError(what, got=self.grid, allowed="≥ 2 points")
        return self

    @property
    def points(self) -> list[Plain]:
        """The points of the common grid, by dotted name. Of tied points the first is chosen."""
        return _points(self.grid)

    def points_of(self, arm: str) -> list[Plain]:
        """The points that are tried for one arm: the common grid times the arm's own.

        >>> own = {"shares": {"sampler": ["shares(1, 3)", "shares(3, 1)"]}}
        >>> search = SearchSettings(grid={"training.learning_rate": [1e-3, 2e-3]}, own=own)
        >>> len(search.points_of("shares")), len(search.points_of("uniform"))
        (4, 2)
        """
        own = _points(self.own.get(arm, ({},)))
        return [point | more for point in self.points for more in own]


class GateSettings(Settings):
    """A positive control: a difference that must be found, or other contrasts are not judged.

    >>> GateSettings(contrast=("oracle", "random")).closes is None
    True
    """

    contrast: Pair
    """[oracle, baseline]: the arm that must win, and the arm that it must beat, at the settings as
    written.
    """
    closes: tuple[Pair, ...] | None = None
    """The primary contrasts that are not judged unless the oracle wins; null: all of them."""


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise MaskwiseError("the seeds of a study are different", got=list(seeds))
    return seeds


def _rising(looks: tuple[int, ...]) -> tuple[int, ...]:
    if looks[0] < 2 or sorted(set(looks)) != list(looks):
        raise MaskwiseError(
            "looks are numbers of runs that rise", got=list(looks), allowed="[10, 20]"
        )
    return looks


Count = Annotated[int, Field(ge=1, le=MOST_SEEDS)]
Seeds = Annotated[
    tuple[int, ...], Field(min_length=1, max_length=MOST_SEEDS), AfterValidator(_distinct)
]
Looks = Annotated[tuple[int, ...], Field(min_length=2), AfterValidator(_rising)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Fractions = Annotated[
    tuple[Fraction, ...], AfterValidator(lambda shares: tuple(sorted(set(shares))))
]


class StudySettings(Settings):
    """What is compared, with how many runs, and how the comparison is kept fair."""

    arms: dict[str, Plain] = {}
    """By name: overrides of any setting, such as ``{masking.ratio: 0.30}``."""
    baseline: str | None = None
    """The arm that the others are compared with; None: the first one."""
    seeds: Count | Seeds = 3
    """Pre-training runs per arm (how many, or which seeds). They are the replicates, paired by
    seed.
    """
    contrasts: tuple[Pair, ...] | None = None
    """The primary ones, as [arm, baseline]; None: every arm against the baseline. At most six."""
    match: Literal["steps", "targets", "flops"] = "steps"
    """The quantity that is equal for all arms. For targets and FLOPs ``training.steps`` are derived
    from the baseline's.
    """
    looks: Looks | None = None
    """Numbers of runs at which the study may be looked at, fixed beforehand: [10, 20]. ``seeds`` is
    one of them, and may be raised to the next. Without a plan, seeds that are added after a verdict
    cap the next one at *open*.
    """
    margin: Fraction | None = None
    """The smallest difference that matters, in scores (0.05: five points) or nats. Arms whose
    interval lies within ± this have no difference that matters."""
    noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] | str | None = None
    """The standard deviation of paired differences, in the unit of ``margin``, or the folder of an
    earlier study to take it from. Used to predict what the study can detect; None: taken from an
    earlier study in the same folder.
    """
    helps: float = Field(0.75, ge=0, le=1)
    """A task counts in the primary outcome if pre-training helps on it in at least this share of
    the runs: the mean of all arms on dev rows is above the untouched start. 0 leaves no task
    out."""
    share: Pair | None = None
    """Two arms, [oracle, random]: every other arm's gain over random as a share of the oracle's."""
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
    companions: Fractions = ()
    """Additional shorter runs, as shares of the steps, for time-to-quality. Schedules of the ratio
    and of the learning rate run over a run's own length, so a run cut short is not a short run."""
    cache: str | None = None
    """A folder where stages are shared with other studies; None: ``stages/`` of the study's own."""

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_arms(cls, arms: object) -> object:
        """``token-15:`` alone is an arm that changes nothing."""
        return {name: over or {} for name, over in arms.items()} if isinstance(arms, dict) else arms

    @field_validator("gate", mode="before")
    @classmethod
    def _pair_alone(cls, gate: object) -> object:
        """A pair is short for a gate that closes everything."""
        return {"contrast": gate} if isinstance(gate, list | tuple) else gate

    @model_validator(mode="after")
    def _consistent(self) -> StudySettings:
        self._check_names()
        # Or a run that chose a setting would be compared with one that did not.
        if self.search:
            shared = set(self.seed_list) & set(self.judged_seeds.values())
            if shared:
                what = f"with a search the compared runs have seeds + {FRESH_RUN:,}"
                do = f"give seeds below {FRESH_RUN:,}"
                raise MaskwiseError(what, got=sorted(shared), do=do)
        if self.looks and len(self.seed_list) not in self.looks:
            what = "study.seeds is not one of study.looks"
            raise MaskwiseError(what, got=len(self.seed_list), allowed=list(self.looks))
        # The gate is tested at a level of its own and does not count.
        tested = self.pairs if self.gate is None else self.pairs[1:]
        for pair in self.closed:
            if pair not in tested:
                what = "study.gate.closes names a pair that is not a primary contrast"
                raise MaskwiseError(what, got=pair, allowed=tested)
        if len(tested) > MOST_PRIMARY:
            do = "name the ones that matter in study.contrasts"
            allowed = f"at most {MOST_PRIMARY}"
            raise MaskwiseError(
                "too many primary contrasts", got=len(tested), allowed=allowed, do=do
            )
        return self

    def _check_names(self) -> None:
        """Every setting that names arms names some of this study, and none is reserved or empty."""
        for name in self.arms:
            if not name.strip():
                raise MaskwiseError("an arm of study.arms has no name", got=[*self.arms])
            if name in (REFERENCE, OWN_TASK, OTHER_TASKS):
                raise MaskwiseError(f"an arm cannot be called {name}: the name is reserved")
        compared = [*self.arms, REFERENCE]
        if self.transfer:
            compared += [OWN_TASK, OTHER_TASKS]
        pairs: list[tuple[str, Sequence[str]]] = [("contrasts", p) for p in self.contrasts or ()]
        if self.gate:
            pairs.append(("gate", self.gate.contrast))
        if self.share:
            pairs.append(("share", self.share))
        for setting, (arm, baseline) in pairs:
            if arm == baseline:
                what = f"study.{setting} names two different arms"
                raise MaskwiseError(what, got=[arm, baseline])
        if self.search:
            pairs.append(("search.own", [*self.search.own]))
        if self.baseline is not None:
            pairs.append(("baseline", [self.baseline]))
        for setting, names in pairs:
            known = compared if setting in ("contrasts", "gate") else self.arms
            for name in names:
                if name not in known:
                    raise unknown_name(f"arm in study.{setting}", name, known)

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of every arm's runs; with a search those of the runs that choose."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def judged_seeds(self) -> dict[int, int]:
        """By seed of the study, the seed of the run that is compared: with a search a new one."""
        offset = FRESH_RUN if self.search else 0
        return {seed: seed + offset for seed in self.seed_list}

    @property
    def pairs(self) -> list[Pair]:
        """The tested contrasts, as (arm, baseline): the gate, and then the primary ones."""
        if self.gate is None:
            return self.primary
        # Without a search the gate's pair is one test; with one it is tested again, tuned.
        others = [pair for pair in self.primary if self.search or pair != self.gate.contrast]
        return [self.gate.contrast, *others]

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
        """The contrasts that are not judged while the gate is closed."""
        if self.gate is None:
            return []
        return self.pairs[1:] if self.gate.closes is None else list(self.gate.closes)
