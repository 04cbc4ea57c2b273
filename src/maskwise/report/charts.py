"""The charts: plain rows → altair charts → Vega-Lite dictionaries, drawn in the reader's browser.

One look for all: no frame, a faint grid, one colour per arm (Okabe–Ito, told apart in colour-blindness; the
baseline is slate). Dots always show *every* run; a bar of means would hide how few there are. Charts fill
their container.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from maskwise.report.reading import Folder, finite

SLATE = "#565f6b"
OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
INK, FAINT = "#2b2b2b", "#e9e6df"
PLATEAU_NATS = 0.3  # as in maskwise.study.verdict, which this room may not import
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MOST_POINTS = 200  # per line: more is not seen


def arm_colours(arms: Sequence[str], baseline: str | None) -> dict[str, str]:
    """The baseline is slate, the others take Okabe–Ito in turn."""
    others = [arm for arm in arms if arm != baseline]
    colours = {arm: OKABE_ITO[i % len(OKABE_ITO)] for i, arm in enumerate(others)}
    return {arm: colours.get(arm, SLATE) for arm in arms}


def dot_chart(
    rows: list[dict[str, Any]],
    colours: dict[str, str],
    *,
    title: str,
    line: float | None = None,
    label: str = "",
    plateau: bool = False,
    percent: bool = False,
) -> dict[str, Any]:
    """rows of {"arm", "seed", "value"}: a dot per run, a thin line per seed, a tick at each arm's mean.

    `line` is a reference (majority, unigram) drawn dashed if it is near enough to leave the dots apart.
    """
    arms = [arm for arm in colours if any(row["arm"] == arm for row in rows)]
    values = [row["value"] for row in rows]
    low, high = min(values), max(values)
    room = max(high - low, 0.01)
    shown = line is not None and (plateau or low - 2 * room <= line <= high + 2 * room)
    ends = [low, high, *([line] if shown and line is not None else [])]
    margin = 0.08 * max(max(ends) - min(ends), 0.01)
    x = alt.X(
        "value:Q",
        title=title,
        scale=alt.Scale(domain=[min(ends) - margin, max(ends) + margin], nice=False, zero=False),
        axis=alt.Axis(format=".1%" if percent and room < 0.05 else ".0%" if percent else ".2~f", tickCount=5),
    )
    y = alt.Y("arm:N", sort=arms, title=None, axis=alt.Axis(labelFontSize=13, labelPadding=10, grid=False))
    colour = alt.Color("arm:N", scale=_scale(colours), legend=None)
    tips = ["arm:N", "seed:O", alt.Tooltip("value:Q", format=".4f", title="value")]
    data = [row | {"index": arms.index(row["arm"])} for row in rows]
    base = alt.Chart(alt.Data(values=data))
    layers = [
        base.mark_line(color="#b9b4a8", strokeWidth=1, opacity=0.8).encode(
            x=x, y=y, detail="seed:N", order="index:Q"
        ),
        base.mark_tick(thickness=3, size=26, color=INK).encode(x=alt.X("mean(value):Q", title=title), y=y),
        base.mark_circle(size=95, opacity=0.85, stroke="white", strokeWidth=1).encode(
            x=x, y=y, color=colour, tooltip=tips
        ),
    ]
    if shown:
        layers = [*_reference(line, label, plateau=plateau, right=max(ends) + margin), *layers]
    return _finish(alt.layer(*layers), height=max(46 * len(arms), 60))


def _reference(line: float | None, label: str, *, plateau: bool, right: float) -> list[alt.Chart]:
    at = alt.Data(values=[{"at": line, "from": (line or 0) - PLATEAU_NATS, "to": right, "label": label}])
    band = alt.Chart(at).mark_rect(color="#f3e3d3", opacity=0.75).encode(x="from:Q", x2="to:Q")
    rule = alt.Chart(at).mark_rule(strokeDash=[5, 4], color="#8a5a2b", strokeWidth=1.5).encode(x="at:Q")
    text = alt.Chart(at).mark_text(align="right", dx=-6, dy=2, baseline="top", color="#7a4d22", fontSize=12)
    return [*([band] if plateau else []), rule, text.encode(x="at:Q", y=alt.value(0), text="label:N")]


def line_chart(
    rows: list[dict[str, Any]],
    colours: dict[str, str],
    *,
    x: str,
    x_title: str,
    y_title: str,
    line: float | None = None,
    label: str = "",
    dots: bool = False,
    percent: bool = False,
) -> dict[str, Any]:
    """rows of {"arm", "seed", x, "value"} and, for the ratio, "scheduled": one thin line per run."""
    data = alt.Data(values=rows)
    axis_x = alt.X(f"{x}:Q", title=x_title, axis=alt.Axis(format="~s", tickCount=6, grid=False))
    format_y = ".0%" if percent else ".2~f"
    axis_y = alt.Y(
        "value:Q", title=y_title, scale=alt.Scale(zero=percent), axis=alt.Axis(format=format_y, tickCount=6)
    )
    colour = alt.Color("arm:N", scale=_scale(colours), legend=None)
    tips = ["arm:N", "seed:O", alt.Tooltip(f"{x}:Q", format=","), alt.Tooltip("value:Q", format=".3f")]
    drawn = alt.Chart(data).mark_line(strokeWidth=1.6, opacity=0.75, point={"size": 26} if dots else False)
    layers = [drawn.encode(x=axis_x, y=axis_y, color=colour, detail="seed:N", tooltip=tips)]
    if any("scheduled" in row for row in rows):
        planned = alt.Chart(data).mark_line(strokeDash=[3, 3], color="#000", strokeWidth=1.2)
        layers.append(
            planned.encode(x=axis_x, y=alt.Y("scheduled:Q", title=y_title), detail=["arm:N", "seed:N"])
        )
    if line is not None:
        at = alt.Data(values=[{"at": line, "label": label}])
        rule = alt.Chart(at).mark_rule(strokeDash=[5, 4], color="#8a5a2b", strokeWidth=1.5).encode(y="at:Q")
        text = alt.Chart(at).mark_text(
            align="right", dx=-4, dy=-5, baseline="bottom", color="#7a4d22", fontSize=12
        )
        layers += [rule, text.encode(y="at:Q", x=alt.value("width"), text="label:N")]
    return _finish(alt.layer(*layers), height=260)


def score_charts(folder: Folder, colours: dict[str, str]) -> list[dict[str, Any]]:
    """One dot chart per task, with the majority line; words for the references that are off the scale."""
    charts = []
    for task in dict.fromkeys(r["task"] for r in folder.records if r["kind"] == "score"):
        records = [r for r in folder.records if r.get("task") == task and finite(r.get("score"))]
        rows = [_row(r, "score") for r in records if r["arm"] in colours]
        if not rows:
            continue
        facts = (folder.study.get("tasks") or {}).get(task, {})
        references = (folder.summary.get("references") or {}).get(task, {})
        majority = references.get("majority", facts.get("majority"))
        scratch = [r["score"] for r in records if r["arm"] not in colours]
        metric = str(facts.get("metric") or records[0].get("metric") or "score")
        percent = all(0 <= row["value"] <= 1 for row in rows)
        spec = dot_chart(
            rows,
            colours,
            title=f"{metric} (right is better)",
            line=majority,
            label="commonest answer",
            percent=percent,
        )
        charts.append({
            "name": task, "metric": metric, "spec": spec, "kind": facts.get("kind"), "classes": facts.get("classes"),
            "test_items": facts.get("test_items"), "majority": majority, "percent": percent,
            "scratch": float(np.mean(scratch)) if scratch else None,
        })  # fmt: skip
    return charts


def heldout_charts(folder: Folder, colours: dict[str, str]) -> list[dict[str, Any]]:
    """One dot chart per kind of mask and ratio, with the unigram line and the plateau beside it."""
    charts = []
    records = [
        r for r in folder.records if r["kind"] == "heldout" and finite(r.get("loss")) and r["arm"] in colours
    ]
    for masks, ratio in dict.fromkeys((str(r.get("masks")), r.get("ratio")) for r in records):
        same = [r for r in records if (str(r.get("masks")), r.get("ratio")) == (masks, ratio)]
        unigram = [r["unigram"] for r in same if finite(r.get("unigram"))]
        line = float(np.mean(unigram)) if unigram else None
        spec = dot_chart(
            [_row(r, "loss") for r in same], colours, title="loss in nats (left is better)", line=line,
            label="word frequencies", plateau=True,
        )  # fmt: skip
        charts.append({"masks": masks, "ratio": ratio, "unigram": line, "spec": spec})
    return charts


def curve_charts(folder: Folder, colours: dict[str, str]) -> dict[str, Any]:
    """{"train": spec, "ratio": spec, "eval": [(masks, spec), …]}; what was not logged is left out."""
    train = [r for r in folder.curves if r.get("kind") == "train" and finite(r.get("loss"))]
    x, title = (
        ("tokens", "tokens read")
        if train and all(finite(r.get("tokens")) for r in train)
        else ("step", "step")
    )
    charts: dict[str, Any] = {}
    if train:
        rows = [_row(r, "loss") | {x: r.get(x)} for r in _thin(train)]
        charts["train"] = line_chart(rows, colours, x=x, x_title=title, y_title="training loss, nats")
    ratio = [r for r in train if finite(r.get("ratio"))]
    if ratio:
        rows = [_row(r, "ratio") | {"step": r.get("step")} for r in _thin(ratio)]
        rows = [
            row | ({"scheduled": r["scheduled_ratio"]} if finite(r.get("scheduled_ratio")) else {})
            for row, r in zip(rows, _thin(ratio))
        ]
        charts["ratio"] = line_chart(
            rows, colours, x="step", x_title="step", y_title="tokens masked", percent=True
        )
    evals = [r for r in folder.curves if r.get("kind") == "eval" and finite(r.get("loss"))]
    charts["eval"] = []
    for masks, share in dict.fromkeys((str(r.get("masks")), r.get("ratio")) for r in evals):
        same = [r for r in evals if (str(r.get("masks")), r.get("ratio")) == (masks, share)]
        unigram = [r["unigram"] for r in same if finite(r.get("unigram"))]
        spec = line_chart(
            [_row(r, "loss") | {"step": r.get("step")} for r in _thin(same)], colours, x="step", x_title="step",
            y_title="held-out loss, nats", line=float(np.mean(unigram)) if unigram else None,
            label="word frequencies", dots=True,
        )  # fmt: skip
        charts["eval"].append({"masks": masks, "ratio": share, "spec": spec})
    return charts


def _row(record: dict[str, Any], value: str) -> dict[str, Any]:
    return {"arm": record["arm"], "seed": record.get("seed", 0), "value": record[value]}


def _thin(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every k-th line of each run, so that no run has more than MOST_POINTS."""
    runs: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault((line["arm"], line.get("seed")), []).append(line)
    return [line for run in runs.values() for line in run[:: -(-len(run) // MOST_POINTS)]]


def _scale(colours: dict[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def _finish(chart: Any, *, height: int) -> dict[str, Any]:
    axis = {
        "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "titleFontSize": 13, "labelFontSize": 12,
        "titlePadding": 10, "gridColor": FAINT, "domain": False, "ticks": False, "labelLimit": 190,
    }  # fmt: skip
    fit = {"type": "fit-x", "contains": "padding"}
    chart = chart.properties(width="container", height=height, background="transparent", autosize=fit)
    return chart.configure(font=FONT).configure_view(stroke=None).configure_axis(**axis).to_dict()
