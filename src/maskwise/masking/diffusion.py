"""Masking for masked diffusion: each row has its own masking rate and its own loss weights.

The *rate* t of a row is the share of its tokens that is masked. The *loss weight* of a masked token
is the factor by which its loss is multiplied.

    noising = Noising(tokenizer, ratio="uniform(0, 1)", seed=0)
    batch = noising(rows, epoch=0)
    bound = (losses · batch.loss_weight).sum() / batch.counted    # an estimate, nats/eligible token

A row of L tokens is masked in one of two ways. The loss weights are exact in both ways.

- ``budget="exact"`` masks ⌈rate · L⌉ tokens. Their number is not random if the rate is known, so
  the loss has less variance. Units must be single tokens of equal weight.
- ``budget="bernoulli"`` masks each unit (such as a word) independently, as in the papers. All units
  and weights are allowed.

**Loss weights.** If every token of a text is masked independently with probability t, then
−log p(text) ≤ ∫₀¹ E[Σ_masked −log p(token | rest)] / t dt. The right side is an upper bound, and
the weighted loss estimates it. If a row's rate t was drawn with density p(t), the loss weight is
1 / (t · p(t)). All distributions of rates therefore estimate the same bound. If the number n of
masked tokens was drawn with probability P(n), the loss weight is 1 / (n · P(n)).

**Weighted units.** A unit i with masking weight w_i is masked with probability
r_i = 1 − exp(−τ·w_i). The number τ is chosen such that a share t of the row's tokens is masked on
average. The loss weight of the unit's tokens is (dr_i/dt) / r_i, divided by p(t). For equal weights
this is 1 / (t · p(t)). The loss is a bound only if the units and their masking weights do not
depend on the text that the masks hide (``Policy.reads_text``).

**Distribution of rates.** The rates come from a schedule that draws a ratio for each row. The code
tabulates the quantiles of the schedule and draws rates uniformly between neighbouring quantiles, so
that their density is known exactly. There are three kinds of schedules:

- A distribution over all of (0, 1), such as ``uniform(0, 1)``, is used unchanged.
- A distribution that never or rarely draws from a part of (0, 1), such as ``uniform(0.3, 0.8)`` or
  ``bell``, would leave out the same part of the integral. A share ``REST`` of the rates is
  therefore drawn from ``uniform(0, 1)``. No loss weight then exceeds 1 / (REST · t).
- A schedule with a few fixed rates (``constant``, ``mixture``) cannot estimate the bound. Its loss
  weight is 1/t, so that the weighted loss is the mean loss of the masked tokens.

Sources: Sahoo et al. 2024 (MDLM, arXiv 2406.07524), equation 10; Nie et al. 2025 (LLaDA, arXiv
2502.09992), equations 3 and 6; Ou et al. 2024 (arXiv 2406.03736; numbers of masked tokens).

Cost: the cost of the masking policy. Weighted units need about five more passes over the units to
find τ.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskwise.base.errors import MaskwiseError, require_known, whole_number
from maskwise.base.specs import Call
from maskwise.masking.arrays import flags, is_tensor, whole_numbers
from maskwise.masking.corruptions import Corruption, mask_only
from maskwise.masking.corruptions.base import Masked
from maskwise.masking.draws import Array, Draws, Purpose, content_ids, fold, unit_interval
from maskwise.masking.line import Line
from maskwise.masking.masker import Masker
from maskwise.masking.policies import Policy, UnitKind, When
from maskwise.masking.policies import policy as make_policy
from maskwise.masking.policies.base import checked_moment
from maskwise.masking.schedules import Schedule, Spec, uniform
from maskwise.masking.segments import rank_within
from maskwise.masking.select import Choice, up_to
from maskwise.masking.settings import Masking
from maskwise.masking.units import Units, reached
from maskwise.masking.vocabulary import Tokenizer, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

ANY_RATE = uniform(0, 1)
MASK_ONLY = mask_only()
REST = 0.1
"""The share of rates drawn from uniform(0, 1) if a distribution omits a part of (0, 1)."""
CELLS = 4096
"""The number of cells in the table of quantiles."""
# ``even_draws`` adds GOLDEN from row to row, and SILVER from one piece of a row to the next.
GOLDEN = 0.6180339887498949
SILVER = 0.41421356237309515
_LEAST = 2.0**-40


class Rates:
    """The distribution of masking rates at one step.

    Args:
        schedule: the schedule that draws a ratio for each row.
        step: the step at which the schedule is evaluated.
        total_steps: the number of steps in the run.
        twice: whether each row is masked at rate t in one epoch and at rate 1 − t in the next epoch
            (``visits: complement``).

    Attributes:
        complete: whether the weighted loss estimates the bound. False if rates are fixed.

    Raises:
        MaskwiseError: a fixed rate of the schedule is 0, which masks nothing.

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
                f"ratio {schedule}: a masking rate of 0 masks nothing and has no loss weight",
                got=0,
                allowed="rates above 0",
                do="use ratio uniform(0, 1)",
            )
        # Equal quantiles, such as those at the ends of a clipped range, would have an infinite
        # density. Keep one of them.
        if self.complete:
            grid = np.append(grid[:-1][rises], grid[1:][rises][-1])
        self.grid = grid
        self.edges = np.linspace(0, 1, len(grid))

    @cached_property
    def rest(self) -> float:
        """The share of the rates that are drawn from ``uniform(0, 1)``: 0 or ``REST``."""
        if not self.complete:
            return 0.0
        covers = self.grid[0] <= 1e-9 and self.grid[-1] >= 1 - 1e-9
        thinnest = 1 / (len(self.grid) - 1) / np.diff(self.grid).max()
        if covers and thinnest > REST:
            return 0.0
        return REST

    def draw(self, u_P: Array) -> Array:
        """(P,) float64 rates in (0, 1], computed from uniform draws ``u_P`` in (0, 1)."""
        if not self.complete:
            return self.fixed(u_P)
        rest = self.rest
        rate_P = np.interp((u_P - rest) / (1 - rest), self.edges, self.grid)
        if rest:
            rate_P = np.where(u_P < rest, u_P / rest, rate_P)
        return rate_P.clip(_LEAST, 1)

    def density(self, rate_P: Array) -> Array:
        """(P,) float64: the density p(t) of each rate."""
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
            # A row is masked at t in one epoch and at 1 − t in the next. Over both epochs, the
            # density is the mean of the two densities.
            density = (density + self.density(1 - rate_P)) / 2
        return 1 / (rate_P * density)

    def number(self, rate_P: Array, tokens_P: Array) -> Array:
        """(P,) int64: the number of tokens to mask, ⌈t·L⌉; at least one if L > 0."""
        number_P = np.ceil(rate_P * tokens_P - 1e-9).astype(np.int64)
        return number_P.clip(np.minimum(tokens_P, 1), tokens_P)

    def number_weight(self, number_P: Array, tokens_P: Array) -> Array:
        """(P,) float64: the loss weights if ``number_P`` of ``tokens_P`` tokens are masked."""
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
        """(P,) float64: the probability that ``number`` returns ``number_P``."""
        length = np.maximum(tokens_P, 1)
        return self._below(number_P / length) - self._below((number_P - 1) / length)

    def _below(self, rate_P: Array) -> Array:
        """(P,) float64: the probability of a rate of at most ``rate_P``."""
        inner = np.interp(rate_P, self.grid, self.edges)
        return (1 - self.rest) * inner + self.rest * rate_P.clip(0, 1)


