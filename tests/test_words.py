"""The word layer: the rule on characters, and that every family of tokenizers gets the same
words.
"""

from __future__ import annotations

import copy
import re
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from maskwise import Masker, annotate_rows, encode
from maskwise.annotate.registry import SPANS, ByText
from maskwise.base.errors import MaskwiseError
from maskwise.text import Document, load_tokenizer, read_pieces, tokenise, train_tokenizer, word_ids
from maskwise.text.layers import CharSpans
from maskwise.text.words import classify, is_white, word_starts

SENTENCES = [
    "The cat sat on the mat, and the dog ran to the other mat again.",
    "Don't pay $5.00 (or 20€) at http://a.example/b?c=1!",
    "東京は美しい。 カタカナと 한국어 문장 são Zürich naïve re\u0301sume\u0301",
    "two  spaces\tand\n\nlines here",
]
AWKWARD = [
    "",
    " ",
    "a",
    "  leading and trailing  ",
    "👩🏽‍🔬 works; 🇩🇪🇫🇷 flags ❤️‍🔥 1️⃣ ok",
    "no\u00a0break, soft\u00adhyphen, zero\u200bwidth, می‌خواهم",
    "\ufeffBOM first and e\u0301 marks \u0301 alone",
    "สวัสดีครับ ราคา 100 บาท",
    "½ ﬁne ＡＢＣ Ⅷ x² a_b",
    "line\r\nbreaks\n\n\nthere   and\ttabs",
    "東京 東京は 京",
]
TEXTS = [*SENTENCES, *AWKWARD]
SPECIAL = ["[UNK]"]


def _trained(model, trainer, pre_tokenizer, *, normalizer=None, post_processor=None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    if post_processor:
        tokenizer.post_processor = post_processor
    return tokenizer


def _byte_level(*, prefix: bool, trim: bool) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False),
        pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        post_processor=processors.ByteLevel(trim_offsets=trim, add_prefix_space=prefix),
    )


def _unigram(normalizer=None) -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=110, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), normalizer=normalizer)


def _metaspace_bpe() -> Tokenizer:
    """Llama's kind: no splitting before BPE, so tokens may cover several words; bytes for what is
    unknown.
    """
    specials = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    model = models.BPE(unk_token="[UNK]", byte_fallback=True)
    return _trained(model, trainer, pre_tokenizers.Metaspace(split=False))


def _wordpiece(*, lowercase: bool) -> Tokenizer:
    return _trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=250, special_tokens=SPECIAL, show_progress=False),
        pre_tokenizers.BertPreTokenizer(),
        normalizer=normalizers.BertNormalizer(lowercase=lowercase),
    )


FAMILIES = {
    "wordpiece": _wordpiece(lowercase=True),
    "wordpiece-cased": _wordpiece(lowercase=False),
    "bytes": _byte_level(prefix=False, trim=False),
    "bytes-trimmed": _byte_level(prefix=False, trim=True),
    "bytes-prefix": _byte_level(prefix=True, trim=False),
    "bytes-prefix-trimmed": _byte_level(prefix=True, trim=True),
    "unigram": _unigram(),
    "unigram-nfkc": _unigram(normalizers.NFKC()),
    "metaspace-bpe": _metaspace_bpe(),
}


def words_of_text(text: str) -> list[str]:
    """The words the rule finds in the characters, without the space behind them."""
    starts = np.flatnonzero(word_starts(classify(text)))
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)])]


def layer(tokenizer: Tokenizer, text: str) -> tuple[list[tuple[int, int]], np.ndarray]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.offsets, word_ids(text, encoding.offsets, special=[0] * len(encoding))


