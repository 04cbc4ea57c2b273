"""How often is the verdict *decided* wrong? This simulates studies without a true difference.

    python benchmarks/false_positives.py --out benchmarks/results/false-positives-DATE.json

The verdict rules are those of docs/evidence.md. A simulated study has a design (the number of
comparisons of two arms, called contrasts; the number of runs; the settings that a search tries; the
number of planned evaluations) and a world (the true quality of each setting). A line of a table
shows one design in one world. The noise is normal. The unit of scores is the standard deviation of
the difference between paired runs, called spread. A search chooses by the dev scores of its runs,
and new runs at the chosen settings are compared, as in the package, so the luck of the runs of a
search is in no compared score. All arms are equally good at their best settings.

A search for settings can still cause a true difference. If two settings are nearly equal, an arm
with a search chooses the worse setting in some runs, but an arm with one setting never does. The
column "tuned" has this true difference, in spreads. *Decided* is an error only in the lines where
"tuned" is 0. All lines are shown.

The tables ``symmetric``, ``power_of_tasks``, ``asymmetric``, ``price`` and ``real_code_of_tasks``
are about studies without a search, of one to eight tasks, and about arms that sometimes fail. They
take minutes; `--only symmetric,power_of_tasks,asymmetric,price,real_code_of_tasks` runs them alone.

With `--real N`, the code for users' studies (`choose`, `summarise`) also judges N simulated studies
of each design; `alike` counts equal verdicts. All tables take about half an hour on one core,
mostly for designs with 20 runs.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from command import run
from oracle_shares import learned_something, ratio_interval

from maskwise.base.constants import REFERENCE
from maskwise.base.devices import hardware
from maskwise.base.errors import require_known
from maskwise.results.files import Contrast
from maskwise.studies.design import best_point
from maskwise.verdict import summarise
from maskwise.verdict.failures import at_floor
from maskwise.verdict.items import errors_on_rows, together
from maskwise.verdict.statistics import (
    ALPHA,
    binomial_upper_bound,
    can_decide,
    estimated,
    holm,
    look_weights,
)

Array = np.ndarray
Row = dict[str, object]

SEED = 20_261_123
"""Seed of the simulation, fixed before the first run."""
SHARED = 0.8
"""Share of the variance of a run's dev score that is luck of its training; the rest is that of the
dev rows. Only their sum matters, because the compared runs are new ones. Two draws keep the random
numbers of the records.
"""
SPREAD = 2**-0.5
"""Standard deviation of a run's score, which gives a paired difference the standard deviation 1."""
GAPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Differences in quality between the two best settings of a grid."""
RUNS = (6, 8, 10, 20)
CONTRASTS = (1, 3, 6)


class World(NamedTuple):
    """The true quality of all settings, in spreads.

    Attributes:
        arm: the quality of the settings of each arm.
        baseline: the quality of the baseline's settings; a single setting means no tuning.
        spread: the standard deviation of the arms' runs relative to the baseline's runs.
    """

    name: str
    arm: tuple[float, ...] = (0.0,)
    baseline: tuple[float, ...] = (0.0,)
    spread: float = 1.0


class Design(NamedTuple):
    """A design of studies: the world, the number of contrasts, and the number of runs per arm."""

    world: World
    contrasts: int
    runs: int
    looks: tuple[int, ...] = ()
    gain: float = 0.0
    margin: float | None = None

    def generator(self) -> np.random.Generator:
        """Return the random generator of this design, which does not depend on other designs."""
        words = " ".join(map(str, [self.world.name, *self[1:]]))
        return np.random.default_rng([SEED, *words.encode()])

    def facts(self) -> Row:
        """Return the facts that identify this design."""
        named = self._asdict() | {"world": self.world.name}
        return {key: value for key, value in named.items() if value}


def five_points(gap: float) -> tuple[float, ...]:
    """Return a grid whose second-best setting is ``gap`` below the best."""
    return (-2.0, -gap, 0.0, -2.5, -8.0)


FIVE = five_points(0.75)
NO_SEARCH = World("no search")
SEARCHED = World("five points, gap 0.75", FIVE, FIVE)
FLAT_THREE = World("a flat grid of three against nothing to tune", (0.0,) * 3)


def worlds() -> Iterator[World]:
    """Yield all worlds in which all arms are equally good at their best settings."""
    yield NO_SEARCH
    for gap in GAPS:
        three = (-0.5 - gap, 0.0, -gap)
        five = five_points(gap)
        yield World(f"three points, equal, gap {gap:g}", three, three)
        yield World(f"three points, shifted, gap {gap:g}", three, (0.0, -gap, -2.0 - gap))
        yield World(f"five points, equal, gap {gap:g}", five, five)
        yield World(f"five points, shifted, gap {gap:g}", five, (-2.0, -1.5, -gap, 0.0, -4.0))
    flat = (-0.1, -0.1, 0.0, -0.1, -0.1)
    yield World("five points, flat against peaked", flat, (-2.0, -2.0, 0.0, -2.0, -2.0))
    near = (-3.0, -0.25, 0.0, -3.0, -3.0)
    alone = (-3.0, -3.0, 0.0, -3.0, -3.0)
    yield World("five points, a near neighbour against none", near, alone)
    yield World("a flat grid of five against nothing to tune", (0.0,) * 5)
    yield FLAT_THREE
    yield World("five points, gap 0.75, against nothing to tune", FIVE)
    # The runs of the arms vary twice as much as those of the baseline.
    yield World("no search, spreads of 2 against 1", spread=2.0)
    yield World("five points, spreads of 2 against 1", FIVE, FIVE, spread=2.0)


# The verdict rules, vectorised over studies


def sign_flip_p(differences: Array) -> Array:
    """Return the exact two-sided p value of the sign-flip test for each row of (studies, runs).

    The p value is the share of sign patterns whose sum is at least as far from 0. Each pattern is
    divided into two halves, and the sums of one half are looked up in the sorted sums of the other
    half. With 20 runs, 2^20 patterns thus cost only 2 · 2^10 sums. If the mean of a row is less
    than 1.2 standard errors from 0, its p value is near .25 or above, and 1 is returned instead.
    Such a row is never decided, and does not affect Holm's correction.
    """
    studies, runs = differences.shape
    p = np.ones(studies)
    errors = differences.std(axis=1, ddof=1) / math.sqrt(runs)
    far = np.flatnonzero(np.abs(differences.mean(axis=1)) > 1.2 * errors)
    first = _signed_sums(differences[far, : runs // 2])
    second = np.sort(_signed_sums(differences[far, runs // 2 :]), axis=1)
    observed = np.abs(differences[far].sum(axis=1)) * (1 - 1e-12)
    for row, study in enumerate(far):
        below = np.searchsorted(second[row], observed[row] - first[row], side="left")
        p[study] = 2 * (1 - below.mean() / second.shape[1])
    return np.minimum(p, 1.0)


def _signed_sums(values: Array) -> Array:
    """Return the sums of each row for all sign patterns: (rows, n) → (rows, 2^n)."""
    patterns = np.array(list(product((1.0, -1.0), repeat=values.shape[1])))
    return values @ patterns.T


def decided(differences: Array, looks: Sequence[int]) -> Array:
    """Return which contrasts are decided: (contrasts, studies, runs) → (studies, contrasts)."""
    looks = looks or [differences.shape[2]]
    p = np.ones(differences.shape[:2])
    for look, weight in zip(looks, look_weights(looks)):
        at_look = [sign_flip_p(contrast[:, :look]) for contrast in differences]
        p = np.minimum(p, np.stack(at_look) / weight)
    return np.array([holm(study) for study in p.T]) < ALPHA


def within_margin(differences: Array, margin: float) -> Array:
    """Return which intervals are within ± margin: (contrasts, studies, runs) → (studies,
    contrasts).

    The intervals have the confidence 1 − alpha / contrasts. An interval contains all differences
    that the test does not reject. It is within ± margin if the test rejects −margin and +margin.
    """
    level = ALPHA / len(differences)
    inside = np.abs(differences.mean(axis=2)) < margin
    for end in (-margin, margin):
        rejected = [sign_flip_p(contrast - end) <= level for contrast in differences]
        inside &= np.stack(rejected)
    return inside.T


# Simulated studies


class Side(NamedTuple):
    """The simulated scores of one arm.

    Attributes:
        dev: (studies, settings, runs) dev scores, which choose the setting.
        chosen: (studies, runs) index of the chosen setting.
        test: (studies, runs) test scores of new runs with the chosen setting.
    """

    dev: Array
    chosen: Array
    test: Array


def draw_side(
    rng: np.random.Generator, curve: Sequence[float], studies: int, runs: int, spread: float
) -> Side:
    """Draw the dev scores of all settings in each run, and a new run at the best setting."""
    quality = np.array(curve)
    shape = (studies, len(quality), runs)
    luck = rng.normal(0, spread, shape)
    rows = rng.normal(0, spread, shape)
    dev = quality[:, None] + math.sqrt(SHARED) * luck + math.sqrt(1 - SHARED) * rows
    chosen = dev.argmax(axis=1)
    test = quality[chosen] + rng.normal(0, spread, (studies, runs))
    return Side(dev, chosen, test)


def draw(design: Design, studies: int) -> tuple[list[Side], Array]:
    """Return the baseline and every arm, and the differences: (contrasts, studies, runs)."""
    world, rng = design.world, design.generator()
    sides = [draw_side(rng, world.baseline, studies, design.runs, SPREAD)]
    for _ in range(design.contrasts):
        arm = draw_side(rng, world.arm, studies, design.runs, SPREAD * world.spread)
        sides.append(arm._replace(test=arm.test + design.gain))
    return sides, np.stack([arm.test - sides[0].test for arm in sides[1:]])


def tuned_difference(world: World, draws: int = 200_000) -> float:
    """Return the true difference after the search: the mean true quality of the settings that the
    arm chooses, minus that of the settings that the baseline chooses.
    """
    rng = np.random.default_rng([SEED, *world.name.encode()])
    means = []
    for curve, spread in ((world.arm, SPREAD * world.spread), (world.baseline, SPREAD)):
        side = draw_side(rng, curve, draws, 1, spread)
        means.append(np.array(curve)[side.chosen].mean())
    return round(float(means[0] - means[1]), 2) + 0.0


def simulated(design: Design, studies: int, **facts: object) -> Row:
    """Return the share of studies with a decided contrast, and the standard error of the share."""
    _, differences = draw(design, studies)
    hits = decided(differences, design.looks).any(axis=1)
    return design.facts() | facts | _share(int(hits.sum()), studies)


def _share(hits: int, of: int) -> dict[str, float]:
    share = hits / of
    return {"share": share, "error": math.sqrt(share * (1 - share) / of)}


# Tables


def false_positives(studies: int) -> Iterator[Row]:
    """Yield the rate of *decided* in each design without a true difference at the best settings."""
    for world in worlds():
        gap = tuned_difference(world)
        part = "tuning costs one side more" if gap else "procedures equal"
        if world.spread != 1:
            part = "unequal spreads"
        for runs, contrasts in product(RUNS, CONTRASTS):
            if can_decide(runs, contrasts):
                yield simulated(Design(world, contrasts, runs), studies, part=part, tuned=gap)
    searched = World("five points", FIVE, FIVE)
    for looks, contrasts in (((8, 12), 1), ((6, 12), 1), ((6, 8, 10, 12), 1), ((8, 16), 3)):
        for world in (NO_SEARCH, searched):
            design = Design(world, contrasts, looks[-1], looks)
            yield simulated(design, studies, part="procedures equal", tuned=0.0)


def powers(studies: int) -> Iterator[Row]:
    """Yield the rates at which a true difference is decided, with and without a search."""
    for world, runs, gain in product((NO_SEARCH, SEARCHED), (6, 7, 8, 10, 20), (1.0, 1.5)):
        yield simulated(Design(world, 1, runs, gain=gain), studies)


def shares(studies: int) -> Iterator[Row]:
    """Yield the coverage of the interval of a share of an oracle's gain, for each design.

    The gain of an arm is its score minus that of the baseline, and the true share is computed from
    runs that learned something. "misjudged" is the share of runs for which the rule confuses a
    failed run with a run that learned something.
    """
    for share, failing, runs in product((0.85, 0.5, 0.15), (0.0, 0.1, 0.2, 0.3), (8, 10, 20)):
        world = f"share {share:g}, {failing:.0%} of runs fail"
        yield {"world": world, "runs": runs} | share_coverage(share, failing, runs, studies)


def share_coverage(share: float, failing: float, runs: int, studies: int) -> dict[str, float]:
    """Return the coverage of one design, by the rule and by Fieller's interval over all runs.

    The oracle gains 7 spreads on average. A run that learned something gains a part of the oracle's
    gain in the same run. A failed run gains nothing. All gains have noise. The true share is
    computed over all runs that the rule counts as learned.
    """
    rng = np.random.default_rng([SEED, runs, int(100 * share), int(100 * failing)])

    def gains_of(runs: int) -> tuple[Array, ...]:
        """Draw the gains of an arm and the oracle in each run, and whether the arm's run failed."""
        whole = rng.normal(7, 1, runs)
        failed = rng.random(runs) < failing
        gains = np.where(failed, 0.0, share * whole) + rng.normal(0, 0.3, runs)
        return gains, whole, failed

    gains, whole, _ = gains_of(400_000)
    learned = learned_something(gains, whole)
    truth = float(gains[learned].mean() / whole[learned].mean())
    counted = misjudged = covered = mixture = 0
    for _ in range(studies):
        gains, whole, failed = gains_of(runs)
        learned = learned_something(gains, whole)
        misjudged += bool((learned == failed).any())
        mixture += _holds(ratio_interval(gains, whole), share * (1 - failing))
        if learned.sum() > 1:
            counted += 1
            covered += _holds(ratio_interval(gains[learned], whole[learned]), truth)
    found = {
        "true": round(truth, 3),
        "misjudged": misjudged / studies,
        "mixture": mixture / studies,
    }
    return found | _share(covered, counted)


