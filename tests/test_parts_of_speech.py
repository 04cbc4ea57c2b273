"""``benchmarks/parts_of_speech.py``: losses by part of speech, and what is compared."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parts_of_speech import (
    CONTENT,
    FUNCTION,
    LAST,
    WINDOW,
    LossesByGroup,
    half_way,
    measures_of,
    rows_of,
)

from maskwise.base.constants import UPOS

pytestmark = pytest.mark.script


def test_losses_are_added_by_the_group_of_their_tokens() -> None:
    """A token without a group counts nowhere."""
    groups = torch.tensor([[0, 1, -1], [1, 1, 0]])
    labels = torch.tensor([[2, -100, 3], [0, 1, -100]])
    where = torch.tensor([[0, 0], [0, 2], [1, 0], [1, 1]])
    watch = LossesByGroup("pos", 2, torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    line = SimpleNamespace(layer={"pos": groups}.get, tensor=lambda values: values)
    batch = SimpleNamespace(labels=labels, line=line)
    watch.observe(batch, SimpleNamespace(each=torch.tensor([1.0, 9.0, 2.0, 3.0]), where=where))
    [(count, losses, frequencies)] = watch.sums
    assert count.tolist() == [1, 2] and losses.tolist() == [1, 5]
    expected = [-math.log(0.3), -math.log(0.1) - math.log(0.2)]
    assert frequencies.tolist() == pytest.approx(expected)


def test_half_of_the_gain_is_reached_between_two_windows() -> None:
    steps = half_way(np.array([0.0, 0.0, 0.4, 0.6, *[1.0] * LAST]))
    # Between the middles of the third and fourth window.
    assert steps == pytest.approx(3 * WINDOW)
    assert half_way(np.array([1.0] * LAST)) == WINDOW / 2


def line_of(seed: int, final: dict[str, float], starts: dict[str, float]) -> dict[str, object]:
    """Return the record of a run in which each part of speech falls at once after five windows."""
    windows = [starts] * 5 + [final] * LAST
    counts = [[10] * len(UPOS)] * len(windows)
    losses = [[10 * window.get(name, 1.0) for name in UPOS] for window in windows]
    frequencies = [[10 * starts.get(name, 1.0) for name in UPOS]] * len(windows)
    return {
        "seed": seed,
        "groups": UPOS,
        "targets": counts,
        "losses": losses,
        "frequencies": frequencies,
    }


def test_content_words_are_compared_with_function_words_within_runs() -> None:
    starts = dict.fromkeys(CONTENT, 6.0) | dict.fromkeys(FUNCTION, 4.0)
    lines = []
    for seed in range(7):
        final = dict.fromkeys(CONTENT, 5.5 + seed / 100) | dict.fromkeys(FUNCTION, 3.0)
        lines.append(line_of(seed, final, starts))
    assert measures_of(lines[0], CONTENT)["gain"] == pytest.approx(0.5)
    rows = list(rows_of(lines))
    means = {row["contrast"].split(":")[0]: row["mean"] for row in rows[:3]}
    assert means == {"loss": pytest.approx(2.53), "gain": pytest.approx(-0.53), "half way": 0}
    # All seven pairs have one sign in two of three contrasts: 2 / 128 times 3 and times 2.
    assert [row["p"] for row in rows[:3]] == [0.04688, 0.04688, 1.0]
    nouns = next(row for row in rows[3:] if row["part of speech"] == "NOUN")
    assert nouns["loss"] == [5.53, 0.02] and nouns["targets at the end"] == 7 * LAST * 10
