"""Masking for masked diffusion: every row at a rate of its own, and for every masked token the
weight of its loss.

    noising = Noising(tokenizer, ratio="uniform(0, 1)", seed=0)
    batch = noising(rows, epoch=0)
    bound = (losses · batch.loss_weight).sum() / batch.counted        # an estimate, in nats for each eligible token

A text is masked in one of two ways, and each has its own exact weights:

- budget ``exact``: a number of tokens is drawn, ⌈rate · L⌉, and so many are masked. The loss varies
  less, because the number does not vary beside the rate. For single tokens that are all alike.
- budget ``bernoulli``: each unit is masked by itself, as published. For units of any kind, with or
  without weights.

**Weights say which units go first.** Unit i is reached by time τ with probability r_i = 1 −
exp(−τ·w_i), and τ is such that the rate t of the row is the expected share of its masked tokens. A
masked token of the unit weighs (dr_i/dt) / r_i over the density of t, which for equal weights is 1
/ (t · p(t)). So the loss is that of an exact process for any weights; it bounds the likelihood
where they do not depend on the text that they hide (``Policy.reads_text``).

**Rates and their weights.** A text of L tokens has the bound
−log p(text) ≤ ∫₀¹ E[Σ_masked −log p(token | rest)] / t dt, where every token is masked by itself
with probability t. A rate drawn with density p(t) weighs its row by 1 / (t · p(t)), so that all
distributions estimate the same bound. A number n of masked tokens, drawn with probability P(n),
weighs it by 1 / (n · P(n)).

Any schedule that gives each row a ratio of its own will do. It is read as a table of its quantiles,
between which rates are drawn evenly: the density is then known exactly, whatever the distribution.
Three kinds:

- those that cover all of (0, 1), such as ``uniform(0, 1)``, are taken as they are;
- those that leave out a part, or nearly (``uniform(0.3, 0.8)``, ``bell``), would say nothing of
  that part: a share ``REST`` of the rates is drawn from ``uniform(0, 1)`` instead, so that no
  weight is above 1 / (REST · t);
- a few fixed rates (``constant``, ``mixture``) estimate no bound. A row weighs 1/t: the mean loss
  of its masked tokens.

Sources: Sahoo et al. 2024 (MDLM, arXiv 2406.07524), equation 10; Nie et al. 2025 (LLaDA, arXiv
    2502.09992), equations
3 and 6; numbers of tokens: Ou et al. 2024 (arXiv 2406.03736).

Cost: for single tokens that of the policy ``token``; with weights some five passes over the units
    to find τ.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose, content_ids, fold, unit_interval
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.corruptions.base import mask_only
from maskwise.masking.masker import Masker
from maskwise.masking.policies import Moment, Policy, UnitKind
from maskwise.masking.schedules import Schedule, Spec, schedule
from maskwise.masking.select import Selection, up_to
from maskwise.masking.units import Units
from maskwise.masking.visits import visit_of
from maskwise.segments import rank_within

STEPS = 80
"""Newton's steps to find τ, at most; about five are needed."""
EMPTY = 2.0**-43
"""The least share that is left of a row, so that a rate of 1 has a τ."""
LATE = 2.0**-20
"""The weight of units that only fill what others leave, as a share of the least weight beside them.
"""
REST = 0.1
"""The share of rates that is drawn from (0, 1) evenly, where a distribution does not cover it."""

CELLS = 4096
"""Cells of the table of quantiles."""

