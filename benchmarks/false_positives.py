"""How often is *decided* wrong? Studies without a difference, by the rules of docs/evidence.md.

    python benchmarks/false_positives.py --out benchmarks/results/false-positives-DATE.json

A cell is a design (contrasts, runs, a grid of settings for either side, planned looks) and a world
(how good every setting is). Noise is normal. The unit is the spread of a paired difference. Of the
variance of a run's dev score, 80 % is luck that its test score shares, as in recorded studies.
Curves of both sides have equal maxima, so no arm is better than another at its best setting.

Tuning can still make a true difference: where two settings are nearly as good, an arm picks the
worse one in some replicates, and an arm with one setting never does. The column "tuned" is this
true difference of the tuned procedures in spreads; "decided" is an error only where it is 0. Every
cell is shown.

`--real N` also judges N studies of each design through the code that judges users' studies
(`choose`, `summarise`), and demands the same outcome for every study. Cost: about half an hour on
one core, most of it for 20 runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskwise.files import Record, Study
from maskwise.study.design import choose
from maskwise.study.statistics import look_weights, ratio_interval
from maskwise.study.verdict import learned_something, summarise

Array = NDArray[np.float64]

SEED = 20_261_123
"""Fixed before the first run."""
SHARED = 0.8
"""The share of the variance of a dev score that is luck of the run, which the test score shares."""
SPREAD = 2**-0.5
"""Of a run, so that a paired difference has spread 1."""
ALPHA = 0.05
GAPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Between the two best settings of a grid."""
RUNS = (6, 8, 10, 20)
CONTRASTS = (1, 3, 6)


@dataclass(frozen=True)
class World:
    """How good the settings are that either side of every contrast may choose, in spreads.

    Args:
        arm: of the arms that are compared with the baseline.
        baseline: of the baseline; one setting is a side that has nothing to tune.
        spread: of the arms' runs, in spreads of the baseline's runs.
    """

    name: str
    arm: tuple[float, ...] = (0.0,)
    baseline: tuple[float, ...] = (0.0,)
    spread: float = 1.0


@dataclass(frozen=True)
class Design:
    """A study: its world, how many arms are compared with the baseline, and how many runs each
    has.
    """

    world: World
    contrasts: int
    runs: int
    looks: tuple[int, ...] = ()
    gain: float = 0.0
    margin: float | None = None


def worlds() -> Iterator[World]:
    """All worlds in which no arm is better at its best setting."""
    yield World("no search")
    for gap in GAPS:
        three = (-0.5 - gap, 0.0, -gap)
        five = (-2.0, -gap, 0.0, -2.5, -8.0)
        yield World(f"three points, equal, gap {gap:g}", three, three)
        yield World(f"three points, shifted, gap {gap:g}", three, (0.0, -gap, -2.0 - gap))
        yield World(f"five points, equal, gap {gap:g}", five, five)
        yield World(f"five points, shifted, gap {gap:g}", five, (-2.0, -1.5, -gap, 0.0, -4.0))
    yield World(
        "five points, flat against peaked",
        (-0.1, -0.1, 0.0, -0.1, -0.1),
        (-2.0, -2.0, 0.0, -2.0, -2.0),
    )
    yield World(
        "five points, a near neighbour against none",
        (-3.0, -0.25, 0.0, -3.0, -3.0),
        (-3.0, -3.0, 0.0, -3.0, -3.0),
    )
    yield World("a flat grid of five against nothing to tune", (0.0,) * 5)
    yield World("a flat grid of three against nothing to tune", (0.0,) * 3)
    yield World("five points, gap 0.75, against nothing to tune", (-2.0, -0.75, 0.0, -2.5, -8.0))


def unequal_worlds() -> Iterator[World]:
    """Worlds in which one side's runs vary twice as much."""
    five = (-2.0, -0.75, 0.0, -2.5, -8.0)
    yield World("no search, spreads of 2 against 1", spread=2.0)
    yield World("five points, spreads of 2 against 1", five, five, spread=2.0)


# The rules, vectorised over studies
# ------------------------------------------------------------------


def choose_settings(dev: Array) -> NDArray[np.int64]:
    """The best setting on dev of every study and replicate: (studies, settings, runs) → (studies,
    runs).
    """
    return dev.argmax(axis=1)


