"""The study section of a recipe: arms, runs, contrasts and the rules of a fair comparison.

An arm is one way to pre-train, and a run is one arm with one seed. A contrast compares two arms,
the arm and its baseline, by runs with the same seeds. The reference arm is the model before this
pre-training: the untrained model, or the unchanged pre-trained model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from maskwise.base.constants import (
    FRESH_RUN,
    MOST_PRIMARY,
    MOST_SEEDS,
    REFERENCE,
)
from maskwise.base.effects import Judgement, Nothing, Settings, Several, Weights
from maskwise.base.errors import MaskwiseError, require_known
from maskwise.recipe.setting_layers import applied, layer
from maskwise.recipe.yamls import Plain

Pair = tuple[str, str]
"""The names of an arm and its baseline."""


INSTEAD = {
    "contrasts": "name other pairs, or set study.contrasts=null to compare every arm with the "
    "baseline",
    "gate": "name other arms, or set study.gate=null",
}
"""What to do if an arm is missing that a setting names, keyed by setting."""


def _dotted(grid: object) -> object:
    """Convert the nested settings of a grid, or of each point, to dotted names."""
    if isinstance(grid, Mapping):
        return layer(grid)
    if isinstance(grid, list | tuple) and all(isinstance(point, Mapping) for point in grid):
        return [layer(point) for point in grid]
    if grid is None:
        return None
    raise MaskwiseError("not a grid", got=grid, allowed="lists of values, or a list of points")


Values = Annotated[tuple[object, ...], Field(min_length=1)]
Grid = Annotated[dict[str, Values] | tuple[Plain, ...], BeforeValidator(_dotted)]


def _points(grid: Grid) -> list[Plain]:
    """List the points of a grid. A point is a dict of settings, keyed by dotted name."""
    if isinstance(grid, tuple):
        return [dict(point) for point in grid]
    points = []
    for values in product(*grid.values()):
        points.append(dict(zip(grid, values)))
    return points


class SearchSettings(Settings):
    """A grid of settings that a study tries before it compares arms.

    For every seed and arm, search runs try all points of the grid, and the best point is chosen.
    The compared runs are new runs at the chosen points.

    >>> grid = {"training.learning_rate": [1e-3, 2e-3], "training.warmup": [0, 0.1]}
    >>> len(SearchSettings(grid=grid).points)
    4
    """

    grid: Weights[Grid]
    """Lists of values, keyed by setting (all combinations are tried); or a list of points, which
    are dicts of settings."""
    by: Weights[Literal["dev", "held-out"] | None] = None
    """The criterion of the choice. ``dev``: scores on the tasks' dev rows. ``held-out``: loss on
    the arm's kind of mask. null: ``dev`` with tasks, ``held-out`` without tasks."""
    own: Weights[dict[str, Grid]] = {}
    """Additional grids for settings that only one arm has, such as the shares of its objectives;
    keyed by arm. All combinations with the common grid are tried."""

    @model_validator(mode="after")
    def _offers_a_choice(self) -> SearchSettings:
        if all(point == self.points[0] for point in self.points):
            raise MaskwiseError(
                "study.search.grid offers no choice: it has a single combination of settings",
                got=self.grid,
                allowed="≥ 2 combinations",
            )
        return self

    @property
    def points(self) -> list[Plain]:
        """The points of the common grid. If points have equal scores, the first one is chosen."""
        return _points(self.grid)

    def points_of(self, arm: str) -> list[Plain]:
        """List the points for an arm: all combinations of the common grid and the arm's grid.

        >>> own = {"shares": {"sampler": ["shares(1, 3)", "shares(3, 1)"]}}
        >>> search = SearchSettings(grid={"training.learning_rate": [1e-3, 2e-3]}, own=own)
        >>> len(search.points_of("shares")), len(search.points_of("uniform"))
        (4, 2)
        """
        points: list[Plain] = []
        for common, own in product(self.points, _points(self.own.get(arm, ({},)))):
            point = applied(common, own)
            # The arm's grid may replace settings of the common grid.
            if point not in points:
                points.append(point)
        return points


