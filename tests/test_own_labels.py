"""What a user's own columns say holds in every door: labels of −100, steps, positions, names."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

import maskwise as mw
from maskwise.base.errors import MaskwiseError
from maskwise.hf.packed_collator import PackedCollator
from maskwise.masking.collator import RowCollator
from maskwise.masking.diffusion import Noising
from maskwise.masking.policies import POLICIES
from maskwise.masking.settings import Masking
from maskwise.objectives import objective, objective_class
from training_tools import model, tokenizer

IGNORE = -100
LENGTHS = (14, 9, 14)
SECRET = slice(3, 9)
"""The tokens that the user excludes."""


def rows(*, labels: bool, packed: bool = False) -> list[dict[str, Any]]:
    """Rows of [CLS] words [SEP]; with labels of −100 at ``SECRET``."""
    tools = tokenizer()
    found = []
    for number, length in enumerate(LENGTHS):
        ids = [tools.cls_token_id, *range(10, 8 + length), tools.sep_token_id]
        row: dict[str, Any] = {"input_ids": ids, "example_id": number}
        row["word_ids"] = [-1, *range(length - 2), -1]
        row["score"] = [0.5] * length
        if packed:
            row["example_id"] = [2 * number] * 5 + [2 * number + 1] * (length - 5)
        if labels:
            own = list(ids)
            own[SECRET] = [IGNORE] * 6
            row["labels"] = own
        found.append(row)
    return found


def stacked(given: list[dict[str, Any]], kind: Any) -> dict[str, Any]:
    """The same rows as (B, L) columns, with padding."""
    fills = {"input_ids": 0, "labels": IGNORE, "example_id": -1, "word_ids": -1, "score": 0.0}
    columns: dict[str, Any] = {}
    for name in given[0]:
        values = [row[name] for row in given]
        if isinstance(values[0], list):
            values = [[*value, *[fills[name]] * (14 - len(value))] for value in values]
        columns[name] = kind(np.array(values))
    columns["attention_mask"] = kind(np.array([[n < size for n in range(14)] for size in LENGTHS]))
    columns["attention_mask"] = columns["attention_mask"] * 1
    return columns


def forms(given: list[dict[str, Any]]) -> list[Any]:
    return [
        given,
        [{name: torch.tensor(value) for name, value in row.items()} for row in given],
        stacked(given, torch.as_tensor),
        stacked(given, np.asarray),
    ]


SETTINGS = [
    {"ratio": 0.9},
    {"ratio": 0.9, "policy": "whole-word"},
    {"ratio": 0.9, "policy": "span", "budget": "bernoulli"},
    {"ratio": 1.0, "budget": "exact", "corruption": "mask-only"},
    {"ratio": 0.9, "corruption": "replace(target='detect')"},
    {"ratio": 0.9, "visits": "complement"},
    {"ratio": 0.9, "predict": 0.5},
    {"ratio": 0.9, "fill": "random", "policy": "weighted(layer='score')"},
]


def silent(batch: Any) -> bool:
    """Whether the batch neither hides nor asks about the excluded tokens."""
    expected = torch.tensor([[*range(12, 18)], [*range(12, 17), 3], [*range(12, 18)]])
    where = batch["input_ids"][:, SECRET] == expected
    where[1, -1] = True  # [SEP]
    labels = batch["labels"][:, SECRET]
    return bool(where.all()) and set(labels.flatten().tolist()) == {IGNORE}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("more", SETTINGS, ids=str)
def test_a_label_of_minus_100_is_never_masked_nor_predicted(
    more: dict[str, Any], packed: bool
) -> None:
    masker = mw.Masker(tokenizer(), **more)
    given = rows(labels=True, packed=packed)
    first = None
    for form, epoch in itertools.product(forms(given), (0, 1)):
        batch = masker(form, epoch=epoch, step=0)
        assert silent(batch) and batch.targets == int((batch.labels != IGNORE).sum())
        if epoch == 0:
            first = batch if first is None else first
            assert torch.equal(batch.labels, first.labels)
    assert first is not None and first.targets > 0
    plain = masker(rows(labels=False, packed=packed), epoch=0)
    assert not silent(plain)


def with_loss_mask(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, with a loss mask instead of labels."""
    found = []
    for row in given:
        own = row.pop("labels")
        found.append({**row, "loss_mask": [int(label != IGNORE) for label in own]})
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("more", SETTINGS, ids=str)
def test_a_loss_mask_says_what_labels_say(more: dict[str, Any], packed: bool) -> None:
    masker = mw.Masker(tokenizer(), **more)
    batch = masker(rows(labels=True, packed=packed), epoch=0)
    given = with_loss_mask(rows(labels=True, packed=packed))
    other = masker(given, epoch=0)
    assert silent(other)
    assert torch.equal(other.labels, batch.labels)
    assert torch.equal(other.input_ids, batch.input_ids)
    none = [{**row, "loss_mask": [False] * len(row["input_ids"])} for row in given]
    assert masker(none, epoch=0).targets == 0
    both = [{**row, "labels": row["input_ids"]} for row in given]
    assert torch.equal(masker(both, epoch=0).labels, batch.labels)


