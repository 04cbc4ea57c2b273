"""The masker as people use it: rows in, what comes out, what is refused."""

from __future__ import annotations

import tracemalloc
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tokenizers import AddedToken, Tokenizer, models
from transformers import BatchEncoding, PreTrainedTokenizerFast, T5TokenizerFast

from masking_tools import (
    CLS,
    FIRST,
    MASK,
    PAD,
    POLICY_SPECS,
    SEP,
    UNK,
    WORDS,
    line,
    masker,
    packed,
    padded,
    per_row,
    random_rows,
    row,
    tokenizer,
    vocabulary,
)
from maskwise.annotate.registry import ANNOTATORS, annotator
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation import EvaluationSettings
from maskwise.masking import IGNORE, Line, Masker, MaskingCollator, Noising, Vocabulary, gather
from maskwise.masking.draws import Draws
from maskwise.masking.line import Frame
from maskwise.masking.policies import Policy, UnitKind, When, mixture, policy
from maskwise.masking.settings import Masking, MaskingSettings
from maskwise.masking.units import Units, runs
from maskwise.masking.vocabulary import wildcards
from maskwise.text import train_tokenizer


def test_shares_of_mask_random_and_keep() -> None:
    rows = padded([row([1] * 50, example_id=i) for i in range(2000)])
    out = masker(ratio=0.5)(rows, epoch=0)
    chosen = out.selected
    shown, original = out.input_ids[chosen], rows["input_ids"][chosen]
    n = len(shown)
    masked, same = (shown == MASK).double().mean(), (shown == original).double().mean()
    error = 4.5 * 0.5 / n**0.5
    assert abs(float(masked) - 0.8) < error
    assert abs(float(same) - 0.1 - 0.1 / WORDS) < error, "kept, or drawn to be what it was"
    drawn = Counter(shown[(shown != MASK) & (shown != original)].tolist())
    assert set(drawn) == set(range(FIRST, FIRST + WORDS)), "all ordinary tokens, and no other"
    expected = sum(drawn.values()) / WORDS
    assert chisquare(list(drawn.values()), [expected] * WORDS).pvalue > 1e-3