class GateSettings(Settings):
    """A positive control: a contrast that must be decided before other contrasts are tested.

    >>> GateSettings(contrast=("oracle", "random")).closes is None
    True
    """

    contrast: Judgement[Pair]
    """[oracle, baseline]: the arm that must win and the arm that must lose. Both are trained with
    the settings in the recipe, even if the study has a search."""
    closes: Judgement[tuple[Pair, ...] | None] = None
    """The primary contrasts that are tested only if the oracle wins; null for all."""


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise MaskwiseError("the seeds of a study must be distinct", got=list(seeds))
    return seeds


def _rising(looks: tuple[int, ...]) -> tuple[int, ...]:
    got = list(looks)
    if looks[0] < 2 or sorted(set(looks)) != got:
        raise MaskwiseError(
            "study.interim_looks must be increasing numbers of runs, from 2",
            got=got,
            do="for example, [10, 20]",
        )
    return looks


Count = Annotated[int, Field(ge=1, le=MOST_SEEDS)]
Seeds = Annotated[
    tuple[int, ...], Field(min_length=1, max_length=MOST_SEEDS), AfterValidator(_distinct)
]
Looks = Annotated[Several[int], Field(min_length=2), AfterValidator(_rising)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class StudySettings(Settings):
    """The arms, runs and contrasts of a study, and the rules of a fair comparison."""

    arms: Weights[dict[str, Plain]] = {}
    """The settings that an arm changes, such as ``{masking.ratio: 0.30}``; keyed by arm."""
    baseline: Judgement[str | None] = None
    """The arm that other arms are compared with; null for the first arm."""
    seeds: Judgement[Count | Seeds] = 3
    """The number of pre-training runs of each arm, or a list of seeds. Arms are compared in pairs
    of runs with the same seed, and each pair is one observation of the statistics.
    """
    contrasts: Judgement[tuple[Pair, ...] | None] = None
    """At most six primary contrasts, which get a verdict, as [arm, baseline]; null to compare every
    arm with the baseline."""
    outcome: Judgement[str | None] = None
    """A held-out loss that decides, such as ``heldout:token@0.15``, or ``heldout:token`` for the
    mean over ``evaluation.ratios``. With ``tasks`` or null, the tasks decide. Without tasks, null
    means the loss on the arm's own kind of mask. An untrained model has no held-out loss, so a
    contrast with it is decided as if this setting were null; in a study without tasks,
    ``no-pretraining`` is the loss of word frequencies.
    """
    equal_by: Weights[Literal["steps", "targets", "flops"]] = "steps"
    """The quantity that is equal for all arms. With targets (masked tokens) or FLOPs,
    ``training.steps`` of the other arms is computed from the baseline's steps.
    """
    interim_looks: Judgement[Looks | None] = None
    """Numbers of runs at which you plan to read the results, such as [10, 20]. ``seeds`` must be
    one of these numbers, and may later be increased to the next number. Without this plan, a study
    to which seeds are added after a verdict cannot decide: its verdicts stay *open*.
    """
    margin: Judgement[Fraction | None] = None
    """The smallest difference that matters, in scores (0.05: five points) or nats. If the interval
    of a difference is within ± margin, the verdict is *no difference that matters*."""
    secondary: Judgement[Several[str]] = ()
    """Names of tasks that are reported, with a mean and an interval, but never count in the primary
    outcome, such as a task that shows what was forgotten."""
    gate: GateSettings | None = None
    """A positive control: a contrast that a study able to detect differences must decide. Written
    ``[oracle, baseline]`` or ``{contrast: [oracle, baseline], closes: [[arm, baseline], …]}``. The
    contrasts in ``closes`` (default: all) are tested only if the study decides that the oracle
    beats the baseline. The gate is tested first, at the full significance level (5 %), and without
    a search. It does not lower the significance level of other contrasts.
    """
    search: SearchSettings | None = None
    """A grid of settings. For every seed and arm, search runs choose a point of the grid, and a new
    run at this point is compared.
    """
    cache: Nothing[str | None] = None
    """A folder of stages that several studies share; null for ``stages/`` in the study's folder."""

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_arms(cls, arms: object) -> object:
        """Accept an arm without a value (``token-15:``) as an arm that changes no settings."""
        if not isinstance(arms, dict):
            return arms
        return {name: changes or {} for name, changes in arms.items()}

    @field_validator("contrasts", mode="before")
    @classmethod
    def _only_pairs(cls, contrasts: object) -> object:
        """Refuse contrasts with tasks of their own: all contrasts are judged by the same tasks."""
        several = contrasts if isinstance(contrasts, list | tuple) else ()
        if len(several) == 2 and all(isinstance(name, str) for name in several):
            raise MaskwiseError(
                "study.contrasts is a list of pairs",
                got=f"[{', '.join(several)}]",
                do=f"write [[{', '.join(several)}]]",
            )
        for pair in several:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise MaskwiseError(
                    "a contrast in study.contrasts is a pair of arms, without settings of its own",
                    got=pair,
                    allowed="[arm, baseline]",
                    do="tasks that are not to decide, for all contrasts, are named in "
                    "study.secondary",
                )
        return contrasts

    @field_validator("gate", mode="before", json_schema_input_type=GateSettings | list[str] | None)
    @classmethod
    def _pair_alone(cls, gate: object) -> object:
        """Accept a bare pair as a gate on which all contrasts depend."""
        if isinstance(gate, list | tuple):
            if len(gate) != 2:
                raise MaskwiseError(
                    "a gate is a pair of arms", got=[*gate], allowed="[oracle, baseline]"
                )
            return {"contrast": gate}
        return gate

    @model_validator(mode="after")
    def _consistent(self) -> StudySettings:
        self._check_names()
        if self.search:
            # The best search runs are partly lucky, so compared runs must have other seeds.
            shared = set(self.seed_list) & set(self.compared_seeds.values())
            if shared:
                raise MaskwiseError(
                    f"with study.search, a compared run has the seed of its search runs + "
                    f"{FRESH_RUN:,}; study.seeds must not contain these seeds, too",
                    got=sorted(shared),
                    do=f"use seeds below {FRESH_RUN:,}",
                )
        if self.interim_looks and len(self.seed_list) not in self.interim_looks:
            raise MaskwiseError(
                "the number of study.seeds is not in study.interim_looks",
                got=len(self.seed_list),
                allowed=list(self.interim_looks),
            )
        # The gate is tested at its own significance level, so it does not count as a contrast here.
        tested = self._ungated
        for pair in self.closed:
            if pair not in tested:
                raise MaskwiseError(
                    "study.gate.closes names a pair that is not a primary contrast",
                    got=pair,
                    allowed=tested,
                    do="name other pairs, or set study.gate.closes=null for all",
                )
        for arm, baseline in tested:
            if (baseline, arm) in tested:
                raise MaskwiseError(
                    "study.contrasts names a contrast in both directions",
                    got=f"[{arm}, {baseline}] and [{baseline}, {arm}]",
                    do="name it once, because its test has two sides",
                )
        # With a search, the gate has runs of its own, so it is another test.
        if self.gate and not self.search:
            arm, baseline = self.gate.contrast
            if (baseline, arm) in tested:
                do = "remove this contrast, because the gate tests the same difference"
                if self.contrasts is None:
                    do = f"set study.baseline={baseline}, or study.contrasts"
                raise MaskwiseError(
                    "a contrast of the study is the gate in the other direction",
                    got=f"[{baseline}, {arm}], and study.gate={list(self.gate.contrast)}",
                    do=do,
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
        """Check the names of arms, and the settings that name arms."""
        for name in self.arms:
            if not name.strip():
                raise MaskwiseError(
                    "an arm of study.arms has no name",
                    got=[*self.arms],
                    do="give it a name without dots",
                )
            if name == REFERENCE:
                raise MaskwiseError(f"an arm cannot be called {name}: the name is reserved")
        compared = [*self.arms, REFERENCE]
        # Contrasts may name the reference arm, although it is not trained.
        pairs = [("contrasts", pair, compared) for pair in self.contrasts or ()]
        if self.gate:
            pairs.append(("gate", self.gate.contrast, compared))
        for setting, (arm, baseline), known in pairs:
            if arm == baseline:
                raise MaskwiseError(
                    f"study.{setting} must name two different arms", got=[arm, baseline]
                )
            place = f"arm in study.{setting}: [{arm}, {baseline}] names"
            for name in (arm, baseline):
                require_known(place, name, known, do=INSTEAD[setting])
        if self.search:
            for arm in self.search.own:
                require_known("arm in study.search.own", arm, self.arms)
        if self.baseline is not None:
            do = "name another arm, or set study.baseline=null for the first arm"
            require_known("arm in study.baseline", self.baseline, self.arms, do=do)

    def points_of(self, arm: str) -> list[Plain]:
        """List the grid points for an arm; without a search, the only point is {}."""
        if self.search is None:
            return [{}]
        return self.search.points_of(arm)

    def settings_used(self, arm: str) -> list[Plain]:
        """List the settings with which an arm is trained or measured, keyed by dotted name.

        These are the grid points, and {} for an arm that is used with the settings in the recipe,
        too: one of the gate, whose runs are not searched, or the baseline, whose cost with these
        settings is the budget (``equal_by``).

        >>> search = {"grid": {"training.learning_rate": [1e-3, 2e-3]}}
        >>> study = StudySettings(arms={"a": {}, "b": {}}, equal_by="flops", search=search)
        >>> len(study.settings_used("a")), len(study.settings_used("b"))
        (3, 2)
        """
        points = self.points_of(arm)
        as_written = self.gate is not None and arm in self.gate.contrast
        if self.equal_by != "steps":
            as_written |= arm == (self.baseline or next(iter(self.arms)))
        return [{}, *points] if as_written and {} not in points else points

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of the runs; with a search, the seeds of the search runs."""
        if isinstance(self.seeds, int):
            return tuple(range(self.seeds))
        return self.seeds

    @property
    def first_seed(self) -> int:
        """The seed whose texts and tasks stand for those of all runs: in checks, in dry runs and
        where studies are compared.
        """
        return self.seed_list[0]

    @property
    def compared_seeds(self) -> dict[int, int]:
        """The seeds of the compared runs, keyed by the seeds in the recipe.

        The two are equal, unless a search uses the seeds in the recipe for its own runs.
        """
        offset = 0
        if self.search:
            offset = FRESH_RUN
        return {seed: seed + offset for seed in self.seed_list}

    @property
    def pairs(self) -> list[Pair]:
        """The tested contrasts as (arm, baseline): the gate first, then primary contrasts."""
        if self.gate is None:
            return self.primary
        return [self.gate.contrast, *self._ungated]

    @property
    def _ungated(self) -> list[Pair]:
        """The primary contrasts without the gate."""
        others = self.primary
        # With a search, the gate has separate runs at the settings in the recipe, so its pair may
        # also be a contrast at the chosen settings.
        if self.gate and not self.search and self.gate.contrast in others:
            others.remove(self.gate.contrast)
        return others

    @property
    def primary(self) -> list[Pair]:
        """The primary contrasts as (arm, baseline)."""
        base = self.baseline or next(iter(self.arms), "")
        if self.contrasts is not None:
            pairs = list(self.contrasts)
        else:
            pairs = [(arm, base) for arm in self.arms if arm != base]
        return list(dict.fromkeys(pairs))

    @property
    def closed(self) -> list[Pair]:
        """The contrasts that are not tested unless the gate is decided for its oracle."""
        if self.gate is None:
            return []
        if self.gate.closes is None:
            return self._ungated
        return list(self.gate.closes)
