"""What people hand over by mistake is refused in one line; what they hand over in another form is
read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import training_tools
from masking_tools import FIRST, masker, row, vocabulary
from masking_tools import tokenizer as word_tokenizer
from maskwise import Masker, Noising, PackedCollator, annotate_rows, corrupt, encode
from maskwise.base.errors import MaskwiseError
from maskwise.masking import schedules
from maskwise.masking.arrays import joined, numbers
from maskwise.masking.collator import MaskingCollator, StepBatchSampler, SteppedDataset
from maskwise.models.loading import load_model
from maskwise.samplers import LossProportional, Sequential, Uniform
from maskwise.text import Document, read_documents, require_documents, tokenise
from maskwise.text.layers import CharSpans, Layer

IDS = row([2, 1])["input_ids"]
LENGTH = len(IDS)


def one(**more: object) -> dict[str, Any]:
    """One row with more columns."""
    return {"input_ids": IDS, "example_id": 0, **more}


@contextmanager
def refused(*facts: str) -> Iterator[None]:
    """Expect a ``MaskwiseError`` of one short line that names these facts."""
    with pytest.raises(MaskwiseError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for fact in facts:
        assert fact in message, f"{fact!r} is not in {message!r}"


COLUMNS = {
    "attention_mask": [1] * (LENGTH - 1) + [0],
    "special_tokens_mask": [0] * LENGTH,
    "token_type_ids": [0] * LENGTH,
    "word_ids": [0] * LENGTH,
    "prompt": np.zeros(LENGTH, int),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_only_later_rows_have_is_refused_and_not_dropped(name: str) -> None:
    more = {name: COLUMNS[name]}
    for rows, place in (([one(), one(**more)], 0), ([one(**more), one(), one(**{name: None})], 1)):
        with refused(repr(name), f"nothing in row {place}"):
            masker()(rows, epoch=0)


def test_columns_that_nobody_reads_may_differ_between_rows() -> None:
    plain = masker()([one(), one(example_id=1)], epoch=0)
    odd = [
        one(title="The cat", score=None, tags=[]),
        one(example_id=1, title=None, score=0.5, tags=["a"], source={"year": 1999}),
    ]
    made = masker()(odd, epoch=0)
    assert torch.equal(made.input_ids, plain.input_ids) and not made.line.layers


PER_ROW: dict[str, Callable[[int], Any]] = {
    "numbers": lambda rows: list(range(rows)),
    "tensor": torch.arange,
    "array": np.arange,
    "none": lambda rows: [None] * rows,
    "none first": lambda rows: [None, "a", "b"][:rows],
    "texts": lambda rows: ["a"] * rows,
    "array of texts": lambda rows: np.array(["a"] * rows),
    "objects": lambda rows: np.array([None, "a", {}][:rows], object),
    "dicts": lambda rows: [{"year": 1999}] * rows,
    "lists of texts": lambda rows: [["a", "b"]] * rows,
}
"""Columns with one value per row, by their number of rows."""


@pytest.mark.parametrize("name", ["idx", "labels", "title"])
@pytest.mark.parametrize("values", PER_ROW)
def test_columns_of_one_value_per_row_are_not_read_whatever_the_lengths(
    values: str, name: str
) -> None:
    """Also in one row, and in rows that happen to have equal lengths."""
    for ids in ([IDS], [IDS, IDS], [IDS, IDS[:-1], IDS]):
        plain: dict[str, Any] = {"input_ids": ids, "example_id": list(range(len(ids)))}
        more = {**plain, name: PER_ROW[values](len(ids))}
        expected, found = (masker(ratio=0.5)(rows, epoch=0) for rows in (plain, more))
        assert torch.equal(found.labels, expected.labels) and not found.line.layers
        rows = [{key: column[n] for key, column in more.items()} for n in range(len(ids))]
        assert torch.equal(masker(ratio=0.5)(rows, epoch=0).labels, expected.labels)
        assert masker(ratio=0.5).at(epoch=0)(more)["input_ids"]
    for wrong in (5, torch.tensor(5), [1, 2, 3], torch.arange(3)):
        with refused(f"column {name!r} does not fit"):
            masker()({"input_ids": [IDS, IDS], "example_id": [0, 1], name: wrong}, epoch=0)


@pytest.mark.parametrize("name", sorted(COLUMNS.keys() - {"prompt"} | {"loss_mask"}))
def test_a_column_of_tokens_takes_no_value_per_row(name: str) -> None:
    """It was refused in columns of equal lengths, and not read in a list of rows."""
    for ids in ([IDS, IDS], [IDS, IDS[:-1]]):
        columns: dict[str, Any] = {"input_ids": ids, "example_id": [0, 1], name: [1, 1]}
        rows = [{key: column[n] for key, column in columns.items()} for n in range(2)]
        for given in (columns, rows):
            with refused(repr(name), "a single value in row 0"):
                masker()(given, epoch=0)


def test_columns_of_lists_in_an_array_may_be_of_equal_lengths() -> None:
    """As in the columns of pandas."""
    columns = {}
    for name, values in {"input_ids": IDS, "word_ids": range(LENGTH)}.items():
        columns[name] = np.empty(2, object)
        columns[name][:] = [np.array(values), np.array(values)]
    columns["example_id"] = np.array([0, 1], object)
    rows = [one(word_ids=range(LENGTH)), one(word_ids=range(LENGTH), example_id=1)]
    expected = masker("whole-word", ratio=0.5)(rows, epoch=0)
    found = masker("whole-word", ratio=0.5)(columns, epoch=0)
    assert torch.equal(found.labels, expected.labels)


def test_layers_are_padded_with_the_value_of_tokens_without_one() -> None:
    whole, half = [0.5] * LENGTH, [True] * LENGTH
    rows = [one(w=whole, flag=half, n=[3] * LENGTH)]
    rows.append(one(input_ids=IDS[:1], example_id=1, w=[0.5], flag=[True], n=[3]))
    layers = masker()(rows, epoch=0).line.layers
    assert [layers[name][-1].item() for name in ("w", "flag", "n")] == [0.0, False, -1]


def test_rows_in_a_tuple_are_checked_as_rows_in_a_list() -> None:
    for rows in ([one(step=5)], (one(step=5),)):
        with refused("another step", "pass step=5"):
            masker()(rows, step=3, epoch=0)


def test_rows_without_any_names_are_keyed_by_content_and_names_of_text_are_refused() -> None:
    with pytest.warns(UserWarning, match="no example_id"):
        masker()([{"input_ids": IDS}, {"input_ids": IDS}], epoch=0)
    for rows in ([one(example_id="a")], {"input_ids": torch.tensor([IDS]), "example_id": ["a"]}):
        with refused("example_id must be whole", "text"):
            masker()(rows, epoch=0)


def test_rows_without_tokens_need_no_type() -> None:
    empty: dict[str, Any] = {"input_ids": [], "example_id": 0, "word_ids": [], "attention_mask": []}
    stacked = {name: torch.tensor([value]) for name, value in empty.items()}
    for rows in (
        [empty],
        [one(word_ids=[0] * LENGTH, attention_mask=[1] * LENGTH), empty],
        stacked,
    ):
        for policy in ("token", "whole-word"):
            masker(policy)(rows, epoch=0)  # type: ignore[arg-type]


def test_short_rows_are_padded_with_the_padding_token_of_the_tokenizer() -> None:
    """Also where its id is not 0."""
    names = {"a": 0, "[MASK]": 1, "[UNK]": 2, "[PAD]": 3, "b": 4}
    backend = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    special = {"mask_token": "[MASK]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    made = Masker(PreTrainedTokenizerFast(tokenizer_object=backend, **special))
    rows = [{"input_ids": [0, 4, 0], "example_id": 0}, {"input_ids": [4], "example_id": 1}]
    batch = made(rows, epoch=0)
    assert batch.input_ids[1, 1:].tolist() == [3, 3]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("role", ["unk_token", "mask_token", "cls_token", "sep_token"])
def test_a_padding_token_with_another_role_is_no_padding_without_an_attention_mask(
    role: str,
) -> None:
    names = {"a": 0, "b": 1, "[UNK]": 2, "[MASK]": 3, "[CLS]": 4, "[SEP]": 5}
    backend = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "mask", "cls", "sep")}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, **special, bos_token="a", pad_token=special[role]
    )
    pad = made.pad_token_id
    rows = [{"input_ids": [0, pad, 1], "example_id": 0}, {"input_ids": [1], "example_id": 1}]
    # A mask token that is also the padding counts as none, so the corruption needs none.
    read = Masker(made, ratio=0.0, corruption="replace")
    assert read(rows, epoch=0).attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert read(rows[:1], epoch=0).attention_mask is None


def test_padding_without_an_attention_mask_is_no_text() -> None:
    made = masker(corruption="delete", ratio=0.5)
    padded = [IDS, [*IDS[: LENGTH // 2], *[made.vocabulary.pad] * (LENGTH - LENGTH // 2)]]
    ids = torch.tensor(padded)
    names = {"input_ids": ids, "example_id": torch.arange(2)}
    present = (ids != made.vocabulary.pad).long()
    plain, told = (made(rows, epoch=0) for rows in (names, names | {"attention_mask": present}))
    assert not present.all() and torch.equal(plain.labels, told.labels)
    assert torch.equal(plain.attention_mask, told.attention_mask)


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
    ([one(), one(input_ids=[IDS])], "2 dimensions"),
    ([one(input_ids="the cat")], "text"),
    ([one(input_ids=iter(IDS))], "list_iterator in row 0"),
    ([one(input_ids=[FIRST, None])], "'input_ids'"),
    ([one(input_ids=[2**70])], "64 bits"),
    ([one(word_ids=[2**63 + 5] * LENGTH)], "too large; allowed: below 2⁶³"),
    ([one(token_type_ids=np.full(LENGTH, 2**63 + 5, np.uint64))], "allowed: below 2⁶³"),
    ([one(example_id=True)], "bool"),
    ([one(example_id=1.5)], "float64"),
    ([one(example_id=2**70)], "64 bits"),
    ({"input_ids": TENSOR, "w": ONES.to(torch.bfloat16)}, "bfloat16"),
    ({"input_ids": TENSOR, "w": ONES.to_sparse()}, "sparse"),
    ({"input_ids": TENSOR, "w": ONES.to("meta")}, "meta"),
    ({"input_ids": TENSOR.to("meta")}, "meta"),
    ([one(w=ONES[0].to(torch.bfloat16))], "bfloat16"),
    ([], "no rows to mask"),
    ([{"input_ids": IDS}, one()], "nothing in row 0"),
    ([one(), {"input_ids": IDS}], "nothing in row 1"),
    ([one(w=[1] * LENGTH), one(w=3)], "a single value in row 1"),
    ([one(w=["a"]), one(w=[1] * LENGTH)], "text in row 0"),
    ([one(), {"example_id": 1}], "nothing (NoneType in row 1"),
    ([one(input_ids=["a"])], "got text"),
    ([one(w=[0])], f"'w' of row 0 has the wrong length; got 1; allowed: {LENGTH}"),
    ([one(attention_mask=[0])], "column 'attention_mask' of row 0 has the wrong length"),
    ([one(input_ids=[FIRST, 999])], "an id in input_ids is not valid; got 999"),
    ([one(input_ids=[FIRST, -4])], "an id in input_ids is not valid; got -4"),
    ({"input_ids": TENSOR, "w": torch.zeros(1, LENGTH - 1)}, "'w' does not fit"),
    ({"input_ids": TENSOR, "example_id": torch.arange(3)}, "'example_id' does not fit"),
    ({"input_ids": ONES}, "whole numbers"),
    ({"input_ids": TENSOR[0]}, "shape"),
]


@pytest.mark.parametrize(
    ("rows", "got"), ROWS, ids=[f"{n}-{got}" for n, (_, got) in enumerate(ROWS)]
)
def test_what_is_no_batch_of_rows_is_refused(rows: object, got: str) -> None:
    with refused(got):
        masker()(rows, epoch=0)


@pytest.mark.parametrize("bad", [0.5, 1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["attention_mask", "special_tokens_mask", "token_type_ids", "position_ids"]
)
def test_columns_of_whole_numbers_take_no_floats(name: str, bad: float) -> None:
    stacked = {"input_ids": TENSOR, "example_id": torch.tensor([0])}
    for rows, kind in (
        ([one(**{name: [bad] * LENGTH})], "float64"),
        (stacked | {name: torch.full((1, LENGTH), bad)}, "float32"),
    ):
        with refused(repr(name), kind):
            masker()(rows, epoch=0)


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
    layers: dict[str, Any] = {"word_ids": [0] * LENGTH, "weight": [0.5] * LENGTH}
    for made in (masker(policy), masker(keep=name)):
        with refused(repr(name), "float64"):
            made([one(**layers | {name: [bad] * LENGTH})], epoch=0)
        # False is a number ≥ 0, so a layer of bools would mark every token.
        with refused(repr(name), "bool"):
            made([one(**layers | {name: [False] * LENGTH})], epoch=0)
    assert masker(policy, ratio=1.0)([one(**layers | {name: [0] * LENGTH})], epoch=0).targets


def mask(**more: Any) -> object:
    return masker()([one()], **{"epoch": 0, **more})


def collator(**more: Any) -> object:
    return MaskingCollator(masker(), **more)


def collate(**more: Any) -> object:
    return MaskingCollator(masker())([one(**{"step": 0, "epoch": 0, **more})])


def sampler(**more: Any) -> list[list[tuple[int, int, int]]]:
    return list(StepBatchSampler(**{"size": 20, "batch_size": 2, "ranks": 2, **more}))


WHOLE: list[tuple[str, Callable[..., object], int]] = [
    ("min_targets", masker, 0),
    ("step", mask, 0),
    ("epoch", mask, 0),
    ("total_steps", mask, 0),
    ("total_steps", collator, 1),
    ("step", collate, 0),
    ("epoch", collate, 0),
    ("size", sampler, 0),
    ("batch_size", sampler, 1),
    ("epochs", sampler, 0),
    ("first_step", sampler, 0),
    ("rank", sampler, 0),
    ("ranks", sampler, 1),
    ("accumulate", sampler, 1),
]


@pytest.mark.parametrize(("name", "call", "least"), WHOLE)
def test_whole_numbers_are_whole_and_in_their_range(
    name: str, call: Callable[..., object], least: int
) -> None:
    with refused(name, str(least - 1)):
        call(**{name: least - 1})
    for good in (least, np.int64(least)):
        if name != "size":
            call(**{name: good})


@pytest.mark.parametrize(
    ("name", "call"), [("seed", masker), ("seed", sampler), *[entry[:2] for entry in WHOLE]]
)
@pytest.mark.parametrize("bad", [1.7, 2.0, "3", [1], math.nan, True], ids=str)
def test_other_values_are_no_whole_numbers(
    name: str, call: Callable[..., object], bad: object
) -> None:
    with refused(name, repr(bad), "a whole number"):
        call(**{name: bad})


def test_a_sampler_of_a_rank_that_is_not_there_is_refused() -> None:
    for rank in (-1, 2, 5):
        with refused(str(rank), "0 to 1"):
            sampler(rank=rank)
    for rank in (0, 1):
        assert {len(batch) for batch in sampler(rank=rank)} == {2}


def test_steps_of_rows_may_be_tensors_of_one_number() -> None:
    made = MaskingCollator(masker(ratio="linear(0.9, 0.1)"), total_steps=9)
    plain = made([one(step=4, epoch=0), one(step=4, epoch=0)])
    alone = [one(step=torch.tensor(4), epoch=torch.tensor(0))] * 2
    stacked = {"input_ids": TENSOR.repeat(2, 1), "step": torch.tensor([4, 4])}
    for rows in (alone, stacked | {"example_id": [0, 0], "epoch": [0, 0]}):
        assert torch.equal(made(rows)["labels"], plain["labels"])
    for bad, got in (
        ({"input_ids": TENSOR, "step": torch.tensor([1.7])}, "1.7"),
        ({"input_ids": TENSOR, "step": ["a"]}, "step"),
        (5, "int"),
    ):
        with refused(got):
            made(bad)
    with refused("NoneType"):
        MaskingCollator(None)


def test_min_targets_has_an_upper_end() -> None:
    with refused("min_targets", str(2**31 - 1)):
        Masker(vocabulary(), min_targets=2**70)


def test_a_stepped_dataset_says_what_it_is_indexed_by() -> None:
    with refused("(index, step, epoch)"):
        SteppedDataset([one()])[0]
    with refused("list"):
        SteppedDataset([IDS])[0, 0, 0]


NO_TOKENIZER: list[Any] = ["bert-base-uncased", None, 5, PreTrainedTokenizerFast, object()]


@pytest.mark.parametrize("bad", NO_TOKENIZER, ids=["name", "none", "number", "class", "object"])
def test_what_is_no_tokenizer_is_refused_with_how_to_load_one(bad: Any) -> None:
    for call in (
        lambda: Masker(bad),
        lambda: encode(bad, ["a"]),
        lambda: annotate_rows({"input_ids": []}, bad),
    ):
        refused(call, "tokenizer", "from_pretrained")


@pytest.mark.parametrize("name", ["policy", "corruption", "ratio", "predict"])
@pytest.mark.parametrize("bad", [None, ["token"], Masker], ids=str)
def test_settings_of_another_type_are_refused(name: str, bad: Any) -> None:
    with refused(repr(bad)):
        Masker(vocabulary(), **{name: bad})


def test_a_function_of_the_ratio_that_gives_none_is_named() -> None:
    for function, got in (
        (lambda step, total: None, "None"),
        (lambda step, total: "x", "'x'"),
        (lambda step, total: math.nan, "nan"),
        (lambda step, total: 1.5, "1.5"),
    ):
        with refused("step 3", got):
            masker(ratio=function)([one()], step=3, epoch=0)
    for number in (np.float32(0.25), 0.25):
        assert masker(ratio=lambda step, total, n=number: n).ratio(0, 1) == 0.25


MAKERS: list[tuple[Callable[[Any], object], float]] = [
    (schedules.schedule, 0.25),
    (schedules.constant, 0.25),
    (lambda x: schedules.linear(x, 0.1), 0.5),
    (lambda x: schedules.cosine(0.1, x), 0.5),
    (lambda x: schedules.step(0.1, 0.2, x), 0.5),
    (schedules.linear_decay, 0.25),
    (lambda x: schedules.warm_decay(0.1, x), 0.5),
    (lambda x: schedules.piecewise(0, x, 1, x), 0.5),
    (schedules.uniform, 0.25),
    (lambda x: schedules.beta(x, 1), 2.0),
    (schedules.bell, 0.5),
    (lambda x: schedules.mixture(x, 1), 0.5),
    (lambda x: schedules.warm_up(0.1, x), 0.5),
    (lambda x: schedules.then(0.1, x, 0.2), 0.5),
    (lambda x: schedules.scaled(0.1, x), 0.5),
    (lambda x: schedules.clipped(0.1, x), 0.0),
]


@pytest.mark.parametrize(("make", "good"), MAKERS, ids=range(len(MAKERS)))
def test_numbers_of_schedules_are_numbers_also_of_numpy(
    make: Callable[[Any], Any], good: float
) -> None:
    for bad in (None, "a", [0.5], True, math.nan, math.inf):
        with pytest.raises(MaskwiseError):
            make(bad)
    for kind in (np.float32, np.float64):
        assert make(kind(good)) == make(good) and "np." not in str(make(kind(good)))
    if good == int(good):
        assert make(np.int64(good)) == make(int(good))
    assert schedules.schedule(np.int64(1)) == schedules.schedule(1)


def test_texts_may_be_any_iterable_of_strings() -> None:
    tok = word_tokenizer()
    plain = encode(tok, ["w1 w2", "w3"], ids=[3, 4])
    for texts in (("w1 w2", "w3"), iter(["w1 w2", "w3"]), np.array(["w1 w2", "w3"])):
        assert encode(tok, texts, ids=iter([3, np.int64(4)])) == plain
    for bad, got in (
        (None, "NoneType"),
        (5, "int"),
        ({"text": ["a"]}, "dict"),
        (b"abc", "bytes"),
        (["a", "b \ud800"], "place 1"),
    ):
        with refused(got):
            encode(tok, bad)
        with refused(got):
            annotate_rows({"text": bad}, tok)
    for ids in (5, [1.5], ["3"], [math.nan], [2**70], [1, 2]):
        with refused("id"):
            encode(tok, ["w1"], ids=ids)
    for length in (4.5, "8", 0, -1, True):
        with refused("max_length", repr(length)):
            encode(tok, ["w1"], max_length=length)


@pytest.mark.parametrize(
    "bad", [None, 5, torch.tensor(5), [[5, [6]]], [["a"]], [[-5]], [[2**70]], [[5.0]], [[5], 6]]
)
def test_columns_of_token_ids_are_rows_of_whole_numbers(bad: Any) -> None:
    with refused("input_ids"):
        annotate_rows({"input_ids": bad}, word_tokenizer())
    with refused(type(bad).__name__):
        annotate_rows(bad, word_tokenizer())


def test_large_ids_of_encoded_rows_give_the_masks_of_the_same_bits() -> None:
    """Also in a batch of both kinds, which numpy would turn into floats."""
    tok = training_tools.tokenizer()
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8"] * 3
    names = [2**63 + 5, 2**64 - 1, 7]
    rows = encode(tok, texts, ids=names)
    assert [row["example_id"] % 2**64 for row in rows] == names
    made = Masker(tok, ratio=0.5)
    masked = made(rows, epoch=0)
    for number, name in enumerate(names):
        again = {**rows[number], "example_id": np.uint64(name)}
        assert torch.equal(made([again], epoch=0).labels[0], masked.labels[number])
    assert masked.targets == 12
    with refused("id"):
        encode(tok, ["w1"], ids=[-(2**63) - 1])


def test_one_row_of_token_ids_may_be_a_tensor() -> None:
    """As in an unbatched map over a data set in torch's format."""
    tok = training_tools.tokenizer()
    ids = encode(tok, ["w1 w2"])[0]["input_ids"]
    expected = annotate_rows({"input_ids": ids}, tok)
    assert expected["word_ids"] == [-1, 0, 0, -1]
    for block in (torch.tensor(ids), np.array(ids)):
        found = annotate_rows({"input_ids": block}, tok)
        assert found["word_ids"] == expected["word_ids"]
        assert found["example_id"] == expected["example_id"]
        [batched] = annotate_rows({"input_ids": block[None]}, tok)["word_ids"]
        assert batched == expected["word_ids"]


