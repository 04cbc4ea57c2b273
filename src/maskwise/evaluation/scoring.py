"""Deterministic measures of a masked language model: log p of each token, the held-out loss, and
the masked-diffusion bound.

For log p, the model reads a row of n tokens n times, and each time a different token is masked
(Salazar et al. 2020). The vocabulary head runs only at the masks. The first token of a word is easy
to guess from its later tokens ("##rates" reveals "Soc"). A rare word of several tokens would
therefore seem likely. With ``within_word``, the later tokens of the word are masked, too, so the
log p of a word is a chain rule from left to right (Kauf & Ivanova 2023, "PLL-word-l2r").

The held-out loss uses fixed masks, which depend only on the rows. The targets are therefore the
same in all runs of a study and at all steps. The baseline predicts tokens from their frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from maskwise.base.constants import DIFFUSION, NEXT_TOKEN, WITHOUT_RATIO, Kind
from maskwise.base.errors import MaskwiseError, plural
from maskwise.masking import Line, MaskedBatch, Masker
from maskwise.masking.diffusion import Noising
from maskwise.masking.draws import Array
from maskwise.masking.gather import gather
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models.decoders import is_causal
from maskwise.models.families import Decoder, adapter_of, masked_logits
from maskwise.objectives.denoising import CausalLanguageModelling, NextTokens
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.results.measurements import Measurement
from maskwise.training.data import Rows, by_width
from maskwise.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# The number of token positions in a forward pass.
TOKENS = 16384
DAMAGED = "check whether the checkpoint is damaged"
# The seed of fixed masks. It is the same in every study, so that losses can be compared.
EVALUATION_SEED = 0xE7A1
PSEUDO_PERPLEXITY = "pseudo-perplexity"
# The seed of the masks for the bound.
BOUND_SEED = 0xB0DD
# The number of rows in a batch with fixed masks.
ROWS_AT_ONCE = 64


def evenly_spaced(count: int, *, of: int) -> Tensor:
    """Return at most ``count`` evenly spaced row numbers in [0, ``of``)."""
    count = min(count, of)
    return torch.arange(count) * of // max(1, count)


class BoundOfText(NamedTuple):
    """The bound for a held-out text.

    Attributes:
        nats: the bound for the whole text, in nats.
        error: the standard error of ``nats``; NaN for a single piece.
        tokens: the number of predicted tokens.
        never_masked: the number of tokens of the text that are never masked: [UNK], wildcards such
            as the X of proteins, and special tokens.
        unigram: the nats if tokens are predicted from their frequencies; None if these are unknown.
    """

    nats: float
    error: float
    tokens: int
    never_masked: int
    unigram: float | None


def diffusion_bound(
    masks: Sequence[str],
    held_out: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    log_unigram: Tensor | None,
) -> Bound | None:
    """Prepare the bound on ``rows`` held-out rows; None if ``diffusion`` is not in ``masks``."""
    if DIFFUSION not in masks:
        return None
    return Bound(
        held_out, tokenizer, evenly_spaced(rows, of=len(held_out)), log_unigram=log_unigram
    )


class Bound:
    """The masked-diffusion bound: an upper bound on the nats of held-out text, with fixed masks.

    A piece is a document, or a part of a document that is longer than a row. Every held-out piece
    is masked ``draws`` times, at ratios that are evenly spaced in (0, 1). If n of its L tokens are
    masked, their losses are multiplied by L/n (see ``masking.diffusion``). For every training
    objective, the result is an upper bound on −log p(piece) of a model that writes the tokens one
    at a time, in random order. The standard error is computed over pieces, which differ in masks
    and in text. Nats per token compare models with the same tokenizer. Bits per byte also compare
    models with different tokenizers, if the tokens spell the whole text.

    Args:
        held_out: held-out rows.
        tokenizer: the tokenizer of the rows.
        chosen: the indices of the rows to use.
        log_unigram: (V,) log-probabilities of tokens in the training text, if known.
        draws: the number of masks for each piece.

    Raises:
        MaskwiseError: the tokenizer has no mask token, or no token can be predicted.
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
        self.never_masked = 0
        self.unigram = None if log_unigram is None else 0.0
        tokens = [np.zeros(0, np.int64)]
        for number, part in enumerate(chosen.split(ROWS_AT_ONCE)):
            given = held_out.line(part)
            for draw in range(draws):
                # The ratio depends on ``place``: consecutive places have evenly spaced ratios.
                row = np.arange(len(part)) + number * ROWS_AT_ONCE
                batch = noising(given, epoch=0, step=draw, place=row * draws + draw)
                self.batches.append((number, batch))
            line = batch.line
            tokens.append(line.eligible_P)
            # In prepared rows, special tokens that a text contains are a part of it.
            text = given.content if isinstance(given, Line) else line.content
            self.never_masked += int((text & ~line.eligible).sum())
            if log_unigram is not None and self.unigram is not None:
                ids = torch.from_numpy(line.input_ids[line.eligible])
                self.unigram -= float(log_unigram[ids].double().sum())
        self.tokens_P = np.concatenate(tokens)
        self.first = np.cumsum(list(map(len, tokens)))
        if not self.tokens_P.sum():
            raise MaskwiseError(
                "no held-out token can be predicted",
                got=f"{plural(self.never_masked, 'token')} such as [UNK], which are never masked",
                do="give more text, with characters that the model's tokenizer can encode",
            )

    def __call__(self, objective: MaskedLanguageModelling, ranks: Ranks = ALONE) -> BoundOfText:
        """Compute the bound of a model, in evaluation mode and on the model's device."""
        return self.of(ranks.divided(self.sizes(), partial(self.nats, objective)))

    def sizes(self) -> list[int]:
        """Return the number of pieces in each batch."""
        pieces = np.diff(self.first)
        return [int(pieces[number]) for number, _ in self.batches]

    def nats(self, objective: MaskedLanguageModelling, index: int) -> Array:
        """Return the weighted loss of each piece in the batch with this index."""
        device = next(objective.parameters()).device
        number, batch = self.batches[index]
        losses, where = objective.token_losses(batch.to(device))
        row, column = where.cpu().unbind(1)
        assert batch.loss_weight is not None
        weight = batch.loss_weight[row, column]
        weighted = losses.detach().cpu().double() * weight
        piece_BL = batch.line.piece.reshape(batch.line.shape)
        piece = piece_BL[row.numpy(), column.numpy()]
        first, last = self.first[number : number + 2]
        return np.bincount(piece, weighted.numpy(), last - first)

    def of(self, found: Sequence[Array]) -> BoundOfText:
        """Compute the bound from the results of ``nats`` for all batches."""
        nats_P = np.zeros(len(self.tokens_P))
        for (number, _), nats in zip(self.batches, found, strict=True):
            first, last = self.first[number : number + 2]
            nats_P[first:last] += nats / self.draws
        total = float(nats_P.sum())
        tokens = int(self.tokens_P.sum())
        pieces = len(nats_P)
        error = math.nan
        if pieces > 1:
            # The delta method for a ratio of sums over pieces: nats / tokens.
            residual_P = nats_P - total / tokens * self.tokens_P
            error = math.sqrt(float((residual_P**2).sum()) * pieces / (pieces - 1))
        return BoundOfText(total, error, tokens, self.never_masked, self.unigram)