def even_draws(place_P: Array, within_P: Array, *, seed: int, epoch: int | None) -> Array:
    """(P,) float64 draws in (0, 1) from a low-discrepancy sequence.

    The draws of consecutive rows cover (0, 1) much more evenly than independent draws. They depend
    only on the seed, the epoch and the positions, and not on the number of ranks. Over all seeds
    and epochs, each draw is uniform.

    Args:
        place_P: the position of each piece's row in the order of the epoch.
        within_P: the index of each piece in its row.
        seed: any integer.
        epoch: the number of the pass over the data; None if positions do not restart in each epoch.
    """
    if epoch is None:
        epoch = -1
    first = (fold(seed, 0x10D, epoch) + 0.5) / 2.0**32
    fraction_P = (first + place_P * GOLDEN + within_P * SILVER) % 1.0
    # A rate of 0 would have no loss weight, and the complement of a rate of 1 is 0. Therefore the
    # draws must differ from 0 and 1.
    return fraction_P * (1 - 2.0**-40) + 2.0**-41


@dataclass(frozen=True)
class Noise(Masking):
    """The settings of masked diffusion; ``Noising`` describes them.

    Raises:
        MaskwiseError: the loss weights would be wrong with these settings.
    """

    ratio: Schedule = ANY_RATE
    budget: str = "exact"
    corruption: Corruption = MASK_ONLY
    min_targets: int = 0

    @staticmethod
    def unused(chosen: Policy | str | Call, budget: str, fill: str) -> dict[str, str]:
        found = {"min_targets": "has no effect in masked diffusion, which draws a rate per text"}
        if not make_policy(chosen).has_zero_weights:
            found["fill"] = f"has no effect, because policy {chosen} can mask every unit"
        return found

    def _check(self) -> None:
        require_known("budget of masked diffusion", self.budget, ("exact", "bernoulli"))
        require_known("fill of masked diffusion", self.fill, ("none", "random"))
        require_known("visits of masked diffusion", self.visits, ("random", "complement"))
        if self.visits == "complement" and self.ratio.random and self.ratio.varies:
            # The weights of a visit assume that the other visit drew from the same distribution.
            raise MaskwiseError(
                "visits: complement of masked diffusion needs the same distribution of rates in "
                "both epochs of a pair",
                got=f"ratio {self.ratio}, which changes over the steps",
                do="use visits: random, or a distribution that stays, such as ratio uniform(0, 1)",
            )
        if self.corruption != MASK_ONLY or not self.predict.always(1):
            raise MaskwiseError(
                "masked diffusion must replace every selected token by the mask and predict it",
                got=f"corruption {self.corruption}, predict {self.predict}",
                do="use corruption mask-only and predict 1.0",
            )
        if self.ends != "none" and self.policy.unit_kind is not UnitKind.TOKEN:
            raise MaskwiseError(
                "ends of texts are no words, so the policy must mask single tokens",
                got=f"policy {self.policy}, ends: {self.ends}",
                do="use policy token, or ends: none",
            )
        if self.policy.needs_ratio:
            raise MaskwiseError(
                "masked diffusion needs a policy whose units do not depend on the masking rate",
                got=f"policy {self.policy}",
                do="use the policy token, span, or any policy with words or weights",
            )
        if self.budget == "exact" and self.policy.unit_kind is not UnitKind.TOKEN:
            raise MaskwiseError(
                f"policy {self.policy} masks several tokens together, which needs budget bernoulli",
                got="budget exact",
                do="set masking.budget: bernoulli",
            )


