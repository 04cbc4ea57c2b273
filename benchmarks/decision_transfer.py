"""How often does a small study order two arms as a larger one does?

    python benchmarks/decision_transfer.py SMALL MEDIUM LARGE > decisions.json

Folders are recorded studies of the same arms, from small to large. Each is read at its full length
and at the length of its companions. A line of the result compares a smaller setting with a larger
one: of the pairs of arms that the larger setting orders by its tasks, the share that the smaller
setting orders in the same way, by its tasks or by its held-out loss.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from command import run
from scipy import stats

from maskwise.folders import read_lines

PROXIES = ("tasks", "held-out loss")
FEWEST_PAIRS = 4
"""With fewer ordered pairs, a share says nothing."""
DRAWS = 2000


class Setting(NamedTuple):
    """A study at one length of training.

    Attributes:
        name: folder, and share of the steps.
        arms: names of the arms.
        values: an array (arms, seeds) for each proxy. Higher is better.
    """

    name: str
    arms: list[str]
    values: dict[str, np.ndarray]


def read_settings(folder: Path) -> list[Setting]:
    """Return the settings of a recorded study, the shortest first."""
    found = defaultdict(list)
    for record in read_lines(folder / "records.jsonl"):
        key = (record.get("fraction", 1.0), record.get("arm"), record.get("seed"))
        if record["kind"] == "score" and record["arm"] != "no-pretraining":
            found["tasks", *key].append(record["score"])
        elif record["kind"] == "heldout":
            found["held-out loss", *key].append(-record["loss"])
    _, fractions, arms, seeds = [sorted(set(names)) for names in zip(*found, strict=True)]
    settings = []
    for fraction in fractions:
        values = {}
        for proxy in PROXIES:
            means = [np.mean(found[proxy, fraction, arm, seed]) for arm in arms for seed in seeds]
            values[proxy] = np.reshape(means, (len(arms), len(seeds)))
        settings.append(Setting(f"{folder.name}, {fraction:g} of the steps", arms, values))
    return settings


def ordered(values: np.ndarray) -> np.ndarray:
    """Return the signs of the differences of arms that their own intervals separate from 0.

    The 95 % intervals are of differences between paired seeds. They use one variance for all arms:
    that of the values without the effects of the arm and of the seed.

    Args:
        values: (arms, seeds).

    Returns:
        (arms, arms), 1 if the arm of the row is better than that of the column, −1 if it is worse,
        0 if the interval contains 0.

    >>> ordered(np.array([[1.0, 1.2, 0.9], [3.0, 3.1, 3.1], [3.1, 3.0, 2.9]]))[0]
    array([ 0., -1., -1.])
    """
    arms, seeds = values.shape
    means = values.mean(1)
    left = values - means[:, None] - values.mean(0) + values.mean()
    freedom = (arms - 1) * (seeds - 1)
    error = np.sqrt(2 * (left**2).sum() / freedom / seeds)
    differences = means[:, None] - means
    reach = stats.t.ppf(0.975, freedom) * error
    return np.sign(differences) * (np.abs(differences) > reach)


def agreement(values: np.ndarray, signs: np.ndarray) -> tuple[float, int]:
    """Return the share of the ordered pairs that have the same order, and the number of pairs.

    Args:
        values: (arms, seeds) of the small setting.
        signs: (arms, arms) of the large one, as from ``ordered``.
    """
    means = values.mean(1)
    pairs = np.triu(signs) != 0
    same = np.sign(means[:, None] - means)[pairs] == signs[pairs]
    share = same.mean() if len(same) else np.nan
    return share, len(same)


def interval(values: np.ndarray, signs: np.ndarray) -> list[float]:
    """Return the 95 % bootstrap interval of the share, over arms and seeds of the small setting."""
    rng = np.random.default_rng(0)
    arms, seeds = values.shape
    shares = []
    for _ in range(DRAWS):
        who = rng.integers(arms, size=arms)
        when = rng.integers(seeds, size=seeds)
        share, _ = agreement(values[who][:, when], signs[who][:, who])
        shares.append(share)
    return np.nanquantile(shares, [0.025, 0.975]).round(3).tolist()


def compare(small: Setting, large: Setting) -> dict[str, object]:
    """Return a line of the result."""
    common = [arm for arm in small.arms if arm in large.arms]
    before = [small.arms.index(arm) for arm in common]
    after = [large.arms.index(arm) for arm in common]
    signs = ordered(large.values["tasks"])[after][:, after]
    line: dict[str, object] = {"small": small.name, "large": large.name, "arms": len(common)}
    for proxy in PROXIES:
        values = small.values[proxy][before]
        share, line["ordered_pairs"] = agreement(values, signs)
        if line["ordered_pairs"] < FEWEST_PAIRS:
            line[proxy] = "cannot tell"
        else:
            line[proxy] = {"share": round(share, 3), "interval": interval(values, signs)}
    return line


def main(folders: list[Path]) -> list[dict[str, object]]:
    """Compare each setting with each larger one."""
    settings = [setting for folder in folders for setting in read_settings(folder)]
    return [compare(small, large) for small, large in combinations(settings, 2)]


if __name__ == "__main__":
    run(main, __doc__)
