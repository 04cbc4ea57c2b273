"""How often studies without any difference are called *decided*, if one does what the page advises.

    python benchmarks/false_positives.py --out benchmarks/results/false-positives-DATE.json

Records are simulated, and everything else is what judges real studies: the choice of settings on dev seeds, the rule
that leaves tasks out, ``summarise`` and its advice. A user begins with the runs of the design and does what is advised
until nothing more is: seeds are added, the next planned look is taken, or the study ends. A new study, where that is
advised, counts as one of its own. Then the margin: arms that differ by exactly as much, called *no difference that
matters*.

In the simulated world a run has luck that all arms of its seed share, luck of its own, and noise on every task;
settings differ in quality, for all arms alike; one task ignores pre-training, and one punishes it. No arm is better
than another, unless its settings are: what a search chooses by luck may make a true difference of settings, and counts
as an error too.
Cost: some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskwise.constants import REFERENCE
from maskwise.files import Record, Study
from maskwise.study.design import choose
from maskwise.study.verdict import summarise
from maskwise.study.verdict.words import advice_of

MOST_RUNS = 40
"""Nobody follows an advice to make more runs of each arm than this."""
SEED_LUCK, RUN_LUCK, TASK_NOISE = 0.01, 0.01, 0.01
"""Standard deviations, in scores; fine-tuning noise is as large as run noise, as it was in real studies."""
RATES = (1e-3, 2e-3, 4e-3)
QUALITY = (-0.02, 0.0, -0.012)
"""Of the three settings: the best is inside the grid, and the others are one or two spreads of runs below."""
HELP = {"sees": 0.2, "sees-too": 0.1, "ignores": 0.0, "punishes": -0.05}
"""What pre-training adds on each task."""


@dataclass(frozen=True)
class Design:
    """A study as a recipe describes it.

    Args:
        arms: beside the baseline, each compared with it.
        runs: of each arm at first.
        looks: planned ones.
        searched: whether every arm chooses its settings on two dev seeds.
        gap: how much better every arm is than the baseline.
    """

    name: str
    arms: int
    runs: int
    looks: tuple[int, ...] | None = None
    searched: bool = True
    margin: float | None = None
    gap: float = 0.0
    tasks: tuple[str, ...] = tuple(HELP)

    @property
    def names(self) -> list[str]:
        return ["baseline", *(f"arm-{i}" for i in range(self.arms))]


DESIGNS = (
    Design("ratios: six contrasts, ten runs", arms=6, runs=10),
    Design("factworld-full: three contrasts, ten runs", arms=3, runs=10),
    Design("one contrast, six runs", arms=1, runs=6),
    Design("one contrast, eight runs", arms=1, runs=8),
    Design("three runs first, more as advised", arms=1, runs=3),
    Design("four runs first, three contrasts", arms=3, runs=4),
    Design("looks at 8 and 16, three contrasts", arms=3, runs=8, looks=(8, 16)),
    Design("looks at 8 and 12, one contrast", arms=1, runs=8, looks=(8, 12)),
)
MARGINS = tuple(
    Design(
        f"{arms} contrast{'s' * (arms > 1)}, {runs} runs",
        arms,
        runs,
        searched=False,
        margin=0.03,
        gap=0.03,
        tasks=("sees",),
    )
    for arms in (1, 6)
    for runs in (6, 10)
)


def scores(design: Design, rng: np.random.Generator, runs: int, setting: Sequence[int]) -> np.ndarray:
    """Test and dev scores (2, arms + 1, runs, tasks) of arms at their settings; the last arm is the start."""
    arms, tasks = len(design.names), len(design.tasks)
    luck = rng.normal(0, SEED_LUCK, (1, runs, 1)) + rng.normal(0, RUN_LUCK, (arms, runs, 1))
    level = np.array([QUALITY[place] for place in setting]) + design.gap * (np.arange(arms) > 0)
    trained = 0.5 + np.array([HELP[task] for task in design.tasks]) + level[:, None, None] + luck
    true = np.concatenate([trained, np.full((1, runs, tasks), 0.5)])
    return true + rng.normal(0, TASK_NOISE, (2, *true.shape))


def searched(design: Design, rng: np.random.Generator) -> tuple[list[int], list[Record]]:
    """The setting of every arm, as a study chooses it on two dev seeds; and the records of that."""
    points: list[dict[str, object]] = [{"training.learning_rate": rate} for rate in RATES]
    places: list[int] = []
    records: list[Record] = []
    dev = np.stack([scores(design, rng, 2, [place] * len(design.names))[1] for place in range(len(RATES))])
    for number, arm in enumerate(design.names):
        found = [
            {task: dev[place, number, :, i].tolist() for i, task in enumerate(design.tasks)}
            for place in range(len(RATES))
        ]
        choice = choose(points, found)
        assert choice.place is not None
        places.append(choice.place)
        candidates = [{"setting": point, "mean": mean} for point, mean in zip(points, choice.means)]
        records.append({
            "kind": "selection", "arm": arm, "by": "dev", "seeds": [1000, 1001], "border": choice.border,
            "chosen": points[choice.place], "candidates": candidates,
        })  # fmt: skip
    return places, records


def study_of(design: Design, runs: int, looked: list[int]) -> Study:
    """study.json."""
    arms = {name: {"policy": "token", "ratio": "constant(0.3)", "overrides": {}} for name in design.names}
    looks = list(design.looks) if design.looks else None
    return {
        "baseline": "baseline", "seeds": list(range(runs)), "arms": arms, "reference": "no pre-training",
        "contrasts": [(name, "baseline") for name in design.names[1:]], "match": None, "helps": 0.75,
        "tasks": {task: {"metric": "macro-f1"} for task in design.tasks}, "margin": design.margin, "looks": looks,
        "looked": [{"runs": number, "looks": looks} for number in looked],
        "search": {"grid": {"training.learning_rate": list(RATES)}, "seeds": [1000, 1001], "by": "dev"},
    }  # type: ignore[typeddict-item]  # fmt: skip


def course(design: Design, rng: np.random.Generator) -> tuple[list[str], str, int]:
    """One study from its first run to its last verdict: the verdicts on the primary rows, the last advice, the runs."""
    places, records = searched(design, rng) if design.searched else ([1] * len(design.names), unsearched(design))
    drawn = scores(design, rng, MOST_RUNS, places)
    runs, looked = design.runs, list[int]()
    while True:
        study = study_of(design, runs, looked)
        lines = [
            {"kind": "score", "arm": arm, "seed": seed, "task": task, "metric": "macro-f1",
             "score": float(drawn[0, number, seed, i]), "dev": [float(drawn[1, number, seed, i])]}
            for number, arm in enumerate([*design.names, REFERENCE])
            for seed in range(runs)
            for i, task in enumerate(design.tasks)
        ]  # fmt: skip
        rows = [row for row in summarise([*lines, *records], study)["contrasts"] if row["primary"]]
        advice = next(
            (code for code, _ in advice_of(rows, {}, design.looks) if code in ("add-seeds", "next-look", "new-study")),
            "",
        )
        wanted = min(row["n"] + row["more_runs"] for row in rows if row["more_runs"]) if advice else 0
        following = [look for look in design.looks or () if look > runs]
        looked.append(runs)
        enough = following[0] if advice == "next-look" else min(wanted, MOST_RUNS)
        if advice not in ("add-seeds", "next-look") or enough <= runs:
            return [row["verdict"] for row in rows], advice, runs
        runs = enough


def unsearched(design: Design) -> list[Record]:
    """Records of a search in which every arm chose the middle."""
    points: list[dict[str, object]] = [{"training.learning_rate": rate} for rate in RATES]
    line: Record = {
        "kind": "selection",
        "by": "dev",
        "seeds": [1000, 1001],
        "border": False,
        "chosen": points[1],
    }
    candidates = [{"setting": point, "mean": 0.0} for point in points]
    return [{**line, "arm": arm, "candidates": candidates} for arm in design.names]


def share(design: Design, verdict: str, *, studies: int, seed: int) -> dict[str, object]:
    """The share of studies with such a verdict on any contrast, its standard error, and what was advised at last."""
    rng = np.random.default_rng([seed, *design.name.encode()])
    found, advices, runs = 0, Counter[str](), list[int]()
    for _ in range(studies):
        verdicts, advice, last = course(design, rng)
        found += verdict in verdicts
        advices[advice or "none"] += 1
        runs.append(last)
    rate = found / studies
    return {
        "design": design.name, "studies": studies, "share": rate, "error": math.sqrt(rate * (1 - rate) / studies),
        "mean_runs": float(np.mean(runs)), "last_advice": dict(advices),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--only", default="", help="a part of the names of the designs to simulate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()
    began, results = time.perf_counter(), dict[str, list[dict[str, object]]]()
    for title, verdict, designs in (
        ("decided without a difference", "decided", DESIGNS),
        ("equal at the margin", "equal", MARGINS),
    ):
        sys.stdout.write(f"\n| {title} | share of {arguments.studies:,} studies | mean runs |\n|---|---|---|\n")
        for design in (design for design in designs if arguments.only in design.name):
            line = share(design, verdict, studies=arguments.studies, seed=arguments.seed)
            results.setdefault(title, []).append(line)
            sys.stdout.write(
                f"| {design.name} | {line['share']:.2%} ± {line['error']:.2%} | {line['mean_runs']:.1f} |\n"
            )
            sys.stdout.flush()
    if arguments.out:
        facts = {
            "command": " ".join(sys.argv),
            "seconds": round(time.perf_counter() - began),
            "results": results,
        }
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
