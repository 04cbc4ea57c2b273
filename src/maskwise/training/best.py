"""The best state of a training: the weights of the evaluation with the lowest loss on dev text.

The evaluation itself gives the loss to ``Best.compare``, and learns whether to go on. Weights are
copied only after an evaluation with a new best, to the memory of the first rank, and are part of
every training state. A resumed run therefore has the same best weights, and ends at the same step.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from maskwise.base.constants import rank_here
from maskwise.base.devices import TensorDict, Tensors
from maskwise.training.learners import Learner
from maskwise.training.ranks import copied, distinct, gathered, load_from_first

RECORD = "record"
WEIGHTS = "weights/"


class Lowest:
    """The lowest loss so far.

    Attributes:
        step: the number of updates before the best evaluation; 0 before the first evaluation.
        loss: the loss of the best evaluation.
    """

    def __init__(self) -> None:
        self.step = 0
        self.loss = math.inf

    def compare(self, step: int, loss: float) -> bool:
        """Return whether the loss after ``step`` updates is the lowest so far.

        All ranks must call this method with the same loss.
        """
        is_new = loss < self.loss
        if is_new:
            self.step = step
            self.loss = loss
        return is_new


class Best(Lowest, Learner):
    """Keeps the weights with the lowest loss, and says when patience is exhausted.

    Args:
        patience: the number of successive evaluations without a lower loss after which training
            ends.
        every: the number of steps between evaluations.

    Attributes:
        lines: what the caller wants to know of the best evaluation; JSON values.
    """

    def __init__(self, patience: int, *, every: int):
        super().__init__()
        self.patience = patience
        self.every = every
        self.lines: list[dict[str, Any]] = []
        self.weights: TensorDict = {}
        self._is_new = False

    def configure(self, objective: Any) -> None:
        self.trained = objective

    def compare(self, step: int, loss: float) -> bool:
        self._is_new = super().compare(step, loss)
        return self._is_new

    def is_enough(self, step: int) -> bool:
        """Return whether the last ``patience`` evaluations had no lower loss."""
        return math.ceil((step - self.step) / self.every) >= self.patience

    def evaluated(self) -> None:
        """Copy the weights of a new best. FSDP2 gathers them, so every rank calls this method."""
        if self._is_new:
            self.weights = copied(gathered(distinct(self.trained), keep=rank_here() == 0))
        self._is_new = False

    def load_best(self) -> None:
        """Load the best weights into the objective. Every rank must call this method."""
        if self.step:
            load_from_first(self.trained, self.weights)

    def state_dict(self) -> TensorDict:
        record = {"step": self.step, "loss": self.loss, "lines": self.lines}
        state = {RECORD: torch.tensor([*json.dumps(record).encode()], dtype=torch.uint8)}
        for name, tensor in self.weights.items():
            state[WEIGHTS + name] = tensor
        return state

    def load_state_dict(self, state: Tensors) -> None:
        record = json.loads(bytes(state[RECORD].tolist()))
        self.step = record["step"]
        self.loss = record["loss"]
        self.lines = record["lines"]
        if rank_here() == 0:
            for name, tensor in state.items():
                if name.startswith(WEIGHTS):
                    self.weights[name.removeprefix(WEIGHTS)] = tensor


def best_at(steps: list[int], of: int) -> str:
    """Say after which of ``of`` steps the best states were found.

    >>> best_at([300], 1200), best_at([450, 300], 1200)
    ('best at 300 of 1,200 steps', 'best at 300 to 450 of 1,200 steps')
    """
    found = f"{min(steps):,}"
    if max(steps) > min(steps):
        found += f" to {max(steps):,}"
    return f"best at {found} of {of:,} steps"
