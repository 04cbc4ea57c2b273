"""MOMETAS: learn which arm to train on from how much the losses of *all* arms fall.

The steps between two probes are a rollout. Its reward is the sum of the relative gains of all arms
on the probe data; a policy gradient on one logit per arm, with an entropy term, makes arms that
were drawn in good rollouts more likely. The cost is that of the probes (``training.arms``).

``Mometas`` has the published update (Wu et al. 2022). With its constants it stays near uniform: the
fixed point is softmax(q / entropy), q the total relative gain of a rollout of one arm alone, and
while every loss falls, the reward without a baseline drifts at random. ``MometasPlus`` is ours and
is always reported by that name: it estimates *which arm* the gain came from
(``benchmarks/sampler_regret.py`` has the figures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.samplers.base import PUBLISHED_EVERY, ROLLOUTS, Losses, Sampler, interval, probe_size

TINY = 1e-6
"""Keeps the published reward finite."""
STILL = 1e-3
"""Changes of a loss up to this count as none."""

LEAST = 0.05
"""Nats: MometasPlus divides gains by this at least. Below it the noise of a loss is as large as the
loss, and from .02 to .04 and back again would count as −1 and +.5."""

BLOCK = 10
"""Steps that MometasPlus draws an arm for at most."""
RECENT = 5
"""Rollouts after which half of MometasPlus's mean is new."""
GOLDEN = (5**0.5 - 1) / 2


def gains(before: Tensor, after: Tensor, *, least: float = 0.0) -> Tensor:
    """(K,) relative gains (a − b) / a, 0 for changes up to .001, at least −1; NaN where a loss is.

    Args:
        least: lower bound of the divisor, in nats.

    Source: Wu et al. 2022, section 3.3, as in their code.
    """
    change = before - after
    gain = (change + TINY) / (before.clamp(min=least) + TINY) * (change.abs() > STILL)
    return gain.clamp(min=-1)


def meta_gradient(logits: Tensor, drawn: Tensor, reward: float, entropy: float) -> Tensor:
    """(K,) gradient of (Σ over the rollout of −R·log p[arm]) − γ·H(p), p = softmax(logits).

    Args:
        logits: (K,).
        drawn: (K,) how often each arm was drawn.
        reward: R.
        entropy: γ.
    """
    log_p = torch.log_softmax(logits, 0)
    p = log_p.exp()
    # ∂H/∂logit_i = −p_i (log p_i + H)
    return -reward * (drawn - drawn.sum() * p) + entropy * p * (log_p - (p * log_p).sum())


class Learned(Sampler):
    """Base of samplers that learn a logit per arm, guarded against infinite losses."""

    least = 0.0
    """See ``gains``."""
    kept: tuple[str, ...] = ()
    """Further tensors of the state."""

    def __init__(self, arms: Sequence[str], *, every: int, rows: int, seed: int = 0):
        super().__init__(arms, seed=seed)
        self.every = every
        self.rows = probe_size(rows)
        self.logits = torch.ones_like(self.share)
        # Step to arm since the last update; a step that is drawn twice counts once.
        self.rollout: dict[int, str] = {}

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return torch.softmax(self.logits, 0)

    def draw(self, step: int, total_steps: int | None = None) -> str:
        """The arm of a step, which is added to the rollout."""
        return self.rollout.setdefault(step, super().draw(step, total_steps))

    def drawn(self) -> Tensor:
        """(K,) float64: how often each arm was drawn in the rollout."""
        names = list(self.rollout.values())
        return torch.tensor([names.count(arm) for arm in self.arms], dtype=torch.float64)

    def reward(self, before: Losses, after: Losses) -> float:
        """The sum of the gains of all arms."""
        return float(self.gained(before, after).nan_to_num(0.0, 0.0, 0.0).sum())

    def gained(self, before: Losses, after: Losses) -> Tensor:
        """(K,) gains; NaN or infinite where a loss is."""
        return gains(self.vector(before), self.vector(after), least=self.least)

    def lost(self, before: Losses, after: Losses) -> list[str]:
        """The arms whose loss before or after is not finite."""
        finite = self.vector(before).isfinite() & self.vector(after).isfinite()
        return [arm for arm, known in zip(self.arms, finite) if not known]

    def guarded(self, before: Losses, after: Losses) -> Tensor:
        """(K,) gains, 0 for arms without a finite loss; sets ``notes``."""
        gain = self.gained(before, after)
        lost = self.lost(before, after)
        # Without the guard one infinite loss would ruin all logits.
        gain[[arm in lost for arm in self.arms]] = 0
        self.notes = [f"{arm}: the probe loss is not finite; it counts as no gain" for arm in lost]
        counts = list(zip(self.arms, self.drawn(), gain))
        better = ", ".join(arm for arm, drawn, g in counts if drawn and g > 0)
        for arm, drawn, g in counts:
            if better and g < 0 and not drawn:
                self.notes.append(f"{arm} is starved: never drawn, it gets worse; better: {better}")
        return gain

    def state_dict(self) -> dict[str, Tensor]:
        draws = [(step, self.arms.index(arm)) for step, arm in self.rollout.items()]
        rollout = torch.tensor(draws, dtype=torch.int64).view(-1, 2).T
        further = {name: getattr(self, name) for name in self.kept}
        return {"logits": self.logits, "rollout": rollout.contiguous(), **further}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.rollout = {step: self.arms[arm] for step, arm in state["rollout"].T.tolist()}


