"""Corruptions: hand-worked literals, round trips over random rows, and what each promises."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from maskwise.base.errors import MaskwiseError
from maskwise.masking import CORRUPTIONS, IGNORE, Line, Masker, Vocabulary, gather
from maskwise.masking.corruptions import Insert, corruption
from maskwise.masking.draws import Draws
from maskwise.masking.select import Choice
from maskwise.masking.units import Units

TEXT = "Thank you for inviting me to your party last week . Come again soon"
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


@lru_cache(maxsize=4)
def tokenizer(
    frame: str = "<s> </s>", mask: bool = True, sentinels: int = 60
) -> PreTrainedTokenizerFast:
    """One token a word; ids 0 to 5 are special or [UNK], then words, then sentinels and mode
    tokens.
    """
    bos, eos = frame.split()
    names = [
        "<pad>",
        "<unk>",
        bos,
        eos,
        *(["<mask>"] if mask else []),
        *dict.fromkeys([*TEXT.split(), *LETTERS]),
    ]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>")
        ),
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=bos,
        eos_token=eos,
        **({"mask_token": "<mask>"} if mask else {}),
    )
    extra = [f"<extra_id_{i}>" for i in range(sentinels)] + (
        ["[R]", "[S]", "[X]"] if sentinels else []
    )
    made.add_special_tokens({"additional_special_tokens": extra})
    return made


def batch_of(*lines: str) -> tuple[Line, torch.Tensor]:
    """Rows written as words, chosen ones in braces: ``<s> a {b c} d </s>``. "." ends a sentence."""
    vocabulary, table = Vocabulary.of(tokenizer()), tokenizer().get_vocab()
    rows, chosen = [], []
    for number, line in enumerate(lines):
        inside, ids, marks, sentence = False, [], [], []
        for word in line.split():
            inside |= word.startswith("{")
            ids.append(table[word.strip("{}")])
            marks.append(inside)
            inside &= not word.endswith("}")
        for i in range(len(ids)):
            special = not bool(vocabulary.content[ids[i]])
            sentence.append(-1 if special else ids[:i].count(table["."]))
        rows.append({"input_ids": ids, "example_id": number, "sentence": sentence})
        chosen.append(marks)
    line = gather(rows, vocabulary)
    return line, torch.tensor([marks + [False] * (line.shape[1] - len(marks)) for marks in chosen])


def words(row: torch.Tensor) -> str:
    """Ids to words; padding and −100 are left out."""
    return " ".join(
        tokenizer().convert_ids_to_tokens([i for i in row.tolist() if i not in (0, IGNORE)])
    )


def show(spec: str, *lines: str, seed: int = 0) -> list[tuple[str, str]]:
    """Literals in, (inputs, targets) literals out."""
    shown = corrupted(spec, *batch_of(*lines), seed=seed)
    return [(words(a), words(b)) for a, b in zip(shown.input_ids, shown.labels)]


def selected(line: Line, chosen: torch.Tensor) -> Choice:
    units = Units.single(line)
    return Choice(units, chosen.numpy().reshape(-1)[units.tokens], np.zeros(len(line.begin)))


def corrupted(spec: Any, line: Line, chosen: torch.Tensor, *, seed: int = 0) -> Any:
    draws = Draws(line.example_id, seed=seed, epoch=0)
    choice = selected(line, chosen)
    shown = corruption(spec).corrupt(line, choice, draws, Vocabulary.of(tokenizer()))
    return shown.batch(choice, 0)


def table(spec: str, *pairs: tuple[str, str, str]) -> None:
    """Each line (row with braces, inputs, targets), worked by hand; all lines go as one batch."""
    got = show(spec, *(line for line, _, _ in pairs))
    assert got == [(inputs, targets) for _, inputs, targets in pairs]


# Hand-worked forms


def test_t5_is_the_published_example() -> None:
    """Raffel et al. 2020, figure 2; and the same row as T5's tokenizer frames it."""
    table(
        "t5(eos=False)",
        (
            "Thank you {for inviting} me to your party {last} week .",
            "Thank you <extra_id_0> me to your party <extra_id_1> week .",
            "<extra_id_0> for inviting <extra_id_1> last <extra_id_2>",
        ),
    )
    # The runs of two rows stay two runs, though nothing lies between them.
    table(
        "t5(eos=False)",
        ("{a}", "<extra_id_0>", "<extra_id_0> a <extra_id_1>"),
        ("{b}", "<extra_id_0>", "<extra_id_0> b <extra_id_1>"),
    )
    table(
        "t5",
        ("a {b c} d </s>", "a <extra_id_0> d </s>", "<extra_id_0> b c <extra_id_1> </s>"),
        (
            "{a} b {c} </s>",
            "<extra_id_0> b <extra_id_1> </s>",
            "<extra_id_0> a <extra_id_1> c <extra_id_2> </s>",
        ),
        (
            "<s> {a b} </s> {c} d </s>",
            "<s> <extra_id_0> </s> <extra_id_1> d </s>",
            "<extra_id_0> a b <extra_id_1> c <extra_id_2> </s>",
        ),
        ("a b c </s>", "a b c </s>", ""),
    )
    table(
        "t5(target='full')",
        ("a {b c} d", "a <extra_id_0> d", "a b c d </s>"),
        ("{a} </s>", "<extra_id_0> </s>", "a </s>"),
    )


