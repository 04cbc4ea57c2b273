"""How many runs a study needs, and what a given number of runs can see: pure functions of plain
numbers.

The test that decides is the exact sign-flip test, whose p values come in steps of 2^(1 − n): with 8
runs and a level of .0083 the level that is really used is .0078, with 9 still .0078. So power is
that of the paired t test at the level which the sign-flip test can attain; and where that level is
a single step, which needs the same sign in all runs, it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from maskwise.constants import MOST_PRIMARY
from maskwise.errors import MaskwiseError
from maskwise.study.statistics import EXACT_RUNS, t_quantile

# of an integral over [−1, 1]; 20 ms, so made once
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)
P_FROM_RUNS = 6
"""With fewer no p is printed: the smallest one at 5 runs is .0625."""
MOST_RUNS = 300
"""No larger number of runs is looked for."""


def attainable_level(runs: int, alpha: float = 0.05) -> float:
    """The largest p below alpha that the sign-flip test of so many runs can give; 0 if there is
    none.
    """
    if runs > EXACT_RUNS:
        return alpha
    splits = 2 ** (runs - 1)
    return (math.ceil(alpha * splits) - 1) / splits


def fewest_runs(alpha: float = 0.05) -> int:
    """The fewest runs that can decide anything at this level."""
    runs = P_FROM_RUNS
    while attainable_level(runs, alpha) == 0:
        runs += 1
    return runs


def can_decide(runs: int, contrasts: int = 1, alpha: float = 0.05) -> bool:
    """Whether so many runs can give a p below alpha after Holm's correction over so many contrasts."""
    return runs >= fewest_runs(alpha / max(contrasts, 1))


def most_contrasts(runs: int) -> int:
    """How many contrasts so many runs can decide, of the six that a study may have.

    >>> [most_contrasts(runs) for runs in (5, 6, 7, 8)]
    [0, 1, 3, 6]
    """
    return sum(can_decide(runs, contrasts) for contrasts in range(1, MOST_PRIMARY + 1))


def look_weights(looks: Sequence[int], alpha: float = 0.05) -> list[float]:
    """The shares of the error that planned looks at the runs may spend; they sum to 1, and the last
    has the most.

    A p value at a look is divided by its weight, and the smallest over the looks so far is a p
    value of the whole plan (Bonferroni with weights): that holds for the exact test, however the
    looks depend on each other.

    >>> [round(weight, 3) for weight in look_weights([10, 20])]
    [0.111, 0.889]

    Args:
        looks: numbers of runs, rising.

    Source: Lan and DeMets (1983), the spending function like O'Brien and Fleming's: 2 − 2 Φ(z /
        √t).
    """
    z = stats.norm.ppf(1 - alpha / 2)
    spent = [0.0, *(2 * float(stats.norm.sf(z / math.sqrt(runs / looks[-1]))) for runs in looks)]
    return [(after - before) / alpha for before, after in pairwise(spent)]


def look_weight(looks: Sequence[int] | None, runs: int) -> float:
    """The share of the error that may be spent at this number of runs: all of it where no looks are
    planned.
    """
    return look_weights(looks)[looks.index(runs)] if looks else 1.0


def power_of(sd: float, difference: float, runs: int, *, alpha: float = 0.05) -> float:
    """The probability that so many runs decide a true difference, if the paired differences are
    normal.

    >>> [round(power_of(1, effect, runs), 2) for runs in (6, 8) for effect in (1, 1.5)]
    [0.35, 0.66, 0.67, 0.95]

    Args:
        sd: the standard deviation of the paired differences.
        difference: the true one, in the same unit.
        alpha: the level that is left after Holm's correction.
    """
    level = attainable_level(runs, alpha)
    if level == 0:
        return 0.0
    if runs <= EXACT_RUNS and level == 2.0 ** (1 - runs):
        return float(special.ndtr(difference / sd) ** runs + special.ndtr(-difference / sd) ** runs)
    # Integrated over the quantiles of the sample SD: scipy's noncentral t is nan at few runs and
    # large shifts.
    shift = abs(difference) / sd * math.sqrt(runs)
    critical = t_quantile(1 - level / 2, runs - 1) * _sample_sds(runs)
    return float(WEIGHTS @ (special.ndtr(shift - critical) + special.ndtr(-shift - critical)) / 2)


@cache
def _sample_sds(runs: int) -> NDArray[np.float64]:
    """Quantiles of the sample SD where the true one is 1."""
    quantiles = stats.chi2.ppf((NODES + 1) / 2, runs - 1)
    return np.sqrt(quantiles / (runs - 1))


def detectable_difference(sd: float, runs: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that so many runs decide with this power, in the unit of ``sd``.

    Raises:
        MaskwiseError: so few runs decide nothing at this level, or ``sd`` is negative.
    """
    if not can_decide(runs, alpha=alpha) or sd < 0:
        allowed = f"{fewest_runs(alpha)} runs or more, sd ≥ 0"
        raise MaskwiseError(
            "so few runs detect nothing", got=f"{runs} runs, sd {sd}", allowed=allowed
        )
    return sd * _detectable_effect(runs, power, alpha)


@cache
def _detectable_effect(runs: int, power: float, alpha: float) -> float:
    """In SDs, of which there are few: a page asks for the same one in every row."""
    return float(optimize.brentq(lambda x: power_of(1.0, x, runs, alpha=alpha) - power, 1e-9, 1000))


def runs_to_decide(
    sd: float, difference: float, *, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """The fewest runs that would decide ``difference`` with this power; None if more than 300.

    The true ``sd`` and ``difference`` are taken as known; with those of three runs the answer is
    itself a guess.

    Args:
        alpha: the level that is left after Holm's correction.
    """
    if sd < 0 or not math.isfinite(sd) or not math.isfinite(difference):
        raise MaskwiseError(
            "runs_to_decide wants finite numbers, sd ≥ 0", got=f"sd {sd}, difference {difference}"
        )
    if difference == 0:
        return None
    if sd == 0:
        return fewest_runs(alpha)
    if power_of(sd, difference, MOST_RUNS, alpha=alpha) < power:
        return None
    runs = fewest_runs(alpha)
    while power_of(sd, difference, runs, alpha=alpha) < power:
        runs += 1
    return runs
