"""Check splits that keep groups together, such as all texts of an author.

A split puts whole groups on one side. With few groups, or with one that is very large, a part gets
a share of the text or of the rows that is far from the wanted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from maskwise.base.errors import MaskwiseError, plural
from maskwise.text.rows import held_out_below

FEWEST_GROUPS = 20
"""With fewer groups, the size of a part is far from the wanted size too often."""
HELD_OUT_SHARES = [number / 100 for number in range(1, 50)]


def check_groups(
    groups: int,
    share: float,
    *,
    wanted: float | None,
    what: str,
    part: str,
    noun: str,
    setting: str,
    do: str | None = None,
) -> None:
    """Check the size of a part of a split by groups.

    Args:
        groups: the number of groups.
        share: the part's share of all texts or rows.
        wanted: the wanted share; None if the split was made elsewhere.
        what: the beginning of messages.
        part: what the share is of, such as "of the rows are test rows".
        noun: what names the groups: "field" or "column".
        setting: the setting by which groups are kept together.
        do: what else to do about a wrong share.

    Raises:
        MaskwiseError: a share is wanted, and there are fewer than ``FEWEST_GROUPS`` groups, or the
            share is below half or above twice the wanted one.
    """
    if wanted is None:
        return
    if groups < FEWEST_GROUPS:
        raise MaskwiseError(
            f"{what}: too few groups to split",
            got=plural(groups, "group"),
            allowed=f"≥ {FEWEST_GROUPS}",
            do=f"name a finer {noun}, or remove {setting}",
        )
    if not wanted / 2 <= share <= 2 * wanted:
        finer = f"name a finer {noun}"
        raise MaskwiseError(
            f"{what}: {share:.1%} {part}",
            got=f"{groups:,} groups",
            allowed=f"{wanted / 2:.1%} to {2 * wanted:.1%}",
            do=f"{do}, or {finer}" if do else finer,
        )


def share_that_fits(places: Sequence[int], sizes: Sequence[int], wanted: float) -> float | None:
    """Return the share nearest to ``wanted`` that holds out between half and twice of itself.

    Args:
        places: the place of each group, which decides whether it is held out (``Document.place``).
        sizes: the size of each group.
        wanted: the share that does not fit.

    Returns:
        The share in hundredths, or None if none fits.
    """
    order_G = np.argsort(places)
    places_G = np.array(places)[order_G]
    below_G = np.cumsum([0, *np.array(sizes)[order_G]]) / sum(sizes)
    for share in sorted(HELD_OUT_SHARES, key=lambda share: abs(math.log(share / wanted))):
        held_out = below_G[np.searchsorted(places_G, held_out_below(share))]
        if share / 2 <= held_out <= 2 * share:
            return share
    return None