# ---- the rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat, sat.", "The |cat|, |sat|."),
        ("don't 3.14 a_b x+y", "don|'|t |3|.|14 |a|_|b |x|+|y"),
        ("20€ £5 5°C", "20|€ |£|5 |5|°|C"),
        ("http://a.b?c=1", "http|:|/|/|a|.|b|?|c|=|1"),
        ("東京は美しい", "東|京|は|美|しい"),
        ("カタカナと 한국어", "カタカナと |한국어"),
        ("สวัส", "ส|วั|ส"),
        ("e\u0301a \u0301b !\u0301c", "e\u0301a |\u0301b |!\u0301|c"),
        ("a\u00adb\u200cc \ufeffd", "a\u00adb\u200cc |\ufeffd"),
        ("a\u00a0b\u200bc\u3000d", "a\u00a0|b\u200b|c\u3000|d"),
        ("x👩🏽‍🔬👍🏽👍", "x|👩🏽‍🔬|👍🏽|👍"),
        ("🇩🇪🇫🇷🇺 ❤️‍🔥‼️", "🇩🇪|🇫🇷|🇺 |❤️‍🔥|‼️"),
        ("1️⃣ a🏽", "1️⃣ |a|🏽"),
        # an ideograph and an emoji newer than Python 3.11
        ("\U000323b0\U0001fae8", "\U000323b0|\U0001fae8"),
        (" ", ""),
        ("", ""),
    ],
)
def test_rule(text, words):
    assert "|".join(words_of_text(text)) == words


def test_equals_bert_on_ordinary_text():
    tokenizer = FAMILIES["wordpiece"]
    for text in [
        *SENTENCES[:1],
        "Don't pay $5.00 (or £ 20) at http://a.example/b?c=1!",
        SENTENCES[2],
        SENTENCES[3],
    ]:
        encoding = tokenizer.encode(text)
        assert layer(tokenizer, text)[1].tolist() == encoding.word_ids


NEWER = "\u0890\u0891\u08e2"
"""Format characters that the tokenizer's tables do not know and its cleaning leaves; all others it
takes away.
"""


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec="utf-8", max_codepoint=0x2FFF), max_size=30))
@example("20€ co\u200bop สวัสดี")
@example(":\u0890")
def test_never_joins_what_bert_parts(text):
    """Finer than BERT or equal, never coarser; but for a mark behind punctuation, no word of its
    own.
    """
    encoding = FAMILIES["wordpiece"].encode(text)
    ours = layer(FAMILIES["wordpiece"], text)[1]
    assert (ours >= 0).all()
    for token in range(1, len(ours)):
        apart = encoding.word_ids[token] != encoding.word_ids[token - 1]
        first = text[encoding.offsets[token][0]]
        mark = unicodedata.category(first)[0] == "M" or first in NEWER
        assert ours[token] != ours[token - 1] or not apart or mark


# ---- tokens


def check_words(text: str, offsets: list[tuple[int, int]], ids: np.ndarray) -> None:
    """Numbered 0, 1, 2 … in order, contiguous, whole, and cut where words of the text begin, unless
    glued.
    """
    real = ids[ids >= 0]
    assert real.tolist() == sorted(real.tolist())
    assert set(real.tolist()) == set(range(len(set(real.tolist()))))
    white = is_white(classify(text))
    word_of = np.cumsum(word_starts(classify(text)))
    inside = [[place for place in range(a, b) if not white[place]] for a, b in offsets]
    for word in range(1, word_of.max(initial=0) + 1):
        shows = {ids[t] for t, places in enumerate(inside) if word in word_of[places]}
        assert len(shows) <= 1, "a word in two pieces"
    for number in set(real.tolist()):
        tokens = np.flatnonzero(ids == number)
        assert (np.diff(tokens) == 1).all()
        covered = sorted({place for token in tokens for place in inside[token]})
        assert covered, "a word without a visible character"
        several = len(set(word_of[covered])) > 1
        glued = any(len(set(word_of[inside[token]])) > 1 for token in tokens)
        assert several == glued, "words joined without a token that covers both"
        gap = white[covered[0] : covered[-1]].any()
        assert several or not gap, "a word spans white space"
    for token, (id_, places) in enumerate(zip(ids, inside)):
        # Nothing visible is left out; nothing white belongs to a word, unless it stands right
        # before it.
        assert id_ >= 0 if places else id_ < 0 or ids[token + 1] == id_, (token, text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_words_are_whole_in_every_family(family, text):
    check_words(text, *layer(FAMILIES[family], text))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(
            [
                *"ab京はé €.'🏽👩🇩\u0301\u200d\ufe0f\u200b\u00a0\n ",
                "  ",
                "the",
                " mat",
                "ครับ",
                "½",
                "ﬁ",
            ]
        ),
        max_size=14,
    ).map("".join)
)
def test_words_are_whole_on_random_text(text):
    for tokenizer in FAMILIES.values():
        check_words(text, *layer(tokenizer, text))


