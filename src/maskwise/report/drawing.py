"""How charts look: plain rows → Vega-Lite dictionaries, drawn in the reader's browser.

One look for all: no frame, a faint grid, one colour per arm (Okabe–Ito, told apart in
colour-blindness; the baseline is slate). Dots always show *every* run: a bar of means would hide
how few there are. Where runs are many, each is a faint line under the mean of its arm. Charts fill
the box that they stand in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import altair as alt

from maskwise.constants import DIFFUSION, PLATEAU_NATS
from maskwise.estimates import shown
from maskwise.files import Contrast

SLATE, BROWN, VOID = "#565f6b", "#8a5a2b", "#a5a29b"
OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MUTED = [
    "#882255",
    "#999933",
    "#6A3D9A",
    "#44AA99",
    "#8C510A",
]  # Tol's and Brewer's, for more arms than seven
# of objectives and of learnt groups, which have no baseline
GROUPS = [*OKABE_ITO[:6], SLATE, BROWN]
INK, FAINT, LABEL = "#2b2b2b", "#e9e6df", "#7a4d22"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# a reference is drawn if this many ranges from the dots or less: further, it would squeeze them
NEAR = 2.0

Spec: TypeAlias = dict[str, Any]
"""A chart in Vega-Lite's JSON."""
View: TypeAlias = dict[str, object]
"""Plain data for the template, under the names that it knows."""
Colours: TypeAlias = Mapping[str, str]

DOT: Spec = {"size": 95, "opacity": 0.85, "stroke": "white", "strokeWidth": 1}
LABELLED: Spec = {"color": LABEL, "fontSize": 12}
"""The look of runs, and of the text beside a dashed line."""


class Point(TypedDict, total=False):
    """What a chart draws: the value of one run (of an arm; of an objective or a group in small
    charts).
    """

    arm: str
    seed: int
    value: float
    step: float
    tokens: float
    scheduled: float
    fraction: float
    measure: str
    x: float
    """The other axis of ``gain_chart``."""
    steps: float
    targets: float
    flops: float
    seconds: float


def arm_colours(arms: Sequence[str], baseline: str | None) -> dict[str, str]:
    """The baseline is slate, the others take Okabe–Ito in turn."""
    others = [arm for arm in arms if arm != baseline]
    palette = OKABE_ITO + MUTED
    colours = {arm: palette[i % len(palette)] for i, arm in enumerate(others)}
    return {arm: colours.get(arm, SLATE) for arm in arms}


