"""How the masks of a row in different epochs hang together; and layers whose tokens are never
masked.

``random``
    Each epoch's mask is drawn anew.
``complement``
    Epochs go in pairs: the second visit masks what the first left. Of a ratio r it is 1 − r.
``coverage``
    Over 1/r epochs every unit is masked once: the units of a piece stand in one random order, and
    epoch e takes the stretch from e·r to (e + 1)·r of it. With the next round there is another
    order.

Nothing is remembered: both are functions of (seed, epoch, example), by keys of the pair or of the
round instead of the epoch's. Units are whole, so a visit may have a unit more or less than its
ratio says, and none of a short piece: budgets other than ``expected``, ``fill: skip-row`` and
``min_targets`` above 1 are refused. Where weights change from epoch to epoch (policies that learn),
so does the order, and the promise is that of the weights of the moment.

Source: complementary masks of one text after another, as in 2025's masked diffusion models; the
    rest is ours.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.policies import Moment
from maskwise.masking.select import Selection, in_order
from maskwise.masking.units import Units
from maskwise.segments import counts_within, sums_within

if TYPE_CHECKING:
    from maskwise.masking.masker import Masker


def kept_visible(batch: AnnotatedBatch, layer: str | None) -> AnnotatedBatch:
    """The batch, in which no token with a number ≥ 0 in a layer may be masked (None: as it is).

    Raises:
        MaskwiseError: there is no such layer.
    """
    if layer is None:
        return batch
    shown = batch.layer(layer, policy=f"keep: {layer}") >= 0
    return replace(batch, eligible=batch.eligible & ~shown)


def check_visits(masker: Masker) -> None:
    """Refuse settings that visits which hang together cannot keep: they share all units of a row
    out over epochs.

    Raises:
        MaskwiseError: a policy whose units follow the ratio, since no visit has what another left;
            a budget, a fill or a least number of targets that would take or leave other units than
            the share of the visit.
    """
    visits = masker.visits
    if visits == "random":
        return
    if masker.policy.needs_ratio:
        what = f"visits: {visits} needs units and weights that do not depend on the ratio"
        raise MaskwiseError(what, got=f"policy {masker.policy}", do="take visits: random")
    for setting, kept in (
        ("budget", ("expected",)),
        ("fill", ("none", "random")),
        ("min_targets", (0, 1)),
    ):
        value = getattr(masker, setting)
        if value not in kept:
            what = f"visits: {visits} cannot keep this {setting}, because every unit has its visit"
            allowed = " or ".join(map(str, kept))
            raise MaskwiseError(
                what, got=value, allowed=allowed, do="change it, or take visits: random"
            )


def visit_of(epoch: int | None, visits: str) -> tuple[int, bool]:
    """The pair of epochs, and whether this is its second visit.

    Raises:
        MaskwiseError: the epoch is not known.
    """
    if epoch is None:
        do = (
            "say epoch=…; a mix of sources has epochs of its own for each: take visits: random "
            "there"
        )
        raise MaskwiseError(f"visits: {visits} needs the epoch", got="none", do=do)
    return epoch // 2, epoch % 2 == 1


def revisited(
    masker: Masker, batch: AnnotatedBatch, moment: Moment
) -> tuple[Selection, Array, None]:
    """What ``Masker.choose`` gives, where a visit depends on those before.

    Raises:
        MaskwiseError: no epoch; ``coverage`` with a ratio that changes.
    """
    pair, second = visit_of(moment.epoch, masker.visits)
    assert moment.epoch is not None
    if masker.visits == "complement":
        keys = Keys(batch.example_id, seed=masker.seed, epoch=pair)
        ratio_P = masker.ratio.rows(keys.per_piece(Purpose.RATIO), moment.step, moment.total_steps)
        ratio_P = masker.policy.ratios(ratio_P, keys, moment)
        now = replace(moment, ratio=ratio_P)
        if second:
            return (
                _stretch(masker, batch, now, keys, ratio_P, np.ones_like(ratio_P)),
                1 - ratio_P,
                None,
            )
        return _stretch(masker, batch, now, keys, np.zeros_like(ratio_P), ratio_P), ratio_P, None
    ratio = masker.ratio(moment.step, moment.total_steps)
    if masker.ratio.varies or masker.ratio.quantile is not None or not ratio > 0:
        what = "visits: coverage needs one ratio above 0 for all steps and rows"
        raise MaskwiseError(what, got=masker.ratio, do="take a number, such as 0.25")
    ratio_P = np.full(len(batch.begin), ratio)
    now = replace(moment, ratio=ratio_P)
    selections = []
    for number, low, high in _stretches(Fraction(ratio).limit_denominator(1 << 20), moment.epoch):
        keys = Keys(batch.example_id, seed=masker.seed, epoch=number)
        low_P = np.full_like(ratio_P, float(low))
        high_P = np.full_like(ratio_P, float(high))
        selections.append(_stretch(masker, batch, now, keys, low_P, high_P))
    if len(selections) == 1:
        return selections[0], ratio_P, None
    # The end of one round and the beginning of the next, whose units are others: their tokens are
    # the units.
    tokens = np.flatnonzero(selections[0].tokens | selections[1].tokens)
    return Selection(Units.single(batch, tokens), np.ones(len(tokens), bool)), ratio_P, None


def _stretches(share: Fraction, epoch: int) -> list[tuple[int, Fraction, Fraction]]:
    """(round, from, to): the parts of rounds that an epoch takes; two where a round ends inside.

    >>> [(n, str(low), str(high)) for n, low, high in _stretches(Fraction(2, 5), 2)]
    [(0, '4/5', '1'), (1, '0', '1/5')]
    """
    start, end = share * epoch, share * (epoch + 1)
    first = start.numerator // start.denominator
    if end <= first + 1:
        return [(first, start - first, end - first)]
    return [(first, start - first, Fraction(1)), (first + 1, Fraction(0), end - first - 1)]


def _stretch(
    masker: Masker, batch: AnnotatedBatch, moment: Moment, keys: Keys, low_P: Array, high_P: Array
) -> Selection:
    """The units whose middle lies in a stretch of the tokens of their piece, in the order of the
    draw.
    """
    units = masker.policy.cut(batch, keys, moment)
    order = in_order(units, keys, may_fill=masker.fill == "random")
    piece = units.piece[order]
    counts_P = counts_within(piece, len(low_P))
    length = units.length[order]
    total_P = np.bincount(piece, length, len(low_P))
    middle = (sums_within(length, counts_P) - length / 2) / np.maximum(total_P, 1)[piece]
    # A stretch that ends where a middle lies is rounded alike for the one before and the one behind
    # it.
    inside = (middle >= low_P[piece] - 1e-12) & (middle < high_P[piece] - 1e-12)
    chosen = np.zeros(len(units.piece), bool)
    chosen[order[inside]] = True
    return Selection(units, chosen)
