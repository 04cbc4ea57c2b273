"""How much of an oracle's gain do other arms have? One line for every task and arm.

A policy that is learned fails outright in some runs, and the mean over failed and other runs has no
interval that
covers: with one failure in ten, Fieller's covers 67 % at ten runs. So where an arm learns something
    at all (the better
half of its runs gains more than ``LEARNS`` of the oracle's mean gain), a run that gains no more
than ``FAILED`` of it *failed*. The share and its interval are those of the runs that learned
something, and beside them stands how many failed, with the exact binomial interval. There is no
interval of such a mixture. The rule looks at each run alone and not at gaps between runs: with
gaps, failures pass for weak runs in every third study of 20 runs at a share of one half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maskwise.files import GainShare
from maskwise.study.statistics import binomial_interval, ratio_interval
from maskwise.study.verdict.table import Table
from maskwise.study.verdict.words import Names, capital, minus, outcome_words

LEARNS, FAILED = 0.25, 0.1
"""As parts of the oracle's mean gain."""


def gain_shares(table: Table, best: str, baseline: str, names: Names) -> list[GainShare]:
    """For every other arm: the share of what ``best`` adds to ``baseline`` that it adds too, on
    every task, or in held-out loss where there is none. There is none where arms cannot be
    compared, or a gate is closed.
    """
    arms = [arm for arm in table.study["arms"] if arm not in (best, baseline)]
    outcomes = table.tasks or table.heldout
    return [
        _gain_share(table, arm, best, baseline, outcome, names)
        for outcome in outcomes
        for arm in arms
    ]


def _gain_share(
    table: Table, arm: str, best: str, baseline: str, outcome: str, names: Names
) -> GainShare:
    where = outcome_words(outcome)
    line: GainShare = {
        "arm": arm,
        "best": best,
        "baseline": baseline,
        "n": 0,
        "failed": 0,
        "failed_low": None,
        "failed_high": None,
        "task": outcome if outcome in table.tasks else where.removeprefix("in "),
        "share": None,
        "low": None,
        "high": None,
        "sentence": "",
    }
    who, oracle, base = (names.get(name, name) for name in (arm, best, baseline))
    gains, whole = _gains(table, arm, best, baseline, outcome)
    line["n"] = len(gains)
    why = _why_none(table, arm, best, baseline, outcome)
    if why is not None:
        line["sentence"] = capital(f"no share of {who} {where}: {why}.")
        return line
    if not len(gains) or whole.mean() <= 0:
        line["sentence"] = capital(
            f"{oracle} does not improve on {base} {where}, so there is no gain to share.", best
        )
        return line
    learned = learned_something(gains, whole)
    line["failed"] = int((~learned).sum())
    line["failed_low"], line["failed_high"] = binomial_interval(line["failed"], line["n"])
    line["share"] = float(gains[learned].mean() / whole[learned].mean())
    ends = ratio_interval(gains[learned], whole[learned]) if learned.sum() > 1 else None
    if ends is not None:
        line["low"], line["high"] = ends
    line["sentence"] = capital(_sentence(line, who, oracle, base, where), arm)
    return line


def learned_something(gains: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which runs did not fail outright.

    >>> whole = np.full(6, 0.7)
    >>> learned_something(np.array([0.01, 0.6, 0.62, 0.58, 0.61, 0.6]), whole).tolist()
    [False, True, True, True, True, True]

    Args:
        gains: what an arm adds to the baseline, by pair of runs.
        whole: what the oracle adds, in the same pairs.
    """
    shares = gains / whole.mean()
    better_half = np.sort(shares)[len(shares) // 2 :]
    if better_half.mean() <= LEARNS:  # it gains little in all runs, which is no failure of some
        return np.full(len(shares), fill_value=True)
    return shares > FAILED


def _gains(
    table: Table, arm: str, best: str, baseline: str, outcome: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the arm and the best add to the baseline, by pair of runs: above 0 is better."""
    scores = [table.values(outcome, name) for name in (arm, best, baseline)]
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in scores)))
    mine, most, base = (np.array([by_seed[seed] for seed in seeds]) for by_seed in scores)
    sign = 1 if table.higher_is_better(outcome) else -1
    return sign * (mine - base), sign * (most - base)


def _why_none(table: Table, arm: str, best: str, baseline: str, outcome: str) -> str | None:
    """Why no share can be told; None where one can."""
    gate = table.failed_gate
    failed = gate is not None and (gate["arm"], gate["baseline"]) == (best, baseline)
    if failed or (arm, baseline) in table.closed or (best, baseline) in table.closed:
        return "the positive control failed"
    if len(table.formats(arm) | table.formats(best)) > 1:
        return "the arms write different output formats"
    why = table.incomparable(arm, baseline, outcome) or table.incomparable(best, baseline, outcome)
    return f"its losses are not comparable ({why.replace('-', ' ')})" if why else None


def _sentence(line: GainShare, who: str, oracle: str, base: str, where: str) -> str:
    assert line["share"] is not None
    sure = "no interval"
    if line["low"] is not None and line["high"] is not None:
        sure = f"95 % interval {_percent(line['low'])} to {_percent(line['high'])}"
    has = f"{who} has {_percent(line['share'])} of what {oracle} adds to {base} {where}"
    learned = line["n"] - line["failed"]
    if not line["failed"]:
        return f"{has} ({sure}; {learned} run{'s' * (learned != 1)} each)."
    assert line["failed_low"] is not None and line["failed_high"] is not None
    failures = f"{_percent(line['failed_low'])} to {_percent(line['failed_high'])}"
    return (
        f"{has} in the {learned} runs that learned something ({sure}); {line['failed']} of "
        f"{line['n']} runs failed"
        f" (95 % interval {failures})."
    )


def _percent(share: float) -> str:
    return minus(f"{100 * share:.0f} %")
