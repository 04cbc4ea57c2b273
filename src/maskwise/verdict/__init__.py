"""Compute verdicts from records. ``summarise`` returns the content of ``summary.json``.

docs/evidence.md explains the rules, and docs/files.md the format. The replicate is the pre-training
run, paired by seed. Task scores are standardised and averaged within a run before any statistic, so
several tasks of one run never count as several observations. Read in this order:
``outcomes`` (values), ``contrasts`` (differences, tests and verdicts), ``flags`` (reasons
that invalidate, cap or qualify a row), ``words`` (sentences). A summary takes 10 to 50 ms.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from typing import cast

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import FRESH_RUN, MEAN_OVER_TASKS
from maskwise.estimates import outcome_words, with_minus
from maskwise.files import (
    RULES,
    ArmSummary,
    Contrast,
    GainShare,
    Planned,
    Point,
    Record,
    Study,
    Summary,
    TaskUse,
    TransferCell,
)
from maskwise.folders import finite
from maskwise.verdict.contrasts import (
    Comparison,
    compare,
    decide,
    matched_by,
    primary_pairs,
)
from maskwise.verdict.outcomes import QUANTITIES, Numbers, Outcomes, Pair, finite_runs
from maskwise.verdict.statistics import (
    ALPHA,
    binomial_interval,
    detectable_sds,
    estimated,
    look_weight,
    powers,
    ratio_interval,
)
from maskwise.verdict.words import (
    advice_of,
    behind_reference,
    headline_row,
    headline_sentence,
    no_gain,
    row_sentence,
)

__all__ = ["primary_pairs", "summarise"]


def summarise(records: Iterable[Record], study: Study) -> Summary:
    """Compute the content of summary.json.

    Args:
        records: the lines of records.jsonl.
        study: the content of study.json. The pairs in ``contrasts`` are the primary contrasts.
            If there are ``pending`` seeds, no contrast is tested or estimated.

    Raises:
        MaskwiseError: a run has no partner with the same seed, a score is not finite, or an outcome
            was measured in some runs only.

    >>> score = {"kind": "score", "task": "t", "metric": "accuracy"}
    >>> points = [("a", 0, 0.50), ("a", 1, 0.51), ("b", 0, 0.60), ("b", 1, 0.61)]
    >>> runs = [score | {"arm": arm, "seed": seed, "score": x} for arm, seed, x in points]
    >>> facts = {"policy": "token", "ratio": "constant(0.15)", "overrides": {}}
    >>> study = {"baseline": "a", "seeds": [0, 1], "tasks": {"t": {}}, "contrasts": [("b", "a")]}
    >>> study["arms"] = {"a": facts, "b": facts}
    >>> [(row["outcome"], row["verdict"]) for row in summarise(runs, study)["contrasts"]]
    [('tasks', 'open'), ('t', None)]
    """
    lines = list(records)
    by_length = defaultdict[float, list[Record]](list)
    for line in lines:
        if line.get("role") != "gate":
            by_length[line.get("fraction", 1.0)].append(line)
    table = Outcomes(by_length.pop(1.0, []), study)
    pending = study.get("pending")
    # A verdict before all planned runs are finished would be an unplanned look.
    pairs = [] if pending else primary_pairs(study)
    rows = _rows(lines, table, pairs)
    primary = [row for row in rows if row["primary"]]
    # The headline is about the gate only if there are no other contrasts.
    asked = [row for row in primary if "gate" not in row] or primary
    top = headline_row(asked, study["baseline"])
    # Advice covers the gate, too, if the gate did not pass.
    looks = [look for look in study.get("looks") or () if look > len(study["seeds"])]
    steps = {arm: table.compute(arm).get("steps", 0.0) for arm in study["arms"]}
    advice = advice_of(primary if table.gate else asked, table.names, looks, steps)
    points = []
    for length in sorted(by_length):
        # The tasks that count are those of the full runs, so the means of all lengths agree.
        companions = Outcomes(by_length[length], study, counted=table.counted, companions=True)
        points += _points(companions, length)
        for arm, seed in sorted(companions.unfinished):
            run = f"the companion run of {arm} with seed {seed} ({length:g} of the steps)"
            advice[run] = f"Run the study to its end: {run} lacks outcomes, which are left out."
    points += _points(table, 1.0)
    tasks: dict[str, TaskUse] = {}
    for task, helped in table.helped.items():
        tasks[task] = {"helped": helped, "counted": task in table.counted}
    summary: Summary = {
        "rules": RULES,
        "baseline": study["baseline"],
        "planned": _planned(study),
        "matched_by": matched_by(study),
        "arms": {arm: _described(table, arm) for arm in study["arms"]},
        "contrasts": rows,
        "verdict": top["verdict"] if top else None,
        "headline": headline_sentence(top, asked, table.names, study)
        + behind_reference(top, table)
        + no_gain(top, table),
        "advice": list(dict.fromkeys(advice.values())),
        "overlap": table.lines["overlap"],
        "tasks": tasks,
        "efficiency": {"points": points},
    }
    if pending:
        planned = len(study["seeds"])
        done = planned - len(pending)
        summary["pending"] = {"planned": planned, "done": done}
        summary["headline"] = (
            f"No verdict yet: {done} of {planned} planned runs of each arm are done."
        )
        return summary
    share = study.get("share")
    if share:
        summary["shares"] = gain_shares(table, *share)
    learned = study.get("learned")
    if learned:
        summary["transfer"] = transfer_cells(table, learned, study["baseline"])
    return summary


def _rows(lines: list[Record], table: Outcomes, pairs: list[Pair]) -> list[Contrast]:
    """Return all rows with verdicts and sentences; the rows of a gate come first."""
    gate = []
    if pairs and table.study.get("gate"):
        gate = compare(_gate_table(lines, table), *pairs[0])
        for comparison in gate:
            comparison.row["gate"] = True
        pairs = pairs[1:]
    others: list[Comparison] = []
    for pair in pairs:
        others += compare(table, *pair)
    decide(gate, others, table)
    rows = [comparison.row for comparison in gate + others]
    for row in rows:
        row["brief"] = row_sentence(row, table.names, brief=True)
        row["sentence"] = row_sentence(row, table.names)
    return rows


def _gate_table(lines: list[Record], table: Outcomes) -> Outcomes:
    """Return the outcomes that a gate compares.

    With a search, they come from runs at default settings that only the gate compares. Without a
    search, there are no such runs, and the gate compares the runs of all contrasts.

    The gate's runs have the seeds of the search runs. Here they get the seeds of the compared runs,
    because the study's looks and seeds refer to those.
    """
    runs: list[Record] = []
    for line in lines:
        if line.get("role") == "gate":
            runs.append({**line, "seed": line["seed"] + FRESH_RUN})
    if not runs:
        return table
    compared = {line["arm"] for line in runs}
    arms = {arm: facts for arm, facts in table.study["arms"].items() if arm in compared}
    study: Study = {**table.study, "arms": arms}
    # Only a gate on the policy learned from the task itself has runs of all learned policies.
    if not compared.issuperset(study.get("learned", {})):
        del study["learned"]
    # The gate averages the same tasks as the contrasts, so both have the same primary outcome.
    return Outcomes([*runs, *table.lines["overlap"]], study, counted=table.counted)


def _described(table: Outcomes, arm: str) -> ArmSummary:
    """Return the scores of an arm's runs, keyed by outcome, and their costs and failures."""
    scores = {}
    for name in (*table.tasks, *table.heldout, *table.evaluations):
        if table.mean(name, arm) is not None:
            scores[name] = finite(table.runs(name, arm).tolist())
    return {
        "units": table.units(arm),
        "gap_nats": table.gap_nats(arm),
        "failures": table.failures[arm],
        "compute": table.compute(arm),
        "scores": scores,
    }