GOLDEN, SILVER = 0.6180339887498949, 0.41421356237309515
"""Steps of two sequences whose every stretch is spread evenly: from row to row, and from piece to
piece in a row.
"""

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
        edges = np.arange(CELLS + 1) / CELLS
        grid = np.sort(schedule.rows(edges, step, total_steps).clip(0, 1))
        rises = np.diff(grid) > 1e-12
        self.complete = rises.sum() > CELLS // 50
        if not self.complete and not grid.min() > 0:
            what = f"ratio {schedule}: at rate 0 nothing is masked, and the weight would be 1/0"
            raise MaskwiseError(what, got=0, allowed="rates above 0", do="take uniform(0, 1)")
        # rates that many rows share, at the ends of a clipped range, say nothing of the bound
        if self.complete:
            grid = np.append(grid[:-1][rises], grid[1:][rises][-1])
        self.schedule, self.step, self.total_steps, self.twice = schedule, step, total_steps, twice
        self.grid, self.edges = grid, np.linspace(0, 1, len(grid))

    @cached_property
    def rest(self) -> float:
        """The share of rates that is drawn from (0, 1) evenly."""
        covers = self.grid[0] <= 1e-9 and self.grid[-1] >= 1 - 1e-9
        thinnest = 1 / (len(self.grid) - 1) / np.diff(self.grid).max() if self.complete else 1.0
        return 0.0 if not self.complete or (covers and thinnest > REST) else REST

    def draw(self, u_P: Array) -> Array:
        """(P,) float64 rates in (0, 1], from uniform draws in (0, 1)."""
        if not self.complete:
            return self.schedule.rows(u_P, self.step, self.total_steps).clip(0, 1)
        inner = np.interp((u_P - self.rest) / (1 - self.rest), self.edges, self.grid)
        rate_P = np.where(u_P < self.rest, u_P / self.rest, inner) if self.rest else inner
        return rate_P.clip(_LEAST, 1)

    def density(self, rate_P: Array) -> Array:
        """(P,) float64: p(t), the rates that are drawn evenly included."""
        assert self.complete, "fixed rates have no density"
        cell = self.grid.searchsorted(rate_P, side="right") - 1
        inside = (rate_P >= self.grid[0]) & (rate_P <= self.grid[-1])
        width = np.diff(self.grid).take(cell.clip(0, len(self.grid) - 2))
        inner = np.where(inside, 1 / ((len(self.grid) - 1) * width), 0.0)
        return (1 - self.rest) * inner + self.rest

    def weight(self, rate_P: Array) -> Array:
        """(P,) float64: what the loss of a masked token weighs, where each is masked by itself with
        these rates.
        """
        rate_P = rate_P.clip(_LEAST, 1)
        if not self.complete:
            return 1 / rate_P
        density = self.density(rate_P)
        if self.twice:
            density = (density + self.density(1 - rate_P)) / 2
        return 1 / (rate_P * density)

    def number(self, rate_P: Array, tokens_P: Array) -> Array:
        """(P,) int64: how many of L tokens are masked, ⌈t·L⌉: at least one where there is any."""
        return (
            np.ceil(rate_P * tokens_P - 1e-9)
            .astype(np.int64)
            .clip(min=np.minimum(tokens_P, 1), max=tokens_P)
        )

    def number_weight(self, number_P: Array, tokens_P: Array) -> Array:
        """(P,) float64: what the loss of a masked token weighs, where so many of L tokens are
        masked.
        """
        number_P = np.maximum(number_P, 1)
        if not self.complete:
            return tokens_P / number_P
        share = self._probability(number_P, tokens_P)
        if self.twice:
            other = tokens_P - number_P
            share = (
                share + np.where(other > 0, self._probability(np.maximum(other, 1), tokens_P), 0.0)
            ) / 2
        return 1 / (number_P * share)

    def _probability(self, number_P: Array, tokens_P: Array) -> Array:
        """(P,) float64: P(n) of the numbers of masked tokens."""
        length = np.maximum(tokens_P, 1)
        return self._below(number_P / length) - self._below((number_P - 1) / length)

    def _below(self, rate_P: Array) -> Array:
        """(P,) float64: the share of rates that are lower."""
        return (1 - self.rest) * np.interp(rate_P, self.grid, self.edges) + self.rest * rate_P.clip(
            0, 1
        )


