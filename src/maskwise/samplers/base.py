"""Samplers choose the objective of each training step. An objective has its own
masking settings, so ``mlm`` at two ratios is two objectives.

A draw depends only on the seed, the step and the current probabilities. Therefore all ranks draw
the same objective, and a resumed run continues the same sequence of objectives.

Some samplers learn. Every ``every`` steps, the losses of all objectives are measured on held-out
rows, which is called a *probe*. The steps between two probes are a *rollout*. After each rollout,
the sampler gets the losses of the probes before and after it. The samplers in this module do not
learn, except ``loss-proportional``. They are baselines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np
import torch
from torch import Tensor

from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.errors import MaskwiseError, items_of, require_known, whole_number
from maskwise.base.specs import Call
from maskwise.masking.arrays import numbers
from maskwise.masking.draws import fold
from maskwise.masking.schedules import Schedule, require_some_share, schedule

Losses = Mapping[str, float] | Sequence[float] | Tensor

ROLLOUTS = 60
"""The default number of rollouts in a run. Runs of more than 6,000 steps have more, because by
default a rollout has at most ``PUBLISHED_EVERY`` steps."""
PUBLISHED_EVERY = 100
"""The published number of steps between two probes, and the largest default."""


class Sampler:
    """Base class of all samplers. It draws every objective with the same probability.

    Args:
        objectives: the names of the objectives.
        seed: any integer.

    Attributes:
        every: the number of steps between two probes; 0 if the sampler needs no probes.
        rows: the number of held-out rows in the probe of each objective.
        notes: warnings about the last update.
        share: (K,) float64, the probability of each of the K objectives.

    Raises:
        MaskwiseError: ``objectives`` is empty or contains a name twice.
    """

    every = 0
    rows = 64

    def __init__(self, objectives: Sequence[str], *, seed: int = 0):
        self.objectives = tuple(items_of("objectives", objectives, of="names"))
        self.seed = seed
        self.notes: list[str] = []
        if not objectives or len(set(objectives)) < len(objectives):
            raise MaskwiseError(
                "a sampler needs objectives with different names", got=list(objectives)
            )
        self.share = torch.full(
            (len(objectives),),
            1 / len(objectives),
            dtype=torch.float64,
        )

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        """Return the probability of each of the K objectives at a step, (K,) float64."""
        return self.share

    def draw(self, step: int, total_steps: int | None = None) -> str:
        """Draw the objective for a step."""
        step, total_steps = checked_time(step, total_steps)
        edges = self.probabilities(step, total_steps).cumsum(0)
        # Rounding may make the last edge smaller than 1. A number between the two would have no
        # objective, so scale all numbers by the last edge.
        place = edges.new_tensor(self.place(step) * float(edges[-1]))
        index = int(torch.searchsorted(edges, place, right=True))
        return self.objectives[index]

    def only(self) -> str | None:
        """Return the objective that is drawn at every step; None if several may be drawn."""
        return self.objectives[0] if len(self.objectives) == 1 else None

    def place(self, step: int) -> float:
        """Return the random number in (0, 1) that decides which objective is drawn for a step."""
        return (fold(self.seed, step, 0xA6) + 0.5) / 2**32

    def update(self, before: Losses, after: Losses) -> Tensor:
        """Learn from the probe losses of all objectives before and after a rollout.

        Returns:
            The new logits, (K,). Samplers that have no logits return their probabilities.
        """
        return self.share

    def reward(self, before: Losses, after: Losses) -> float | None:
        """Return the gain of a rollout as one number; None if the sampler has no logits."""
        return None

    def probed_rows(self, *, twins: bool) -> int:
        """Return the number of rows that the probe of one objective reads.

        Args:
            twins: whether half of the rows are read twice.
        """
        if twins:
            return self.rows * 3 // 2
        return self.rows

    def named(self, chosen: Tensor) -> list[str]:
        """Return the names of the objectives for which ``chosen`` (K,) is True."""
        return list(compress(self.objectives, chosen))

    def state_dict(self) -> TensorDict:
        """Return the learned tensors for a checkpoint; empty if the sampler does not learn."""
        return {}

    def load_state_dict(self, state: Tensors) -> None:
        """Restore the tensors of a ``state_dict``."""
        for name, value in state.items():
            setattr(self, name, value)

    def vector(self, losses: Losses) -> Tensor:
        """Return losses as (K,) float64, in the order of the objectives.

        Args:
            losses: a dict of losses by objective, or one loss per objective in the order of the
                objectives.

        Raises:
            MaskwiseError: an objective is unknown, or there is not exactly one loss per objective.
        """
        if isinstance(losses, Mapping):
            for name in losses:
                require_known("objective", name, self.objectives)
            # A missing loss becomes NaN. The objective is then treated as diverged, not as
            # unchanged.
            losses = [
                float(numbers(f"the loss of {name}", losses.get(name, torch.nan), shape=()))
                for name in self.objectives
            ]
        loss_K = numbers("losses", losses, shape=(len(self.objectives),))
        return torch.from_numpy(loss_K.astype(np.float64))


class Uniform(Sampler):
    """Draws every objective with the same probability."""


class Single(Sampler):
    """Always draws the same objective: ``objective``, or by default the first one."""

    def __init__(self, objectives: Sequence[str], objective: str | None = None, *, seed: int = 0):
        super().__init__(objectives, seed=seed)
        if objective is None:
            objective = self.objectives[0]
        else:
            objective = str(objective)
            require_known("objective", objective, self.objectives)
        self.objective = objective
        self.share = torch.eye(len(objectives), dtype=torch.float64)[
            self.objectives.index(objective)
        ]

    def only(self) -> str | None:
        return self.objective


class Sequential(Sampler):
    """Draws the objectives in turn, for ``block`` consecutive steps each.

    If ``block`` is None, the run is split into equal parts, one for each objective.
    """

    def __init__(self, objectives: Sequence[str], block: int | None = 1, *, seed: int = 0):
        super().__init__(objectives, seed=seed)
        if block is not None:
            whole_number("sampler sequential: block, in steps,", block, least=1)
        self.block = block

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        step, total_steps = checked_time(step, total_steps)
        if self.block is not None:
            now = step // self.block % len(self.objectives)
        elif total_steps:
            # Without ``min``, the step after the last step would have no objective.
            now = min(step * len(self.objectives) // total_steps, len(self.objectives) - 1)
        else:
            raise MaskwiseError("sampler sequential(None) needs the number of steps in the run")
        return torch.eye(len(self.objectives), dtype=torch.float64)[now]


class Shares(Sampler):
    """Draws objectives with given shares: one number or schedule each, divided by their sum.

    >>> sampler = Shares(["mlm", "cse"], 3, 1)
    >>> sampler.probabilities().tolist()
    [0.75, 0.25]

    With ``shares(1, "linear(0, 1)")``, the second objective's share rises from 0 to one half.
    """

    def __init__(
        self, objectives: Sequence[str], *shares: float | str | Call | Schedule, seed: int = 0
    ):
        super().__init__(objectives, seed=seed)
        if len(shares) != len(objectives):
            raise MaskwiseError(
                "sampler shares: every objective needs a share",
                got=f"{len(shares)} shares for {len(objectives)} objectives",
            )
        plain = [share for share in shares if isinstance(share, int | float)]
        if min(plain, default=0) < 0:
            raise MaskwiseError("sampler shares: a share is below 0", got=shares)
        top = max([1, *plain])
        # A schedule is always between 0 and 1, so a number above 1 beside a schedule is probably a
        # mistake: the scaling below would change the number but not the schedule.
        if top > 1 and len(plain) < len(shares):
            raise MaskwiseError(
                "sampler shares: if a share is a schedule, all numbers must be from 0 to 1",
                got=top,
            )
        self.drawn = [objective for objective, share in zip(self.objectives, shares) if share != 0]
        self.shares = []
        for share in shares:
            if isinstance(share, int | float):
                # Schedules cannot exceed 1, so 4, 2 and 1 become 1, 0.5 and 0.25.
                share = share / top
            self.shares.append(schedule(share))
        require_some_share("sampler shares", self.shares)

    def only(self) -> str | None:
        return self.drawn[0] if len(self.drawn) == 1 else None

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        shares = [share(step, total_steps) for share in self.shares]
        now = torch.tensor(shares, dtype=torch.float64)
        # ``not … > 0`` is also True for NaN.
        if not now.sum() > 0:
            raise MaskwiseError("sampler shares: all shares are 0", got=f"step {step}")
        return now / now.sum()


class LossProportional(Sampler):
    """Draws objectives with shares proportional to (held-out loss) / (loss of random guessing).

    Args:
        objectives: the names of the objectives.
        chance: the loss of random guessing for each objective; if None, 1 for all objectives. It is
            ln V for masked tokens with a vocabulary of V, ln 2 for detection, and about ln B for
            sentences in batches of B.
        every: the number of steps between two probes; if None, a sixtieth of the run, at most 100.
        rows: the number of rows in the probe of each objective.
        steps: the number of steps in the run.
        seed: any integer.

    Raises:
        MaskwiseError: the loss of random guessing is not above 0, or a number is out of range.
    """

    def __init__(
        self,
        objectives: Sequence[str],
        *,
        chance: Losses | None = None,
        every: int | None = None,
        rows: int = 64,
        steps: int | None = None,
        seed: int = 0,
    ):
        super().__init__(objectives, seed=seed)
        self.every = interval(every, steps)
        self.rows = probe_size(rows)
        if chance is None:
            chance = [1.0] * len(objectives)
        self.chance = self.vector(chance)
        if not (self.chance > 0).all():
            raise MaskwiseError(
                "sampler loss-proportional: the loss of random guessing is not above 0",
                got=chance,
                allowed="above 0",
            )

    def update(self, before: Losses, after: Losses) -> Tensor:
        loss = self.vector(after) / self.chance
        # An objective whose loss diverged gets no share.
        finite = loss.isfinite()
        loss = loss.masked_fill(~finite, 0).clamp(min=0)
        if loss.sum() > 0:
            self.share = loss / loss.sum()
        diverged = self.named(~finite)
        # If all have diverged, the shares stay, and one of them is drawn.
        outcome = "not drawn" if finite.any() else "its share stays"
        self.notes = [
            f"{objective}: the probe loss is not finite; {outcome}" for objective in diverged
        ]
        return self.share

    def state_dict(self) -> TensorDict:
        return {"share": self.share}


def checked_time(step: object, total_steps: object) -> tuple[int, int | None]:
    """Return a step and the number of steps in the run as ints; raise unless both are ≥ 0."""
    step = whole_number("step", step, least=0)
    if total_steps is None:
        return step, None
    return step, whole_number("total_steps", total_steps, least=0)


def interval(every: int | None, steps: int | None) -> int:
    """Return ``every`` if given; otherwise a sixtieth of the ``steps`` in the run, at most 100.

    >>> interval(None, 600), interval(None, 50_000), interval(25, 600)
    (10, 100, 25)
    """
    if every is not None:
        return whole_number("steps between probes", every, least=1)
    if steps is None:
        return PUBLISHED_EVERY
    return min(PUBLISHED_EVERY, max(1, steps // ROLLOUTS))


def probe_size(rows: int) -> int:
    """Check that a probe has at least 4 rows, and return the number of rows."""
    return whole_number("rows of a sampler's probe", rows, least=4)


def reliability(halves: Tensor) -> float | None:
    """Estimate the split-half reliability of a reward.

    Reliability is the share of the reward's variance that is not noise from the choice of probe
    rows. Let A and B be the rewards measured on the first and on the second half of the probe rows.
    The estimate is 1 − var(A − B) / var(A + B) (Rulon 1939). If the rewards are only noise, the
    estimate is 0 on average.

    Args:
        halves: (T, 2) float64, the rewards of T rollouts on each half.

    Returns:
        The estimate; None if the reward is constant or if there are too few rollouts. The first
        quarter of the rollouts is not used, and six others are needed.

    >>> reliability(torch.tensor([[0.0, 0.0], [1.0, 1.2], [0.2, 0.0], [0.9, 1.0]] * 3).double())
    0.9...
    """
    # In the first quarter of a run all losses fall, so both halves agree even if the reward cannot
    # tell good rollouts from bad ones.
    late = halves[len(halves) // 4 :].double()
    if len(late) < 6:
        return None
    variance = late.sum(1).var()
    if not variance > 0:
        return None
    return float(1 - late.diff(dim=1).var() / variance)