def _planned(study: Study) -> Planned:
    """Return the power of the planned runs at the level that every contrast gets."""
    runs = len(study["seeds"])
    contrasts = len(primary_pairs(study))
    if study.get("gate"):
        contrasts -= 1
    alpha = ALPHA * look_weight(study.get("looks"), runs) / max(contrasts, 1)
    return {
        "runs": runs,
        "contrasts": contrasts,
        "power": powers(runs, alpha=alpha),
        "detectable": detectable_sds(runs, alpha=alpha),
    }


# Results that are reported but not tested: gain shares, transfer, quality by compute
# ---------------------------------------------------------------------------------------------


LEARNS = 0.25
FAILED = 0.1
"""Thresholds of ``learned_something``, as fractions of the oracle's mean gain."""


# Shares of a gain


def gain_shares(table: Outcomes, best: str, baseline: str) -> list[GainShare]:
    """Return the share of the oracle's gain that every other arm reaches, on every task.

    Without tasks, gains in held-out losses are used.

    Args:
        table: the outcomes of the compared runs.
        best: the name of the oracle, the arm with the largest gain.
        baseline: the arm over which gains are computed.
    """
    shares = []
    for outcome, arm in product(table.tasks or table.heldout, table.study["arms"]):
        if arm not in (best, baseline):
            shares.append(_gain_share(table, arm, best, baseline, outcome))
    return shares