def log_probabilities(
    model: PreTrainedModel,
    line: Line,
    *,
    mask: int,
    within_word: bool,
) -> Tensor:
    """Return (B, L) the log p of each token while it is masked, in float32.

    The result is 0 at special tokens, padding and [UNK], which are never masked.

    Args:
        model: a masked language model in evaluation mode.
        line: rows padded on the right. ``within_word`` needs the layer ``word_ids``.
        mask: the id of [MASK].
        within_word: whether to mask the later tokens of the same word, too.
    """
    width_B = line.tensor(line.present).sum(1)
    row_T, column_T = line.tensor(line.eligible).nonzero().unbind(1)
    ids_BL = line.tensor(line.input_ids)
    log_p_BL = torch.zeros(line.shape)
    words_BL = None
    if within_word:
        word_ids = line.layer("word_ids")
        words_BL = torch.from_numpy(word_ids.reshape(line.shape))
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
            # All tokens outside words have the word number −1, but they are not one word.
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
    """Return the log p (M, V) of all tokens at M positions, in float32 on the model's device.

    Args:
        model: a masked language model in evaluation mode.
        ids, attention: (N, L) the tokens and the attention mask.
        row, column: (M,) the rows and columns of the positions.

    Raises:
        MaskwiseError: a prediction is NaN. It would be ranked first, as no number is above NaN.
    """
    device = next(model.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": attention.long().to(device)}
    log_p = masked_logits(model, inputs, row.to(device), column.to(device)).float().log_softmax(-1)
    # The softmax spreads a NaN over the whole row, so checking one column is enough.
    if log_p[:, :1].isnan().any():
        raise MaskwiseError("the model's predictions are not numbers", got="nan", do=DAMAGED)
    return log_p


def pseudo_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, Tensor],
    log_unigram: Tensor | None = None,
) -> list[Measurement]:
    """Return the pseudo-perplexity of rows: exp of the mean −log p, one token masked at a time.

    The metric ``token`` is that of Salazar et al. 2020. For rows with ``word_ids``, ``within-word``
    also masks the later tokens of the word (Kauf & Ivanova 2023). Only models with the same
    tokenizer can be compared, because the mean is over tokens. ``chance`` uses token frequencies.

    Args:
        rows: rows for ``masking.gather``, usually of one document each.
        log_unigram: (V,) log-probabilities of tokens in the training text, if known.
    """
    line = gather(rows, Vocabulary.of(tokenizer))
    count = len(line.eligible_at)
    if not count:
        raise MaskwiseError("no held-out token can be scored", do="use more held-out text")
    chance = None
    if log_unigram is not None:
        ids = torch.from_numpy(line.input_ids[line.eligible])
        chance = float((-log_unigram[ids].double().mean()).exp())
    metrics = ["token"]
    if "word_ids" in line.layers:
        metrics.append("within-word")
    found = []
    for metric in metrics:
        log_p = log_probabilities(
            model, line, mask=tokenizer.mask_token_id, within_word=metric == "within-word"
        )
        row = Measurement(
            measure=PSEUDO_PERPLEXITY,
            metric=metric,
            unit="perplexity",
            value=float((-log_p.double().sum() / count).exp()),
            higher_is_better=False,
            chance=chance,
            items=count,
        )
        found.append(row)
    return found


