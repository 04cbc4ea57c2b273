"""Samplers that follow a rule: the baselines that a learned one has to beat. Each is a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.masking.schedules import Schedule, schedule
from maskwise.samplers.base import Losses, Sampler, interval, probe_size
from maskwise.specs import Call


class Single(Sampler):
    """One arm always: ``arm``, or the first."""

    def __init__(self, arms: Sequence[str], arm: str | None = None, *, seed: int = 0):
        super().__init__(arms, seed=seed)
        arm = self.arms[0] if arm is None else str(arm)
        if arm not in self.arms:
            raise unknown_name("arm", arm, self.arms)
        self.arm = arm

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return torch.tensor([float(name == self.arm) for name in self.arms], dtype=torch.float64)


class Uniform(Sampler):
    """Every arm alike."""

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return torch.full((len(self.arms),), 1 / len(self.arms), dtype=torch.float64)


class Sequential(Sampler):
    """One after the other: every ``block`` steps the next (1: round-robin); ``block=None``: each
    once, for an equal share of the run."""

    def __init__(self, arms: Sequence[str], block: int | None = 1, *, seed: int = 0):
        super().__init__(arms, seed=seed)
        if block is not None and block < 1:
            raise MaskwiseError(
                "sampler sequential: block, in steps", got=block, allowed="1 or more, or None"
            )
        self.block = block

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        if self.block is not None:
            now = step // self.block % len(self.arms)
        elif total_steps is None:
            raise MaskwiseError(
                "sampler sequential without a block needs the total number of steps"
            )
        else:
            now = min(step * len(self.arms) // total_steps, len(self.arms) - 1)
        return torch.eye(len(self.arms), dtype=torch.float64)[now]


class Shares(Sampler):
    """Hand-set shares, one for each arm; numbers or schedules, divided by their sum at each step.

    >>> sampler = Shares(["mlm", "cse"], 3, 1)
    >>> sampler.probabilities().tolist()
    [0.75, 0.25]

    ``shares(1, "linear(0, 1)")``: the second arm from nothing to half of the steps.
    """

    def __init__(self, arms: Sequence[str], *shares: float | str | Call | Schedule, seed: int = 0):
        super().__init__(arms, seed=seed)
        if len(shares) != len(self.arms):
            got = f"{len(shares)} shares for {len(self.arms)} arms"
            raise MaskwiseError("sampler shares: every arm needs a share", got=got)
        top = max((s for s in shares if isinstance(s, int | float)), default=1)
        # Schedules lie in 0 to 1; whoever writes 2 and 1 means the proportion.
        if top > 1 and not all(isinstance(s, int | float) for s in shares):
            raise MaskwiseError(
                "sampler shares: beside schedules, numbers are from 0 to 1", got=top
            )
        self.shares = [
            schedule(s / max(top, 1) if isinstance(s, int | float) else s) for s in shares
        ]

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        now = torch.tensor([share(step, total_steps) for share in self.shares], dtype=torch.float64)
        if not float(now.sum()) > 0:
            raise MaskwiseError("sampler shares: all shares are 0", got=f"step {step}")
        return now / now.sum()


class Temperature(Sampler):
    """In proportion to sizes ** (1 / temperature): 1 as the sizes are, above it more even.

    Source: mT5 (Xue et al. 2021, arXiv 2010.11934), section 3.2, with alpha = 1 / temperature.
    """

    def __init__(self, arms: Sequence[str], *sizes: float, temperature: float = 1.0, seed: int = 0):
        super().__init__(arms, seed=seed)
        if len(sizes) != len(self.arms) or min(sizes) <= 0 or temperature <= 0:
            got = f"sizes {list(sizes)}, temperature {temperature}"
            raise MaskwiseError("sampler temperature: a size above 0 for each arm", got=got)
        size = torch.tensor(sizes, dtype=torch.float64)
        self.share = torch.softmax(size.log() / temperature, 0)

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return self.share


class LossProportional(Sampler):
    """In proportion to the latest probe loss of each arm, divided by its chance level; uniform
    until the first one.

    Args:
        chance: the loss of knowing nothing: ln V for masked words, ln 2 for detection, ln B for
            sentences. By arm; 1 for all if not said.
        every: steps between probes; None: a sixtieth of the run, at most 100.
        rows: of a probe.
        steps: of the run.
    """

    def __init__(
        self,
        arms: Sequence[str],
        *,
        chance: Losses | None = None,
        every: int | None = None,
        rows: int = 64,
        steps: int | None = None,
        seed: int = 0,
    ):
        super().__init__(arms, seed=seed)
        self.every, self.rows = interval(every, steps), probe_size(rows)
        self.chance = (
            torch.ones(len(self.arms), dtype=torch.float64)
            if chance is None
            else self.vector(chance)
        )
        if not bool((self.chance > 0).all()):
            raise MaskwiseError(
                "sampler loss-proportional: chance levels", got=chance, allowed="above 0"
            )
        self.share = Uniform(self.arms).probabilities()

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return self.share

    def update(self, before: Losses, after: Losses) -> Tensor:
        loss = self.vector(after) / self.chance
        lost = ~loss.isfinite()
        loss = loss.masked_fill(lost, 0).clamp(min=0)
        if float(loss.sum()) > 0:
            self.share = loss / loss.sum()
        self.notes = [
            f"{a}: the probe loss is not finite; no share" for a, no in zip(self.arms, lost) if no
        ]
        return self.share

    def state_dict(self) -> dict[str, Tensor]:
        return {"share": self.share}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.share = state["share"]