REFUSED = [
    ("insert(target='detect')", "replace(target='detect')"),
    ("delete(target='detect')", "replace(target='detect')"),
    ("delete", "target='spans'"),
    ("insert", "infill(target='spans')"),
    ("permute-sentences", "infill(target='spans')"),
]


@pytest.mark.parametrize(("corruption", "instead"), REFUSED)
def test_what_is_advised_in_place_of_a_corruption_that_needs_all_labels(
    corruption: str, instead: str
) -> None:
    """Target "spans" was advised, which not all of them have."""
    given = [{**row, "sentence": [0] * len(row["input_ids"])} for row in rows(labels=True)]
    with pytest.raises(MaskwiseError, match="loss_mask") as caught:
        mw.Masker(tokenizer(), ratio=0.9, corruption=corruption)(given, epoch=0)
    assert str(caught.value.do).endswith(f" {instead}")
    named = instead if "(" in instead else f"{corruption}({instead})"
    assert mw.Masker(tokenizer(), ratio=0.9, corruption=named)(given, epoch=0).targets > 0


def test_every_door_reads_a_loss_mask() -> None:
    given = [{**row, "step": 0, "epoch": 0} for row in with_loss_mask(rows(labels=True))]
    masker = mw.Masker(tokenizer(), ratio=0.9, corruption="mask-only")
    assert silent(mw.MaskingCollator(masker)(given))
    line = PackedCollator(masker, model=model("bert"))(given)
    assert set(line["labels"][0, [*range(3, 9), *range(17, 22)]].tolist()) == {IGNORE}
    assert silent(Noising(tokenizer(), seed=0)(given, epoch=0))
    assert silent(masker(RowCollator(masker.vocabulary)(given), step=0))


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"mixture", "learned", "guided"}))
def test_labels_without_exclusions_change_nothing(policy: str) -> None:
    try:
        masker = mw.Masker(tokenizer(), policy=policy, ratio=0.4)
        plain = masker(rows(labels=False), step=3)
    except MaskwiseError:
        pytest.skip("the policy needs more layers")
    given = rows(labels=False)
    for row in given:
        # Excluded are only tokens that are no targets anyway.
        row["labels"] = [IGNORE, *row["input_ids"][1:-1], IGNORE]
    same = masker(given, step=3)
    assert torch.equal(same.labels, plain.labels)
    assert torch.equal(same.input_ids, plain.input_ids)


def test_masked_diffusion_excludes_them_from_its_count() -> None:
    noising = Noising(tokenizer(), seed=0)
    batch = noising(rows(labels=True), epoch=0)
    assert silent(batch)
    plain = noising(rows(labels=False), epoch=0)
    assert plain.counted is not None and batch.counted == plain.counted - 6 - 5 - 6


WHOLE = ["infill", "delete", "replace(target='full')", "t5(target='full')", "permute-sentences"]


@pytest.mark.parametrize("corruption", WHOLE)
def test_predict_leaves_out_no_label_that_a_decoder_writes(corruption: str) -> None:
    with pytest.raises(MaskwiseError, match="predict needs a corruption"):
        Masking.of(corruption=corruption, predict=0.5)
    assert Masking.of(corruption=corruption, predict=1.0)


def test_spans_for_a_decoder_leave_them_out() -> None:
    batch = mw.Masker(tokenizer(), ratio=0.9, corruption="infill(target='spans')")(
        rows(labels=True), step=0
    )
    assert not set(range(13, 17)) & set(batch.labels.flatten().tolist())


@pytest.mark.parametrize("name", ["clm", "rtd"])
def test_objectives_that_ask_about_every_token_leave_them_out(name: str) -> None:
    kind = objective_class(name)
    masker: Any = kind.maker(tokenizer(), seed=0, length=14, ratio=0.9) if name == "rtd" else None
    if masker is None:
        masker = kind.maker(tokenizer(), seed=0, length=14)
    batch = masker(rows(labels=True), step=0, total_steps=1, epoch=0)
    outcome = objective(name, model("bert"))(batch)
    assert bool(torch.isfinite(outcome.total))
    if name == "rtd":
        assert not batch.line.predicted.reshape(3, 14)[:, 3:8].any()
    else:
        # The label of a position is the token after it.
        assert set(batch.labels[:, 2:7].flatten().tolist()) == {IGNORE}


@pytest.mark.parametrize("labels", [False, True])
def test_collators_pass_them_on(labels: bool) -> None:
    masker = mw.Masker(tokenizer(), ratio=0.9, corruption="mask-only")
    given = [{**row, "step": 0, "epoch": 0} for row in rows(labels=labels)]
    assert silent(mw.MaskingCollator(masker)(given)) == labels
    line = PackedCollator(masker, model=model("bert"))(given)
    secret = [*range(3, 9), *range(17, 22), *range(26, 32)]
    assert set(line["labels"][0, secret].tolist()) == {IGNORE} or not labels
    columns = RowCollator(masker.vocabulary)(rows(labels=labels))
    assert ("labels" in columns) == labels
    assert silent(masker(columns, step=0)) == labels


