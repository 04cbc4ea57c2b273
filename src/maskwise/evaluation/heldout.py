"""What is measured on held-out rows: the loss on fixed masks, and pseudo-perplexity. Neither has noise of its own.

The masks are a function of the held-out rows alone, so all arms, seeds and steps are judged on the same
targets; beside each figure stands that of a model that knows only how frequent each token is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from maskwise.errors import MaskwiseError
from maskwise.evaluation.scoring import Measurement, log_probabilities
from maskwise.masking import Masker
from maskwise.masking.gather import gather
from maskwise.masking.vocabulary import Vocabulary
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training.data import Rows

EVALUATION_SEED = 0xE7A1
"""The seed of the fixed masks of held-out rows: the same in every study, so that losses can be compared."""
PSEUDO_PERPLEXITY = "pseudo-perplexity"


class HeldOutLoss(TypedDict):
    """The loss of one kind of fixed mask at one ratio: ``loss`` and ``unigram`` in nats a target."""

    masks: str
    ratio: float
    loss: float
    unigram: float | None
    targets: int


def fixed_maskers(
    tokenizer: PreTrainedTokenizerBase, *, masks: Iterable[str], ratio: float
) -> dict[str, Masker]:
    """Fixed masks: [MASK] only, and whole units on average at the budget, so that long words count too."""
    return {
        kind: Masker(
            tokenizer, policy=kind, ratio=ratio, budget="expected", corruption="mask-only", seed=EVALUATION_SEED
        )
        for kind in masks
    }  # fmt: skip


def spread(count: int, *, of: int) -> Tensor:
    """(min(count, of),) the numbers of rows, evenly spread."""
    count = min(count, of)
    return torch.arange(count) * of // max(1, count)


class HeldOut:
    """Loss on *fixed* masks of held-out rows: the same for every arm, seed and step.

    Args:
        held_out: rows that are never trained on.
        maskers: by kind of mask ("token", "whole-word"); called with epoch 0, so its masks never change.
        log_unigram: (V,) log-probabilities of tokens in the training text: what knows only frequencies.
            None where the training text is not known.
        rows: at most this many, evenly spread.
        batch_size: rows at once.
    """

    def __init__(
        self, held_out: Rows, maskers: Mapping[str, Masker], log_unigram: Tensor | None, *, rows: int | None = None,
        batch_size: int = 64,
    ):  # fmt: skip
        self.log_unigram = log_unigram
        chosen = spread(rows or len(held_out), of=len(held_out))
        self.batches = {
            kind: [masker(held_out.batch(part), epoch=0) for part in chosen.split(batch_size)]
            for kind, masker in maskers.items()
        }
        self.ratios = {kind: masker.ratio(0) for kind, masker in maskers.items()}

    def __call__(self, objective: MaskedLanguageModelling) -> list[HeldOutLoss]:
        """The loss of every kind of mask that has a target."""
        device = next(objective.parameters()).device
        lines: list[HeldOutLoss] = []
        for kind, batches in self.batches.items():
            loss, unigram, count = 0.0, 0.0, 0
            for batch in batches:
                inputs = {name: value.to(device) for name, value in batch.model_inputs().items()}
                losses, where = objective.token_losses(inputs)
                loss += float(losses.double().sum())
                count += losses.numel()
                truth = batch.labels[where[:, 0].cpu(), where[:, 1].cpu()]
                if self.log_unigram is not None:
                    unigram -= float(self.log_unigram[truth].double().sum())
            if count:
                known = None if self.log_unigram is None else unigram / count
                lines.append({"masks": kind, "ratio": self.ratios[kind], "loss": loss / count, "unigram": known,
                              "targets": count})  # fmt: skip
        return lines


def pseudo_perplexity(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Any, log_unigram: Tensor | None = None
) -> list[Measurement]:
    """exp of the mean of −log p over the tokens of some rows, each masked alone.

    Two records: ``token`` is the plain one (Salazar et al. 2020); ``within-word`` also hides the pieces behind
    the target in its word (Kauf & Ivanova 2023). Both are per token, so only models with the same tokenizer
    can be compared. ``chance`` is the perplexity of a model that knows only frequencies.

    Args:
        rows: what ``masking.gather`` takes, with ``word_ids``; in packed rows the model sees what it sees
            in training: the documents beside.
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
        log_p = log_probabilities(model, batch, mask=tokenizer.mask_token_id, within_word=within_word)
        value = float((-log_p.double().sum() / count).exp())
        records.append({
            "kind": "evaluation", "name": PSEUDO_PERPLEXITY, "metric": metric, "value": value, "items": count,
            "chance": chance, "higher_is_better": False,
        })  # fmt: skip
    return records