def _holds(ends: tuple[float, float] | None, truth: float) -> bool:
    return ends is None or ends[0] <= truth <= ends[1]


def real_code(studies: int) -> Iterator[Row]:
    """Yield the number of studies that this simulation judges as the package does."""
    for world, contrasts, runs in product((NO_SEARCH, SEARCHED, FLAT_THREE), CONTRASTS, (8, 10)):
        yield compared(Design(world, contrasts, runs), studies)
    yield compared(Design(SEARCHED, 1, 20), studies)
    yield compared(Design(SEARCHED, 1, 12, (8, 12)), studies)
    yield compared(Design(SEARCHED, 1, 10, gain=1.0), studies)
    for contrasts in (1, 3):
        yield compared(Design(NO_SEARCH, contrasts, 10, gain=1.0, margin=1.0), studies)


def compared(design: Design, studies: int) -> Row:
    """Return the number of simulated studies that ``choose`` and ``summarise`` judge alike."""
    sides, differences = draw(design, studies)
    expected = np.where(decided(differences, design.looks), "decided", "open")
    if design.margin is not None:
        equal = within_margin(differences, design.margin) & (expected == "open")
        expected = np.where(equal, "no difference that matters", expected)
    found = np.array([verdicts(design, sides, study) for study in range(studies)])
    alike = int((found == expected).all(axis=1).sum())
    return design.facts() | {"studies": studies, "alike": alike} | _share(alike, studies)