def _gain_share(table: Outcomes, arm: str, best: str, baseline: str, outcome: str) -> GainShare:
    pairs = np.array([table.gains(outcome, name, baseline) for name in (arm, best)])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    where = outcome_words(outcome)
    row: GainShare = {
        "arm": arm,
        "best": best,
        "baseline": baseline,
        "n": pairs.shape[1],
        "failed": 0,
        "failed_low": None,
        "failed_high": None,
        "task": outcome if outcome in table.tasks else where.removeprefix("in "),
        "share": None,
        "low": None,
        "high": None,
        "sentence": "",
    }
    base = table.names[baseline]
    reason = _why_none(table, arm, best, baseline, outcome)
    if reason is None and not row["n"]:
        reason = "no seed has finished runs of all three arms"
    if reason is not None:
        row["sentence"] = f"No share is given for {arm} {where}: {reason}."
        return row
    if pairs[1].mean() <= 0:
        row["sentence"] = (
            f"{best} does not improve on {base} {where}, so there is no gain to share."
        )
        return row
    pairs = pairs[:, learned_something(*pairs)]
    count = pairs.shape[1]
    row["failed"] = row["n"] - count
    failed_ends = binomial_interval(row["failed"], row["n"])
    row["failed_low"], row["failed_high"] = failed_ends
    share = float(pairs[0].mean() / pairs[1].mean())
    row["share"] = share
    interval = "no interval"
    # One pair has no variance.
    ends = ratio_interval(*pairs) if count > 1 else None
    if ends:
        row["low"], row["high"] = ends
        interval = f"95 % interval {_percent(*ends)}"
    gained = f"{_percent(share)} of the gain of {best} over {base} {where}"
    sentence = f"{arm} reaches {gained} in {count} runs ({interval})"
    if row["failed"]:
        runs = f"{row['failed']} of {row['n']} runs failed"
        sentence += f"; {runs} (95 % interval {_percent(*failed_ends)})"
    row["sentence"] = f"{sentence}."
    return row


