"""The loss of words of held-out text, which compares models with different vocabularies.

Losses per token do not compare vocabularies, because their tokens differ. This measure masks the
same words of the same texts for every tokenizer, and divides by the bytes of these words. The
pieces of a word are predicted from left to right, each from the pieces before it, so that the loss
of a word is −log p of its whole spelling. All other chosen words of the text stay masked.

The number of masks in place of a word shows a model how many pieces the word has. This helps models
that cut words into pieces, so a small difference between vocabularies says little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from maskwise.base.devices import moved
from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.evaluation.measure import TextMeasure
from maskwise.masking import IGNORE
from maskwise.masking.draws import fold
from maskwise.models.families import most_tokens
from maskwise.objectives.denoising import predicting
from maskwise.results.measurements import Measurement
from maskwise.text.words import classify, text_id, words_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORDS = "words"
SEED = 0x5CA7
SHARE = 0.15
"""The share of the words of a text that are masked."""
WORDS_AT_ONCE = 32
"""The number of words and punctuation marks in a part of a document, which the model reads alone.
Parts are cut in the text, so that they are the same for every tokenizer."""
PARTS_AT_ONCE = 32


class DocumentPart(NamedTuple):
    """A part of a document, and the offsets of the words that are masked."""

    text: str
    words: list[tuple[int, int]]


class MaskedWords(NamedTuple):
    """The tokens of a part, and the places of the tokens of each masked word."""

    ids: list[int]
    words: list[list[int]]
    size: int


def document_parts(texts: Iterable[str]) -> Iterator[DocumentPart]:
    """Cut texts into parts, and choose the words to mask. Both depend only on the texts.

    >>> [part.words for part in document_parts(["The cat sat."])]
    [[(4, 7)]]
    """
    for text in texts:
        starts, ends = words_in(classify(text))
        for first in range(0, len(starts), WORDS_AT_ONCE):
            begin = starts[first : first + WORDS_AT_ONCE]
            end = ends[first : first + WORDS_AT_ONCE]
            part = text[begin[0] : end[-1]]
            spans = list(zip((begin - begin[0]).tolist(), (end - begin[0]).tolist()))
            spelt = [(low, high) for low, high in spans if part[low:high].isalpha()]
            if not spelt:
                continue
            count = max(1, round(SHARE * len(spelt)))
            order = [fold(text_id(part), SEED, number) for number in range(len(spelt))]
            chosen = np.sort(np.argsort(order)[:count])
            yield DocumentPart(part, [spelt[number] for number in chosen])


def _masked(
    part: DocumentPart, tokenizer: PreTrainedTokenizerBase, room: int
) -> MaskedWords | None:
    """Return the tokens of a part; None if it is too long or a word cannot be masked alone."""
    encoded = tokenizer(
        part.text, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    ids = encoded["input_ids"]
    if len(ids) > room:
        return None
    words = []
    for low, high in part.words:
        places = []
        for place, (start, end) in enumerate(encoded["offset_mapping"]):
            if start < high and end > low:
                # Only the space before a word may belong to its tokens.
                if end > high or part.text[start:low].strip():
                    return None
                places.append(place)
        if not places or any(ids[place] == tokenizer.unk_token_id for place in places):
            return None
        words.append(places)
    size = sum(len(part.text[low:high].encode()) for low, high in part.words)
    return MaskedWords(ids, words, size)


@dataclass(frozen=True)
class WordLoss(TextMeasure):
    """The loss of words of held-out text in nats per byte.

    Attributes:
        documents: the maximum number of documents.
    """

    name = WORDS
    counted = "documents"
    reads_documents = True
    documents: int = 100

    def __post_init__(self) -> None:
        whole_number("documents of word-loss", self.documents, least=1)

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        return [word_loss(model, tokenizer, self.text.first(self.documents))]


def word_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> Measurement:
    """Return the loss of words in nats per byte.

    Args:
        texts: held-out documents.

    Raises:
        MaskwiseError: no word can be masked.
    """
    if not tokenizer.is_fast:
        raise MaskwiseError(
            "the loss of words needs the places of tokens in the text",
            got=type(tokenizer).__name__,
            allowed="a fast tokenizer",
        )
    room = min(most_tokens(model.config), 512)
    parts = [*document_parts(texts)]
    found = [_masked(part, tokenizer, room) for part in parts]
    kept = [part for part in found if part is not None]
    if not kept:
        raise MaskwiseError(
            "word-loss: no word of the text can be masked",
            got=f"{len(parts)} parts with words of letters",
            do="measure more text, with words of letters that the tokenizer knows, or leave out "
            "this measure (in a recipe: corpus.held_out, evaluation.measures)",
        )
    # Parts of similar length have little padding.
    kept.sort(key=lambda part: len(part.ids))
    nats = 0.0
    for first in range(0, len(kept), PARTS_AT_ONCE):
        nats += _nats(model, tokenizer, kept[first : first + PARTS_AT_ONCE])
    facts = {}
    if len(kept) < len(parts):
        facts["skipped"] = {"parts with words that cannot be masked": len(parts) - len(kept)}
    return Measurement(
        measure=WORDS,
        metric="nats per byte",
        unit="nats per byte",
        value=nats / sum(part.size for part in kept),
        higher_is_better=False,
        items=sum(len(part.words) for part in kept),
        facts=facts,
    )


def _nats(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: Sequence[MaskedWords]
) -> float:
    """Return the loss of the words of a batch of parts."""
    device = next(model.parameters()).device
    longest = max(len(part.ids) for part in parts)
    truth = torch.full((len(parts), longest), int(tokenizer.pad_token_id))
    for row, part in enumerate(parts):
        truth[row, : len(part.ids)] = torch.tensor(part.ids)
    attention = torch.zeros_like(truth)
    shown = truth.clone()
    most = 0
    for row, part in enumerate(parts):
        attention[row, : len(part.ids)] = 1
        for word in part.words:
            shown[row, word] = tokenizer.mask_token_id
            most = max(most, len(word))
    objective = predicting(model)
    total = 0.0
    for piece in range(most):
        places = [
            (row, word[piece])
            for row, part in enumerate(parts)
            for word in part.words
            if len(word) > piece
        ]
        at = torch.tensor(places).unbind(1)
        labels = torch.full_like(truth, IGNORE)
        labels[at] = truth[at]
        batch = {"input_ids": shown, "attention_mask": attention, "labels": labels}
        losses, _ = objective.token_losses(moved(batch, device))
        total += float(losses.cpu().double().sum())
        # The next pieces are predicted from these.
        shown[at] = truth[at]
    return total