# The loss on fixed masks


class HeldOutLoss(TypedDict):
    """The loss on one kind of fixed masks at one masking ratio.

    ``loss`` and its baseline ``unigram`` are in nats per target. ``masks`` is the masking policy
    and, for an encoder–decoder, the output format. ``per_byte`` is the loss in nats per byte of the
    decoded tokens. It can be compared between output formats, and between tokenizers that drop the
    same characters. If ``masks`` is ``diffusion``, ``loss`` is the masked-diffusion bound in nats
    per token, and ``error`` is its standard error.
    """

    masks: str
    ratio: float
    loss: float
    unigram: float | None
    targets: int
    per_byte: NotRequired[float]
    error: NotRequired[float]


def predictable(masks: Sequence[str], config: PreTrainedConfig, *, setting: str) -> Sequence[str]:
    """Return those kinds of held-out losses that a model can be measured by.

    Args:
        masks: names of policies, ``diffusion`` and ``next-token``.
        config: the configuration of the model.
        setting: what names the kinds, for the message.

    Raises:
        MaskwiseError: there is none, although some are given.
    """
    family = adapter_of(config)
    causal = is_causal(config)
    can = [*masks]
    if causal:
        can = [name for name in masks if name == NEXT_TOKEN]
    # Attention is causal in an encoder only if maskwise can replace it.
    elif family.kind != "encoder" or isinstance(family, Decoder) or not family.separates:
        can = [name for name in masks if name != NEXT_TOKEN]
    if masks and not can:
        what = "sees the next token"
        if causal:
            what = "reads earlier tokens only, and fills no masks"
        raise MaskwiseError(
            f"this model ({config.model_type}) {what}",
            got=f"{setting}={[*masks]}",
            do=f"set {setting}={NEXT_TOKEN if causal else 'token'}",
        )
    return can