def spread(place_P: Array, within_P: Array, *, seed: int, epoch: int | None) -> Array:
    """(P,) float64 in (0, 1): draws of low discrepancy, as a function of (seed, epoch, place).

    Every stretch of places is spread over (0, 1) much more evenly than by chance, on any number of
    ranks; and each draw by itself is uniform over seeds and epochs.

    Args:
        place_P: the place of each piece's row in the order of the epoch.
        within_P: the number of the piece in its row.
        epoch: the pass over the data; None where places go on counting.
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
        more: what other maskers take, and masked diffusion leaves as it is.

    Raises:
        MaskwiseError: anything that would make the weights wrong.

    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> batch = Noising(tokenizer, seed=1)(encode(tokenizer, ["the cat sat on the mat"]), epoch=0)
    >>> batch.counted, bool((batch.loss_weight[batch.labels >= 0] * batch.targets).allclose(torch.tensor(6.0).double()))
    (6, True)
    """

    places = True
    """It is told the place of each row."""

    def __init__(self, tokenizer: Any, *, ratio: Any = "uniform(0, 1)", **more: Any):
        usual = {"budget": "exact", "corruption": "mask-only", "min_targets": 0}
        super().__init__(tokenizer, ratio=ratio, **{**usual, **more})
        self._rates: tuple[tuple[int, int | None], Rates] | None = None

    def _check(self) -> None:
        check(self.policy, budget=self.budget, fill=self.fill, visits=self.visits)
        if self.corruption != mask_only() or self.predict.varies or self.predict(0) < 1:
            got = f"corruption {self.corruption}, predict {self.predict}"
            do = "take corruption mask-only and predict 1.0"
            raise MaskwiseError(
                "masked diffusion shows every chosen token as [MASK]", got=got, do=do
            )

    def rates(self, step: int = 0, total_steps: int | None = None) -> Rates:
        """The rates of a step, and what rows weigh that have them."""
        when = (step, total_steps) if self.ratio.varies else (0, None)
        if self._rates is None or self._rates[0] != when:
            self._rates = when, Rates(self.ratio, *when, twice=self.visits == "complement")
        return self._rates[1]

    def choose(
        self, batch: AnnotatedBatch, keys: Keys, moment: Moment
    ) -> tuple[Selection, Array, Array | None]:
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
        noise = noised(
            units,
            rates,
            rates.draw(u_P),
            keys,
            exact=self.budget == "exact",
            second=second,
            may_fill=self.fill == "random",
        )
        return noise.selection, noise.rate_P, noise.weight_T


class Noise(NamedTuple):
    """Which tokens are masked: the selection, the rates (P,) in force, and the weight (T,) of each
    token's loss.
    """

    selection: Selection
    rate_P: Array
    weight_T: Array


def noised(
    units: Units,
    rates: Rates,
    rate_P: Array,
    keys: Keys,
    *,
    exact: bool,
    second: bool = False,
    may_fill: bool = False,
) -> Noise:
    """Mask units at given rates.

    Args:
        rate_P: (P,) float64 in (0, 1].
        exact: mask ⌈rate · L⌉ tokens; otherwise each unit by itself.
        second: mask what would be left.
        may_fill: units of weight 0 are masked after all others.

    Raises:
        MaskwiseError: ``exact`` or ``second`` with units that are not alike.
    """
    alike = units.weight is None
    if (exact and not (alike and units.by_token)) or (second and not alike):
        setting = "masking.budget: bernoulli" if exact else "masking.visits: random"
        got = "units of several tokens" if alike else "units that have weights"
        raise MaskwiseError(
            "these weights need single tokens that are all alike", got=got, do=f"set {setting}"
        )
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
        if alike:
            reach_U = rate_P[piece]
            chosen = u_U >= reach_U if second else u_U < reach_U
            rate_P = 1 - rate_P if second else rate_P
            weight_U = rates.weight(rate_P)[piece]
        else:
            reach_U, slope_U = reached(units, rate_P, may_fill=may_fill)
            chosen = u_U < reach_U
            weight_U = (
                (rates.weight(rate_P) * rate_P)[piece] * slope_U / np.maximum(reach_U, 1e-300)
            )
    weight_T = np.zeros(len(units.batch.input_ids))
    weight_T[units.tokens] = weight_U if units.unit is None else weight_U[units.unit]
    return Noise(Selection(units, chosen), rate_P, weight_T)


def reached(units: Units, rate_P: Array, *, may_fill: bool = False) -> tuple[Array, Array]:
    """How likely each unit is to be masked at the rate of its piece, and how fast that grows with
    the rate; both (U,).

    Σ length · probability = rate · Σ length, over all units that may be masked.
    """
    assert units.weight is not None
    count_P, weight = units.count, units.weight.astype(np.float64)
    # Where no unit need be looked up, to repeat and to reduce take a third of the time.
    tidy = units.in_order and count_P.all()

    def total(values: Array) -> Array:
        if tidy:
            return np.add.reduceat(values, count_P.cumsum() - count_P)
        return np.bincount(units.piece, values, len(rate_P))

    def each(values_P: Array) -> Array:
        return np.repeat(values_P, count_P) if tidy else values_P[units.piece]

    if may_fill:
        least_P = np.full(len(rate_P), np.inf)
        np.minimum.at(least_P, units.piece, np.where(weight > 0, weight, np.inf))
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
        rest_P, slope = np.maximum(total(length * left), 1e-300), weight * left
        speed_P = np.maximum(total(length * slope), 1e-300)
        if (np.abs(rest_P - left_P * whole_P) <= 1e-12 * whole_P).all():
            break
        tau_P += (np.log(rest_P / whole_P) - wanted_P) * rest_P / speed_P
    return np.where(weight > 0, 1 - left, 0.0), slope * each(whole_P / speed_P)


