"""Fine-tuning that is asked for again, and rates that diverge."""

from __future__ import annotations

import math
from typing import Any

import pytest

from maskwise.study.single import run_finetune
from maskwise.tasks import FinetuneSettings, evaluate_tasks, judge, load_task
from maskwise.training.log import NotFinite

TASKS = ["banking77(train_rows=20)", "trivia(train_rows=20)"]


class Tuner:
    """Stands in for ``judge.finetune``: counts its calls, and diverges at high rates or on one
    task.
    """

    def __init__(self, *, most: float = math.inf, fails: str = ""):
        self.calls: list[tuple[str, float]] = []
        self.most = most
        self.fails = fails

    def __call__(self, checkpoint: object, task: Any, *, settings: Any, **_: object) -> Any:
        self.calls.append((task.name, settings.learning_rate))
        if task.name == self.fails:
            raise KeyboardInterrupt
        if settings.learning_rate > self.most:
            raise NotFinite("the loss is not finite at step 3", got=math.nan)
        score = {"dev": 0.5, "score": 0.5, "majority": 0.1, "lost_words": 0}
        return score | {"others": {}, "notes": [], "items": [[0.5, 1.0]], "counts": None}


@pytest.fixture
def again(monkeypatch, tmp_path):
    """Fine-tune in one folder, with a tuner and settings."""

    def finetuned(tuner: Tuner, *overrides: str, seeds: int = 2) -> list[Any]:
        monkeypatch.setattr(judge, "finetune", tuner)
        settings = ["steps=2", *overrides]
        return run_finetune(
            "bundled:encoder", TASKS, settings, seeds=seeds, out=tmp_path, quiet=True
        )

    return finetuned


@pytest.mark.parametrize(
    ("overrides", "seeds", "calls"),
    [((), 2, 0), ((), 3, 6), (("max_length=32",), 2, 4)],
)
def test_only_another_fine_tuning_is_trained_again(overrides, seeds, calls, again):
    first, other = Tuner(), Tuner()
    records = again(first)
    assert len(first.calls) == 4
    assert (again(other, *overrides, seeds=seeds) == records) == (not calls)
    assert len(other.calls) == calls


def test_a_stopped_fine_tuning_goes_on_with_the_tasks_that_are_left(
    again,
):
    with pytest.raises(KeyboardInterrupt):
        again(Tuner(fails="trivia"))
    rest = Tuner()
    records = again(rest)
    assert {name for name, _ in rest.calls} == {"trivia"}
    assert [record["task"] for record in records] == ["banking77", "trivia"]


def test_other_weights_are_judged_anew(tmp_path):
    task = load_task(TASKS[0])
    made = []
    for weights in ("1", "1", "2"):
        (tmp_path / "weights").write_text(weights)
        made.append(judge._made_of(tmp_path, [task], FinetuneSettings(), 3))
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("most", [2e-3, 5e-4, 0])
def test_a_rate_that_diverges_loses_unless_every_rate_does(monkeypatch, most):
    tuner = Tuner(most=most)
    monkeypatch.setattr(judge, "finetune", tuner)
    settings = FinetuneSettings(learning_rate=1e-3, search_rate=True, seeds=1)
    if not most:
        with pytest.raises(NotFinite):
            evaluate_tasks("bundled:encoder", TASKS[:1], settings=settings)
        return
    (record,) = evaluate_tasks("bundled:encoder", TASKS[:1], settings=settings)
    assert tuner.calls[-1][1] <= most and all(float(rate) <= most for rate in record["tried"])
    assert any("0.003" in note for note in record["notes"])
