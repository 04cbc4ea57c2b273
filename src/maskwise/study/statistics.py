"""Statistics for few, expensive runs: pure functions of plain numbers.

Every function works on paired differences d_1 … d_n, one per run, and none assumes large samples.
Arms, tasks and verdicts are the subject of ``maskwise.study.verdict``. Only the last section, about
what a planned study can decide, reads a recipe.

The interval inverts the test without a search. Split the runs into S and the rest, and flip the
signs of S: the absolute sum of differences from r reaches the observed one exactly if r lies
between mean(S) and mean(rest). So the p value of "the true mean is r" is the share of splits with r
between their two means (the split that flips nothing always counts), and the ends of an interval
are order statistics of those means.

The p values of n runs are multiples of 2^(1 - n). Power is therefore computed for the paired t
test at the largest attainable level. It is exact if that level needs equal signs in all runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from maskwise.errors import MaskwiseError
from maskwise.estimates import detected_words
from maskwise.files import Estimate

if TYPE_CHECKING:
    from maskwise.recipe import Recipe

ALPHA = 0.05
"""The error rate of a study."""
POWER = 0.8
"""The probability of detection that a planned number of runs should give."""
EXACT_RUNS = 20
"""The largest number of runs for which all 2^(n - 1) splits are enumerated: half a million splits,
in 20 ms."""
DRAWS = 100_000
"""The number of random splits if there are more runs, drawn with a fixed seed."""
P_FROM_RUNS = 6
"""The smallest number of runs that get a p value: the smallest p of 5 runs is .0625."""
CHANCE_MARGIN = 0.02
"""How far above chance a score may be by luck if the number of items is unknown."""
MOST_RUNS = 300
"""The largest number of runs that ``runs_to_decide`` considers."""
# Nodes of an integral over [-1, 1]. Computing them takes 20 ms, so it is done once per process.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


# The sign-flip test


def sign_flip_test(differences: ArrayLike) -> float:
    """Return the two-sided p value of the sign-flip (paired permutation) test of mean zero.

    Under a mean of zero each difference is as likely to be −d as d. The test is exact up to 20
    differences, where the smallest p is 2^(1 − n); for more it draws 100,000 random splits, with
    the +1 correction that keeps p above 0.

    >>> sign_flip_test([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    0.03125

    Source: Fisher, The Design of Experiments (1935), section 21; the correction: Phipson and Smyth
        (2010).
    """
    d = _finite(differences)
    flipped, _ = _splits(d)
    total = d.sum()
    # Splits that tie with the observed sum must count in spite of rounding.
    rounding = 1e-12 * np.abs(d).sum()
    as_large = np.abs(total - 2 * flipped) >= abs(total) - rounding
    return float((1 + as_large.sum()) / (1 + len(flipped)))


def sign_flip_interval(
    differences: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the range of means that the sign-flip test does not reject at 1 − ``confidence``.

    None if there are too few differences to reject anything: below 6 for 95 %. With 6 the ends
    are the smallest and the largest difference, which cover 96.9 %.

    >>> sign_flip_interval([1, 2, 3, 4, 5, 6])
    (1.0, 6.0)
    """
    d = _finite(differences)
    flipped, sizes = _splits(d)
    splits = 1 + len(flipped)
    # A mean is rejected if its p value, (1 + splits around it) / splits, is below 1 − confidence.
    # The factor keeps a product that is a whole number from being rounded up to the next number.
    around = math.ceil((1 - confidence) * splits * (1 - 1e-12)) - 1
    if around < 1:
        return None
    means = flipped / sizes
    others = (d.sum() - flipped) / (len(d) - sizes)
    # Partitioning finds these order statistics in linear time; sorting the means would take longer.
    first = around - 1
    last = len(means) - around
    low = np.partition(np.minimum(means, others), first)[first]
    high = np.partition(np.maximum(means, others), last)[last]
    return float(low), float(high)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=float)
    if not len(numbers) or not np.isfinite(numbers).all():
        raise MaskwiseError("a test needs finite numbers", got=numbers.tolist())
    return numbers


def _splits(d: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, for every split of the runs in two, sum and size of the part without run one."""
    if len(d) > EXACT_RUNS:
        inside = _drawn(len(d))
        return inside @ d, inside.sum(axis=1)
    # Every further run doubles the number of splits: the run is either in the part or not.
    sums = np.zeros(1)
    sizes = np.zeros(1)
    for value in d[1:]:
        sums = np.concatenate([sums, sums + value])
        sizes = np.concatenate([sizes, sizes + 1])
    # The first split is the empty part, which flips nothing; the callers count it themselves.
    return sums[1:], sizes[1:]


@cache
def _drawn(runs: int) -> NDArray[np.float64]:
    """Draw random splits as rows of 0 and 1, where 1 is a flipped run."""
    generator = np.random.default_rng(0)
    inside = generator.integers(0, 2, size=(DRAWS, runs)).astype(float)
    # A split and its complement flip the same sum, so the first run can stay unflipped.
    inside[:, 0] = 0
    flips_any = inside.any(axis=1)
    return inside[flips_any]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the given order. Source: Holm (1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    # Adjusted p values keep the order of the raw p values: a hypothesis is rejected only after all
    # hypotheses with smaller p values.
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def estimated(differences: NDArray[np.float64]) -> Estimate:
    """Return a mean difference with its 95 % interval; None if there are too few runs."""
    if not len(differences):
        return {"mean": None, "low": None, "high": None}
    low, high = sign_flip_interval(differences) or (None, None)
    return {"mean": float(differences.mean()), "low": low, "high": high}


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float] | None:
    """Return Fieller's 95 % interval for mean(numerators) / mean(denominators) of pairs.

    The interval contains every r for which Student's t test does not reject a mean of 0 for
    numerators − r · denominators. None if it is unbounded: by the same test the mean of the
    denominators does not differ significantly from 0. Source: Fieller (1954), section 2.

    >>> [round(end, 3) for end in ratio_interval([2.0, 2.0, 2.0], [3.9, 4.0, 4.1])]
    [0.471, 0.533]
    """
    a = _finite(numerators)
    b = _finite(denominators)
    t2 = stats.t.ppf(1 - ALPHA / 2, len(a) - 1) ** 2
    (var_a, cov), (_, var_b) = np.cov(a, b) / len(a)
    # The ends are the roots of square · r² − 2 · middle · r + constant.
    square = b.mean() ** 2 - t2 * var_b
    middle = a.mean() * b.mean() - t2 * cov
    constant = a.mean() ** 2 - t2 * var_a
    if square <= 0:
        return None
    # Rounding can make the discriminant of a double root slightly negative.
    half = math.sqrt(max(middle**2 - square * constant, 0.0))
    return float((middle - half) / square), float((middle + half) / square)


def binomial_interval(count: int, of: int) -> tuple[float, float]:
    """Return the exact 95 % interval of the share count / of. Source: Clopper and Pearson (1934).

    >>> [round(end, 3) for end in binomial_interval(1, 10)]
    [0.003, 0.445]
    """
    interval = stats.binomtest(count, of).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def attainable_level(runs: int, alpha: float = ALPHA) -> float:
    """Return the largest p below alpha that the sign-flip test can give; 0 if there is none."""
    # The p values of drawn splits are fine-grained enough to attain any level.
    if runs > EXACT_RUNS:
        return alpha
    splits = 2 ** (runs - 1)
    return (math.ceil(alpha * splits) - 1) / splits


def fewest_runs(alpha: float = ALPHA) -> int:
    """Return the fewest runs that can decide anything at this level."""
    runs = P_FROM_RUNS
    while attainable_level(runs, alpha) == 0:
        runs += 1
    return runs


def can_decide(runs: int, contrasts: int) -> bool:
    """Return whether this many runs can give p < .05 after Holm's correction over the contrasts."""
    return runs >= fewest_runs(ALPHA / contrasts)


def look_weights(looks: Sequence[int]) -> list[float]:
    """Return the share of the error rate that each planned look at the runs may spend.

    The shares sum to 1, and the last look has the largest. Divide the p value at a look by its
    weight: the minimum over the looks so far is a p value of the whole plan (weighted Bonferroni).
    This holds for the exact test, however the looks depend on each other.

    >>> [round(weight, 3) for weight in look_weights([10, 20])]
    [0.111, 0.889]

    Args:
        looks: numbers of runs, increasing.

    Source: Lan and DeMets (1983), the spending function 2 − 2 Φ(z / √t), which resembles O'Brien
        and Fleming's boundary.
    """
    z = stats.norm.ppf(1 - ALPHA / 2)
    fractions = np.array(looks) / looks[-1]
    spent = 2 * stats.norm.sf(z / np.sqrt(fractions))
    return (np.diff(spent, prepend=0.0) / ALPHA).tolist()


def look_weight(looks: Sequence[int] | None, runs: int) -> float:
    """Return the share of the error rate that may be spent at this number of runs."""
    if not looks:
        return 1.0
    return look_weights(looks)[looks.index(runs)]


def power_of(sd: float, difference: float, runs: int, *, alpha: float = ALPHA) -> float:
    """Return the probability of deciding a true difference if paired differences are normal.

    >>> [round(power_of(1, effect, runs), 2) for runs in (6, 8) for effect in (1, 1.5)]
    [0.35, 0.66, 0.67, 0.95]

    Args:
        sd: the standard deviation of the paired differences.
        difference: the true difference, in the same unit.
        alpha: the level that remains after Holm's correction.
    """
    level = attainable_level(runs, alpha)
    if level == 0:
        return 0.0
    effect = difference / sd
    if runs <= EXACT_RUNS and level == 2.0 ** (1 - runs):
        all_positive = special.ndtr(effect) ** runs
        all_negative = special.ndtr(-effect) ** runs
        return float(all_positive + all_negative)
    # The power is averaged over quantiles of the sample SD, because scipy's noncentral t is NaN for
    # few runs and large shifts.
    shift = abs(difference) / sd * math.sqrt(runs)
    critical = _critical_means(runs, level)
    power = special.ndtr(shift - critical) + special.ndtr(-shift - critical)
    return float(WEIGHTS @ power / 2)


def powers(runs: int, *, alpha: float) -> dict[str, float]:
    """Return the power for a true difference of 1 and of 1.5 SDs of the paired differences."""
    return {f"{size:g}": round(power_of(1.0, size, runs, alpha=alpha), 2) for size in (1, 1.5)}


@cache
def _critical_means(runs: int, level: float) -> NDArray[np.float64]:
    """Return the rejection thresholds of the t test, one per quantile of the sample SD.

    The unit is the standard error of the mean.
    """
    quantiles = stats.chi2.ppf((NODES + 1) / 2, runs - 1)
    sample_sds = np.sqrt(quantiles / (runs - 1))
    return stats.t.ppf(1 - level / 2, runs - 1) * sample_sds


@cache
def _detectable_effect(runs: int, alpha: float) -> float:
    def shortfall(effect: float) -> float:
        return power_of(1.0, effect, runs, alpha=alpha) - POWER

    return float(optimize.brentq(shortfall, 1e-9, 1000))


def detectable_difference(sd: float, runs: int, *, alpha: float = ALPHA) -> float:
    """Return the smallest true difference decided with power .8, in the unit of ``sd``."""
    return sd * _detectable_effect(runs, alpha)


def best_guess(chance: float, items: int | None, *, share: bool) -> float:
    """Return the highest mean score that counts as guessing: chance + 2 standard errors over items.

    >>> round(best_guess(0.5, 100, share=True), 3)
    0.6
    """
    if not items:
        return chance + CHANCE_MARGIN
    # A correlation of n independent pairs has a variance of about 1 / n.
    variance = 1.0
    if share:
        # A chance level outside of 0 to 1 belongs to a metric that is not a share.
        variance = max(chance * (1 - chance), 0.0)
    return chance + 2 * math.sqrt(variance / items)


def runs_to_decide(sd: float, difference: float, *, alpha: float = ALPHA) -> int | None:
    """Return the fewest runs that would decide ``difference`` with power .8; None above 300.

    ``sd`` and ``difference`` are treated as the true values: if they are estimated from three runs,
    the answer is only a guess, too.

    Args:
        alpha: the level that remains after Holm's correction.
    """
    if not difference or (sd and power_of(sd, difference, MOST_RUNS, alpha=alpha) < POWER):
        return None
    runs = fewest_runs(alpha)
    while sd and power_of(sd, difference, runs, alpha=alpha) < POWER:
        runs += 1
    return runs


# What a planned study can decide


class Prospect(TypedDict):
    """What a study can decide about one primary contrast."""

    arm: str
    baseline: str
    runs: int
    decidable: bool
    fewest_runs: int
    """The fewest runs of each arm that can decide anything."""
    power: dict[str, float]
    """The probability of deciding a true difference of 1 and of 1.5 SDs of paired differences."""
    detectable: float
    """The smallest difference that ``max(runs, fewest_runs)`` runs decide with probability .8, in
    SDs of paired differences."""


def prospects_of(recipe: Recipe) -> list[Prospect]:
    """Compute what each primary contrast of a recipe can decide, the gate's first.

    A study that is too small to decide is not rejected, because it may be a pilot.

    >>> from maskwise.recipe import read_recipe
    >>> gate, prospect = prospects_of(read_recipe("quick-start"))
    >>> prospect["runs"], prospect["decidable"], prospect["fewest_runs"]
    (6, True, 6)
    """
    study = recipe.study
    runs = len(study.seed_list)
    spent = ALPHA * look_weight(study.looks, runs)
    tested = len(study.pairs) - bool(study.gate)
    prospects: list[Prospect] = []
    for number, (arm, baseline) in enumerate(study.pairs):
        # The gate comes first and is tested at the full level; the other contrasts share a level.
        alpha = spent
        if number or not study.gate:
            alpha /= tested
        fewest = fewest_runs(alpha)
        prospects.append(
            {
                "arm": arm,
                "baseline": baseline,
                "runs": runs,
                "decidable": runs >= fewest,
                "fewest_runs": fewest,
                "power": powers(runs, alpha=alpha),
                "detectable": detectable_difference(1.0, max(runs, fewest), alpha=alpha),
            }
        )
    return prospects


def prospect_lines(prospects: Sequence[Prospect]) -> list[str]:
    """Put prospects into words; a line that holds for several contrasts is printed once."""
    pairs_of: dict[str, list[str]] = {}
    for prospect in prospects:
        for line in _lines(prospect):
            pair = f"{prospect['arm']} against {prospect['baseline']}"
            pairs_of.setdefault(line, []).append(pair)
    lines = []
    for line, pairs in pairs_of.items():
        which = ", ".join(pairs)
        if len(pairs) == len(prospects) > 1:
            which = "every contrast"
        lines.append(f"{which}: {line}")
    return lines


def _lines(prospect: Prospect) -> list[str]:
    runs = prospect["runs"]
    fewest = prospect["fewest_runs"]
    lines = []
    if not prospect["decidable"]:
        are = "1 run is" if runs == 1 else f"{runs} runs are"
        lines.append(f"{are} too few for a verdict; use study.seeds={fewest}")
    detected = detected_words(prospect["detectable"])
    return [*lines, f"with {max(runs, fewest)} pairs of runs, {detected}"]