def test_byte_pieces_and_lone_spaces_stay_with_their_word():
    for family in ("bytes", "bytes-trimmed", "bytes-prefix", "metaspace-bpe"):
        ids = layer(FAMILIES[family], " 🔬x")[1].tolist()
        assert ids == [0] * (len(ids) - 1) + [1] and len(ids) >= 5  # four bytes and a letter
    # "▁" + word: one word. Two spaces: the first belongs to nothing.
    tokens = FAMILIES["unigram"].encode("Q  京Q").tokens
    ids = layer(FAMILIES["unigram"], "Q  京Q")[1]
    assert tokens[:3] == ["▁", "Q", "▁"] and ids.tolist() == [0, 0, -1, 1, 1, 2]


@pytest.mark.parametrize(
    ("text", "offsets", "special", "words"),
    [
        ("the cat", [(0, 0), (0, 3), (4, 7), (0, 0), (0, 0)], None, [-1, 0, 1, -1, -1]),
        ("the cat", [(0, 0), (0, 3), (4, 7), (0, 0)], [1, 0, 0, 1], [-1, 0, 1, -1]),
        # An empty token right before a word is the "▁" that was put before the text, if it is not
        # special.
        ("the cat", [(0, 0), (0, 3)], [0, 0], [0, 0]),
        # A special token in the middle of a word parts it: units are contiguous.
        ("abcd", [(0, 1), (1, 2), (2, 4)], [0, 1, 0], [0, -1, 1]),
        ("", np.zeros((0, 2)), None, []),
        # One token "d. N" over three words, then "ext": one unit.
        ("end. Next one", [(0, 2), (2, 6), (6, 9), (10, 13)], None, [0, 0, 0, 1]),
        ("end. Next one", [(0, 3), (3, 6), (6, 9), (10, 13)], None, [0, 1, 1, 2]),
    ],
)
def test_special_and_glued_tokens(text, offsets, special, words):
    assert word_ids(text, offsets, special=special).tolist() == words


# ---- rows


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES * 3, vocab_size=200)


def test_encode(tokenizer):
    texts = ["The cat sat.", "", "the mat"]
    rows = encode(tokenizer, texts)
    assert [row["input_ids"] for row in rows] == tokenizer(texts)["input_ids"]
    assert rows[1]["word_ids"] == [-1, -1] and max(rows[0]["word_ids"]) == 3
    for row in rows:
        assert row["word_ids"][0] == row["word_ids"][-1] == -1
        assert len(row["attention_mask"]) == len(row["input_ids"])
        assert 0 <= row["example_id"] < 2**63
    assert rows[0]["example_id"] == encode(tokenizer, ["x", "The cat sat."])[1]["example_id"]
    assert rows[2]["example_id"] == 7986165122080182476  # and never changes
    assert [row["example_id"] for row in encode(tokenizer, ["a", "b"], ids=[7, 8])] == [7, 8]
    assert encode(tokenizer, []) == []
    # Unknown tokens have a word.
    row = encode(tokenizer, ["the mat ☃"])[0]
    words = dict(zip(tokenizer.convert_ids_to_tokens(row["input_ids"]), row["word_ids"]))
    assert words["[UNK]"] == 2