class Mometas(Learned):
    """The published sampler.

    >>> sampler = Mometas(["mlm", "atd"], lr=0.1, entropy=2.0, seed=0)
    >>> drawn = [sampler.draw(step) for step in range(100)]  # train on each; probe before, after
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
        fixed = published or faithful or steps is None
        every = interval(every, None if fixed else steps)
        if rows is None:
            rows = 128 if faithful else 64
        super().__init__(arms, every=every, rows=rows, seed=seed)
        scale = 1.0 if fixed else every / PUBLISHED_EVERY
        self.lr = 0.1 / scale**0.5 if lr is None else lr
        self.entropy = 2.0 * scale if entropy is None else entropy
        self.faithful = faithful
        if self.lr <= 0 or self.entropy < 0:
            got = f"lr {lr}, entropy {entropy}"
            raise MaskwiseError("sampler mometas", got=got, allowed="lr > 0, entropy ≥ 0")

    def probed_rows(self, *, twins: bool) -> int:
        return self.rows if self.faithful else super().probed_rows(twins=twins)

    def update(self, before: Losses, after: Losses) -> Tensor:
        lost = self.lost(before, after)
        if self.faithful and lost:
            got = f"the probe loss of {', '.join(lost)} is not finite"
            do = "lower the learning rate, or drop faithful"
            raise MaskwiseError("sampler mometas(faithful=True) has no guard", got=got, do=do)
        gain = self.guarded(before, after)
        gradient = meta_gradient(self.logits, self.drawn(), float(gain.sum()), self.entropy)
        self.logits = self.logits - self.lr * gradient
        self.rollout = {}
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
    kept = ("level", "weight", "sums", "products")

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
        if memory is None:
            rollouts = ROLLOUTS if steps is None else steps / self.every
            memory = max(10.0, rollouts / 4)
        if not (0 < lr <= 1 and entropy > 0 and memory > 0 and 0 <= floor <= 1):
            got = f"lr {lr}, entropy {entropy}, memory {memory}, floor {floor}"
            allowed = "0 < lr ≤ 1, entropy and memory > 0, 0 ≤ floor ≤ 1"
            raise MaskwiseError("sampler mometas-plus", got=got, allowed=allowed)
        self.lr = lr
        self.entropy = entropy
        self.memory = memory
        self.floor = floor
        self.logits = torch.zeros_like(self.share)
        # The recent mean of (R, shares); NaN before the first rollout.
        self.level = self.logits.new_full((1 + len(arms),), torch.nan)
        # Discounted sums over rollouts: of 1 and of 1 discounted twice; of (R, shares); of their
        # products.
        self.weight = self.logits.new_zeros(2)
        self.sums = torch.zeros_like(self.level)
        self.products = torch.outer(self.sums, self.sums)

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return (1 - self.floor) * torch.softmax(self.logits, 0) + self.floor / len(self.arms)

    def place(self, step: int) -> float:
        rollout, within = divmod(step, self.every)
        return (fold(self.seed, within // BLOCK, 0xB1) / 2**32 + rollout * GOLDEN) % 1

    def update(self, before: Losses, after: Losses) -> Tensor:
        gain = self.guarded(before, after)
        drawn = self.drawn()
        if not self.rollout:
            return self.logits
        self.rollout = {}
        # Shares rather than counts, so that the last, shorter rollout compares.
        seen = torch.cat([gain.sum()[None], drawn / drawn.sum()])
        # The first rollout is only what others are compared with.
        if self.level.isnan().any():
            self.level = seen
            return self.logits
        # Losses fall fast at first whatever is drawn; the recent mean removes that.
        new = seen - self.level
        keep = 0.5 ** (1 / self.memory)
        self.level = self.level + (1 - 0.5 ** (1 / RECENT)) * new
        self.weight = self.weight * torch.tensor([keep, keep**2], dtype=torch.float64) + 1
        self.sums = keep * self.sums + new
        self.products = keep * self.products + torch.outer(new, new)
        self.logits = (1 - self.lr) * self.logits + self.lr * self.credit() / self.entropy
        return self.logits

    def credit(self) -> Tensor:
        """(K,): the estimated gain of each arm over the mean rollout, in shrunk standard errors."""
        weight, squared = self.weight.tolist()
        count = weight**2 / squared  # rollouts, as if all had the same weight
        arms = len(self.arms)
        mean = self.sums / weight
        moments = self.products / weight - torch.outer(mean, mean)
        deviation = float(moments[0, 0].clamp(min=0).sqrt())
        if deviation < 1e-9 or count <= arms:
            return torch.zeros_like(self.logits)
        # Least squares of the standardised reward on the centred shares. The ridge is worth one
        # uninformative rollout, and fixes what shares that sum to 1 leave undetermined.
        ridge = torch.eye(arms, dtype=torch.float64) / (weight * arms)
        cross = moments[0, 1:] / deviation
        inverse = torch.linalg.inv(moments[1:, 1:] + ridge)
        slope = inverse @ cross
        explained = min(max(float(cross @ slope), 0.0), 0.999)
        # The F statistic of the regression: explained over unexplained variance.
        f = explained / (1 - explained) * (count - arms) / max(1, arms - 1)
        z = slope / (inverse.diagonal() / count).sqrt()
        return (z - z.mean()) * (max(0.0, 1 - 1 / f) if f else 0.0)
