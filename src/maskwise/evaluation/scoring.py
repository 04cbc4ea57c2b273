"""Deterministic measures of a masked language model: log p of each token, the held-out loss, and
the bound of masked diffusion.

For log p, a row of n tokens is read n times, each time with another token masked; the vocabulary
head runs only at the masks. A piece of a word is easy to guess from the later pieces ("##rates"
gives "Soc" away), which makes long rare words look likely. ``within_word`` masks those too, so that
the score of a word follows the chain rule from left to right (Kauf & Ivanova 2023, "PLL-word-l2r").
Without it the scores are those of Salazar et al. 2020. Cost: a forward pass of a row per token.

The held-out loss has fixed masks, which are a function of the rows alone, so all arms, seeds and
steps have the same targets. The frequencies of tokens give its baseline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from maskwise.constants import DIFFUSION
from maskwise.errors import MaskwiseError
from maskwise.families import Kind, masked_logits
from maskwise.masking import AnnotatedBatch, Masker
from maskwise.masking.diffusion import Noising
from maskwise.masking.gather import gather
from maskwise.masking.vocabulary import Vocabulary
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training.data import Rows, by_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Positions in one forward pass.
TOKENS = 16384
DAMAGED = "is the checkpoint damaged?"
# The seed of fixed masks, the same in every study, so that losses can be compared.
EVALUATION_SEED = 0xE7A1
PSEUDO_PERPLEXITY = "pseudo-perplexity"
# The seed of the masks of the bound.
BOUND_SEED = 0xB0DD
# Rows in one batch of fixed masks.
ROWS_AT_ONCE = 64


def spread(count: int, *, of: int) -> Tensor:
    """Return at most ``count`` row numbers below ``of``, evenly spread."""
    count = min(count, of)
    return torch.arange(count) * of // max(1, count)


class BoundOfText(NamedTuple):
    """The bound of a text, in nats.

    Attributes:
        nats: of all pieces together.
        error: the standard error of ``nats``.
        tokens: predicted tokens, without [UNK] and special ones.
        unknown: tokens that are [UNK].
        unigram: nats by the frequency of every token; None if the frequencies are not known.
    """

    nats: float
    error: float
    tokens: int
    unknown: int
    unigram: float | None


def diffusion_bound(
    masks: Sequence[str],
    held_out: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    log_unigram: Tensor | None = None,
) -> Bound | None:
    """Prepare the bound of some rows, evenly spread, if ``diffusion`` is a held-out mask."""
    if DIFFUSION not in masks:
        return None
    return Bound(held_out, tokenizer, spread(rows, of=len(held_out)), log_unigram=log_unigram)


class Bound:
    """An upper bound on the nats of one text in a random order, with masks that never change.

    Every held-out piece is masked ``draws`` times, at rates spread evenly over (0, 1). Losses are
    weighted by L/n (``masking.diffusion``), which bounds −log p(piece) of a model that reveals one
    token after the other in random order, whatever it was trained on. The standard error is over
    pieces, so it includes the noise of masks and of texts. Figures per token compare models with
    the same tokenizer; figures per byte compare all models whose tokens spell the whole text.

    Args:
        held_out: rows that are never trained on. Each of their pieces is a text.
        tokenizer: theirs.
        chosen: the numbers of the rows to use.
        log_unigram: (V,) of the training text, if known.
        draws: masks of each piece.

    Raises:
        MaskwiseError: a tokenizer without a mask token; a text in which nothing can be predicted.
    """

    def __init__(
        self,
        held_out: Rows,
        tokenizer: PreTrainedTokenizerBase,
        chosen: Tensor,
        *,
        log_unigram: Tensor | None = None,
        draws: int = 4,
    ):
        noising = Noising(tokenizer, seed=BOUND_SEED)
        self.draws = draws
        self.batches = []
        self.unknown = 0
        self.unigram = None if log_unigram is None else 0.0
        tokens = [np.zeros(0, np.int64)]
        for number, part in enumerate(chosen.split(ROWS_AT_ONCE)):
            pieces = held_out.batch(part)
            for draw in range(draws):
                # The draws of a row have consecutive places, which spreads their rates over (0, 1).
                row = np.arange(len(part)) + number * ROWS_AT_ONCE
                batch = noising(pieces, epoch=0, step=draw, place=row * draws + draw)
                self.batches.append((number, batch))
            source = batch.source
            tokens.append(source.eligible_P)
            self.unknown += int((source.input_ids == tokenizer.unk_token_id).sum())
            if log_unigram is not None and self.unigram is not None:
                ids = torch.from_numpy(source.input_ids[source.eligible])
                self.unigram -= float(log_unigram[ids].double().sum())
        self.tokens_P = np.concatenate(tokens)
        self.first = np.cumsum(list(map(len, tokens)))
        if not self.tokens_P.sum():
            raise MaskwiseError(
                "no held-out token can be predicted",
                got=f"{self.unknown} × [UNK]",
                do="give a text that the model's tokenizer knows, and more of it",
            )

    def __call__(self, objective: MaskedLanguageModelling) -> BoundOfText:
        """Measure a model, in evaluation mode and on its device."""
        device = next(objective.parameters()).device
        nats_P = np.zeros(len(self.tokens_P))
        for number, batch in self.batches:
            losses, where = objective.token_losses(batch.to(device))
            row, column = where.cpu().unbind(1)
            assert batch.loss_weight is not None
            weight = batch.loss_weight[row, column]
            weighted = losses.detach().cpu().double() * weight
            piece_BL = batch.source.piece.reshape(batch.source.shape)
            piece = piece_BL[row.numpy(), column.numpy()]
            first, last = self.first[number : number + 2]
            nats = np.bincount(piece, weighted.numpy(), last - first)
            nats_P[first:last] += nats / self.draws
        total = float(nats_P.sum())
        tokens = int(self.tokens_P.sum())
        pieces = len(nats_P)
        error = math.nan
        if pieces > 1:
            # The delta method: nats per token is a ratio of two sums over pieces.
            residual_P = nats_P - total / tokens * self.tokens_P
            error = math.sqrt(float((residual_P**2).sum()) * pieces / (pieces - 1))
        return BoundOfText(total, error, tokens, self.unknown, self.unigram)


class Measurement(TypedDict):
    """One figure of one checkpoint; (name, metric) is unique among the records of an evaluation.

    ``chance`` is the figure of a model that ignores the text. ``of`` counts the items of the file,
    ``items`` those that were scored, ``skipped`` the others by reason. ``error`` is the standard
    error of a bound.
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
) -> Tensor:
    """Return log p of each eligible token while it is masked, (B, L) float32.

    Special tokens, padding and [UNK] have 0.

    Args:
        model: a masked language model in evaluation mode.
        batch: rows padded on the right; with ``word_ids`` if ``within_word``.
        mask: the id of [MASK].
        within_word: also mask the later pieces of the word.
    """
    width_B = batch.tensor("present").sum(1)
    row_T, column_T = batch.tensor("eligible").nonzero().unbind(1)
    ids_BL = batch.tensor("input_ids")
    log_p_BL = torch.zeros(batch.shape)
    words_BL = None
    if within_word:
        word_ids = batch.layer("word_ids")
        words_BL = torch.from_numpy(word_ids.reshape(batch.shape))
    for part in by_width(width_B[row_T], TOKENS):
        row = row_T[part]
        column = column_T[part]
        width = int(width_B[row].max())
        ids = ids_BL[row, :width]
        place = torch.arange(width)
        asked = column.unsqueeze(1)
        hidden = place == asked
        if words_BL is not None:
            words = words_BL[row, :width]
            word = words.gather(1, asked)
            # Tokens outside of words share the number −1, but form no word together.
            hidden |= (words == word) & (word >= 0) & (place > asked)
        shown = torch.where(hidden, mask, ids)
        attention = place < width_B[row].unsqueeze(1)
        log_p = predictions(model, shown, attention, torch.arange(len(row)), column)
        truth = ids.gather(1, asked).to(log_p.device)
        log_p_BL[row, column] = log_p.gather(1, truth).squeeze(1).cpu()
    return log_p_BL


