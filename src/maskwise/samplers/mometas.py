"""MOMETAS: learn which arm to train on, from how much the losses of *all* arms fall (Wu et al.
2022).

The steps between two probes are a rollout; its reward is the sum of the relative gains of all arms
on the probe data; a policy gradient on one logit per arm, with an entropy term, makes arms that
were drawn in good rollouts more likely. Cost: a few numbers; the probes are the price
(``training.arms``).

Two samplers live here. ``Mometas`` has the published update. With its constants it stays near
uniform: the fixed point is softmax(q / entropy), q the total relative gain of ``every`` steps of
    one arm alone, and where every loss
falls, the reward without a baseline drifts at random. ``MometasPlus`` is ours, and is always
reported by that
name: it asks *which arm* the gain came from, and stays even until the rewards can tell
(``benchmarks/sampler_regret.py`` has the figures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.samplers.base import PUBLISHED_EVERY, ROLLOUTS, Losses, Sampler, interval, probe_size

TINY, STILL = 1e-6, 1e-3
"""What keeps the published reward finite, and the change of a loss below which it counts as none.
"""

LEAST = 0.05
"""Nats. MometasPlus takes no gain as relative to less: below it the noise of a loss is as large as
the loss, and from .02 to .04 and back again would count as −1 and +.5."""

BLOCK, RECENT = 10, 5
"""For MometasPlus: the steps that an arm is drawn for at most, and the rollouts after which half of
a mean is new.
"""
GOLDEN = (5**0.5 - 1) / 2
KEPT = ("level", "weight", "sums", "products")


def gains(before: Tensor, after: Tensor, *, least: float = 0.0) -> Tensor:
    """(K,) relative gains: (a − b) / a, 0 for changes up to .001, never below −1. NaN where a loss
    is.

    Args:
        least: what a counts for at the least where it divides, in nats.

    Source: Wu et al. 2022, section 3.3, as in their code.
    """
    gain = (
        (before - after + TINY)
        / (before.clamp(min=least) + TINY)
        * ((before - after).abs() > STILL)
    )
    return gain.clamp(min=-1)


def meta_gradient(logits: Tensor, drawn: Tensor, reward: float, entropy: float) -> Tensor:
    """(K,) gradient of the meta-loss (Σ over the rollout of −R·log p[arm]) − γ·H(p), p =
    softmax(logits).

    Args:
        logits: (K,). drawn: (K,) how often each arm was drawn. reward: R. entropy: γ.
    """
    log_p = torch.log_softmax(logits, 0)
    p = log_p.exp()
    # ∂H/∂logit_i = −p_i (log p_i + H)
    return -reward * (drawn - drawn.sum() * p) + entropy * p * (log_p - (p * log_p).sum())


class Learned(Sampler):
    """What both share: a logit per arm, the rollout, and a guard for losses that are no numbers."""

    least: ClassVar[float] = 0.0
    """See ``gains``."""

    def __init__(self, arms: Sequence[str], *, every: int, rows: int, seed: int = 0):
        super().__init__(arms, seed=seed)
        self.every, self.rows = every, probe_size(rows)
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

    def reward(self, before: Losses, after: Losses) -> float:
        """The sum of the gains of all arms."""
        return float(self.gained(before, after).nan_to_num(0.0, 0.0, 0.0).sum())

    def gained(self, before: Losses, after: Losses) -> Tensor:
        """(K,) gains; no number where a loss is none."""
        return gains(self.vector(before), self.vector(after), least=self.least)

    def lost(self, before: Losses, after: Losses) -> list[str]:
        """The arms that have a loss that is no number."""
        finite = self.vector(before).isfinite() & self.vector(after).isfinite()
        return [
            arm for arm, is_number in zip(self.arms, finite.tolist(), strict=True) if not is_number
        ]

    def guarded(self, before: Losses, after: Losses) -> Tensor:
        """(K,) gains, 0 for arms whose losses are no numbers; why, and who is starved, goes into
        ``notes``.
        """
        gain, drawn, lost = self.gained(before, after), self.drawn(), self.lost(before, after)
        gain[[arm in lost for arm in self.arms]] = 0
        self.notes = [f"{arm}: the probe loss is not finite; it counts as no gain" for arm in lost]
        better = [arm for arm, n, g in zip(self.arms, drawn, gain) if n and g > 0]
        for arm, n, g in zip(self.arms, drawn, gain):
            if not n and g < 0 and better:
                self.notes.append(
                    f"{arm} is starved: never drawn, it gets worse; better: {', '.join(better)}"
                )
        return gain

    def state_dict(self) -> dict[str, Tensor]:
        steps = torch.tensor(list(self.rollout), dtype=torch.int64)
        arms = torch.tensor(
            [self.arms.index(arm) for arm in self.rollout.values()], dtype=torch.int64
        )
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

    The gain of all arms together is credited to those that were drawn more often than their share,
    whichever improved.

    The published constants are those of rollouts of 100 steps. Where nothing else is said, a run of
    fewer than 6,000 steps has shorter rollouts, and constants scaled to them: the gain of a rollout
    shrinks with its length, and so does ``entropy``, so that the same gain a step leads to the same
    probabilities; ``lr`` grows with its root, so that the noise of a reward moves the logits as
    far. ``published=True`` keeps the old ones.

    Args:
        arms: names of the arms.
        lr: of the plain gradient step on the logits; None: 0.1, scaled.
        entropy: γ, the weight of the entropy term; None: 2, scaled.
        every: k, steps between two probes; None: a sixtieth of the run, at most 100.
        published: k = 100, lr = 0.1, γ = 2, for any length of the run.
        faithful: as published, and probed as the released code does: 128 rows, other ones with
            fresh masks each time (that noise is larger than the change of 100 steps), and no
            dropout for ``cse``. Otherwise the same 64 rows with the same masks. The update is the
            same, but without our guard: a loss that is no number ends the run.
        rows: of a probe; None: 64, or 128 if faithful.
        steps: of the run; None: as published.
        seed: any integer.

    Source: Wu et al. 2022 (Findings of EMNLP, arXiv 2210.10293), section 3.
    """

    def __init__(
        self,
        arms: Sequence[str],
        *,
        lr: float | None = None,
        entropy: float | None = None,
        every: int | None = None,
        published: bool = False,
        faithful: bool = False,
        rows: int | None = None,
        steps: int | None = None,
        seed: int = 0,
    ):
        every = interval(every, None if published or faithful else steps)
        super().__init__(arms, every=every, rows=rows or (128 if faithful else 64), seed=seed)
        scale = 1.0 if published or faithful or steps is None else every / PUBLISHED_EVERY
        lr, entropy = (
            0.1 / scale**0.5 if lr is None else lr,
            2.0 * scale if entropy is None else entropy,
        )
        if not lr > 0 or entropy < 0:
            raise MaskwiseError(
                "sampler mometas", got=f"lr {lr}, entropy {entropy}", allowed="lr > 0, entropy ≥ 0"
            )
        self.lr, self.entropy, self.faithful = lr, entropy, faithful

    def probed_rows(self, *, twins: bool) -> int:
        return self.rows if self.faithful else super().probed_rows(twins=twins)

    def update(self, before: Losses, after: Losses) -> Tensor:
        if self.faithful and (lost := self.lost(before, after)):
            what, do = (
                f"the probe loss of {', '.join(lost)} is not finite",
                "lower the learning rate, or drop faithful",
            )
            raise MaskwiseError("sampler mometas(faithful=True) has no guard", got=what, do=do)
        gain = self.guarded(before, after)
        gradient = meta_gradient(self.logits, self.drawn(), float(gain.sum()), self.entropy)
        self.logits, self.rollout = self.logits - self.lr * gradient, {}
        return self.logits