def dot_chart(
    rows: list[Point],
    colours: Colours,
    *,
    title: str,
    references: Mapping[str, float] | None = None,
    plateau: float | None = None,
    percent: bool = False,
) -> Spec:
    """A dot per run, a thin line per seed, a tick at each arm's mean.

    ``references`` (label → value) are dashed lines, drawn where they are near; ``plateau`` is the
    unigram loss, always drawn, with a band of 0.3 nats below it.
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
    left, right = min(ends) - margin, max(ends) + margin
    fine = percent and max(ends) - min(ends) < 0.05
    x = alt.X(
        "value:Q",
        title=title,
        scale=alt.Scale(domain=[left, right], nice=False, zero=False),
        axis=alt.Axis(format=".1%" if fine else ".0%" if percent else ".2~f", tickCount=5),
    )
    y = alt.Y(
        "arm:N", sort=arms, title=None, axis=alt.Axis(labelFontSize=13, labelPadding=10, grid=False)
    )
    tips = ["arm:N", "seed:O", alt.Tooltip("value:Q", format=".4f")]
    base = _data([{**row, "index": arms.index(row["arm"])} for row in rows])
    seeds = base.mark_line(color="#b9b4a8", strokeWidth=1, opacity=0.8)
    layers = [
        *_references(lines, plateau, left=left, right=right),
        seeds.encode(x=x, y=y, detail="seed:N", order="index:Q"),
        base.mark_tick(thickness=3, size=26, color=INK).encode(
            x=alt.X("mean(value):Q", title=title), y=y
        ),
        base.mark_circle(**DOT).encode(x=x, y=y, color=_arm_colour(colours), tooltip=tips),
    ]
    return _finish(alt.layer(*layers), height=max(46 * len(arms), 60))


def _references(
    lines: dict[str, float], plateau: float | None, *, left: float, right: float
) -> list[alt.Chart]:
    layers = []
    if plateau is not None:
        # Vega draws what lies outside the domain too, and then shrinks the chart to make room for
        # it.
        band = _data([{"from": max(plateau - PLATEAU_NATS, left), "to": right}])
        layers.append(band.mark_rect(color="#f3e3d3", opacity=0.75).encode(x="from:Q", x2="to:Q"))
    for i, (label, at) in enumerate(lines.items()):
        data = _data([{"at": at, "label": label}])
        side = -1 if right - at < at - left else 1  # the label is written towards the middle
        text = data.mark_text(
            **LABELLED, align="right" if side < 0 else "left", dx=6 * side, baseline="top", dy=2
        )
        layers.append(_dashed(data, 1.5).encode(x="at:Q"))
        layers.append(text.encode(x="at:Q", y=alt.value(15 * i), text="label:N"))
    return layers


def line_chart(
    rows: list[Point],
    colours: Colours,
    *,
    x: str,
    x_title: str,
    y_title: str,
    unigram: float | None = None,
    dots: bool = False,
    percent: bool = False,
) -> Spec:
    """One thin line per run over ``x`` ("step" or "tokens"); "scheduled" is dotted where rows have
    it.
    """
    data = _data(rows)
    axis_x = alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(domainMin=0), axis=_count_axis())
    axis = alt.Axis(format=".0%" if percent else ".2~f", tickCount=6)
    axis_y = alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=percent), axis=axis)
    tips = [
        "arm:N",
        "seed:O",
        alt.Tooltip(f"{x}:Q", format=","),
        alt.Tooltip("value:Q", format=".3f"),
    ]
    runs = data.mark_line(strokeWidth=1.9, opacity=0.75, point={"size": 26} if dots else False)
    layers = [
        runs.encode(x=axis_x, y=axis_y, color=_arm_colour(colours), detail="seed:N", tooltip=tips)
    ]
    if any("scheduled" in row for row in rows):
        planned = data.mark_line(strokeDash=[2, 4], color="#000", strokeWidth=1.3, opacity=0.7)
        y = alt.Y("scheduled:Q", title=y_title)
        layers.append(planned.encode(x=axis_x, y=y, detail=["arm:N", "seed:N"]))
    if unigram is not None:
        at = _data([{"at": unigram, "label": "word frequencies"}])
        text = at.mark_text(**LABELLED, align="right", dx=-4, dy=-5, baseline="bottom")
        layers.append(_dashed(at, 1.5).encode(y="at:Q"))
        layers.append(text.encode(y="at:Q", x=alt.value("width"), text="label:N"))
    return _finish(alt.layer(*layers), height=260)


def gain_chart(rows: list[Point], colours: Colours, *, over: str) -> Spec:
    """A dot per arm and task: ``x``, how many answers it masks, and ``value``, what it gains
    ``over`` another.
    """
    percent = alt.Axis(format=".0%", tickCount=5)
    x = alt.X("x:Q", title="share of the answers in the corpus that is masked whole", axis=percent)
    y = alt.Y(
        "value:Q",
        title=f"gain over {over} (up is better)",
        axis=alt.Axis(format=".2~g", tickCount=5),
    )
    tips = ["arm:N", alt.Tooltip("x:Q", format=".1%"), alt.Tooltip("value:Q", format=".4f")]
    return _finish(
        alt.layer(
            _data(rows)
            .mark_circle(**DOT)
            .encode(x=x, y=y, color=_arm_colour(colours), tooltip=tips)
        ),
        height=220,
    )


def group_chart(rows: list[Point], order: Sequence[str], title: str) -> Spec:
    """A line per group over the steps, the mean of its runs, which are faint; a legend in this
    order.
    """
    look = alt.Legend(
        title=None,
        orient="right",
        symbolType="stroke",
        symbolStrokeWidth=3,
        symbolOpacity=1,
        columns=1 + len(order) // 12,
    )
    paint = (
        {"range": GROUPS[: len(order)]} if len(order) <= len(GROUPS) else {"scheme": "category20"}
    )
    colour = alt.Color("arm:N", scale=alt.Scale(domain=list(order), **paint), legend=look)
    return _finish(
        alt.layer(*_runs_and_means(rows, colour, title=title, zero=True, ticks=6)), height=300
    )


def choice_chart(
    rows: list[Point], colours: Colours, *, measures: Sequence[str], quantities: Sequence[str]
) -> Spec:
    """Quality against compute; two choices below the chart say which measure and which quantity.

    A thin line joins the lengths of a seed, a thick one is the mean of an arm.
    """
    menus = [
        alt.param(
            name=name, value=options[0], bind=alt.binding_select(options=list(options), name=label)
        )
        for name, options, label in (
            ("measure", measures, "Quality "),
            ("by", quantities, "against "),
        )
    ]
    pick = "".join(f"by == '{name}' ? datum.{name} : " for name in quantities) + "0"
    base = _data(rows).transform_filter("datum.measure == measure")
    base = base.transform_calculate(x=pick).transform_filter("datum.x > 0")
    x = alt.X("x:Q", title="compute", scale=alt.Scale(zero=True), axis=_count_axis())
    y = alt.Y("value:Q", title="quality", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    tips = [
        "arm:N",
        "seed:O",
        alt.Tooltip("fraction:Q", format=".0%"),
        alt.Tooltip("x:Q", format=".4s"),
    ]
    tips.append(alt.Tooltip("value:Q", format=".4f"))
    colour = _arm_colour(colours)
    lines = base.mark_line(strokeWidth=1, opacity=0.35)
    layers = [
        lines.encode(x=x, y=y, color=colour, detail="seed:N"),
        base.mark_circle(**DOT).encode(x=x, y=y, color=colour, tooltip=tips),
    ]
    if len({row["fraction"] for row in rows}) > 1:
        means = {
            "x": alt.X("mean(x):Q", title="compute"),
            "y": alt.Y("mean(value):Q", title="quality"),
        }
        line = base.mark_line(strokeWidth=3)
        layers.append(line.encode(**means, color=colour, detail="arm:N", order="fraction:Q"))
    return _finish(alt.layer(*layers).add_params(*menus), height=320)


def share_chart(rows: list[Point], colours: Colours) -> Spec:
    """A small chart of the share of each objective; the dashed line is where all shares would be
    the same.
    """
    rule = _dashed(_data([{"at": 1 / len(colours)}]), 1.2).encode(y="at:Q")
    lines = _runs_and_means(rows, _arm_colour(colours), zero=True, percent=True)
    return _finish(alt.layer(rule, alt.layer(*lines)), height=150)


def probe_chart(rows: list[Point], colours: Colours) -> Spec:
    """A small chart of one objective's loss; each line is the mean over the runs of an arm."""
    return _finish(_runs_and_means(rows, _arm_colour(colours), zero=False)[-1], height=150)


