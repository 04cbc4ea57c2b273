"""MOMETAS: learn which objective to train on, from the fall of the losses of *all* objectives.

An objective has its own masking settings. Every ``every`` steps, a *probe* measures the
losses of all objectives on held-out rows. The steps between two probes are a *rollout*. The *gain*
of an objective is the relative fall of its loss during the rollout, and the *reward* of the rollout
is the sum of all gains. A policy gradient on one logit per objective, with an entropy term, raises
the probabilities of objectives that were drawn in good rollouts. Only the probes cost time
(``training.several``).

``Mometas`` has the published update (Wu et al. 2022). With the published constants, probabilities
stay near uniform: the fixed point is softmax(q / entropy), where q[objective] is the sum of all
gains in a rollout that draws only this objective. The reward has no baseline. As long as every loss
falls, every reward is positive, and the probabilities drift at random. ``MometasPlus`` is a variant
from this library, which estimates *which objective* caused the gain
(``benchmarks/sampler_regret.py`` compares the two).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.errors import MaskwiseError
from maskwise.masking.draws import fold
from maskwise.samplers.base import PUBLISHED_EVERY, ROLLOUTS, Losses, Sampler, interval, probe_size

TINY = 1e-6
"""A number that is added to the divisor of a gain, so that the gain is finite."""
STILL = 1e-3
"""If a loss changes by at most this number of nats, its gain is 0."""

LEAST = 0.05
"""The smallest divisor of a gain in ``MometasPlus``, in nats. The noise of a smaller loss is as
large as the loss. For example, if a loss rises from .02 to .04 and falls back, the gains without
this limit would be −1 and +.5."""

BLOCK = 10
"""The largest number of consecutive steps for which ``MometasPlus`` draws the same objective."""
RECENT = 5
"""The half-life of the running mean of rewards in ``MometasPlus``, in rollouts."""
GOLDEN = (5**0.5 - 1) / 2
"""The golden ratio. The first n multiples of it, modulo 1, fill (0, 1) evenly for any n."""


def gains(before: Tensor, after: Tensor, *, least: float = 0.0) -> Tensor:
    """Return the relative gain (a − b) / a of each objective, (K,).

    Gains below −1 are set to −1. If a loss changes by at most ``STILL``, its gain is 0.

    Args:
        before: (K,) the losses a of all objectives before the rollout. If a loss is NaN, the gain
            is NaN.
        after: (K,) the losses b of all objectives after the rollout.
        least: the smallest divisor, in nats.

    Source: Wu et al. 2022, section 3.3, and their code.
    """
    change = before - after
    divisor = before.clamp(min=least) + TINY
    moved = change.abs() > STILL
    gain = (change + TINY) / divisor * moved
    return gain.clamp(min=-1)


def reinforce_gradient(logits: Tensor, drawn: Tensor, reward: float, entropy: float) -> Tensor:
    """Return the gradient (K,) of −R·Σ log p[objective] − γ·H(p), where p = softmax(logits).

    The sum runs over the draws of the rollout, and H is the entropy.

    Args:
        logits: (K,) the logit of each objective.
        drawn: (K,) the number of draws of each objective.
        reward: R, the reward of the rollout.
        entropy: γ, the weight of the entropy term.
    """
    log_p = torch.log_softmax(logits, 0)
    p = log_p.exp()
    expected = drawn.sum() * p
    # ∂H/∂logit_i = −p_i (log p_i + H), and the sum of p·log p is −H.
    return -reward * (drawn - expected) + entropy * p * (log_p - (p * log_p).sum())


class LearningSampler(Sampler):
    """Base class of samplers that learn one logit per objective.

    A loss that is not finite has a gain of 0.
    """

    least = 0.0
    """The smallest divisor of gains, in nats."""
    kept: tuple[str, ...] = ()
    """The names of further attributes to save in checkpoints."""

    def __init__(self, objectives: Sequence[str], *, every: int, rows: int, seed: int = 0):
        super().__init__(objectives, seed=seed)
        self.every = every
        self.rows = probe_size(rows)
        self.logits = torch.ones_like(self.share)
        # The objective of each step since the last update. This is a dict, because ``draw`` may be
        # called twice for the same step.
        self.rollout: dict[int, str] = {}

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return torch.softmax(self.logits, 0)

    def draw(self, step: int, total_steps: int | None = None) -> str:
        """Draw the objective for a step, and add the objective to the rollout."""
        objective = super().draw(step, total_steps)
        return self.rollout.setdefault(int(step), objective)

    def drawn(self) -> Tensor:
        """Return the number of draws of each objective in the rollout, (K,) float64."""
        names = list(self.rollout.values())
        return torch.tensor([*map(names.count, self.objectives)], dtype=torch.float64)

    def reward(self, before: Losses, after: Losses) -> float:
        """Return the sum of all objectives' gains."""
        return float(self.gained(before, after)[0].sum())

    def gained(self, before: Losses, after: Losses) -> tuple[Tensor, list[str]]:
        """Return the gains (K,) and the names of diverged objectives.

        An objective has diverged if its loss is not finite before or after the rollout. Its gain is
        0.
        """
        a = self.vector(before)
        b = self.vector(after)
        gain = gains(a, b, least=self.least)
        finite = a.isfinite() & b.isfinite()
        # A single infinite loss would otherwise make all logits NaN.
        return gain.where(finite, 0.0), self.named(~finite)

    def guarded(self, before: Losses, after: Losses) -> Tensor:
        """Return the gains (K,), and set ``notes`` to warnings about diverged objectives."""
        gain, diverged = self.gained(before, after)
        explained = "the probe loss is not finite; its gain is set to 0"
        self.notes = [f"{objective}: {explained}" for objective in diverged]
        return gain

    def state_dict(self) -> TensorDict:
        steps = list(self.rollout)
        objectives = [*map(self.objectives.index, self.rollout.values())]
        state = {
            "logits": self.logits,
            "rollout": torch.tensor([steps, objectives], dtype=torch.int64),
        }
        for name in self.kept:
            state[name] = getattr(self, name)
        return state

    def load_state_dict(self, state: Tensors) -> None:
        super().load_state_dict(state)
        self.rollout = {}
        for step, objective in state["rollout"].T.tolist():
            self.rollout[step] = self.objectives[objective]


