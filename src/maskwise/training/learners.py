"""What learns while the model trains: a policy's weights, a sampler's logits.

A learner sees every micro-batch (``observe``) and changes itself once an update (``after``). Ranks
must agree on masks and arms, so what a learner takes from other ranks are sums in float64 on the
host, rounded. What it needs at every update it offers (``offer``), so that one exchange serves all
learners, at once or a step late. ``Point.agree`` is for what is seldom needed: it waits for the
device. The state is saved with the run's, so that a resumed run continues bit for bit.

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
    """Where a training stands when its learners learn.

    Attributes:
        done: number of updates; 0 before the first of a new run.
        total_steps: updates in all.
        agree: sums over all ranks, on the host; waits for the device.
        sums: over all ranks, of what the learner offered (``Learner.offer``): at this update, or at
            the one before where learners are a step late. None: nothing has arrived.
    """

    done: int
    total_steps: int
    agree: Agree
    sums: Tensor | None = None


class Start(Protocol):
    """Adds up over ranks: at once, or with ``start`` while the host goes on."""

    def __call__(self, own: Tensor) -> Tensor: ...

    def start(self, own: Tensor) -> Callable[[], Tensor]: ...


class Exchange:
    """Lets learners learn from what they offer, in one exchange between ranks for all of them.

    Args:
        agree: adds up over ranks.
        late: whether sums are used at the next update. Nobody then waits for the update that has
            just been started: its sums come while the next one is computed.
    """

    def __init__(self, agree: Start, *, late: bool = False):
        self.agree = agree
        self.late = late
        self.pending: Callable[[], dict[str, Tensor]] = dict

    def teach(self, learners: Mapping[str, Learner], now: Point) -> None:
        """Call ``after`` of all learners."""
        offered = {}
        for name, learner in learners.items():
            own = learner.offer(now)
            if own is not None:
                offered[name] = own
        arriving = self._started(offered)
        if self.late:
            arriving, self.pending = self.pending, arriving
        sums = arriving()
        for name, learner in learners.items():
            learner.after(now._replace(sums=sums.get(name)))

    def _started(self, offered: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        if not offered:
            return dict
        line = torch.cat([own.flatten() for own in offered.values()])
        arrived = self.agree.start(line)

        def parts() -> dict[str, Tensor]:
            sizes = [own.numel() for own in offered.values()]
            split = zip(offered.items(), arrived().split(sizes), strict=True)
            return {name: part.view(own.shape) for (name, own), part in split}

        return parts

    def state_dict(self) -> dict[str, Tensor]:
        """The sums that are still to be used."""
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
