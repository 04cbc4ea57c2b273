"""Distillation: a student learns what a trained model, its teacher, predicts and computes.

The teacher is read without gradients. It is no part of the objective: it is neither trained nor
saved, and every rank has all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div

from maskwise.base.devices import moved
from maskwise.base.errors import MaskwiseError, finite_number
from maskwise.masking import MaskedBatch
from maskwise.masking.batch import Lengths
from maskwise.models.families import Decoder, adapter_of, picked, prediction_head, width_of
from maskwise.models.flops import Work, encoder_attention
from maskwise.models.loading import empty_model, has_head, load_config, load_model
from maskwise.objectives.base import Loss, encoded, target_places, unrounded
from maskwise.objectives.chunks import in_chunks, token_losses
from maskwise.objectives.mlm import MaskedLanguageModelling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Distillation(MaskedLanguageModelling):
    """Learn from a teacher: its predictions at masked positions, and its states (DistilBERT).

    ``distil('bundled:encoder')`` names the teacher. With ``model.changes: layers(3)``, the student
    begins with layers of it.

    Formula: predictions · Σ over targets of T² · KL(p_T(teacher) ‖ p_T(student)) − labels · Σ over
        targets of log p(original token) + states · (targets / tokens) · Σ over tokens of
        1 − cos(h, h'). p_T is the softmax of logits / T, and h and h' are the states of the last
        layers of both, at all tokens of the text. The training loop divides the sum by the number
        of targets, so each term is a mean, as in the paper.
    Inputs: a ``MaskedBatch``.
    Requirements: a teacher with the tokens of the student; with a prediction head unless
        ``predictions`` is 0, and with states as wide as the student's unless ``states`` is 0.
    Source: Sanh et al. 2019 (DistilBERT, arXiv 1910.01108), section 2, and the weights of its code.
    """

    alone = False
    starts = ("teacher",)

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: str,
        *,
        temperature: float = 2.0,
        predictions: float = 5.0,
        labels: float = 2.0,
        states: float = 1.0,
    ):
        super().__init__(model)
        finite_number("temperature of objective distil", temperature, least=0.1)
        weights = {"predictions": predictions, "labels": labels, "states": states}
        for name, weight in weights.items():
            finite_number(f"{name} of objective distil", weight, least=0)
        if not predictions and not states:
            raise MaskwiseError(
                "objective distil learns nothing from its teacher",
                got=", ".join(f"{name}={weight:g}" for name, weight in weights.items()),
                allowed="predictions or states above 0",
            )
        self.temperature = temperature
        self.predictions = predictions
        self.labels = labels
        self.states = states
        config = load_config(teacher)
        if isinstance(adapter_of(config), Decoder):
            raise MaskwiseError(
                f"objective distil: the head of {teacher!r} predicts the token after a position",
                got=f"{config.model_type}, a decoder",
                do="name an encoder as the teacher",
            )
        if predictions and not has_head(teacher):
            raise MaskwiseError(
                f"objective distil: {teacher!r} has no head that predicts tokens",
                got=f"predictions={predictions:g}",
                do="learn from its states alone: predictions=0",
            )
        sizes = {
            "tokens": (predictions, config.vocab_size, model.config.vocab_size, "predictions"),
            "widths of states": (states, config.hidden_size, width_of(model), "states"),
        }
        for what, (weight, its, own, name) in sizes.items():
            if weight and its != own:
                raise MaskwiseError(
                    f"objective distil: teacher and student have other {what}",
                    got=f"{its} and {own}",
                    do=f"use another teacher, or {name}=0",
                )
        # In a forecast, only sizes are needed.
        if torch.get_default_device().type == "meta":
            network = empty_model(config)
        else:
            network = load_model(teacher, seed=0)
        if prediction_head(model) is None or prediction_head(network) is None:
            raise MaskwiseError(
                "objective distil needs models whose heads can be called alone",
                got=f"{type(network).__name__} and {type(model).__name__}",
            )
        # In a tuple, it is no part of this module.
        self._teacher = (network.eval().requires_grad_(False),)

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher, on the device of the student."""
        (network,) = self._teacher
        if network.device != self.model.device:
            network.to(self.model.device)
        return network

    def forward(self, batch: MaskedBatch) -> Loss:  # type: ignore[override]
        where = target_places(batch)
        at = where.unbind(1)
        with torch.no_grad():
            taught = encoded(self.teacher, batch)
        own = encoded(self.model, batch)
        losses, *more = in_chunks(
            self._losses,
            torch.cat([picked(own, *at), picked(taught, *at)], dim=1),
            batch["labels"][at],
            # Both heads have as many logits.
            vocabulary=2 * self.model.config.vocab_size,
        )
        loss = self.loss(batch, losses, where, more[0] if more else None)
        if not self.states:
            return loss
        text = moved(torch.from_numpy(np.flatnonzero(batch.line.predicted)), own.device)
        one, other = (each.flatten(0, 1)[text].float() for each in (own, taught))
        apart = (1 - cosine_similarity(one, other, dim=1)).sum()
        share = len(where) / max(1, len(text))
        return loss._replace(total=loss.total + self.states * share * apart)

    def _losses(self, both_M2H: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        """(M,): the weighted losses of targets, and whether the student is right if it is wanted.

        Args:
            both_M2H: the states of student and teacher at the targets, side by side.
            truth: (M,) the correct tokens.
        """
        head, its_head = prediction_head(self.model), prediction_head(self.teacher)
        assert head is not None and its_head is not None
        width = width_of(self.model)
        logits = unrounded(head(both_M2H[:, :width]))
        found = [logits.argmax(-1) == truth] if self.tells_right else []
        losses = torch.zeros_like(truth, dtype=logits.dtype)
        if self.predictions:
            its_logits = unrounded(its_head(both_M2H[:, width:].detach()))
            soft, its_soft = (
                (each / self.temperature).log_softmax(-1) for each in (logits, its_logits)
            )
            apart = kl_div(soft, its_soft, reduction="none", log_target=True).sum(-1)
            losses = losses + self.predictions * self.temperature**2 * apart
        if self.labels:
            # The logits may be overwritten, so this is computed last.
            losses = losses + self.labels * token_losses(logits, truth)
        return (losses, *found)

    def work(self, tokens: float, targets: float) -> Work:
        """Return the work for a batch: that of the student, and the forward pass of the teacher."""
        (network,) = self._teacher
        read = MaskedLanguageModelling(network).work(tokens, targets if self.predictions else 0)
        return super().work(tokens, targets).plus(Work(forward=read.all))

    def attention(self, lengths: Lengths) -> Work:
        """Return the multiplications in the attention of student and teacher."""
        (network,) = self._teacher
        read = encoder_attention(network.config, lengths.read)
        return super().attention(lengths).plus(Work(forward=read))
