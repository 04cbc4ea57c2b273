"""The drop-in collator: the step travels with the data, through 0 or 2 workers and any batch
split.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from masking_tools import FIRST, PAD, masker, random_rows, row
from maskwise import PackedCollator
from maskwise.base.errors import MaskwiseError
from maskwise.masking import (
    IGNORE,
    Masker,
    MaskingCollator,
    StepBatchSampler,
    SteppedDataset,
    schedules,
)
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule

ROWS = [
    {k: v for k, v in r.items() if k in ("input_ids", "word_ids")}
    for r in random_rows(24, words=10)
]
# rows of one length
EVEN = [{"input_ids": row([1] * 40, example_id=i)["input_ids"]} for i in range(24)]


def load(
    data: list, made: Masker, *, workers: int = 0, total_steps: int | None = None, **order: Any
) -> list[dict]:
    sampler = StepBatchSampler(len(data), **order)
    collate = MaskingCollator(made, total_steps=total_steps)
    return list(
        DataLoader(
            SteppedDataset(data), batch_sampler=sampler, collate_fn=collate, num_workers=workers
        )
    )


def by_text(batches: list[dict]) -> dict[tuple, tuple]:
    """{the row as it was: how it is shown}."""
    out = {}
    for batch in batches:
        for shown, label in zip(batch["input_ids"], batch["labels"], strict=True):
            text = torch.where(label != IGNORE, label, shown)
            inside = text != PAD
            out[tuple(text[inside].tolist())] = (shown[inside].tolist(), label[inside].tolist())
    return out


@pytest.mark.parametrize("policy", ["token", "whole-word"])
def test_workers_and_batch_split_do_not_matter(policy: str) -> None:
    made = masker(policy, seed=4)
    reference = by_text(load(ROWS, made, batch_size=8))
    assert len(reference) == 24
    assert by_text(load(ROWS, made, batch_size=8, workers=2)) == reference
    for split in (
        {"batch_size": 1},
        {"batch_size": 12},
        {"batch_size": 3, "accumulate": 4},
        {"batch_size": 24, "seed": 9},
    ):
        assert by_text(load(ROWS, made, **split)) == reference
    halves = [by_text(load(ROWS, made, batch_size=4, ranks=2, rank=rank)) for rank in (0, 1)]
    assert not halves[0].keys() & halves[1].keys() and halves[0] | halves[1] == reference
    other_epoch = by_text(load(ROWS, made, batch_size=8, epochs=2, first_step=3))
    assert other_epoch.keys() == reference.keys() and other_epoch != reference


@pytest.mark.parametrize("workers", [0, 2])
def test_the_schedule_acts_at_the_right_step(workers: int) -> None:
    made = masker(ratio=schedules.linear(0.8, 0.2))
    batches = load(EVEN, made, batch_size=8, epochs=2, workers=workers, total_steps=6)
    shares = [float((b["labels"] != IGNORE).double().mean() * 42 / 40) for b in batches]
    assert shares == pytest.approx([0.8 - 0.1 * step for step in range(6)], abs=0.01)
    rest = load(EVEN, made, batch_size=8, epochs=2, first_step=4, workers=workers, total_steps=6)
    assert len(rest) == 2, "resumed"
    for a, b in zip(batches[4:], rest):
        assert torch.equal(a["input_ids"], b["input_ids"]) and torch.equal(a["labels"], b["labels"])


def test_without_step_or_epoch_masks_are_dynamic_after_one_warning() -> None:
    named = [r | {"example_id": i} for i, r in enumerate(EVEN)]
    collate = MaskingCollator(masker())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = collate(named), collate(named)
    assert len(caught) == 1 and "the rows have no column step or no column epoch" in str(
        caught[0].message
    )
    assert not torch.equal(first["labels"], second["labels"])
    changing = MaskingCollator(masker(ratio="linear(0.3, 0.1)"), total_steps=10)
    with pytest.warns(UserWarning, match="a schedule counts all batches"):
        shares = [float((changing(named)["labels"] != IGNORE).double().mean()) for _ in range(10)]
    assert shares[0] > 2 * shares[-1]
    with pytest.warns(UserWarning, match="no column step or no column epoch"):
        MaskingCollator(masker())([r | {"step": 3} for r in named])


def test_loaders_that_start_their_workers_anew_still_give_new_masks() -> None:
    named = [r | {"example_id": i} for i, r in enumerate(EVEN)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = DataLoader(
            named, batch_size=12, collate_fn=MaskingCollator(masker()), num_workers=2
        )
        first, second = (torch.cat([b["labels"] for b in loader]) for _ in range(2))
    assert not torch.equal(first, second)
    assert ((first != IGNORE) & (second != IGNORE)).double().sum() < 0.4 * (first != IGNORE).sum()


def falling(step: int, total: int) -> float:
    return max(0.1, 1 - step / 8)


MIXED = "mixture(token, whole-word, shares=(linear(1, 0), 0.5))"


@pytest.mark.parametrize(
    "settings",
    [{"ratio": falling}, {"predict": falling}, {"policy": MIXED}],
    ids=["ratio", "predict", "policy"],
)
def test_workers_count_the_steps_of_nothing_that_changes(settings: dict[str, Any]) -> None:
    """Functions began again in every epoch, without a word."""
    if "policy" in settings:
        settings = {"policy": policy(MIXED)}
        settings["policy"] = replace(settings["policy"], shares=(schedule(falling), schedule(0.5)))
        assert not settings["policy"].needs_total and settings["policy"].varies
    named = [r | {"example_id": i} for i, r in enumerate(EVEN)]
    collate = MaskingCollator(masker(**settings), total_steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MaskwiseError, match="cannot count the steps of a schedule"):
            next(iter(DataLoader(named, batch_size=12, collate_fn=collate, num_workers=1)))


def test_workers_do_not_begin_a_schedule_again_in_every_epoch() -> None:
    """New workers counted from 0: four epochs from 100 to 0 % each masked 89 %."""
    named = [r | {"example_id": i} for i, r in enumerate(EVEN)]
    collate = MaskingCollator(masker(ratio="linear(1.0, 0.0)"), total_steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MaskwiseError, match="cannot count the steps of a schedule"):
            next(iter(DataLoader(named, batch_size=12, collate_fn=collate, num_workers=1)))
        shares = []
        for _ in range(4):
            for batch in DataLoader(named, batch_size=12, collate_fn=collate):
                shares.append(float((batch["labels"] != IGNORE).double().mean()))
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.9 and shares[-1] < 0.2


def test_complementary_masks_need_a_true_epoch_in_workers_too() -> None:
    named = [r | {"example_id": i} for i, r in enumerate(EVEN)]
    collate = MaskingCollator(masker(visits="complement"))
    for workers in (0, 1):
        loader = DataLoader(named, batch_size=12, collate_fn=collate, num_workers=workers)
        said = "needs the epoch.*use StepBatchSampler and SteppedDataset"
        with pytest.raises(MaskwiseError, match=said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            next(iter(loader))
    named = [row | {"epoch": 1, "step": 0} for row in named]
    assert collate(named)["labels"].shape[0] == len(named)


def test_packed_rows_are_said_to_lose_their_documents() -> None:
    ids = torch.randint(10, 20, (2, 12))
    names = torch.arange(4).repeat_interleave(6).view(2, 12)
    rows = {"input_ids": ids, "example_id": names, "step": 0, "epoch": 0}
    with pytest.warns(UserWarning, match="reads a packed row as one text"):
        MaskingCollator(masker())(rows)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [list(StepBatchSampler(24, batch_size=8, seed=s, epochs=2)) for s in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert [b[0][1:] for b in orders[0]] == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    for epoch in (orders[0][:3], orders[0][3:]):
        assert sorted(index for batch in epoch for index, _, _ in batch) == list(range(24))
    assert len(StepBatchSampler(25, batch_size=8, epochs=2, first_step=4)) == 2
    resumed = StepBatchSampler(24, batch_size=8, epochs=2, first_step=4)
    assert list(resumed) == orders[0][4:]
    # A schedule ends where it would have ended without the interruption.
    assert resumed.total_steps == 6 and len(resumed) == 2
    parts = StepBatchSampler(24, batch_size=4, epochs=2, accumulate=2)
    assert parts.total_steps == 6 and len(parts) == 12


def test_refusals() -> None:
    with pytest.raises(
        MaskwiseError,
        match="too few rows for one step; got 10; allowed: at least 4 × 2 ranks × 2",
    ):
        StepBatchSampler(10, batch_size=4, ranks=2, accumulate=2)
    mixed = [{"input_ids": [FIRST], "example_id": i, "step": i, "epoch": 0} for i in range(2)]
    with pytest.raises(MaskwiseError, match="differ in 'step'"):
        MaskingCollator(masker())(mixed)


def test_steps_behind_the_last_are_told_once() -> None:
    row = {"input_ids": [FIRST] * 8, "example_id": 0, "epoch": 0}
    collate = MaskingCollator(masker(ratio="linear(0.3, 0.1)"), total_steps=2)
    fixed = MaskingCollator(masker(), total_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (0, 1):
            collate([{**row, "step": step}])
        fixed([{**row, "step": 5}])
    with pytest.warns(UserWarning, match="step 2 is not below total_steps=2"):
        collate([{**row, "step": 2}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collate([{**row, "step": 3}])


def test_prebatched_tensors_are_masked_like_rows() -> None:
    from masking_tools import tokenizer

    masker = Masker(tokenizer(), ratio=0.5)
    ids = torch.randint(10, 20, (4, 12))
    rows = [
        {"input_ids": one, "example_id": i, "step": 3, "epoch": 1}
        for i, one in enumerate(ids.tolist())
    ]
    batch = {
        "input_ids": ids,
        "example_id": torch.arange(4),
        "step": torch.full((4,), 3),
        "epoch": 1,
    }
    collator = MaskingCollator(masker)
    assert torch.equal(collator(rows)["input_ids"], collator(batch)["input_ids"])


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": "linear(0.3, 0.1)"},
        {"predict": "linear(1, 0.5)"},
        {"policy": "mixture(token, span, shares=(linear(1, 0), linear(0, 1)))"},
    ],
)
def test_a_schedule_without_the_number_of_steps_fails_before_the_workers(settings: dict) -> None:
    for make in (MaskingCollator, PackedCollator):
        with pytest.raises(MaskwiseError, match=r"total_steps=.*MaskingTrainer"):
            make(masker(**settings))
    MaskingCollator(masker(**settings), total_steps=3)
    # A user's function can do without the total.
    MaskingCollator(masker(ratio=lambda step, total: 0.2))
    MaskingCollator(masker(ratio="uniform(0.1, 0.2)"))


@pytest.mark.parametrize("corruption", ["bert", "t5"])
def test_batches_are_padded_to_a_multiple(corruption: str) -> None:
    rows = [row([1, 2, 1], example_id=1), row([1] * 9, example_id=2)]
    rows = [each | {"step": 0, "epoch": 0} for each in rows]
    made = masker("t5-span" if corruption == "t5" else "token", corruption, ratio=0.3)
    plain = MaskingCollator(made)(rows)
    padded = MaskingCollator(made, pad_to_multiple_of=8)(rows)
    assert {values.shape[1] % 8 for values in padded.values()} == {0}
    fills = {"input_ids": made.vocabulary.pad, "labels": IGNORE, "attention_mask": 0}
    for name, values in plain.items():
        width = values.shape[1]
        assert torch.equal(padded[name][:, :width], values)
        assert (padded[name][:, width:] == fills[name]).all()


def test_rows_of_one_length_get_an_attention_mask_with_their_padding() -> None:
    rows = [row([1] * 3, example_id=n) | {"step": 0, "epoch": 0} for n in range(2)]
    plain = MaskingCollator(masker())(rows)
    assert "attention_mask" not in plain
    padded = MaskingCollator(masker(), pad_to_multiple_of=8)(rows)
    assert padded["attention_mask"].sum(1).tolist() == [plain["input_ids"].shape[1]] * 2
    # A batch that needs no padding has one, too: a compiled model has one graph for both.
    width = plain["input_ids"].shape[1]
    fitting = MaskingCollator(masker(), pad_to_multiple_of=width)(rows)
    assert fitting.keys() == padded.keys() and fitting["attention_mask"].all()
    with pytest.raises(MaskwiseError, match="pad_to_multiple_of"):
        MaskingCollator(masker(), pad_to_multiple_of=0)