def sign_flip_p(differences: Array) -> Array:
    """Exact two-sided p of each row of (studies, runs): the share of sign patterns with as large a
    sum.

    A pattern is cut into two halves. The sums of one half are sorted, and those of the other are
    looked up in them, so 2^20 patterns cost two times 2^10 sums. Rows whose mean is less than 1.2
    standard errors from 0 have p near .25 and get 1: they are not decided, whatever their p, and do
    not change Holm's p of the others.
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
        as_large = second.shape[1] * len(first[row]) - below.sum()
        p[study] = 2 * as_large / (second.shape[1] * len(first[row]))
    return np.minimum(p, 1.0)


def _signed_sums(values: Array) -> Array:
    """The sum of every row under every pattern of signs: (rows, n) → (rows, 2^n)."""
    runs = values.shape[1]
    patterns = 1.0 - 2.0 * (np.arange(2**runs)[:, None] >> np.arange(runs) & 1)
    return values @ patterns.T


def holm(p: Array) -> Array:
    """Holm's adjusted p values of each row of (studies, contrasts)."""
    order = np.argsort(p, axis=1)
    steps = np.take_along_axis(p, order, axis=1) * (p.shape[1] - np.arange(p.shape[1]))
    adjusted = np.minimum(np.maximum.accumulate(steps, axis=1), 1.0)
    back = np.empty_like(p)
    np.put_along_axis(back, order, adjusted, axis=1)
    return back


def decided(differences: Array, looks: Sequence[int] = ()) -> NDArray[np.bool_]:
    """Which contrasts are decided: (contrasts, studies, runs) → (studies, contrasts)."""
    runs = differences.shape[2]
    plan = (
        [(look, weight) for look, weight in zip(looks, look_weights(looks))]
        if looks
        else [(runs, 1.0)]
    )
    p = np.ones(differences.shape[:2])
    for look, weight in plan:
        at_look = np.stack([sign_flip_p(contrast[:, :look]) for contrast in differences])
        p = np.minimum(p, at_look / weight)
    return holm(np.minimum(p, 1.0).T) < ALPHA


def within_margin(differences: Array, margin: float) -> NDArray[np.bool_]:
    """Which intervals at 1 − alpha / contrasts lie within ± margin: (contrasts, studies, runs) →
    (studies, contrasts).

    The inverted test has no end beyond the margin where both ends of the margin are rejected as the
    true difference.
    """
    level = ALPHA / len(differences)
    inside = np.abs(differences.mean(axis=2)) < margin
    for end in (-margin, margin):
        rejected = [sign_flip_p(contrast - end) <= level for contrast in differences]
        inside &= np.stack(rejected)
    return inside.T


# Worlds
# ----------------------------------------------------------------------------------------------


@dataclass
class Side:
    """What one arm brings into a comparison.

    Attributes:
        dev: (studies, settings, runs) scores that choose.
        chosen: (studies, runs) places in the grid.
        test: (studies, runs) scores of the fresh runs.
    """

    dev: Array
    chosen: NDArray[np.int64]
    test: Array


def draw_side(
    rng: np.random.Generator, curve: Sequence[float], studies: int, runs: int, spread: float
) -> Side:
    """The grid on dev in every replicate, and one fresh run at the best setting."""
    quality = np.array(curve)
    shape = (studies, len(quality), runs)
    luck = rng.normal(0, spread, shape)
    rows = rng.normal(0, spread, shape)
    dev = quality[:, None] + math.sqrt(SHARED) * luck + math.sqrt(1 - SHARED) * rows
    chosen = choose_settings(dev)
    test = quality[chosen] + rng.normal(0, spread, (studies, runs))
    return Side(dev, chosen, test)


def draw(design: Design, rng: np.random.Generator, studies: int) -> list[Side]:
    """The baseline, then every arm."""
    world = design.world
    baseline = draw_side(rng, world.baseline, studies, design.runs, SPREAD)
    arms = [
        draw_side(rng, world.arm, studies, design.runs, SPREAD * world.spread)
        for _ in range(design.contrasts)
    ]
    for arm in arms:
        arm.test += design.gain
    return [baseline, *arms]