class Noising(Masker):
    """A masker for masked diffusion. The module docstring defines rates and loss weights.

    Args:
        tokenizer: a Hugging Face tokenizer, or a ``Vocabulary``.
        seed: any integer.
        settings: arguments of ``Masker``. ``ratio`` is a distribution of rates, such as
            ``uniform(0, 1)`` (default) or ``bell``; with a fixed ratio, the loss does not estimate
            the bound. ``budget`` is ``exact`` (default) or ``bernoulli``.
            ``fill`` is ``none`` or ``random`` (units of weight 0 can be masked, after all other
            units). ``visits`` is ``random`` or ``complement`` (every second epoch masks the tokens
            that the epoch before left visible; rates must not be drawn from a distribution that
            changes over the steps). ``corruption`` and ``predict`` must keep their defaults.

    Raises:
        MaskwiseError: the settings would make the loss weights wrong.

    >>> from maskwise import encode
    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> batch = Noising(tokenizer, seed=1)(encode(tokenizer, ["the cat sat on the mat"]), epoch=0)
    >>> weights = batch.loss_weight[batch.labels >= 0] * batch.targets
    >>> batch.counted, weights.round(decimals=6).unique().tolist()
    (6, [6.0])
    """

    places = True
    values: ClassVar[type[Masking]] = Noise

    def __init__(self, tokenizer: Tokenizer, *, seed: int = 0, **settings: Any):
        self._set(tokenizer, Noise.of(**settings), seed)

    def _set(self, tokenizer: Tokenizer, masking: Masking, seed: int) -> None:
        super()._set(tokenizer, masking, seed)
        self._rates: dict[tuple[int, int | None], Rates] = {}

    def rates(self, step: int = 0, total_steps: int | None = None) -> Rates:
        """Return the distribution of rates at a step."""
        when = (step, total_steps) if self.ratio.varies else (0, None)
        rates = self._rates.get(when)
        if rates is None:
            rates = Rates(self.ratio, *when, twice=self.masking.visits == "complement")
            # Tabulating quantiles takes longer than masking a batch, so keep the last table.
            self._rates = {when: rates}
        return rates

    def corrupted(self, line: Line, when: When) -> tuple[Masked, Choice]:
        return super().corrupted(with_ends(line, self.masking.ends, self.vocabulary.eos), when)

    def choose(self, line: Line, draws: Draws, when: When) -> Choice:
        rates = self.rates(when.step, when.total_steps)
        draws, second = self.paired(line, draws, when)
        if when.place is None or self.masking.visits == "complement":
            # Both epochs of a pair need the same rate. The position of a row would give two rates,
            # because rows have another order in each epoch.
            u_P = draws.per_piece(Purpose.RATIO)
        else:
            place_P = when.place[line.row]
            within_P = rank_within(np.bincount(line.row, minlength=line.shape[0]))
            u_P = even_draws(place_P, within_P, seed=self.seed, epoch=when.epoch)
        units = self.cut(line, draws, when)
        exact = self.masking.budget == "exact"
        return noised(units, rates, rates.draw(u_P), draws, exact=exact, second=second)


