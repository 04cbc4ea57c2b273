"""How good are the numbers of runs that pages and ``compare`` advise, and the intervals of items?

    python benchmarks/advised_runs.py --out benchmarks/results/advised-runs-DATE.json

``advised`` simulates studies with a margin, which the package judges. Where a contrast stays open,
it advises a number of runs that decides a true difference as large as the margin (with the upper
80 % limit of the SD). "enough" is the share of these numbers with power of at least .8, and
"by_sd" that of the numbers that follow from the SD itself. Studies have one task, and the unit is
the true SD of the paired differences.

``items`` simulates items that two arms answer rightly or wrongly: the share of tables whose normal
interval misses the true difference, for all tables, and with no interval if the arms differ on
fewer than ``FEWEST_DIFFERENT`` items.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from command import run

from maskwise.base.devices import hardware
from maskwise.scores.compared import FEWEST_DIFFERENT
from maskwise.verdict import summarise
from maskwise.verdict.statistics import MOST_RUNS, POWER, power_of, runs_to_decide

Row = dict[str, object]
Array = np.ndarray

SEED = 20_261_130
SPREAD = 0.01
"""The true SD of a run's mean over tasks; that of a paired difference is √2 times as large."""


def drawn(rng: np.random.Generator, runs: int, true: float) -> Array:
    """Return the scores of the baseline and the arm, (2, runs); ``true`` is in SDs."""
    scores = 0.5 + SPREAD * rng.normal(size=(2, runs))
    scores[1] += true * SPREAD * math.sqrt(2)
    return scores


def judged(scores: Array, margin: float) -> Row:
    """Return the row of the contrast as the package judges it; ``margin`` is in SDs."""
    records = [
        {"kind": "task", "arm": arm, "seed": seed, "measure": "t", "metric": "f1", "value": score}
        for arm, runs in zip(("baseline", "arm"), scores.tolist())
        for seed, score in enumerate(runs)
    ]
    facts = {"policy": "token", "ratio": "", "overrides": {}}
    study = {
        "baseline": "baseline",
        "seeds": list(range(scores.shape[1])),
        "arms": {"baseline": facts, "arm": facts},
        "contrasts": [("arm", "baseline")],
        "tasks": {"t": {"metric": "f1"}},
        "margin": margin * SPREAD * math.sqrt(2),
    }
    rows = summarise(records, study)["contrasts"]  # type: ignore[arg-type]
    return next(row for row in rows if row["primary"])  # type: ignore[return-value]


def advised(studies: int) -> Iterator[Row]:
    """Yield how many advised numbers of runs have the power that they promise."""
    for margin, runs, part in product((0.5, 1.0, 1.5), (4, 6, 8, 10), (0, 0.5, 1)):
        rng = np.random.default_rng([SEED, 1, runs, int(10 * margin), int(10 * part)])
        numbers, by_sd, verdicts = [], [], []
        for _ in range(studies):
            scores = drawn(rng, runs, part * margin)
            row = judged(scores, margin)
            verdicts.append(row["verdict"])
            if row["verdict"] == "open" and row["runs_to_decide"] is not None:
                numbers.append(row["runs_to_decide"])
                differences = (scores[1] - scores[0]) / (SPREAD * math.sqrt(2))
                needed = runs_to_decide(float(differences.std(ddof=1)), margin)
                by_sd.append(max(needed or MOST_RUNS, runs + 1))
        facts: Row = {"runs": runs, "margin": margin, "true": part * margin}
        counts = {word: verdicts.count(word) for word in sorted(set(verdicts))}
        powers = np.array([power_of(1.0, margin, number) for number in numbers])
        cheaper = np.array([power_of(1.0, margin, number) for number in by_sd])
        yield facts | {
            **counts,
            "advised": len(numbers),
            "median": float(np.median(numbers)) if numbers else None,
            "power": round(float(powers.mean()), 3) if numbers else None,
            "enough": round(float((powers >= POWER).mean()), 3) if numbers else None,
            "by_sd": round(float((cheaper >= POWER).mean()), 3) if numbers else None,
        }


def items(studies: int) -> Iterator[Row]:
    """Yield how often the interval of a difference over items misses the true one."""
    rng = np.random.default_rng([SEED, 2])
    shares = ((0.02, 0.02), (0.05, 0.02), (0.1, 0.05), (0.2, 0.05), (0.2, 0.2), (0.1, 0.0))
    for number, (wins, losses) in product((30, 50, 100, 300, 1000), shares):
        u = rng.random((studies, number))
        differences = (u < wins).astype(float) - ((u >= wins) & (u < wins + losses))
        mean = differences.mean(axis=1)
        half = 1.96 * differences.std(axis=1, ddof=1) / math.sqrt(number)
        missed = np.abs(mean - (wins - losses)) > half + 1e-12
        shown = (differences != 0).sum(axis=1) >= FEWEST_DIFFERENT
        yield {
            "items": number,
            "wins": wins,
            "losses": losses,
            "missed": round(float(missed.mean()), 4),
            "shown": round(float(shown.mean()), 4),
            "shown_and_missed": round(float((missed & shown).mean()), 4),
        }


def main(studies: int = 400, out: Path | None = None) -> None:
    """Write both tables.

    Args:
        studies: the number of simulated studies of each design; tables of items are 50 times as
            many.
        out: a JSON file for the results.
    """
    began = time.perf_counter()
    results: Row = {"command": " ".join(sys.argv), "seed": SEED, "machine": hardware()}
    for name, rows in (("advised", advised(studies)), ("items", items(50 * studies))):
        found = results[name] = []
        for row in rows:
            found.append(row)
            sys.stdout.write(f"{json.dumps(row)}\n")
            sys.stdout.flush()
    results["seconds"] = round(time.perf_counter() - began)
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, __doc__)
