"""What learns while the model trains: a policy's weights, a sampler's logits.

A learner sees every micro-batch (``observe``) and changes itself once an update (``after``). Ranks
must agree on masks and arms, so whatever a learner takes from other ranks passes through
``Point.agree``: sums over all ranks in float64 on the host, rounded, and sent from one rank. This
waits for the device, so what is not needed at once is accumulated there. The state is saved with
the run's, so that a resumed run continues bit for bit.

A policy that learns from its effect (REINFORCE) needs no more than this protocol:

    def observe(self, batch, outcome):          # the batch has its units and the log-probability
        self.log_probability += batch.log_probability …             # of the choice that was made

    def after(self, now):                       # the weights have just changed
        loss = self.objective(self.probe)       # given by ``meet``; held-out rows, masked once
        reward = self.loss_before − loss
        self.gradient = now.agree(reward · ∇ log_probability)

and a source with ``ahead = 0``, because step t + 1 depends on the losses of step t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.masking.policies.base import Learner as Learner

Agree = Callable[[Tensor], Tensor]
"""From this rank's sums to those of all ranks, equal on every rank; all ranks must call it."""


class Point(NamedTuple):
    """Where a training stands when its learners learn.

    Attributes:
        done: number of updates; 0 before the first of a new run.
        total_steps: updates in all.
        agree: sums over all ranks, on the host.
    """

    done: int
    total_steps: int
    agree: Agree


def states(learners: Mapping[str, Learner]) -> dict[str, Tensor]:
    """The states of all learners as one flat dict."""
    flat = {}
    for name, learner in learners.items():
        for key, value in learner.state_dict().items():
            flat[f"{name}.{key}"] = value
    return flat


def restore(learners: Mapping[str, Learner], flat: Mapping[str, Tensor]) -> None:
    """The inverse of ``states``."""
    for name, learner in learners.items():
        prefix = f"{name}."  # an arm's name may contain dots
        own = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
        learner.load_state_dict(own)


def learners_of(masker: object) -> dict[str, Learner]:
    """The policy of a masker, if it learns from the losses.

    Raises:
        MaskwiseError: a corruption that changes lengths, so that losses have no place in the text.
    """
    learner = masker.policy.learner() if isinstance(masker, Masker) else None
    if learner is None:
        return {}
    assert isinstance(masker, Masker)
    if not masker.corruption.keeps_length:
        what = f"policy {masker.policy} learns from losses at the places of tokens"
        got = f"corruption {masker.corruption}"
        raise MaskwiseError(what, got=got, do="take bert or mask-only")
    learner.start(masker.vocabulary)
    return {"policy": learner}
