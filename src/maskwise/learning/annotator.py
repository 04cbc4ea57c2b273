"""The layers of a learned policy: a weight for every word, and the best spans with their scores.

A policy reads its own tokens, in windows as long as those it was made for, cut as pieces of a
corpus are; its scores are placed by the *characters* of words. So a corpus is scored once, whatever
the tokenizer of the model that it is masked for.

- The **weight** of a word is exp(logit), its logit the mean over its tokens; of a policy that
  scores spans it is the probability to lie inside the span, P(start)·P(end) summed over the spans
  around the word. Weights average 1 over a text, since only their proportions matter.
- The **best spans** of a window do not overlap: each is the best of those that the better ones
  leave. A policy that scores tokens gives its best words.

Cost: the encoder's, over windows of similar length, without gradients; the rest is numpy over
    words.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError
from maskwise.learning.scorer import COLUMNS, PolicyModel, read_config
from maskwise.segments import changes, framed, listed
from maskwise.starts import find_policy
from maskwise.tasks.tensors import Flat, batches
from maskwise.text.documents import Document
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.pieces import Pieces, read_pieces
from maskwise.text.tokenizers import tokenise
from maskwise.text.words import VERSION as WORDS_VERSION

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VERSION = "learned-1"
LEAST_LOGIT = -60.0
"""Relative to the highest of a text; no word weighs 0."""


class Learned:
    """The layers of a learned policy.

    Args:
        folder: the policy's folder, or its id on the hub; "": the policy that a run of a study will
            learn, of which only the names of its layers are known.
        layer: name of the layer of weights; ``NAME_span`` holds the best spans and ``NAME_score``
            their scores.
        spans: how many of them, of each window of text.

    Raises:
        MaskwiseError: no policy, or a damaged one.
    """

    name = "learned"
    imports: ClassVar = ("torch", "transformers")
    """Modules that its workers take seconds to import."""

    def __init__(self, folder: str = "", *, layer: str = "learned", spans: int = 5):
        if spans < 1:
            raise MaskwiseError("spans of a learned policy", got=spans, allowed="1 or more")
        self.folder = find_policy(folder) if folder else None
        if self.folder:
            read_config(self.folder)
        self.spans = spans
        self.layer = layer
        self.layers: Mapping[str, Layer] = {
            layer: Layer("weight"),
            f"{layer}_span": Layer("spans"),
            f"{layer}_score": Layer("weight"),
        }

    @cached_property
    def version(self) -> str:
        """Changes with any weight, setting or token of the policy, and with the rules here."""
        if self.folder is None:
            return "of the run"
        names = ("config.json", "model.safetensors", "tokenizer.json")
        files = [self.folder / name for name in names if (self.folder / name).is_file()]
        return digest(VERSION, WORDS_VERSION, self.spans, *files)

    @cached_property
    def policy(self) -> PolicyModel:
        """The model, loaded when it is first needed."""
        if self.folder is None:
            do = "name its folder: learned('FOLDER')"
            raise MaskwiseError("this learned policy is made by a run of a study", do=do)
        return PolicyModel.from_pretrained(self.folder)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """For each text its layers; see `Annotator`."""
        found = []
        for scores in score_words(self.policy, texts, spans=self.spans):
            start = scores.start.astype(np.int32)
            end = scores.end.astype(np.int32)
            first, last = scores.spans.T.astype(np.int32)
            found.append(
                {
                    self.layer: CharSpans(start, end, scores.weight.astype(np.float32)),
                    f"{self.layer}_span": CharSpans(first, last),
                    f"{self.layer}_score": CharSpans(first, last, scores.score.astype(np.float32)),
                }
            )
        return found


class TextScores(NamedTuple):
    """The scores of the W words of a text, and of the S best spans of its windows, in order.

    Attributes:
        start, end: (W,) characters of each word.
        weight: (W,) averages 1.
        spans: (S, 2) characters of each span.
        score: (S,) its probability in its window.
    """

    start: Ints
    end: Ints
    weight: Floats
    spans: Ints
    score: Floats


class Windows(NamedTuple):
    """Texts as a policy reads them, and the W words in its windows, in order.

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


def read_windows(texts: list[str], policy: PolicyModel) -> Windows | None:
    """Texts cut between words into windows that the policy can read; None if all are empty.

    A word that is longer than a window is in none.
    """
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    tokens = list(tokenise(documents, policy.tokenizer, places=True))
    if not any(len(each.input_ids) for each in tokens):
        return None
    pieces = read_pieces(tokens, tokenizer=policy.tokenizer, length=policy.config.length)
    text_T = np.repeat(np.arange(len(texts)), [len(each.input_ids) for each in tokens])
    piece_T = np.repeat(np.arange(len(pieces)), np.diff(pieces.offsets))
    at = np.flatnonzero(pieces.columns["word_ids"] >= 0)
    number, piece = pieces.columns["word_ids"][at], piece_T[at]
    # Among the tokens of words, a word begins with a new number or a new window.
    opens = changes(number, piece)
    first = at[opens]
    last = at[np.append(opens[1:], True)[: len(at)]]
    return Windows(
        pieces,
        text_T[first],
        piece_T[first],
        first,
        last,
        pieces.columns["start"][first],
        pieces.columns["end"][last],
        at,
        np.cumsum(opens) - 1,
    )


