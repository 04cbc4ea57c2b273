"""Small charts, many of which stand side by side under one legend: lines over the steps, means in front of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from maskwise.report.drawing import BROWN, arm_colour, finish

HEIGHT = 150


def share_chart(rows: list[dict[str, Any]], colours: Mapping[str, str]) -> dict[str, Any]:
    """rows of {"name", "seed", "step", "value"}: the share of each objective; faint lines are runs, and the dashed one
    is where all shares would be the same."""
    named = [row | {"arm": row["name"]} for row in rows]
    even = alt.Chart(alt.Data(values=[{"at": 1 / len(colours)}]))
    rule = even.mark_rule(strokeDash=[5, 4], color=BROWN, strokeWidth=1.2).encode(y="at:Q")
    return finish(alt.layer(rule, alt.layer(*_lines(named, dict(colours), percent=True))), height=HEIGHT)


def probe_chart(rows: list[dict[str, Any]], colours: Mapping[str, str]) -> dict[str, Any]:
    """rows of {"arm", "seed", "step", "value"}: one objective's loss; each arm is the mean of its runs."""
    return finish(_lines(rows, dict(colours), percent=False)[-1], height=HEIGHT)


def _lines(rows: list[dict[str, Any]], colours: dict[str, str], *, percent: bool) -> list[alt.Chart]:
    base = alt.Chart(alt.Data(values=rows))
    x = alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(domainMin=0),
        axis=alt.Axis(format="~s", tickCount=3, grid=False),
    )
    axis = alt.Axis(format=".0%" if percent else ".2~f", tickCount=4)
    look: dict[str, Any] = {"title": None, "axis": axis, "scale": alt.Scale(zero=percent)}
    tips = ["arm:N", "step:Q", alt.Tooltip("mean(value):Q", format=".1%" if percent else ".3f", title="mean")]
    colour = arm_colour(colours)
    runs = base.mark_line(strokeWidth=1, opacity=0.3).encode(
        x=x, y=alt.Y("value:Q", **look), color=colour, detail="seed:N"
    )
    means = base.mark_line(strokeWidth=2.2).encode(
        x=x, y=alt.Y("mean(value):Q", **look), color=colour, tooltip=tips
    )
    return [runs, means]