def _runs_and_means(
    rows: list[Point],
    colour: alt.Color,
    *,
    zero: bool,
    percent: bool = False,
    title: str | None = None,
    ticks: int = 4,
) -> list[alt.Chart]:
    """A faint line per run over the steps, and a thick one of the means."""
    x = alt.X("step:Q", title="step", scale=alt.Scale(domainMin=0), axis=_count_axis(ticks))
    axis = alt.Axis(format=".0%" if percent else ".2~f", tickCount=ticks)
    look: Spec = {"title": title, "axis": axis, "scale": alt.Scale(zero=zero)}
    tips = [
        "arm:N",
        "step:Q",
        alt.Tooltip("mean(value):Q", format=".1%" if percent else ".3f", title="mean"),
    ]
    base = _data(rows).encode(x=x, color=colour)
    runs = base.mark_line(strokeWidth=1, opacity=0.3)
    means = base.mark_line(strokeWidth=2.2)
    return [
        runs.encode(y=alt.Y("value:Q", **look), detail="seed:N"),
        means.encode(y=alt.Y("mean(value):Q", **look), tooltip=tips),
    ]


# The forest plot
# -------------------------------------------------------------------------------------

FORESTS = {
    "tasks": ("On the tasks", "The mean over all tasks. The verdict rests here."),
    "task": (
        "Task by task",
        "In points of the task's measure. These rows explain a verdict and are not tested.",
    ),
    "left-out": (
        "Tasks that cannot tell",
        "Pre-training does not help on them often enough. The primary outcome leaves them "
        "out, unless no task is left.",
    ),
    "task-nats": (
        "Task by task, in nats",
        "For each token of the right answers, reversed so that right is better.",
    ),
    "evaluation": (
        "Without fine-tuning",
        "Cloze facts and minimal pairs, in points of their measure. No fine-tuning seed adds "
        "its noise here.",
    ),
    "perplexity": (
        "Pseudo-perplexity",
        "Reversed so that right is better; only between arms with equal units.",
    ),
    "bound": (
        "The bound of masked diffusion",
        "Reversed so that right is better; only between arms with equal tokens.",
    ),
    "heldout": (
        "Held-out loss",
        "In nats, reversed so that right is better; only between arms with equal units.",
    ),
}
NOT_COMPARABLE = ("not comparable", "void")
"""Verdicts of rows without an answer; the second is that of earlier rules."""