@pytest.mark.parametrize("name", ["[MASK]", "[SEP]", "[PAD]", "[CLS]"])
def test_names_of_special_tokens_in_a_text_are_text(name):
    """In rows as in a corpus, so that a web page cannot put masks or ends of texts into a row."""
    tokenizer = load_tokenizer("bundled:encoder")
    text = f"the {name} mat"
    with pytest.warns(UserWarning, match=rf"1 of 2 texts contain {re.escape(name)}, .* plain text"):
        row, other = encode(tokenizer, [text, "the mat"])
    [tokens] = tokenise([Document("a", text)], tokenizer)
    assert row["input_ids"][1:-1] == tokens.columns["input_ids"].tolist()
    assert row["word_ids"][1:-1] == tokens.columns["word_ids"].tolist()
    assert sorted({*row["word_ids"][1:-1]}) == [0, 1, 2, 3, 4]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not special & set(row["input_ids"][1:-1])
    # The tokenizer itself reads names as before.
    assert tokenizer.convert_tokens_to_ids(name) in tokenizer(text)["input_ids"]
    pieces = read_pieces(tokenise([Document("a", text)], tokenizer), tokenizer=tokenizer, length=9)
    [count] = (n for what, n in pieces.counts.items() if "special" in what)
    assert count == 1
    assert other["input_ids"] == tokenizer("the mat")["input_ids"]


# Rows of long texts
# ----------------------------------------------------------------------------

LONG = "the cat sat on the mat and catdogmat the dog ran, " * 9


def test_a_text_that_is_cut_is_told_with_the_share_that_is_lost(tokenizer):
    sizes = [len(row["input_ids"]) - 2 for row in encode(tokenizer, [LONG, "cat"])]
    share = (sizes[0] - 10) / sum(sizes)
    for call in (
        lambda: encode(tokenizer, [LONG, "cat"], max_length=12),
        lambda: annotate_rows({"text": [LONG, "cat"]}, tokenizer, max_length=12),
    ):
        with pytest.warns(UserWarning, match="split=True") as told:
            call()
        assert len(told) == 1
        assert f"1 of 2 texts were cut to 12 tokens, and {share:.0%}" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(tokenizer, ["cat"], max_length=12)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("length", [6, 9, 20])