@pytest.mark.parametrize(("mask", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_shares_are_free(mask: float, random: float) -> None:
    rows = padded(random_rows(50))
    out = masker(corruption=f"bert(mask={mask}, random={random})", ratio=0.4)(rows, epoch=0)
    shown, original = out.input_ids[out.selected], rows["input_ids"][out.selected]
    masked = (shown == MASK).float().mean()
    assert mask == 0.5 or masked == mask
    assert torch.equal(shown, original) == (mask + random == 0)


def test_one_draw_per_unit() -> None:
    rows = padded([row([4] * 10, example_id=i) for i in range(200)])
    for per in ("unit", "token"):
        out = masker("whole-word", f"bert(per='{per}')", ratio=0.5)(rows, epoch=0)
        words = (out.input_ids[:, 1:-1] == MASK).view(200, 10, 4)
        assert bool((words.all(2) == words.any(2)).all()) == (per == "unit")
        assert 0.7 < float(words.sum() / out.selected.sum()) < 0.9


def test_layouts_and_dtypes_do_not_matter() -> None:
    rows = random_rows(6)
    tensors = padded(rows)
    reference = masker("weighted")(tensors, epoch=0)
    arrays, own = (
        [{name: kind(value) for name, value in one.items()} for one in rows]
        for kind in (np.array, torch.tensor)
    )
    small = tensors | {name: tensors[name].int() for name in ("input_ids", "word_ids")}
    turned = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in tensors.items()}
    lists = {name: value.tolist() for name, value in tensors.items()}
    for same in (rows, arrays, own, small, turned, lists, BatchEncoding(tensors)):
        out = masker("weighted")(same, epoch=0)
        assert torch.equal(out.input_ids, reference.input_ids) and torch.equal(
            out.labels, reference.labels
        )


def test_fractions_and_none_in_lists_are_kept() -> None:
    one = random_rows(1)[0]
    one["weight"] = [0] + [0.25] * (len(one["input_ids"]) - 1)  # begins with a whole number
    one["word_ids"] = [None if w < 0 else w for w in one["word_ids"]]
    batch = gather([one], vocabulary())
    assert batch.layers["weight"][1:].tolist() == [0.25] * (len(one["input_ids"]) - 1)
    assert batch.layers["word_ids"][0] == -1 and batch.layers["word_ids"].dtype == np.int64


def test_what_is_for_others_is_left_alone() -> None:
    more = {"text": "x", "tokens": ["a", "b"], "labels": 1, "step": 0, "idx": 7}
    rows = [{**r, **more, "token_type_ids": [0] * len(r["input_ids"])} for r in random_rows(3)]
    out = masker()(rows, epoch=0)
    assert set(out.keys()) == {"input_ids", "labels", "attention_mask", "token_type_ids"}
    assert set(out.line.layers) == random_rows(1)[0].keys() - {"input_ids", "example_id"}
    assert out["token_type_ids"].shape == out.input_ids.shape and out.targets == int(
        (out.labels != IGNORE).sum()
    )


def test_special_tokens_mask_and_attention_mask_hide_tokens() -> None:
    rows = padded(random_rows(4))
    rows["special_tokens_mask"] = torch.zeros_like(rows["input_ids"])
    rows["special_tokens_mask"][:, 1:6] = 1
    rows["attention_mask"] = rows["attention_mask"].bool()
    rows["attention_mask"][:, 10:] = False
    chosen = masker(ratio=1.0)(rows, epoch=0).selected
    assert chosen[:, 6:10].all() and chosen.sum() == 16


def test_rows_without_example_ids_are_keyed_by_their_text_with_one_warning() -> None:
    rows = random_rows(4)
    nameless = [{k: v for k, v in r.items() if k != "example_id"} for r in rows]
    made = masker(ratio=0.4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            first = made(nameless, epoch=0)
    assert len(caught) == 1 and "example_id" in str(caught[0].message)
    with pytest.warns(UserWarning, match="example_id"):
        alone = made(
            padded([r | {"example_id": 0} for r in nameless[2:3]], width=60) | {"example_id": None},
            epoch=0,
        )
    n = len(rows[2]["input_ids"])
    assert torch.equal(alone.input_ids[0, :n], first.input_ids[2, :n])


def test_packed_rows_of_one_document_each_and_none() -> None:
    empty = {
        "input_ids": torch.full((2, 5), PAD),
        "example_id": torch.zeros(2, 5, dtype=torch.long),
    }
    out = masker()(empty, epoch=0)
    assert out.targets == 0 and torch.equal(out.input_ids, empty["input_ids"])
    blocks = packed([row([2, 0, 1], example_id=4), row([1, 1], example_id=5)], width=12)
    batch = gather(blocks, vocabulary())
    assert batch.example_id.tolist() == [4, 5], "a [SEP] inside parts no document"
    assert batch.begin.tolist() == [0, 6] and batch.row.tolist() == [0, 0], (
        "[CLS] is of the document behind it"
    )


def test_example_ids_of_64_bits_keep_their_bits() -> None:
    rows = padded(random_rows(2))
    large = np.array([2**63 + 5, 7], dtype=np.uint64)
    unsigned, signed = (
        masker()(rows | {"example_id": ids}, epoch=0) for ids in (large, large.view(np.int64))
    )
    assert torch.equal(unsigned.labels, signed.labels)


def test_arguments_without_effect_are_refused() -> None:
    """Masks with ratio=0.9 and a policy with its own ratio were those of ratio=0.1."""
    for more, match in (
        (
            {"policy": "t5-span(3, 0.2)", "ratio": 0.9},
            r"ratio has no effect, because policy .*; got 0.9; leave",
        ),
        ({"policy": "t5-span(ratio=0.3)", "ratio": "linear(0.3, 0.1)"}, "ratio has no effect"),
        (
            {"policy": "mixture(t5-span(3, 0.2), t5-span(8, 0.5))", "ratio": 0.3},
            "ratio has no effect",
        ),
        (
            {"policy": "whole-word", "budget": "bernoulli", "min_targets": 3},
            "min_targets has no effect with budget bernoulli",
        ),
        ({"policy": "token", "fill": "random"}, "fill has no effect, because policy .* every unit"),
        ({"policy": "whole-word", "fill": "skip-row"}, "fill has no effect, because policy"),
        (
            {"policy": "salient", "fill": "random", "budget": "bernoulli"},
            "fill has no effect, because budget bernoulli",
        ),
    ):
        with pytest.raises(MaskwiseError, match=match) as error:
            Masker(vocabulary(), **more)
        assert "\n" not in str(error.value)
        # Arms have settings in common with others, and leave out what they do not use.
        settings = MaskingSettings(**more)
        assert Masking.shared(settings.model_dump()).policy == policy(more["policy"])
    # With these, the settings have an effect, or ask for nothing.
    Masker(vocabulary(), policy="mixture(t5-span(3, 0.2), token)", ratio=0.3)
    Masker(vocabulary(), policy="token", budget="bernoulli", min_targets=3)
    Masker(vocabulary(), policy="whole-word", budget="bernoulli", min_targets=0)
    with pytest.raises(MaskwiseError, match="min_targets has no effect in masked diffusion"):
        Noising(vocabulary(), min_targets=3)
    with pytest.raises(MaskwiseError, match="fill has no effect, because policy"):
        Noising(vocabulary(), fill="random")
    with pytest.raises(ValueError, match="a policy without a ratio of its own; got t5-span"):
        EvaluationSettings(masks=("t5-span(3, 0.2)",))


def small_tokenizer(**more: str) -> PreTrainedTokenizerFast:
    names = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 6}  # 4 and 5 are holes
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(names, unk_token="[UNK]")), **more
    )