def check(policy: Policy, *, budget: str, fill: str, visits: str) -> None:
    """Refuse what would make the weights of masked diffusion wrong.

    Raises:
        MaskwiseError: which setting, and what to take instead.
    """
    if budget not in ("exact", "bernoulli"):
        allowed = "exact (a number of tokens is drawn) or bernoulli (each unit by itself)"
        raise MaskwiseError("budget of masked diffusion", got=budget, allowed=allowed)
    if fill == "skip-row":
        raise MaskwiseError("fill of masked diffusion", got=fill, allowed="none or random")
    if visits == "coverage":
        raise MaskwiseError(
            "visits of masked diffusion", got=visits, allowed="random or complement"
        )
    if policy.needs_ratio:
        got, do = f"policy {policy}", "take token, span, or any policy with words or weights"
        raise MaskwiseError(
            "masked diffusion needs units that do not depend on the rate", got=got, do=do
        )
    if budget == "exact" and policy.unit_kind is not UnitKind.TOKEN:
        what = (
            f"policy {policy} masks units of several tokens, whose number cannot be drawn to "
            f"the token"
        )
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
    """Mask rows for somebody else's trainer of diffusion models.

    The loss of a row is Σ mask · cross-entropy / rate, over the number of tokens that count
    (``loss_mask.sum()``). With another distribution than ``uniform(0, 1)`` its weight is that of
    ``masking.diffusion.Rates``, and not 1 / rate.

    Args:
        input_ids: (B, L) int64.
        loss_mask: (B, L), 1 or True where a token may be masked: no prompt, padding or special
            token.
        mask_token_id: what masked tokens become.
        ratio: the distribution of the rates.
        budget: ``bernoulli`` (each token by itself) or ``exact`` (a number of tokens is drawn; the
            rate is its share).
        seed, epoch, step: a mask is a function of these and of the row; without an epoch, of the
            step.
        total_steps: for distributions that change over training.
        example_id: (B,) int64, the permanent names of the rows; None: a hash of what they say.
        place: (B,) the places of the rows in the order of the epoch, for rates of low discrepancy.

    Returns:
        ``noisy`` (B, L) int64, ``mask`` (B, L) bool and ``rate`` (B, L) float32, on the device of
        ``input_ids``.

    Raises:
        MaskwiseError: shapes that do not fit, or a distribution that is none.

    >>> ids = torch.arange(10, 22).view(2, 6)
    >>> noisy, mask, rate = corrupt(ids, torch.ones_like(ids), 3, seed=0, budget="exact")
    >>> bool((noisy[mask] == 3).all() and (noisy[~mask] == ids[~mask]).all())
    True
    """
    if input_ids.dim() != 2 or loss_mask.shape != input_ids.shape:
        got = f"{tuple(input_ids.shape)} and {tuple(loss_mask.shape)}"
        raise MaskwiseError("input_ids and loss_mask are of one shape (B, L)", got=got)
    if budget not in ("exact", "bernoulli"):
        raise MaskwiseError("budget of masked diffusion", got=budget, allowed="exact or bernoulli")
    shape = (input_ids.shape[0], input_ids.shape[1])
    ids, counts = (
        input_ids.numpy(force=True).reshape(-1),
        loss_mask.numpy(force=True).reshape(-1) != 0,
    )
    begin = np.arange(shape[0]) * shape[1]
    names = content_ids(ids, counts, begin) if example_id is None else example_id.numpy(force=True)
    batch = AnnotatedBatch(shape, ids, None, counts, counts, begin, names.astype(np.int64))
    keys, rates = (
        Keys(batch.example_id, seed=seed, epoch=epoch, step=step),
        Rates(schedule(ratio), step, total_steps),
    )
    u_P = keys.per_piece(Purpose.RATIO)
    if place is not None:
        u_P = spread(place.numpy(force=True), np.zeros(shape[0]), seed=seed, epoch=epoch)
    noise = noised(Units.single(batch), rates, rates.draw(u_P), keys, exact=budget == "exact")
    mask = torch.from_numpy(noise.selection.tokens.reshape(shape)).to(input_ids.device)
    rate = torch.from_numpy(noise.rate_P.astype(np.float32)).to(input_ids.device)
    return (
        torch.where(mask, mask_token_id, input_ids),
        mask,
        rate.unsqueeze(1).expand(shape).contiguous(),
    )