def forest_groups(contrasts: Sequence[Contrast], colours: Colours) -> list[View]:
    """The contrasts by kind, since numbers of different units share no axis; the kind with primary
    rows first.

    Each row is an interval in per cent of the plot's width, right of the middle where the arm is
    better. The template draws it as SVG, so that it prints, scales and needs no script.
    """
    common = common_notes(contrasts)
    groups: dict[tuple[str, str], list[Contrast]] = defaultdict(list)
    for row in contrasts:
        groups[_kind_of(row), shown(row).unit].append(row)
    views = []
    for kind in FORESTS:
        for (known, _), rows in groups.items():
            if known == kind:
                comparable_first = sorted(rows, key=lambda row: row["verdict"] in NOT_COMPARABLE)
                views.append(_forest(kind, comparable_first, colours, common))
    return sorted(views, key=lambda view: not view["primary"])


def _kind_of(row: Contrast) -> str:
    outcome = row["outcome"]
    if outcome.startswith("evaluation:"):
        return {"score": "evaluation", "perplexity": "perplexity"}.get(row["unit"], "bound")
    if outcome == "tasks" or outcome.startswith("heldout:"):
        return outcome.partition(":")[0]
    if any(flag["code"] == "no-help" for flag in row["flags"]):
        return "left-out"
    return "task-nats" if row["unit"] == "nats" else "task"


