"""Sort, rank and sum within pieces of documents, and arrange pieces in rows.

Arrays have the items of all pieces, piece after piece. The items (tokens, words, spans, …) are
called the *members* of a piece. Every function handles all pieces in one numpy pass, so that no
caller loops over pieces in Python. Shapes: P pieces, N members in total.
"""

from __future__ import annotations

import numpy as np

from maskwise.masking.draws import Array


def order_within(piece: Array, key: Array, *, pieces: int) -> Array:
    """(N,) int64: the indices that sort members by piece and then by key.

    Args:
        piece: (N,) int64, the piece of each member.
        key: (N,) the sort key of each member; keys are distinct within a piece.
        pieces: P.
    """
    bits = max(1, len(key) - 1).bit_length()
    # ``sort`` is three times as fast as ``argsort``. Therefore, integers of 64 bits are sorted,
    # which consist of the piece (high bits), the 32-bit key, and the index (low bits).
    if key.itemsize == 4 and pieces.bit_length() + 32 + bits <= 63:
        line = piece << 32
        line += key
        line <<= bits
        line |= np.arange(len(key))
        line.sort()
        line &= (1 << bits) - 1
        return line
    order = key.argsort()
    piece_in_order = piece.take(order)
    if pieces <= 1 << 16:
        # numpy sorts 16-bit integers by radix, in linear time.
        piece_in_order = piece_in_order.astype(np.uint16)
    return order.take(piece_in_order.argsort(kind="stable"))


def offsets(counts_P: Array) -> Array:
    """(P,) int64: the index of the first member of each piece.

    >>> offsets(np.array([2, 0, 3])).tolist()
    [0, 2, 2]
    """
    return counts_P.cumsum() - counts_P


def rank_within(counts_P: Array) -> Array:
    """(N,) int64: the number of each member in its piece: 0, 1, …, ``counts_P[p]`` − 1."""
    return listed(np.zeros_like(counts_P), counts_P)


def owners(counts_P: Array) -> Array:
    """(N,) int64: the piece of each member. Piece p has ``counts_P[p]`` members.

    >>> owners(np.array([2, 0, 3])).tolist()
    [0, 0, 2, 2, 2]
    """
    return np.arange(len(counts_P)).repeat(counts_P)


def listed(start: Array, length: Array) -> Array:
    """(N,) int64: the concatenation of the ranges start, start + 1, …, start + length − 1.

    >>> listed(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    shift = start - offsets(length)
    return np.arange(int(length.sum())) + shift.repeat(length)


def changes(*columns: Array) -> Array:
    """(N,) bool: True at position 0 and wherever a column differs from the position before.

    >>> changes(np.array([3, 3, 5, 5]), np.array([0, 1, 1, 1])).tolist()
    [True, True, True, False]
    """
    first, *others = columns
    opens = np.ones(len(first), bool)
    np.not_equal(first[1:], first[:-1], out=opens[1:])
    for column in others:
        opens[1:] |= column[1:] != column[:-1]
    return opens


def counts_within(piece: Array, pieces: int) -> Array:
    """(P,) int64: the number of members of each piece; ``piece`` (N,) must be sorted."""
    before = piece.searchsorted(np.arange(pieces + 1))
    return before[1:] - before[:-1]


def first_members(counts_P: Array, wanted_P: Array) -> Array:
    """(M,) int64: the indices of the first ``wanted_P`` members of each piece, or of all members if
    there are fewer.
    """
    taken_P = np.maximum(np.minimum(counts_P, wanted_P), 0)
    return listed(offsets(counts_P), taken_P)


def first_within(piece: Array, key: Array, wanted_P: Array) -> Array:
    """(N,) bool: True for the ``wanted_P`` members with the smallest keys in each piece."""
    order = order_within(piece, key, pieces=len(wanted_P))
    counts_P = counts_within(piece[order], len(wanted_P))
    first = np.zeros(len(key), bool)
    first[order[first_members(counts_P, wanted_P)]] = True
    return first


def sums_within(values: Array, counts_P: Array) -> Array:
    """(N,) cumulative sums of ``values`` within each piece: int64, or float64 for floats."""
    total = _sums(values)
    before_P = total.take(offsets(counts_P))
    return total[1:] - before_P.repeat(counts_P)


def totals_within(values: Array, counts_P: Array) -> Array:
    """(P,) the sum of ``values`` in each piece: int64, or float64 for floats.

    >>> totals_within(np.array([1, 2, 5, 5, 5]), np.array([2, 0, 3])).tolist()
    [3, 0, 15]
    """
    total = _sums(values)
    end_P = counts_P.cumsum()
    return total.take(end_P) - total.take(end_P - counts_P)


def _sums(values: Array) -> Array:
    """(N + 1,) the sum of all values before each member, and of all values as last item."""
    total = np.zeros(len(values) + 1, np.result_type(values, np.int64))
    values.cumsum(out=total[1:])
    return total


LEAST_LOGIT = -60.0
"""Smallest difference between a logit and the highest logit of its piece. Lower logits are raised,
so that no weight is 0. A weight of e⁻⁶⁰ is too small to matter."""


def weights_within(logit: Array, piece: Array, *, pieces: int) -> Array:
    """(N,) float64: exp(logit), divided by the largest value in the piece to avoid overflow."""
    top_P = np.full(pieces, -np.inf)
    np.maximum.at(top_P, piece, logit)
    return np.exp(np.maximum(logit - top_P[piece], LEAST_LOGIT))


def best_fit(cost: Array, space: int) -> Array:
    """Assign pieces to rows. The longest piece comes first, and goes into the fullest row that has
    room for it.

    Rows with the same room left are on one stack. Bit n of an integer says whether the stack for
    room n has rows. The lowest set bit at or above the cost of a piece is thus the tightest fit.

    Returns:
        The row of each piece, (P,).
    """
    row_of_piece = np.empty(len(cost), dtype=np.int64)
    order = np.argsort(-cost, kind="stable")
    stacks: list[list[int]] = [[] for _ in range(space + 1)]
    open_stacks = 0
    rows = 0
    for piece, need in zip(order.tolist(), cost[order].tolist()):
        fitting = open_stacks >> need
        if fitting:
            lowest_bit = fitting & -fitting
            room = need + lowest_bit.bit_length() - 1
            row = stacks[room].pop()
            if not stacks[room]:
                open_stacks ^= 1 << room
        else:
            room = space
            row = rows
            rows += 1
        row_of_piece[piece] = row
        stacks[room - need].append(row)
        open_stacks |= 1 << (room - need)
    # Rows are renumbered by their first piece, so that they are in the order of the corpus.
    first = np.full(rows, len(cost))
    np.minimum.at(first, row_of_piece, np.arange(len(cost)))
    rank = np.empty(rows, dtype=np.int64)
    rank[first.argsort(kind="stable")] = np.arange(rows)
    return rank[row_of_piece]
