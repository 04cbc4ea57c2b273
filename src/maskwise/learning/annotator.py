"""Annotate texts with a learned masking policy: a weight for every word, and the best spans.

Words with a larger weight are masked more often. The policy's tokenizer splits a text into tokens,
and the policy scores windows of at most ``policy.config.length`` tokens. Scores are stored with
*character* offsets. One scored corpus therefore serves models with different tokenizers.

- Weights: with a token head, the weight of a word is exp(mean logit of its tokens). With a span
  head, the weight of a word is the sum of P(start)·P(end) over all spans that contain the word.
  Only ratios of weights matter, so the weights of each text are scaled to a mean of 1.
- Best spans: in each window, the spans with the highest probability, chosen one after another so
  that no two spans overlap. With a token head, each span is a single word.

Cost: one forward pass of the encoder over the corpus, plus numpy operations over words.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.learning.scorer import COLUMNS, PolicyModel, read_config
from maskwise.masking.line import Line
from maskwise.masking.segments import LEAST_LOGIT, changes, listed, weights_within
from maskwise.models.starts import find_policy
from maskwise.tasks.tensors import Flat, batches_by_length
from maskwise.text.documents import Document
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.pieces import Pieces, read_pieces, tokenise
from maskwise.text.words import VERSION as WORDS_VERSION

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VERSION = "learned-2"


class PolicyAnnotator:
    """Annotates texts with the layers of a learned policy.

    Args:
        folder: the policy's folder or hub id. The empty string stands for a policy that a study
            will learn later. The layers then have names, but ``annotate`` raises an error.
        layer: the name of the layer of weights. With the name NAME, two more layers are
            ``NAME_span``, the best spans, and ``NAME_score``, the best spans with their scores.
        spans: the number of best spans per window.

    Raises:
        MaskwiseError: the policy is missing or damaged.
    """

    name = "learned"

    def __init__(self, folder: str = "", *, layer: str = "learned", spans: int = 5):
        self.folder = None
        if folder:
            self.folder = find_policy(folder)
            # This call reports errors in the policy's files before workers start.
            read_config(self.folder)
        self.spans = whole_number("spans of a learned policy", spans, least=1)
        self.layer = layer
        self.layers: Mapping[str, Layer] = {
            layer: Layer("weight"),
            f"{layer}_span": Layer("spans"),
            f"{layer}_score": Layer("weight"),
        }

    @cached_property
    def version(self) -> str:
        """A hash of the policy's files, the number of spans, and the versions of the rules.

        While the study has not learned the policy yet, there is nothing to hash.
        """
        if self.folder is None:
            return "of the run"
        files = map(self.folder.joinpath, ("config.json", "model.safetensors", "tokenizer.json"))
        return digest(VERSION, WORDS_VERSION, self.spans, *filter(Path.is_file, files))

    @cached_property
    def policy(self) -> PolicyModel:
        """The policy's model, which is loaded when it is first used."""
        if self.folder is None:
            raise MaskwiseError(
                "a learned policy needs a folder, except in a study that learns the policy itself",
                do="give the folder: learned('FOLDER')",
            )
        return PolicyModel.from_pretrained(self.folder)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """Return the layers of each text; see `Annotator`."""
        annotated = []
        for scores in score_words(self.policy, texts, spans=self.spans):
            # The annotation store has these data types.
            start = scores.start.astype(np.int32)
            end = scores.end.astype(np.int32)
            weight = scores.weight.astype(np.float32)
            first, last = scores.spans.T.astype(np.int32)
            score = scores.score.astype(np.float32)
            layers = {
                self.layer: CharSpans(start, end, weight),
                f"{self.layer}_span": CharSpans(first, last),
                f"{self.layer}_score": CharSpans(first, last, score),
            }
            annotated.append(layers)
        return annotated


class TextScores(NamedTuple):
    """Scores of the W words and the S best spans of a text, in text order.

    Attributes:
        start, end: (W,) the character offsets of the words.
        weight: (W,) the weights of the words, with mean 1.
        spans: (S, 2) the character offsets of the spans.
        score: (S,) the probability of each span in its text.
    """

    start: Ints
    end: Ints
    weight: Floats
    spans: Ints
    score: Floats


