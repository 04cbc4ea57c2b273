"""MOMETAS: learn which arm to train on, from how much the losses of *all* arms fall (Wu et al. 2022).

The steps between two probes are a rollout; its reward is the sum of the relative gains of all arms on the probe
data; a policy gradient on one logit per arm, with an entropy term, makes arms that were drawn in good rollouts
more likely. Cost: a few numbers; the probes are the price (``training.arms``).

Two samplers live here. ``Mometas`` has the published update. With its constants it stays near uniform: the fixed
point is softmax(q / entropy), q the total relative gain of ``every`` steps of one arm alone, and where every loss
falls, the reward without a baseline drifts at random. ``MometasPlus`` is ours, and is always reported by that
name: it asks *which arm* the gain came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.samplers.base import Losses, Sampler, check_interval

TINY, STILL = 1e-6, 1e-3
"""What keeps the published reward finite, and the change of a loss below which it counts as none."""


def gains(before: Tensor, after: Tensor) -> Tensor:
    """(K,) relative gains: (a − b) / a, 0 for changes up to .001, never below −1. NaN where a loss is.

    Source: Wu et al. 2022, section 3.3, as in their code.
    """
    gain = (before - after + TINY) / (before + TINY) * ((before - after).abs() > STILL)
    return gain.clamp(min=-1)


def meta_gradient(logits: Tensor, drawn: Tensor, reward: float, entropy: float) -> Tensor:
    """(K,) gradient of the meta-loss (Σ over the rollout of −R·log p[arm]) − γ·H(p), p = softmax(logits).

    Args:
        logits: (K,). drawn: (K,) how often each arm was drawn. reward: R. entropy: γ.
    """
    log_p = torch.log_softmax(logits, 0)
    p = log_p.exp()
    # ∂H/∂logit_i = −p_i (log p_i + H)
    return -reward * (drawn - drawn.sum() * p) + entropy * p * (log_p - (p * log_p).sum())


class Learned(Sampler):
    """What both share: a logit per arm, the rollout, and a guard for losses that teach nothing."""

    def __init__(self, arms: Sequence[str], *, every: int = 100, seed: int = 0):
        super().__init__(arms, seed=seed)
        self.every = check_interval(every)
        self.logits = torch.ones(len(self.arms), dtype=torch.float64)
        self.rollout: dict[int, str] = {}
        """Step to arm, since the last update; a step that is drawn twice counts once."""

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return torch.softmax(self.logits, 0)

    def draw(self, step: int, total_steps: int | None = None) -> str:
        """The arm of a step, which goes into the rollout."""
        return self.rollout.setdefault(step, super().draw(step, total_steps))

    def drawn(self) -> Tensor:
        """(K,) float64: how often each arm stands in the rollout."""
        names = list(self.rollout.values())
        return torch.tensor([names.count(arm) for arm in self.arms], dtype=torch.float64)

    def guarded(self, before: Losses, after: Losses) -> Tensor:
        """(K,) gains, 0 for arms whose losses teach nothing; why, goes into ``notes``."""
        a, b = self.vector(before), self.vector(after)
        gain, drawn = gains(a, b), self.drawn()
        self.notes = notes = []
        starved = [arm for arm, n, g in zip(self.arms, drawn, gain) if not n and g < 0]
        better = [arm for arm, n, g in zip(self.arms, drawn, gain) if n and g > 0]
        for i, arm in enumerate(self.arms):
            if not bool(torch.isfinite(a[i]) & torch.isfinite(b[i])):
                notes.append(f"{arm}: the probe loss is not finite; it counts as no gain")
                gain[i] = 0
            elif a[i] <= STILL:
                notes.append(f"{arm}: the probe loss is 0 already; it counts as no gain")
                gain[i] = 0
            elif arm in starved and better:
                notes.append(f"{arm} is starved: never drawn, it gets worse; better: {', '.join(better)}")
        return gain

    def state_dict(self) -> dict[str, Tensor]:
        steps = torch.tensor(list(self.rollout), dtype=torch.int64)
        arms = torch.tensor([self.arms.index(arm) for arm in self.rollout.values()], dtype=torch.int64)
        return {"logits": self.logits, "rollout": torch.stack([steps, arms])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.logits = state["logits"]
        self.rollout = {step: self.arms[arm] for step, arm in state["rollout"].T.tolist()}


class Mometas(Learned):
    """The published sampler.

    >>> sampler = Mometas(["mlm", "atd"], lr=0.1, entropy=2.0, seed=0)
    >>> drawn = [sampler.draw(step) for step in range(100)]  # train on each of them; probe both before and after
    >>> logits = sampler.update(before={"mlm": 6.0, "atd": 0.7}, after={"mlm": 5.4, "atd": 0.7})
    >>> drawn.count("atd"), [round(p, 2) for p in sampler.probabilities().tolist()]
    (55, [0.48, 0.52])

    The gain of all arms together is credited to those that were drawn more often than their share, whichever improved.

    Args:
        arms: names of the arms.
        lr: of the plain gradient step on the logits.
        entropy: γ, the weight of the entropy term.
        every: k, steps between two probes.
        faithful: probe fresh examples with fresh masks each time, as the released code does; that noise is larger
            than the change of 100 steps. Otherwise the same examples with the same masks. (A matter of probing:
            the update is the same.)
        seed: any integer.

    Source: Wu et al. 2022 (Findings of EMNLP, arXiv 2210.10293), section 3.
    """

    def __init__(
        self, arms: Sequence[str], *, lr: float = 0.1, entropy: float = 2.0, every: int = 100,
        faithful: bool = False, seed: int = 0,
    ):  # fmt: skip
        super().__init__(arms, every=every, seed=seed)
        if not lr > 0 or entropy < 0:
            raise MaskwiseError(
                "sampler mometas", got=f"lr {lr}, entropy {entropy}", allowed="lr > 0, entropy ≥ 0"
            )
        self.lr, self.entropy, self.faithful = lr, entropy, faithful

    def update(self, before: Losses, after: Losses) -> Tensor:
        gain = self.guarded(before, after)
        gradient = meta_gradient(self.logits, self.drawn(), float(gain.sum()), self.entropy)
        self.logits, self.rollout = self.logits - self.lr * gradient, {}
        return self.logits


class MometasPlus(Learned):
    """Ours: credit to each arm, and confidence in it.

    The reward R of a rollout, less its running mean and divided by its running deviation, is regressed on the
    *shares* in which the arms were drawn (least squares with forgetting): the slope of an arm is what a rollout of
    it alone would gain over the average. Arms are drawn by softmax(slope / (entropy · its standard error)), so the
    sampler is even while it knows nothing and commits as evidence grows; forgetting keeps it open to change, and
    ``floor`` keeps every arm alive, for an arm that is never drawn can never be credited.

    Args:
        arms: names of the arms.
        lr: how far the logits go towards their new value at an update, 0 to 1.
        entropy: γ: larger is more even.
        memory: rollouts after which half is forgotten.
        floor: the share of the draws that is uniform.
        every: steps between two probes.
        seed: any integer.
    """

    def __init__(
        self, arms: Sequence[str], *, lr: float = 0.5, entropy: float = 0.25, memory: float = 10.0,
        floor: float = 0.1, every: int = 100, seed: int = 0,
    ):  # fmt: skip
        super().__init__(arms, every=every, seed=seed)
        if not (0 < lr <= 1 and entropy > 0 and memory > 0 and 0 <= floor <= 1):
            got = f"lr {lr}, entropy {entropy}, memory {memory}, floor {floor}"
            raise MaskwiseError(
                "sampler mometas-plus", got=got, allowed="0 < lr ≤ 1, entropy and memory > 0, 0 ≤ floor ≤ 1"
            )
        self.lr, self.entropy, self.memory, self.floor = lr, entropy, memory, floor
        count = len(self.arms)
        # Discounted sums over rollouts: of 1, of R, of R², of shares x, of x·xᵀ, of x·R.
        self.moments = torch.zeros(3, dtype=torch.float64)
        self.shares = torch.zeros(count, dtype=torch.float64)
        self.gram = torch.zeros(count, count, dtype=torch.float64)
        self.cross = torch.zeros(count, dtype=torch.float64)

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return (1 - self.floor) * torch.softmax(self.logits, 0) + self.floor / len(self.arms)

    def update(self, before: Losses, after: Losses) -> Tensor:
        gain = self.guarded(before, after)
        drawn, reward = self.drawn(), float(gain.sum())
        if float(drawn.sum()) == 0:
            return self.logits
        share, keep = drawn / drawn.sum(), 0.5 ** (1 / self.memory)
        self.moments = keep * self.moments + torch.tensor([1.0, reward, reward**2], dtype=torch.float64)
        self.shares, self.cross = keep * self.shares + share, keep * self.cross + reward * share
        self.gram = keep * self.gram + torch.outer(share, share)
        self.logits = (1 - self.lr) * self.logits + self.lr * self.credit() / self.entropy
        self.rollout = {}
        return self.logits

    def credit(self) -> Tensor:
        """(K,): the estimated gain of each arm over the mean of the rollouts, in standard errors."""
        count, total, squares = self.moments.tolist()
        mean_x, baseline = self.shares / count, total / count
        deviation = max(squares / count - baseline**2, 0.0) ** 0.5
        if deviation == 0:
            return torch.zeros_like(self.cross)
        # Least squares of the standardised reward on the centred shares; the ridge is one rollout's worth of
        # knowing nothing, and holds what the shares (which sum to 1) leave undetermined.
        gram = self.gram / count - torch.outer(mean_x, mean_x)
        cross = (self.cross / count - baseline * mean_x) / deviation
        inverse = torch.linalg.inv(
            gram + torch.eye(len(self.arms), dtype=torch.float64) / (count * len(self.arms))
        )
        error = (inverse.diagonal() / count).sqrt()
        return inverse @ cross / error

    def state_dict(self) -> dict[str, Tensor]:
        more = {"moments": self.moments, "shares": self.shares, "gram": self.gram, "cross": self.cross}
        return {**super().state_dict(), **more}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.moments, self.shares = state["moments"], state["shares"]
        self.gram, self.cross = state["gram"], state["cross"]