def test_a_tokenizer_that_panics_is_an_error_of_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    backend = Tokenizer(
        models.WordLevel({"[UNK]": 0, "[MASK]": 1, "[PAD]": 2, "a": 3}, unk_token="[UNK]")
    )
    endless = "(?=(a+)+$)" + "(a|a)*" * 9 + "b(a|b|ab)*c"
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(endless), "isolated")
    tok = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", pad_token="[PAD]"
    )
    with refused("tokenizer"):
        encode(tok, ["a" * 60])
    with refused("tokenizer"):
        list(tokenise([Document("a", "a" * 60)], tok))


def test_a_vocabulary_without_its_unknown_token_is_an_error_of_one_line() -> None:
    names = {"[MASK]": 0, "[PAD]": 1, "a": 2}
    backend = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", pad_token="[PAD]")
    for call in (
        lambda: encode(tok, ["a b"]),
        lambda: list(tokenise([Document("a", "b")], tok)),
    ):
        with refused("unknown token"):
            call()


def test_models_are_loaded_by_names() -> None:
    for bad in (5, None, b"abc", ["a"]):
        with refused(repr(bad)):
            load_model(bad)
    for long in ("a" * 5000, "/" + "a" * 5000, Path("a" * 5000)):
        with refused("too long"):
            load_model(long)
    for seed in ("a", 1.5):
        with refused("seed", repr(seed)):
            load_model("bundled:encoder", seed=seed)
    with refused("decoder", "encoder-decoder"):
        load_model("bundled:encoder", kind="decoder")