def learned_something(gains: Numbers, best_gains: Numbers) -> NDArray[np.bool_]:
    """Return a boolean array of shape (runs,) that is False for runs that failed to learn.

    Learning a policy fails completely in some runs. For a mean over failed and other runs, no
    interval has the right coverage: with one failure in ten runs, Fieller's interval covers 67 %.
    Shares and their intervals therefore use only the runs that learned something, and the number of
    failed runs gets an exact binomial interval.

    A run failed if it gains at most ``FAILED`` of the oracle's mean gain, and the better half of
    the arm's runs gains more than ``LEARNS``. A rule that searches for gaps between runs would miss
    failures in one of three studies with 20 runs.

    >>> best_gains = np.full(6, 0.7)
    >>> learned_something(np.array([0.01, 0.6, 0.62, 0.58, 0.61, 0.6]), best_gains).tolist()
    [False, True, True, True, True, True]

    Args:
        gains: (runs,) the gains of an arm over the baseline.
        best_gains: (runs,) the gains of the oracle over the baseline, with the same seeds.
    """
    shares = gains / best_gains.mean()
    better_half = np.sort(shares)[len(shares) // 2 :]
    # An arm that gains little in all its runs has no failed runs.
    return (shares > FAILED) | (better_half.mean() <= LEARNS)


def _why_none(table: Outcomes, arm: str, best: str, baseline: str, outcome: str) -> str | None:
    """Return the reason why a share cannot be computed; None if it can."""
    if (best, baseline) in (table.gate, *table.closed) or (arm, baseline) in table.closed:
        return "the positive control failed"
    if len(table.formats(arm, best)) > 1:
        return "the arms write different output formats"
    for name in (arm, best):
        code = table.incomparable(name, baseline, outcome)
        if code:
            return f"the losses are not comparable ({code.replace('-', ' ')})"
    return None


def _percent(*shares: float) -> str:
    return with_minus(" to ".join(f"{100 * share:.0f} %" for share in shares))


# Transfer


def transfer_cells(
    table: Outcomes, learned: Mapping[str, str], baseline: str
) -> list[TransferCell]:
    """Return the gain of every learned policy over the baseline on every task.

    Args:
        table: the outcomes of the compared runs.
        learned: the task that an arm's policy was learned from, keyed by arm.
        baseline: the arm over which gains are computed.
    """
    cells = []
    for (arm, source), task in product(learned.items(), table.tasks):
        gains = finite_runs(table.gains(task, arm, baseline))
        cell: TransferCell = {
            "arm": arm,
            "learned_from": source,
            "task": task,
            "n": len(gains),
            **estimated(gains),
        }
        cells.append(cell)
    return cells


# Quality by compute


def _mean_over_tasks(table: Outcomes, place: tuple[int, int]) -> float | None:
    """Return a run's mean score on the tasks of the verdict, in their unit and direction.

    None for a single task, and for tasks without a common unit, such as points and nats: their mean
    would say nothing, and the worse of two arms could have the better mean.
    """
    tasks = table.measured("tasks")
    plain = "plain:tasks"
    if len(tasks) < 2 or plain not in table.scales:
        return None
    # Signed scores, for which higher is better. Tasks with a common unit have a common sign.
    mean = float(table.values[plain][place]) * table.scales[tasks[0]].sign
    return mean if math.isfinite(mean) else None


def _points(table: Outcomes, fraction: float) -> list[Point]:
    """Return the unscaled scores, their mean, the losses and the compute of every run.

    Args:
        table: the outcomes of runs of one length.
        fraction: the number of training steps, as a share of a full run's steps.
    """
    outcomes = [*table.tasks, *table.heldout, *table.evaluations]
    points = []
    for line in table.lines["cost"]:
        place = table.place(line["arm"], line["seed"])
        values = {}
        for name in outcomes:
            value = float(table.values[name][place])
            if math.isfinite(value):
                values[name] = value
        mean = _mean_over_tasks(table, place)
        if mean is not None:
            values = {MEAN_OVER_TASKS: mean, **values}
        spent = {}
        for key in QUANTITIES:
            amount = line.get(key)
            if amount:
                spent[key] = amount
        if values and spent:
            run = {"arm": line["arm"], "seed": line["seed"], "fraction": fraction}
            points.append(cast(Point, {**run, **spent, "values": values}))
    return points
