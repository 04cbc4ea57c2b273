"""Layers land on exactly the tokens of their characters, whatever the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from maskwise.annotate.registry import annotator
from maskwise.errors import MaskwiseError
from maskwise.text import (
    Document,
    Pieces,
    Rows,
    load_tokenizer,
    read_pieces,
    tokenise,
    train_tokenizer,
)
from maskwise.text.layers import CharSpans, Layer, align, check_spans, token_layers
from maskwise.text.words import classify, flat_offsets, is_white, number_words, place_tokens
from test_words import AWKWARD, FAMILIES, SENTENCES

WIKIPEDIA = Path("../shared/data/wikipedia_en")
URL = "See https://example.org/a-b_c?q=x%20y#z or e-mail me.too@example.co.uk."
TEXTS = [
    text for text in [*SENTENCES, *AWKWARD, URL, "gimme 10km of don't-care wi-fi"] if text.strip()
]
TAGS = Layer("categorical", tuple("abcdefghijklmnopq"))
SPANS = Layer("spans", ("name", "date"))
WEIGHT = Layer("weight")
LAYERS = {"tag": TAGS, "span": SPANS, "weight": WEIGHT}


def made_up(text: str, seed: int) -> dict[str, CharSpans]:
    """A tag and a weight for nearly every word, and spans of up to four words with the space
    between them.
    """
    rng = np.random.default_rng([seed, len(text)])
    words = annotator("words").annotate([text])[0]["words"]
    count = len(words.start)
    kept = rng.random(count) < 0.9
    start, end = words.start[kept], words.end[kept]
    tag = CharSpans(start, end, rng.integers(0, 18, len(start)).astype(np.int16))
    weight = CharSpans(start, end, rng.random(len(start)).astype(np.float32))
    spans, at = [], 0
    while at < count:
        size = int(rng.integers(1, 5))
        if rng.random() < 0.4:
            spans.append(
                (words.start[at], words.end[min(at + size, count) - 1], int(rng.integers(0, 3)))
            )
        at += size
    return {"tag": tag, "span": CharSpans.of(spans, SPANS), "weight": weight}


def check_alignment(tokenizer: Tokenizer, texts: list[str]) -> dict[str, int]:
    """Every token against a look-up character by character, written without the library's own
    routines.
    """
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    offsets, lengths = flat_offsets(encodings)
    placed = place_tokens(texts, offsets, lengths, special=np.zeros(len(offsets), dtype=bool))
    words = number_words(placed)
    found = [made_up(text, seed) for seed, text in enumerate(texts)]
    for text, spans in zip(texts, found):
        for name, layer in LAYERS.items():
            check_spans(spans[name], layer, len(text))
    laid = align(found, LAYERS, placed, words)
    assert tuple(laid) == token_layers(LAYERS) == ("tag", "span", "span_label", "weight")
    seen = {"tokens": len(words), "tagged": 0, "spans": 0}
    for text, spans, encoding, end in zip(texts, found, encodings, np.cumsum(lengths)):
        part = slice(end - len(encoding), end)
        mine = {name: values[part] for name, values in laid.items()} | {"word": words[part]}
        _check_text(text, spans, encoding.offsets, mine, seen)
    return seen


def _check_text(text, spans, offsets, laid, seen) -> None:
    white = is_white(classify(text))
    tag_at, span_at, weight_at = [None] * len(text), [-1] * len(text), [0.0] * len(text)
    for start, end, code in zip(*spans["tag"]):
        tag_at[start:end] = [int(code)] * (end - start)
    for start, end, value in zip(*spans["weight"]):
        weight_at[start:end] = [float(value)] * (end - start)
    for number, (start, end) in enumerate(zip(*spans["span"][:2])):
        span_at[start:end] = [number] * (end - start)
    shown_by_span: dict[int, set[int]] = {}
    opened: dict[int, int] = {}  # word → its first visible character
    for place, (start, end) in enumerate(offsets):
        visible = [at for at in range(start, end) if not white[at]]
        word = int(laid["word"][place])
        if not visible:  # goes with the word behind it, or belongs to no word and has no tag
            assert word >= 0 or (laid["tag"][place] == -1 and laid["weight"][place] == 0)
            continue
        first = opened.setdefault(word, visible[0]) if word >= 0 else visible[0]
        assert laid["tag"][place] == (tag_at[first] or 0) - 1, (text, start, end)
        assert laid["weight"][place] == np.float32(weight_at[first]), (text, start, end)
        number = int(laid["span"][place])
        assert number == span_at[visible[0]], (text, start, end)
        label = int(spans["span"].value[number]) if number >= 0 else 0
        assert laid["span_label"][place] == label - 1
        seen["tagged"] += int(laid["tag"][place] >= 0)
        if number >= 0:
            shown_by_span.setdefault(number, set()).update(visible)
    shows = [{span_at[at] for at in range(start, end) if not white[at]} for start, end in offsets]
    crossed = {number for numbers in shows if len(numbers) > 1 for number in numbers}
    # a normaliser may drop characters
    covered = {at for start, end in offsets for at in range(start, end)}
    for number, (start, end) in enumerate(zip(*spans["span"][:2])):
        if number not in crossed:  # its tokens show its characters, all of them, and no others
            own = {at for at in range(start, end) if not white[at] and at in covered}
            assert shown_by_span.get(number, set()) == own, (text, text[start:end])
            seen["spans"] += bool(own)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_lands_on_the_sub_words_of_its_characters(family):
    seen = check_alignment(FAMILIES[family], TEXTS)
    assert (seen["tagged"] > 100 and seen["spans"] >= 20) or family == "metaspace-bpe"


def laid_out(text, tokens, spans, layer, *, special=None):
    """One text, tokens given as strings found one after the other."""
    offsets, at = [], 0
    for token in tokens:
        at = text.index(token, at)
        offsets.append((at, at + len(token)))
        at += len(token)
    lengths = np.array([len(offsets)])
    flags = np.zeros(len(offsets), dtype=bool) if special is None else np.array(special, dtype=bool)
    placed = place_tokens(
        [text], np.array(offsets, dtype=np.int64).reshape(-1, 2), lengths, special=flags
    )
    found = [{"x": CharSpans.of(spans, layer)}]
    return {
        name: values.tolist()
        for name, values in align(found, {"x": layer}, placed, number_words(placed)).items()
    }


@pytest.mark.parametrize(
    ("text", "tokens", "spans", "layer", "expected"),
    [
        # A word that the annotator cut in two has the tag of its beginning.
        ("gimme it", ["gi", "mme", "it"], [(0, 3, 16), (3, 5, 11), (6, 8, 11)], TAGS, [15, 15, 10]),
        # Byte-level and "▁" tokens carry their space; a lone blank goes with the word behind it.
        (
            "a New York b",
            ["a", " New", " ", "York", " b"],
            [(2, 10)],
            Layer("spans"),
            [-1, 0, 0, 0, -1],
        ),
        # White space inside a span leaves no hole; behind it, it is outside.
        (
            "New  York  x",
            ["New", "  ", "York", "  ", "x"],
            [(0, 9)],
            Layer("spans"),
            [0, 0, 0, -1, -1],
        ),
        # A span that begins inside a token loses it; one that ends inside keeps it.
        ("Newcastle United", ["Newcastle", " United"], [(3, 9)], Layer("spans"), [-1, -1]),
        ("Newcastle United", ["Newcastle", " United"], [(0, 3)], Layer("spans"), [0, -1]),
        # Neighbours keep their own numbers.
        ("東京都", ["東", "京", "都"], [(0, 2), (2, 3)], Layer("spans"), [0, 0, 1]),
        ("an owl", ["an", "ow", "l"], [(3, 6, 0.5)], WEIGHT, [0.0, 0.5, 0.5]),
        ("", [], [], WEIGHT, []),
    ],
)
def test_rule(text, tokens, spans, layer, expected):
    assert laid_out(text, tokens, spans, layer)["x"] == expected


def test_special_tokens_carry_nothing():
    laid = laid_out("ab", ["", "ab", ""], [(0, 2, 1)], SPANS, special=[1, 0, 1])
    assert laid == {"x": [-1, 0, -1], "x_label": [-1, 0, -1]}


class Capitals:
    """A fake annotator: words with a capital, and their length as a weight."""

    layers = {"capital": Layer("spans"), "size": WEIGHT}

    def annotate(self, texts):
        found = []
        for text in texts:
            words = annotator("words").annotate([text])[0]["words"]
            big = np.array([text[at].isupper() for at in words.start], dtype=bool)
            size = (words.end - words.start).astype(np.float32)
            found.append(
                {
                    "capital": CharSpans(words.start[big], words.end[big]),
                    "size": CharSpans(*words[:2], size),
                }
            )
        return found


def test_layers_ride_through_tokenise_and_pieces():
    documents = [
        Document("a", "The Cat sat in Ulm."),
        Document("b", "no capitals here"),
        Document("c", "Zürich!"),
    ]
    tokenizer = train_tokenizer([text for _, text in documents] * 3, vocab_size=80, lowercase=False)
    one_by_one = list(tokenise(documents, tokenizer, batch_size=1, layers=Capitals()))
    together = list(tokenise(documents, tokenizer, layers=Capitals()))
    for one, other in zip(one_by_one, together):  # a batch is not seen
        assert {k: v.tolist() for k, v in one.layers.items()} == {
            k: v.tolist() for k, v in other.layers.items()
        }
    assert together[1].layers["capital"].max() == -1
    pieces = read_pieces(together, tokenizer=tokenizer, length=64)
    assert set(pieces.columns) == {"input_ids", "word_ids", "capital", "size"}
    row = Rows.of(pieces).tensors([0])
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"][0])
    shown = "".join(
        token.removeprefix("##") for token, n in zip(tokens, row["capital"][0]) if n >= 0
    )
    assert shown == "TheCatUlmZürich"
    inside = row["word_ids"][0] >= 0
    assert (row["size"][0][inside] > 0).all() and (row["size"][0][~inside] == 0).all()


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    documents = [Document("a", "The Cat sat in Ulm."), Document("b", "no capitals here")]
    texts = [text for _, text in documents]
    mine, other = (
        train_tokenizer(texts, vocab_size=64, lowercase=lower) for lower in (True, False)
    )
    path = tmp_path / "pieces"
    tokens = tokenise(documents, mine, layers=Capitals())
    pieces = read_pieces(tokens, tokenizer=mine, length=32, out=path)
    mine.save_pretrained(tmp_path / "tokenizer")
    again = Pieces.load(path, tokenizer=load_tokenizer(str(tmp_path / "tokenizer")))
    assert again.tokenizer == pieces.tokenizer != ""
    what = (
        rf"a different tokenizer; got {pieces.tokenizer}; allowed: [0-9a-f]{{16}}; prepare the "
        rf"corpus again"
    )
    with pytest.raises(MaskwiseError, match=what) as caught:
        Pieces.load(path, tokenizer=other)
    assert "\n" not in str(caught.value)