class MometasPlus(Learned):
    """Ours: credit to each arm, and no more confidence than the rewards allow.

    The reward R of a rollout is regressed on the *shares* in which the arms were drawn (least
    squares with forgetting): the slope of an arm is what a rollout of it alone would gain over the
    average. Of both, their recent mean is taken off before, for losses fall fast at first whatever
    is drawn. The slopes, in standard errors, are shrunk by how much more they explain than chance
    would, z · max(0, 1 − 1/F), so that the sampler is even while it knows nothing and commits as
    evidence grows; forgetting keeps it open to change, and ``floor`` keeps every arm alive, for an
    arm that is never drawn can never be credited. Shares must differ from rollout to rollout to
    tell anything, so an arm is drawn for up to ten steps at once, and rollouts follow a
    golden-ratio sequence, which soon meets the probabilities.

    Five arms without any difference have a largest probability of .26, on average;
    ``benchmarks/sampler_regret.py`` has it by noise and length.

    >>> sampler = MometasPlus(["mlm", "atd"], every=10, seed=0)
    >>> [sampler.draw(step) for step in range(40)][::10]
    ['atd', 'mlm', 'atd', 'mlm']

    Args:
        arms: names of the arms.
        lr: how far the logits go towards their new value at an update, 0 to 1.
        entropy: γ: larger is more even.
        memory: rollouts after which half is forgotten; None: a quarter of the run, 10 at least.
        floor: the share of the draws that is uniform.
        every: steps between two probes; None: a sixtieth of the run, at most 100.
        rows: of a probe.
        steps: of the run.
        seed: any integer.
    """

    least = LEAST

    def __init__(
        self,
        arms: Sequence[str],
        *,
        lr: float = 0.5,
        entropy: float = 0.25,
        memory: float | None = None,
        floor: float = 0.1,
        every: int | None = None,
        rows: int = 64,
        steps: int | None = None,
        seed: int = 0,
    ):
        super().__init__(arms, every=interval(every, steps), rows=rows, seed=seed)
        rollouts = ROLLOUTS if steps is None else steps / self.every
        memory = max(10.0, rollouts / 4) if memory is None else memory
        if not (0 < lr <= 1 and entropy > 0 and memory > 0 and 0 <= floor <= 1):
            got = f"lr {lr}, entropy {entropy}, memory {memory}, floor {floor}"
            raise MaskwiseError(
                "sampler mometas-plus",
                got=got,
                allowed="0 < lr ≤ 1, entropy and memory > 0, 0 ≤ floor ≤ 1",
            )
        self.lr, self.entropy, self.memory, self.floor = lr, entropy, memory, floor
        count = len(self.arms)
        self.logits = torch.zeros(count, dtype=torch.float64)
        # The recent mean of (R, shares); no numbers before the first rollout.
        self.level = torch.full((1 + count,), torch.nan, dtype=torch.float64)
        # Discounted sums over rollouts: of 1, of 1 discounted twice; of (R, shares); of their
        # products.
        self.weight = torch.zeros(2, dtype=torch.float64)
        self.sums = torch.zeros(1 + count, dtype=torch.float64)
        self.products = torch.zeros(1 + count, 1 + count, dtype=torch.float64)

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return (1 - self.floor) * torch.softmax(self.logits, 0) + self.floor / len(self.arms)

    def place(self, step: int) -> float:
        rollout, within = divmod(step, self.every)
        return (fold(self.seed, within // BLOCK, 0xB1) / 2**32 + rollout * GOLDEN) % 1

    def update(self, before: Losses, after: Losses) -> Tensor:
        gain, drawn = self.guarded(before, after), self.drawn()
        if float(drawn.sum()) == 0:
            return self.logits
        self.rollout = {}
        seen = torch.cat([gain.sum()[None], drawn / drawn.sum()])
        # the first rollout is only what others are compared with
        if bool(self.level.isnan().any()):
            self.level = seen
            return self.logits
        new, keep = seen - self.level, 0.5 ** (1 / self.memory)
        self.level = self.level + (1 - 0.5 ** (1 / RECENT)) * new
        self.weight = self.weight * torch.tensor([keep, keep**2], dtype=torch.float64) + 1
        self.sums, self.products = (
            keep * self.sums + new,
            keep * self.products + torch.outer(new, new),
        )
        self.logits = (1 - self.lr) * self.logits + self.lr * self.credit() / self.entropy
        return self.logits

    def credit(self) -> Tensor:
        """(K,): the estimated gain of each arm over the mean of the rollouts, in standard errors,
        shrunk.
        """
        weight, squared = self.weight.tolist()
        count, arms = weight**2 / squared, len(self.arms)  # rollouts, as if all had the same weight
        mean = self.sums / weight
        moments = self.products / weight - torch.outer(mean, mean)
        deviation = float(moments[0, 0].clamp(min=0).sqrt())
        if deviation < 1e-9 or count <= arms:
            return torch.zeros(arms, dtype=torch.float64)
        # Least squares of the standardised reward on the centred shares; the ridge is one rollout's
        # worth of knowing nothing, and holds what the shares (which sum to 1) leave undetermined.
        cross = moments[0, 1:] / deviation
        inverse = torch.linalg.inv(
            moments[1:, 1:] + torch.eye(arms, dtype=torch.float64) / (weight * arms)
        )
        slope = inverse @ cross
        explained = min(max(float(cross @ slope), 0.0), 0.999)
        f = explained / (1 - explained) * (count - arms) / max(1, arms - 1)
        z = slope / (inverse.diagonal() / count).sqrt()
        return (z - z.mean()) * max(0.0, 1 - 1 / f if f else 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), **{name: getattr(self, name) for name in KEPT}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        for name in KEPT:
            setattr(self, name, state[name])
