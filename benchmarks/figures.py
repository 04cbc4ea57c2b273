"""Figures of benchmarks: what is measured, how much it varies, and the machine.

Contestants take turns, because other processes use the same caches and should slow all contestants
equally.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch

from maskwise import __version__
from maskwise.base.devices import hardware, versions

Figures: TypeAlias = dict[str, Any]
"""Settings or measurements, keyed by name."""
Contestants: TypeAlias = dict[str, Callable[[int], object]]
"""Functions keyed by name. A function is called with the numbers 0, 1, …."""
PROBED = 1_000_000
"""Number of floats that ``probe`` sorts."""


def in_turn(
    contestants: Contestants,
    *,
    batches: int,
    turn: int = 10,
) -> dict[str, float]:
    """Return the median CPU seconds per call of each contestant.

    Args:
        contestants: the functions to time.
        batches: the number of timed calls per contestant.
        turn: the number of timed calls in a turn. A turn begins with an untimed call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for first in range(0, batches, turn):
        for name, call in contestants.items():
            # The untimed call replaces the previous contestant's data in the caches.
            call(first)
            # Results are kept, because freeing them takes time.
            results = []
            for number in range(first, min(first + turn, batches)):
                start = time.process_time_ns()
                results.append(call(number))
                seconds[name].append((time.process_time_ns() - start) / 1e9)
    return {name: median(spent) for name, spent in seconds.items()}


def probe() -> float:
    """Return the milliseconds of a fixed piece of work, which takes longer on a busy machine."""
    numbers = np.random.default_rng(0).random(PROBED)
    # The first sort is slower than all others, so it is not timed.
    np.sort(numbers)
    began = time.perf_counter()
    for _ in range(3):
        np.sort(numbers)
    return round(1e3 * (time.perf_counter() - began), 2)


def noise_of(milliseconds: Sequence[float]) -> Figures:
    """Return the results of several calls of ``probe``, and their ``spread``."""
    return {"probe_milliseconds": milliseconds, "probe_spread": spread(milliseconds)}


def spread(values: Sequence[float]) -> float:
    """Return the range of repeated measurements, divided by the median.

    >>> spread([10.0, 11.0, 12.0])
    0.182
    """
    return round((max(values) - min(values)) / median(values), 3)


def surroundings() -> Figures:
    """Return facts that measurements depend on: hardware, threads, versions and date."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **hardware(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {**versions(), "maskwise": __version__},
    }
