"""Masking for masked diffusion: a rate per row, and a loss weight for every masked token.

    noising = Noising(tokenizer, ratio="uniform(0, 1)", seed=0)
    batch = noising(rows, epoch=0)
    bound = (losses · batch.loss_weight).sum() / batch.counted    # an estimate, nats/eligible token

A text is masked in one of two ways, each with exact weights:

- budget ``exact``: mask ⌈rate · L⌉ tokens. The loss varies less, because the number follows from
  the rate. This budget needs single tokens of equal weight.
- budget ``bernoulli``: mask each unit independently, as published. It allows any units and weights.

**Rates and loss weights.** A text of L tokens has the bound
−log p(text) ≤ ∫₀¹ E[Σ_masked −log p(token | rest)] / t dt, where every token is masked
independently with probability t. A rate drawn with density p(t) gives its row the weight
1 / (t · p(t)), so that all distributions estimate the same bound. A number n of masked tokens,
drawn with probability P(n), gives the weight 1 / (n · P(n)).

**Weights of units.** Unit i is masked by time τ with probability r_i = 1 − exp(−τ·w_i), where τ
makes the rate t of the row the expected share of its masked tokens. The loss weight of its tokens
is (dr_i/dt) / r_i divided by the density of t; for equal weights this is 1 / (t · p(t)). The loss
therefore belongs to an exact process for any weights, and it bounds the likelihood if the weights
do not depend on the text that the masks hide (``Policy.reads_text``).

Any schedule that gives each row a ratio can provide the rates. The schedule is read as a table of
quantiles, and rates are drawn uniformly between neighbouring quantiles, so the density is known
exactly. There are three kinds of schedules:

- distributions that cover all of (0, 1), such as ``uniform(0, 1)``, are used as they are;
- distributions that (nearly) leave out a part of (0, 1), such as ``uniform(0.3, 0.8)`` or ``bell``,
  would ignore that part in the bound: a share ``REST`` of the rates is drawn from ``uniform(0, 1)``
  instead, so no weight exceeds 1 / (REST · t);
- schedules with a few fixed rates (``constant``, ``mixture``) estimate no bound. A row has the
  weight 1/t, which gives the mean loss of its masked tokens.

Sources: Sahoo et al. 2024 (MDLM, arXiv 2406.07524), equation 10; Nie et al. 2025 (LLaDA, arXiv
2502.09992), equations 3 and 6; for numbers of tokens, Ou et al. 2024 (arXiv 2406.03736).

Cost: for single tokens, the same as for the policy ``token``; with weights, about five more passes
over the units, to find τ.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.errors import MaskwiseError, require_known
from maskwise.keys import Array, Keys, Purpose, content_ids, fold, unit_interval
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.corruptions import mask_only
from maskwise.masking.masker import Masker
from maskwise.masking.policies import Moment, Policy, UnitKind
from maskwise.masking.schedules import Schedule, Spec
from maskwise.masking.select import Selection, up_to
from maskwise.masking.units import Units, reached
from maskwise.masking.vocabulary import Tokenizer, Vocabulary
from maskwise.segments import rank_within

if TYPE_CHECKING:
    from torch import Tensor

REST = 0.1
"""The share of rates drawn uniformly from (0, 1), if a distribution leaves out part of (0, 1)."""
CELLS = 4096
"""The number of cells in the table of quantiles."""
# The steps of low-discrepancy sequences from row to row, and from piece to piece in a row.
GOLDEN = 0.6180339887498949
SILVER = 0.41421356237309515
_LEAST = 2.0**-40


class Rates:
    """The distribution of rates at one step.

    Args:
        schedule: the schedule that gives each row a ratio.
        step, total_steps: the step at which the schedule is read, and the number of steps.
        twice: whether each row is visited twice, at the rates t and 1 − t (``visits: complement``).

    Attributes:
        complete: whether the weighted loss estimates the bound; False for fixed rates.

    Raises:
        MaskwiseError: a fixed rate of 0, at which nothing is ever masked.

    >>> from maskwise.masking.schedules import schedule
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
            raise MaskwiseError(
                f"ratio {schedule}: rate 0 masks nothing and has no weight",
                got=0,
                allowed="rates above 0",
                do="use uniform(0, 1)",
            )
        # Rates at the ends of a clipped range, which many rows share, have no density.
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
        if covers and thinnest > REST:
            return 0.0
        return REST

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
        """(P,) float64: p(t), including the share of rates drawn uniformly."""
        width = np.diff(self.grid)
        cell = self.grid.searchsorted(rate_P, side="right") - 1
        # Every cell of the table has the same probability.
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
            # Half of the visits use the drawn rate, and half use its complement.
            density = (density + self.density(1 - rate_P)) / 2
        return 1 / (rate_P * density)

    def number(self, rate_P: Array, tokens_P: Array) -> Array:
        """(P,) int64: the number of tokens to mask, ⌈t·L⌉, but at least one token if L > 0."""
        number_P = np.ceil(rate_P * tokens_P - 1e-9).astype(np.int64)
        return number_P.clip(np.minimum(tokens_P, 1), tokens_P)

    def number_weight(self, number_P: Array, tokens_P: Array) -> Array:
        """(P,) float64: the loss weight of each masked token if this many of L are masked."""
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
        """(P,) float64: the probability of masking n of L tokens."""
        length = np.maximum(tokens_P, 1)
        return self._below(number_P / length) - self._below((number_P - 1) / length)

    def _below(self, rate_P: Array) -> Array:
        """(P,) float64: the share of rates below ``rate_P``, which is the distribution function."""
        inner = np.interp(rate_P, self.grid, self.edges)
        return (1 - self.rest) * inner + self.rest * rate_P.clip(0, 1)


