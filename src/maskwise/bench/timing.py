"""How the benches measure: processor time of one thread, medians over fresh batches, contestants in turn.

Wall time on a shared machine is mostly about the neighbours, and a short call escapes them where a long one
does not. Processor time leaves them out, but for the caches that they spoil, so contestants take turns, a few
batches each.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch


def in_turn(
    contestants: dict[str, Callable[[int], object]],
    *,
    batches: int,
    check: Callable[[str, int, object], None],
    turn: int = 10,
) -> dict[str, float]:
    """Median processor seconds of each contestant over ``batches`` calls with the numbers 0, 1, 2, …

    Args:
        contestants: what to call, by name.
        batches: how many calls of each are timed.
        check: gets (name, number, result) of every timed call, outside the time.
        turn: calls of one contestant in a row; one more before them is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for first in range(0, batches, turn):
        for name, call in contestants.items():
            call(first)
            results = []
            for number in range(first, min(first + turn, batches)):
                start = time.process_time_ns()
                result = call(number)
                seconds[name].append((time.process_time_ns() - start) / 1e9)
                results.append(result)
            for number, result in enumerate(results, first):
                check(name, number, result)
    return {name: median(spent) for name, spent in seconds.items()}


def processor_seconds(call: Callable[[], object]) -> float:
    """What one call costs this process."""
    began = time.process_time()
    call()
    return time.process_time() - began


def surroundings(packages: Sequence[str]) -> dict[str, object]:
    """What the figures depend on: processor, threads, versions, date."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
