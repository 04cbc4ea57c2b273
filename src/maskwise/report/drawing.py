"""Two kinds of drawing, dots and lines: plain rows → Vega-Lite dictionaries, drawn in the reader's browser.

One look for all: no frame, a faint grid, one colour per arm (Okabe–Ito, told apart in colour-blindness; the
baseline is slate). Dots always show *every* run: a bar of means would hide how few there are. Charts fill
their container.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

SLATE = "#565f6b"
OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
# Tol's and Brewer's, for more arms than seven.
MUTED = ["#882255", "#999933", "#6A3D9A", "#44AA99", "#8C510A"]
INK, FAINT, BROWN = "#2b2b2b", "#e9e6df", "#8a5a2b"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
PLATEAU_NATS = 0.3  # as in maskwise.study.verdict; this room reads files and imports no other
NEAR = 2.0  # a reference is drawn if this many ranges from the dots or less: further, it would squeeze them


def arm_colours(arms: Sequence[str], baseline: str | None) -> dict[str, str]:
    """The baseline is slate, the others take Okabe–Ito in turn."""
    others = [arm for arm in arms if arm != baseline]
    palette = OKABE_ITO + MUTED
    colours = {arm: palette[i % len(palette)] for i, arm in enumerate(others)}
    return {arm: colours.get(arm, SLATE) for arm in arms}


def dot_chart(
    rows: list[dict[str, Any]],
    colours: dict[str, str],
    *,
    title: str,
    references: dict[str, float] | None = None,
    plateau: float | None = None,
    percent: bool = False,
) -> dict[str, Any]:
    """rows of {"arm", "seed", "value"}: a dot per run, a thin line per seed, a tick at each arm's mean.

    `references` (label → value) are dashed lines, drawn where they are near; `plateau` is the unigram loss,
    always drawn, with a band of 0.3 nats below it.
    """
    arms = [arm for arm in colours if any(row["arm"] == arm for row in rows)]
    values = [row["value"] for row in rows]
    room = max(max(values) - min(values), 0.01)
    low, high = min(values) - NEAR * room, max(values) + NEAR * room
    lines = {label: at for label, at in (references or {}).items() if low <= at <= high}
    if plateau is not None:
        lines["word frequencies"] = plateau
    ends = [*values, *lines.values()]
    margin = 0.08 * max(max(ends) - min(ends), 0.01)
    fine = percent and max(ends) - min(ends) < 0.05
    x = alt.X(
        "value:Q",
        title=title,
        scale=alt.Scale(domain=[min(ends) - margin, max(ends) + margin], nice=False, zero=False),
        axis=alt.Axis(format=".1%" if fine else ".0%" if percent else ".2~f", tickCount=5),
    )
    y = alt.Y("arm:N", sort=arms, title=None, axis=alt.Axis(labelFontSize=13, labelPadding=10, grid=False))
    tips = ["arm:N", "seed:O", alt.Tooltip("value:Q", format=".4f")]
    base = alt.Chart(alt.Data(values=[row | {"index": arms.index(row["arm"])} for row in rows]))
    seeds = base.mark_line(color="#b9b4a8", strokeWidth=1, opacity=0.8)
    dots = base.mark_circle(size=95, opacity=0.85, stroke="white", strokeWidth=1)
    layers = [
        *_references(lines, plateau, left=min(ends) - margin, right=max(ends) + margin),
        seeds.encode(x=x, y=y, detail="seed:N", order="index:Q"),
        base.mark_tick(thickness=3, size=26, color=INK).encode(x=alt.X("mean(value):Q", title=title), y=y),
        dots.encode(x=x, y=y, color=arm_colour(colours), tooltip=tips),
    ]
    return finish(alt.layer(*layers), height=max(46 * len(arms), 60))


def _references(
    lines: dict[str, float], plateau: float | None, *, left: float, right: float
) -> list[alt.Chart]:
    layers = []
    if plateau is not None:
        # Vega draws what lies outside the domain too, and then shrinks the chart to make room for it.
        start = max(plateau - PLATEAU_NATS, left)
        band = alt.Chart(alt.Data(values=[{"from": start, "to": right}]))
        layers.append(band.mark_rect(color="#f3e3d3", opacity=0.75).encode(x="from:Q", x2="to:Q"))
    for i, (label, at) in enumerate(lines.items()):
        data = alt.Chart(alt.Data(values=[{"at": at, "label": label}]))
        side = -1 if right - at < at - left else 1  # the label is written towards the middle
        look: dict[str, Any] = {"baseline": "top", "color": "#7a4d22", "fontSize": 12, "dy": 2}
        text = data.mark_text(align="right" if side < 0 else "left", dx=6 * side, **look)
        layers.append(data.mark_rule(strokeDash=[5, 4], color=BROWN, strokeWidth=1.5).encode(x="at:Q"))
        layers.append(text.encode(x="at:Q", y=alt.value(15 * i), text="label:N"))
    return layers


def line_chart(
    rows: list[dict[str, Any]],
    colours: dict[str, str],
    *,
    x: str,
    x_title: str,
    y_title: str,
    unigram: float | None = None,
    dots: bool = False,
    percent: bool = False,
) -> dict[str, Any]:
    """rows of {"arm", "seed", x, "value"} and, for the ratio, "scheduled": one thin line per run."""
    data = alt.Chart(alt.Data(values=rows))
    axis = alt.Axis(format="~s", tickCount=6, grid=False)
    axis_x = alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(domainMin=0), axis=axis)
    axis = alt.Axis(format=".0%" if percent else ".2~f", tickCount=6)
    axis_y = alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=percent), axis=axis)
    tips = ["arm:N", "seed:O", alt.Tooltip(f"{x}:Q", format=","), alt.Tooltip("value:Q", format=".3f")]
    drawn = data.mark_line(strokeWidth=1.9, opacity=0.75, point={"size": 26} if dots else False)
    layers = [drawn.encode(x=axis_x, y=axis_y, color=arm_colour(colours), detail="seed:N", tooltip=tips)]
    if any("scheduled" in row for row in rows):
        planned = data.mark_line(strokeDash=[2, 4], color="#000", strokeWidth=1.3, opacity=0.7)
        y = alt.Y("scheduled:Q", title=y_title)
        layers.append(planned.encode(x=axis_x, y=y, detail=["arm:N", "seed:N"]))
    if unigram is not None:
        at = alt.Chart(alt.Data(values=[{"at": unigram, "label": "word frequencies"}]))
        text = at.mark_text(align="right", dx=-4, dy=-5, baseline="bottom", color="#7a4d22", fontSize=12)
        layers.append(at.mark_rule(strokeDash=[5, 4], color=BROWN, strokeWidth=1.5).encode(y="at:Q"))
        layers.append(text.encode(y="at:Q", x=alt.value("width"), text="label:N"))
    return finish(alt.layer(*layers), height=260)


def group_chart(rows: list[dict[str, Any]], order: Sequence[str], title: str) -> dict[str, Any]:
    """rows of {"arm" (a group), "seed", "step", "value"}: a line per group, the mean of its runs, which are faint; a
    legend in `order`."""
    look = alt.Legend(
        title=None,
        orient="right",
        symbolType="stroke",
        symbolStrokeWidth=3,
        symbolOpacity=1,
        columns=1 + len(order) // 12,
    )
    colours = [*OKABE_ITO[:6], SLATE, BROWN] if len(order) <= 8 else None
    scale = (
        alt.Scale(domain=list(order), range=colours[: len(order)])
        if colours
        else alt.Scale(domain=list(order), scheme="category20")
    )
    axis_x = alt.X("step:Q", title="step", axis=alt.Axis(format="~s", tickCount=6, grid=False))
    axis_y = alt.Y(
        "value:Q", title=title, scale=alt.Scale(zero=True), axis=alt.Axis(format=".2~f", tickCount=6)
    )
    tips = ["arm:N", "step:Q", alt.Tooltip("mean(value):Q", format=".3f", title="mean")]
    base, colour = alt.Chart(alt.Data(values=rows)), alt.Color("arm:N", scale=scale, legend=look)
    runs = base.mark_line(strokeWidth=1, opacity=0.25).encode(
        x=axis_x, y=axis_y, color=colour, detail="seed:N"
    )
    mean = alt.Y("mean(value):Q", title=title)
    means = base.mark_line(strokeWidth=2.2).encode(x=axis_x, y=mean, color=colour, tooltip=tips)
    return finish(alt.layer(runs, means), height=300)


def choice_chart(
    rows: list[dict[str, Any]], colours: dict[str, str], *, measures: Sequence[str], quantities: Sequence[str]
) -> dict[str, Any]:
    """rows of {"arm", "seed", "fraction", "measure", "value", and a number per quantity}: quality against compute.

    Two choices below the chart say which measure and which quantity; a thin line joins a seed's lengths.
    """
    measure = alt.param(
        name="measure", value=measures[0], bind=alt.binding_select(options=list(measures), name="Quality ")
    )
    by = alt.param(
        name="by", value=quantities[0], bind=alt.binding_select(options=list(quantities), name="against ")
    )
    pick = "".join(f"by == '{name}' ? datum.{name} : " for name in quantities) + "0"
    base = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter("datum.measure == measure")
        .transform_calculate(x=pick)
        .transform_filter("datum.x > 0")
    )
    axis_x = alt.X(
        "x:Q",
        title="compute",
        scale=alt.Scale(zero=True),
        axis=alt.Axis(format="~s", tickCount=6, grid=False),
    )
    axis_y = alt.Y("value:Q", title="quality", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    tips = ["arm:N", "seed:O", alt.Tooltip("fraction:Q", format=".0%"), alt.Tooltip("x:Q", format=".4s")]
    tips.append(alt.Tooltip("value:Q", format=".4f"))
    lines = base.mark_line(strokeWidth=1, opacity=0.35).encode(
        x=axis_x, y=axis_y, color=arm_colour(colours), detail="seed:N"
    )
    dots = base.mark_circle(size=70, opacity=0.85, stroke="white", strokeWidth=1)
    means = base.mark_line(strokeWidth=3).encode(
        x=alt.X("mean(x):Q", title="compute"), y=alt.Y("mean(value):Q", title="quality"), color=arm_colour(colours),
        detail="arm:N", order="fraction:Q",
    )  # fmt: skip
    drawn = [lines, dots.encode(x=axis_x, y=axis_y, color=arm_colour(colours), tooltip=tips)]
    if len({row["fraction"] for row in rows}) > 1:
        drawn.append(means)
    return finish(alt.layer(*drawn).add_params(measure, by), height=320)


def arm_colour(colours: dict[str, str]) -> alt.Color:
    """The colour of each arm, without a legend of its own."""
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color("arm:N", scale=scale, legend=None)  # the page has its own legend


def finish(chart: Any, *, height: int) -> dict[str, Any]:
    """The common look, as a plain dictionary."""
    axis: dict[str, Any] = {
        "labelColor": INK,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "gridColor": FAINT,
    }
    axis |= {
        "titleFontSize": 13,
        "labelFontSize": 12,
        "titlePadding": 10,
        "labelPadding": 6,
        "labelLimit": 190,
    }
    axis |= {"domain": False, "ticks": False}
    fit = {"type": "fit-x", "contains": "padding"}
    chart = chart.properties(width="container", height=height, background="transparent", autosize=fit)
    return chart.configure(font=FONT).configure_view(stroke=None).configure_axis(**axis).to_dict()