class TextWindows(NamedTuple):
    """The windows of several texts, and the W words in these windows, in text order.

    A window is a part of a text that the policy scores at once.

    Attributes:
        pieces: the windows, with T tokens in total.
        text: (W,) the index of each word's text.
        piece: (W,) the index of each word's window.
        open: (W,) the index, among the T tokens, of each word's first token.
        close: (W,) the index of each word's last token.
        start, end: (W,) the character offsets of each word in its text.
        tokens: (M,) the indices of the M tokens that belong to words.
        word: (M,) the index of the word of each of these tokens.
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


def read_windows(texts: list[str], policy: PolicyModel) -> TextWindows | None:
    """Split texts into windows for the policy. Windows begin and end between words.

    Words that are longer than a window are dropped. If no text has a token, return None.
    """
    # A document needs a name, but the names are not used. Each document is named by its index.
    names = map(str, range(len(texts)))
    documents = map(Document, names, texts)
    tokens = list(tokenise(documents, policy.tokenizer, places=True))
    sizes: list[int] = []
    for batch in tokens:
        sizes += batch.lengths.tolist()
    if not any(sizes):
        return None
    pieces = read_pieces(tokens, tokenizer=policy.tokenizer, length=policy.config.length)
    text_T = np.repeat(np.arange(len(texts)), sizes)
    tokens_P = np.diff(pieces.offsets)
    piece_T = np.repeat(np.arange(len(pieces)), tokens_P)
    word_id_T = pieces.columns["word_ids"]
    in_word = np.flatnonzero(word_id_T >= 0)
    # The last word of a text and the first word of the next text may have equal word ids. The index
    # of the window tells them apart.
    opens = changes(word_id_T[in_word], piece_T[in_word])
    closes = np.append(opens[1:], True)[: len(in_word)]
    first = in_word[opens]
    last = in_word[closes]
    return TextWindows(
        pieces=pieces,
        text=text_T[first],
        piece=piece_T[first],
        open=first,
        close=last,
        start=pieces.columns["start"][first],
        end=pieces.columns["end"][last],
        tokens=in_word,
        word=np.cumsum(opens) - 1,
    )


def score_words(policy: PolicyModel, texts: list[str], *, spans: int = 5) -> list[TextScores]:
    """Score the words of each text, and find its best spans.

    Args:
        spans: the number of best spans per window of ``policy.config.length`` tokens.

    Raises:
        MaskwiseError: a score is not finite.
    """
    windows = read_windows(texts, policy)
    if windows is None:
        none = np.zeros(0, np.int64)
        no_spans = np.zeros((0, 2), np.int64)
        empty = TextScores(
            start=none,
            end=none,
            weight=np.zeros(0),
            spans=no_spans,
            score=np.zeros(0),
        )
        return [empty] * len(texts)
    text_W = windows.text
    logits_TC = _logits(policy, windows.pieces)
    if not np.isfinite(logits_TC).all():
        raise MaskwiseError(
            "the policy's scores are not finite", do="it may be damaged: learn the policy again"
        )

    # Words are arranged as (P, words of the longest window): a row for each window, padded at the
    # end.
    words_P = np.bincount(windows.piece, minlength=len(windows.pieces))
    most = words_P.max(initial=1)
    real_PW = np.arange(most) < words_P[:, None]
    if policy.config.head == "tokens":
        total_W = np.bincount(windows.word, logits_TC[windows.tokens, 0])
        logit_W = total_W / np.bincount(windows.word)
        weight_W = weights_within(logit_W, text_W, pieces=len(texts))
        chance_PWK = _softmax(logit_W, text_W, real_PW)[..., None]
    else:
        first_PW = _softmax(logits_TC[windows.open, 0], text_W, real_PW)
        last_PW = _softmax(logits_TC[windows.close, 1], text_W, real_PW)
        chance_PWK = span_chances(first_PW, last_PW, longest=policy.config.longest)
        weight_W = _inside(chance_PWK)[real_PW]
    total = np.bincount(text_W, weight_W, len(texts))
    words = np.bincount(text_W, minlength=len(texts))
    mean = total / words.clip(min=1)
    # All weights of a text are 0 if its probabilities underflow. The mean must not be 0 then.
    weight_W = weight_W / np.maximum(mean, 1e-300)[text_W]
    weight_W = np.maximum(weight_W, np.exp(LEAST_LOGIT))

    piece_S, word_S, more_S, score_S = best_spans_in_windows(chance_PWK, spans)
    first_S = word_S + np.searchsorted(windows.piece, piece_S)
    last_S = first_S + more_S
    starts_S = windows.start[first_S]
    ends_S = windows.end[last_S]
    spans_S = np.stack([starts_S, ends_S], axis=1)
    # Words and spans are in text order, so each text is a slice.
    later_texts = np.arange(1, len(texts))
    words_cut = np.searchsorted(text_W, later_texts)
    spans_cut = np.searchsorted(text_W[first_S], later_texts)
    scores = map(
        TextScores,
        np.split(windows.start, words_cut),
        np.split(windows.end, words_cut),
        np.split(weight_W, words_cut),
        np.split(spans_S, spans_cut),
        np.split(score_S, spans_cut),
    )
    return list(scores)


def span_chances(first_PW: Floats, last_PW: Floats, *, longest: int) -> Floats:
    """Return (P, W, K) the probabilities of spans, up to K = ``longest`` words.

    The element [p, i, k] is the probability of the span of words i to i + k in window p, which is
    P(start = i)·P(end = i + k).

    Args:
        first_PW: the probability that the span starts at each word of each window.
        last_PW: the probability that the span ends at each word.
    """
    padded = np.pad(last_PW, ((0, 0), (0, longest - 1)))
    last_PWK = np.lib.stride_tricks.sliding_window_view(padded, longest, axis=1)
    return first_PW[..., None] * last_PWK


def best_spans_in_windows(chance_PWK: Floats, count: int) -> tuple[Ints, Ints, Ints, Floats]:
    """In each window, choose up to ``count`` spans that do not overlap, most probable first.

    Args:
        chance_PWK: the result of ``span_chances``.

    Returns:
        Four arrays (S,) in text order: the window of each span, its first word, the number of its
        further words, and its probability.
    """
    chance = chance_PWK.copy()
    pieces, words, longest = chance.shape
    start = np.arange(words)[:, None]
    more = np.arange(longest)
    # The empty block gives the correct shape if no span is found.
    found = [np.zeros((4, 0))]
    for _ in range(count):
        flat = chance.reshape(pieces, -1)
        best = flat.argmax(1)
        score = flat[np.arange(pieces), best]
        i, k = np.divmod(best, longest)
        positive = np.flatnonzero(score > 0)
        if not len(positive):
            break
        chosen = np.stack([np.arange(pieces), i, k, score])
        found.append(chosen[:, positive])
        # Spans that overlap the chosen span must not be chosen in later rounds.
        j = (i + k)[:, None, None]
        i = i[:, None, None]
        chance[(start <= j) & (start + more >= i)] = 0
    columns = np.concatenate(found, axis=1)
    # Sort by piece, then by first word.
    order = np.lexsort((columns[1], columns[0]))
    columns = columns[:, order]
    piece, first, further = columns[:3].astype(np.int64)
    return piece, first, further, columns[3]


def _inside(chance_PWK: Floats) -> Floats:
    """Return (P, W) for each word the sum of the probabilities of all spans that cover the word."""
    pieces, words, longest = chance_PWK.shape
    inside = np.zeros((pieces, words + longest))
    for more in range(longest):
        for further in range(more + 1):
            covered = slice(further, further + words)
            inside[:, covered] += chance_PWK[..., more]
    return inside[:, :words]


def flat_of(pieces: Pieces, rows: Ints) -> tuple[Flat, Ints, Ints]:
    """Add special tokens to some pieces.

    Args:
        rows: the indices of the pieces.

    Returns:
        The pieces with special tokens; the position of each of their M original tokens in this
        result, (M,); and the position of each original token in ``pieces``, (M,).
    """
    frame = pieces.frame
    size = np.diff(pieces.offsets)[rows]
    special = (frame.first >= 0) + (frame.last >= 0)
    length = int(size.sum()) + len(size) * special
    # ``Flat`` pads batches later, so the pieces are concatenated without padding here.
    token = listed(pieces.offsets[rows], size)
    line = Line.of_pieces(
        {"input_ids": pieces.columns["input_ids"][token]},
        size,
        np.zeros_like(size),
        example_id=pieces.example_ids[rows],
        length=length,
        frame=frame,
    )
    ids = torch.from_numpy(line.input_ids)
    flat = Flat(
        ids,
        types=torch.zeros_like(ids),
        starts=torch.from_numpy(np.append(line.begin, length)),
        pad=frame.pad,
    )
    return flat, line.content_at, token


@torch.inference_mode()
def _logits(policy: PolicyModel, pieces: Pieces) -> Floats:
    """Return (T, C) the logits of every token. C is 1 for a token head, and 2 for a span head."""
    flat, place, _ = flat_of(pieces, np.arange(len(pieces)))
    outputs = COLUMNS[policy.config.head]
    logits = torch.zeros(len(flat.ids), outputs, dtype=torch.float64)
    policy.eval()
    device = next(policy.parameters()).device
    for rows, batch in batches_by_length(flat, device):
        at, real = flat.at(rows)
        out = policy(batch["input_ids"], batch["attention_mask"]).double().cpu()
        # The output of a token head has no last dimension.
        out_BLC = out.reshape(*at.shape, outputs)
        logits[at[real]] = out_BLC[real]
    return logits.numpy()[place]


def _softmax(logit_W: Floats, text_W: Ints, real_PW: NDArray[np.bool_]) -> Floats:
    """Return (P, W') the softmax over the words of each text, in windows, with 0 at padding.

    A text may have several windows. They share its probability.

    Args:
        logit_W: the logits of all words.
        text_W: the text of each word.
        real_PW: (P, W') bool, false at padding. W' is the number of words of the longest window.
    """
    top = np.full(text_W.max(initial=0) + 1, -np.inf)
    np.maximum.at(top, text_W, logit_W)
    weight_W = np.exp(logit_W - top[text_W])
    chance_PW = np.zeros(real_PW.shape)
    chance_PW[real_PW] = weight_W / np.bincount(text_W, weight_W)[text_W]
    return chance_PW