def verdicts(design: Design, sides: Sequence[Side], study: int) -> list[str]:
    """Return the verdicts of one simulated study by the package.

    Raises:
        AssertionError: ``choose`` and the simulation choose different settings.
    """
    seeds = list(range(design.runs))
    names = ["baseline", *(f"arm-{number}" for number in range(design.contrasts))]
    records = []
    for (name, side), seed in product(zip(names, sides), seeds):
        points = [{"t": float(score)} for score in side.dev[study, :, seed]]
        assert best_point(points).place == side.chosen[study, seed]
        score = float(side.test[study, seed])
        record = {"kind": "task", "arm": name, "seed": seed, "measure": "t", "metric": "f1"}
        records.append(record | {"value": score})
    arm = {"policy": "token", "ratio": "constant(0.3)", "overrides": {}}
    facts = {
        "baseline": "baseline",
        "seeds": seeds,
        "arms": dict.fromkeys(names, arm),
        "contrasts": [(name, "baseline") for name in names[1:]],
        "tasks": {"t": {"metric": "f1"}},
        "margin": design.margin,
        "looks": list(design.looks) or None,
        "looked": [],
    }  # type: ignore[typeddict-item]
    rows = summarise(records, facts)["contrasts"]
    return [str(row["verdict"]) for row in rows if row["outcome"] == "tasks"]


