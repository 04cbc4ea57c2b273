"""The ranks of a run, which divide the work of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from maskwise.draws import Array


class Added(Protocol):
    """A function that sums numbers over ranks, in float64 (``Engine.added``)."""

    def __call__(self, numbers: Sequence[float], error: Exception | None, /) -> list[float]: ...


def alone(numbers: Sequence[float], error: Exception | None, /) -> list[float]:
    """Return the numbers of a single rank, or raise its error."""
    if error:
        raise error
    return [*numbers]


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run, as one of them sees them. By default, there is only one.

    Attributes:
        rank: this rank.
        count: the number of ranks.
        added: a function that sums numbers over ranks.

    >>> Ranks().divided([1, 2], lambda part: [float(part)] * (part + 1))
    [array([0.]), array([1., 1.])]
    """

    rank: int = 0
    count: int = 1
    added: Added = alone

    def divided(
        self, sizes: Sequence[int], work: Callable[[int], Sequence[float] | Array]
    ) -> list[Array]:
        """Do the parts of a work, each on one rank, and return the results of all parts.

        The results do not depend on the number of ranks: each number is sent by one rank, and all
        others add 0 to it. Every rank does equally many parts, because with FSDP2 all ranks must
        take part in each forward pass. Therefore the last part may be repeated, without effect.

        Args:
            sizes: how many numbers each part gives.
            work: a function that does the part with this index, and returns its numbers.

        Raises:
            Exception: ``work`` failed on a rank; see ``Engine.added``.
        """
        found = [np.zeros(size) for size in sizes]
        failure = None
        try:
            for first in range(0, len(sizes), self.count):
                part = first + self.rank
                numbers = work(min(part, len(sizes) - 1))
                if part < len(sizes):
                    found[part][:] = numbers
        except Exception as error:
            failure = error
        flat = np.concatenate([np.zeros(0), *found]).tolist()
        together = np.array(self.added(flat, failure))
        ends = np.cumsum([0, *sizes])
        return [together[start:end] for start, end in pairwise(ends)]


ALONE = Ranks()