def predictions(
    model: PreTrainedModel, ids: Tensor, attention: Tensor, row: Tensor, column: Tensor
) -> Tensor:
    """Return log p (M, V) float32 at M places of rows, on the device of the model.

    Args:
        model: a masked language model in evaluation mode.
        ids, attention: (N, L) tokens, and which of them are real.
        row, column: (M,) the places.

    Raises:
        MaskwiseError: NaN, which would compare as neither better nor worse, and rank first.
    """
    device = next(model.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": attention.long().to(device)}
    log_p = masked_logits(model, inputs, row.to(device), column.to(device)).float().log_softmax(-1)
    # One logit that is NaN makes its whole row NaN, so one column of the result is enough.
    if log_p[:, :1].isnan().any():
        raise MaskwiseError("the model's predictions are not numbers", got="nan", do=DAMAGED)
    return log_p


def pseudo_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, Tensor],
    log_unigram: Tensor | None = None,
) -> list[Measurement]:
    """Return exp of the mean of −log p over the tokens of some rows, each masked alone.

    Two records: ``token`` (Salazar et al. 2020), and ``within-word``, which also masks the later
    pieces of the word (Kauf & Ivanova 2023). Both are per token, so only models with the same
    tokenizer can be compared. ``chance`` is the perplexity of token frequencies.

    Args:
        rows: as for ``masking.gather``, with ``word_ids``. In packed rows the model sees the
            neighbouring documents, as in training.
        log_unigram: (V,) of the training text, if known.
    """
    batch = gather(rows, Vocabulary.of(tokenizer))
    count = len(batch.eligible_at)
    if not count:
        raise MaskwiseError("no held-out token can be scored", do="use more held-out text")
    chance = None
    if log_unigram is not None:
        ids = torch.from_numpy(batch.input_ids[batch.eligible])
        chance = float((-log_unigram[ids].double().mean()).exp())
    records: list[Measurement] = []
    for metric in ("token", "within-word"):
        log_p = log_probabilities(
            model,
            batch,
            mask=tokenizer.mask_token_id,
            within_word=metric == "within-word",
        )
        records.append(
            {
                "kind": "evaluation",
                "name": PSEUDO_PERPLEXITY,
                "metric": metric,
                "value": float((-log_p.double().sum() / count).exp()),
                "items": count,
                "chance": chance,
                "higher_is_better": False,
            }
        )
    return records