def test_vocabulary() -> None:
    made = vocabulary()
    assert made.ordinary.tolist() == list(range(FIRST, FIRST + WORDS))
    assert (
        made.content[UNK]
        and not made.eligible[UNK]
        and not made.content[[PAD, CLS, SEP, MASK]].any()
    )
    assert len(made.sentinels) == 120 and not made.content[list(made.sentinels)].any()
    small = small_tokenizer(pad_token="[PAD]", unk_token="[UNK]")
    small.add_tokens([AddedToken("<reserved>", special=True)])
    assert Vocabulary.of(small).ordinary.tolist() == [2, 3, 6], (
        "neither holes nor reserved tokens are real"
    )
    with pytest.raises(MaskwiseError, match=r"no mask token.*add_special_tokens"):
        Masker(small)
    with pytest.raises(MaskwiseError, match="no padding token"):
        Vocabulary.of(small_tokenizer(unk_token="[UNK]"))
    shared = Vocabulary.of(small_tokenizer(pad_token="[UNK]", unk_token="[UNK]", mask_token="c"))
    assert not shared.content[1], "a token that is unknown and padding alike is special"
    assert shared.ordinary.tolist() == [0, 2, 3]


def test_spare_tokens_are_no_targets_and_no_replacements() -> None:
    """BERT's own vocabulary has 994 of them."""
    spare = ["[unused0]", "[unused993]", "<unused7>", "madeupword0001"]
    plain = ["unused", "[unused]", "unused1", "a", "b"]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    names = {name: n for n, name in enumerate([*special.values(), *spare, *plain])}
    backend = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    made = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=backend, **special))
    assert made.ordinary.tolist() == [names[name] for name in plain]
    # A text of ids may have them.
    assert made.content[[names[name] for name in spare]].all()


LAYERS_OF = {
    layer: name
    for name, make in ANNOTATORS.items()
    if name not in ("gold", "spans", "stored", "learned")
    for layer in make().layers
}


@pytest.mark.parametrize("name", [*LAYERS_OF, "weight", "w"])
def test_the_advice_about_a_missing_layer_works(name: str) -> None:
    with pytest.raises(MaskwiseError) as caught:
        line(1, 4).layer(name)
    advice = str(caught.value.do)
    if name not in LAYERS_OF:
        assert f"a column {name!r} with a number for each token" in advice
        assert "layers=[" not in advice
        return
    maker = annotator(LAYERS_OF[name])
    if getattr(maker, "fitted", True):
        assert f"layers=['{LAYERS_OF[name]}']" in advice
        return
    assert f"annotate_corpus(FILE, ['{LAYERS_OF[name]}'], FOLDER)" in advice
    assert """layers=['stored("FOLDER")']""" in advice