def with_ends(line: Line, ends: str, end: int | None) -> Line:
    """Return rows in which the ends of texts may be masked, and are targets.

    Args:
        line: the rows.
        ends: one of ``settings.ENDS``.
        end: the id of the end token.

    Raises:
        MaskwiseError: the tokenizer has no end token, or padding is asked of packed rows.

    >>> from maskwise.masking.line import Frame
    >>> columns = {"input_ids": np.array([7, 8, 9])}
    >>> where = {"example_id": np.array([0, 1]), "length": 5, "frame": Frame(1, 2, 0)}
    >>> line = Line.of_pieces(columns, np.array([1, 2]), np.array([0, 1]), **where)
    >>> with_ends(line, "token", 2).eligible.astype(int).tolist()
    [0, 1, 1, 0, 0, 0, 1, 1, 1, 0]
    >>> with_ends(line, "padding", 2).input_ids.tolist()
    [1, 7, 2, 2, 2, 1, 8, 9, 2, 2]
    """
    if ends == "none":
        return line
    if end is None:
        raise MaskwiseError(
            "the tokenizer has no end token to learn",
            got=f"ends: {ends}",
            do="set tokenizer.eos_token, or ends: none",
        )
    # In GPT-2, the end token is also the first one.
    behind = np.arange(len(line.input_ids)) > line.first[line.piece]
    behind &= ~line.content
    if ends == "token":
        target = behind & line.present & (line.input_ids == end)
        return replace(line, content=line.content | target, eligible=line.eligible | target)
    if line.packed:
        raise MaskwiseError(
            "padding is a target only if every row has one text",
            got="rows with several texts",
            do="set corpus.layout: document, or masking.ends: token",
        )
    padding = behind & ~line.present
    target = padding | (behind & (line.input_ids == end))
    return replace(
        line,
        input_ids=np.where(padding, end, line.input_ids),
        attention_mask=None,
        content=line.content | target,
        eligible=line.eligible | target,
    )


