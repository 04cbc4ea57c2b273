"""Select units by weighted sampling without replacement, up to a budget of tokens.

A unit is a group of tokens that are masked together, and a piece is a document in a row; the module
docstring of ``masker`` explains all terms.

Each unit gets a random sort key. If all weights are equal, the key is a uniform draw u. Otherwise
the key is ``−log(u) / weight``, so that units with larger weights tend to come first (an
exponential race). In each piece, the units are sorted by their keys and selected from the front.
The budget mode decides where selection ends:

``exact``
    Selects at most the budget. A unit that does not fit is skipped, and later units are tried. With
    a small budget, this favours short units: in a text of 64 tokens with a ratio of 15 %, words of
    one token are selected with probability .200, and the longest words with probability .105.
``expected``
    Selects the budget on average. The first unit that does not fit is selected with probability
    (tokens left in the budget) / (length of the unit), and selection ends. Only this unit can
    exceed the budget. All units are selected with nearly equal probability if the budget is several
    times the longest unit. In texts of 12 tokens, with a ratio of 15 %, words of one token are
    selected with probability .188, and words of four tokens with probability .074.
``bernoulli``
    Selects each unit independently with probability min(1, ratio × weight), without a budget. If
    units are single tokens, more tokens are added in the order of their keys until ``min_targets``
    is reached. Tokens of weight 0 are added only with ``fill: random``.

Cost: one sort of the units that a budget may reach (of all units, if they have weights), and about
twenty passes over the units. On text, ``exact`` makes two or three more passes over the sorted
units behind the first unit that does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maskwise.masking.draws import Array, Draws, Purpose, unit_interval
from maskwise.masking.line import Line
from maskwise.masking.segments import (
    counts_within,
    first_members,
    first_within,
    offsets,
    order_within,
    sums_within,
)
from maskwise.masking.units import FILLING, NUMBERS, Units, budgets, floors

BUDGETS = ("exact", "expected", "bernoulli")
FILLS = ("none", "random", "skip-row")

# In a weighted key, the low 20 bits are the number of the unit.
_NUMBER_MASK = NUMBERS - 1
# Larger weights are reduced to this value, because their keys would underflow to 0.
_HEAVIEST = 2.0**900


@dataclass(eq=False)
class Choice:
    """The choice of units to mask.

    Attributes:
        units: all candidate units.
        chosen: (U,) bool, whether each unit was selected.
        ratio_P: (P,) float64, the requested ratio of each piece.
        budget: (P,) int64, the budget of each piece in tokens. None if there is no budget: with
            ``budget: bernoulli``, with ``visits`` other than ``random``, and in masked diffusion.
        loss_weight: (T,) float64, the factor by which each token's loss is multiplied in masked
            diffusion; otherwise None.
    """

    units: Units
    chosen: Array
    ratio_P: Array
    budget: Array | None = None
    loss_weight: Array | None = None

    @property
    def line(self) -> Line:
        """The line from which the units were selected."""
        return self.units.line

    @cached_property
    def tokens(self) -> Array:
        """(T,) bool: the selected tokens."""
        return self.units.spread(self.chosen)

    @cached_property
    def starts(self) -> Array:
        """(T,) bool: the first token of each run of selected tokens in a piece."""
        chosen = self.tokens
        start = chosen.copy()
        start[1:] &= ~chosen[:-1]
        if len(start):
            start[self.line.begin] = chosen[self.line.begin]
        return start

    @property
    def masked_pieces(self) -> Array:
        """(T,) bool: the tokens of pieces with a selected token, without padding."""
        line = self.line
        return (line.count(self.tokens) > 0).take(line.piece) & line.present


def select(
    units: Units,
    ratio_P: Array,
    draws: Draws,
    *,
    budget: str = "expected",
    fill: str = "none",
    min_targets: int = 1,
) -> Choice:
    """Select units up to a budget in each piece.

    Args:
        units: the candidates, with their weights.
        ratio_P: (P,) float64 in [0, 1], the share of the tokens in units to select.
        draws: the random draws for these pieces.
        budget: one of ``BUDGETS``; the module docstring describes them.
        fill: one of ``FILLS``: what to do if a piece has too few units of positive weight to use
            its budget. ``none`` selects fewer tokens. ``random`` also selects units of weight 0,
            with equal probability; the caller must first replace their weights with
            ``Units.filled``. ``skip-row`` selects nothing in this piece.
        min_targets: the minimum budget of a piece, in tokens. Pieces whose eligible tokens × ratio
            are below 0.5 have no minimum. With ``bernoulli``, the minimum is used only if units are
            single tokens, because adding longer units would distort their probabilities.
    """
    if budget == "bernoulli":
        floor_P = floors(units.tokens_P, ratio_P, min_targets)
        return Choice(units, _independently(units, ratio_P, draws, floor_P), ratio_P)
    budget_P = budgets(units.tokens_P, ratio_P, draws, min_targets)
    if fill == "skip-row" and units.weight is not None:
        usable = units.length * (units.weight > 0)
        usable_P = np.bincount(units.piece, usable, len(budget_P))
        budget_P *= usable_P >= budget_P
    chosen = up_to(units, budget_P, draws, exact=budget == "exact")
    return Choice(units, chosen, ratio_P, budget_P)


def expected_ratios(units: Units, ratio_P: Array) -> tuple[float, float]:
    """Return the share of tokens that ``bernoulli`` shall select, and the share that it selects.

    Weights with a mean of 1 make both nearly equal. Both are 0 if there are no units.
    """
    length = units.length
    whole = max(1, int(length.sum()))
    probability = units.repeated(ratio_P)
    wanted = float((probability * length).sum())
    if units.weight is not None:
        probability = np.minimum(probability * units.weight, 1.0)
    return wanted / whole, float((probability * length).sum()) / whole


def unit_keys(units: Units, draws: Draws) -> Array:
    """(U,): the sort key of each unit; int32 if all weights are equal, otherwise int64."""
    draw = units.draw(draws, Purpose.SELECT)
    if units.weight is None:
        return draw
    weight = units.weight.clip(FILLING, _HEAVIEST)
    # The bits of positive floats, read as integers, have the same order as the floats. The lowest
    # bits of a logarithm may differ between machines, so the unit's number replaces them. The
    # number also makes all keys of a piece distinct.
    race = (-np.log(unit_interval(draw)) / weight).view(np.int64)
    return (race & ~_NUMBER_MASK) + units.number


def in_order(units: Units, draws: Draws, *, budget_P: Array | None = None) -> Array:
    """(A,) int64: the indices of the units of positive weight, sorted by piece, then by key.

    If ``budget_P`` is given, the result may leave out units behind the first unit that does not fit
    into the budget.
    """
    key = unit_keys(units, draws)
    pieces = units.line.pieces
    near = None
    if units.weight is None and budget_P is not None:
        near = _likely_first(units, key, budget_P)
    if near is not None:
        return near[order_within(units.piece[near], key[near], pieces=pieces)]
    order = order_within(units.piece, key, pieces=pieces)
    if units.weight is not None:
        order = order[units.weight.take(order) > 0]
    return order


def _likely_first(units: Units, key: Array, budget_P: Array) -> Array | None:
    """Return the indices of the units with the smallest keys, enough to exceed the budget.

    Each piece has a threshold, and only units with keys below the threshold need sorting. Without
    weights, keys are uniform. The threshold is set so that the expected number of units below it is
    the number that uses the budget, plus three standard deviations, plus two. If the units below
    the threshold still cannot use the budget, all units of the piece are returned. If sorting all
    units of the batch is cheaper, None is returned.
    """
    count_P = units.count
    wanted_P = count_P * budget_P / np.maximum(units.tokens_P, 1)
    most_P = np.minimum(wanted_P + 3 * np.sqrt(wanted_P) + 2, count_P)
    if most_P.sum() >= 0.7 * len(key):
        return None
    # Avoid a division by 0 in pieces without units.
    share_P = most_P / np.maximum(count_P, 1)
    edge_P = (np.maximum(share_P * 2.0**32, 1) - 2.0**31 - 1).astype(np.int32)
    first = key <= units.repeated(edge_P)
    near = np.flatnonzero(first)
    length = None if units.by_token else units.length[near]
    short_P = np.bincount(units.piece[near], length, len(budget_P)) <= budget_P
    if (short_P & (most_P < count_P)).any():
        near = np.flatnonzero(first | short_P[units.piece])
    return near


def up_to(units: Units, budget_P: Array, draws: Draws, *, exact: bool = True) -> Array:
    """(U,) bool: select units in the order of their keys until the budget of each piece is used.

    If ``exact``, units that do not fit are skipped. Otherwise the first unit that does not fit is
    selected at random, and selection ends.
    """
    order = in_order(units, draws, budget_P=budget_P)
    chosen = np.zeros(len(units.piece), bool)
    if exact and not units.by_token:
        left_P = _fill(units, order, budget_P, chosen)
        far = _left_out(units, order, left_P)
        if len(far):
            key = unit_keys(units, draws)[far]
            far = far[order_within(units.piece[far], key, pieces=len(budget_P))]
            _fill(units, far, left_P, chosen)
        return chosen
    piece = units.piece[order]
    counts_P = counts_within(piece, len(budget_P))
    if units.by_token:
        # Every single token fits until the budget is used up.
        chosen[order[first_members(counts_P, budget_P)]] = True
        return chosen
    length = units.length[order]
    fits = sums_within(length, counts_P) <= budget_P.repeat(counts_P)
    chosen[order[fits]] = True
    fitting = piece[fits]
    left_P = budget_P - np.bincount(fitting, length[fits], len(budget_P)).astype(np.int64)
    taken_P = np.bincount(fitting, minlength=len(budget_P))
    # The border unit of a piece is the first unit that does not fit. A piece has no border unit if
    # all its units fit, or if no budget is left.
    border_P = np.flatnonzero((taken_P < counts_P) & (left_P > 0))
    border = (offsets(counts_P) + taken_P)[border_P]
    taken = draws.per_piece(Purpose.BORDER)[border_P] * length[border] <= left_P[border_P]
    chosen[order[border[taken]]] = True
    return chosen


def _fill(units: Units, order: Array, budget_P: Array, chosen: Array) -> Array:
    """Mark in ``chosen`` the units that fit into the budget, tried in this order, piece by piece.

    Each pass selects the longest prefix of the remaining units that fits into the rest of the
    budget. Then it drops all units that are longer than the new rest. The first unit behind the
    prefix is always one of them. The number of units thus falls in every pass, and few passes are
    needed.

    Returns:
        (P,) int64: the rest of each piece's budget.
    """
    left_P = budget_P.copy()
    piece = units.piece[order]
    length = units.length[order]
    while len(order):
        counts_P = counts_within(piece, len(left_P))
        fits = sums_within(length, counts_P) <= np.repeat(left_P, counts_P)
        chosen[order[fits]] = True
        left_P -= np.bincount(piece[fits], length[fits], len(left_P)).astype(np.int64)
        behind = np.flatnonzero(~fits & (length <= left_P[piece]))
        order, piece, length = order[behind], piece[behind], length[behind]
    return left_P


def _left_out(units: Units, order: Array, left_P: Array) -> Array:
    """Return the indices of units that ``in_order`` left out and that fit into the rest.

    Their keys are larger than those of all units in ``order``. Few pieces need them: those in which
    no unit that is short enough had a small key.
    """
    # If units have weights, only those that must not be selected are left out.
    if units.weight is not None or len(order) == len(units.piece):
        return np.zeros(0, np.int64)
    fits = units.length <= units.repeated(left_P)
    fits[order] = False
    return np.flatnonzero(fits)


def _independently(units: Units, ratio_P: Array, draws: Draws, floor_P: Array) -> Array:
    """(U,) bool: select each unit independently, then add single tokens up to ``floor_P``."""
    probability = ratio_P.take(units.piece)
    available = np.ones(len(probability), bool)
    if units.weight is not None:
        probability *= units.weight
        available = units.weight > 0
    draw = unit_interval(units.draw(draws, Purpose.BERNOULLI))
    chosen = (draw < probability) & available
    if not units.by_token:
        return chosen
    missing_P = floor_P - np.bincount(units.piece[chosen], minlength=len(floor_P))
    if (missing_P > 0).any():
        rest = np.flatnonzero(available & ~chosen)
        key = unit_keys(units, draws).take(rest)
        added = first_within(units.piece.take(rest), key, missing_P)
        chosen[rest[added]] = True
    return chosen


def stretch(units: Units, draws: Draws, low_P: Array, high_P: Array) -> Choice:
    """Sort the units at random, and select the part from the share ``low_P`` to ``high_P``.

    The sorted units of a piece are laid end to end on a line of length 1. A unit is selected if its
    middle on this line is at least low and below high.
    """
    order = in_order(units, draws)
    piece = units.piece[order]
    length = units.length[order]
    total_P = np.bincount(piece, length, len(low_P))
    counts_P = counts_within(piece, len(low_P))
    middle = (sums_within(length, counts_P) - length / 2) / np.maximum(total_P, 1)[piece]
    # Two adjacent parts share an edge. The tolerance is added to both parts alike, so that a middle
    # at the edge belongs to exactly one part in spite of rounding errors.
    inside = (middle >= low_P[piece] - 1e-12) & (middle < high_P[piece] - 1e-12)
    chosen = np.zeros(len(units.piece), bool)
    chosen[order[inside]] = True
    return Choice(units, chosen, high_P - low_P)