def test_an_argument_that_is_given_twice_is_refused() -> None:
    with refused("p", "twice"):
        schedules.schedule("constant(p=.1, p=.2)")
    with refused("p", "twice"):
        masker("span(p=.1, max_words=3, p=.2)")


@pytest.mark.parametrize(
    ("setting", "spec", "got"),
    [
        ("policy", "span(max_words=2.5)", "2.5"),
        ("policy", "span(max_words=True)", "True"),
        ("policy", "span(p=None)", "None"),
        ("policy", "span(poisson=12)", "12"),
        ("policy", "t5-span(mean_span=1e999)", "inf"),
        ("policy", "weighted(power=(1, 2))", "(1, 2)"),
        ("corruption", "insert(cut=2.5)", "2.5"),
        ("corruption", "bert(mask='a')", "'a'"),
        ("ratio", "linear(1e999, 0.1)", "inf"),
    ],
)
def test_numbers_that_a_recipe_names_are_of_their_type(setting: str, spec: str, got: str) -> None:
    with refused(spec.partition("(")[0], got):
        masker(**{setting: spec})
    assert masker("span(max_words=3, poisson=None)").policy == masker("span(max_words=3)").policy


@pytest.mark.parametrize(
    "bad", [5, None, "no-such-thing", [], object()], ids=lambda bad: type(bad).__name__
)
def test_what_is_no_tensor_no_model_and_no_names_is_one_line(bad: Any) -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    calls: dict[str, Callable[[], object]] = {
        "input_ids": lambda: corrupt(bad, ids, 3),
        "loss_mask": lambda: corrupt(ids, bad, 3),
    }
    if bad is not None:
        calls["model is not loaded"] = lambda: PackedCollator(masker(), model=bad)
    if not isinstance(bad, str | list):
        calls["layers must be a list"] = lambda: encode(word_tokenizer(), ["a"], layers=bad)
    for name, call in calls.items():
        with pytest.raises(MaskwiseError) as error:
            call()
        assert name in error.value.what and "\n" not in str(error.value)