def noised(
    units: Units, rates: Rates, rate_P: Array, draws: Draws, *, exact: bool, second: bool
) -> Choice:
    """Select units at the given rates.

    Args:
        units: the candidate units.
        rates: the distribution from which the rates were drawn.
        rate_P: (P,) float64 in (0, 1], the rate of each piece.
        draws: the random draws for these pieces.
        exact: whether to mask ⌈rate · L⌉ tokens. If False, each unit is masked independently.
        second: whether to mask the units that would be left visible if ``second`` were False.

    Returns:
        The choice, with the resulting rates (empty pieces keep theirs) and the loss weights.

    Raises:
        MaskwiseError: units have several tokens and ``exact`` is True, or weights are unequal and
            ``exact`` or ``second`` is True.
    """
    equal = units.weight is None
    if (exact and not (equal and units.by_token)) or (second and not equal):
        do = "set masking.budget: bernoulli" if exact else "set masking.visits: random"
        got = "units of several tokens" if equal else "units with weights"
        raise MaskwiseError(
            "masked diffusion with these settings needs single tokens of equal weight",
            got=got,
            do=do,
        )
    piece = units.piece
    if exact:
        tokens_P = units.tokens_P
        number_P = rates.number(rate_P, tokens_P)
        chosen = up_to(units, number_P, draws)
        if second:
            chosen = ~chosen
            number_P = tokens_P - number_P
        weight_U = rates.number_weight(number_P, tokens_P)[piece]
        rate_P = np.where(tokens_P > 0, number_P / np.maximum(tokens_P, 1), rate_P)
    elif equal:
        u_U = unit_interval(units.draw(draws, Purpose.BERNOULLI))
        chosen = u_U < rate_P[piece]
        if second:
            chosen = ~chosen
            rate_P = 1 - rate_P
        weight_U = rates.weight(rate_P)[piece]
    else:
        u_U = unit_interval(units.draw(draws, Purpose.BERNOULLI))
        reach_U, slope_U = reached(units, rate_P)
        chosen = u_U < reach_U
        weight_P = rates.weight(rate_P) * rate_P
        weight_U = weight_P[piece] * slope_U / np.maximum(reach_U, 1e-300)
    weight_T = np.zeros(len(units.line.input_ids))
    # If units are single tokens, weights per unit are already weights per token.
    weight_T[units.tokens] = weight_U if units.by_token else weight_U[units.unit]
    return Choice(units, chosen, rate_P, loss_weight=weight_T)