def test_split_texts_lose_nothing_and_are_cut_between_words(name, length):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=FAMILIES[name], unk_token="[UNK]")
    texts = [LONG, "mat", "", "cat"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cut")
        rows = encode(tokenizer, texts, max_length=length, split=True, ids=[7, 8, 9, 2**64 - 1])
    whole = encode(tokenizer, texts, ids=[7, 8, 9, 2**64 - 1])
    # Rows of short texts, and the first row's id, are as without ``split``.
    assert rows[-3:] == whole[1:] and rows[0]["example_id"] == 7
    parts = rows[:-3]
    assert len(parts) > 3
    assert len({row["example_id"] for row in rows}) == len(rows)
    assert [token for row in parts for token in row["input_ids"]] == whole[0]["input_ids"]
    for row in parts:
        assert 0 < len(row["input_ids"]) <= length
        assert {len(row[layer]) for layer in ("word_ids", "attention_mask")} == {
            len(row["input_ids"])
        }
        numbers = [word for word in row["word_ids"] if word >= 0]
        assert not numbers or (numbers[0] == 0 and numbers == sorted(numbers))
    # Each word is in one row, and words longer than a row are no words.
    words = np.array(whole[0]["word_ids"])
    sizes = np.bincount(words[words >= 0])
    fits = int((sizes <= length).sum())
    assert sum(len({word for word in row["word_ids"] if word >= 0}) for row in parts) == fits


def test_split_rows_have_the_special_tokens_and_masks_of_their_own(tokenizer):
    rows = encode(tokenizer, [LONG], max_length=12, split=True)
    for row in rows:
        assert row["input_ids"][0] == tokenizer.cls_token_id
        assert row["input_ids"][-1] == tokenizer.sep_token_id
        assert row["word_ids"][0] == row["word_ids"][-1] == -1
    again = encode(tokenizer, ["x", LONG], max_length=12, split=True)[1:]
    assert again == rows
    batch = Masker(tokenizer, ratio=0.3)(rows, epoch=0)
    masks = {tuple(row) for row in batch.selected[:, 1:11].tolist()}
    assert len(masks) > len(rows) // 2
    columns = annotate_rows(
        {"text": [LONG, "mat"], "n": [1, 2]}, tokenizer, max_length=12, split=True
    )
    assert columns["n"] == [1] * len(rows) + [2]
    assert columns["input_ids"][: len(rows)] == [row["input_ids"] for row in rows]
    tokenizer = train_tokenizer(SENTENCES * 4, vocab_size=200)
    with pytest.raises(MaskwiseError, match="max_length"):
        encode(tokenizer, [LONG], split=True)
    tokenizer.model_max_length = 10
    assert all(len(row["input_ids"]) <= 10 for row in encode(tokenizer, [LONG], split=True))
    ids = tokenizer(["the cat sat"])["input_ids"]
    for more in ({"max_length": 3}, {"split": True}):
        with pytest.raises(MaskwiseError, match="tokens already"):
            annotate_rows({"input_ids": ids}, tokenizer, **more)
    annotate_rows({"input_ids": ids}, tokenizer, max_length=20)
    with pytest.raises(MaskwiseError, match="batched=True"):
        annotate_rows({"text": LONG}, tokenizer, split=True)


def test_encode_marks_the_word_that_the_cut_goes_through(tokenizer):
    text = "mat catdogmatcat mat"
    whole = encode(tokenizer, [text])[0]
    words = whole["word_ids"]
    inside = words.index(1) + 2  # cut after two pieces of the second word
    row = encode(tokenizer, [text], max_length=inside + 1)[0]
    assert row["input_ids"] == [*whole["input_ids"][:inside], tokenizer.sep_token_id]
    assert words[inside] == 1 and row["word_ids"] == [*words[: inside - 2], -1, -1, -1]
    span = {"name": CharSpans.of([(4, 16)], SPANS)}
    layer = ByText("spans", {"name": SPANS}, lambda text: span, "")
    row = encode(tokenizer, [text], max_length=inside + 1, layers=[layer, 'prompt("catdog")'])[0]
    assert set(row["name"]) == {-1}
    # A prompt stays visible, also half of its last word.
    assert row["prompt"][inside - 2 : inside] == [0, 0]
    border = words.index(2)  # cut between words
    row = encode(tokenizer, [text], max_length=border + 1)[0]
    assert row["word_ids"] == [*words[:border], -1]


def test_a_cut_at_a_token_outside_words_cuts_no_word():
    """Line breaks of byte-level tokenizers are such tokens, and they lost their layers."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=FAMILIES["bytes"], unk_token="[UNK]")
    text = "The cat\nsat on\nthe mat"
    sentence = {"sentence": CharSpans.of([(0, len(text))], SPANS)}
    layer = ByText("sentences", {"sentence": SPANS}, lambda text: sentence, "")
    whole = encode(tokenizer, [text], layers=[layer])[0]
    breaks = [n for n, word in enumerate(whole["word_ids"]) if word < 0]
    assert len(breaks) == 2 and {*whole["sentence"]} == {0}
    for length in range(1, len(whole["input_ids"])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cut = encode(tokenizer, [text], max_length=length, layers=[layer])[0]
        words = whole["word_ids"]
        ends = words[length] >= 0 and words[length] == words[length - 1]
        kept = [word != words[length] for word in words[:length]] if ends else [True] * length
        assert cut["sentence"] == [0 if each else -1 for each in kept]


def test_texts_without_tokens_may_be_cut_and_split():
    """Such as empty texts, by a tokenizer without [CLS] and [SEP]."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=FAMILIES["bytes"], unk_token="[UNK]")
    text = "the cat sat on the mat"
    for texts in ([text, ""], ["", text], ["", ""], ["", text, "", ""]):
        for split in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = encode(tokenizer, texts, max_length=3, split=split)
            assert {len(row["input_ids"]) for row in rows} <= {0, 1, 2, 3}
            assert sum(not row["input_ids"] for row in rows) == texts.count("")


# Rows of tokens, for datasets.map
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("text", SENTENCES)
def test_rows_of_tokens_get_the_words_of_their_text(name, text):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=FAMILIES[name], unk_token="[UNK]")
    (row,) = encode(tokenizer, [text])
    if tokenizer.unk_token_id not in row["input_ids"]:  # nobody knows what an unknown token covered
        assert (
            annotate_rows({"input_ids": row["input_ids"]}, tokenizer)["word_ids"] == row["word_ids"]
        )


