"""Visits: how the masks of a row in different epochs depend on each other.

``random``
    Each epoch draws a new mask.
``complement``
    Epochs form pairs: the second visit masks what the first left. Its ratio is 1 − r.
``coverage``
    Over 1/r epochs, a round, every unit is masked once: the units of a piece are sorted at random,
    and epoch e takes the part from e·r to (e + 1)·r. Each round has a new order.

All are functions of (seed, epoch, example): ``complement`` keys its draws by the pair of epochs,
``coverage`` by the round. Units are whole, so a visit may mask a unit more or less than its ratio,
and nothing in a short piece. If a learning policy changes weights between epochs, the order changes
too.

Source: complementary masks of masked diffusion models of 2025; ``coverage`` is new here.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.policies import Moment, Policy
from maskwise.masking.schedules import Schedule
from maskwise.masking.select import Selection, in_order
from maskwise.masking.units import Units
from maskwise.segments import counts_within, sums_within


def check_visits(visits: str, policy: Policy, **settings: object) -> None:
    """Check that the other settings work with visits that couple epochs.

    Raises:
        MaskwiseError: a policy whose units depend on the ratio; a budget, fill or least number of
            targets that would add units to a visit or drop some.
    """
    if visits == "random":
        return
    if policy.needs_ratio:
        what = f"visits: {visits} needs units and weights that do not depend on the ratio"
        raise MaskwiseError(what, got=f"policy {policy}", do="take visits: random")
    possible = {"budget": ("expected",), "fill": ("none", "random"), "min_targets": (0, 1)}
    for setting, values in possible.items():
        if settings[setting] not in values:
            what = f"visits: {visits} does not allow this {setting}"
            raise MaskwiseError(what, got=settings[setting], allowed=values)


def visit_of(epoch: int | None, visits: str) -> tuple[int, bool]:
    """The number of the pair of epochs, and whether this epoch is the second of its pair.

    Raises:
        MaskwiseError: the epoch is unknown.
    """
    if epoch is None:
        do = "give epoch=…; sources of a mix have epochs of their own: take visits: random there"
        raise MaskwiseError(f"visits: {visits} needs the epoch", do=do)
    return epoch // 2, epoch % 2 == 1


def coverage(
    batch: AnnotatedBatch,
    moment: Moment,
    policy: Policy,
    ratio: Schedule,
    seed: int,
    *,
    may_fill: bool,
) -> Selection:
    """Select the part of a round that belongs to this epoch.

    Raises:
        MaskwiseError: no epoch, or a ratio that changes.
    """
    visit_of(moment.epoch, "coverage")
    assert moment.epoch is not None
    share = ratio(moment.step, moment.total_steps)
    if ratio.varies or ratio.random or not share > 0:
        what = "visits: coverage needs one ratio above 0 for all steps and rows"
        raise MaskwiseError(what, got=ratio, do="take a number, such as 0.25")
    ratio_P = np.full(len(batch.begin), share)
    # Fractions, so that the parts of a round meet exactly: floats would leave a gap or overlap.
    exact_share = Fraction(share).limit_denominator(1 << 20)
    selections = []
    for number, low, high in _stretches(exact_share, moment.epoch):
        keys = Keys(batch.example_id, seed=seed, epoch=number)
        units = policy.cut(batch, keys, moment)
        low_P = np.full_like(ratio_P, low)
        high_P = np.full_like(ratio_P, high)
        selections.append(stretch(units, keys, low_P, high_P, ratio_P, may_fill=may_fill))
    if len(selections) == 1:
        return selections[0]
    # Two rounds may have different units, so the selected tokens become the units.
    tokens = np.flatnonzero(selections[0].tokens | selections[1].tokens)
    return Selection(Units.single(batch, tokens), np.ones(len(tokens), bool), ratio_P)


def _stretches(share: Fraction, epoch: int) -> list[tuple[int, Fraction, Fraction]]:
    """The parts (round, from, to) that an epoch takes: two if a round ends inside the epoch.

    >>> [(n, str(low), str(high)) for n, low, high in _stretches(Fraction(2, 5), 2)]
    [(0, '4/5', '1'), (1, '0', '1/5')]
    """
    start = share * epoch
    end = start + share
    first = int(start)
    if end <= first + 1:
        return [(first, start - first, end - first)]
    return [(first, start - first, Fraction(1)), (first + 1, Fraction(0), end - first - 1)]


def stretch(
    units: Units, keys: Keys, low_P: Array, high_P: Array, ratio_P: Array, *, may_fill: bool
) -> Selection:
    """Sort units at random; select those whose middle lies between two shares of the tokens."""
    order = in_order(units, keys, may_fill=may_fill)
    piece = units.piece[order]
    length = units.length[order]
    total_P = np.bincount(piece, length, len(low_P))
    counts_P = counts_within(piece, len(low_P))
    middle = (sums_within(length, counts_P) - length / 2) / np.maximum(total_P, 1)[piece]
    # Both edges are shifted by the same tolerance: a middle on an edge, whatever its rounding
    # error, belongs to exactly one of the two parts that meet there.
    inside = (middle >= low_P[piece] - 1e-12) & (middle < high_P[piece] - 1e-12)
    chosen = np.zeros(len(units.piece), bool)
    chosen[order[inside]] = True
    return Selection(units, chosen, ratio_P)