def corrupt(
    input_ids: Tensor | ArrayLike,
    loss_mask: Tensor | ArrayLike,
    mask_token_id: int,
    *,
    ratio: Spec = "uniform(0, 1)",
    budget: str = "bernoulli",
    seed: int = 0,
    epoch: int | None = None,
    step: int | None = None,
    total_steps: int | None = None,
    example_id: Tensor | ArrayLike | None = None,
    place: Tensor | ArrayLike | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask rows for a diffusion trainer outside maskwise.

    Arrays may be tensors on any device, numpy arrays or lists.

    With the results, the loss of a batch is Σ mask · cross-entropy / rate, divided by
    ``loss_mask.sum()``. For distributions other than ``uniform(0, 1)``, use the weights from
    ``masking.diffusion.Rates`` instead of 1 / rate.

    Args:
        input_ids: (B, L) whole numbers, the token ids.
        loss_mask: (B, L), 1 or True for tokens that may be masked; 0 or False for prompts, padding
            and special tokens.
        mask_token_id: the id that replaces masked tokens.
        ratio: the distribution of the rates.
        budget: ``bernoulli`` masks each token independently. ``exact`` masks ⌈t · L⌉ of L tokens,
            where t is drawn; the returned rate is the share of masked tokens.
        seed: any integer.
        epoch: the number of the pass over the data. If None, masks depend on the step instead.
        step: the optimiser step, by default 0. Without epoch and step, a warning is given.
        total_steps: the number of steps. Distributions that change over training need this number.
        example_id: (B,) int64, the permanent ids of the rows, from which masks are computed;
            default: hashes of the tokens.
        place: (B,) the positions of the rows in the order of the epoch. If given, rates are drawn
            from a low-discrepancy sequence.

    Returns:
        ``noisy`` (B, L), ``mask`` (B, L) bool and ``rate`` (B, L) float32, as tensors on the device
        of ``input_ids``. ``noisy`` has the type of ``input_ids``, or int64 if these are no tensor.

    Raises:
        MaskwiseError: the shapes do not match, an array has the wrong type (such as floats for
            ``example_id``), a number is negative, or ``ratio`` is no valid schedule.

    >>> import torch
    >>> ids = torch.arange(10, 22).view(2, 6)
    >>> noisy, mask, rate = corrupt(ids, torch.ones_like(ids), 3, step=0, budget="exact")
    >>> bool((noisy[mask] == 3).all() and (noisy[~mask] == ids[~mask]).all())
    True
    """
    import torch

    ids_BL = whole_numbers("input_ids", input_ids, shape=(None, None), least=0)
    shape = ids_BL.shape
    rows, columns = shape
    eligible = flags("loss_mask", loss_mask, shape=shape).reshape(-1)
    if not is_tensor(input_ids):
        input_ids = torch.from_numpy(ids_BL.copy())
    elif input_ids.is_floating_point() or input_ids.dtype is torch.bool:
        # It is empty, because ids of these types are refused.
        input_ids = input_ids.long()
    most = torch.iinfo(input_ids.dtype).max
    mask_token_id = whole_number("mask_token_id", mask_token_id, least=0, most=most)
    seed = whole_number("seed", seed)
    step, total_steps, epoch = checked_moment(step, total_steps, epoch)
    if epoch is None and step is None:
        warnings.warn("without epoch or step, a row gets the same mask each time", stacklevel=2)
    ids = ids_BL.reshape(-1)
    begin = np.arange(rows) * columns
    if example_id is None:
        names = content_ids(ids, eligible, begin)
    else:
        names = whole_numbers("example_id", example_id, shape=(rows,), wraps=True)
    line = Line((rows, columns), ids, None, eligible, eligible, begin, names)
    draws = Draws(names, seed=seed, epoch=epoch, step=step or 0)
    places = None
    if place is not None:
        places = whole_numbers("place", place, shape=(rows,), least=0)
    # ``loss_mask`` says which tokens may be masked, so no table of the vocabulary is needed.
    nothing = np.zeros(0, bool)
    vocabulary = Vocabulary(0, mask_token_id, 0, content=nothing, eligible=nothing)
    noising = Noising(vocabulary, ratio=ratio, budget=budget, seed=seed)
    choice = noising.choose(line, draws, When(step or 0, total_steps, epoch, place=places))
    mask = torch.from_numpy(choice.tokens.reshape(rows, columns)).to(input_ids.device)
    rate = torch.from_numpy(choice.ratio_P.astype(np.float32)).to(input_ids.device)
    noisy = torch.where(mask, mask_token_id, input_ids)
    return noisy, mask, rate.unsqueeze(1).expand(rows, columns).contiguous()
