"""Layers land on exactly the tokens of their characters, whatever the tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from maskwise.annotate.registry import annotator, spec_of
from maskwise.base.errors import MaskwiseError
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
    start, end, _ = annotator("words").annotate([text])[0]["words"]
    kept = rng.random(len(start)) < 0.9
    tags = rng.integers(0, 18, kept.sum()).astype(np.int16)
    weights = rng.random(kept.sum()).astype(np.float32)
    spans, at = [], 0
    while at < len(start):
        size = int(rng.integers(1, 5))
        if rng.random() < 0.4:
            spans.append((start[at], end[at : at + size][-1], int(rng.integers(0, 3))))
        at += size
    return {
        "tag": CharSpans(start[kept], end[kept], tags),
        "span": CharSpans.of(spans, SPANS),
        "weight": CharSpans(start[kept], end[kept], weights),
    }


def check_alignment(tokenizer: Tokenizer, texts: list[str]) -> Counter[str]:
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
    laid = align(found, LAYERS, placed, words) | {"word": words}
    assert tuple(laid) == (*token_layers(LAYERS), "word")
    assert token_layers(LAYERS) == ("tag", "span", "span_label", "weight")
    seen = Counter[str]()
    end = 0
    for text, spans, encoding in zip(texts, found, encodings):
        mine = {name: values[end : end + len(encoding)] for name, values in laid.items()}
        end += len(encoding)
        _check_text(text, spans, encoding.offsets, mine, seen)
    return seen


def _check_text(text, spans, offsets, laid, seen) -> None:
    at_char = {"tag": [0] * len(text), "span": [-1] * len(text), "weight": [0.0] * len(text)}
    values = {"span": range(len(spans["span"].start))}
    for name, column in at_char.items():
        start, end, value = spans[name]
        for first, last, each in zip(start, end, values.get(name, value)):
            column[first:last] = [each] * (last - first)
    white = is_white(classify(text))
    opened: dict[int, int] = {}  # word → its first visible character
    for place, (start, end) in enumerate(offsets):
        token = {name: column[place] for name, column in laid.items()}
        visible = [at for at in range(start, end) if not white[at]]
        word = int(token["word"])
        if not visible:  # goes with the word behind it, or belongs to no word and has no tag
            assert word >= 0 or (token["tag"] == -1 and token["weight"] == 0)
            continue
        first = opened.setdefault(word, visible[0]) if word >= 0 else visible[0]
        assert token["tag"] == at_char["tag"][first] - 1, (text, start, end)
        assert token["weight"] == at_char["weight"][first], (text, start, end)
        number = at_char["span"][visible[0]]
        label = int(spans["span"].value[number]) if number >= 0 else 0
        assert (token["span"], token["span_label"]) == (number, label - 1), (text, start, end)
        seen.update(tagged=int(token["tag"] >= 0), spans=int(number >= 0))


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
    flags = np.array(special or [0] * len(offsets), dtype=bool)
    places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    placed = place_tokens([text], places, np.array([len(offsets)]), special=flags)
    found = [{"x": CharSpans.of(spans, layer)}]
    columns = align(found, {"x": layer}, placed, number_words(placed))
    return {name: values.tolist() for name, values in columns.items()}


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


def test_layers_ride_through_tokenise_and_pieces(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    maker = annotator(spec_of("annotate_tools:capitals"), functions=True)
    texts = ["The Cat sat in Ulm.", "no capitals here", "Zürich!"]
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    tokenizer = train_tokenizer(texts * 3, vocab_size=80, lowercase=False)
    rows = []
    for size in (1, 256):  # a batch is not seen
        tokens = list(tokenise(documents, tokenizer, batch_size=size, layers=maker))
        pieces = read_pieces(tokens, tokenizer=tokenizer, length=64)
        assert set(pieces.columns) == {"input_ids", "word_ids", "capitals"}
        rows.append(Rows.of(pieces).tensors([0]))
    assert all(torch.equal(values, rows[1][name]) for name, values in rows[0].items())
    shown = rows[0]["input_ids"][rows[0]["capitals"] >= 0]
    assert tokenizer.decode(shown).replace(" ", "") == "TheCatUlmZürich"


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    mine, other = (
        train_tokenizer(["The Cat sat in Ulm."], vocab_size=64, lowercase=lower)
        for lower in (True, False)
    )
    tokens = tokenise([Document("a", "The Cat sat in Ulm.")], mine)
    pieces = read_pieces(tokens, tokenizer=mine, length=32, out=tmp_path / "pieces")
    mine.save_pretrained(tmp_path / "tokenizer")
    loaded = load_tokenizer(str(tmp_path / "tokenizer"))
    again = Pieces.load(tmp_path / "pieces", tokenizer=loaded)
    assert again.tokenizer == pieces.tokenizer != ""
    with pytest.raises(MaskwiseError, match=r"a different hash; .* prepare the corpus") as error:
        Pieces.load(tmp_path / "pieces", tokenizer=other)
    assert error.value.got == pieces.tokenizer and "\n" not in str(error.value)
