"""Values at the edge of what is allowed, where a wrong comparison would go unseen elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from invented import world
from masking_tools import CLS, FIRST, SEP, line, tokenizer
from maskwise.base.errors import MaskwiseError
from maskwise.masking import IGNORE, Masker, schedules
from maskwise.masking.draws import fold
from maskwise.masking.units import FILLING, LIGHTEST, runs
from maskwise.samplers import Mometas, MometasPlus
from maskwise.tasks import finetuning, load_task
from maskwise.tasks.settings import FinetuneSettings
from maskwise.training.engine import Engine

LENGTH = 24


def ragged(count: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows of different lengths, [CLS] … [SEP]."""
    rows = []
    for number in range(count):
        inner = [FIRST + (7 * number + i) % 50 for i in range(LENGTH - 2 - number % 5)]
        rows.append({"input_ids": [CLS, *inner, SEP], "example_id": number, **columns})
    return rows


# Rows


@pytest.mark.parametrize("equally_long", [True, False])
def test_a_row_s_own_attention_mask_is_kept(equally_long: bool) -> None:
    rows = ragged(8)
    for row in rows:
        if equally_long:
            row["input_ids"] = row["input_ids"][: LENGTH - 6]
        visible = np.ones(len(row["input_ids"]), int)
        visible[10:14] = 0
        row["attention_mask"] = visible.tolist()
    batch = Masker(tokenizer(), ratio=0.9, seed=0)(rows)
    for row, mask, labels in zip(rows, batch["attention_mask"], batch["labels"], strict=True):
        length = len(row["input_ids"])
        assert mask[:length].tolist() == row["attention_mask"]
        assert not mask[length:].any()
        assert (labels[10:14] == IGNORE).all() and (labels != IGNORE).any()


@pytest.mark.parametrize("share", [1e-6, 0.01])
def test_a_small_predict_leaves_one_label_in_each_row(share: float) -> None:
    batch = Masker(tokenizer(), ratio=0.5, predict=share, seed=0)(ragged(16))
    assert (batch["labels"] != IGNORE).sum(1).tolist() == [1] * 16
    none = Masker(tokenizer(), ratio=0.5, predict=0.0, seed=0)(ragged(16))
    assert (none["labels"] == IGNORE).all()


# Schedules and weights


@pytest.mark.parametrize("ratio", [1.005, -0.005, 1 + 1e-6])
def test_a_ratio_just_outside_is_refused(ratio: float) -> None:
    with pytest.raises(MaskwiseError, match="0 to 1"):
        schedules.schedule(lambda step, total: ratio)(0, 10)
    with pytest.raises(MaskwiseError, match="0 to 1"):
        schedules.Schedule("mine", lambda f, draw_P: ratio)


@pytest.mark.parametrize("ratio", [1 + 1e-12, -1e-12])
def test_a_rounding_error_outside_is_clipped(ratio: float) -> None:
    for made in (
        schedules.schedule(lambda step, total: ratio),
        schedules.Schedule("mine", lambda f, draw_P: ratio),
    ):
        assert made(0, 10) == round(ratio)
        assert made.rows(np.array([0.5]), 0, 10) == round(ratio)


def test_units_without_weight_come_after_the_lightest() -> None:
    batch = line(1, 12)
    units = runs(batch, np.where(batch.content, np.arange(len(batch.content)), -1))
    weight = np.zeros(len(units.piece))
    weight[:3] = 1e-305, LIGHTEST / 4, 1.0
    filled = units.weighted(weight).filled().weight
    assert filled is not None
    # Far enough apart that draws cannot turn the order round.
    assert filled[:2].tolist() == [LIGHTEST] * 2 and filled[2] == 1
    assert (filled[3:] == FILLING).all() and filled[:3].min() / filled[3] >= 2.0**99


# Objectives and training


def test_each_rank_has_its_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seeded(Exception):
        pass

    def seen(seed: int) -> None:
        raise Seeded(seed)

    seeds = set()
    monkeypatch.setattr("maskwise.training.engine.torch.manual_seed", seen)
    for rank in range(4):
        for number in range(3):
            engine: Any = SimpleNamespace(
                settings=SimpleNamespace(seed=5), rank=rank, states=None, number=number
            )
            with pytest.raises(Seeded) as caught:
                Engine.update(engine, engine, lambda *_: None)
            (seed,) = caught.value.args
            assert seed == fold(5, number, rank, 0xD0)
            seeds.add(seed)
    assert len(seeds) == 12


# Samplers


def drive(sampler: Any, rewards: list[float]) -> torch.Tensor:
    """Update after rollouts that draw the first arm alone, the second alone, in turn, …"""
    for number, reward in enumerate(rewards):
        drawn = sampler.objectives[number % len(sampler.objectives)]
        sampler.rollout = {number * sampler.every + step: drawn for step in range(sampler.every)}
        sampler.update([1.0] * len(sampler.objectives), [1.0 - reward] * len(sampler.objectives))
    return sampler.logits


@pytest.mark.parametrize("arms", [2, 3, 5])
def test_mometas_plus_needs_more_rollouts_than_arms(arms: int) -> None:
    """A regression through as many points as it has slopes explains all of them."""
    names = list("abcde")[:arms]
    draws = np.random.default_rng(arms).normal(size=arms + 1)
    sampler = MometasPlus(names, every=4, memory=1e9, seed=0)
    assert drive(sampler, draws.tolist()).abs().max() == 0
    # An arm that helps is found as soon as there are more.
    clear = [1.0 if number % arms == 0 else 0.0 for number in range(8 * arms)]
    assert drive(MometasPlus(names, every=4, memory=1e9, seed=0), clear)[0] > 0


def test_one_rollout_more_than_arms_is_hardly_evidence() -> None:
    """Its one degree of freedom explains noise as a rule; with as many as rollouts, noise would
    move the logits in 57 of 60 runs.
    """
    moved = 0
    for seed in range(60):
        noise = 0.1 * np.random.default_rng(seed).normal(size=7)
        sampler = MometasPlus(list("abcde"), every=4, memory=1e9, seed=0)
        moved += int(drive(sampler, noise.tolist()).abs().max() > 0)
    assert moved < 40


def test_an_arm_without_a_loss_has_diverged() -> None:
    sampler = Mometas(["a", "b"], seed=0)
    vector = sampler.vector({"b": 2.0})
    assert vector[0].isnan() and vector[1] == 2
    _, diverged = sampler.gained({"a": 1.0, "b": 2.0}, {"b": 2.0})
    assert diverged == ["a"]


# Fine-tuning


@pytest.mark.parametrize("metric", ["nats", "exact-match"])
def test_the_best_rate_is_the_lowest_where_lower_is_better(metric: str) -> None:
    task = load_task(world("factworld(people=40)").task("generation", metric=metric))
    settings = FinetuneSettings(learning_rate=1e-3, search_rate=True, steps=2)
    rates = [*finetuning.trials_of(task, settings)]
    found = finetuning.best_rate(task, {rate: cast("Any", {"dev": rate}) for rate in rates})
    assert found == (min(rates) if metric == "nats" else max(rates))
    assert len(rates) > 2