def spread(place_P: Array, within_P: Array, *, seed: int, epoch: int | None) -> Array:
    """(P,) float64 in (0, 1): low-discrepancy draws, a function of (seed, epoch, position).

    The draws of consecutive rows cover (0, 1) much more evenly than independent draws do, on any
    number of ranks; each single draw is uniform over seeds and epochs.

    Args:
        place_P: the position of each piece's row in the order of the epoch.
        within_P: the number of the piece in its row.
        seed: any integer.
        epoch: the pass over the data; None if positions are not counted per epoch.
    """
    if epoch is None:
        epoch = -1
    first = (fold(seed, 0x10D, epoch) + 0.5) / 2.0**32
    fraction_P = (first + place_P * GOLDEN + within_P * SILVER) % 1.0
    # The draws are never 0 or 1, because a rate of 0 or its complement would have no weight.
    return fraction_P * (1 - 2.0**-40) + 2.0**-41


class Noising(Masker):
    """A masker for masked diffusion, described in the docstring of this module.

    Args:
        tokenizer, policy, seed, keep: as for ``Masker``.
        ratio: a distribution of rates, such as ``uniform(0, 1)`` or ``bell``; a fixed ratio
            estimates no bound.
        budget: ``exact`` or ``bernoulli``.
        fill: ``none``, or ``random``, which masks units of weight 0 after all other units.
        visits: ``random``, or ``complement``, where the second visit to a row masks what the first
            visit left visible.
        more: further arguments of ``Masker``, which masked diffusion leaves at their defaults.

    Raises:
        MaskwiseError: settings that would make the weights wrong.

    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> batch = Noising(tokenizer, seed=1)(encode(tokenizer, ["the cat sat on the mat"]), epoch=0)
    >>> weights = batch.loss_weight[batch.labels >= 0] * batch.targets
    >>> batch.counted, weights.round(decimals=6).unique().tolist()
    (6, [6.0])
    """

    places = True

    def __init__(self, tokenizer: Tokenizer, *, ratio: Spec = "uniform(0, 1)", **more: Any):
        defaults = {"budget": "exact", "corruption": "mask-only", "min_targets": 0}
        self._rates: dict[tuple[int, int | None], Rates] = {}
        super().__init__(tokenizer, ratio=ratio, **{**defaults, **more})

    def _check(self) -> None:
        check(self.policy, budget=self.budget, fill=self.fill, visits=self.visits)
        if self.corruption != mask_only() or not self.predict.always(1):
            raise MaskwiseError(
                "masked diffusion masks every selected token",
                got=f"corruption {self.corruption}, predict {self.predict}",
                do="use corruption mask-only and predict 1.0",
            )

    def rates(self, step: int = 0, total_steps: int | None = None) -> Rates:
        """The distribution of rates at a step, which also gives the weight of each rate."""
        when = (step, total_steps) if self.ratio.varies else (0, None)
        rates = self._rates.get(when)
        if rates is None:
            rates = Rates(self.ratio, *when, twice=self.visits == "complement")
            # Making the quantiles takes longer than a batch, so the last step's table is cached.
            self._rates = {when: rates}
        return rates

    def choose(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Selection:
        rates = self.rates(moment.step, moment.total_steps)
        keys, second = self.paired(batch, keys, moment)
        if moment.place is None or self.visits == "complement":
            # A row's position differs between the two visits of a pair, but its rate must not.
            u_P = keys.per_piece(Purpose.RATIO)
        else:
            place_P = np.asarray(moment.place, np.int64)[batch.row]
            within_P = rank_within(np.bincount(batch.row, minlength=batch.shape[0]))
            u_P = spread(place_P, within_P, seed=self.seed, epoch=moment.epoch)
        units = self.cut(batch, keys, moment)
        exact = self.budget == "exact"
        return noised(units, rates, rates.draw(u_P), keys, exact=exact, second=second)


def noised(
    units: Units, rates: Rates, rate_P: Array, keys: Keys, *, exact: bool, second: bool = False
) -> Selection:
    """Mask units at given rates; the selection has the actual rates and the loss weights.

    Args:
        units: the units to choose from.
        rates: the distribution of the rates.
        rate_P: (P,) float64 in (0, 1].
        keys: the random draws for these pieces.
        exact: whether to mask ⌈rate · L⌉ tokens; if False, each unit is masked independently.
        second: whether to mask the complement.

    Raises:
        MaskwiseError: ``exact`` with units of several tokens or unequal weights; ``second`` with
            unequal weights.
    """
    equal = units.weight is None
    if (exact and not (equal and units.by_token)) or (second and not equal):
        do = "set masking.budget: bernoulli" if exact else "set masking.visits: random"
        got = "units of several tokens" if equal else "units with weights"
        raise MaskwiseError("these settings need single tokens of equal weight", got=got, do=do)
    piece = units.piece
    if exact:
        tokens_P = units.tokens_P
        number_P = rates.number(rate_P, tokens_P)
        chosen = up_to(units, number_P, keys)
        if second:
            chosen = ~chosen
            number_P = tokens_P - number_P
        weight_U = rates.number_weight(number_P, tokens_P)[piece]
        rate_P = number_P / np.maximum(tokens_P, 1)
    elif equal:
        u_U = unit_interval(units.draw(keys, Purpose.BERNOULLI))
        chosen = u_U < rate_P[piece]
        if second:
            chosen = ~chosen
            rate_P = 1 - rate_P
        weight_U = rates.weight(rate_P)[piece]
    else:
        u_U = unit_interval(units.draw(keys, Purpose.BERNOULLI))
        reach_U, slope_U = reached(units, rate_P)
        chosen = u_U < reach_U
        weight_P = rates.weight(rate_P) * rate_P
        weight_U = weight_P[piece] * slope_U / np.maximum(reach_U, 1e-300)
    weight_T = np.zeros(len(units.batch.input_ids))
    # Each single token is its own unit, so looking up the units is not needed.
    weight_T[units.tokens] = weight_U if units.by_token else weight_U[units.unit]
    return Selection(units, chosen, rate_P, weight_T=weight_T)


def check(policy: Policy, *, budget: str, fill: str, visits: str) -> None:
    """Check the settings for masked diffusion.

    Raises:
        MaskwiseError: settings for which the weights would be wrong.
    """
    require_known("budget of masked diffusion", budget, ("exact", "bernoulli"))
    require_known("fill of masked diffusion", fill, ("none", "random"))
    require_known("visits of masked diffusion", visits, ("random", "complement"))
    if policy.needs_ratio:
        raise MaskwiseError(
            "masked diffusion needs units that do not depend on the rate",
            got=f"policy {policy}",
            do="use token, span, or any policy with words or weights",
        )
    if budget == "exact" and policy.unit_kind is not UnitKind.TOKEN:
        raise MaskwiseError(
            f"policy {policy} has units of several tokens",
            got="budget exact",
            do="set masking.budget: bernoulli",
        )


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
    """Mask rows for a diffusion trainer outside maskwise.

    The loss of a row is Σ mask · cross-entropy / rate, divided by ``loss_mask.sum()``. For
    distributions other than ``uniform(0, 1)``, replace 1 / rate with the weights from
    ``masking.diffusion.Rates``.

    Args:
        input_ids: (B, L) int64.
        loss_mask: (B, L), 1 or True where a token may be masked: no prompt, padding or special
            token.
        mask_token_id: the id that replaces masked tokens.
        ratio: the distribution of the rates.
        budget: ``bernoulli`` (each token is masked independently) or ``exact`` (a number of tokens
            is drawn, and its share of the tokens is the rate).
        seed, epoch, step: a mask is a function of the seed, the epoch and the row; without an
            epoch, the step replaces it.
        total_steps: needed by distributions that change over training.
        example_id: (B,) int64, the permanent names of the rows; if None, hashes of their content.
        place: (B,) the positions of the rows in the order of the epoch, for low-discrepancy rates.

    Returns:
        ``noisy`` (B, L) int64, ``mask`` (B, L) bool and ``rate`` (B, L) float32, on the device of
        ``input_ids``.

    Raises:
        MaskwiseError: shapes that do not match, or a ``ratio`` that is not a distribution.

    >>> import torch
    >>> ids = torch.arange(10, 22).view(2, 6)
    >>> noisy, mask, rate = corrupt(ids, torch.ones_like(ids), 3, seed=0, budget="exact")
    >>> bool((noisy[mask] == 3).all() and (noisy[~mask] == ids[~mask]).all())
    True
    """
    import torch

    for name, tensor in (("input_ids", input_ids), ("loss_mask", loss_mask)):
        if not isinstance(tensor, torch.Tensor):
            raise MaskwiseError(name, got=tensor, allowed="a tensor of shape (B, L)")
    if input_ids.dim() != 2 or loss_mask.shape != input_ids.shape:
        raise MaskwiseError(
            "input_ids and loss_mask must have the same shape (B, L)",
            got=f"{tuple(input_ids.shape)} and {tuple(loss_mask.shape)}",
        )
    rows, columns = input_ids.shape
    ids = input_ids.numpy(force=True).reshape(-1)
    eligible = loss_mask.numpy(force=True).reshape(-1) != 0
    begin = np.arange(rows) * columns
    if example_id is None:
        names = content_ids(ids, eligible, begin)
    else:
        names = example_id.numpy(force=True).astype(np.int64)
    batch = AnnotatedBatch((rows, columns), ids, None, eligible, eligible, begin, names)
    keys = Keys(names, seed=seed, epoch=epoch, step=step)
    places = None if place is None else place.numpy(force=True)
    # The loss mask replaces the tables of a vocabulary.
    nothing = np.zeros(0, bool)
    vocabulary = Vocabulary(0, mask_token_id, 0, content=nothing, eligible=nothing)
    noising = Noising(vocabulary, ratio=ratio, budget=budget, seed=seed)
    choice = noising.choose(batch, keys, Moment(step, total_steps, epoch, place=places))
    mask = torch.from_numpy(choice.tokens.reshape(rows, columns)).to(input_ids.device)
    rate = torch.from_numpy(choice.ratio_P.astype(np.float32)).to(input_ids.device)
    noisy = torch.where(mask, mask_token_id, input_ids)
    return noisy, mask, rate.unsqueeze(1).expand(rows, columns).contiguous()
