"""What learns while the model trains: a policy's weights, a sampler's logits.

A learner reads every micro-batch (``observe``) and updates itself once per step (``after``). Ranks
must agree on masks and arms, so learners use sums over all ranks, rounded, in float64 on the host.
Sums that are needed at every step are offered (``offer``): one exchange serves all learners, at
once or a step late. ``Point.agree`` is for rare sums, because it waits for the device. States are
saved with the run, so that a resumed run continues bit for bit.

This protocol is enough for a policy that learns from its effect (REINFORCE):

    def observe(self, batch, outcome):          # the batch has the log-probability of its mask
        self.log_probability += batch.log_probability

    def after(self, now):                       # the weights have just changed
        loss = self.objective(self.probe)       # ``meet`` set both; the probe is masked once
        reward = self.loss_before − loss
        self.gradient = now.agree(reward · ∇ log_probability)

It needs a source with ``ahead = 0``, because step t + 1 depends on the losses of step t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.masking.policies.base import Learner as Learner

Agree = Callable[[Tensor], Tensor]
"""From this rank's sums to those of all ranks, equal on every rank; all ranks must call it."""


class Point(NamedTuple):
    """The progress of a training when its learners learn.

    Attributes:
        done: completed updates; 0 before the first update of a new run.
        total_steps: updates of the whole run.
        agree: sums a tensor over all ranks, on the host; waits for the device.
        sums: the sums over all ranks of what the learner offered (``Learner.offer``) at this
            update, or at the previous one if learners are a step late; None before the first.
    """

    done: int
    total_steps: int
    agree: Agree
    sums: Tensor | None = None


class Start(Protocol):
    """Sums over ranks: at once, or with ``start`` while the host continues."""

    def __call__(self, own: Tensor) -> Tensor: ...

    def start(self, own: Tensor) -> Callable[[], Tensor]: ...


class Exchange:
    """Gives all learners the sums over ranks of what they offer, in a single exchange.

    Args:
        agree: sums over ranks.
        late: whether sums are used at the next update, so that they arrive while it is computed and
            nothing waits for the update that has just been started.
    """

    def __init__(self, agree: Start, *, late: bool = False):
        self.agree = agree
        self.late = late
        self.pending: Callable[[], dict[str, Tensor]] = dict

    def teach(self, learners: Mapping[str, Learner], now: Point) -> None:
        """Call ``after`` of all learners."""
        offered = {}
        for name, learner in learners.items():
            local = learner.offer(now)
            if local is not None:
                offered[name] = local
        arriving = self._started(offered)
        if self.late:
            arriving, self.pending = self.pending, arriving
        sums = arriving()
        for name, learner in learners.items():
            learner.after(now._replace(sums=sums.get(name)))

    def _started(self, offered: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        if not offered:
            return dict
        arrived = self.agree.start(torch.cat([local.flatten() for local in offered.values()]))

        def parts() -> dict[str, Tensor]:
            line = arrived()
            sums = {}
            for name, local in offered.items():
                sums[name] = line[: local.numel()].view(local.shape)
                line = line[local.numel() :]
            return sums

        return parts

    def state_dict(self) -> dict[str, Tensor]:
        """The sums that no learner has used yet."""
        return self.pending()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.pending = partial(dict, state)


LATE = "late sums"
"""The name of an ``Exchange`` among the learners of a saved state."""


def states(learners: Mapping[str, Learner | Exchange]) -> dict[str, Tensor]:
    """The states of all learners as one flat dict."""
    flat = {}
    for name, learner in learners.items():
        for key, value in learner.state_dict().items():
            flat[f"{name}.{key}"] = value
    return flat


def restore(learners: Mapping[str, Learner | Exchange], flat: Mapping[str, Tensor]) -> None:
    """Load the result of ``states``."""
    for name, learner in learners.items():
        state = {}
        # Names of arms may contain dots, so keys cannot be split at the first one.
        prefix = f"{name}."
        for key, value in flat.items():
            if key.startswith(prefix):
                state[key.removeprefix(prefix)] = value
        learner.load_state_dict(state)


def learners_of(masker: object) -> dict[str, Learner]:
    """The policy of a masker, if it learns from the losses.

    Raises:
        MaskwiseError: a corruption that changes lengths, so that losses have no place in the text.
    """
    if not isinstance(masker, Masker):
        return {}
    learner = masker.policy.learner()
    if learner is None:
        return {}
    if not masker.corruption.keeps_length:
        what = f"policy {masker.policy} learns from losses at the places of tokens"
        got = f"corruption {masker.corruption}"
        raise MaskwiseError(what, got=got, do="take bert or mask-only")
    learner.start(masker.vocabulary)
    return {"policy": learner}
