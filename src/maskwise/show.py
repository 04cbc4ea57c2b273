"""See the masks: a text, piece by piece, with what a masker did to each. For ``inspect`` and for
reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from maskwise.masking import IGNORE, Masker
from maskwise.masking.corruptions import PermuteSentences
from maskwise.text import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SOME_MORE = 16
"""Tokens that a model may write more than it should."""


class Piece(NamedTuple):
    """A stretch of the text, one token long.

    Attributes:
        text: as it stands in the text, white space before it included.
        state: ``shown`` (not chosen), ``masked``, ``random`` (another token stands here), ``kept``
            (chosen, but unchanged).
        shown: what the model reads instead; empty where it reads the text itself.
    """

    text: str
    state: str
    shown: str = ""

    def as_dict(self) -> dict[str, str]:
        return {"text": self.text, "state": self.state} | (
            {"shown": self.shown} if self.shown else {}
        )


class Shown(NamedTuple):
    """One masked text.

    Attributes:
        pieces: the text, token by token.
        ratio: the share of its tokens that were chosen.
        whole, parts: how many words were chosen as a whole, and how many only in part.
        source, target: what a sequence-to-sequence model would read and write ("" otherwise).
        written: what a given one writes; None without one.
    """

    pieces: list[Piece]
    ratio: float
    whole: int
    parts: int
    source: str = ""
    target: str = ""
    written: str | None = None


def show_masks(
    masker: Masker,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    step: int = 0,
    total_steps: int | None = None,
    epoch: int = 0,
    max_length: int | None = None,
    layers: dict[str, list[Any]] | None = None,
    model: PreTrainedModel | None = None,
) -> Shown:
    """Mask one text and say what happened to each of its tokens.

    Args:
        masker: what masks.
        tokenizer: a fast tokenizer.
        step, total_steps: where the schedule stands.
        epoch: the pass over the text; each draws other masks.
        max_length: cut the text after so many tokens.
        layers: further layers of the tokens, by name.
        model: an encoder–decoder that shall write what it reads.
    """
    row = {**encode(tokenizer, [text], max_length=max_length)[0], **(layers or {})}
    batch = masker([row], step=step, total_steps=total_steps, epoch=epoch)
    offsets = tokenizer(
        text, return_offsets_mapping=True, truncation=max_length is not None, max_length=max_length
    )["offset_mapping"]
    corruption: Any = masker.corruption
    # a token's place then says nothing of how it is shown
    permutes = isinstance(corruption, PermuteSentences)
    keeps = corruption.keeps_length and not permutes
    chosen_state = "kept" if permutes and corruption.inner is None else "masked"
    pieces, end = [], 0
    for place, (start, stop) in enumerate(offsets):
        if stop <= start or not bool(batch.source.content[place]):
            continue
        chosen, shown = bool(batch.selected[0, place]), ""
        state = chosen_state if chosen else "shown"
        if keeps:
            now, before = int(batch.input_ids[0, place]), int(batch.source.input_ids[place])
            if chosen and now == before:
                state = "kept"
            elif chosen and now != masker.vocabulary.mask:
                state, shown = "random", str(tokenizer.convert_ids_to_tokens(now))
        pieces.append(Piece(text[min(end, start) : stop] if stop > end else "", state, shown))
        end = max(end, stop)
    source, target, written = "", "", None
    if not keeps:
        source = _decode(tokenizer, batch.input_ids[0].tolist())
        target = _decode(tokenizer, batch.labels[0][batch.labels[0] != IGNORE].tolist())
    if model is not None:
        read = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        inputs = {name: value for name, value in read.items() if value is not None}
        # with a model only: it takes seconds to import
        from maskwise.objectives.denoising import generated

        (ids,) = generated(model, inputs, most=batch.labels.shape[1] + SOME_MORE)
        written = _decode(tokenizer, ids[1:])  # the first starts the decoder, and is not written
    whole, parts = _words(torch.as_tensor(row["word_ids"]), batch.selected[0])
    return Shown(
        [p for p in pieces if p.text], batch.realised_ratio, whole, parts, source, target, written
    )


def _words(word_ids_L: torch.Tensor, chosen_L: torch.Tensor) -> tuple[int, int]:
    """How many words are chosen as a whole, and in part."""
    inside = word_ids_L >= 0
    _, word, tokens = word_ids_L[inside].unique(return_inverse=True, return_counts=True)
    taken = torch.zeros_like(tokens).index_add_(0, word, chosen_L[: len(inside)][inside].long())
    return int((taken == tokens).sum()), int(((taken > 0) & (taken < tokens)).sum())


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    kept = [i for i in ids if i != tokenizer.pad_token_id]
    return str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))
