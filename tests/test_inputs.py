"""What people hand over in another form is read; what is refused is in refusals_inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import training_tools
from masking_tools import masker, row, vocabulary
from masking_tools import tokenizer as word_tokenizer
from maskwise import Masker, Noising, annotate_rows, corrupt, encode
from maskwise.masking.arrays import joined, numbers
from maskwise.masking.collator import MaskingCollator
from maskwise.samplers import LossProportional, Uniform
from refusals_inputs import ALL, IDS, LENGTH, SCHEDULES, SOME, TENSOR, one


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


def test_rows_without_any_names_are_keyed_by_content() -> None:
    with pytest.warns(UserWarning, match="no example_id"):
        masker()([{"input_ids": IDS}, {"input_ids": IDS}], epoch=0)


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


def test_steps_of_rows_may_be_tensors_of_one_number() -> None:
    made = MaskingCollator(masker(ratio="linear(0.9, 0.1)"), total_steps=9)
    plain = made([one(step=4, epoch=0), one(step=4, epoch=0)])
    alone = [one(step=torch.tensor(4), epoch=torch.tensor(0))] * 2
    stacked = {"input_ids": TENSOR.repeat(2, 1), "step": torch.tensor([4, 4])}
    for rows in (alone, stacked | {"example_id": [0, 0], "epoch": [0, 0]}):
        assert torch.equal(made(rows)["labels"], plain["labels"])


def test_a_function_of_the_ratio_may_give_a_number_of_numpy() -> None:
    assert masker(ratio=lambda step, total: np.float32(0.25)).ratio(0, 1) == 0.25


@pytest.mark.parametrize("name", SCHEDULES)
def test_numbers_of_schedules_may_be_those_of_numpy(name: str) -> None:
    make, good = SCHEDULES[name]
    for kind in (np.float32, np.float64, *([np.int64] if good == int(good) else [])):
        given = kind(good)
        assert make(given) == make(given.item()) and "np." not in str(make(given))


def test_texts_may_be_any_iterable_of_strings() -> None:
    tok = word_tokenizer()
    plain = encode(tok, ["w1 w2", "w3"], ids=[3, 4])
    for texts in (("w1 w2", "w3"), iter(["w1 w2", "w3"]), np.array(["w1 w2", "w3"])):
        assert encode(tok, texts, ids=iter([3, np.int64(4)])) == plain


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


# One entrance for arrays
# ----------------------------------------------------------------------------


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


def test_places_of_rows_may_be_in_any_form() -> None:
    rows = [one(), one(example_id=1)]
    noising = Noising(vocabulary())
    expected = noising(rows, epoch=0, place=torch.tensor([0, 1]))
    for good in ([0, 1], np.array([0, 1]), (0, 1), torch.tensor([0, 1], dtype=torch.int32)):
        assert torch.equal(noising(rows, epoch=0, place=good).labels, expected.labels)


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
    """numpy would make floats of large and negative integers."""
    large = one(example_id=2**63 + 5)
    expected = masker(ratio=0.5)([large], epoch=0)
    found = masker(ratio=0.5)([large, one(example_id=-3)], epoch=0)
    assert torch.equal(found.labels[0], expected.labels[0])


def test_steps_may_be_arrays_of_one_number() -> None:
    sampler = Uniform(["mlm", "cse"])
    for step in (np.int64(3), torch.tensor(3), np.array(3)):
        assert sampler.draw(step) == sampler.draw(3)
        assert masker()([one()], step=step).labels.equal(masker()([one()], step=3).labels)


def test_losses_of_samplers_may_be_any_numbers() -> None:
    losses = [1.0, 2.0]
    forms: list[Any] = [losses, np.array(losses), torch.tensor(losses), dict(zip("ab", losses))]
    forms.append({"a": torch.tensor(1.0), "b": np.float32(2)})
    for form in forms:
        assert LossProportional(["a", "b"]).update(form, form).tolist() == [1 / 3, 2 / 3]


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
