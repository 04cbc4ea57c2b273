"""Schedules: the published table, as numbers; refusals; distributions and compositions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskwise.base.errors import MaskwiseError
from maskwise.masking import schedules
from maskwise.masking.schedules import schedule

TABLE = [
    # name, ratio at 0, 1/4, 1/2, 3/4 and the end of training
    ("constant(0.15)", 0.15, 0.15, 0.15, 0.15, 0.15),
    ("linear-decay(0.15)", 0.30, 0.225, 0.15, 0.075, 0.0),
    (
        "cosine-decay(0.15)",
        0.32,
        0.17 + 0.15 * math.sqrt(0.5),
        0.17,
        0.17 - 0.15 * math.sqrt(0.5),
        0.02,
    ),
    ("linear-ascend(0.15)", 0.0, 0.075, 0.15, 0.225, 0.30),
    ("square-above(0.15)", 0.31, 0.29125, 0.235, 0.14125, 0.01),
    ("square-below(0.15)", 0.30, 0.16875, 0.075, 0.01875, 0.0),
    ("triangle(0.15)", 0.0, 0.15, 0.30, 0.15, 0.0),
    ("vee(0.15)", 0.31, 0.16, 0.01, 0.16, 0.31),
    ("warm-decay(0.15, 0.5)", 0.0, 0.15, 0.30, 0.15, 0.0),
    ("warm-decay(0.15, 0.25)", 0.0, 0.30, 0.20, 0.10, 0.0),
    ("cosine-parabola", 0.30, 0.2 + 0.1 * math.cos(math.pi / 1.6), 0.0975, 0.069375, 0.01),
    ("elliptical(0.15)", 0.30, 0.3 * math.sqrt(13 / 16), 0.15, 0.3 * (1 - math.sqrt(13 / 16)), 0.0),
    ("linear(0.30, 0.15)", 0.30, 0.2625, 0.225, 0.1875, 0.15),
    (
        "cosine(0.30, 0.15)",
        0.30,
        0.225 + 0.075 * math.sqrt(0.5),
        0.225,
        0.225 - 0.075 * math.sqrt(0.5),
        0.15,
    ),
    ("step(0.30, 0.15, 0.5)", 0.30, 0.30, 0.15, 0.15, 0.15),
    ("piecewise(0, 0.3, 0.5, 0.2, 1, 0.1)", 0.3, 0.25, 0.2, 0.15, 0.1),
    ("warm-up(0.2, 0.5)", 0.0, 0.1, 0.2, 0.2, 0.2),
    ("then(linear(0.4, 0.2), 0.5, 0.15)", 0.4, 0.3, 0.15, 0.15, 0.15),
    ("scaled(linear(0.4, 0.2), 0.5)", 0.2, 0.175, 0.15, 0.125, 0.1),
    ("clipped(triangle(0.15), 0.05, 0.2)", 0.05, 0.15, 0.2, 0.15, 0.05),
    ("then(uniform(0.1, 0.2), 0.5, 0.3)", 0.15, 0.15, 0.3, 0.3, 0.3),
]


@pytest.mark.parametrize(
    ("name", "ratios"), [(name, ratios) for name, *ratios in TABLE], ids=[r[0] for r in TABLE]
)
def test_table(name: str, ratios: list[float]) -> None:
    made = schedule(name)
    assert [made(step, 400) for step in (0, 100, 200, 300, 400)] == pytest.approx(ratios, abs=1e-12)


def test_anything_that_says_how_much_is_a_schedule() -> None:
    assert schedule(0.2)(5) == schedule("0.2")(5, 10) == 0.2 and schedule(1) == schedule(1.0)
    assert schedule(schedules.linear(0.3, 0.1))(5, 10) == pytest.approx(0.2)
    own = schedule(lambda step, total: step / total)
    assert own(3, 10) == 0.3 and own.rows(np.zeros(2), 3, 10).tolist() == [0.3, 0.3]
    assert schedule(own) is own and schedule(lambda s, t: 0.1) != schedule(lambda s, t: 0.2)
    with pytest.raises(MaskwiseError, match=r"at step 20 .*; got 2.0"):
        own(20, 10)


def rows(spec: str, step: int = 0, count: int = 20_000) -> torch.Tensor:
    draw = (np.arange(count) + 0.5) / count
    return torch.from_numpy(schedule(spec).rows(draw, step, 100))


def test_distributions_have_their_moments() -> None:
    for spec, mean, variance in (
        ("uniform(0.1, 0.5)", 0.3, 0.16 / 12),
        ("beta(2, 6)", 0.25, 12 / (64 * 9)),
        ("mixture(0.1, 3, 0.5, 1)", 0.2, 0.03),
    ):
        drawn = rows(spec)
        assert float(drawn.mean()) == pytest.approx(mean, rel=2e-3)
        assert float(drawn.var()) == pytest.approx(variance, rel=2e-3)
        assert schedule(spec)(0, 100) == pytest.approx(mean, rel=2e-3)
    assert rows("mixture(0.1, 3, 0.5, 1)").unique().tolist() == [0.1, 0.5]


def test_a_composition_draws_where_its_parts_do() -> None:
    spec = "then(scaled(uniform(0.2, 0.6), 0.5), 0.5, linear(0.3, 0.1))"
    assert (float(rows(spec).min()), float(rows(spec).max())) == pytest.approx((0.1, 0.3), abs=1e-4)
    assert rows(spec, step=75).unique().tolist() == pytest.approx([0.2])


def test_a_function_may_return_a_tensor():
    assert schedule(lambda step, total: torch.tensor(0.25))(3) == 0.25
