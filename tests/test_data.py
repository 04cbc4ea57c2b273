"""What the loop reads: batches one step ahead, the order of rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from maskwise.base.errors import MaskwiseError
from maskwise.training import look_ahead
from maskwise.training.data import WINDOW, order_of
from processes import PATIENCE
from training_tools import Language

DATA = Language(40)


class Counting:
    """A source without a length that records which batches were made.

    Args:
        late: batches of steps that are multiples of this number are not made ahead; 0 for none.
    """

    def __init__(self, late: int = 0, *, fails_at: int = -1):
        self.late, self.fails_at = late, fails_at
        self.made: list[int] = []
        self.threads: set[threading.Thread] = set()

    def ahead(self, step: int) -> bool:
        return not self.late or step % self.late != 0

    def batches(self, step: int, *, rank: int, ranks: int) -> list[dict[str, Tensor]]:
        if step == self.fails_at:
            raise MaskwiseError("no more text")
        self.made.append(step)
        self.threads.add(threading.current_thread())
        return [{"labels": torch.tensor([[step, -100, rank]])}] * 2

    def facts(self, batches: Any) -> dict[str, float]:
        return {"rows": float(len(batches))}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        return dict(sums)


@pytest.mark.parametrize("late", [0, 1, 3])
def test_batches_are_made_one_step_ahead_where_the_source_allows_it(late: int) -> None:
    source = Counting(late)
    steps = look_ahead(source, range(5, 9), rank=1, ranks=2)
    first = next(steps)
    assert (first.number, first.targets, first.facts) == (5, 4, {"rows": 2.0})
    assert first.batches[0]["labels"].tolist() == [[5, -100, 1]]
    for number in (6, 7, 8):
        # Everything that may be made ahead is made, now or soon.
        deadline = time.monotonic() + PATIENCE
        while source.ahead(number) and number not in source.made and time.monotonic() < deadline:
            time.sleep(0.001)
        assert source.made == list(range(5, number + source.ahead(number)))
        assert next(steps).number == number
    with pytest.raises(StopIteration):
        next(steps)
    assert source.made == [5, 6, 7, 8], "each once, in order, none past the end"
    assert len(source.threads) == 1 and threading.main_thread() not in source.threads


def test_what_fails_ahead_is_raised_at_its_step() -> None:
    steps = look_ahead(Counting(fails_at=2), range(4))
    assert [next(steps).number, next(steps).number] == [0, 1]
    with pytest.raises(MaskwiseError, match="no more text"):
        next(steps)


def test_a_run_that_ends_early_ends_its_thread() -> None:
    before = threading.active_count()
    steps = look_ahead(Counting(), range(10))
    next(steps)
    assert threading.active_count() > before
    steps.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [64 * 4, 1000, 3])
def test_rows_of_similar_length_share_a_batch_and_windows_stay_mixed(size: int) -> None:
    lengths = torch.randint(4, 128, (size,), generator=torch.Generator().manual_seed(0))
    how = {"seed": 1, "lengths": lengths, "batch_size": 4}
    orders = {epoch: order_of(size, epoch, **how) for epoch in (0, 1)}
    for rows in orders.values():
        assert sorted(rows.tolist()) == list(range(size)), "every row once in an epoch"
    if size < 64:
        return
    assert not torch.equal(orders[0], orders[1])
    whole = lengths[orders[0][: size // 4 * 4]].view(-1, 4)
    plain = lengths[order_of(size, 0, seed=1)[: size // 4 * 4]].view(-1, 4)
    padding = [int((rows.max(1, keepdim=True).values - rows).sum()) for rows in (whole, plain)]
    assert padding[0] < padding[1] / 5
    widths = whole.max(1).values[:WINDOW]
    assert not torch.equal(widths, widths.sort().values), "batches of a window are in random order"