def differences_of(sides: Sequence[Side]) -> Array:
    """(contrasts, studies, runs)."""
    baseline, *arms = sides
    return np.stack([arm.test - baseline.test for arm in arms])


def tuned_difference(world: World, rng: np.random.Generator, draws: int = 200_000) -> float:
    """The true difference of the tuned procedures: the mean quality of what either side chooses."""
    means = []
    for curve, spread in ((world.arm, SPREAD * world.spread), (world.baseline, SPREAD)):
        side = draw_side(rng, curve, draws, 1, spread)
        means.append(np.array(curve)[side.chosen].mean())
    return round(float(means[0] - means[1]), 2) + 0.0


# Tables
# ----------------------------------------------------------------------------------------------


def rate(hits: NDArray[np.bool_]) -> dict[str, float]:
    """The share of studies with a hit on any contrast, and its standard error."""
    share = float(hits.any(axis=1).mean())
    return {"share": share, "error": math.sqrt(share * (1 - share) / len(hits))}


def generator(design: Design) -> np.random.Generator:
    """A stream of its own for each cell, so that cells can be run alone."""
    words = (
        f"{design.world.name} {design.contrasts} {design.runs} {design.looks} {design.gain} "
        f"{design.margin}"
    )
    return np.random.default_rng([SEED, *words.encode()])


def can_decide(design: Design) -> bool:
    """Whether the smallest p, 2^(1 − runs), is below alpha after Holm's correction."""
    return 2.0 ** (1 - design.runs) * design.contrasts < ALPHA


def false_positives(studies: int) -> list[dict[str, object]]:
    """Every design without a difference that can decide anything."""
    tables = {"equal spreads": list(worlds()), "unequal spreads": list(unequal_worlds())}
    rows = []
    for part, members in tables.items():
        for world in members:
            gap = tuned_difference(world, np.random.default_rng([SEED, *world.name.encode()]))
            for runs in RUNS:
                designs = [Design(world, contrasts, runs) for contrasts in CONTRASTS]
                for design in filter(can_decide, designs):
                    hits = decided(differences_of(draw(design, generator(design), studies)))
                    rows.append(facts(design) | {"part": part, "tuned": gap} | rate(hits))
                    show(rows[-1])
    for looks, contrasts in (((8, 12), 1), ((6, 12), 1), ((6, 8, 10, 12), 1), ((8, 16), 3)):
        for world in (
            World("no search"),
            World("five points", *[(-2.0, -0.75, 0.0, -2.5, -8.0)] * 2),
        ):
            design = Design(world, contrasts, looks[-1], looks)
            hits = decided(differences_of(draw(design, generator(design), studies)), looks)
            rows.append(facts(design) | {"part": "equal spreads", "tuned": 0.0} | rate(hits))
            show(rows[-1])
    return rows


