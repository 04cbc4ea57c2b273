"""``benchmarks/decision_transfer.py``: does a small study order arms as a larger one does?"""

from __future__ import annotations

from pathlib import Path

import decision_transfer
import numpy as np
import pytest
from pandas import DataFrame

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import write_lines

pytestmark = pytest.mark.script

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def records(scores, *, loss=3.0, missing=None):
    """Records of a study of arms "a0", "a1", … with these scores (arms, seeds)."""
    lines = []
    for arm, row in enumerate(scores):
        for seed, score in enumerate(row):
            run = {"arm": f"a{arm}", "seed": seed}
            if (arm, seed) != missing:
                lines.append(run | {"kind": "task", "measure": "t", "value": score})
            mask = {"kind": "heldout", "measure": "token", "ratio": 0.15}
            lines.append(run | mask | {"value": loss - score})
            lines.append(run | mask | {"value": 5.0, "split": "unigram"})
    start = {"arm": "no-pretraining", "seed": 0, "kind": "task", "measure": "t", "value": 9.0}
    lines.append(start)
    return lines


def test_orders_of_equal_arms_are_rarely_seen() -> None:
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(400):
        luck = rng.normal(size=(1, 4))
        signs = decision_transfer.ordered(DataFrame(luck + rng.normal(size=(10, 4))))
        seen.append(np.abs(signs.to_numpy()[np.triu_indices(10, 1)]).mean())
    assert np.mean(seen) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("sign", "kept"), [(1, 28), pytest.param(-1, 0, marks=pytest.mark.slow)])
def test_two_studies_with_equal_or_opposite_orders(tmp_path: Path, sign: int, kept: int) -> None:
    rng = np.random.default_rng(2)
    for name, way in (("small", sign), ("large", 1)):
        scores = way * np.arange(8.0)[:, None] + rng.normal(scale=0.1, size=(8, 4))
        write_lines(tmp_path / name / "records.jsonl", records(scores))
    [line] = decision_transfer.main([tmp_path / "small", tmp_path / "large"])
    assert (line["small"], line["arms"]) == ("small, 1 of the steps", 8)
    assert line["ordered_pairs"] == 28
    for proxy in ("tasks", "held-out loss, token"):
        assert line[proxy]["same_order"] == kept
        assert line[proxy]["without_an_arm"]["a0"] == [21 * kept // 28, 21]
        assert line[proxy]["interval"] is None


def test_an_arm_that_only_one_study_has_is_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name, arms in (("small", 6), ("large", 4)):
        scores = np.arange(float(arms))[:, None] + rng.normal(scale=0.01, size=(arms, 4))
        write_lines(tmp_path / name / "records.jsonl", records(scores, loss=9.0))
    [line] = decision_transfer.main([tmp_path / "small", tmp_path / "large"])
    assert (line["arms"], line["ordered_pairs"], line["tasks"]["same_order"]) == (4, 6, 6)
    # The gain over word frequencies is 5 − (9 − score), which is below .3 for scores below 4.3.
    assert line["near_word_frequencies"] == ["a0", "a1", "a2", "a3"]


def test_noise_keeps_about_half_of_the_orders() -> None:
    rng = np.random.default_rng(3)
    large = DataFrame(np.arange(10.0)[:, None] + rng.normal(size=(10, 4)) / 10)
    noise = DataFrame(rng.normal(size=(10, 4)))
    low, high = decision_transfer.interval(noise, decision_transfer.ordered(large))
    assert low < 0.5 < high and high - low > 0.2


def test_missing_runs_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "records.jsonl", records(np.ones((3, 4)), missing=(1, 2)))
    with pytest.raises(MaskwiseError, match=r"runs without all their values; got .*a1.*2"):
        decision_transfer.main([tmp_path])


def test_three_ordered_pairs_of_a_recorded_study_cannot_tell() -> None:
    [line] = decision_transfer.main([RESULTS / "decay-replication"])
    assert (line["arms"], line["ordered_pairs"]) == (4, 3)
    assert line["tasks"] == line["held-out loss, token"] == "cannot tell"
    assert len(line["near_word_frequencies"]) == 4