# Several tasks, and arms that sometimes fail
# --------------------------------------------------------------------------------------------

DROP = 4.0
"""How far a failed run is below the others, in SDs of a run of the baseline."""
TEST_ITEMS = 10_000
"""Number of test items in simulated studies. An SD counts as at least one item."""


class Noise(NamedTuple):
    """A world of studies without a search, in which each task of each run has noise.

    Attributes:
        law: the distribution of the noise of both arms, "normal" or "t3" (heavy tails).
        spread: the SD of the arms' runs, relative to that of the baseline's runs.
        luck: the share of a run's variance that its tasks share.
        fails: the share of runs of every arm, and of the baseline, that fail in all tasks.
        gate: whether the contrast is tested only if an oracle beats the baseline, by 1 SD of the
            averaged paired difference.
    """

    law: str = "normal"
    spread: float = 1.0
    luck: float = 0.0
    fails: float = 0.0
    gate: bool = False


class TaskDesign(NamedTuple):
    """A design: the world, the numbers of tasks, runs and contrasts, and the true effect.

    Attributes:
        effect: the true difference, in SDs of the paired difference averaged over tasks.
        where: the number of tasks that have the effect, which is larger if they are fewer.
    """

    world: Noise
    tasks: int
    runs: int
    contrasts: int = 1
    effect: float = 0.0
    where: int = 0

    def generator(self) -> np.random.Generator:
        """Return the random generator of this design, which does not depend on other designs."""
        return np.random.default_rng([SEED, *repr(tuple(self)).encode()])

    def facts(self) -> Row:
        """Return the facts that identify this design."""
        named = {**self.world._asdict(), **self._asdict()}
        del named["world"]
        return {key: value for key, value in named.items() if value}


def draw_runs(rng: np.random.Generator, design: TaskDesign, studies: int, spread: float) -> Array:
    """Draw the scores of one arm without an effect: (studies, tasks, runs)."""
    world = design.world
    shape = (studies, design.tasks, design.runs)

    def noise(shape: tuple[int, ...]) -> Array:
        if world.law == "t3":
            # The variance of t with three degrees of freedom is 3.
            return rng.standard_t(3, shape) / math.sqrt(3)
        return rng.normal(0, 1, shape)

    common = noise((studies, 1, design.runs))
    scores = math.sqrt(world.luck) * common + math.sqrt(1 - world.luck) * noise(shape)
    failed = rng.random((studies, 1, design.runs)) < world.fails
    return spread * (scores - DROP * failed)


def draw_study(design: TaskDesign, studies: int) -> Array:
    """Draw the baseline, all arms and, with a gate, the oracle: (sides, studies, tasks, runs)."""
    rng = design.generator()
    world = design.world
    spreads = [1.0] + [world.spread] * design.contrasts + [1.0] * world.gate
    sides = [draw_runs(rng, design, studies, spread) for spread in spreads]
    # The SD of a paired difference, averaged over tasks.
    average = math.sqrt((1 + (design.tasks - 1) * world.luck) / design.tasks)
    if design.effect:
        size = design.effect * average * math.hypot(1, world.spread) * design.tasks / design.where
        for side in sides[1 : 1 + design.contrasts]:
            side[:, : design.where] += size
    if world.gate:
        sides[-1] += average * math.sqrt(2)
    return np.stack(sides)


