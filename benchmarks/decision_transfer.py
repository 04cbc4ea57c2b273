"""How often does a small study order two arms as a larger one does?

    python benchmarks/decision_transfer.py SMALL MEDIUM LARGE > decisions.json

Folders are recorded studies, from small to large. Each is read at its full length and at the
lengths of its companions, which are shorter runs of the same arms in companions.jsonl. A line of
the result compares a smaller setting with a larger one. It counts the pairs of arms that the larger
setting orders by its tasks, and for each proxy of the smaller setting, those of them that have the
same order. The proxies are the mean score of the tasks and the held-out loss on each kind of mask.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
from command import run
from numpy.typing import ArrayLike
from pandas import DataFrame, Series
from scipy import stats

from maskwise.base.constants import PLATEAU_NATS, REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_lines

FEWEST_PAIRS = 4
"""With fewer ordered pairs, a share says nothing."""
FEWEST_ARMS = 8
"""With fewer arms, a bootstrap over arms is far too narrow."""
DRAWS = 2000

Setting = dict[str, DataFrame]
"""Values (arms, seeds) by proxy, higher is better, as averages over tasks or masking ratios; and
"gain", the held-out losses of word frequencies minus those of the model."""


def read_settings(folder: Path) -> dict[str, Setting]:
    """Return the settings of a recorded study, the shortest first, by name."""
    lines = [*read_lines(folder / "records.jsonl"), *read_lines(folder / "companions.jsonl")]
    if not any(line["kind"] == "task" for line in lines):
        raise MaskwiseError("there are no scores of tasks", got=folder / "records.jsonl")
    records = DataFrame([{"length": 1.0, "split": "test"} | line for line in lines])
    settings = {}
    for length, runs in records[records.arm != REFERENCE].groupby("length"):
        tested = runs[runs.split == "test"]
        heldout = tested[tested.kind == "heldout"]
        setting = {"tasks": table(tested[tested.kind == "task"])}
        for masks, of_masks in heldout.groupby("measure"):
            setting[f"held-out loss, {masks}"] = -table(of_masks)
        setting["gain"] = table(runs[runs.split == "unigram"]) - table(heldout)
        settings[f"{folder.name}, {length:g} of the steps"] = setting
    return settings


def table(lines: DataFrame) -> DataFrame:
    """Return the mean of the values for each arm (row) and seed (column).

    Raises:
        MaskwiseError: runs are missing.
    """
    counts = lines.pivot_table("value", "arm", "seed", "count", fill_value=0).stack()
    missing = counts.index[counts < counts.max()]
    if len(missing):
        raise MaskwiseError("runs without all their values", got=list(missing))
    return lines.pivot_table("value", "arm", "seed")


def ordered(values: DataFrame) -> DataFrame:
    """Return the signs of the differences of arms whose 95 % intervals do not contain 0.

    The differences are between runs with the same seed. All intervals use one variance: that of the
    values without the effects of the arm and of the seed.

    Returns:
        (arms, arms), 1 if the arm of the row is better than that of the column, −1 if it is worse,
        0 if the interval contains 0.

    >>> ordered(DataFrame([[1.0, 1.2, 0.9], [3.0, 3.1, 3.1], [3.1, 3.0, 2.9]])).loc[0].tolist()
    [0.0, -1.0, -1.0]
    """
    means = values.mean(axis=1)
    residuals = values.sub(means, axis=0) - values.mean() + values.to_numpy().mean()
    arms, seeds = values.shape
    freedom = (arms - 1) * (seeds - 1)
    error = np.sqrt(2 * (residuals**2).to_numpy().sum() / freedom / seeds)
    leads = leads_of(means)
    half_width = stats.t.ppf(0.975, freedom) * error
    signs = np.sign(leads) * (np.abs(leads) > half_width)
    return DataFrame(signs, values.index, values.index)


def leads_of(means: ArrayLike) -> np.ndarray:
    """Return (arms, arms): the mean of the arm of the row minus that of the column."""
    return np.subtract.outer(np.asarray(means), np.asarray(means))


def agreement(means: ArrayLike, signs: ArrayLike) -> tuple[int, int]:
    """Return the number of ordered pairs with the same order, and of all ordered pairs.

    Equal means count as another order.

    Args:
        means: of the arms in the small setting.
        signs: (arms, arms) of the large setting, as from ``ordered``.
    """
    pairs = np.triu(signs) != 0
    same = np.sign(leads_of(means)) == np.asarray(signs)
    return int(same[pairs].sum()), int(pairs.sum())


def interval(values: DataFrame, signs: DataFrame) -> list[float] | None:
    """Return the 95 % bootstrap interval of the share, over arms and seeds of the small setting.

    The orders of the large setting are taken as given. The result is None if all draws agree.
    """
    rng = np.random.default_rng(0)
    arms, seeds = values.shape
    # Selecting from arrays is much faster than from data frames.
    scores = values.to_numpy()
    orders = signs.to_numpy()
    shares = []
    for _ in range(DRAWS):
        drawn = rng.integers(arms, size=arms)
        means = scores[np.ix_(drawn, rng.integers(seeds, size=seeds))].mean(axis=1)
        same, pairs = agreement(means, orders[np.ix_(drawn, drawn)])
        if pairs:
            shares.append(same / pairs)
    low, high = np.quantile(shares, [0.025, 0.975]).round(3).tolist()
    return [low, high] if low < high else None


def compare(small: Setting, large: Setting) -> dict[str, object]:
    """Return the line of two settings, for the arms that both have."""
    arms = small["tasks"].index.intersection(large["tasks"].index)
    signs = ordered(large["tasks"]).loc[arms, arms]
    gains = small["gain"].loc[arms].mean(axis=1)
    line: dict[str, object] = {
        "arms": len(arms),
        "near_word_frequencies": list(gains.index[gains < PLATEAU_NATS]),
    }
    for proxy, all_arms in small.items():
        if proxy == "gain":
            continue
        values = all_arms.loc[arms]
        means = values.mean(axis=1)
        same, pairs = agreement(means, signs)
        line["ordered_pairs"] = pairs
        if pairs < FEWEST_PAIRS:
            line[proxy] = "cannot tell"
            continue
        line[proxy] = {"same_order": same, "without_an_arm": without_an_arm(means, signs)}
        if len(arms) >= FEWEST_ARMS:
            line[proxy]["interval"] = interval(values, signs)
    return line


def without_an_arm(means: Series, signs: DataFrame) -> dict[str, list[int]]:
    """Return the two numbers of ``agreement`` after each arm in turn is left out."""
    found = {}
    for arm in means.index:
        found[arm] = list(agreement(means.drop(arm), signs.drop(index=arm, columns=arm)))
    return found


def main(folders: list[Path]) -> list[dict[str, object]]:
    """Compare each setting with each larger one."""
    settings = {}
    for folder in folders:
        settings |= read_settings(folder)
    if len(settings) < 2:
        raise MaskwiseError("one setting has no larger one", got=", ".join(settings))
    lines = []
    for small, large in combinations(settings, 2):
        line = compare(settings[small], settings[large])
        lines.append({"small": small, "large": large} | line)
    return lines


if __name__ == "__main__":
    run(main, __doc__)
