"""Masked diffusion: masked language modelling at a rate that is drawn for every row, with the
weights of a likelihood.

The sum of weighted losses is divided by the number of *eligible* tokens, so the loss of a step is
an estimate of the bound on −log p(text), in nats a token. ``masking.diffusion`` makes the batches
and their weights.
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

UNSAID = {"ratio": 0.15, "budget": "expected", "corruption": "bert", "min_targets": 1}
"""What a recipe's masking is where nobody says anything: settings of masked language modelling."""

LEAKS = "looks at the text that it hides: its loss is no bound on the likelihood"


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
        """As far as nobody says anything else: rates from ``uniform(0, 1)``, shown as [MASK]."""
        said = {**common, **own}
        return {
            **said,
            **{
                name: cls.masking[name]
                for name, value in UNSAID.items()
                if said.get(name, value) == value
            },
        }

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        """The weights of its rates are known, and all that is masked is asked.

        Raises:
            MaskwiseError: see ``masking.diffusion.check``; a rate of 0; another corruption than
                ``mask-only``.
        """
        check_all_asked("diffusion", masking)
        shown = corruption(masking["corruption"])
        if shown != mask_only():
            do = "leave masking.corruption out"
            raise MaskwiseError(
                "objective diffusion shows every chosen token as [MASK]", got=shown, do=do
            )
        units = policy(masking["policy"])
        how = {name: masking.get(name, value) for name, value in NAMED.items()}
        check_masking(units, **how)
        rates = schedule(masking["ratio"])
        complete = [
            Rates(rates, step, 100).complete for step in ((0, 50, 99) if rates.varies else (0,))
        ]
        if not all(complete):
            return (
                f"ratio {rates} is masked language modelling at fixed rates: its loss is no "
                f"bound on the likelihood"
            )
        return f"policy {masking['policy']} {LEAKS}" if units.reads_text else None

    def forward(self, batch: MaskedBatch) -> Outcome:  # type: ignore[override]  # a dict has no weights
        losses, where, right = self.answers(batch)
        total = weighted(losses, batch.loss_weight, *where.unbind(1)).sum()
        return Outcome(total, counted(batch.counted or 0, losses), losses.detach(), where, right)


NAMED = {"budget": "exact", "fill": "none", "visits": "random"}
"""Settings that masked diffusion has only some values of, with what they are by default."""