def sum_of_t_p(differences: Array, least_sds: float = 0.0) -> Array:
    """Return the exact p values of the sign-flip test of several tasks.

    Args:
        differences: (studies, tasks, runs) paired differences.
        least_sds: the smallest SD of a task's differences that counts.
    """
    studies, tasks, runs = differences.shape
    signs = np.array(list(product((1.0, -1.0), repeat=runs - 1))).T
    signs = np.vstack([np.ones(signs.shape[1]), signs])
    p = np.empty(studies)
    step = max(1, 2**19 // signs.shape[1])
    for first in range(0, studies, step):
        part = differences[first : first + step]
        t = np.zeros((len(part), signs.shape[1]))
        for task in range(tasks):
            d = part[:, task]
            sums = d @ signs
            variances = (np.square(d).sum(axis=1)[:, None] - sums**2 / runs) / (runs - 1)
            t += sums / np.sqrt(np.maximum(variances, max(least_sds**2, 1e-300)))
        t = np.abs(t)
        p[first : first + step] = (t >= t[:, :1] * (1 - 1e-9)).mean(axis=1)
    return p


def decided_tasks(design: TaskDesign, sides: Array) -> Array:
    """Return which contrasts are decided: (studies, contrasts)."""
    p = [sum_of_t_p(arm - sides[0]) for arm in sides[1 : 1 + design.contrasts]]
    found = np.array([holm(study) for study in np.stack(p, axis=1)]) < ALPHA
    if design.world.gate:
        gain = sides[-1] - sides[0]
        t = (gain.mean(axis=2) / gain.std(axis=2)).sum(axis=1)
        found &= ((sum_of_t_p(gain) < ALPHA) & (t > 0))[:, None]
    return found


def simulated_tasks(design: TaskDesign, studies: int) -> Row:
    """Return the share of studies with a decided contrast, and the standard error of the share."""
    hits = decided_tasks(design, draw_study(design, studies)).any(axis=1)
    return design.facts() | _share(int(hits.sum()), studies)


def symmetric(studies: int) -> Iterator[Row]:
    """Yield the rate of *decided* in worlds in which arms are equal, or differ symmetrically.

    Without a true difference, the paired differences are symmetric in all of these worlds.
    """
    for law, spread, tasks, runs in product(
        ("normal", "t3"), (1.0, 2.0, 3.0), (1, 2, 4, 8), (6, 8, 10, 12)
    ):
        yield simulated_tasks(TaskDesign(Noise(law, spread), tasks, runs), studies)
    for tasks, runs in product((1, 4), (8, 10, 12)):
        for fails in (0.1, 0.2):
            yield simulated_tasks(TaskDesign(Noise(fails=fails), tasks, runs), studies)
        yield simulated_tasks(TaskDesign(Noise(gate=True), tasks, runs), studies)
        yield simulated_tasks(TaskDesign(Noise(), tasks, runs, contrasts=3), studies)
        world = Noise(spread=3.0, luck=0.5)
        yield simulated_tasks(TaskDesign(world, tasks, runs), studies)


def power_of_tasks(studies: int) -> Iterator[Row]:
    """Yield the power of ten runs and four tasks, with the effect in all, two or one of them."""
    for luck, effect, where in product((0.0, 0.5), (1.0, 1.5), (4, 2, 1)):
        world = Noise(luck=luck)
        yield simulated_tasks(TaskDesign(world, 4, 10, effect=effect, where=where), studies)


def real_code_of_tasks(studies: int) -> Iterator[Row]:
    """Yield the number of studies of several tasks that the package judges as this simulation."""
    worlds = (Noise(), Noise(spread=3.0), Noise(law="t3"), Noise(fails=0.1), Noise(gate=True))
    for world, tasks in product(worlds, (1, 4)):
        yield compared_tasks(TaskDesign(world, tasks, 8), studies)
    yield compared_tasks(TaskDesign(Noise(), 8, 10, contrasts=3, effect=1.0, where=8), studies)
    yield compared_tasks(TaskDesign(Noise(luck=0.5), 4, 10, effect=1.0, where=1), studies)
    for fails, scale in ((0.1, 1.0), (0.2, 2.0)):
        yield compared_failing(fails, scale, 10, studies)


def compared_tasks(design: TaskDesign, studies: int) -> Row:
    """Return the number of simulated studies that ``summarise`` judges alike."""
    sides = draw_study(design, studies)
    expected = decided_tasks(design, sides)
    names = ["baseline"] + [f"arm-{number}" for number in range(design.contrasts)]
    names += ["oracle"] * design.world.gate
    alike = 0
    for study in range(studies):
        runs = dict(zip(names, sides[:, study]))
        gate = ("oracle", "baseline") if design.world.gate else None
        verdicts = judged(runs, names[1 : 1 + design.contrasts], gate=gate)
        alike += [verdict == "decided" for verdict in verdicts] == expected[study].tolist()
    return design.facts() | {"studies": studies, "alike": alike} | _share(alike, studies)


def judged(
    runs: dict[str, Array],
    arms: Sequence[str],
    *,
    gate: tuple[str, str] | None = None,
    floor: float | None = None,
    policy: str = "token",
) -> list[str]:
    """Return the verdicts of the package on arms against the baseline.

    Args:
        runs: (tasks, runs) scores, keyed by arm.
        arms: the arms of the contrasts.
        gate: the pair of arms of the gate.
        floor: the score of the untrained model.
        policy: the masking policy of the arms, which may be one that each run learns.
    """
    known = dict(runs)
    if floor is not None:
        known[REFERENCE] = np.full_like(runs["baseline"], floor)
    rows = judged_rows(known, arms, gate=gate, policy=policy)
    return [str(row["verdict"]) for row in rows]


def judged_rows(
    runs: dict[str, Array],
    arms: Sequence[str],
    *,
    dev: dict[str, Array] | None = None,
    gate: tuple[str, str] | None = None,
    policy: str = "token",
) -> list[Contrast]:
    """Return the package's rows of arms against the baseline, without that of the gate.

    Args:
        runs: (tasks, runs) scores, keyed by arm; also of the untrained model, if it was scored.
        arms, gate, policy: as in ``judged``.
        dev: the scores on dev rows.
    """
    records = []
    for split, known in (("test", runs), ("dev", dev or {})):
        for name, scores in known.items():
            for (task, seed), score in np.ndenumerate(scores):
                record = {"kind": "task", "arm": name, "seed": seed, "measure": f"t{task}"}
                record |= {"split": split, "metric": "f1", "value": float(score)}
                records.append(record)
    tasks, seeds = runs["baseline"].shape
    facts = {
        "baseline": "baseline",
        "untrained": {REFERENCE: REFERENCE} if REFERENCE in runs else {},
        "seeds": list(range(seeds)),
        "arms": {
            name: {"policy": policy if name in arms else "token", "ratio": "", "overrides": {}}
            for name in runs
            if name != REFERENCE
        },
        "contrasts": [(name, "baseline") for name in arms],
        "tasks": {f"t{task}": {"metric": "f1", "test_items": TEST_ITEMS} for task in range(tasks)},
    }
    if gate:
        facts["gate"] = {"contrast": gate, "closes": facts["contrasts"]}
        facts["contrasts"] = [*facts["contrasts"], gate]
    rows = summarise(records, facts)["contrasts"]  # type: ignore[arg-type]
    return [row for row in rows if row["outcome"] == "tasks" and "gate" not in row]


# Which tasks count
# --------------------------------------------------------------------------------------------

DEV_LUCK = 0.9
"""Correlation of the dev and test scores of a run of the baseline, whose SD is 1 on both."""
LEAST_HELPED = 0.75
"""Share of the seeds in which pre-training must help on a task that is chosen."""
OTHER_SEEDS = 4
"""Number of further seeds for the rule that chooses tasks on other seeds than it tests."""
THE_RULE = "all tasks"
"""The rule of the package."""
RULES_OF_TASKS = ("mean of the arms", "all tasks", "other seeds", "by variance", "by own variance")


class Help(NamedTuple):
    """A world of four tasks, of which pre-training helps on some.

    The unit is the SD of a run of the baseline.

    Attributes:
        responding: the number of tasks on which pre-training helps.
        help: the gain of all arms over the start on these tasks.
        spread: the SD of the runs of the first arm; that of the other arms and of the start is 1.
        runs: the number of runs of each arm.
        arms: the number of arms, with the baseline.
        shared: the covariance of two arms in a run, which have the same seed.
        effect: the true lead of the first arm over the baseline on the tasks with help, in SDs of
            the paired difference.
    """

    responding: int
    help: float
    spread: float = 1.0
    runs: int = 8
    arms: int = 2
    shared: float = 0.0
    effect: float = 0.0


def draw_helped(world: Help, studies: int) -> tuple[Array, Array]:
    """Draw the scores on test and dev: (sides, studies, tasks, runs), with the start at the end."""
    rng = np.random.default_rng([SEED, 4, *repr(tuple(world)).encode()])
    shape = (world.arms + 1, studies, 4, world.runs + OTHER_SEEDS)
    quality = np.zeros((world.arms + 1, 1, 4, 1))
    quality[:-1, :, : world.responding] = world.help
    quality[1, :, : world.responding] += world.effect * math.hypot(1, world.spread)
    own = np.sqrt(np.array([1, world.spread**2] + [1] * (world.arms - 1)) - world.shared)
    luck = own[:, None, None, None] * rng.normal(0, 1, shape)
    luck += math.sqrt(world.shared) * rng.normal(0, 1, shape[1:])
    rows = math.sqrt(1 - DEV_LUCK**2) * rng.normal(0, 1, shape)
    return quality + luck, quality + DEV_LUCK * luck + rows


def chosen_tasks(rule: str, dev: Array, runs: int) -> Array:
    """Return which tasks a rule counts: (studies, tasks).

    mean of the arms: those on which the mean of all arms beats the start, in three quarters of the
        seeds.
    all tasks: all.
    other seeds: as the first, on seeds that are not tested.
    by variance: as the first, with a mean of the arms that is weighted by the inverse of their
        variances, each averaged over the tasks.
    by own variance: the same, with the variance of the arm on the task.

    If no task is left, all count.
    """
    if rule == "all tasks":
        return np.ones(dev.shape[1:3], dtype=bool)
    dev = dev[..., runs:] if rule == "other seeds" else dev[..., :runs]
    weights = np.ones((len(dev) - 1, *dev.shape[1:3], 1))
    if rule.startswith("by"):
        weights /= dev[:-1].var(axis=3, ddof=1, keepdims=True)
        if rule == "by variance":
            weights = 1 / (1 / weights).mean(axis=2, keepdims=True)
    gains = (weights * dev[:-1]).sum(axis=0) / weights.sum(axis=0) - dev[-1]
    found = (gains > 0).mean(axis=2) >= LEAST_HELPED
    return found | ~found.any(axis=1, keepdims=True)


def decided_by(rule: str, test: Array, dev: Array, runs: int) -> tuple[Array, Array]:
    """Return for each study whether the first contrast is decided, and which tasks count."""
    chosen = chosen_tasks(rule, dev, runs)
    differences = test[1, ..., :runs] - test[0, ..., :runs]
    p = np.ones(len(chosen))
    for subset in np.unique(chosen, axis=0):
        same = (chosen == subset).all(axis=1)
        p[same] = sum_of_t_p(differences[same][:, subset])
    return p < ALPHA, chosen


def help_worlds() -> Iterator[Help]:
    """Yield the worlds in which rules are compared: without a true lead, and with one."""
    for spread, responding, gain in product((1.0, 2.0, 3.0, 5.0), (1, 2, 4), (0.3, 1.0, 3.0)):
        yield Help(responding, gain, spread)
    for spread, responding in product((1.0, 3.0, 5.0), (1, 2, 4)):
        for runs in (6, 12):
            yield Help(responding, 0.3, spread, runs=runs)
        yield Help(responding, 0.3, spread, arms=3)
        yield Help(responding, 0.3, spread, shared=0.5)
    for spread, responding, effect in product((1.0, 3.0), (1, 2, 4), (0.5, 1.0)):
        yield Help(responding, 3.0, spread, effect=effect)
    for responding in (1, 2, 4):
        # The other seeds of that rule cost as many runs.
        yield Help(responding, 3.0, runs=12, effect=1.0)


def rules_of_tasks(studies: int) -> Iterator[Row]:
    """Yield the rate of *decided* under each rule that says which tasks count.

    "noisier" is the share of studies decided for the arm whose runs vary more, and "left_out" the
    mean number of tasks that do not count.
    """
    for world in help_worlds():
        test, dev = draw_helped(world, studies)
        named = {key: value for key, value in world._asdict().items() if value}
        for rule in RULES_OF_TASKS:
            hits, chosen = decided_by(rule, test, dev, world.runs)
            lead = test[1, ..., : world.runs] - test[0, ..., : world.runs]
            t = lead.mean(axis=2) / lead.std(axis=2)
            ahead = np.where(chosen, t, 0).sum(axis=1) > 0
            facts = {"noisier": float((hits & ahead).mean())}
            facts["left_out"] = float((~chosen).sum(axis=1).mean())
            yield named | {"rule": rule} | facts | _share(int(hits.sum()), studies)


def real_code_of_rules(studies: int) -> Iterator[Row]:
    """Yield the number of studies that the package judges as this simulation of its rule."""
    for spread, runs, arms in ((1.0, 8, 2), (3.0, 8, 2), (5.0, 6, 2), (3.0, 8, 3)):
        world = Help(2, 0.3, spread, runs=runs, arms=arms)
        test, dev = draw_helped(world, studies)
        expected, _ = decided_by(THE_RULE, test, dev, runs)
        names = ["baseline", *(f"arm-{number}" for number in range(1, arms)), REFERENCE]
        alike = 0
        for study in range(studies):
            scores, chosen_by = (
                dict(zip(names, split[:, study, :, :runs])) for split in (test, dev)
            )
            (row,) = judged_rows(scores, ["arm-1"], dev=chosen_by)
            alike += (row["p"] < ALPHA) == expected[study]
        yield world._asdict() | {"studies": studies, "alike": int(alike)} | _share(alike, studies)


def asymmetric(studies: int) -> Iterator[Row]:
    """Yield the rate of *decided* where the arms differ in distribution, but not in their means.

    The null hypothesis is false in these worlds, so no rate is promised. An arm is skewed (its
    noise is exponential), has a search although its runs vary twice as much, or fails in some runs.
    """
    for runs, scale, contrasts in product((6, 8, 10, 12), (1.0, 2.0, 3.0), (1, 3)):
        if can_decide(runs, contrasts):
            rng = np.random.default_rng([SEED, 1, runs, int(scale), contrasts])
            shape = (contrasts, studies, runs)
            arms = scale * (rng.exponential(1, shape) - 1)
            hits = decided(arms - rng.normal(0, 1, (studies, runs)), ()).any(axis=1)
            facts = {"world": f"skewed, x{scale:g}", "runs": runs, "contrasts": contrasts}
            yield facts | _share(int(hits.sum()), studies)
    searched = World("five points, spreads of 2 against 1", FIVE, FIVE, spread=2.0)
    for runs in (8, 10, 12):
        yield simulated(Design(searched, 1, runs), studies, tuned=tuned_difference(searched))
    for fails, scale, runs in product((0.1, 0.2), (1.0, 2.0), (6, 8, 10, 12)):
        found = failing(fails, scale, runs, studies)
        facts = {"world": f"fails in {fails:.0%}, x{scale:g}", "runs": runs, "contrasts": 1}
        rule = {name: float(found[name].mean()) for name in ("known size", "rule")}
        yield facts | _share(int(found["decided"].sum()), studies) | rule


def draw_failing(fails: float, scale: float, runs: int, studies: int) -> tuple[Array, ...]:
    """Draw an arm that fails in some runs, its failures, and a baseline with the same mean.

    A run of the arm that does not fail has an SD of .5, and a failed run is lower by ``DROP``, both
    multiplied by ``scale``. The SD of the baseline is 1.
    """
    rng = np.random.default_rng([SEED, 2, int(100 * fails), int(scale), runs])
    failed = rng.random((studies, runs)) < fails
    arm = scale * (rng.normal(0, 0.5, failed.shape) - DROP * failed + DROP * fails)
    return arm, failed, rng.normal(0, 1, failed.shape)


def failing(fails: float, scale: float, runs: int, studies: int) -> dict[str, Array]:
    """Return in which studies an arm that fails is decided to differ from an equal baseline.

    Returns:
        decided: by the test alone.
        known size: with the flag ``may-fail``, if failures and their size are known exactly.
        rule: with the flag as the package raises it, which estimates both from the scores.
    """
    arm, failed, baseline = draw_failing(fails, scale, runs, studies)
    differences = arm - baseline
    found = decided(differences[None], ()).any(axis=1)
    floor = scale * DROP * (fails - 1)
    collapsed = np.array([at_floor(gains) for gains in arm - floor])
    kept = {}
    for name, failures in (("known size", failed), ("rule", collapsed)):
        counts = failures.sum(axis=1)
        bounds = np.array([binomial_upper_bound(int(count), runs) for count in range(runs + 1)])
        with np.errstate(invalid="ignore"):
            good = np.maximum((~failures).sum(axis=1), 1)
            lead = np.where(failures, 0, differences).sum(axis=1) / good
            distance = np.where(failures, 0, arm - floor).sum(axis=1) / good
        if name == "known size":
            distance = np.full(studies, scale * DROP)
        rate = np.clip(lead / np.maximum(distance, 1e-9), 0, 1)
        ahead = differences.mean(axis=1) > 0
        kept[name] = found & (~ahead | (rate >= bounds[counts]))
    return {"decided": found, **kept}


def compared_failing(fails: float, scale: float, runs: int, studies: int) -> Row:
    """Return the number of studies with an arm that fails that ``summarise`` judges alike."""
    arm, _, baseline = draw_failing(fails, scale, runs, studies)
    expected = failing(fails, scale, runs, studies)["rule"]
    floor = scale * DROP * (fails - 1)
    alike = 0
    for study in range(studies):
        sides = {"baseline": baseline[study][None], "arm": arm[study][None]}
        (verdict,) = judged(sides, ["arm"], floor=floor, policy="learned")
        alike += (verdict == "decided") == expected[study]
    facts = {"world": f"fails in {fails:.0%}, x{scale:g}", "runs": runs, "studies": studies}
    return facts | {"alike": int(alike)} | _share(int(alike), studies)


def beyond(studies: int) -> Iterator[Row]:
    """Yield what the other tables leave out: skewed noise on several tasks whose arms differ in
    spread, too, arms that fail far above their floor, and an effect in one of many tasks.

    The arms of the first two have equal means. The unit is the SD of a run of the baseline.
    """
    for tasks, runs in product((1, 2, 4, 8), (8, 10)):
        rng = np.random.default_rng([SEED, 5, tasks, runs])
        shape = (studies, tasks, runs)
        shared = rng.exponential(1, (2, studies, 1, runs)) - 1
        own = rng.exponential(1, (2, *shape)) - 1
        arm, baseline = math.sqrt(0.3) * shared + math.sqrt(0.7) * own
        hits = sum_of_t_p(3 * arm - baseline) < ALPHA
        facts = {"world": "skewed, spreads 3:1", "tasks": tasks, "runs": runs}
        yield facts | _share(int(hits.sum()), studies)
    for fails, distance, runs in product((0.1, 0.2), (8, 16, 32), (6, 8, 10, 12)):
        rng = np.random.default_rng([SEED, 6, int(100 * fails), distance, runs])
        arm, baseline = rng.normal(0, 1, (2, studies, runs))
        failed = rng.random((studies, runs)) < fails
        # Runs that do not fail lead by so much that the means are equal.
        arm += fails * distance / (1 - fails)
        arm[failed] = 0.2 * rng.normal(0, 1, failed.sum()) - distance
        hits = decided((arm - baseline)[None], ())
        facts = {"world": f"fails in {fails:.0%}", "distance": distance, "runs": runs}
        yield facts | _share(int(hits.sum()), studies)
    for tasks in (2, 4, 8):
        rng = np.random.default_rng([SEED, 7, tasks])
        differences = rng.normal(0, 1, (studies, tasks, 8))
        differences[:, 0] += 2
        hits = sum_of_t_p(differences) < ALPHA
        yield {"world": "2 SDs in one task", "tasks": tasks, "runs": 8} | _share(
            int(hits.sum()), studies
        )


def items_and_runs(studies: int) -> Iterator[Row]:
    """Yield the coverage of the interval over runs and test items, and of that over runs alone.

    The unit is the score of an item. "runs_sd" and "items_sd" are SDs of the difference of two arms
    between runs and between items; each run adds noise with an SD of .42 to each item.
    """
    for runs, items in product((6, 8, 12), (130, 800)):
        for runs_sd, items_sd in ((0.0, 0.0), (0.02, 0.0), (0.02, 0.15), (0.005, 0.15)):
            rng = np.random.default_rng([SEED, 8, runs, items, int(1e3 * runs_sd)])
            covered = np.zeros((2, studies), dtype=bool)
            for study in range(studies):
                each = runs_sd * rng.normal(size=(runs, 1)) + items_sd * rng.normal(size=items)
                each = each + 0.42 * rng.normal(size=(runs, items))
                test = estimated(each.mean(axis=1))
                error, single = errors_on_rows([dict(enumerate(each))])
                ends = together(test, each.mean(axis=1), error=error, single=single)
                for place, (low, high) in enumerate((ends, (test["low"], test["high"]))):
                    covered[place, study] = low <= 0 <= high
            facts = {"runs": runs, "items": items, "runs_sd": runs_sd, "items_sd": items_sd}
            shares = covered.mean(axis=1).tolist()
            yield facts | dict(zip(("together", "runs_alone"), shares))


def price(studies: int) -> Iterator[Row]:
    """Yield the power for an arm that may fail but never does, without and with the flag.

    The unit is the SD of the paired difference. "distance" is that of the arm to the floor.
    """
    for runs, effect in product((8, 10, 12, 20), (1.0, 1.5)):
        rng = np.random.default_rng([SEED, 3, runs, int(10 * effect)])
        differences = rng.normal(effect, 1, (studies, runs))
        found = decided(differences[None], ()).any(axis=1)
        bound = binomial_upper_bound(0, runs)
        for distance in (2.0, 4.0, 8.0, 16.0):
            kept = found & (differences.mean(axis=1) / distance >= bound)
            facts = {"runs": runs, "effect": effect, "distance": distance}
            yield facts | {"test": float(found.mean())} | _share(int(kept.sum()), studies)


def summary(rows: Iterable[Row]) -> Row:
    """Return the mean and the worst line of each part of the table."""
    parts = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    found = {}
    for part, members in parts.items():
        shares_of_part = [row["share"] for row in members]
        found[part] = {
            "cells": len(members),
            "mean": float(np.mean(shares_of_part)),
            "above 6 %": sum(share > 0.06 for share in shares_of_part),
            "worst": max(members, key=lambda row: row["share"]),
        }
    return found


REAL = (real_code, real_code_of_tasks, real_code_of_rules)
SIMULATED = (
    false_positives,
    powers,
    shares,
    symmetric,
    power_of_tasks,
    rules_of_tasks,
    asymmetric,
    beyond,
    price,
    items_and_runs,
)
TABLES = {table.__name__: table for table in (*REAL, *SIMULATED)}


def main(
    studies: int = 20_000, real: int = 200, only: str | None = None, out: Path | None = None
) -> None:
    """Write every table, or one of them.

    Args:
        studies: the number of simulated studies for each design and world.
        real: the number of studies per design that the package also judges.
        only: the keys of the tables to write, from ``TABLES``, separated by commas.
        out: a JSON file for the results.
    """
    names = only.split(",") if only else [*TABLES]
    for name in names:
        require_known("table", name, TABLES)
    began = time.perf_counter()
    results = {"command": " ".join(sys.argv), "seed": SEED, "machine": hardware()}
    for name in names:
        sys.stdout.write(f"\n{TABLES[name].__doc__}\n")
        rows = results[name] = []
        for row in TABLES[name](real if TABLES[name] in REAL else studies):
            rows.append(row)
            sys.stdout.write(f"{json.dumps(row)}\n")
            sys.stdout.flush()
        if name == "false_positives":
            results["summary"] = summary(rows)
            sys.stdout.write(json.dumps(results["summary"], indent=1) + "\n")
    results["seconds"] = round(time.perf_counter() - began)
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, __doc__)