def test_infilling_is_the_published_example() -> None:
    """Lewis et al. 2020, figure 2: A B C D E. with C-D masked by one token; the target is the
    text.
    """
    table(
        "infill(mean=None)",
        ("<s> a b {c d} e . </s>", "<s> a b <mask> e . </s>", "<s> a b c d e . </s>"),
        ("<s> {a} b {c} </s>", "<s> <mask> b <mask> </s>", "<s> a b c </s>"),
        ("<s> {a b c} </s>", "<s> <mask> </s>", "<s> a b c </s>"),
        ("<s> a b </s>", "<s> a b </s>", ""),
    )
    table(
        "infill(mean=None, target='spans')",
        ("<s> a {b c} d {e} </s>", "<s> a <mask> d <mask> </s>", "<mask> b c <mask> e </s>"),
        ("<s> a </s>", "<s> a </s>", ""),
    )


def test_deletion_insertion_and_their_detection() -> None:
    table("delete", ("<s> a {b c} d {e} </s>", "<s> a d </s>", "<s> a b c d e </s>"))
    table(
        "delete(target='spans')",
        ("<s> a {b c} d {e} </s>", "<s> a d </s>", "b c e </s>"),
        ("<s> a </s>", "<s> a </s>", ""),
    )
    shown = corrupted(
        "delete(target='detect')", *batch_of("<s> a {b c} d f {e} </s>", "<s> a b </s>")
    )
    assert shown.labels.tolist() == [[IGNORE, 0, 1, 0, 1], [IGNORE, 0, 0, 0, IGNORE]]
    shown = corrupted("insert(target='detect')", *batch_of("<s> a {b} {c} d </s>", "<s> a b </s>"))
    assert shown.labels.tolist() == [
        [IGNORE, 0, 1, 0, 1, 0, 0, IGNORE],
        [IGNORE, 0, 0] + [IGNORE] * 5,
    ]
    assert words(shown.input_ids[0]).split()[0::1][1] == "a"
    kept = shown.input_ids[0][shown.labels[0] != 1]
    assert words(kept) == "<s> a b c d </s>"


@pytest.mark.parametrize("spec", ["infill", "t5", "t5(target='full')", "delete"])
def test_a_batch_without_targets_has_one_column_of_ignored_labels(spec: str) -> None:
    """A decoder reads the first label of every row."""
    batch, chosen = batch_of("<s> a b </s>", "<s> c </s>")
    shown = corrupted(spec, batch, chosen)
    assert not chosen.any() and shown.targets == 0
    assert shown.labels.tolist() == [[IGNORE], [IGNORE]]


def test_what_is_inserted_does_not_depend_on_the_rows_beside_it() -> None:
    """A cut at the width of the batch did; so did the room for empty spans of infilling."""
    long, short = "<s> a {b c} d e {f} g h i </s>", "<s> {a} b {c d e} </s>"
    for spec in ("insert(cut=6)", "infill(mean=0.7)"):
        alone, beside = (corrupted(spec, *batch_of(*rows)) for rows in ((short,), (short, long)))
        size = int(alone.attention_mask[0].sum())
        assert int(beside.attention_mask[0].sum()) == size
        assert torch.equal(beside.input_ids[0, :size], alone.input_ids[0, :size])


def test_replacement_never_gives_the_same_token() -> None:
    batch, chosen = batch_of(*["<s> {" + " ".join(LETTERS * 3) + "} </s>"] * 60)
    shown = corrupted("replace", batch, chosen)
    inside, truth = shown.input_ids[chosen], batch.tensor(batch.input_ids)[chosen]
    assert (inside != truth).all() and torch.equal(shown.labels[chosen], truth)
    assert inside.unique().tolist() == Vocabulary.of(tokenizer()).ordinary.tolist()
    detect = corrupted("replace(target='detect')", *batch_of("<s> a {b} c </s>"))
    assert detect.labels.tolist() == [[IGNORE, 0, 1, 0, IGNORE]]


