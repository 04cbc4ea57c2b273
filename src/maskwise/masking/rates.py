"""Rates of masked diffusion: how likely each was to be drawn, and so what its row's loss must weigh.

A text of L tokens has the bound −log p(text) ≤ ∫₀¹ E[Σ_masked −log p(token | rest)] / t dt, where every token is masked
by itself with probability t. A rate drawn with density p(t) weighs its row by 1 / (t · p(t)), so that all distributions
estimate the same bound. A number n of masked tokens, drawn with probability P(n), weighs it by 1 / (n · P(n)).

Any schedule that gives each row a ratio of its own will do. It is read as a table of its quantiles, between which rates
are drawn evenly: the density is then known exactly, whatever the distribution. Three kinds:

- those that cover all of (0, 1), such as ``uniform(0, 1)``, are taken as they are;
- those that leave out a part, or nearly (``uniform(0.3, 0.8)``, ``bell``), would say nothing of that part: a share
  ``REST`` of the rates is drawn from ``uniform(0, 1)`` instead, so that no weight is above 1 / (REST · t);
- a few fixed rates (``constant``, ``mixture``) estimate no bound. A row weighs 1/t: the mean loss of its masked tokens.

Sources: Sahoo et al. 2024 (MDLM, arXiv 2406.07524), equation 10; Nie et al. 2025 (LLaDA, arXiv 2502.09992), equations
3 and 6; numbers of tokens: Ou et al. 2024 (arXiv 2406.03736).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, fold
from maskwise.masking.schedules import Schedule

REST = 0.1
"""The share of rates that is drawn from (0, 1) evenly, where a distribution does not cover it."""

CELLS = 4096
"""Cells of the table of quantiles."""

GOLDEN, SILVER = 0.6180339887498949, 0.41421356237309515
"""Steps of two sequences whose every stretch is spread evenly: from row to row, and from piece to piece in a row."""

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

    >>> from maskwise.masking.schedules import schedule
    >>> rates = Rates(schedule("uniform(0, 1)"))
    >>> rates.weight(np.array([0.25, 0.5])).round(9).tolist()
    [4.0, 2.0]
    """

    def __init__(self, schedule: Schedule, step: int = 0, total_steps: int | None = None, *, twice: bool = False):
        edges = np.arange(CELLS + 1) / CELLS
        grid = np.sort(schedule.rows(edges, step, total_steps).clip(0, 1))
        rises = np.diff(grid) > 1e-12
        self.complete = rises.sum() > CELLS // 50
        if not self.complete and not grid.min() > 0:
            what = f"ratio {schedule}: at rate 0 nothing is masked, and the weight would be 1/0"
            raise MaskwiseError(what, got=0, allowed="rates above 0", do="take uniform(0, 1)")
        if self.complete:  # rates that many rows share, at the ends of a clipped range, say nothing of the bound
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
        """(P,) float64: what the loss of a masked token weighs, where each is masked by itself with these rates."""
        rate_P = rate_P.clip(_LEAST, 1)
        if not self.complete:
            return 1 / rate_P
        density = self.density(rate_P)
        if self.twice:
            density = (density + self.density(1 - rate_P)) / 2
        return 1 / (rate_P * density)

    def number(self, rate_P: Array, tokens_P: Array) -> Array:
        """(P,) int64: how many of L tokens are masked, ⌈t·L⌉: at least one where there is any."""
        return np.ceil(rate_P * tokens_P - 1e-9).astype(np.int64).clip(min=np.minimum(tokens_P, 1), max=tokens_P)

    def number_weight(self, number_P: Array, tokens_P: Array) -> Array:
        """(P,) float64: what the loss of a masked token weighs, where so many of L tokens are masked."""
        number_P = np.maximum(number_P, 1)
        if not self.complete:
            return tokens_P / number_P
        share = self._probability(number_P, tokens_P)
        if self.twice:
            other = tokens_P - number_P
            share = (share + np.where(other > 0, self._probability(np.maximum(other, 1), tokens_P), 0.0)) / 2
        return 1 / (number_P * share)

    def _probability(self, number_P: Array, tokens_P: Array) -> Array:
        """(P,) float64: P(n) of the numbers of masked tokens."""
        length = np.maximum(tokens_P, 1)
        return self._below(number_P / length) - self._below((number_P - 1) / length)

    def _below(self, rate_P: Array) -> Array:
        """(P,) float64: the share of rates that are lower."""
        return (1 - self.rest) * np.interp(rate_P, self.grid, self.edges) + self.rest * rate_P.clip(0, 1)


def spread(place_P: Array, within_P: Array, *, seed: int, epoch: int | None) -> Array:
    """(P,) float64 in (0, 1): draws of low discrepancy, as a function of (seed, epoch, place).

    Every stretch of places is spread over (0, 1) much more evenly than by chance, on any number of ranks; and each draw
    by itself is uniform over seeds and epochs.

    Args:
        place_P: the place of each piece's row in the order of the epoch.
        within_P: the number of the piece in its row.
        epoch: the pass over the data; None where places go on counting.
    """
    first = (fold(seed, 0x10D, -1 if epoch is None else epoch) + 0.5) / 2.0**32
    return (first + place_P * GOLDEN + within_P * SILVER) % 1.0 * (1 - 2.0**-40) + 2.0**-41
