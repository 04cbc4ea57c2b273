"""Numpy and torch give the same bits, from the small functions up to whole masked batches."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from masking_tools import AWKWARD, CORRUPTION_SPECS, POLICY_SPECS, masker, padded, random_rows
from maskwise import arrays
from maskwise.arrays import count_below, first_true, places, raw, running_count, sorted_around, tensor
from maskwise.masking.select import BUDGETS

BATCHES = [
    padded(list(AWKWARD.values())),
    padded(random_rows(4, words=150)),
    padded(random_rows(2, words=450, seed=1)),
]
HOW: list[dict[str, Any]] = [
    *({"policy": p, "budget": b, "fill": "random"} for p, b in product(POLICY_SPECS, BUDGETS)),
    *({"policy": "span", "corruption": c} for c in CORRUPTION_SPECS),
    {"policy": "token", "corruption": "bert", "predict": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("how", HOW, ids=lambda how: " ".join(map(str, how.values())))
def test_torch_alone_masks_alike(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on an accelerator, run on the CPU."""
    made = masker(**how, ratio=0.2, seed=3)
    with_numpy = [made(batch, epoch=1) for batch in BATCHES]
    monkeypatch.setattr(arrays, "USE_NUMPY", False)
    for ours, batch in zip(with_numpy, BATCHES, strict=True):
        other = made(batch, epoch=1)
        for name in ("input_ids", "labels", "attention_mask", "selected", "filled", "ratio"):
            a, b = getattr(ours, name), getattr(other, name)
            assert a is b is None or (a.dtype == b.dtype and torch.equal(a, b)), name


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("width", [1, 40, 256, 513, 1500, 4096])
@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["distinct", "runs", "padded", "sorted"])
def test_sorted_around_is_the_sorted_row(dtype: type, width: int, share: float, kind: str) -> None:
    rng, info = np.random.default_rng(width), np.iinfo(dtype)
    x = rng.integers(-info.max, info.max, (5, width), dtype=dtype)
    if kind == "runs":
        x = np.repeat(x, 3, axis=1)[:, :width].copy()
    elif kind == "padded":
        x[:, width // 3 :] = info.max
        x[2] = info.max
    elif kind == "sorted":  # dealt out, all parts are alike; in blocks they would not be
        x.sort(1)
    place = np.array([0, 0, width - 1, 0, 0]) + int(share * (width - 1))
    place = place.clip(0, width - 1)
    near, begin, bound = sorted_around(x, place, 32)
    whole = np.sort(x, axis=1)
    for b in range(5):
        here = int(place[b] - begin[b])
        assert near[b, here] == whole[b, place[b]]
        below = near[b] < bound[b]
        known = near[b][below]
        assert np.array_equal(known[here:], whole[b][begin[b] :][: len(known)][here:])
        assert here + 32 < len(known) or bound[b] == info.max
        assert count_below(near, near[np.arange(5), place - begin])[b] + begin[b] == np.searchsorted(
            whole[b], whole[b, place[b]]
        )


def test_long_rows_are_not_sorted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(x: np.ndarray) -> np.ndarray:
        raise AssertionError("sorted whole")

    monkeypatch.setattr(arrays, "sort_rows", whole)
    x = np.random.default_rng(0).integers(-(2**31), 2**31 - 1, (8, 4096)).astype(np.int32)
    near, _, _ = sorted_around(x, np.full(8, 614), 32)
    assert near.shape[1] < 700


def test_small_functions_agree() -> None:
    x = np.random.default_rng(0).random((6, 40)) < 0.3
    x[2] = False
    for numpy_made, torch_made in (
        (running_count(x), running_count(torch.from_numpy(x))),
        (first_true(x), first_true(torch.from_numpy(x))),
        (places(x), places(torch.from_numpy(x))),
    ):
        assert tensor(numpy_made).dtype == torch_made.dtype and torch.equal(tensor(numpy_made), torch_made)
    shared = torch.zeros(3)
    raw(shared)[1] = 5
    assert shared.tolist() == [0, 5, 0] and raw(raw(shared)) is not None