def test_sentences_with_a_chosen_token_change_places() -> None:
    line = "<s> {a} . {b c} . d e . {f .} </s>"
    seen = {show("permute-sentences", line, seed=seed)[0] for seed in range(200)}
    assert {targets for _, targets in seen} == {"<s> a . b c . d e . f . </s>"}
    # The third sentence stays the third; the others in all six orders.
    assert {inputs for inputs, _ in seen} == {
        "<s> a . b c . d e . f . </s>",
        "<s> a . f . d e . b c . </s>",
        "<s> b c . a . d e . f . </s>",
        "<s> b c . f . d e . a . </s>",
        "<s> f . a . d e . b c . </s>",
        "<s> f . b c . d e . a . </s>",
    }
    inner = {
        show("permute-sentences(inner=infill(mean=None))", "<s> {a b} . c {d} . </s>", seed=s)[0]
        for s in range(20)
    }
    assert inner == {
        ("<s> <mask> . c <mask> . </s>", "<s> a b . c d . </s>"),
        ("<s> c <mask> . <mask> . </s>", "<s> a b . c d . </s>"),
    }


# Empty spans


def test_empty_spans_come_as_often_as_poisson_lengths_of_zero() -> None:
    """q/(1 − q) of them for each span with a length, at places that no span touches."""
    line = "<s> " + " ".join(["a", "{b}", "c", "d", "e", "f", "g", "h", "i", "j"] * 6) + " </s>"
    batch, chosen = batch_of(*[line] * 400)
    empties = 0
    for seed in range(10):
        shown = corrupted("infill(mean=1.0, target='spans')", batch, chosen, seed=seed)
        empties += int((shown.input_ids == 4).sum()) - int(chosen.sum())
    q = 0.36787944
    # Of 59 places between tokens 12 touch a chosen one; two empty spans at one place are one mask.
    expected = 47 * (1 - (1 - q / (1 - q) / 47) ** 6)
    assert abs(empties / 4000 - expected) < 0.08, (empties / 4000, expected)


@pytest.mark.parametrize("how", ["keep", "loss_mask"])
def test_nothing_is_inserted_beside_tokens_that_stay_as_they_are(how: str) -> None:
    ids = tokenizer().convert_tokens_to_ids(["<s>", *"abcdefghij" * 3, "</s>"])
    kept = [1] * 15 + [0] * (len(ids) - 15)
    column = [part - 1 for part in kept] if how == "keep" else [1 - part for part in kept]
    row = {"input_ids": ids, "part" if how == "keep" else how: column}
    rows = [{**row, "example_id": n} for n in range(60)]
    masks = []
    for mean in (1.0, None):
        made = Masker(
            tokenizer(),
            ratio=0.4,
            corruption=f"infill(mean={mean}, target='spans')",
            keep="part" if how == "keep" else None,
        )
        inputs = made(rows, epoch=0).input_ids
        assert (inputs[:, :15] == torch.tensor(ids[:15])).all()
        masks.append(int((inputs == tokenizer().mask_token_id).sum()))
    # Elsewhere, empty spans are inserted.
    assert masks[0] > masks[1]


# Round trips


def fill_in(inputs: list[int], target: list[int], leads: set[int]) -> list[int]:
    """Put behind each lead in the target what it stands for, in the place of the lead in the
    inputs.
    """
    groups: list[list[int]] = []
    for token in target:
        if token in leads:
            groups.append([])
        elif groups:
            groups[-1].append(token)
    rest = iter(groups)
    return [token for place in inputs for token in (next(rest) if place in leads else [place])]


@pytest.mark.parametrize("spec", ["t5", "infill(mean=0.7, target='spans')"])
def test_inputs_and_targets_make_the_text_again(spec: str) -> None:
    """Rows of 0 to 39 tokens, with [UNK] and special tokens in the middle."""
    vocabulary, rng = Vocabulary.of(tokenizer()), np.random.default_rng(0)
    modes = {vocabulary.by_name[name] for name in ("[R]", "[S]", "[X]")}
    rows = []
    for size in range(40):
        ids = rng.choice([1, 3, *vocabulary.ordinary], size).tolist()
        rows.append({"input_ids": [2, *ids, 3], "example_id": size})
    shown = Masker(vocabulary, corruption=spec, ratio=0.4)(rows, epoch=0)
    for row, inputs, target in zip(rows, shown.input_ids.tolist(), shown.labels.tolist()):
        read = [token for token in inputs if token and token not in modes]
        written = [token for token in target if token != IGNORE]
        used = [token for token in written if token in vocabulary.sentinels]
        assert used == list(vocabulary.sentinels[: len(used)]) and written[-1:] in ([], [3])
        assert fill_in(read, written[:-1], {4, *vocabulary.sentinels}) == row["input_ids"]


# Model inputs, errors


def test_extras_move_with_their_tokens() -> None:
    batch, chosen = batch_of("<s> a {b c} d </s> e {f} </s>")
    batch.extras["token_type_ids"] = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    batch.extras["position_ids"] = np.arange(9)
    assert corrupted("delete", batch, chosen).extras["token_type_ids"].tolist() == [
        [0, 0, 0, 0, 1, 1]
    ]
    shown = corrupted("infill(mean=None)", batch, chosen)
    assert shown.extras["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    assert (
        shown.input_ids.shape == shown.extras["token_type_ids"].shape
        and "position_ids" not in shown.extras
    )


