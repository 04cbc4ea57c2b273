"""What learns while the model trains, from the model's own losses: a policy's weights, a sampler's logits.

A learner looks at every micro-batch, and once an update, when all ranks have added up what they saw, changes
itself. Ranks must never disagree on what is masked or which arm is next, so whatever a learner takes from
other ranks it takes through ``agree``: the sums of all ranks, in float64, rounded, and sent from one rank. Its
state is part of the states to resume from, so a run that was stopped goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.objectives import Outcome

Agree = Callable[[Tensor], Tensor]

ROUND = 2.0**24
"""Sums are rounded to multiples of 1 / ROUND: an order of addition that differs shows only at a border."""


class Learner(Protocol):
    """Something that learns while the model trains."""

    def observe(self, batch: Any, outcome: Outcome) -> None:
        """Look at a micro-batch and at what it cost; called before the update."""

    def after(self, done: int, total_steps: int, agree: Agree) -> None:
        """Learn, after update number ``done`` (0: before the first, in a run that begins); every rank calls this, and
        calls ``agree`` equally often."""

    def facts(self) -> dict[str, Any]:
        """What to log: numbers, or dicts of numbers by name, such as ``{"weights": {"NOUN": 0.7}}``."""

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def agreement(accelerator: Accelerator) -> Agree:
    """The function by which ranks agree on sums: float64 of any shape in, the same on every rank out."""

    def agree(mine: Tensor) -> Tensor:
        total = mine.double()
        if accelerator.num_processes > 1:
            total = broadcast(accelerator.reduce(total))
        return torch.round(total * ROUND) / ROUND

    return agree


def states(learners: Mapping[str, Learner]) -> dict[str, Tensor]:
    """The states of all learners as one flat dict."""
    return {f"{name}.{key}": t for name, it in learners.items() for key, t in it.state_dict().items()}


def restore(learners: Mapping[str, Learner], flat: Mapping[str, Tensor]) -> None:
    """The inverse of ``states``."""
    for name, learner in learners.items():
        mine = f"{name}."  # an arm's name may hold dots itself
        learner.load_state_dict(
            {key.removeprefix(mine): t for key, t in flat.items() if key.startswith(mine)}
        )


def learners_of(masker: Any) -> dict[str, Learner]:
    """What of a masker learns from the losses: its policy, if it does.

    Raises:
        MaskwiseError: a policy that learns, with a corruption after which losses have no place in the text.
    """
    if not isinstance(masker, Masker) or (learner := masker.policy.learner()) is None:
        return {}
    if not masker.corruption.keeps_length:
        what = f"policy {masker.policy} learns from the loss of each token, which must stay in its place"
        raise MaskwiseError(what, got=f"corruption {masker.corruption}", do="take bert or mask-only")
    return {"policy": learner}