# The loss on fixed masks


class HeldOutLoss(TypedDict):
    """The loss of one kind of fixed mask at one ratio: ``loss`` and ``unigram`` in nats a target.

    ``masks`` names the policy and, for an encoder–decoder, the output format. ``per_byte`` is in
    nats for each byte of the text as its tokens spell it; it is comparable between tokenizers that
    drop the same characters, and between output formats. The line of the masks ``diffusion`` has
    the bound, in nats for each token of the text, and its standard ``error``.
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
    """Return fixed masks by name, which replace all selected tokens by [MASK].

    An encoder–decoder is evaluated in each output format that it may have learned with this
    tokenizer: masked spans after separators or after sentinels (if there are enough of them for
    rows of ``length``), and the full text.
    """
    formats = {"": "mask-only"}
    if kind == "encoder-decoder":
        vocabulary = Vocabulary.of(tokenizer)
        formats = {}
        if len(vocabulary.sentinels) > length * ratio + 2:
            formats[" sentinels"] = "t5"
        if vocabulary.mask is None:
            formats[" full"] = "t5(target='full')"
        else:
            formats[" spans"] = "infill(mean=None, target='spans')"
            formats[" full"] = "infill(mean=None)"
    maskers = {}
    for policy in masks:
        if policy == DIFFUSION:
            continue
        for name, corruption in formats.items():
            maskers[policy + name] = Masker(
                tokenizer,
                policy=policy,
                ratio=ratio,
                budget="expected",
                corruption=corruption,
                seed=EVALUATION_SEED,
            )
    return maskers


class HeldOut:
    """The loss on fixed masks of held-out rows, which are the same for every arm, seed and step.

    Args:
        held_out: rows that are never trained on.
        maskers: by kind of mask ("token", "whole-word"), called with epoch 0.
        log_unigram: (V,) log-probabilities of tokens in the training text; None if not known.
        rows: at most this many, evenly spread.
        tokenizer: counts the bytes of the text; None: no losses per byte.
        bound: measured too, if given.
    """

    def __init__(
        self,
        held_out: Rows,
        maskers: Mapping[str, Masker],
        log_unigram: Tensor | None,
        *,
        rows: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        bound: Bound | None = None,
    ):
        self.log_unigram = log_unigram
        self.bound = bound
        self.maskers = maskers
        chosen = spread(rows or len(held_out), of=len(held_out))
        parts = [held_out.batch(part) for part in chosen.split(ROWS_AT_ONCE)]
        self.batches = {}
        for kind, masker in maskers.items():
            # Epoch 0 always, so that the masks never change.
            self.batches[kind] = [masker(part, epoch=0) for part in parts]
        self.bytes = 0
        if tokenizer is not None:
            pieces = held_out.batch(chosen)
            ids = np.split(pieces.columns["input_ids"], np.cumsum(pieces.lengths)[:-1])
            texts = tokenizer.batch_decode([each.tolist() for each in ids])
            self.bytes = len("".join(texts).encode())

    def __call__(self, objective: MaskedLanguageModelling) -> list[HeldOutLoss]:
        """Return the loss of each kind of mask that has a target."""
        lines = [self._loss(kind, objective) for kind in self.batches]
        if self.bound is not None:
            text = self.bound(objective)
            lines.append(
                {
                    "masks": DIFFUSION,
                    "ratio": 0.5,
                    "loss": text.nats / text.tokens,
                    "unigram": None if text.unigram is None else text.unigram / text.tokens,
                    "targets": text.tokens,
                    "error": text.error / text.tokens,
                }
            )
        return [line for line in lines if line["targets"]]

    def _loss(self, kind: str, objective: MaskedLanguageModelling) -> HeldOutLoss:
        masker = self.maskers[kind]
        device = next(objective.parameters()).device
        content = torch.from_numpy(masker.vocabulary.content)
        loss = unigram = 0.0
        count = 0
        for batch in self.batches[kind]:
            losses, where = objective.token_losses(batch.to(device))
            truth = batch.labels[where.cpu().unbind(1)]
            # Separators and ends are nearly certain, so they would make any text look easy.
            words = content[truth]
            loss += float(losses.cpu()[words].double().sum())
            count += int(words.sum())
            if self.log_unigram is not None:
                unigram -= float(self.log_unigram[truth[words]].double().sum())
        line: HeldOutLoss = {
            "masks": kind,
            "ratio": masker.ratio(0),
            "loss": loss / max(1, count),
            "unigram": None if self.log_unigram is None else unigram / max(1, count),
            "targets": count,
        }
        if self.bytes:
            line["per_byte"] = loss / self.bytes
        return line