class Mometas(LearningSampler):
    """The published MOMETAS sampler: it learns which objectives lower the losses of all.

    >>> sampler = Mometas(["mlm", "atd"], lr=0.1, entropy=2.0, seed=0)
    >>> drawn = [sampler.draw(step) for step in range(100)]  # train on each; probe before, after
    >>> logits = sampler.update(before={"mlm": 6.0, "atd": 0.7}, after={"mlm": 5.4, "atd": 0.7})
    >>> drawn.count("atd"), [round(p, 2) for p in sampler.probabilities().tolist()]
    (55, [0.48, 0.52])

    If the reward is positive, the logits of objectives that were drawn more often than expected
    rise, whichever losses fell.

    The published constants suit rollouts of 100 steps. By default, a run of fewer than 6,000 steps
    has shorter rollouts, and the constants are scaled with s = every / 100. A shorter rollout has
    smaller gains. Therefore ``entropy`` is multiplied by s, so that the same gain per step leads to
    the same probabilities. ``lr`` is divided by √s, so that the noise of a reward changes the
    logits as much as in long rollouts. ``published=True`` uses the published constants.

    Args:
        objectives: the names of the objectives.
        lr: the step size of gradient descent on the logits; if None, 0.1, scaled.
        entropy: γ, the weight of the entropy term; if None, 2, scaled.
        every: k, the number of steps between two probes; if None, a sixtieth of the run, at most
            100.
        published: whether to use k = 100, lr = 0.1 and γ = 2 for any length of the run.
        faithful: whether to use the published constants and also the probes of the released code.
            There, each probe has 128 new rows with new masks, and ``cse`` has no dropout. (The
            noise of new rows is larger than the change of the loss in 100 steps.) By default, all
            probes read the same 64 rows with the same masks. If ``faithful``, a non-finite loss
            ends the run.
        rows: the number of rows in the probe of each objective; if None, 64, or 128 if
            ``faithful``.
        steps: the number of steps in the run; if None, constants are not scaled.
        seed: any integer.

    Raises:
        MaskwiseError: a setting is out of range.

    Source: Wu et al. 2022 (Findings of EMNLP, arXiv 2210.10293), section 3.
    """

    def __init__(
        self,
        objectives: Sequence[str],
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
        scaled = steps is not None and not (published or faithful)
        every = interval(every, steps if scaled else None)
        if rows is None:
            rows = 128 if faithful else 64
        super().__init__(
            objectives,
            every=every,
            rows=rows,
            seed=seed,
        )
        scale = 1.0
        if scaled:
            scale = every / PUBLISHED_EVERY
        if lr is None:
            lr = 0.1 / scale**0.5
        if entropy is None:
            entropy = 2.0 * scale
        self.lr = lr
        self.entropy = entropy
        self.faithful = faithful
        if lr <= 0 or entropy < 0:
            raise MaskwiseError(
                "sampler mometas: lr or entropy is out of range",
                got=f"lr {lr}, entropy {entropy}",
                allowed="lr > 0, entropy ≥ 0",
            )

    def probed_rows(self, *, twins: bool) -> int:
        # The released code reads each row only once.
        if self.faithful:
            return self.rows
        return super().probed_rows(twins=twins)

    def update(self, before: Losses, after: Losses) -> Tensor:
        _, diverged = self.gained(before, after)
        if self.faithful and diverged:
            raise MaskwiseError(
                "sampler mometas(faithful=True) cannot learn from a loss that is not finite",
                got=f"the probe loss of {', '.join(diverged)} is not finite",
                do="lower the learning rate, or remove faithful",
            )
        reward = float(self.guarded(before, after).sum())
        gradient = reinforce_gradient(self.logits, self.drawn(), reward, self.entropy)
        self.logits = self.logits - self.lr * gradient
        self.rollout = {}
        return self.logits


class MometasPlus(LearningSampler):
    """A variant of MOMETAS that estimates how much each objective lowers the losses of all.

    The reward R of a rollout is regressed on the *shares* of the objectives, which are the numbers
    of draws divided by the number of steps. The regression is by least squares, and old rollouts
    have less weight. The slope of an objective estimates how much larger the reward is if a rollout
    draws only this objective, compared with the average rollout. Early in a run, all losses fall
    fast, whichever objectives are drawn. Therefore a running mean is subtracted from rewards and
    shares. The slopes, divided by the standard errors that they would have if no objective were
    better than the others, are z. They are shrunk to z · max(0, 1 − 1/F), where F is the F
    statistic of the regression. Without evidence, the sampler therefore stays uniform, and as
    evidence grows, it prefers objectives.

    If an objective were never drawn, its gain could not be estimated. Therefore a share ``floor``
    of the draws is uniform. The regression needs shares that differ between rollouts. Therefore the
    sampler draws the same objective for up to ten consecutive steps. The random numbers of the
    rollouts are a golden-ratio sequence, with which the frequencies of objectives soon match their
    probabilities.

    If five objectives are equally good, the largest of their probabilities is .26 on average
    (``benchmarks/sampler_regret.py`` lists this number for each noise level and run length).

    >>> sampler = MometasPlus(["mlm", "atd"], every=10, seed=0)
    >>> [sampler.draw(step) for step in range(40)][::10]
    ['atd', 'mlm', 'atd', 'mlm']

    Args:
        objectives: the names of the objectives.
        lr: above 0 and at most 1. An update sets the logits to lr × (new estimate) + (1 − lr) ×
            (old logits).
        entropy: γ, the number by which the estimate is divided. With a larger γ, probabilities are
            more equal.
        memory: after this number of rollouts, the weight of a rollout in the regression is halved;
            if None, a quarter of the rollouts of the run, at least 10.
        floor: the share of draws that are uniform.
        every: the number of steps between two probes; if None, a sixtieth of the run, at most 100.
        rows: the number of rows in the probe of each objective.
        steps: the number of steps in the run.
        seed: any integer.

    Raises:
        MaskwiseError: a setting is out of range.
    """

    least = LEAST
    kept = ("level", "weight", "sums", "products")

    def __init__(
        self,
        objectives: Sequence[str],
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
        super().__init__(
            objectives,
            every=interval(every, steps),
            rows=rows,
            seed=seed,
        )
        if memory is None:
            rollouts = ROLLOUTS if steps is None else steps / self.every
            memory = max(10.0, rollouts / 4)
        if not (0 < lr <= 1 and entropy > 0 and memory > 0 and 0 <= floor <= 1):
            raise MaskwiseError(
                "sampler mometas-plus: a setting is out of range",
                got=f"lr {lr}, entropy {entropy}, memory {memory}, floor {floor}",
                allowed="0 < lr ≤ 1, entropy and memory > 0, 0 ≤ floor ≤ 1",
            )
        self.lr = lr
        self.entropy = entropy
        self.memory = memory
        self.floor = floor
        self.logits = torch.zeros_like(self.share)
        # The running mean of the vector (R, shares); NaN before the first rollout.
        self.level = self.logits.new_full((1 + len(objectives),), torch.nan)
        # Weighted sums over rollouts, in which older rollouts have less weight. ``weight``: the sum
        # of the weights and the sum of their squares. ``sums``: the sum of (R, shares).
        # ``products``: the sum of the products of each pair of these numbers.
        self.weight = self.logits.new_zeros(2)
        self.sums = torch.zeros_like(self.level)
        self.products = torch.outer(self.sums, self.sums)

    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        return (1 - self.floor) * torch.softmax(self.logits, 0) + self.floor / len(self.objectives)

    def place(self, step: int) -> float:
        rollout, within = divmod(step, self.every)
        of_block = fold(self.seed, within // BLOCK, 0xB1) / 2**32
        return (of_block + rollout * GOLDEN) % 1

    def update(self, before: Losses, after: Losses) -> Tensor:
        gain = self.guarded(before, after)
        drawn = self.drawn()
        if not self.rollout:
            return self.logits
        self.rollout = {}
        # Use shares, not numbers of draws, because the last rollout may be shorter.
        seen = torch.cat([gain.sum()[None], drawn / drawn.sum()])
        # The first rollout only initialises the running mean.
        if self.level.isnan().any():
            self.level = seen
            return self.logits
        # Early in a run, all losses fall fast, whichever objectives are drawn, so subtract the
        # mean.
        new = seen - self.level
        keep = 0.5 ** (1 / self.memory)
        self.level = self.level + (1 - 0.5 ** (1 / RECENT)) * new
        decay = torch.tensor([keep, keep**2], dtype=torch.float64)
        self.weight = self.weight * decay + 1
        self.sums = keep * self.sums + new
        self.products = keep * self.products + torch.outer(new, new)
        target = self.credit() / self.entropy
        self.logits = (1 - self.lr) * self.logits + self.lr * target
        return self.logits

    def credit(self) -> Tensor:
        """Return the shrunk z of each objective, (K,), which the docstring of the class defines."""
        weight, squared = self.weight.tolist()
        # Kish's effective sample size: this number of rollouts with equal weights would have as
        # much information.
        count = weight**2 / squared
        of_all = len(self.objectives)
        mean = self.sums / weight
        moments = self.products / weight - torch.outer(mean, mean)
        deviation = float(moments[0, 0].clamp(min=0).sqrt())
        if deviation < 1e-9 or count <= of_all:
            return torch.zeros_like(self.logits)
        # Least squares of the standardised reward on the centred shares. Shares sum to 1, so their
        # covariance matrix is singular. Therefore add a ridge with the weight of one rollout.
        ridge = torch.eye(of_all, dtype=torch.float64) / (weight * of_all)
        cross = moments[0, 1:] / deviation
        inverse = torch.linalg.inv(moments[1:, 1:] + ridge)
        slope = inverse @ cross
        explained = min(max(float(cross @ slope), 0.0), 0.999)
        # The regression's F statistic: explained variance divided by unexplained variance.
        freedom = (count - of_all) / max(1, of_all - 1)
        f = explained / (1 - explained) * freedom
        if f <= 1:
            return torch.zeros_like(self.logits)
        z = slope / (inverse.diagonal() / count).sqrt()
        return (z - z.mean()) * (1 - 1 / f)
