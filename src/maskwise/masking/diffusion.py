"""Masking for masked diffusion: a rate per row, and a loss weight for every masked token.

    noising = Noising(tokenizer, ratio="uniform(0, 1)", seed=0)
    batch = noising(rows, epoch=0)
    bound = (losses · batch.loss_weight).sum() / batch.counted    # an estimate, nats/eligible token

A text is masked in one of two ways, each with its own exact weights:

- budget ``exact``: draw the number of masked tokens, ⌈rate · L⌉. The loss varies less, because the
  number follows from the rate. For single tokens of equal weight.
- budget ``bernoulli``: mask each unit independently, as published. For any units and weights.

**Weights say which units go first.** Unit i is reached by time τ with probability r_i = 1 −
exp(−τ·w_i), and τ is such that the rate t of the row is the expected share of its masked tokens. A
masked token of the unit weighs (dr_i/dt) / r_i over the density of t, which for equal weights is 1
/ (t · p(t)). So the loss is that of an exact process for any weights; it bounds the likelihood
where they do not depend on the text that they hide (``Policy.reads_text``).

**Rates and their weights.** A text of L tokens has the bound
−log p(text) ≤ ∫₀¹ E[Σ_masked −log p(token | rest)] / t dt, where every token is masked
independently with probability t. A rate drawn with density p(t) weighs its row by 1 / (t · p(t)),
so that all distributions estimate the same bound. A number n of masked tokens, drawn with
probability P(n), weighs it by 1 / (n · P(n)).

Any schedule with a ratio per row will do. It is read as a table of quantiles, between which rates
are drawn evenly, so the density is known exactly. Three kinds:

- those that cover all of (0, 1), such as ``uniform(0, 1)``, are used as they are;
- those that (nearly) leave out a part (``uniform(0.3, 0.8)``, ``bell``) would ignore that part: a
  share ``REST`` of the rates is drawn from ``uniform(0, 1)`` instead, so that no weight exceeds
  1 / (REST · t);
- a few fixed rates (``constant``, ``mixture``) estimate no bound. A row weighs 1/t: the mean loss
  of its masked tokens.

Sources: Sahoo et al. 2024 (MDLM, arXiv 2406.07524), equation 10; Nie et al. 2025 (LLaDA, arXiv
2502.09992), equations 3 and 6; numbers of tokens: Ou et al. 2024 (arXiv 2406.03736).

Cost: for single tokens that of the policy ``token``; with weights some five passes over the units
to find τ.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose, content_ids, fold, unit_interval
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.corruptions.base import mask_only
from maskwise.masking.masker import Masker
from maskwise.masking.policies import Moment, Policy, UnitKind
from maskwise.masking.schedules import Schedule, Spec, schedule
from maskwise.masking.select import Selection, require_known, up_to
from maskwise.masking.units import Units
from maskwise.masking.visits import visit_of
from maskwise.segments import rank_within

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 80  # of Newton's method to find τ, at most; about five are needed
EMPTY = 2.0**-43  # the least share left of a row, so that a rate of 1 has a τ
LATE = 2.0**-20  # weight of units that only fill up, as a share of the least other weight
REST = 0.1
"""The share of rates drawn uniformly from (0, 1), if a distribution does not cover it."""
CELLS = 4096  # of the table of quantiles
# Steps of low-discrepancy sequences from row to row, and from piece to piece in a row.
GOLDEN, SILVER = 0.6180339887498949, 0.41421356237309515
_LEAST = 2.0**-40


class Rates:
    """The rates of one step.

    Args:
        schedule: gives each row a ratio.
        step, total_steps: where the schedule stands.
        twice: whether each row is seen twice, with the rates t and 1 − t (``visits: complement``).

    Attributes:
        complete: whether the weights make the whole bound; False for fixed rates.

    Raises:
        MaskwiseError: a fixed rate of 0, at which nothing is ever masked.

    >>> rates = Rates(schedule("uniform(0, 1)"))
    >>> rates.weight(np.array([0.25, 0.5])).round(9).tolist()
    [4.0, 2.0]
    """

    def __init__(
        self,
        schedule: Schedule,
        step: int = 0,
        total_steps: int | None = None,
        *,
        twice: bool = False,
    ):
        self.fixed = lambda u_P: schedule.rows(u_P, step, total_steps)
        self.twice = twice
        grid = np.sort(self.fixed(np.arange(CELLS + 1) / CELLS))
        rises = np.diff(grid) > 1e-12
        self.complete = bool(rises.sum() > CELLS // 50)
        if not self.complete and not grid.min() > 0:
            what = f"ratio {schedule}: rate 0 masks nothing and has no weight"
            raise MaskwiseError(what, got=0, allowed="rates above 0", do="take uniform(0, 1)")
        # Rates of many rows, at the ends of a clipped range, say nothing of the bound.
        if self.complete:
            grid = np.append(grid[:-1][rises], grid[1:][rises][-1])
        self.grid = grid
        self.edges = np.linspace(0, 1, len(grid))

    @cached_property
    def rest(self) -> float:
        """The share of rates drawn uniformly from (0, 1)."""
        if not self.complete:
            return 0.0
        covers = self.grid[0] <= 1e-9 and self.grid[-1] >= 1 - 1e-9
        thinnest = 1 / (len(self.grid) - 1) / np.diff(self.grid).max()
        return 0.0 if covers and thinnest > REST else REST

    def draw(self, u_P: Array) -> Array:
        """(P,) float64 rates in (0, 1], from uniform draws in (0, 1)."""
        if not self.complete:
            return self.fixed(u_P)
        rest = self.rest
        rate_P = np.interp((u_P - rest) / (1 - rest), self.edges, self.grid)
        if rest:
            rate_P = np.where(u_P < rest, u_P / rest, rate_P)
        return rate_P.clip(_LEAST, 1)

    def density(self, rate_P: Array) -> Array:
        """(P,) float64: p(t), with the rates drawn uniformly."""
        assert self.complete, "fixed rates have no density"
        width = np.diff(self.grid)
        cell = self.grid.searchsorted(rate_P, side="right") - 1
        inner = 1 / (len(width) * width.take(cell.clip(0, len(width) - 1)))
        inside = (rate_P >= self.grid[0]) & (rate_P <= self.grid[-1])
        return (1 - self.rest) * np.where(inside, inner, 0.0) + self.rest

    def weight(self, rate_P: Array) -> Array:
        """(P,) float64: the loss weight of tokens masked independently at these rates."""
        rate_P = rate_P.clip(_LEAST, 1)
        if not self.complete:
            return 1 / rate_P
        density = self.density(rate_P)
        if self.twice:
            density = (density + self.density(1 - rate_P)) / 2
        return 1 / (rate_P * density)

    def number(self, rate_P: Array, tokens_P: Array) -> Array:
        """(P,) int64: how many of L tokens to mask, ⌈t·L⌉, at least one of any."""
        number_P = np.ceil(rate_P * tokens_P - 1e-9).astype(np.int64)
        return number_P.clip(np.minimum(tokens_P, 1), tokens_P)

    def number_weight(self, number_P: Array, tokens_P: Array) -> Array:
        """(P,) float64: the loss weight of tokens where this many of L are masked."""
        number_P = np.maximum(number_P, 1)
        if not self.complete:
            return tokens_P / number_P
        share = self._probability(number_P, tokens_P)
        if self.twice:
            other = tokens_P - number_P
            share_of_other = self._probability(np.maximum(other, 1), tokens_P)
            share = (share + np.where(other > 0, share_of_other, 0.0)) / 2
        return 1 / (number_P * share)

    def _probability(self, number_P: Array, tokens_P: Array) -> Array:
        """(P,) float64: P(n) of the numbers of masked tokens."""
        length = np.maximum(tokens_P, 1)
        return self._below(number_P / length) - self._below((number_P - 1) / length)

    def _below(self, rate_P: Array) -> Array:
        """(P,) float64: the share of lower rates."""
        inner = np.interp(rate_P, self.grid, self.edges)
        return (1 - self.rest) * inner + self.rest * rate_P.clip(0, 1)


def spread(place_P: Array, within_P: Array, *, seed: int, epoch: int | None) -> Array:
    """(P,) float64 in (0, 1): draws of low discrepancy, a function of (seed, epoch, place).

    Every stretch of places covers (0, 1) much more evenly than by chance, on any number of ranks;
    each draw alone is uniform over seeds and epochs.

    Args:
        place_P: the place of each piece's row in the order of the epoch.
        within_P: the number of the piece in its row.
        epoch: the pass over the data; None where places continue to count.
    """
    first = (fold(seed, 0x10D, -1 if epoch is None else epoch) + 0.5) / 2.0**32
    return (first + place_P * GOLDEN + within_P * SILVER) % 1.0 * (1 - 2.0**-40) + 2.0**-41


class Noising(Masker):
    """A masker for masked diffusion; see this module.

    Args:
        tokenizer, policy, seed, keep: as for ``Masker``.
        ratio: a distribution of rates, such as ``uniform(0, 1)`` or ``bell``; a fixed ratio
            estimates no bound.
        budget: ``exact`` or ``bernoulli``.
        fill: ``none``, or ``random``: units of weight 0 are masked after all others.
        visits: ``random``, or ``complement``: a row's second visit masks what its first left.
        more: further arguments of ``Masker``, which masked diffusion leaves at their defaults.

    Raises:
        MaskwiseError: anything that would make the weights wrong.

    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> batch = Noising(tokenizer, seed=1)(encode(tokenizer, ["the cat sat on the mat"]), epoch=0)
    >>> weights = batch.loss_weight[batch.labels >= 0] * batch.targets
    >>> batch.counted, weights.round(decimals=6).unique().tolist()
    (6, [6.0])
    """

    places = True

    def __init__(self, tokenizer: Any, *, ratio: Any = "uniform(0, 1)", **more: Any):
        usual = {"budget": "exact", "corruption": "mask-only", "min_targets": 0}
        super().__init__(tokenizer, ratio=ratio, **{**usual, **more})
        self._rates: dict[tuple[int, int | None], Rates] = {}

    def _check(self) -> None:
        check(self.policy, budget=self.budget, fill=self.fill, visits=self.visits)
        if self.corruption != mask_only() or self.predict.varies or self.predict(0) < 1:
            got = f"corruption {self.corruption}, predict {self.predict}"
            do = "take corruption mask-only and predict 1.0"
            raise MaskwiseError("masked diffusion masks every selected token", got=got, do=do)

    def rates(self, step: int = 0, total_steps: int | None = None) -> Rates:
        """The rates of a step, with their weights."""
        when = (step, total_steps) if self.ratio.varies else (0, None)
        if when not in self._rates:
            self._rates = {when: Rates(self.ratio, *when, twice=self.visits == "complement")}
        return self._rates[when]

    def choose(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Selection:
        rates, second = self.rates(moment.step, moment.total_steps), False
        if self.visits == "complement":
            pair, second = visit_of(moment.epoch, self.visits)
            keys = Keys(batch.example_id, seed=self.seed, epoch=pair)
        if moment.place is None or self.visits == "complement":
            u_P = keys.per_piece(Purpose.RATIO)
        else:
            place_P = np.asarray(moment.place, np.int64)[batch.row]
            within_P = rank_within(np.bincount(batch.row, minlength=batch.shape[0]))
            u_P = spread(place_P, within_P, seed=self.seed, epoch=moment.epoch)
        units = self.policy.cut(batch, keys, moment)
        how = {"exact": self.budget == "exact", "may_fill": self.fill == "random"}
        return noised(units, rates, rates.draw(u_P), keys, second=second, **how)


def noised(
    units: Units,
    rates: Rates,
    rate_P: Array,
    keys: Keys,
    *,
    exact: bool,
    second: bool = False,
    may_fill: bool = False,
) -> Selection:
    """Mask units at given rates; the selection has the rates in force and the loss weights.

    Args:
        rate_P: (P,) float64 in (0, 1].
        exact: mask ⌈rate · L⌉ tokens; otherwise each unit independently.
        second: mask the complement.
        may_fill: units of weight 0 are masked after all others.

    Raises:
        MaskwiseError: ``exact`` or ``second`` with units of several tokens or unequal weights.
    """
    equal = units.weight is None
    if (exact and not (equal and units.by_token)) or (second and not equal):
        do = "set masking.budget: bernoulli" if exact else "set masking.visits: random"
        got = "units of several tokens" if equal else "units with weights"
        raise MaskwiseError("this needs single tokens of equal weight", got=got, do=do)
    piece = units.piece
    if exact:
        number_P = rates.number(rate_P, units.tokens_P)
        chosen = up_to(units, number_P, keys)
        if second:
            chosen, number_P = ~chosen, units.tokens_P - number_P
        weight_U = rates.number_weight(number_P, units.tokens_P)[piece]
        rate_P = number_P / np.maximum(units.tokens_P, 1)
    else:
        u_U = unit_interval(units.draw(keys, Purpose.BERNOULLI))
        if equal:
            reach_U = rate_P[piece]
            chosen = u_U >= reach_U if second else u_U < reach_U
            rate_P = 1 - rate_P if second else rate_P
            weight_U = rates.weight(rate_P)[piece]
        else:
            reach_U, slope_U = reached(units, rate_P, may_fill=may_fill)
            chosen = u_U < reach_U
            weight_P = rates.weight(rate_P) * rate_P
            weight_U = weight_P[piece] * slope_U / np.maximum(reach_U, 1e-300)
    weight_T = np.zeros(len(units.batch.input_ids))
    weight_T[units.tokens] = weight_U if units.by_token else weight_U[units.unit]
    return Selection(units, chosen, rate_P, weight_T=weight_T)


def reached(units: Units, rate_P: Array, *, may_fill: bool = False) -> tuple[Array, Array]:
    """How likely each unit is masked at the rate of its piece, and the derivative; both (U,).

    Σ length · probability = rate · Σ length, over all units that may be masked.
    """
    assert units.weight is not None
    piece, count_P, weight = units.piece, units.count, units.weight.astype(np.float64)
    # Where no unit need be looked up, reducing and repeating take a third of the time.
    tidy = units.start is not None and count_P.all()

    def total(values: Array) -> Array:
        if tidy:
            return np.add.reduceat(values, count_P.cumsum() - count_P)
        return np.bincount(piece, values, len(rate_P))

    def each(values_P: Array) -> Array:
        return np.repeat(values_P, count_P) if tidy else values_P[piece]

    if may_fill:
        least_P = np.full(len(rate_P), np.inf)
        np.minimum.at(least_P, piece, np.where(weight > 0, weight, np.inf))
        least_P[~np.isfinite(least_P)] = 1 / LATE
        weight = np.where(weight > 0, weight, LATE * each(least_P))
    length = units.length * (weight > 0.0)
    whole_P = np.maximum(total(length), 1)
    weight /= each(np.maximum(total(length * weight) / whole_P, 1e-300))
    # The logarithm of the share that is left falls ever more slowly with τ, so Newton's steps come
    # from the left and never pass the root; for equal weights it is a straight line, and for others
    # nearly one.
    left_P = np.maximum(1 - rate_P, EMPTY)
    wanted_P, tau_P = np.log(left_P), -np.log(left_P)
    for _ in range(STEPS):
        left = np.exp(-each(tau_P) * weight)
        slope = weight * left
        rest_P = np.maximum(total(length * left), 1e-300)
        speed_P = np.maximum(total(length * slope), 1e-300)
        if (np.abs(rest_P - left_P * whole_P) <= 1e-12 * whole_P).all():
            break
        tau_P += (np.log(rest_P / whole_P) - wanted_P) * rest_P / speed_P
    return np.where(weight > 0, 1 - left, 0.0), slope * each(whole_P / speed_P)


def check(policy: Policy, *, budget: str, fill: str, visits: str) -> None:
    """Raise if settings would make the weights of masked diffusion wrong."""
    require_known("budget of masked diffusion", budget, ("exact", "bernoulli"))
    require_known("fill of masked diffusion", fill, ("none", "random"))
    require_known("visits of masked diffusion", visits, ("random", "complement"))
    if policy.needs_ratio:
        what = "masked diffusion needs units that do not depend on the rate"
        do = "take token, span, or any policy with words or weights"
        raise MaskwiseError(what, got=f"policy {policy}", do=do)
    if budget == "exact" and policy.unit_kind is not UnitKind.TOKEN:
        what = f"policy {policy} has units of several tokens"
        raise MaskwiseError(what, got="budget exact", do="set masking.budget: bernoulli")


def corrupt(
    input_ids: Tensor,
    loss_mask: Tensor,
    mask_token_id: int,
    *,
    ratio: Spec = "uniform(0, 1)",
    budget: str = "bernoulli",
    seed: int = 0,
    epoch: int | None = None,
    step: int = 0,
    total_steps: int | None = None,
    example_id: Tensor | None = None,
    place: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask rows for another trainer of diffusion models.

    The loss of a row is Σ mask · cross-entropy / rate, over ``loss_mask.sum()``. Distributions
    other than ``uniform(0, 1)`` have the weights of ``masking.diffusion.Rates``, not 1 / rate.

    Args:
        input_ids: (B, L) int64.
        loss_mask: (B, L), 1 or True where a token may be masked: no prompt, padding or special
            token.
        mask_token_id: what masked tokens become.
        ratio: the distribution of the rates.
        budget: ``bernoulli`` (each token independently) or ``exact`` (a number of tokens is drawn;
            the rate is its share).
        seed, epoch, step: a mask is a function of these and the row; without an epoch, of the step.
        total_steps: for distributions that change over training.
        example_id: (B,) int64, the permanent names of the rows; None: a hash of their content.
        place: (B,) the places of the rows in the order of the epoch, for rates of low discrepancy.

    Returns:
        ``noisy`` (B, L) int64, ``mask`` (B, L) bool and ``rate`` (B, L) float32, on the device of
        ``input_ids``.

    Raises:
        MaskwiseError: shapes that do not fit, or something that is not a distribution.

    >>> import torch
    >>> ids = torch.arange(10, 22).view(2, 6)
    >>> noisy, mask, rate = corrupt(ids, torch.ones_like(ids), 3, seed=0, budget="exact")
    >>> bool((noisy[mask] == 3).all() and (noisy[~mask] == ids[~mask]).all())
    True
    """
    import torch

    if input_ids.dim() != 2 or loss_mask.shape != input_ids.shape:
        got = f"{tuple(input_ids.shape)} and {tuple(loss_mask.shape)}"
        raise MaskwiseError("input_ids and loss_mask need one shape (B, L)", got=got)
    require_known("budget of masked diffusion", budget, ("exact", "bernoulli"))
    rows, columns = input_ids.shape
    ids = input_ids.numpy(force=True).reshape(-1)
    counts = loss_mask.numpy(force=True).reshape(-1) != 0
    begin = np.arange(rows) * columns
    if example_id is None:
        names = content_ids(ids, counts, begin)
    else:
        names = example_id.numpy(force=True).astype(np.int64)
    batch = AnnotatedBatch((rows, columns), ids, None, counts, counts, begin, names)
    keys = Keys(names, seed=seed, epoch=epoch, step=step)
    u_P = keys.per_piece(Purpose.RATIO)
    if place is not None:
        u_P = spread(place.numpy(force=True), np.zeros(rows), seed=seed, epoch=epoch)
    rates = Rates(schedule(ratio), step, total_steps)
    choice = noised(Units.single(batch), rates, rates.draw(u_P), keys, exact=budget == "exact")
    mask = torch.from_numpy(choice.tokens.reshape(rows, columns)).to(input_ids.device)
    rate = torch.from_numpy(choice.ratio_P.astype(np.float32)).to(input_ids.device)
    noisy = torch.where(mask, mask_token_id, input_ids)
    return noisy, mask, rate.unsqueeze(1).expand(rows, columns).contiguous()
