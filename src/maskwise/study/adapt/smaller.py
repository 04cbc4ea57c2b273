"""Find a smaller adaptation that keeps a time limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from maskwise.recipe import Recipe
from maskwise.specs import with_options
from maskwise.study.adapt.request import Request
from maskwise.study.from_files import ROW_TOKENS, SHORT_ROWS
from maskwise.tasks.loading import load_task

# With fewer steps, further training has little effect.
LEAST_STEPS = 100
SHORT_TUNING, SHORTEST_TUNING = 250, 100
FEW_TEST_ROWS, FEWEST_TEST_ROWS = 300, 100
FEWEST_RUNS = 4
"""Fine-tuning steps, test rows and runs of a study that takes too long even with ``LEAST_STEPS``:
see ``_smaller``."""


def smaller_plan(
    recipe: Recipe,
    request: Request,
    seconds_of: Callable[[Request], float],
    limit_seconds: float,
) -> tuple[Request, bool]:
    """Find a smaller request with which a study finishes within a time limit.

    First, the steps are reduced. If this is not enough, the study also gets shorter fine-tuning,
    fewer test rows, shorter rows and fewer runs, one after the other.

    Args:
        recipe: the recipe that takes too long.
        request: its request.
        seconds_of: a function that forecasts a study's seconds.

    Returns:
        The request, and whether it keeps the limit. If even the smallest study does not, its
        request is returned.
    """
    least = min(LEAST_STEPS, request.steps)
    for smaller in _smaller(recipe, request):
        shortest = replace(smaller, steps=least)
        fewest_seconds = seconds_of(shortest)
        if fewest_seconds > limit_seconds:
            continue
        seconds = seconds_of(smaller)
        while seconds > limit_seconds and smaller.steps > least:
            # Interpolate, because the time is roughly linear in the number of steps.
            share = (limit_seconds - fewest_seconds) / (seconds - fewest_seconds)
            steps = least + 10 * int(share * (smaller.steps - least) / 10)
            smaller = replace(smaller, steps=steps)
            seconds = seconds_of(smaller)
        return smaller, True
    return shortest, False


def _smaller(recipe: Recipe, request: Request) -> Iterator[Request]:
    """Yield smaller and smaller requests, with the same number of steps."""
    tuning = recipe.finetune
    tested = [arm for arm in recipe.study.arms if arm in chain.from_iterable(recipe.study.pairs)]
    if len(tested) < len(recipe.study.arms):
        request = request.set_to(study__arms=",".join(tested))
    yield request
    if len(recipe.study.seed_list) > request.least_runs:
        request = request.first_seeds(request.least_runs)
        yield request
    # Embeddings of a frozen encoder are computed once, so they take no time that matters.
    trained = any(not load_task(task).frozen for task in request.tasks)
    if trained and (tuning.steps or math.inf) > SHORT_TUNING:
        request = request.set_to(finetune__steps=SHORT_TUNING)
        yield request
    fewer = _with_test_rows(request, FEW_TEST_ROWS)
    if fewer != request:
        request = fewer
        yield request
    shorter = request
    if trained and tuning.max_length > ROW_TOKENS:
        shorter = shorter.set_to(finetune__max_length=ROW_TOKENS)
    if recipe.corpus.length > SHORT_ROWS:
        shorter = shorter.set_to(corpus__length=SHORT_ROWS)
    if shorter != request:
        request = shorter
        yield request
    smallest = _with_test_rows(request, FEWEST_TEST_ROWS)
    if trained and (tuning.steps or math.inf) > SHORTEST_TUNING:
        smallest = smallest.set_to(finetune__steps=SHORTEST_TUNING)
    if smallest != request:
        request = smallest
        yield request
    # Too few to decide, but enough for an estimate.
    if len(recipe.study.seed_list) > FEWEST_RUNS:
        yield request.first_seeds(FEWEST_RUNS)


def _with_test_rows(request: Request, count: int) -> Request:
    """Limit the test rows and the dev rows of the tasks, unless the user has limited them."""
    limited = []
    for spec in request.tasks:
        splits = load_task(spec).splits
        if len(splits["test"]) > count or len(splits["dev"]) > count:
            spec = with_options(spec, test_rows=count)
        limited.append(spec)
    return replace(request, tasks=tuple(limited))