@pytest.mark.parametrize("spec", ["replace", "delete", "insert", "permute-sentences"])
def test_those_that_show_nothing_special_take_any_tokenizer(spec: str) -> None:
    Masker(tokenizer(mask=False, sentinels=0), corruption=spec)


@pytest.mark.parametrize("spec", [*CORRUPTIONS, "permute-sentences(inner=infill)"])
def test_a_mask_token_is_needed_where_it_is_said(spec: str) -> None:
    try:
        Masker(tokenizer(mask=False), corruption=spec)
    except MaskwiseError as error:
        assert corruption(spec).shows_mask and "no mask token" in str(error)
        # Masked diffusion has this error, too, and takes no other corruption.
        assert "add_special_tokens" in str(error) and "encoder–decoder" in str(error)
    else:
        assert not corruption(spec).shows_mask


def test_more_spans_than_sentinels() -> None:
    with pytest.raises(MaskwiseError, match="got 60; allowed: at most 59; use longer spans"):
        show("t5", " ".join(["{a}", "b"] * 60))
    assert show("t5", " ".join(["{a}", "b"] * 59))[0][0].endswith("<extra_id_58> b")


def test_added_runs_are_cut_at_the_end() -> None:
    rows = {"input_ids": torch.full((400, 30), 9), "example_id": torch.arange(400)}
    whole, cut = (
        Masker(tokenizer(), corruption=Insert("detect", cut=cut, again=0.8), ratio=0.5)(rows)
        for cut in (None, 40)
    )
    assert cut.input_ids.shape[1] == 40 < whole.input_ids.shape[1]
    for name in ("input_ids", "labels"):
        assert torch.equal(cut[name], whole[name][:, :40])
    for again in (-0.1, 0.95, float("nan")):
        with pytest.raises(MaskwiseError) as caught:
            Insert(again=again)
        assert caught.value.got == repr(again)


@pytest.mark.parametrize(
    "spec", ["insert", "insert(target='detect')", "infill(mean=0.7)", "delete", "t5"]
)
@pytest.mark.parametrize("closed", [True, False])
def test_a_packed_row_that_has_grown_past_its_plan_is_cut_at_its_end(
    spec: str, closed: bool
) -> None:
    """The masks of its pieces stay, its last special token too, and what is cut is counted."""
    vocabulary = Vocabulary.of(tokenizer())
    word = vocabulary.ordinary
    line = [2, *word[:5], 3, *word[5:9], 3] if closed else [*word[:5], *word[5:9]]
    name = np.array([1] * 7 + [2] * 5 if closed else [1] * 5 + [2] * 4)
    rows = {"input_ids": np.array([line, line]), "example_id": np.stack([name, name + 7])}
    made = Masker(vocabulary, ratio=0.5, corruption=spec)
    free = gather(rows, vocabulary)
    free.plan = None
    whole, cut = made(free, epoch=0), made(rows, epoch=0)
    plan, lost = len(line), 0
    for b in range(2):
        before, after = (m.input_ids[b][m.segment_ids[b] >= 0].tolist() for m in (whole, cut))
        lost += len(before) - len(after)
        kept = before[: plan - closed] + before[plan - closed :][-1:] * closed
        assert after == kept
    assert cut.cut == lost and whole.cut == 0
    assert (lost > 0) == spec.startswith(("insert", "infill"))
    assert "detect" in spec or torch.equal(cut.labels, whole.labels), "targets are whole"


@pytest.mark.parametrize(
    ("spec", "added", "behind_added"),
    [
        ("insert(target='detect')", 0.15 / 1.15, 0.0),
        # as the published code of atd: measured
        ("insert(target='detect', again=0.15)", 0.149, 0.151),
    ],
)
def test_shares_of_added_tokens(spec: str, added: float, behind_added: float) -> None:
    rows = {"input_ids": torch.full((2000, 60), 9), "example_id": torch.arange(2000)}
    made = Masker(tokenizer(), corruption=spec, ratio=0.15, budget="bernoulli", min_targets=0)
    batch = made(rows, epoch=0)
    labels = batch.labels[batch.attention_mask.bool()]
    assert float((labels == 1).double().mean()) == pytest.approx(added, abs=0.003)
    line = batch.labels.flatten()
    follows = line[1:][line[:-1] == 1]
    assert float((follows == 1).double().mean()) == pytest.approx(behind_added, abs=0.006)
    kept = batch.input_ids[(batch.labels == 0) & batch.attention_mask.bool()]
    assert kept.tolist() == rows["input_ids"].flatten().tolist()  # the text itself stays