def score_words(policy: PolicyModel, texts: list[str], *, spans: int = 5) -> list[TextScores]:
    """The scores of each text, live; layers are made of them.

    Args:
        spans: number of best spans of each window of ``policy.config.length`` tokens.

    Raises:
        MaskwiseError: scores that are not finite.
    """
    windows = read_windows(texts, policy)
    if windows is None:
        none = np.zeros(0, np.int64)
        empty = TextScores(none, none, np.zeros(0), np.zeros((0, 2), np.int64), np.zeros(0))
        return [empty] * len(texts)
    pieces, text_W, piece_W = windows.pieces, windows.text, windows.piece
    logits_TC = _logits(policy, pieces)
    if not np.isfinite(logits_TC).all():
        do = "is it damaged? learn it again"
        raise MaskwiseError("the scores of the policy are not finite", do=do)
    if policy.config.head == "tokens":
        total_W = np.bincount(windows.word, logits_TC[windows.tokens, 0])
        logit_W = total_W / np.bincount(windows.word)
        most = np.full(len(texts), -np.inf)
        np.maximum.at(most, text_W, logit_W)
        weight_W = np.exp(np.maximum(logit_W - most[text_W], LEAST_LOGIT))
        chance = _softmax(_padded(logit_W, piece_W, len(pieces)))[..., None]
    else:
        first = _softmax(_padded(logits_TC[windows.open, 0], piece_W, len(pieces)))
        last = _softmax(_padded(logits_TC[windows.close, 1], piece_W, len(pieces)))
        chance = span_chances(first, last, longest=policy.config.longest)
        weight_W = _inside(chance)[_real(piece_W, len(pieces))]
    total = np.bincount(text_W, weight_W, len(texts))
    mean = total / np.bincount(text_W, minlength=len(texts)).clip(min=1)
    weight_W = np.maximum(weight_W / np.maximum(mean, 1e-300)[text_W], np.exp(LEAST_LOGIT))

    piece_S, place_S, more_S, score_S = best_spans(chance, spans)
    first_S = place_S + np.searchsorted(piece_W, piece_S)
    spans_S = np.stack([windows.start[first_S], windows.end[first_S + more_S]], axis=1)
    columns = []
    for column in (windows.start, windows.end, weight_W):
        columns.append(np.split(column, np.searchsorted(text_W, np.arange(1, len(texts)))))
    for column in (spans_S, score_S):
        columns.append(np.split(column, np.searchsorted(text_W[first_S], np.arange(1, len(texts)))))
    return [TextScores(*parts) for parts in zip(*columns)]


def span_chances(first_PW: Floats, last_PW: Floats, *, longest: int) -> Floats:
    """(P, W, K): P(start = i)·P(end = i + k), the chance of the k + 1 words from word i on."""
    padded = np.pad(last_PW, ((0, 0), (0, longest - 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, longest, axis=1)
    return first_PW[..., None] * windows


def best_spans(chance_PWK: Floats, count: int) -> tuple[Ints, Ints, Ints, Floats]:
    """The best spans of each piece that do not overlap, at most ``count``, in order.

    Returns:
        (S,) each: piece, first word, further words, score.
    """
    chance = chance_PWK.copy()
    pieces, words, longest = chance.shape
    start = np.arange(words)[:, None]
    more = np.arange(longest)[None]
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
    inside = np.zeros((pieces, words + longest))
    for more in range(longest):
        for further in range(more + 1):
            inside[:, further : further + words] += chance_PWK[..., more]
    return inside[:, :words]


def flat_of(pieces: Pieces, rows: Ints) -> tuple[Flat, Ints, Ints]:
    """Some pieces with special tokens, and the places of their tokens there and in ``pieces``."""
    frame = pieces.frame
    size = np.diff(pieces.offsets)[rows]
    length = int(size.sum()) + len(size) * ((frame.first >= 0) + (frame.last >= 0))
    # all in one row, without padding
    line = framed(size, np.zeros_like(size), length=length, frame=frame)
    token = listed(pieces.offsets[rows], size)
    ids = torch.from_numpy(line.ids(pieces.columns["input_ids"][token]))
    starts = torch.from_numpy(np.append(line.begin, length))
    return Flat(ids, torch.zeros_like(ids), starts, frame.pad), line.at, token


@torch.inference_mode()
def _logits(policy: PolicyModel, pieces: Pieces) -> Floats:
    """(T, C): the logits of every token of every piece."""
    flat, place, _ = flat_of(pieces, np.arange(len(pieces)))
    logits = torch.zeros(len(flat.ids), COLUMNS[policy.config.head], dtype=torch.float64)
    policy.eval()
    for rows, batch in batches(flat, next(policy.parameters()).device):
        at, real = flat.at(rows)
        out = policy(batch["input_ids"], batch["attention_mask"]).double().cpu()
        logits[at[real]] = out.reshape(*at.shape, -1)[real]
    return logits.numpy()[place]


def _padded(values_W: Floats, piece_W: Ints, pieces: int) -> Floats:
    """(P, W'): the words of each piece in a row, padded with −∞."""
    real = _real(piece_W, pieces)
    padded = np.full(real.shape, -np.inf)
    padded[real] = values_W
    return padded


def _real(piece_W: Ints, pieces: int) -> NDArray[np.bool_]:
    """(P, W') which places of ``_padded`` hold a word."""
    counts = np.bincount(piece_W, minlength=pieces)
    return np.arange(counts.max(initial=1)) < counts[:, None]


def _softmax(logit_PW: Floats) -> Floats:
    """Over the words of each piece; 0 at padding."""
    most = logit_PW.max(axis=1, keepdims=True)
    weight = np.exp(logit_PW - np.where(np.isfinite(most), most, 0.0))
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
