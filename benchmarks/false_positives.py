"""How often is the verdict *decided* wrong? This simulates studies without a true difference.

    python benchmarks/false_positives.py --out benchmarks/results/false-positives-DATE.json

The verdict rules are those of docs/evidence.md. A simulated study has a design (the number of
comparisons of two arms, called contrasts; the number of runs; the settings that a search tries; the
number of planned evaluations) and a world (the true quality of each setting). A line of a table
shows one design in one world. The noise is normal. The unit of scores is the standard deviation of
the difference between paired runs, called spread. Of the variance of a run's dev score, 80 % is
luck that the test score shares, as in recorded studies. All arms are equally good at their best
settings.

A search for settings can still cause a true difference. If two settings are nearly equal, an arm
with a search chooses the worse setting in some runs, but an arm with one setting never does. The
column "tuned" has this true difference, in spreads. *Decided* is an error only in the lines where
"tuned" is 0. All lines are shown.

With `--real N`, the code for users' studies (`choose`, `summarise`) also judges N simulated studies
of each design. If a verdict differs, the benchmark fails. It takes about half an hour on one core,
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

from maskwise.study.design import choose
from maskwise.study.statistics import ALPHA, can_decide, holm, look_weights, ratio_interval
from maskwise.study.verdict import learned_something, summarise

Array = np.ndarray
Row = dict[str, object]

SEED = 20_261_123
"""Seed of the simulation, fixed before the first run."""
SHARED = 0.8
"""Share of the variance of a run's dev score that is luck, which the test score shares."""
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
    for world, runs, gain in product((NO_SEARCH, SEARCHED), RUNS, (1.0, 1.5)):
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
        assert choose(points).place == side.chosen[study, seed]
        score = float(side.test[study, seed])
        record = {"kind": "score", "arm": name, "seed": seed, "task": "t", "metric": "f1"}
        records.append(record | {"score": score})
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


TABLES = {table.__name__: table for table in (real_code, false_positives, powers, shares)}


def main(
    studies: int = 20_000, real: int = 200, only: str | None = None, out: Path | None = None
) -> None:
    """Write every table, or one of them.

    Args:
        studies: the number of simulated studies for each design and world.
        real: the number of studies per design that the package also judges.
        only: the key of the only table to write, from ``TABLES``.
        out: a JSON file for the results.
    """
    began = time.perf_counter()
    results = {"command": " ".join(sys.argv), "seed": SEED}
    for name in [only] if only else TABLES:
        sys.stdout.write(f"\n{TABLES[name].__doc__}\n")
        rows = results[name] = []
        for row in TABLES[name](real if name == "real_code" else studies):
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
