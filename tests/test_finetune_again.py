"""Fine-tuning that is asked for again, and rates that diverge."""

from __future__ import annotations

import math
from pathlib import Path
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

    def __call__(
        self, checkpoint: object, task: Any, *, settings: Any, **_: object
    ) -> dict[str, Any]:
        self.calls.append((task.name, settings.learning_rate))
        if task.name == self.fails:
            raise KeyboardInterrupt
        if settings.learning_rate > self.most:
            raise NotFinite("the loss is not finite at step 3", got=math.nan)
        return {
            "dev": 0.5,
            "score": 0.5,
            "others": {},
            "majority": 0.1,
            "lost_words": 0,
            "notes": [],
            "items": None,
            "counts": None,
        }


def finetuned(
    monkeypatch: pytest.MonkeyPatch, out: Path, tuner: Tuner, *overrides: str, seeds: int = 2
) -> list[Any]:
    monkeypatch.setattr(judge, "finetune", tuner)
    return run_finetune(
        "bundled:encoder", TASKS, ["steps=2", *overrides], seeds=seeds, out=out, quiet=True
    )


def test_a_finished_fine_tuning_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = Tuner(), Tuner()
    records = finetuned(monkeypatch, tmp_path, first)
    assert len(first.calls) == 4
    assert finetuned(monkeypatch, tmp_path, again) == records and again.calls == []


@pytest.mark.parametrize("changed", [{"seeds": 3}, {"overrides": ["max_length=32"]}])
def test_another_fine_tuning_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    finetuned(monkeypatch, tmp_path, Tuner())
    other = Tuner()
    seeds = changed.get("seeds", 2)
    finetuned(monkeypatch, tmp_path, other, *changed.get("overrides", ()), seeds=seeds)
    assert len(other.calls) == 2 * seeds


def test_a_stopped_fine_tuning_goes_on_with_the_tasks_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetuned(monkeypatch, tmp_path, Tuner(fails="trivia"))
    rest = Tuner()
    records = finetuned(monkeypatch, tmp_path, rest)
    assert {name for name, _ in rest.calls} == {"trivia"} and [r["task"] for r in records] == [
        "banking77",
        "trivia",
    ]


def test_other_weights_are_judged_anew(tmp_path: Path) -> None:
    task = load_task(TASKS[0])
    (tmp_path / "weights").write_text("1")
    before = judge._made_of(tmp_path, [task], FinetuneSettings(), 3)
    assert judge._made_of(tmp_path, [task], FinetuneSettings(), 3) == before
    (tmp_path / "weights").write_text("2")
    assert judge._made_of(tmp_path, [task], FinetuneSettings(), 3) != before


@pytest.mark.parametrize("most", [2e-3, 5e-4])
def test_a_rate_that_diverges_loses(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    tuner = Tuner(most=most)
    monkeypatch.setattr(judge, "finetune", tuner)
    settings = FinetuneSettings(learning_rate=1e-3, search_rate=True, seeds=1)
    (record,) = evaluate_tasks("bundled:encoder", TASKS[:1], settings=settings)
    assert tuner.calls[-1][1] <= most and all(float(rate) <= most for rate in record["tried"])
    assert any("0.003" in note for note in record["notes"])


def test_where_every_rate_diverges_the_error_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "finetune", Tuner(most=0))
    settings = FinetuneSettings(learning_rate=1e-3, search_rate=True, seeds=1)
    with pytest.raises(NotFinite):
        evaluate_tasks("bundled:encoder", TASKS[:1], settings=settings)