def test_annotate_rows_is_what_map_and_a_masker_want(tokenizer):
    ids = tokenizer(SENTENCES[:2])["input_ids"]
    both = annotate_rows({"input_ids": ids, "more": [1, 2]}, tokenizer)
    assert both["more"] == [1, 2]
    assert [*map(len, both["word_ids"])] == [*map(len, ids)]
    alone = annotate_rows({"input_ids": ids[0]}, tokenizer)
    assert alone["word_ids"] == both["word_ids"][0] and alone["example_id"] == both["example_id"][0]
    first, second = both["example_id"]
    assert first != second and 0 <= min(first, second) <= max(first, second) < 2**63
    texts = annotate_rows({"text": SENTENCES[:2]}, tokenizer, max_length=8)
    encoded = encode(tokenizer, SENTENCES[:2], max_length=8)
    assert texts["input_ids"] == [row["input_ids"] for row in encoded]
    # datasets.map keeps the texts by itself, and could not remove a column that is returned.
    assert "text" not in texts
    assert annotate_rows({"text": SENTENCES[0]}, tokenizer)["input_ids"] == ids[0]
    assert annotate_rows({"input_ids": []}, tokenizer)["word_ids"] == []


def test_the_id_of_a_row_does_not_depend_on_its_padding(tokenizer):
    texts = ["The cat sat.", "The cat sat on the mat."]
    plain = annotate_rows(dict(tokenizer(texts)), tokenizer)["example_id"]
    for how in ({"padding": True}, {"padding": "max_length", "max_length": 40}):
        padded = dict(tokenizer(texts, **how))
        assert annotate_rows(padded, tokenizer)["example_id"] == plain
        alone = annotate_rows({key: row[0] for key, row in padded.items()}, tokenizer)
        assert alone["example_id"] == plain[0]
        del padded["attention_mask"]
        assert annotate_rows(padded, tokenizer)["example_id"] == plain
    # The padding token of this tokenizer stands for the end of a text, too.
    ends = copy.deepcopy(tokenizer)
    ends.pad_token = ends.sep_token
    assert annotate_rows({"input_ids": tokenizer(texts)["input_ids"]}, ends)["example_id"] == plain
    for bad in ([[1]], 5, [[1], [1]]):
        with pytest.raises(MaskwiseError, match="attention_mask"):
            annotate_rows(dict(tokenizer(texts)) | {"attention_mask": bad}, tokenizer)


def test_annotate_rows_keeps_ids_that_the_rows_have(tokenizer):
    ids = tokenizer(SENTENCES[:2])["input_ids"]
    own = [[0] * len(row) for row in ids]
    kept = annotate_rows({"input_ids": ids, "example_id": [17, 18], "word_ids": own}, tokenizer)
    assert kept["example_id"] == [17, 18] and kept["word_ids"] == own
    alone = annotate_rows({"input_ids": ids[0], "example_id": 17}, tokenizer)
    assert alone["example_id"] == 17
    texts = annotate_rows({"text": SENTENCES[:2], "example_id": [17, 18]}, tokenizer)
    assert texts["example_id"] == [17, 18]
    assert annotate_rows({"text": SENTENCES[0], "example_id": 17}, tokenizer)["example_id"] == 17
    # The rows of one text have different ids, as in `encode`.
    how = {"max_length": 8, "split": True}
    parts = annotate_rows({"text": SENTENCES[:2], "example_id": [17, 18]}, tokenizer, **how)
    rows = encode(tokenizer, SENTENCES[:2], ids=[17, 18], **how)
    assert parts["example_id"] == [row["example_id"] for row in rows]
    assert len(set(parts["example_id"])) == len(rows) > 2


