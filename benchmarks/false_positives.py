"""How often is *decided* wrong? Studies without a difference, by the rules of docs/evidence.md.

    python benchmarks/false_positives.py --out benchmarks/results/false-positives-DATE.json

A cell is a design (contrasts, runs, a grid of settings for either side, planned looks) and a world (how good every
setting is). Noise is normal. The unit is the spread of a paired difference. Of the variance of a run's dev score, 80 %
is luck that its test score shares, as in recorded studies. Curves of both sides have equal maxima, so no arm is better
than another at its best setting.

Tuning can still make a true difference: where two settings are nearly as good, an arm picks the worse one in some
replicates, and an arm with one setting never does. The column "tuned" is this true difference of the tuned procedures
in spreads; "decided" is an error only where it is 0. Every cell is shown.

`--real N` also judges N studies of each design through the code that judges users' studies (`choose`, `summarise`),
and demands the same outcome for every study. Cost: about half an hour on one core, most of it for 20 runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskwise.study.power import look_weights

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
    """A study: its world, how many arms are compared with the baseline, and how many runs each has."""

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
    yield World("five points, flat against peaked", (-0.1, -0.1, 0.0, -0.1, -0.1), (-2.0, -2.0, 0.0, -2.0, -2.0))
    yield World(
        "five points, a near neighbour against none", (-3.0, -0.25, 0.0, -3.0, -3.0), (-3.0, -3.0, 0.0, -3.0, -3.0)
    )
    yield World("a flat grid of five against nothing to tune", (0.0,) * 5)
    yield World("a flat grid of three against nothing to tune", (0.0,) * 3)
    yield World("five points, gap 0.75, against nothing to tune", (-2.0, -0.75, 0.0, -2.5, -8.0))


def unequal_worlds() -> Iterator[World]:
    """Worlds in which one side's runs vary twice as much."""
    five = (-2.0, -0.75, 0.0, -2.5, -8.0)
    yield World("no search, spreads of 2 against 1", spread=2.0)
    yield World("five points, spreads of 2 against 1", five, five, spread=2.0)


# The rules, vectorised over studies ------------------------------------------------------------------


def choose_settings(dev: Array) -> NDArray[np.int64]:
    """The best setting on dev of every study and replicate: (studies, settings, runs) → (studies, runs)."""
    return dev.argmax(axis=1)


def sign_flip_p(differences: Array) -> Array:
    """Exact two-sided p of each row of (studies, runs): the share of sign patterns with as large a sum.

    A pattern is cut into two halves. The sums of one half are sorted, and those of the other are looked up in them,
    so 2^20 patterns cost two times 2^10 sums.
    """
    studies, runs = differences.shape
    first = _signed_sums(differences[:, : runs // 2])
    second = np.sort(_signed_sums(differences[:, runs // 2 :]), axis=1)
    observed = np.abs(differences.sum(axis=1)) * (1 - 1e-12)
    p = np.empty(studies)
    for study in range(studies):
        above = second.shape[1] - np.searchsorted(second[study], observed[study] - first[study], side="left")
        p[study] = 2 * above.sum()
    return np.minimum(p / (first.shape[1] * second.shape[1]), 1.0)


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
    plan = [(look, weight) for look, weight in zip(looks, look_weights(looks))] if looks else [(runs, 1.0)]
    p = np.ones(differences.shape[:2])
    for look, weight in plan:
        at_look = np.stack([sign_flip_p(contrast[:, :look]) for contrast in differences])
        p = np.minimum(p, at_look / weight)
    return holm(np.minimum(p, 1.0).T) < ALPHA


def within_margin(differences: Array, margin: float) -> NDArray[np.bool_]:
    """Which intervals at 1 − alpha / contrasts lie within ± margin: (contrasts, studies, runs) → (studies, contrasts).

    The inverted test has no end beyond the margin where both ends of the margin are rejected as the true difference.
    """
    level = ALPHA / len(differences)
    inside = np.abs(differences.mean(axis=2)) < margin
    for end in (-margin, margin):
        rejected = [sign_flip_p(contrast - end) <= level for contrast in differences]
        inside &= np.stack(rejected)
    return inside.T


# Worlds ----------------------------------------------------------------------------------------------


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


def draw_side(rng: np.random.Generator, curve: Sequence[float], studies: int, runs: int, spread: float) -> Side:
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
    arms = [draw_side(rng, world.arm, studies, design.runs, SPREAD * world.spread) for _ in range(design.contrasts)]
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


# Tables ----------------------------------------------------------------------------------------------


def rate(hits: NDArray[np.bool_]) -> dict[str, float]:
    """The share of studies with a hit on any contrast, and its standard error."""
    share = float(hits.any(axis=1).mean())
    return {"share": share, "error": math.sqrt(share * (1 - share) / len(hits))}


def generator(design: Design) -> np.random.Generator:
    """A stream of its own for each cell, so that cells can be run alone."""
    words = f"{design.world.name} {design.contrasts} {design.runs} {design.looks} {design.gain} {design.margin}"
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
        for world in (World("no search"), World("five points", *[(-2.0, -0.75, 0.0, -2.5, -8.0)] * 2)):
            design = Design(world, contrasts, looks[-1], looks)
            hits = decided(differences_of(draw(design, generator(design), studies)), looks)
            rows.append(facts(design) | {"part": "equal spreads", "tuned": 0.0} | rate(hits))
            show(rows[-1])
    return rows


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
    for contrasts, runs, margin in [(k, n, m) for k in CONTRASTS for n in RUNS for m in (0.5, 1.0, 2.0)]:
        design = Design(World("no search"), contrasts, runs, gain=margin, margin=margin)
        if can_decide(design):
            hits = within_margin(differences_of(draw(design, generator(design), studies)), margin)
            rows.append(facts(design) | rate(hits))
            show(rows[-1])
    return rows


def facts(design: Design) -> dict[str, object]:
    """What names a cell."""
    named = asdict(design) | {"world": design.world.name}
    return {key: value for key, value in named.items() if value}


def show(row: dict[str, object]) -> None:
    """A line of the table."""
    words = [str(row.get(key, "")) for key in ("world", "contrasts", "runs", "looks", "gain", "margin", "tuned")]
    sys.stdout.write(f"| {' | '.join(words)} | {row['share']:.2%} ± {row['error']:.2%} |\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()
    began = time.perf_counter()
    head = "world | contrasts | runs | looks | gain | margin | tuned | share of studies"
    results = {}
    for table in (false_positives, powers, margins):
        sys.stdout.write(f"\n{table.__doc__}\n\n| {head} |\n|{'---|' * 8}\n")
        results[table.__name__] = table(arguments.studies)
    equal = [row for row in results["false_positives"] if row["part"] == "equal spreads"]
    results["worst"] = max(equal, key=lambda row: row["share"])
    results["mean"] = float(np.mean([row["share"] for row in equal]))
    sys.stdout.write(f"\nmean {results['mean']:.2%}, worst {results['worst']}\n")
    if arguments.out:
        record = {"command": " ".join(sys.argv), "seconds": round(time.perf_counter() - began), "seed": SEED}
        arguments.out.write_text(json.dumps(record | results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
