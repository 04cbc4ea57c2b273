"""Measures of a masked language model that have no noise of their own: log p(token | the rest) for
every token, masked one at a time, and the loss on fixed masks.

A row of n tokens makes n copies, each with one token masked. All copies are built by index
arithmetic, in batches of copies of similar width, and the vocabulary head runs only where the mask
is.

In words of several pieces, a piece is easy to guess from the pieces behind it ("##rates" gives
"Soc" away), which makes long rare words look likely. ``within_word`` masks those too: all pieces of
the word from the target on, so that a word's score is the chain rule from left to right (Kauf &
Ivanova 2023, "PLL-word-l2r"; Salazar et al. 2020 is the plain one). Cost: one forward pass of the
row per token; some 0.1 ms at the size of the quick start.

Fixed masks are a function of the held-out rows alone, so all arms, seeds and steps are judged on
the same targets; beside each figure stands that of a model that knows only how frequent each token
is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from maskwise.constants import DIFFUSION
from maskwise.errors import MaskwiseError
from maskwise.evaluation.bound import Bound, spread
from maskwise.families import Kind, masked_logits
from maskwise.masking import AnnotatedBatch, Masker
from maskwise.masking.gather import gather
from maskwise.masking.vocabulary import Vocabulary
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training.data import Rows, by_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS = 16384
"""Positions in one forward pass."""
DAMAGED = "is the checkpoint damaged?"
EVALUATION_SEED = 0xE7A1
"""The seed of the fixed masks of held-out rows: the same in every study, so that losses can be
compared.
"""
PSEUDO_PERPLEXITY = "pseudo-perplexity"


class Measurement(TypedDict):
    """One figure of one checkpoint; (name, metric) is unique among the records of an evaluation.

    ``chance`` is the figure of a model that ignores the text. ``of`` is how many items the file
    holds, ``items`` how many were scored, ``skipped`` why others were not. ``error`` is a standard
    error, of the bound.
    """

    kind: Literal["evaluation"]
    name: str
    metric: str
    value: float
    items: int
    chance: float | None
    higher_is_better: bool
    error: NotRequired[float]
    of: NotRequired[int]
    skipped: NotRequired[dict[str, int]]
    ties: NotRequired[int]
    groups: NotRequired[dict[str, dict[str, float]]]


def log_probabilities(
    model: PreTrainedModel,
    batch: AnnotatedBatch,
    *,
    mask: int,
    within_word: bool = False,
    tokens: int = TOKENS,
) -> Tensor:
    """(B, L) float32: log p of every eligible token while it is masked; 0 elsewhere.

    Special tokens, padding and [UNK] are not scored.

    Args:
        model: a masked language model in evaluation mode.
        batch: rows padded on the right; with ``word_ids`` if ``within_word``.
        mask: the id of [MASK].
        within_word: also hide the pieces of the same word behind the target.
        tokens: positions in one forward pass.
    """
    width_B = batch.tensor("present").sum(1)
    row_T, column_T = batch.tensor("eligible").nonzero().unbind(1)
    ids_BL, log_p_BL = batch.tensor("input_ids"), torch.zeros(batch.shape)
    words_BL = None
    if within_word:
        words_BL = torch.from_numpy(
            batch.layer("word_ids", policy="pseudo-log-likelihood").reshape(batch.shape)
        )
    for part in by_width(width_B[row_T], tokens):
        row, column = row_T[part], column_T[part]
        width = int(width_B[row].max())
        ids, place = ids_BL[row, :width], torch.arange(width)
        hidden = place == column.unsqueeze(1)
        if words_BL is not None:
            words = words_BL[row, :width]
            own = words.gather(1, column.unsqueeze(1))
            hidden |= (words == own) & (own >= 0) & (place > column.unsqueeze(1))
        shown = torch.where(hidden, mask, ids)
        attention = place < width_B[row].unsqueeze(1)
        log_p = predictions(model, shown, attention, torch.arange(len(row)), column)
        truth = ids.gather(1, column.unsqueeze(1)).to(log_p.device)
        log_p_BL[row, column] = log_p.gather(1, truth).squeeze(1).cpu()
    return log_p_BL


def predictions(
    model: PreTrainedModel, ids: Tensor, attention: Tensor, row: Tensor, column: Tensor
) -> Tensor:
    """log p (M, V) float32 at the places (row, column), each (M,), of rows ``ids`` (N, L); on the
    model's device.

    Raises:
        MaskwiseError: the model gives no numbers. (They would compare as neither better nor worse,
            and rank first.)
    """
    device = next(model.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": attention.long().to(device)}
    log_p = masked_logits(model, inputs, row.to(device), column.to(device)).float().log_softmax(-1)
    if log_p[:, :1].isnan().any():  # one logit that is no number makes its whole row so
        raise MaskwiseError("the model's predictions are no numbers", got="nan", do=DAMAGED)
    return log_p


def pseudo_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, Tensor],
    log_unigram: Tensor | None = None,
) -> list[Measurement]:
    """exp of the mean of −log p over the tokens of some rows, each masked alone.

    Two records: ``token`` is the plain one (Salazar et al. 2020); ``within-word`` also hides the
    pieces behind the target in its word (Kauf & Ivanova 2023). Both are per token, so only models
    with the same tokenizer can be compared. ``chance`` is the perplexity of a model that knows only
    frequencies.

    Args:
        rows: what ``masking.gather`` takes, with ``word_ids``; in packed rows the model sees what
            it sees in training: the documents beside.
        log_unigram: (V,) of the training text, if known.
    """
    batch = gather(rows, Vocabulary.of(tokenizer))
    count = len(batch.eligible_at)
    if not count:
        raise MaskwiseError("no held-out token can be scored", do="use more held-out text")
    chance = None
    if log_unigram is not None:
        chance = float(
            (-log_unigram[torch.from_numpy(batch.input_ids[batch.eligible])].double().mean()).exp()
        )
    records: list[Measurement] = []
    for metric, within_word in (("token", False), ("within-word", True)):
        log_p = log_probabilities(
            model, batch, mask=tokenizer.mask_token_id, within_word=within_word
        )
        value = float((-log_p.double().sum() / count).exp())
        records.append(
            {
                "kind": "evaluation",
                "name": PSEUDO_PERPLEXITY,
                "metric": metric,
                "value": value,
                "items": count,
                "chance": chance,
                "higher_is_better": False,
            }
        )
    return records


# The loss on fixed masks


class HeldOutLoss(TypedDict):
    """The loss of one kind of fixed mask at one ratio: ``loss`` and ``unigram`` in nats a target.

    ``masks`` is the policy, and of an encoder–decoder also what it writes. ``per_byte``: nats for
    each byte of the text as its tokens spell it, which compare between tokenizers that drop the
    same, and between the texts that decoders write. The masks ``diffusion`` are those of the bound
    (``bound``), in nats for each token of the text, with its standard ``error``.
    """

    masks: str
    ratio: float
    loss: float
    unigram: float | None
    targets: int
    per_byte: NotRequired[float]
    error: NotRequired[float]


def fixed_maskers(
    tokenizer: PreTrainedTokenizerBase,
    *,
    masks: Iterable[str],
    ratio: float,
    kind: Kind = "encoder",
    length: int = 0,
) -> dict[str, Masker]:
    """Fixed masks: [MASK] only, and whole units on average at the budget, so that long words count
    too.

    An encoder–decoder is judged by everything that it may have learnt to write with this tokenizer:
    masked spans behind separators or behind sentinels (if there are enough of them for rows of
    ``length``), and the full text.
    """
    shown = {"": "mask-only"}
    if kind == "encoder-decoder":
        vocabulary = Vocabulary.of(tokenizer)
        shown = {" sentinels": "t5"} if len(vocabulary.sentinels) > length * ratio + 2 else {}
        if vocabulary.mask is not None:
            shown |= {" spans": "infill(mean=None, target='spans')"}
        shown |= {" full": "t5(target='full')" if vocabulary.mask is None else "infill(mean=None)"}
    return {
        policy + writes: Masker(
            tokenizer,
            policy=policy,
            ratio=ratio,
            budget="expected",
            corruption=corruption,
            seed=EVALUATION_SEED,
        )
        for policy in masks
        if policy != DIFFUSION
        for writes, corruption in shown.items()
    }


class HeldOut:
    """Loss on *fixed* masks of held-out rows: the same for every arm, seed and step.

    Args:
        held_out: rows that are never trained on.
        maskers: by kind of mask ("token", "whole-word"); called with epoch 0, so its masks never
            change.
        log_unigram: (V,) log-probabilities of tokens in the training text: what knows only
            frequencies. None where the training text is not known.
        rows: at most this many, evenly spread.
        batch_size: rows at once.
        tokenizer: tells how many bytes the text has; None: losses per byte are left out.
        bound: measured too, where it is given.
    """

    def __init__(
        self,
        held_out: Rows,
        maskers: Mapping[str, Masker],
        log_unigram: Tensor | None,
        *,
        rows: int | None = None,
        batch_size: int = 64,
        tokenizer: PreTrainedTokenizerBase | None = None,
        bound: Bound | None = None,
    ):
        self.log_unigram, self.bound = log_unigram, bound
        chosen = spread(rows or len(held_out), of=len(held_out))
        self.batches = {
            kind: [masker(held_out.batch(part), epoch=0) for part in chosen.split(batch_size)]
            for kind, masker in maskers.items()
        }
        self.maskers = maskers
        self.bytes = 0
        if tokenizer is not None:
            pieces = held_out.batch(chosen)
            ids = np.split(pieces.columns["input_ids"], np.cumsum(pieces.lengths)[:-1])
            texts = tokenizer.batch_decode([each.tolist() for each in ids])
            self.bytes = sum(len(text.encode()) for text in texts)

    def __call__(self, objective: MaskedLanguageModelling) -> list[HeldOutLoss]:
        """The loss of every kind of mask that has a target."""
        device = next(objective.parameters()).device
        lines: list[HeldOutLoss] = []
        for kind, batches in self.batches.items():
            loss, unigram, count = 0.0, 0.0, 0
            for batch in batches:
                losses, where = objective.token_losses(batch.to(device))
                truth = batch.labels[where[:, 0].cpu(), where[:, 1].cpu()]
                # Separators and ends that a decoder writes are no words: they would make any text
                # look easy.
                words = torch.from_numpy(self.maskers[kind].vocabulary.content)[truth]
                truth = truth[words]
                loss += float(losses.cpu()[words].double().sum())
                count += len(truth)
                if self.log_unigram is not None:
                    unigram -= float(self.log_unigram[truth].double().sum())
            if count:
                known = None if self.log_unigram is None else unigram / count
                line: HeldOutLoss = {
                    "masks": kind,
                    "ratio": self.maskers[kind].ratio(0),
                    "loss": loss / count,
                    "unigram": known,
                    "targets": count,
                }
                lines.append({**line, "per_byte": loss / self.bytes} if self.bytes else line)
        if self.bound is not None:
            text = self.bound(objective)
            known = None if text.unigram is None else text.unigram / text.tokens
            lines.append(
                {
                    "masks": DIFFUSION,
                    "ratio": 0.5,
                    "loss": text.per_token,
                    "unigram": known,
                    "targets": text.tokens,
                    "error": text.error / text.tokens,
                }
            )
        return lines
