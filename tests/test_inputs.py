"""What people hand over by mistake is refused in one line; what they hand over in another form is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from masking_tools import FIRST, masker, row, vocabulary
from maskwise import Masker
from maskwise.errors import MaskwiseError
from maskwise.masking.collator import MaskingCollator, StepBatchSampler, SteppedDataset

IDS = row([2, 1])["input_ids"]
LENGTH = len(IDS)


def one(**more: object) -> dict[str, Any]:
    """One row with more columns."""
    return {"input_ids": IDS, "example_id": 0, **more}


def refused(call: Callable[[], object], *facts: str) -> None:
    """The call raises a ``MaskwiseError`` of one short line that names these facts."""
    with pytest.raises(MaskwiseError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for fact in facts:
        assert fact in message, f"{fact!r} is not in {message!r}"


def test_a_column_that_only_later_rows_have_is_refused_and_not_dropped() -> None:
    layers = {
        "attention_mask": [1] * (LENGTH - 1) + [0],
        "special_tokens_mask": [0] * LENGTH,
        "token_type_ids": [0] * LENGTH,
        "word_ids": [0] * LENGTH,
        "prompt": np.zeros(LENGTH, int),
    }
    for name, value in layers.items():
        later = [one(), one(**{name: value})]
        refused(lambda rows=later: masker()(rows, epoch=0), repr(name), "nothing in row 0")  # type: ignore[misc]
        earlier = [one(**{name: value}), one(), one(**{name: None})]
        refused(lambda rows=earlier: masker()(rows, epoch=0), repr(name), "nothing in row 1")  # type: ignore[misc]
    named, nameless = one(), {"input_ids": IDS}
    refused(lambda: masker()([nameless, named], epoch=0), "example_id", "nothing in row 0")
    refused(lambda: masker()([named, nameless], epoch=0), "example_id", "nothing in row 1")
    refused(lambda: masker()([one(w=[1] * LENGTH), one(w=3)], epoch=0), "'w'", "a single value in row 1")
    refused(lambda: masker()([one(w=["a"]), one(w=[1] * LENGTH)], epoch=0), "'w'", "text in row 0")


def test_columns_that_nobody_reads_may_differ_between_rows() -> None:
    plain = masker()([one(), one(example_id=1)], epoch=0)
    odd = [
        one(title="The cat", score=None, tags=[]),
        one(example_id=1, title=None, score=0.5, tags=["a"], source={"year": 1999}),
    ]
    made = masker()(odd, epoch=0)
    assert torch.equal(made.input_ids, plain.input_ids) and not made.source.layers


def test_rows_without_any_names_are_keyed_by_content_and_names_of_text_are_refused() -> None:
    with pytest.warns(UserWarning, match="no example_id"):
        masker()([{"input_ids": IDS}, {"input_ids": IDS}], epoch=0)
    for rows in ([one(example_id="a")], {"input_ids": torch.tensor([IDS]), "example_id": ["a"]}):
        refused(lambda rows=rows: masker()(rows, epoch=0), "example_id", "text")  # type: ignore[misc]


def test_rows_without_tokens_need_no_type() -> None:
    empty: dict[str, Any] = {"input_ids": [], "example_id": 0, "word_ids": [], "attention_mask": []}
    stacked = {name: torch.tensor([value]) for name, value in empty.items() if name != "example_id"}
    for rows in ([empty], [one(word_ids=[0] * LENGTH, attention_mask=[1] * LENGTH), empty], stacked):
        for policy in ("token", "whole-word"):
            masker(policy)(rows, epoch=0)  # type: ignore[arg-type]


TENSOR = torch.tensor([IDS])
ONES = torch.ones(1, LENGTH)
ROWS: list[tuple[object, str]] = [
    ("the cat", "str"),
    (None, "NoneType"),
    (5, "int"),
    ([1, 2], "int in row 0"),
    ([one(), IDS], "list in row 1"),
    (TENSOR, "Tensor"),
    ([{"a": 1, 5: 2}], "columns a, 5"),
    ({"a": 1, 5: 2}, "columns a, 5"),
    ([one(input_ids=5)], "int in row 0"),
    ([one(), one(input_ids=torch.tensor(5))], "Tensor in row 1"),
    ([one(input_ids=TENSOR)], "2 dimensions"),
    ([one(input_ids=[IDS])], "2 dimensions"),
    ([one(input_ids="the cat")], "text"),
    ([one(input_ids=iter(IDS))], "list_iterator in row 0"),
    ([one(input_ids=[FIRST, None])], "'input_ids'"),
    ([one(input_ids=[2**70])], "64 bits"),
    ([one(example_id=True)], "bool"),
    ([one(example_id=1.5)], "float64"),
    ([one(example_id=2**70)], "64 bits"),
    ({"input_ids": TENSOR, "w": ONES.to(torch.bfloat16)}, "bfloat16"),
    ({"input_ids": TENSOR, "w": ONES.to_sparse()}, "sparse"),
    ({"input_ids": TENSOR, "w": ONES.to("meta")}, "meta"),
    ({"input_ids": TENSOR.to("meta")}, "meta"),
    ([one(w=ONES[0].to(torch.bfloat16))], "bfloat16"),
]


@pytest.mark.parametrize(("rows", "got"), ROWS, ids=[f"{n}-{got}" for n, (_, got) in enumerate(ROWS)])
def test_what_is_no_batch_of_rows_is_refused(rows: object, got: str) -> None:
    refused(lambda: masker()(rows, epoch=0), got)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0.5, 1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["attention_mask", "special_tokens_mask", "token_type_ids", "position_ids"])
def test_columns_of_whole_numbers_take_no_floats(name: str, bad: float) -> None:
    refused(lambda: masker()([one(**{name: [bad] * LENGTH})], epoch=0), repr(name), "float64")
    stacked = {"input_ids": TENSOR, "example_id": torch.tensor([0]), name: torch.full((1, LENGTH), bad)}
    refused(lambda: masker()(stacked, epoch=0), repr(name), "float32")


@pytest.mark.parametrize("bad", [0.5, 1.0, math.nan])
@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("whole-word", "word_ids"),
        ("span", "word_ids"),
        ("guided", "salient"),
        ("salient", "salient"),
        ("sentence", "sentence"),
        ("group-weighted(layer='pos', groups=3)", "pos"),
        ("weighted(units='chunk')", "chunk"),
        ("weighted", "word_ids"),
    ],
)
def test_layers_that_number_units_take_no_floats(policy: str, name: str, bad: float) -> None:
    layers: dict[str, Any] = {"word_ids": [0] * LENGTH, "weight": [0.5] * LENGTH, name: [bad] * LENGTH}
    refused(lambda: masker(policy)([one(**layers)], epoch=0), repr(name), "float64")
    refused(lambda: masker(keep=name)([one(**layers)], epoch=0), repr(name), "float64")
    layers[name] = [0] * LENGTH
    assert masker(policy, ratio=1.0)([one(**layers)], epoch=0).targets


WHOLE: list[tuple[str, Callable[[Any], object], int]] = [
    ("seed", lambda x: masker(seed=x), 0),
    ("min_targets", lambda x: masker(min_targets=x), 0),
    ("step", lambda x: masker()([one()], step=x), 0),
    ("epoch", lambda x: masker()([one()], epoch=x), 0),
    ("total_steps", lambda x: masker()([one()], epoch=0, total_steps=x), 0),
    ("total_steps", lambda x: MaskingCollator(masker(), total_steps=x), 1),
    ("step", lambda x: MaskingCollator(masker())([one(step=x, epoch=0)]), 0),
    ("epoch", lambda x: MaskingCollator(masker())([one(step=0, epoch=x)]), 0),
    ("size", lambda x: StepBatchSampler(x, batch_size=2), 2),
    ("batch_size", lambda x: StepBatchSampler(20, batch_size=x), 1),
    ("seed", lambda x: StepBatchSampler(20, batch_size=2, seed=x), 0),
    ("epochs", lambda x: StepBatchSampler(20, batch_size=2, epochs=x), 0),
    ("first_step", lambda x: StepBatchSampler(20, batch_size=2, first_step=x), 0),
    ("rank", lambda x: StepBatchSampler(20, batch_size=2, ranks=3, rank=x), 0),
    ("ranks", lambda x: StepBatchSampler(20, batch_size=2, ranks=x), 1),
    ("accumulate", lambda x: StepBatchSampler(20, batch_size=2, accumulate=x), 1),
]


@pytest.mark.parametrize(("name", "call", "least"), WHOLE, ids=[f"{n}-{w[0]}" for n, w in enumerate(WHOLE)])
def test_whole_numbers_are_whole_and_in_their_range(name: str, call: Callable[[Any], object], least: int) -> None:
    for bad in (1.7, 2.0, "3", [1], math.nan, True):
        refused(lambda bad=bad: call(bad), name, repr(bad), "a whole number")  # type: ignore[misc]
    if name != "seed":
        refused(lambda: call(least - 1 if name != "size" else -1), name, str(-1 if name == "size" else least - 1))
    call(np.int64(least))
    call(least)


def test_a_sampler_of_a_rank_that_is_not_there_is_refused() -> None:
    for rank in (-1, 2, 5):
        refused(lambda rank=rank: StepBatchSampler(20, batch_size=2, rank=rank, ranks=2), str(rank), "0 to 1")  # type: ignore[misc]
    shares = [list(StepBatchSampler(20, batch_size=2, rank=rank, ranks=2)) for rank in (0, 1)]
    assert all(len(batch) == 2 for share in shares for batch in share)


def test_steps_of_rows_may_be_tensors_of_one_number() -> None:
    made = MaskingCollator(masker(ratio="linear(0.9, 0.1)"), total_steps=9)
    plain = made([one(step=4, epoch=0), one(step=4, epoch=0)])
    four, none = torch.tensor(4), torch.tensor(0)
    for rows in (
        [one(step=four, epoch=none), one(step=four, epoch=none)],
        {"input_ids": TENSOR.repeat(2, 1), "example_id": [0, 0], "step": torch.tensor([4, 4]), "epoch": [0, 0]},
    ):
        assert torch.equal(made(rows)["labels"], plain["labels"])
    refused(lambda: made({"input_ids": TENSOR, "step": torch.tensor([1.7])}), "step", "1.7")
    refused(lambda: made({"input_ids": TENSOR, "step": ["a"]}), "step")
    refused(lambda: made(5), "int")  # type: ignore[arg-type]
    refused(lambda: MaskingCollator(None), "NoneType")  # type: ignore[arg-type]


def test_min_targets_has_an_upper_end() -> None:
    refused(lambda: Masker(vocabulary(), min_targets=2**70), "min_targets", str(2**31 - 1))


def test_a_stepped_dataset_says_what_it_is_indexed_by() -> None:
    refused(lambda: SteppedDataset([one()])[0], "(index, step, epoch)")  # type: ignore[index]
    refused(lambda: SteppedDataset([IDS])[0, 0, 0], "list")