def test_words_beside_added_tokens_need_offsets():
    """From ids alone, "spectrophotometers" and "spectrophotometer s" are the same."""
    texts = [
        "two spectrophotometers here",
        "spectrophotometer s",
        "a spectrophotometer.",
        "xspectrophotometer y",
    ]
    for name in sorted(FAMILIES):
        backend = Tokenizer.from_str(FAMILIES[name].to_str())
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        tokenizer.add_tokens(["spectrophotometer"])
        made = tokenizer(texts, return_offsets_mapping=True)
        columns = {"input_ids": made["input_ids"], "offset_mapping": made["offset_mapping"]}
        rows = encode(tokenizer, texts)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = annotate_rows(columns, tokenizer)
            alone = annotate_rows({key: value[0] for key, value in columns.items()}, tokenizer)
            arrays = {key: np.array(value[0]) for key, value in columns.items()}
            assert annotate_rows(arrays, tokenizer)["word_ids"] == alone["word_ids"]
        assert alone["word_ids"] == found["word_ids"][0]
        for text, row, words in zip(texts, rows, found["word_ids"]):
            # A space that only its neighbours show belongs to no word of a trimmed tokenizer.
            if "trimmed" not in name:
                assert words == row["word_ids"], (name, text)
        assert (
            found["example_id"]
            == annotate_rows({"input_ids": made["input_ids"]}, tokenizer)["example_id"]
        )
    with pytest.warns(UserWarning, match="offset_mapping"):
        annotate_rows({"input_ids": made["input_ids"]}, tokenizer)
    for bad in ([[[0, 1]]] * 4, [[0, 1]] * 4, 5, [[["a", "b"]]] * 4, made["offset_mapping"][:2]):
        with pytest.raises(MaskwiseError, match="offset_mapping"):
            annotate_rows({**columns, "offset_mapping": bad}, tokenizer)


def test_blocks_that_begin_inside_a_character():
    """Byte-level pieces cut "é" in two; group_texts of run_mlm may cut there."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=FAMILIES["bytes"], unk_token="[UNK]")
    ids = tokenizer("ééé abc é", add_special_tokens=False)["input_ids"]
    for cut in range(len(ids)):
        words = annotate_rows({"input_ids": ids[cut:]}, tokenizer)["word_ids"]
        assert len(words) == len(ids) - cut and words == sorted(words)


def test_texts_beyond_what_the_model_takes_are_told():
    tokenizer = train_tokenizer(SENTENCES * 4, vocab_size=200)
    tokenizer.model_max_length = 8
    with pytest.warns(UserWarning, match="1 of 2 texts .* pass max_length=8"):
        encode(tokenizer, ["the", "the " * 20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(tokenizer, ["the", "the " * 20], max_length=12, split=True)


# Further layers of rows
# ----------------------------------------------------------------------------

CURIE = "Marie Curie was born in Warsaw in 1867."


def test_rows_get_layers_by_name() -> None:
    tokenizer = load_tokenizer("bundled:encoder")
    [row] = encode(tokenizer, [CURIE], layers=["salient", "pos"])
    for name in ("salient", "salient_label", "pos"):
        assert len(row[name]) == len(row["input_ids"])
    blocks = annotate_rows({"input_ids": [row["input_ids"]]}, tokenizer, layers=["salient"])
    for words, salient in (
        (row["word_ids"], row["salient"]),
        (blocks["word_ids"][0], blocks["salient"][0]),
    ):
        named = {word for word, number in zip(words, salient) if number >= 0}
        # Marie, Curie and 1867; the small recogniser may miss Warsaw.
        assert {0, 1, 7} <= named and not named & {2, 3, 4, 6, 8}
    batch = Masker(tokenizer, policy="salient", ratio=0.5)([row])
    outside = torch.tensor(row["salient"]) < 0
    assert batch.targets and not batch.selected[0][outside].any()


def test_layers_are_cut_with_their_row() -> None:
    tokenizer = load_tokenizer("bundled:encoder")
    [whole] = encode(tokenizer, [CURIE], layers=["pos"])
    [cut] = encode(tokenizer, [CURIE], layers=["pos"], max_length=8)
    assert cut["pos"] == [*whole["pos"][:7], -1] and len(cut["input_ids"]) == 8
    empty = annotate_rows({"input_ids": []}, tokenizer, layers="salient")
    assert empty["salient"] == empty["salient_label"] == []