@pytest.mark.parametrize("name", ["content", "present", "silent", "eligible", "piece", "shape"])
def test_a_layer_may_have_the_name_of_an_attribute(name: str) -> None:
    masker = mw.Masker(tokenizer(), ratio=0.9, corruption="mask-only")
    given = rows(labels=True)
    flags = [[n % 2 for n in range(len(row["input_ids"]))] for row in given]
    for kind in (int, bool):
        named = [{**row, name: [*map(kind, own)]} for row, own in zip(given, flags, strict=True)]
        plain, columns = (RowCollator(masker.vocabulary)(each) for each in (given, named))
        assert columns.keys() == plain.keys() | {name}
        assert all(torch.equal(columns[key], values) for key, values in plain.items())
        assert [row[: len(own)] for row, own in zip(columns[name].tolist(), flags)] == flags
        assert torch.equal(masker(columns, step=0).labels, masker(given, step=0).labels)


def test_a_trainer_never_predicts_them(tmp_path: Any) -> None:
    """In training and in evaluation; before, Trainer's rows lost their labels."""
    masker = mw.Masker(tokenizer(), ratio=1.0, corruption="mask-only")
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    counts = []
    for labels in (False, True):
        trainer = mw.MaskingTrainer(
            model("bert"),
            arguments,
            masker=masker,
            train_dataset=rows(labels=labels),
            eval_dataset=rows(labels=labels),
        )
        trainer.train()
        counts.append(trainer.evaluate()["eval_targets"])
    assert counts == [12 + 7 + 12, 12 + 7 + 12 - 6 - 5 - 6]


def test_labels_of_rows_are_not_read_and_labels_of_other_lengths_are_refused() -> None:
    masker = mw.Masker(tokenizer(), ratio=0.5)
    plain = masker(rows(labels=False), step=0)
    for name in ("label", "labels", "label_ids"):
        classes = [{**row, name: number} for number, row in enumerate(rows(labels=False))]
        assert torch.equal(masker(classes, step=0).labels, plain.labels)
        columns = {**stacked(rows(labels=False), torch.as_tensor), name: torch.tensor([1, 0, 2])}
        assert torch.equal(masker(columns, step=0).labels, plain.labels)
    with pytest.raises(MaskwiseError, match="'labels' of row 0 has the wrong length"):
        masker([{**row, "labels": [1, 2]} for row in rows(labels=False)], step=0)
    with pytest.raises(MaskwiseError, match="'labels' must be whole numbers"):
        masker([{**row, "labels": row["score"]} for row in rows(labels=False)], step=0)


@pytest.mark.parametrize("name", ["special_token_mask", "score"])
def test_a_column_of_a_name_of_its_own_is_kept(name: str) -> None:
    """Only names that nearly are those of columns that are read are refused."""
    given = [
        {"input_ids": row["input_ids"], name: [1] * len(row["input_ids"])}
        for row in rows(labels=False)
    ]
    masker = mw.Masker(tokenizer(), ratio=0.5)
    for form in (given, {key: [row[key] for row in given[::2]] for key in given[0]}):
        with pytest.warns(UserWarning, match="no example_id"):
            masker(form, step=0)


@pytest.mark.parametrize("name", ["step", "epoch"])
def test_rows_of_another_step_are_refused(name: str) -> None:
    """The masker masked them for step 0, and the collator for the step of the rows."""
    given = [{**row, name: 3} for row in rows(labels=False)]
    masker = mw.Masker(tokenizer(), ratio=0.5)
    with pytest.raises(MaskwiseError, match=f"another {name} .* pass {name}=3, or use Masking"):
        masker(given)
    same = masker(given, **{name: 3})
    plain = masker(rows(labels=False), **{name: 3})
    assert torch.equal(same.labels, plain.labels)


def test_positions_of_the_user_are_used_or_refused() -> None:
    packed = [
        {**row, "position_ids": [*range(14)][: len(row["input_ids"])]}
        for row in rows(labels=False, packed=True)
    ]
    masker = mw.Masker(tokenizer(), ratio=0.5)
    net = model("bert").eval()
    trainee = objective("mlm", net)
    own, usual = masker(packed, step=0), masker(rows(labels=False, packed=True), step=0)
    assert torch.equal(own.labels, usual.labels)
    with torch.no_grad():
        # In packed rows, positions begin anew in every document, unless the user says otherwise.
        assert not torch.equal(trainee(own).total, trainee(usual).total)
    alone = [
        {**row, "step": 0, "epoch": 0, "position_ids": [*range(len(row["input_ids"]))]}
        for row in rows(labels=False)
    ]
    with pytest.raises(MaskwiseError, match="PackedCollator counts the positions"):
        PackedCollator(masker, model=net)(alone)