def _forest(kind: str, rows: list[Contrast], colours: Colours, common: Sequence[str]) -> View:
    sign = 1
    amounts = [shown(row) for row in rows]
    comparable = [
        amount for row, amount in zip(rows, amounts) if row["verdict"] not in NOT_COMPARABLE
    ]
    known = [amount for amount in comparable or amounts if amount.mean is not None]
    # With few runs an interval can be a hundred times the effect: such ends are cut, and marked as
    # cut.
    largest = max((abs(amount.mean or 0.0) for amount in known), default=0.0)
    ends = [abs(end) for amount in known for end in (amount.low, amount.high) if end is not None]
    reach = max(min(max(ends, default=0.0), 4 * largest), largest, 1e-9) * 1.1
    lines = []
    for row, amount in zip(rows, amounts):
        line: View = {
            "row": row,
            "label": outcome_label(row["outcome"]),
            "colour": VOID if row["verdict"] in NOT_COMPARABLE else colours.get(row["arm"], SLATE),
            "notes": [note for note in _notes(row) if note not in common],
            "drawn": amount.mean is not None,
        }
        if amount.mean is not None:
            line["at"] = _place(sign * amount.mean, reach)
            line["figure"] = f"{sign * amount.mean:+.{amount.digits}f}".replace("-", "−")
        if amount.low is not None and amount.high is not None:
            low, high = sorted((sign * amount.low, sign * amount.high))
            line["from"] = _place(low, reach)
            line["to"] = _place(high, reach)
            line["cut_left"] = low < -reach
            line["cut_right"] = high > reach
            line["interval"] = f"{low:.{amount.digits}f} to {high:.{amount.digits}f}".replace(
                "-", "−"
            )
        lines.append(line)
    title, note = FORESTS[kind]
    primary = any(row["primary"] for row in rows)
    return {
        "kind": kind,
        "title": title,
        "note": note + (" The verdict rests here." if primary and kind != "tasks" else ""),
        "primary": primary,
        "rows": lines,
        "unit": amounts[0].unit,
        "reach": f"{reach:.2g}" if known else None,
    }


def _place(value: float, reach: float) -> float:
    """Where a value lies in per cent of the width of a plot from −reach to reach."""
    return round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2)


def _notes(row: Contrast) -> list[str]:
    """Flags that a reader must know beside the sentence; those of a row without an answer are in
    it.
    """
    flags = [
        flag for flag in row["flags"] if flag["effect"] == "notes" and flag["code"] != "overlap"
    ]
    return (
        [flag["sentence"][:1].upper() + flag["sentence"][1:] + "." for flag in flags]
        if row["primary"]
        else []
    )


def common_notes(contrasts: Sequence[Contrast]) -> list[str]:
    """What is to be known of every primary contrast: said once, in the plain words."""
    rows = [row for row in contrasts if row["primary"] and row["verdict"] not in NOT_COMPARABLE]
    return (
        [note for note in _notes(rows[0]) if all(note in _notes(row) for row in rows)]
        if len(rows) > 1
        else []
    )


def outcome_label(outcome: str) -> str:
    """What stands beside the name of the arm: "token masks, 15 %", "facts (hits@1)"."""
    kind, _, rest = outcome.partition(":")
    if kind == "heldout":
        masks, _, ratio = rest.partition("@")
        if masks == DIFFUSION:
            return "bound of masked diffusion"
        return f"{masks} masks" + (f", {100 * float(ratio):g} %" if ratio else "")
    if kind == "evaluation":
        name, _, metric = rest.rpartition(":")
        return f"{name} ({metric})"
    return outcome


# What all charts share
# -------------------------------------------------------------------------------


def _data(rows: Sequence[Mapping[str, object]]) -> alt.Chart:
    return alt.Chart(alt.Data(values=list(rows)))


def _dashed(chart: alt.Chart, width: float) -> alt.Chart:
    return chart.mark_rule(strokeDash=[5, 4], color=BROWN, strokeWidth=width)


def _count_axis(ticks: int = 6) -> alt.Axis:
    return alt.Axis(format="~s", tickCount=ticks, grid=False)


def _arm_colour(colours: Colours) -> alt.Color:
    """The colour of each arm, without a legend: the page has one for all charts."""
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color("arm:N", scale=scale, legend=None)


def _finish(chart: Any, *, height: int) -> Spec:
    """The common look, as a plain dictionary."""
    fit = {"type": "fit-x", "contains": "padding"}
    chart = chart.properties(
        width="container", height=height, background="transparent", autosize=fit
    )
    return (
        chart.configure(font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK,
            titleColor=INK,
            titleFontWeight="normal",
            gridColor=FAINT,
            titleFontSize=13,
            labelFontSize=12,
            titlePadding=10,
            labelPadding=6,
            labelLimit=190,
            domain=False,
            ticks=False,
        )
        .to_dict(validate=False)  # against its schema a page of many charts takes minutes
    )
