"""policy × schedule × corruption → masked batches. The object people import.

    masker = Masker(tokenizer, policy="whole-word", ratio=schedules.linear(0.30, 0.15), seed=0)
    batch = masker(rows, step=10, total_steps=1000)

It holds no random state: a mask is a function of (seed, epoch, example id, ratio and weights in force). It
runs on the device of its rows, in the main process or in a loader's workers, and costs O(B·L) memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch, Rows
from maskwise.masking.corruptions import Corruption
from maskwise.masking.corruptions import corruption as read_corruption
from maskwise.masking.masked import IGNORE, MaskedBatch
from maskwise.masking.policies import Moment, Policy
from maskwise.masking.policies import policy as read_policy
from maskwise.masking.predict import predict_some
from maskwise.masking.schedules import Schedule
from maskwise.masking.schedules import schedule as read_schedule
from maskwise.masking.select import BUDGETS, FILLS, Selection, select
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary
from maskwise.specs import Call


class Masker:
    """Masks batches of rows.

    Args:
        tokenizer: a Hugging Face tokenizer, or a ``Vocabulary``.
        policy: what may be masked together: a name such as ``"whole-word"``, or a ``Policy``.
        ratio: how much: a number, a schedule, its name, or a function of (step, total steps).
        budget: ``exact`` (never over), ``expected`` (even inclusion, at most one unit over) or ``bernoulli``.
        corruption: how it is shown and what must be produced.
        seed: any integer.
        fill: what becomes of a budget that units of positive weight cannot use: ``none``, ``random``,
            ``skip-row``.
        min_targets: the least budget of a row while eligible × ratio ≥ 0.5.
        predict: the loss is taken on at most this share of each row's *eligible* tokens, a random part of the
            corrupted ones: a number or a schedule. 1: on all that is corrupted. For corruptions that keep
            lengths.

    Raises:
        MaskwiseError: an unknown name, a ratio outside 0 to 1, a tokenizer without what the corruption shows.
    """

    def __init__(
        self, tokenizer: Any, *, policy: Policy | str | Call = "token",
        ratio: Schedule | float | str | Call = 0.15, budget: str = "exact",
        corruption: Corruption | str | Call = "bert", seed: int = 0, fill: str = "none",
        min_targets: int = 1, predict: Schedule | float | str | Call = 1.0,
    ):  # fmt: skip
        self.vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer)
        self.policy = read_policy(policy)
        self.ratio = read_schedule(ratio)
        self.corruption = read_corruption(corruption)
        self.predict = read_schedule(predict)
        self.budget, self.fill, self.seed, self.min_targets = budget, fill, seed, min_targets
        for kind, name, known in (("budget", budget, BUDGETS), ("fill", fill, FILLS)):
            if name not in known:
                raise unknown_name(kind, name, known)
        if not isinstance(min_targets, int) or min_targets < 0:
            raise MaskwiseError("min_targets is a number of tokens", got=min_targets, allowed="0, 1, 2, …")
        self.corruption.check(self.vocabulary)
        if (self.predict.varies or self.predict(0) < 1) and not self.corruption.keeps_length:
            what = "predict needs labels that stand where the tokens do"
            raise MaskwiseError(what, got=f"corruption {self.corruption}", do="leave predict at 1.0")

    def __call__(
        self,
        rows: Rows | AnnotatedBatch,
        *,
        step: int = 0,
        total_steps: int | None = None,
        epoch: int | None = None,
    ) -> MaskedBatch:
        """Mask rows.

        Args:
            rows: a list of dicts with ``input_ids``, ``example_id`` and layers; or one dict of (B, L) tensors
                (packed rows: ``example_id`` (B, L), one id per document piece).
            step: the optimiser step the batch is for: where the schedule stands.
            total_steps: how many there will be; needed by schedules that change.
            epoch: the pass over the data; None mixes the step into the key.

        Raises:
            MaskwiseError: missing or misshapen layers, ids outside the vocabulary, weights that are no
                weights.
        """
        batch = rows if isinstance(rows, AnnotatedBatch) else AnnotatedBatch.of(rows, self.vocabulary)
        vocabulary = self.vocabulary.to(batch.input_ids.device)
        moment = Moment(step, total_steps, epoch, min_targets=self.min_targets)
        if not batch.packed:
            return self._mask(batch, vocabulary, moment)
        return self._mask_packed(batch, vocabulary, moment)

    def choose(
        self, batch: AnnotatedBatch, keys: Keys, moment: Moment
    ) -> tuple[Units, Selection, Tensor, Tensor | None]:
        """The first two choices alone: units, selection, ratios (B,) and loss weights (B,) or None."""
        ratio, weight = self.ratio.rows(keys.row_uniform(Purpose.RATIO), moment.step, moment.total_steps)
        ratio = self.policy.ratios(ratio, keys, moment)
        units = self.policy.units(batch, keys, replace(moment, ratio=ratio))
        selection = select(
            units, ratio, keys, budget=self.budget, fill=self.fill, min_targets=self.min_targets
        )
        return units, selection, ratio, weight

    def _mask(self, batch: AnnotatedBatch, vocabulary: Vocabulary, moment: Moment) -> MaskedBatch:
        keys = Keys(batch.example_id, seed=self.seed, epoch=moment.epoch, step=moment.step)
        units, selection, ratio, weight = self.choose(batch, keys, moment)
        shown = self.corruption.corrupt(batch, selection.tokens, units, keys, vocabulary)
        labels, share = shown.labels, self.predict(moment.step, moment.total_steps)
        if share < 1:
            labels = predict_some(labels, selection.tokens, batch, share, keys)
        return MaskedBatch(
            shown.input_ids, labels, shown.attention_mask, batch, selection.tokens, ratio,
            shown.extras, selection.filled, weight,
        )  # fmt: skip

    def _mask_packed(self, batch: AnnotatedBatch, vocabulary: Vocabulary, moment: Moment) -> MaskedBatch:
        """Each document piece is masked as if it stood alone, and laid back into its packed row."""
        if not self.corruption.keeps_length:
            raise MaskwiseError(
                "this corruption changes lengths, so it needs one document per row",
                got="packed rows (example_id per token)", do="use the layout 'document'",
            )  # fmt: skip
        ids = batch.input_ids.flatten().clone()
        labels = torch.full_like(ids, IGNORE)
        selected = torch.zeros_like(ids, dtype=torch.bool)
        filled = torch.zeros_like(selected) if self.fill == "random" else None
        weight: Tensor | None = None
        ratios = []
        for part, positions, inside in batch.segments():
            masked = self._mask(part, vocabulary, moment)
            where = positions[inside]
            ids[where] = masked.input_ids[inside]
            labels[where] = masked.labels[inside]
            selected[where] = masked.selected[inside]
            ratios.append(masked.ratio)
            if filled is not None and masked.filled is not None:
                filled[where] = masked.filled[inside]
            if masked.loss_weight is not None:
                weight = (
                    torch.ones(ids.shape, dtype=torch.float64, device=ids.device)
                    if weight is None
                    else weight
                )
                weight[where] = masked.loss_weight.unsqueeze(1).expand(inside.shape)[inside]
        shape = batch.input_ids.shape
        mean = torch.cat(ratios).mean() if ratios else torch.zeros((), dtype=torch.float64)
        return MaskedBatch(
            ids.view(shape), labels.view(shape), batch.attention_mask, batch, selected.view(shape),
            mean.expand(shape[0]), dict(batch.extras), None if filled is None else filled.view(shape),
            None if weight is None else weight.view(shape),
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """The choices as plain values, for cards and reports."""
        return {
            "policy": str(self.policy), "ratio": str(self.ratio), "budget": self.budget,
            "corruption": str(self.corruption), "fill": self.fill, "min_targets": self.min_targets,
            "seed": self.seed, "predict": str(self.predict),
        }  # fmt: skip