# One entrance for arrays
# ----------------------------------------------------------------------------

SOME = [[FIRST, FIRST + 1, FIRST + 2, FIRST + 3], [FIRST + 4, FIRST + 5, FIRST + 6, FIRST + 7]]
ALL = [[1, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize("form", [list, np.array, torch.tensor], ids=["list", "numpy", "torch"])
@pytest.mark.parametrize("budget", ["bernoulli", "exact"])
def test_corrupt_reads_lists_and_numpy_as_it_reads_tensors(
    form: Callable[[Any], Any], budget: str
) -> None:
    settings: dict[str, Any] = {"epoch": 1, "budget": budget, "ratio": 0.5}
    names = {"example_id": [3, 2**64 - 5], "place": [4, 9]}
    whole = corrupt(torch.tensor(SOME), torch.tensor(ALL), 3, **settings, **names)
    ids = {list: names["example_id"], np.array: np.array(names["example_id"], np.uint64)}
    given = {"example_id": ids.get(form, torch.tensor([3, -5])), "place": form(names["place"])}
    found = corrupt(form(SOME), form(ALL), 3, **settings, **given)
    for one_of, other in zip(whole, found, strict=True):
        assert one_of.dtype == other.dtype and torch.equal(one_of, other)


BAD_ARRAYS: dict[str, list[Any]] = {
    "input_ids": [[[1.5, 2.5]], [[1, -1], [2, 3]], [1, 2], [[1], [1, 2]], None, "ab", [["a"]]],
    "loss_mask": [[[1, 1]], ALL[0], [[math.nan] * 4] * 2, [[2] * 4] * 2, None, [[None] * 4] * 2],
    "example_id": [[0.0, 1.0], [math.nan, 1], [0], [[0, 1]], 5, [True, False], ["a", "b"]],
    "place": [[math.nan, 0.0], [0.0, 1.0], [-1, 0], [0], 0, [2**63, 1], [None, 1]],
    "step": [-1, 1.5, math.nan, "1", [1], True],
    "epoch": [-1, 1.5, math.nan, "1", [1], True],
    "total_steps": [-1, 1.5, math.nan, "1", [1]],
    "seed": [1.5, math.nan, "1", [1], None],
    "mask_token_id": [-1, 1.5, None, [3], 2**70],
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_mean_nothing_are_refused_by_corrupt_and_by_name(name: str) -> None:
    good: dict[str, Any] = {"input_ids": SOME, "loss_mask": ALL, "mask_token_id": 3, "epoch": 0}
    good |= {"step": 0, "ratio": 0.5}
    corrupt(**good)
    for bad in BAD_ARRAYS[name]:
        with refused(name):
            corrupt(**good | {name: bad})


@pytest.mark.parametrize("bad", [b for b in BAD_ARRAYS["place"] if b != 0] + [torch.tensor([0.5])])
def test_places_of_rows_are_whole_and_one_for_each_row(bad: Any) -> None:
    rows = [one(), one(example_id=1)]
    noising = Noising(vocabulary())
    expected = noising(rows, epoch=0, place=torch.tensor([0, 1]))
    for good in ([0, 1], np.array([0, 1]), (0, 1), torch.tensor([0, 1], dtype=torch.int32)):
        assert torch.equal(noising(rows, epoch=0, place=good).labels, expected.labels)
    with refused("'place'"):
        noising(rows, epoch=0, place=bad)


def test_rows_of_different_lengths_may_be_columns() -> None:
    """As in ``dataset[:3]``, or as a tokenizer returns them."""
    rows = [row([2, 1, 3], example_id=1), row([1], example_id=2), row([3, 3], example_id=2**63)]
    expected = masker("whole-word", ratio=0.5)(rows, epoch=0)
    for form in (list, np.array, torch.tensor):
        names = [name for name in rows[0] if name != "example_id"]
        columns: dict[str, Any] = {name: [form(r[name]) for r in rows] for name in names}
        columns |= {"example_id": [1, 2, 2**63], "title": ["a", "b", "c"], "labels": None}
        found = masker("whole-word", ratio=0.5)(columns, epoch=0)
        assert torch.equal(found.input_ids, expected.input_ids)
        assert torch.equal(found.labels, expected.labels)
    ragged = np.empty(3, dtype=object)
    ragged[:] = [np.array(r["input_ids"]) for r in rows]
    with refused("'word_ids'"):
        masker()({"input_ids": ragged, "word_ids": [[0]]}, epoch=0)


def test_the_mask_of_a_row_that_holds_padding_is_a_function_of_the_row() -> None:
    """Its neighbours decide how much padding is added, but not what is padding."""
    pad = vocabulary().pad
    for corruption in ("bert", "delete", "permute-sentences", "infill"):
        made = masker(corruption=corruption, ratio=0.5)
        padded = row([2, 1, 3, 1, 2], example_id=4)
        for name, values in padded.items():
            if isinstance(values, list):
                padded[name] = [*values, *[pad if name == "input_ids" else -1] * 3]
        alone = made([padded], epoch=0)
        beside = made([padded, row([3] * 9, example_id=5)], epoch=0)
        for name in ("input_ids", "attention_mask", "labels"):
            narrow, wide = alone[name][0], beside[name][0]
            width = len(narrow)
            assert torch.equal(narrow, wide[:width]), (corruption, name)
        assert not beside.attention_mask[0, len(alone.attention_mask[0]) :].any()


def test_examples_that_differ_in_type_do_not_change_each_other() -> None:
    """numpy would make floats of large and negative integers, and numbers of bools."""
    large = one(example_id=2**63 + 5)
    expected = masker(ratio=0.5)([large], epoch=0)
    found = masker(ratio=0.5)([large, one(example_id=-3)], epoch=0)
    assert torch.equal(found.labels[0], expected.labels[0])
    with refused("'word_ids'", "bools"):
        masker()([one(word_ids=[0] * LENGTH), one(word_ids=[True] * LENGTH)], epoch=0)


def test_steps_of_schedules_and_samplers_are_numbers_from_zero() -> None:
    sampler = Uniform(["mlm", "cse"])
    turns = Sequential(["mlm", "cse"])
    for bad in (-1, math.nan, "1", None, [1]):
        calls: list[Callable[[Any], object]] = [
            schedules.constant(0.1),
            lambda step: schedules.linear(0.1, 0.2)(step, 10),
            lambda step: schedules.schedule(lambda at, total: 0.1)(step, 10),
            lambda total: schedules.linear(0.1, 0.2)(1, total),
            sampler.draw,
            turns.probabilities,
        ]
        if bad is not None:
            calls.append(lambda total: turns.draw(1, total))
        for call in calls:
            with refused():
                call(bad)
    for step in (np.int64(3), torch.tensor(3), np.array(3)):
        assert sampler.draw(step) == sampler.draw(3)
        assert masker()([one()], step=step).labels.equal(masker()([one()], step=3).labels)


def test_losses_of_samplers_may_be_any_numbers() -> None:
    losses = [1.0, 2.0]
    forms: list[Any] = [losses, np.array(losses), torch.tensor(losses), dict(zip("ab", losses))]
    forms.append({"a": torch.tensor(1.0), "b": np.float32(2)})
    for form in forms:
        assert LossProportional(["a", "b"]).update(form, form).tolist() == [1 / 3, 2 / 3]
    for bad in (None, 5, ["x", "y"], [1.0], [[1.0, 2.0]], {"a": None, "b": 1.0}, [None, 1.0]):
        with refused():
            LossProportional(["a", "b"]).update(bad, bad)


def test_ids_beyond_the_vocabulary_have_no_words() -> None:
    tok = word_tokenizer()
    for bad in (10_000, 2**40):
        with refused("input_ids", str(bad)):
            annotate_rows({"input_ids": [[FIRST, bad]]}, tok)


def test_masked_arrays_are_refused() -> None:
    ids = np.ma.array([[FIRST, FIRST + 1]], mask=[[False, True]])
    calls: list[Callable[[], object]] = [
        lambda: corrupt(ids, [[1, 1]], 3, epoch=0),
        lambda: corrupt([[FIRST, FIRST + 1]], ids, 3, epoch=0),
        lambda: masker()({"input_ids": ids, "example_id": [0]}),
        lambda: masker()([{"input_ids": ids[0], "example_id": 0}]),
        lambda: corrupt([ids[0]], [[1, 1]], 3, epoch=0),
        lambda: masker()([one(score=np.ma.array([0.5] * len(IDS)))]),
    ]
    for call in calls:
        with refused("masked array", "filled"):
            call()


def test_a_stepped_dataset_has_rows_and_whole_steps() -> None:
    data: Any
    for data in (None, 5, iter([one()]), "text", b"text", {"train": [one()]}):
        with refused("map-style", type(data).__name__):
            SteppedDataset(data)
    place: Any
    for place in ((0, -1, 0), (0, 0, -1), (0, 0.5, 0), (0, 0, None)):
        with refused("step" if place[1] else "epoch"):
            SteppedDataset([one()])[place]


def test_a_corpus_of_token_ids_is_told_what_helps(tmp_path: Path) -> None:
    for field in ("input_ids", "text"):
        path = tmp_path / f"{field}.jsonl"
        path.write_text(f'{{"{field}": [5, 6, 7]}}\n')
        for name in ("text", field):
            with refused("corpus.tokens", field) as _:
                require_documents(read_documents(str(path), text_field=name))
    path.write_text('{"input_ids": [5], "body": "a text", "n": 3}\n')
    with refused("allowed: body;"):
        require_documents(read_documents(str(path)))


def test_a_tokenizer_that_is_only_python_is_told_what_helps() -> None:
    class Slow:
        is_fast = False
        all_special_ids = (1,)

    for call in (
        lambda: encode(Slow(), ["a"]),
        lambda: annotate_rows({"input_ids": [[1]]}, Slow()),
    ):
        with refused("Slow", "word_ids"):
            call()


LISTS: list[list[Any]] = [
    [[5, 6], [7]],
    [(5, 6), [], [7]],
    [[-(2**63), 2**63 - 1], [0]],
    [[5, True], [7]],
    [[None, 5], [7, 8]],
    [[None], [7, None]],
    [[5, 2**63], [7]],
    [[True, False], [5]],
    [[True, 5], [7]],
    [[5, 1.0], [7]],
    [[1.0], [5]],
    [[5, np.int64(6)], [7]],
    [[np.int64(5)], [7]],
    [[5, np.float32(6)], [7]],
    [[5, np.bool_(True)], [7]],
    [[5, torch.tensor(6)], [7]],
    [[torch.tensor(5)], [7]],
    [[5, [6]], [7]],
    [[5, "a"], [7]],
    [[5, None], [7]],
    [np.array([5]), [7]],
    [[], []],
    [np.array([5, 6]), np.array([7])],
    [np.array([0.5]), np.array([7.0, 8.0])],
    [np.array([True]), np.array([False, True])],
    [np.array([2**63], np.uint64), np.array([7], np.uint64)],
    [torch.tensor([5, 6]), torch.tensor([7])],
    [torch.tensor([0.5], requires_grad=True), torch.tensor([7.0])],
    [torch.tensor([5], dtype=torch.int32), torch.tensor([7, 8], dtype=torch.int32)],
    [np.array([5]), np.array([0.5])],
    [np.array([5]), np.array([True])],
    [np.array([5]), torch.tensor([7])],
    [np.array([5]), np.zeros(0)],
    [np.array([None, 5]), np.array([7, None])],
    [np.ones((2, 2), int), np.ones((2, 2), int)],
    [np.array(5), np.array(7)],
    [torch.tensor([5]), torch.tensor([0.5])],
    [torch.tensor([5]), torch.tensor([7], dtype=torch.int32)],
    [torch.tensor([5]), torch.tensor([7], device="meta")],
    [torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)],
    [torch.eye(2).to_sparse()[0], torch.eye(2).to_sparse()[1]],
    [torch.ones(2, 2), torch.ones(2, 2)],
    [torch.tensor(5), torch.tensor(7)],
    [None, None],
]
AT_ONCE = (0, 1, 2, 3, *range(22, 29))
"""The rows that most people have."""


@pytest.mark.parametrize("missing", [None, -1])
@pytest.mark.parametrize("rows", range(len(LISTS)))
def test_rows_that_are_read_at_once_are_read_as_each_of_them(
    rows: int, missing: int | None
) -> None:
    values = LISTS[rows]
    found = joined(values, missing=missing)
    if found is not None:
        parts = [numbers("ids", part, missing=missing) for part in values if len(part)]
        assert {part.dtype for part in parts} == {found.dtype}
        assert found.tolist() == np.concatenate(parts).tolist()
        assert found.flags.writeable
    gaps = rows in (4, 5) and missing is not None
    assert (found is not None) == (rows in AT_ONCE or gaps)


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, torch.tensor], ids=lambda form: form.__name__
)
def test_rows_of_equal_lengths_are_one_array_however_they_are_nested(
    form: Callable[[Any], Any],
) -> None:
    values = [[5, 6, 7], [8, 9, 10]]
    array = numbers("ids", [form(row) for row in values])
    assert array.tolist() == values
    assert array.dtype == np.int64 and array.flags.writeable
    with refused("ids"):
        numbers("ids", [form([5, 6]), form([7])])


class Own:
    """An annotator that finds what it is told, in every text."""

    name = "own"
    layers = {"ent": Layer("spans")}

    def __init__(self, *spans: tuple[int, int], less: int = 0):
        self.spans = spans
        self.less = less

    def annotate(self, texts):
        found = {"ent": CharSpans.of(self.spans, self.layers["ent"])}
        return [found] * (len(texts) - self.less)


@pytest.mark.parametrize(
    ("own", "fact"),
    [
        (Own((0, 11), (4, 7)), "not overlap"),
        (Own((0, 30)), "lie in the text of 12 characters"),
        (Own((0, 3), less=1), "1 results for 2 texts"),
    ],
)
def test_what_an_annotator_in_memory_finds_is_checked(own: Own, fact: str) -> None:
    texts = ["the cat sat ", "the cat sat "]
    with refused(fact):
        encode(word_tokenizer(), texts, layers=[own])
    with refused("two annotators make the layer 'ent'"):
        encode(word_tokenizer(), texts, layers=[Own((0, 3)), Own((4, 7))])
