"""The layers that a learned policy makes of a text: a weight for every word, and the best spans with their scores.

A policy reads its own tokens, through windows as long as those it was made for, which are cut as pieces of a corpus
are; what it says is told by the *characters* of words. So a corpus is scored once, whatever the tokenizer of the model
that it is masked for, and a policy that was made for another tokenizer needs nothing else.

- The **weight** of a word is exp(logit), its logit the mean over its tokens; of a policy that scores spans it is the
  probability to lie inside the span, P(start)·P(end) summed over the spans around the word. Weights average 1 over a
  text, since only their proportions mean something.
- The **best spans** of a window do not overlap: each is the best of those that leave the better ones alone. A policy
  that scores tokens gives its best words.

Cost: the encoder's, over windows of similar length, without gradients; all else is numpy over words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError
from maskwise.segments import framed, listed
from maskwise.starts import find_policy
from maskwise.text.documents import Document
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.pieces import Pieces, read_pieces
from maskwise.text.tokenizers import tokenise
from maskwise.text.words import VERSION as WORDS_VERSION

if TYPE_CHECKING:  # torch takes two seconds: who only names the annotator does not wait for it
    from maskwise.learning.scorer import PolicyModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VERSION = "learned-1"
BATCH_TOKENS = 8192
"""Padded tokens that are read together."""
LEAST_LOGIT = -60.0
"""Below the highest of a text; a word never weighs nothing."""


class Learned:
    """The layers of a learned policy.

    Args:
        folder: the policy's folder, or its id on the hub; none: the policy that a run of a study will learn, of which
            only the names of its layers are known.
        layer: name of the layer of weights; ``NAME_span`` holds the best spans and ``NAME_score`` their scores.
        spans: how many of them, of each window of text.

    Raises:
        MaskwiseError: no policy, or a damaged one.
    """

    name = "learned"
    imports: ClassVar = ("torch", "transformers")
    """What its workers take seconds to import."""

    def __init__(self, folder: str = "", *, layer: str = "learned", spans: int = 5):
        from maskwise.learning.scorer import read_config

        if spans < 1:
            raise MaskwiseError("spans of a learned policy", got=spans, allowed="1 or more")
        self.folder, self.spans = find_policy(folder) if folder else None, spans
        if self.folder:
            read_config(self.folder)
        self.layer = layer
        self.layers: Mapping[str, Layer] = {
            layer: Layer("weight"), f"{layer}_span": Layer("spans"), f"{layer}_score": Layer("weight"),
        }  # fmt: skip

    @cached_property
    def version(self) -> str:
        """Changes with any weight, setting or token of the policy, and with the rules here."""
        if self.folder is None:
            return "of the run"
        files = [self.folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
        kept = [path for path in files if path.is_file()]
        return digest(VERSION, WORDS_VERSION, self.spans, *kept)

    @cached_property
    def policy(self) -> PolicyModel:
        """The model, loaded when it is first needed."""
        from maskwise.learning.scorer import PolicyModel

        if self.folder is None:
            do = "name its folder: learned('FOLDER')"
            raise MaskwiseError("this learned policy is made by a run of a study", do=do)
        return PolicyModel.from_pretrained(self.folder)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """For each text its layers; see `Annotator`."""
        scores = score_words(self.policy, texts, spans=self.spans)
        found = []
        for text in range(len(texts)):
            words, best = scores.words(text), scores.best(text)
            start, end = scores.start.astype(np.int32), scores.end.astype(np.int32)
            spans = start[scores.first[best]], end[scores.last[best]]
            found.append({
                self.layer: CharSpans(start[words], end[words], scores.weight[words].astype(np.float32)),
                f"{self.layer}_span": CharSpans(*spans),
                f"{self.layer}_score": CharSpans(*spans, scores.score[best].astype(np.float32)),
            })  # fmt: skip
        return found


class WordScores(NamedTuple):
    """What a policy says of the W words of N texts, and of the S best spans of their windows, both in their order.

    Attributes:
        start, end: (W,) characters of each word in its text.
        weight: (W,) averages 1 over each text.
        first, last: (S,) the first and last word of each span, numbers below W.
        score: (S,) its probability in its window.
        edges, span_edges: (N + 1,) where the words, and the spans, of each text begin.
    """

    start: Ints
    end: Ints
    weight: Floats
    first: Ints
    last: Ints
    score: Floats
    edges: Ints
    span_edges: Ints

    def words(self, text: int) -> slice:
        """The words of a text."""
        return slice(int(self.edges[text]), int(self.edges[text + 1]))

    def best(self, text: int) -> slice:
        """The best spans of a text."""
        return slice(int(self.span_edges[text]), int(self.span_edges[text + 1]))


class Windows(NamedTuple):
    """Texts as a policy reads them, and the W words in its windows, in the order of the texts.

    Attributes:
        pieces: the windows, T tokens in all.
        text, piece: (W,) the text and the window of each word.
        open, close: (W,) its first and its last token.
        start, end: (W,) its characters in its text.
        tokens, word: (M,) the tokens that are in words, and the word of each.
    """

    pieces: Pieces
    text: Ints
    piece: Ints
    open: Ints
    close: Ints
    start: Ints
    end: Ints
    tokens: Ints
    word: Ints

    def mean(self, value_T: Floats) -> Floats:
        """(W,) the mean over the tokens of each word."""
        counts = np.bincount(self.word, minlength=len(self.open))
        return np.bincount(self.word, value_T[self.tokens], len(self.open)) / np.maximum(counts, 1)


def read_windows(texts: list[str], policy: PolicyModel) -> Windows | None:
    """Texts cut into windows of ``policy.config.length`` tokens, between words; None where there is not one token.

    A word that is longer than a window is in none.
    """
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    tokens = list(tokenise(documents, policy.tokenizer, places=True))
    if not any(len(each.input_ids) for each in tokens):
        return None
    pieces = read_pieces(tokens, tokenizer=policy.tokenizer, length=policy.config.length)
    text_T = np.repeat(np.arange(len(texts)), [len(each.input_ids) for each in tokens])
    piece_T = np.repeat(np.arange(len(pieces)), np.diff(pieces.offsets))
    number_T = pieces.columns["word_ids"]
    inside = number_T >= 0
    opens = inside.copy()
    opens[1:] &= (number_T[1:] != number_T[:-1]) | (piece_T[1:] != piece_T[:-1]) | ~inside[:-1]
    at, first = np.flatnonzero(inside), np.flatnonzero(opens)
    word = np.cumsum(opens)[at] - 1
    last = at[np.cumsum(np.bincount(word, minlength=len(first))) - 1] if len(at) else first
    start, end = pieces.columns["start"][first], pieces.columns["end"][last]
    return Windows(pieces, text_T[first], piece_T[first], first, last, start, end, at, word)


def score_words(policy: PolicyModel, texts: list[str], *, spans: int = 5) -> WordScores:
    """What a policy says of texts, live; layers are made of it.

    Args:
        spans: how many of the best spans are given, of each window of ``policy.config.length`` tokens.

    Raises:
        MaskwiseError: scores that are not finite.
    """
    windows = read_windows(texts, policy)
    if windows is None:
        none, zero = np.zeros(0, np.int64), np.zeros(len(texts) + 1, np.int64)
        return WordScores(none, none, np.zeros(0), none, none, np.zeros(0), zero, zero)
    pieces, text_W, piece_W = windows.pieces, windows.text, windows.piece
    logits_TC = _logits(policy, pieces)
    if not np.isfinite(logits_TC).all():
        raise MaskwiseError("the scores of the policy are not finite", do="is it damaged? learn it again")
    edges = np.searchsorted(text_W, np.arange(len(texts) + 1))

    if policy.config.head == "tokens":
        logit_W = windows.mean(logits_TC[:, 0])
        weight_W = np.exp(np.maximum(logit_W - _most(logit_W, text_W, len(texts)), LEAST_LOGIT))
        chance = _softmax(_padded(logit_W, piece_W, len(pieces), -np.inf))[..., None]
    else:
        sides = (logits_TC[windows.open, 0], logits_TC[windows.close, 1])
        first, last = (_softmax(_padded(side, piece_W, len(pieces), -np.inf)) for side in sides)
        chance = span_chances(first, last, longest=policy.config.longest)
        weight_W = _inside(chance)[_real(piece_W, len(pieces))]
    total = np.bincount(text_W, weight_W, len(texts))
    mean = total / np.maximum(1, np.diff(edges))
    weight_W = np.maximum(weight_W / np.maximum(mean, 1e-300)[text_W], np.exp(LEAST_LOGIT))

    piece_S, first_S, more_S, score_S = best_spans(chance, spans)
    first_S = first_S + np.searchsorted(piece_W, piece_S)
    span_edges = np.searchsorted(text_W[first_S], np.arange(len(texts) + 1))
    return WordScores(windows.start, windows.end, weight_W, first_S, first_S + more_S, score_S, edges, span_edges)


def span_chances(first_PW: Floats, last_PW: Floats, *, longest: int) -> Floats:
    """(P, W, K): P(start = i)·P(end = i + k), the chance of the span of k + 1 words from word i on."""
    behind = np.pad(last_PW, ((0, 0), (0, longest - 1)))
    windows = np.lib.stride_tricks.sliding_window_view(behind, longest, axis=1)
    return first_PW[..., None] * windows


def best_spans(chance_PWK: Floats, count: int) -> tuple[Ints, Ints, Ints, Floats]:
    """The best spans of each piece that do not overlap, in the order of the text: piece, first word, further words and
    score, (S,) each; ``count`` at most of each piece."""
    chance, (pieces, words, longest) = chance_PWK.copy(), chance_PWK.shape
    start, more = np.arange(words)[:, None], np.arange(longest)[None]
    found = []
    for _ in range(min(count, words)):
        flat = chance.reshape(pieces, -1)
        place = flat.argmax(1)
        value = flat[np.arange(pieces), place]
        i, k = np.divmod(place, longest)
        kept = np.flatnonzero(value > 0)
        if not len(kept):
            break
        found.append(np.stack([kept, i[kept], k[kept], value[kept]]))
        i, j = i[:, None, None], (i + k)[:, None, None]
        chance[(start <= j) & (start + more >= i)] = 0
    piece, first, further, score = np.concatenate([np.zeros((4, 0)), *found], axis=1)
    order = np.lexsort((first, piece))
    places = [part[order].astype(np.int64) for part in (piece, first, further)]
    return places[0], places[1], places[2], score[order]


def _inside(chance_PWK: Floats) -> Floats:
    """(P, W): the chance of every word to lie inside the span."""
    pieces, words, longest = chance_PWK.shape
    change = np.zeros((pieces, words + longest + 1))
    for more in range(longest):
        change[:, :words] += chance_PWK[..., more]
        change[:, more + 1 : more + 1 + words] -= chance_PWK[..., more]
    return np.maximum(np.cumsum(change, axis=1)[:, :words], 0.0)


def _logits(policy: PolicyModel, pieces: Pieces) -> Floats:
    """(T, C): the logits of every token of every piece, read in batches of pieces of similar length."""
    import torch

    logits = np.zeros((int(pieces.offsets[-1]), 2 if policy.config.head == "spans" else 1))
    device = next(policy.parameters()).device
    policy.eval()
    with torch.inference_mode():
        for rows in _by_length(np.diff(pieces.offsets), pieces.length):
            size = np.diff(pieces.offsets)[rows]
            frame = pieces.frame
            width = int(size.max()) + (frame.first >= 0) + (frame.last >= 0)
            laid = framed(size, np.arange(len(rows)), length=width, frame=frame)
            token = listed(pieces.offsets[rows], size)  # in the corpus
            lines = (laid.ids(pieces.columns["input_ids"][token]), laid.present())
            batch = (torch.from_numpy(line.reshape(laid.shape)).to(device) for line in lines)
            out = policy(*batch).float().cpu().numpy().reshape(len(rows) * width, -1)
            logits[token] = out[laid.at]
    return logits


def _by_length(sizes: Ints, length: int) -> Iterator[Ints]:
    """Numbers of pieces, the longest first, in batches of some ``BATCH_TOKENS`` tokens."""
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, BATCH_TOKENS // (int(sizes[order[start]]) + 2))
        yield order[start : start + count]
        start += count


def _padded(values_W: Floats, piece_W: Ints, pieces: int, empty: float) -> Floats:
    """(P, W'): the words of each piece in a row."""
    real = _real(piece_W, pieces)
    padded = np.full(real.shape, empty)
    padded[real] = values_W
    return padded


def _real(piece_W: Ints, pieces: int) -> NDArray[np.bool_]:
    """(P, W') where a row of ``_padded`` holds a word."""
    counts = np.bincount(piece_W, minlength=pieces)
    return np.arange(counts.max(initial=1)) < counts[:, None]


def _softmax(logit_PW: Floats) -> Floats:
    """Along the words of each piece; 0 where there is none."""
    most = logit_PW.max(axis=1, keepdims=True)
    weight = np.exp(logit_PW - np.where(np.isfinite(most), most, 0.0))
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)


def _most(logit_W: Floats, text_W: Ints, texts: int) -> Floats:
    """(W,) the highest logit of the text of each word."""
    most = np.full(texts, -np.inf)
    np.maximum.at(most, text_W, logit_W)
    return most[text_W]