def summary(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """Mean and worst cell: equal tuned procedures, worlds where tuning costs one side more, unequal
    spreads.
    """
    parts = {
        "procedures equal": [
            row for row in rows if row["part"] == "equal spreads" and row["tuned"] == 0
        ],
        "tuning costs one side more": [
            row for row in rows if row["part"] == "equal spreads" and row["tuned"] != 0
        ],
        "unequal spreads": [row for row in rows if row["part"] == "unequal spreads"],
    }
    found = {}
    for name, members in parts.items():
        shares_of_part = [row["share"] for row in members]
        found[name] = {
            "cells": len(members),
            "mean": float(np.mean(shares_of_part)),
            "above 6 %": sum(share > 0.06 for share in shares_of_part),
            "worst": max(members, key=lambda row: row["share"]),
        }
    return found


def powers(studies: int) -> list[dict[str, object]]:
    """How often a true difference is found, with a search and without."""
    five = (-2.0, -0.75, 0.0, -2.5, -8.0)
    rows = []
    for world in (World("no search"), World("five points, gap 0.75", five, five)):
        for runs in RUNS:
            for gain in (1.0, 1.5):
                design = Design(world, 1, runs, gain=gain)
                hits = decided(differences_of(draw(design, generator(design), studies)))
                rows.append(facts(design) | rate(hits))
                show(rows[-1])
    return rows


def margins(studies: int) -> list[dict[str, object]]:
    """How often a true difference as large as the margin is called no difference that matters."""
    rows = []
    for contrasts, runs, margin in [
        (k, n, m) for k in CONTRASTS for n in RUNS for m in (0.5, 1.0, 2.0)
    ]:
        design = Design(World("no search"), contrasts, runs, gain=margin, margin=margin)
        if can_decide(design):
            hits = within_margin(differences_of(draw(design, generator(design), studies)), margin)
            rows.append(facts(design) | rate(hits))
            show(rows[-1])
    return rows


def shares(studies: int) -> list[dict[str, object]]:
    """How often the interval of a share of an oracle's gain holds the share of the runs that
    learned something.

    "misjudged" is how often the rule takes a failed run for a learned one or the other way round.
    """
    rows = []
    for share, failing, runs in product((0.85, 0.5, 0.15), (0.0, 0.1, 0.2, 0.3), (8, 10, 20)):
        row = {"world": f"share {share:g}, {failing:.0%} of runs fail", "runs": runs}
        rows.append(row | share_coverage(share, failing, runs, studies))
        show(rows[-1])
    return rows


def share_coverage(share: float, failing: float, runs: int, studies: int) -> dict[str, float]:
    """The coverage of one design, by the rule and by Fieller's interval over all runs.

    The oracle gains 7 spreads on average. A run that learned gains a part of what the oracle gains
    in the same run, a failed one gains nothing, and both have noise. The true share is that of all
    runs which the rule counts as learned.
    """
    rng = np.random.default_rng([SEED, runs, int(100 * share), int(100 * failing)])
    gains, whole, _ = _gains(rng, share, failing, 400_000)
    learned = learned_something(gains, whole)
    truth = float(gains[learned].mean() / whole[learned].mean())
    counted = misjudged = covered = mixture = 0
    for _ in range(studies):
        gains, whole, failed = _gains(rng, share, failing, runs)
        learned = learned_something(gains, whole)
        misjudged += bool((learned == failed).any())
        mixture += _holds(ratio_interval(gains, whole), share * (1 - failing))
        if learned.sum() > 1:
            counted += 1
            covered += _holds(ratio_interval(gains[learned], whole[learned]), truth)
    coverage = covered / counted
    error = math.sqrt(coverage * (1 - coverage) / counted)
    found = {
        "true": round(truth, 3),
        "misjudged": misjudged / studies,
        "mixture": mixture / studies,
    }
    return found | {"share": coverage, "error": error}


def _holds(ends: tuple[float, float] | None, truth: float) -> bool:
    return ends is None or ends[0] <= truth <= ends[1]


def _gains(
    rng: np.random.Generator, share: float, failing: float, runs: int
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """What an arm and the oracle gain in each run, and which of the arm's runs failed."""
    whole = rng.normal(7, 1, runs)
    failed = rng.random(runs) < failing
    gains = np.where(failed, 0.0, share * whole) + rng.normal(0, 0.3, runs)
    return gains, whole, failed


# The code that judges users' studies
# -----------------------------------------------------------------


def judged(design: Design, sides: Sequence[Side], study: int) -> list[str]:
    """The verdicts of one simulated study by `choose` and `summarise`.

    Raises:
        AssertionError: `choose` takes another setting than the simulation.
    """
    seeds = list(range(design.runs))
    names = ["baseline", *(f"arm-{number}" for number in range(design.contrasts))]
    records: list[Record] = []
    for name, side in zip(names, sides):
        for seed in seeds:
            dev = side.dev[study, :, seed]
            if len(dev) > 1:
                records.append(_selection(name, seed, dev))
                assert records[-1]["chosen"] == _setting(side.chosen[study, seed])
            score = float(side.test[study, seed])
            records.append(
                {
                    "kind": "score",
                    "arm": name,
                    "seed": seed,
                    "task": "t",
                    "metric": "f1",
                    "score": score,
                }
            )
    arms = {name: {"policy": "token", "ratio": "constant(0.3)", "overrides": {}} for name in names}
    facts: Study = {
        "baseline": "baseline",
        "seeds": seeds,
        "arms": arms,
        "contrasts": [(name, "baseline") for name in names[1:]],
        "tasks": {"t": {"metric": "f1"}},
        "margin": design.margin,
        "looks": list(design.looks) or None,
        "looked": [],
    }  # type: ignore[typeddict-item]
    rows = summarise(records, facts)["contrasts"]
    return [str(row["verdict"]) for row in rows if row["outcome"] == "tasks"]


def _setting(place: int) -> dict[str, object]:
    return {"training.learning_rate": int(place)}


def _selection(arm: str, seed: int, dev: Array) -> Record:
    choice = choose([{"t": float(score)} for score in dev])
    assert choice.place is not None
    candidates = [
        {"setting": _setting(place), "score": float(score)} for place, score in enumerate(dev)
    ]
    return {
        "kind": "selection",
        "arm": arm,
        "seed": seed,
        "by": "dev",
        "candidates": candidates,
        "chosen": _setting(choice.place),
        "tied": choice.tied,
    }


def compare_with_real_code(studies: int) -> list[dict[str, object]]:
    """How many studies the code of the package and this simulation judge alike; all of them, or
    there is an error.
    """
    peaked = (-2.0, -0.75, 0.0, -2.5, -8.0)
    searched = World("five points, gap 0.75", peaked, peaked)
    designs = [
        Design(world, contrasts, runs)
        for world in (
            World("no search"),
            searched,
            World("a flat grid of three against nothing to tune", (0.0,) * 3),
        )
        for contrasts in CONTRASTS
        for runs in (8, 10)
    ]
    designs += [
        Design(searched, 1, 20),
        Design(searched, 1, 12, (8, 12)),
        Design(searched, 1, 10, gain=1.0),
    ]
    designs += [
        Design(World("no search"), contrasts, 10, gain=1.0, margin=1.0) for contrasts in (1, 3)
    ]
    rows = []
    for design in designs:
        sides = draw(design, generator(design), studies)
        differences = differences_of(sides)
        expected = np.where(decided(differences, design.looks), "decided", "open")
        if design.margin is not None:
            equal = within_margin(differences, design.margin) & (expected == "open")
            expected = np.where(equal, "no difference that matters", expected)
        found = np.array([judged(design, sides, study) for study in range(studies)])
        alike = int((found == expected).all(axis=1).sum())
        rows.append(
            facts(design)
            | {"studies": studies, "alike": alike, "share": alike / studies, "error": 0.0}
        )
        show(rows[-1])
    return rows


# Tables of the whole
# ---------------------------------------------------------------------------------


def facts(design: Design) -> dict[str, object]:
    """What names a cell."""
    named = asdict(design) | {"world": design.world.name}
    return {key: value for key, value in named.items() if value}


def show(row: dict[str, object]) -> None:
    """A line of the table."""
    words = [
        str(row.get(key, ""))
        for key in (
            "world",
            "contrasts",
            "runs",
            "looks",
            "gain",
            "margin",
            "tuned",
            "true",
            "misjudged",
        )
    ]
    sys.stdout.write(f"| {' | '.join(words)} | {row['share']:.2%} ± {row['error']:.2%} |\n")
    sys.stdout.flush()


TABLES = {
    "real_code": compare_with_real_code,
    "false_positives": false_positives,
    "powers": powers,
    "margins": margins,
    "shares": shares,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument(
        "--real", type=int, default=200, help="studies of a design that the package judges, too"
    )
    parser.add_argument("--only", choices=list(TABLES), help="one of the tables")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()
    began = time.perf_counter()
    head = (
        "world | contrasts | runs | looks | gain | margin | tuned | true | misjudged | share "
        "of studies"
    )
    results: dict[str, object] = {}
    for name in [arguments.only] if arguments.only else TABLES:
        table = TABLES[name]
        sys.stdout.write(f"\n{table.__doc__}\n\n| {head} |\n|{'---|' * 10}\n")
        results[name] = table(
            arguments.real if table is compare_with_real_code else arguments.studies
        )
    if "false_positives" in results:
        results["summary"] = summary(results["false_positives"])
        sys.stdout.write(json.dumps(results["summary"], indent=1) + "\n")
    if arguments.out:
        record = {
            "command": " ".join(sys.argv),
            "seconds": round(time.perf_counter() - began),
            "seed": SEED,
        }
        arguments.out.write_text(json.dumps(record | results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
