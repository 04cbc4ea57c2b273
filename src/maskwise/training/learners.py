"""What learns while the model trains: a policy's weights, a sampler's logits, a policy that is
trained by its effect.

A learner looks at every micro-batch, and once an update, when all ranks have added up what they
saw, changes itself. Ranks must never disagree on what is masked or which arm is next, so whatever a
learner takes from other ranks it takes through ``Point.agree``: the sums of all ranks, in float64,
rounded, and sent from one rank. They come to the host, which waits for its device, so what need not
be known at once is summed up where it is. Its state is part of the states to resume from, so a run
that was stopped goes on bit for bit.

A policy that is learnt from its effect (REINFORCE) needs no more than this protocol:

    def observe(self, batch, outcome):          # the batch knows its units, their weights and the log-probability
        self.log_probability += batch.log_probability …             # of the choice that was made

    def after(self, now):                       # the weights have just changed
        loss = self.objective(self.probe)       # given by ``meet``; held-out rows, masked once
        reward = self.loss_before − loss
        self.gradient = now.agree(reward · ∇ log_probability)

and a source that masks nothing ahead (``Source.ahead = 0``), since step t + 1 then depends on the
losses of step t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.masking.policies.base import Learner as Learner

Agree = Callable[[Tensor], Tensor]
"""From this rank's sums to those of all ranks, the same on every rank; every rank calls it equally
often.
"""


class Point(NamedTuple):
    """Where a training stands when its learners learn.

    Attributes:
        done: updates done; 0 before the first, in a run that begins.
        total_steps: updates in all.
        agree: sums over all ranks, on the host.
    """

    done: int
    total_steps: int
    agree: Agree


def states(learners: Mapping[str, Learner]) -> dict[str, Tensor]:
    """The states of all learners as one flat dict."""
    return {
        f"{name}.{key}": value
        for name, learner in learners.items()
        for key, value in learner.state_dict().items()
    }


def restore(learners: Mapping[str, Learner], flat: Mapping[str, Tensor]) -> None:
    """The inverse of ``states``."""
    for name, learner in learners.items():
        prefix = f"{name}."  # an arm's name may hold dots itself
        learner.load_state_dict(
            {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
        )


def learners_of(masker: Any) -> dict[str, Learner]:
    """The policy of a masker, if it learns from the losses.

    Raises:
        MaskwiseError: a policy that learns, with a corruption after which losses have no place in
            the text.
    """
    if not isinstance(masker, Masker) or (learner := masker.policy.learner()) is None:
        return {}
    if not masker.corruption.keeps_length:
        what = (
            f"policy {masker.policy} learns from the loss of each token, which must stay in "
            f"its place"
        )
        raise MaskwiseError(
            what, got=f"corruption {masker.corruption}", do="take bert or mask-only"
        )
    learner.start(masker.vocabulary)
    return {"policy": learner}