def test_memory_grows_with_the_batch_and_not_with_its_square() -> None:
    """Whole words at 2 × 8,192: a (B, L, L) mask alone would be 134 MB."""
    rows = {
        "input_ids": torch.full((2, 8192), FIRST),
        "word_ids": (torch.arange(8192) // 2).expand(2, -1).contiguous(),
        "example_id": torch.arange(2),
    }
    tracemalloc.start()
    masker("whole-word")(rows, epoch=0)
    assert tracemalloc.get_traced_memory()[1] < 16384 * 8 * 12, "a dozen numbers of 64 bits a token"
    tracemalloc.stop()


def flat(rows: list[dict], in_row: list[int], *, length: int, apart: bool = False) -> Line:
    """Rows without special tokens as the pieces of longer rows."""
    names = rows[0].keys() - {"example_id"}
    return Line.of_pieces(
        {name: np.concatenate([np.array(r[name]) for r in rows]) for name in names},
        np.array([len(r["input_ids"]) for r in rows]),
        np.array(in_row),
        example_id=np.array([r["example_id"] for r in rows]),
        length=length,
        frame=Frame(CLS, SEP, PAD),
        apart=apart,
    )


@pytest.mark.parametrize(
    "policy", ["token", "whole-word", "span", "t5-span", "weighted", "salient"]
)
@pytest.mark.parametrize("corruption", ["bert", "delete", "t5"])
def test_flat_pieces_are_masked_like_rows_of_their_own(policy: str, corruption: str) -> None:
    rows = [row([2, 1, 3, 1, 1, 2], example_id=i, framed=False) for i in range(7)]
    made = masker(policy, corruption, ratio=0.4)
    alone = made([row([2, 1, 3, 1, 1, 2], example_id=i) for i in range(7)], epoch=3)
    for in_row, apart in product(([0, 0, 0, 1, 1, 2, 2], list(range(7))), (True, False)):
        out = made(flat(rows, in_row, length=36, apart=apart), epoch=3)
        shown = []
        for b in range(max(in_row) + 1):
            for segment in range(in_row.count(b)):
                piece = out.input_ids[b][out.segment_ids[b] == segment].tolist()
                shown.append(piece if apart or segment == 0 else [CLS, *piece])
        assert shown == [ids for ids, _ in per_row(alone, rows)]
        assert out.targets == int((out.labels != IGNORE).sum()) > 0
    with pytest.raises(MaskwiseError, match="do not fit"):
        made(flat(rows, [0] * 7, length=36), epoch=3)


def test_predict_asks_a_detecting_corruption_for_tokens_of_both_kinds_and_any_batch() -> None:
    made = masker("token", "replace(target='detect')", ratio=0.2, predict=0.5)
    rows = random_rows(30, words=10)
    together = made(padded(rows, width=60), epoch=0).labels
    assert set(together[together != IGNORE].tolist()) == {0, 1}
    for b, one in enumerate(rows):
        assert torch.equal(made(padded([one], width=60), epoch=0).labels[0], together[b])
    asked = (together != IGNORE).sum(1).double().mean() / np.mean(
        [len(r["input_ids"]) - 2 for r in rows]
    )
    assert abs(float(asked) - 0.5) < 0.02


def test_a_batch_moves_and_says_what_it_is() -> None:
    out = Noising(vocabulary())(padded(random_rows(3)), epoch=0)
    moved = out.to("meta")
    for name in ("input_ids", "labels", "loss_weight", "where"):
        assert moved[name].device.type == "meta"
    assert "labels" in out and "nope" not in out and len(out) == len({**out})
    assert out.get("labels") is out["labels"] is out.labels and out.get("nope") is None
    assert dict(out.items()).keys() == {**out}.keys() == set(out)
    with pytest.raises(KeyError, match="nope"):
        out["nope"]
    assert moved.targets == out.targets == int((out.labels != IGNORE).sum())
    # The places of the targets are found on the host: a device without data could not say them.
    assert moved.where.shape == (out.targets, 2)
    assert torch.equal(out.where, (out.labels != IGNORE).nonzero())
    assert torch.equal(moved.selected, out.selected)
    assert repr(out) == f"MaskedBatch(3 × {out.input_ids.shape[1]} on cpu, {out.targets} targets)"
    assert repr(masker("whole-word")).startswith(
        "Masker(policy=WholeWord(), ratio=constant(0.15), budget=expected"
    )


@pytest.mark.parametrize("kind", ["tensors", "arrays", "arrays that are read-only"])
def test_a_batch_shares_no_memory_with_the_rows(kind: str) -> None:
    """Who wrote into its mask changed the rows; of read-only arrays, torch warned."""
    names = ("attention_mask", "token_type_ids", "position_ids")
    columns: dict[str, Any] = {"input_ids": np.full((2, 4), 7), "example_id": np.arange(2)}
    columns |= {name: np.ones((2, 4), np.int64) for name in names}
    for name, values in columns.items():
        values.setflags(write=kind != "arrays that are read-only")
        if kind == "tensors":
            columns[name] = torch.from_numpy(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = masker("token")(columns, epoch=0)
    for name in names:
        batch[name][:] = 5
        assert (columns[name] == 1).all()


@pytest.mark.parametrize("corruption", ["bert", "delete", "infill"])
def test_rows_without_any_token_have_one_column(corruption: str) -> None:
    """Of no column, models cannot compute anything."""
    rows = [{"input_ids": [], "example_id": number} for number in range(2)]
    made = Masker(tokenizer(), corruption=corruption)
    batch = made(rows, epoch=0)
    assert batch.input_ids.shape == (2, 1) and not batch["attention_mask"].any()
    assert batch.targets == 0 and made.at(epoch=0)(rows)[0]["input_ids"] == []


def test_a_function_of_the_total_is_warned_of_a_total_that_is_missing() -> None:
    """It got 0, so a ratio that falls was over at once, without a word."""

    def falling(step: int, total: int) -> float:
        return 0.3 - 0.25 * min(step / max(total, 1), 1)

    row = {"input_ids": [CLS, 7, 8, 9, SEP], "example_id": 1, "step": 5, "epoch": 0}
    row["word_ids"] = [-1, 0, 1, 2, -1]
    mixed = mixture("token", "whole-word", shares=(falling, 0.5))
    for call, settings in product(
        (
            lambda made: MaskingCollator(made)([row]),
            lambda made: made.at(step=5, epoch=0)([row]),
            lambda made: made([row], step=5, epoch=0),
        ),
        ({"ratio": falling}, {"policy": mixed}),
    ):
        made = Masker(tokenizer(), **settings)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(made)
            call(made)
        [said] = [str(each.message) for each in caught]
        assert "pass total_steps" in said and "falling" in said and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Masker(tokenizer(), ratio=falling)
        made([row], step=5, total_steps=10, epoch=0)
        MaskingCollator(made, total_steps=10)([row])
        Masker(tokenizer(), ratio=0.3)([row], step=5, epoch=0)
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(MaskwiseError, match=r"ZeroDivisionError.*pass total_steps"),
    ):
        Masker(tokenizer(), ratio=lambda step, total: step / total)([row], step=5, epoch=0)


# Tokens that are never masked
# ----------------------------------------------------------------------------

RESIDUES = "LAGVSERTIDPKQNFYMHWC"
ESM = ["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, *"XBUZO.-", "<null_1>", "<mask>"]


def letters_tokenizer(names: Sequence[str], **special: str) -> PreTrainedTokenizerFast:
    unknown = special["unk_token"]
    backend = Tokenizer(
        models.WordLevel({name: n for n, name in enumerate(names)}, unk_token=unknown)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def esm() -> PreTrainedTokenizerFast:
    return letters_tokenizer(
        ESM,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<cls>",
        eos_token="<eos>",
        mask_token="<mask>",
    )


@pytest.mark.parametrize("corruption", ["bert(mask=0, random=1)", "replace", "bert"])
def test_wildcards_of_proteins_are_no_targets_and_no_replacements(corruption: str) -> None:
    made = Masker(esm(), ratio=0.5, corruption=corruption)
    certain = {ESM.index(letter) for letter in RESIDUES}
    assert {*made.vocabulary.ordinary.tolist()} == certain
    ids = torch.randint(4, 32, (200, 60), generator=torch.Generator().manual_seed(1))
    batch = made({"input_ids": ids, "example_id": torch.arange(200)}, epoch=0)
    assert {*ids[batch.selected].tolist()} == certain
    changed = batch.input_ids[(batch.input_ids != ids) & (batch.input_ids != ESM.index("<mask>"))]
    assert {*changed.tolist()} <= certain
    # The ratio is a share of the residues.
    residues = sum((ids == number).sum() for number in certain)
    assert abs(batch.targets - 0.5 * residues) < 100


def test_a_text_that_lacks_some_letters_is_no_protein() -> None:
    """Its "o", "b" and "u" were never masked."""
    letters = "the quick brown fog sat on a mad vile pew case kyle rub".replace(" ", "")
    assert not {*"jxz"} & {*letters} and {*letters.upper()} >= {*RESIDUES}
    assert wildcards(letters) == set()
    assert wildcards({*letters} - {"o"} | {"x"}) == {"b", "u", "x"}


def test_letters_of_texts_and_words_are_no_wildcards() -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kinds = ("pad", "unk", "cls", "sep", "mask")
    roles = {f"{kind}_token": name for kind, name in zip(kinds, special)}
    for letters, left in (
        ("abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz"),
        ("ABCDEFGHIKLMNOPQRSTUVWXYZ,.", "ABCDEFGHIKLMNOPQRSTUVWXYZ,."),
        ("ACGTN", "ACGT"),
        ("ACGUNRY-", "ACGU"),
        ("ACGT", "ACGT"),
        ("ACDEFGHIKLMNPQRSTVWYXBZUO*", "ACDEFGHIKLMNPQRSTVWY"),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "ACDEFGHIKLMNPQRSTVWY"),
        ("XYZ", "XYZ"),
        ("acdefghiklmnpqrstvwyxbzuo-", "acdefghiklmnpqrstvwy"),
        ("acgtn", "acgt"),
        ("acgtnACGTN", "acgtACGT"),
        ("abcdefghilmnopqrstuvz", "abcdefghilmnopqrstuvz"),  # Italian
    ):
        made = Vocabulary.of(letters_tokenizer([*special, *letters], **roles))
        named = {made.by_name[letter] for letter in left}
        assert {*made.ordinary.tolist()} == named, letters
    assert Masker(tokenizer()).vocabulary.eligible.sum() == WORDS


def test_an_added_token_leaves_wildcards_as_they_are() -> None:
    """With it, X, B, Z, U, O and the signs became targets, and excluding it did not help."""
    residues = {*RESIDUES}
    for names in (["<gap>"], ["motif"], ["Ω", "[P1]"]):
        made = esm()
        made.add_tokens(names)
        left = {made.convert_ids_to_tokens(int(n)) for n in Masker(made).vocabulary.ordinary}
        assert left == residues | {*names}
        excluding = Masker(made, exclude=names).vocabulary
        assert {made.convert_ids_to_tokens(int(n)) for n in excluding.ordinary} == residues
    # Excluding the apostrophe that shows a text does not turn its letters into residues.
    roles = {f"{kind}_token": f"[{kind}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    made = letters_tokenizer([*roles.values(), *capitals, "'"], **roles)
    vocabulary = Masker(made, exclude=["'"]).vocabulary
    assert {made.convert_ids_to_tokens(int(n)) for n in vocabulary.ordinary} == {*capitals}
    # A tokenizer all of whose letters were added.
    made = letters_tokenizer([*roles.values()], **roles)
    made.add_tokens([*"ACGTN"])
    assert len(Masker(made).vocabulary.ordinary) == 4
    made = letters_tokenizer([*roles.values(), *"ACGT"], **roles)
    made.add_tokens(["N", "-"])
    assert len(Masker(made).vocabulary.ordinary) == 4


def test_sentinels_of_mt5_have_a_space_before_them() -> None:
    """They were ordinary tokens, and t5 said that the tokenizer has none."""
    sentinels = [f"\u2581<extra_id_{number}>" for number in range(10)]
    names = ["<pad>", "</s>", "<unk>", "\u2581the", "\u2581cat", "\u2581sat", *sentinels[::-1]]
    made = T5TokenizerFast(vocab=[(name, -1.0) for name in names], extra_ids=0)
    known = Vocabulary.of(made)
    assert [made.convert_ids_to_tokens(number) for number in known.sentinels] == sentinels
    assert not known.content[list(known.sentinels)].any()
    masked = Masker(made, policy="t5-span", corruption="t5", ratio=0.5)
    row = {"input_ids": [3, 4, 5, 3, 4, 5, 1], "example_id": 1}
    assert known.sentinels[0] in masked([row], epoch=0).input_ids
    # If the tokenizer has a sentinel in both spellings, the added one is used.
    made.add_tokens(["<extra_id_0>"], special_tokens=True)
    both = Vocabulary.of(made)
    assert both.sentinels[0] == len(made) - 1 and both.sentinels[1:] == known.sentinels[1:]
    assert not both.content[known.sentinels[0]]


@pytest.mark.parametrize("lowercase", [False, True])
def test_kmers_with_a_wildcard_in_them_are_no_targets_and_no_replacements(lowercase: bool) -> None:
    texts = ["ACGTTGCAAGTCCGATA", "GGGTTTACAGATTACA", "CCATGCAG", "ACGTNNTRY", "-ACGTNNAC-"]
    made = train_tokenizer(texts, kind="k-mer", k=3, lowercase=lowercase)
    masks = Masker(made, ratio=1.0, corruption="bert(mask=0, random=1)")
    tokens = masks.vocabulary.by_name
    special = {*made.all_special_tokens}
    plain = {name for name in tokens.keys() - special if {*name.upper()} <= {*"ACGTU"}}
    assert {*masks.vocabulary.ordinary.tolist()} == {tokens[name] for name in plain}
    assert {"TNN", "TRY", "-AC", "GTN", "NAC", "-"} == {
        name.upper() for name in tokens.keys() - plain - special
    }
    words = train_tokenizer(["the cat sat on the mat"], kind="k-mer", k=3)
    assert Masker(words).vocabulary.eligible.sum() == len(words) - len(special)


def test_more_tokens_can_be_excluded() -> None:
    made = Masker(tokenizer(), ratio=1.0, exclude=["w0", "w1"], corruption="bert(mask=0, random=1)")
    ids = torch.arange(FIRST, FIRST + 12)[None]
    batch = made({"input_ids": ids, "example_id": [1]}, epoch=0)
    assert batch.selected[0].tolist() == [False] * 2 + [True] * 10
    assert not {FIRST, FIRST + 1} & {*batch.input_ids[0, 2:].tolist()}
    assert "exclude=('w0', 'w1')" in repr(made) and "exclude" not in repr(Masker(tokenizer()))
    for bad in ("w0", ["no such"], [5], 5, None, [f"w{n}" for n in range(WORDS)]):
        with pytest.raises(MaskwiseError, match="exclude"):
            Masker(tokenizer(), exclude=bad)
    settings = MaskingSettings(exclude=("w0",))
    assert Masking.shared(settings.model_dump()).exclude == ("w0",)
    # The names of stages are hashes of the settings.
    assert "exclude" not in MaskingSettings().model_dump()
    assert MaskingSettings(exclude=("w0",)).model_dump()["exclude"] == ("w0",)


def test_masking_is_a_value_that_is_parsed_and_checked() -> None:
    made = Masking.of(policy="whole-word", ratio="linear(0.3, 0.1)", exclude=["x"])
    assert (made.policy, made.ratio(0, 10), made.exclude) == (policy("whole-word"), 0.3, ("x",))
    for settings in ({"polcy": "token"}, {"exclude": "x"}, {"visits": "never"}, {"keep": 3}):
        with pytest.raises(MaskwiseError):
            Masking.of(**settings)
        with pytest.raises(MaskwiseError):
            Noising(vocabulary(), **settings)
    number: Any = np.int64(2)
    assert type(Masker(vocabulary(), min_targets=number).describe()["min_targets"]) is int
    text: Any = "token"
    with pytest.raises(MaskwiseError, match=r"policy is not parsed; .*Masking\.of"):
        Masking(policy=text)
    assert repr(Noising(vocabulary())).startswith("Noising(policy=")


def test_rows_without_ids_warn_where_the_masker_is_called() -> None:
    with pytest.warns(UserWarning, match="no example_id") as caught:
        masker("token")([{"input_ids": [CLS, FIRST, SEP]}], epoch=0)
    assert caught[0].filename == __file__


@dataclass(frozen=True)
class Times(Policy):
    """Whole words of one weight, which a policy of a user forgot to normalise."""

    weight: float = 1.0

    unit_kind = UnitKind.WORD

    def layers(self) -> tuple[str, ...]:
        return ("word_ids",)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        units = runs(line, line.layer("word_ids"))
        return units.weighted(np.full(len(units.piece), self.weight))


class ByDesign(Times):
    scales_ratio = True


@pytest.mark.parametrize(
    ("policy", "ratio", "obtained"),
    [
        (Times(3), 0.15, 0.45),
        (Times(0.2), 0.15, 0.03),
        (Times(100), 0.15, 1),
        (Times(3), "linear(0.15, 0.1)", 0.45),
        ("weighted('difference')", 0.15, None),
    ],
    ids=["three times", "a fifth", "clipped", "a schedule", "scores of a layer"],
)
def test_weights_that_change_the_ratio_warn_once(
    policy: Policy | str, ratio: float | str, obtained: float | None
) -> None:
    made = masker(policy, budget="bernoulli", ratio=ratio)
    rows = padded(random_rows(16))
    with pytest.warns(UserWarning, match="scales_ratio") as warned:
        for step in range(3):
            batch = made(rows, step=step, total_steps=100, epoch=step)
    assert len(warned) == 1 and warned[0].filename == __file__
    text = str(warned[0].message)
    assert "\n" not in text and "instead of 0.15" in text and made.policy.__class__.__name__ in text
    if obtained is not None:
        assert f"the ratio is {obtained} instead" in text
        share = batch.selected.sum() / batch.line.eligible.sum()
        assert share == pytest.approx(obtained, abs=0.05)


@pytest.mark.parametrize("budget", ["exact", "expected", "bernoulli"])
def test_weights_that_keep_the_ratio_do_not_warn(budget: str) -> None:
    """Nor do policies of maskwise, which say what their weights do, or few units, by chance."""
    rows = padded(random_rows(16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (Times(1.2), Times(0.8), ByDesign(3), *POLICY_SPECS):
            made = policy(POLICY_SPECS.get(name, name))
            # The weights of this layer of the tests have a mean of 3.
            if budget == "bernoulli" and (made.splits_budget or name == "difference"):
                continue
            masker(made, budget=budget, ratio=0.15)(rows, epoch=0)
        masker(Times(3), budget=budget)(padded(random_rows(4)), epoch=0)
        if budget != "bernoulli":
            masker(Times(3), budget=budget)(rows, epoch=0)


def test_every_array_of_a_line_is_read_only_for_policies_and_corruptions() -> None:
    """Also an array that a later version of the line adds."""

    @dataclass(eq=False)
    class Longer(Line):
        added: np.ndarray = field(default_factory=lambda: np.zeros(6, np.int64))

    plain = line(2, 3)
    more = {"layers": {"word_ids": np.arange(6)}, "extras": {"token_type_ids": np.zeros(6)}}
    own = {**vars(plain), **more, "silent": np.zeros(6, bool)}
    longer = Longer(**own)
    own_present = longer.present
    with longer.read_only() as shared:
        arrays = [value for value in vars(shared).values() if isinstance(value, np.ndarray)]
        arrays += [*shared.layers.values(), *shared.extras.values()]
        assert len(arrays) == 10
        assert not any(array.flags.writeable for array in arrays)
        assert np.shares_memory(shared.added, longer.added)
        assert np.shares_memory(shared.present, own_present)
        assert longer.added.flags.writeable
    assert all(array.flags.writeable for array in arrays)
