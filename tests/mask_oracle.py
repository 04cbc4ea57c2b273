"""What one text's mask is, in plain Python, one token at a time, without numpy.

Written from the docstrings of ``draws``, ``masking.select`` and the policies alone, so that it is a
second reading of them. Texts have no special tokens: places count from the first token of a text.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from maskwise.masking.draws import Purpose

Units = dict[int, list[int]]
"""The places of the tokens of each unit, by the unit's number."""

LOW_32 = (1 << 32) - 1
LOW_64 = (1 << 64) - 1
ROUNDS_32 = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1))
ROUNDS_64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def mix(x: int, rounds: Sequence[tuple[int, int]], low: int) -> int:
    for shift, factor in rounds:
        x = (x ^ (x >> shift)) * factor & low
    return x


def mix_32(x: int) -> int:
    return mix(x, ROUNDS_32, LOW_32)


def fold(*numbers: int, word: int = 0x9E3779B9) -> int:
    for number in numbers:
        for half in (number & LOW_32, (number >> 32) & LOW_32):
            word = mix_32(mix_32(word ^ half) + 0x6A09E667 & LOW_32)
    return word


class TextDraws:
    """The draws of one text, as unsigned numbers below 2³² in the order of the signed ones."""

    def __init__(self, example_id: int, *, seed: int, epoch: int | None, step: int):
        common = fold(seed, 1, step) if epoch is None else fold(seed, 0, epoch)
        self.lanes = [fold(lane, word=common) for lane in range(4)]
        self.example_id = example_id

    def words(self, purpose: Purpose) -> tuple[int, int]:
        number = int(purpose)
        lanes = [mix_32(mix_32(lane ^ number) + number & LOW_32) for lane in self.lanes]
        add = lanes[0] | lanes[1] << 32
        odd = (lanes[2] | lanes[3] << 32) | 1
        mixed = mix(self.example_id * odd + add & LOW_64, ROUNDS_64, LOW_64)
        return mixed & LOW_32, mixed >> 32 | 1

    def draw(self, purpose: Purpose, index: int) -> int:
        start, odd = self.words(purpose)
        return mix_32(start + index * odd & LOW_32) ^ 0x80000000

    def uniform(self, purpose: Purpose, index: int) -> float:
        return (self.draw(purpose, index) + 0.5) / 2**32

    def once(self, purpose: Purpose) -> float:
        """The one draw of the text in (0, 1)."""
        return ((self.words(purpose)[1] ^ 0x80000000) + 0.5) / 2**32


@dataclass(frozen=True)
class Text:
    """A text: its tokens, whether each may be masked, and the number of each token's word."""

    ids: list[int]
    eligible: list[bool]
    words: list[int]

    def runs(self) -> list[list[int]]:
        """The places of each word's tokens, in order."""
        found: list[list[int]] = []
        for place, word in enumerate(self.words):
            if place and self.words[place - 1] == word:
                found[-1].append(place)
            else:
                found.append([place])
        return found


def units_of(policy: str, text: Text, draws: TextDraws) -> Units:
    """Cut a text into units. A word with a token that may not be masked is in no unit."""
    if policy == "token":
        return {place: [place] for place, may in enumerate(text.eligible) if may}
    runs = text.runs()
    whole = [all(text.eligible[place] for place in run) for run in runs]
    if policy in ("whole-word", "weighted"):
        return {number: run for number, run in enumerate(runs) if whole[number]}
    if policy == "span":
        units: Units = {}
        for number, run in enumerate(runs):
            if whole[number]:
                units.setdefault(span_of(number, len(runs), draws), []).extend(run)
        return units
    raise AssertionError(policy)


def span_of(word: int, words: int, draws: TextDraws) -> int:
    """The number of the span of a word: lengths 1 to 10 with probabilities ∝ .8ⁿ, on a ring."""
    share = [0.8**n for n in range(10)]
    up_to = [sum(share[: n + 1]) / sum(share) for n in range(9)]
    edges = [round(min(edge, 1 - 2**-32) * 2**32) for edge in up_to]
    ring: list[int] = []
    for span in range(words):
        drawn = draws.draw(Purpose.PARTITION, span)
        ring += [span] * (1 + sum(drawn >= edge for edge in edges))
    opening = int(draws.once(Purpose.PARTITION) * words)
    return ring[(word + opening) % words]


def chosen_of(
    units: Units,
    draws: TextDraws,
    *,
    ratio: float,
    budget: str,
    min_targets: int,
    weights: dict[int, float] | None,
    of_tokens: bool,
) -> set[int]:
    """Choose units by the order of their keys, up to the budget.

    ``of_tokens`` says whether every unit is a token, which is filled up with ``bernoulli``.
    """

    def key(unit: int) -> int:
        if weights is None:
            return draws.draw(Purpose.SELECT, unit)
        race = -math.log(draws.uniform(Purpose.SELECT, unit)) / weights[unit]
        # The low 20 bits of the float are the number of the unit, which decides ties.
        bits: int = struct.unpack("<q", struct.pack("<d", race))[0]
        return bits & ~((1 << 20) - 1) | unit

    tokens = sum(map(len, units.values()))
    usable = [unit for unit in units if weights is None or weights[unit] > 0]
    least = min(tokens, min_targets) if ratio * tokens >= 0.5 else 0
    if budget == "bernoulli":
        chosen = {
            unit
            for unit in usable
            if draws.uniform(Purpose.BERNOULLI, unit) < ratio * (weights[unit] if weights else 1)
        }
        if of_tokens:
            rest = sorted((unit for unit in usable if unit not in chosen), key=key)
            chosen |= set(rest[: max(0, least - len(chosen))])
        return chosen
    left = min(max(int(ratio * tokens + draws.once(Purpose.ROUND)), least), tokens)
    chosen = set()
    for unit in sorted(usable, key=key):
        size = len(units[unit])
        if size <= left:
            chosen.add(unit)
            left -= size
        elif budget == "expected":
            if left > 0 and draws.once(Purpose.BORDER) * size <= left:
                chosen.add(unit)
            break
    return chosen


def shown_of(
    corruption: str,
    ids: list[int],
    masked: list[int],
    draws: TextDraws,
    *,
    mask: int,
    ordinary: list[int],
) -> list[int]:
    """The tokens that the model sees; ``ordinary`` are those that may replace another."""
    if corruption == "delete":
        return [token for place, token in enumerate(ids) if place not in masked]
    shown = list(ids)
    for place in masked:
        if corruption == "replace":
            # Any ordinary token but the token itself.
            other = draws.draw(Purpose.REPLACE, place) * (len(ordinary) - 1) >> 32
            shown[place] = ordinary[other + (other >= ordinary.index(ids[place]))]
            continue
        drawn = draws.draw(Purpose.SHOW, place)
        first, last = round(0.8 * 2**32), round(0.9 * 2**32)
        if corruption == "mask-only" or drawn < first:
            shown[place] = mask
        elif drawn < last:
            shown[place] = ordinary[(drawn - first) * len(ordinary) // (last - first)]
    return shown