def fixed_maskers(
    tokenizer: PreTrainedTokenizerBase,
    *,
    masks: Iterable[str],
    ratio: float,
    kind: Kind = "encoder",
    length: int = 0,
) -> dict[str, Masker]:
    """Return maskers for fixed masks, keyed by name. All selected tokens become [MASK].

    An encoder–decoder is evaluated in every output format that its tokenizer can write: the masked
    spans after separators, the masked spans after sentinels (if there are enough sentinels for rows
    of ``length`` tokens), and the full text. Next tokens are predicted in unmasked rows.
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
    maskers: dict[str, Masker] = {}
    if NEXT_TOKEN in masks:
        maskers[NEXT_TOKEN] = NextTokens(tokenizer, **CausalLanguageModelling.masking)
    for policy in masks:
        if policy in WITHOUT_RATIO:
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


class Sums(NamedTuple):
    """The sums of one batch with fixed masks.

    Attributes:
        loss, unigram: the losses of the model and of token frequencies, in nats.
        targets: the number of targets.
    """

    loss: float
    unigram: float
    targets: float


class HeldOut:
    """The loss on held-out rows with fixed masks, which are the same for all runs and steps.

    Args:
        held_out: held-out rows.
        maskers: the maskers, keyed by kind of mask ("token", "whole-word").
        log_unigram: (V,) log-probabilities of tokens in the training text; None if unknown.
        rows: the maximum number of rows, which are evenly spaced; None for all rows.
        tokenizer: the tokenizer, which is needed for the loss per byte; None to omit this loss.
        bound: the masked-diffusion bound; None to omit it.
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
        chosen = evenly_spaced(rows or len(held_out), of=len(held_out))
        parts = [held_out.line(part) for part in chosen.split(ROWS_AT_ONCE)]
        self.batches = {}
        for kind, masker in maskers.items():
            # The masks depend on the epoch, so it is always 0.
            self.batches[kind] = [masker(part, epoch=0) for part in parts]
        self.bytes = 0
        if tokenizer is not None:
            for line in parts:
                text = line.input_ids[line.content]
                ids = np.split(text, np.cumsum(line.lengths)[:-1])
                texts = tokenizer.batch_decode([each.tolist() for each in ids])
                self.bytes += len("".join(texts).encode())

    def __call__(
        self, objective: MaskedLanguageModelling, ranks: Ranks = ALONE
    ) -> list[HeldOutLoss]:
        """Return the losses of a model. Kinds of masks that mask no token are omitted.

        Args:
            objective: the objective, in evaluation mode.
            ranks: the ranks that divide the batches. The losses do not depend on them.
        """
        # All batches are divided together, so that the ranks have equally much to do.
        batches = []
        for kind, masked in self.batches.items():
            batches += [(kind, batch) for batch in masked]
        sizes = [len(Sums._fields)] * len(batches)
        if self.bound is not None:
            sizes += self.bound.sizes()

        following = objective
        if NEXT_TOKEN in self.batches:
            following = CausalLanguageModelling(objective.model)

        def measured(index: int) -> Sequence[float] | Array:
            if index < len(batches):
                kind, batch = batches[index]
                return self._sums(following if kind == NEXT_TOKEN else objective, kind, batch)
            assert self.bound is not None
            return self.bound.nats(objective, index - len(batches))

        found = ranks.divided(sizes, measured)
        sums: dict[str, list[Sums]] = {kind: [] for kind in self.batches}
        for (kind, _), numbers in zip(batches, found):
            sums[kind].append(Sums(*numbers.tolist()))
        lines = [self._line(kind, each) for kind, each in sums.items()]
        if self.bound is not None:
            text = self.bound.of(found[len(batches) :])
            line: HeldOutLoss = {
                "masks": DIFFUSION,
                "ratio": 0.5,
                "loss": text.nats / text.tokens,
                "unigram": None if text.unigram is None else text.unigram / text.tokens,
                "targets": text.tokens,
            }
            if math.isfinite(text.error):
                line["error"] = text.error / text.tokens
            lines.append(line)
        return [line for line in lines if line["targets"]]

    def _sums(self, objective: MaskedLanguageModelling, kind: str, batch: MaskedBatch) -> Sums:
        """Return the sums of one batch."""
        device = next(objective.parameters()).device
        content = torch.from_numpy(self.maskers[kind].vocabulary.content)
        losses, where = objective.token_losses(batch.to(device))
        truth = batch.labels[where.cpu().unbind(1)]
        # Separators and end tokens are almost certain. Counting them would lower every loss.
        words = content[truth]
        loss = float(losses.cpu()[words].double().sum())
        unigram = 0.0
        if self.log_unigram is not None:
            unigram = -float(self.log_unigram[truth[words]].double().sum())
        return Sums(loss, unigram, int(words.sum()))

    def _line(self, kind: str, sums: Sequence[Sums]) -> HeldOutLoss:
        """Return the loss on one kind of masks from the sums of its batches."""
        loss = unigram = 0.0
        count = 0
        for each in sums:
            loss += each.loss
            unigram += each.unigram
            count += int(each.targets)
        line: HeldOutLoss = {
            "masks": kind,
            "ratio": self.maskers[kind].ratio(0),
            "loss": loss / max(1, count),
            "unigram": None if self.log_unigram is None else unigram / max(1, count),
            "targets": count,
        }
        if self.bytes:
            line["per_byte"] = loss / self.bytes
        return line
