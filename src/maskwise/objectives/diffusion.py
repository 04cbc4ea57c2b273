"""Masked diffusion: masked language modelling at a random rate per row, weighted as a likelihood.

The sum of weighted losses is divided by the number of *eligible* tokens, so the loss of a step
estimates the bound on −log p(text), in nats a token. ``masking.diffusion`` makes the batches and
their weights.
"""

from __future__ import annotations

from typing import Any, ClassVar

from maskwise.errors import MaskwiseError
from maskwise.masking import MaskedBatch
from maskwise.masking.corruptions import corruption
from maskwise.masking.corruptions.base import mask_only
from maskwise.masking.diffusion import Noising, Rates
from maskwise.masking.diffusion import check as check_masking
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.objectives.base import Masking, Outcome, check_all_asked, counted, weighted
from maskwise.objectives.mlm import MaskedLanguageModelling

DEFAULTS = {"ratio": 0.15, "budget": "expected", "corruption": "bert", "min_targets": 1}
"""A recipe's default masking, which is that of masked language modelling."""

OPTIONS = {"budget": "exact", "fill": "none", "visits": "random"}
"""Settings of which masked diffusion has only some values, with their defaults."""


class MaskedDiffusion(MaskedLanguageModelling):
    """Weighted cross-entropy of masked tokens: a bound on −log p(text), in nats for each eligible
    token.

    Formula: Σ weight · −log p(token | what is visible) / number of eligible tokens. The weight is 1
        / (t · p(t)) for rates t of density p, or 1 / (n · P(n)) where the number n of masked tokens
        is drawn.
    Inputs: a ``MaskedBatch`` of ``masking.Noising``, which has the weights.
    Requirements: a model with an MLM head, and a tokenizer with a mask token.
    Source: Sahoo et al. 2024 (MDLM, arXiv 2406.07524); Nie et al. 2025 (LLaDA, arXiv 2502.09992).
    """

    batches = Noising
    masking: ClassVar[Masking] = {
        "ratio": "uniform(0, 1)",
        "budget": "exact",
        "corruption": "mask-only",
        "min_targets": 0,
    }

    @classmethod
    def settings(cls, common: Masking, own: Masking) -> dict[str, Any]:
        """The defaults of masked language modelling are replaced by this objective's."""
        chosen = {**common, **own}
        # A recipe always has these settings, so its defaults count as not set.
        for name, value in DEFAULTS.items():
            if chosen.get(name, value) == value:
                chosen[name] = cls.masking[name]
        return chosen

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        check_all_asked("diffusion", masking)
        shown = corruption(masking["corruption"])
        if shown != mask_only():
            what = "objective diffusion shows every chosen token as [MASK]"
            raise MaskwiseError(what, got=shown, do="leave masking.corruption out")
        units = policy(masking["policy"])
        options = {name: masking.get(name, value) for name, value in OPTIONS.items()}
        check_masking(units, **options)
        rates = schedule(masking["ratio"])
        no_bound = "its loss is no bound on the likelihood"
        # A schedule may change in the run; its beginning, middle and end are enough to see that.
        if not all(Rates(rates, step, 100).complete for step in (0, 50, 99)):
            return f"ratio {rates} is masked language modelling at fixed rates: {no_bound}"
        if units.reads_text:
            return f"policy {masking['policy']} looks at the text that it hides: {no_bound}"
        return None

    def forward(self, batch: MaskedBatch) -> Outcome:  # type: ignore[override]
        losses, where, right = self.answers(batch)
        total = weighted(losses, batch.loss_weight, *where.unbind(1)).sum()
        return Outcome(total, counted(batch.counted or 0, losses), losses.detach(), where, right)
