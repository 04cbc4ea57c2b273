"""Charts and number formats of the page.

The chart functions convert rows to Vega-Lite JSON, which the browser draws. Without Vega's code,
they return tables. The filters format numbers in templates.

Charts have no frame, a faint grid and one colour per arm. Colours are from the Okabe–Ito palette,
which colour-blind readers can distinguish; the baseline is slate. Every run is a dot, because bars
of means would hide the number of runs. In line charts with many runs, runs are faint lines under
the mean of their arm.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from maskwise.base.constants import PLATEAU_NATS
from maskwise.base.errors import MaskwiseError, install_command, visible
from maskwise.base.specs import Call, parse_call
from maskwise.report.reading import LogLine
from maskwise.results.estimates import in_decimals, with_minus

if TYPE_CHECKING:
    from pandas import DataFrame

SLATE = "#565f6b"
BROWN = "#8a5a2b"
REFERENCE_GREY = "#857f75"
OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
# Colours from the palettes of Tol and Brewer, for more than seven arms.
MUTED = ["#882255", "#999933", "#6A3D9A", "#44AA99", "#8C510A"]
# Colours of objectives and learned groups, which include no baseline.
GROUPS = [*OKABE_ITO[:6], SLATE, BROWN]
DASHES = [[1, 0], [7, 3], [2, 3], [9, 3, 2, 3]]
"""Patterns of lines of the first to fourth arm, objective or group with the same colour."""
SHAPES = ["circle", "square", "triangle-up", "diamond"]
"""Shapes of dots of the first to fourth arm with the same colour."""
INK = "#2b2b2b"
FAINT = "#e9e6df"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
ChartSpec: TypeAlias = LogLine
"""A chart in Vega-Lite's JSON."""
View: TypeAlias = LogLine
"""Data for the template, keyed by the names in the template."""
Colours: TypeAlias = Mapping[str, str]
Look = TypeVar("Look")
Points: TypeAlias = Sequence[LogLine]
"""Points of a chart, with the keys "arm" (also for objectives and groups), "seed" and "value", and
a position."""

DOT: ChartSpec = {"size": 95, "opacity": 0.85, "stroke": "white", "strokeWidth": 1}

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
VEGA = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"
FLOPS = "FLOPs (G = 10⁹, T = 10¹², P = 10¹⁵)"
NUMBER, PERCENT = "f", "%"
"""Formats of axes without a number of digits: d3 takes as many as the steps of the ticks need."""
MOST_COLUMNS = 8
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@cache
def made_vega() -> tuple[str, str]:
    """Return the script of Vega, Vega-Lite and vega-embed (0.9 MB), and the reason if it is ""."""
    command = install_command("vl_convert")
    if command:
        return "", command
    # A separate process is used, because V8 aborts if memory is limited (``ulimit -v``).
    made = subprocess.run([sys.executable, "-P", "-c", VEGA], capture_output=True, check=False)
    if made.returncode:
        return "", f"Vega's code could not be exported: exit code {made.returncode}"
    # In HTML, "</script" ends the script element, even inside a string.
    return made.stdout.decode().replace("</script", "<\\/script"), ""


def vega_code() -> str:
    """Return the script of Vega, Vega-Lite and vega-embed; "" if it is not available."""
    return made_vega()[0]


def table_of_runs(points: Points) -> ChartSpec:
    """Return a table for a page without charts: mean, SD and number of runs, and every run."""
    from pandas import DataFrame

    runs = DataFrame(points).pivot_table("value", "arm", "seed")
    facts = DataFrame(
        {"mean": runs.mean(axis=1), "SD": runs.std(axis=1), "runs": runs.count(axis=1)}
    )
    return _html(facts.join(runs.rename(columns="seed {}".format)))


def table_of_measures(points: Points, quantity: str) -> ChartSpec:
    """Return a table of means over runs, with a row for the compute and for every measure."""
    from pandas import DataFrame

    compute = [{**point, "measure": quantity, "value": point["x"]} for point in points]
    table = DataFrame([*compute, *points])
    return _html(table.pivot_table("value", "measure", "arm", sort=False))


def table_of_curves(points: Points, x: str) -> ChartSpec:
    """Return a table of means over runs at no more than ``MOST_COLUMNS`` steps or tokens."""
    from pandas import DataFrame

    table = DataFrame(points)
    places = np.unique(table[x])
    # Count from the end, to keep the last column, which is the end of training.
    kept = places[:: -math.ceil(len(places) / MOST_COLUMNS)][::-1]
    # Every run may be logged at other numbers of tokens: it is read at its last point before each.
    table[x] = kept[np.searchsorted(kept, table[x])]
    last = table.groupby(["arm", "seed", x])["value"].last().reset_index()
    return _html(last.pivot_table("value", "arm", x))


def _html(table: DataFrame) -> ChartSpec:
    return {"html": visible(table.to_html(na_rep="–", float_format="%.4g"))}


def arm_colours(arms: Sequence[str], baseline: str | None) -> dict[str, str]:
    """Return the colours of arms: slate for the baseline, and the palette for other arms."""
    palette = cycle(OKABE_ITO + MUTED)
    return {arm: SLATE if arm == baseline else next(palette) for arm in arms}


def dashes_of(colours: Colours) -> dict[str, list[int]]:
    """Return the patterns of lines, which tell apart names with the same colour."""
    return _of_same_colour(colours, DASHES)


def dot_shapes(colours: Colours) -> dict[str, str]:
    """Return the shapes of dots, which tell apart names with the same colour."""
    return _of_same_colour(colours, SHAPES)


def _of_same_colour(colours: Colours, looks: Sequence[Look]) -> dict[str, Look]:
    """Return the first look for the first name of a colour, the second for the second, …"""
    before = Counter[str]()
    found = {}
    for name, colour in colours.items():
        found[name] = looks[before[colour] % len(looks)]
        before[colour] += 1
    return found


def dot_chart(
    rows: Points,
    colours: Colours,
    *,
    title: str,
    plateau: float | None = None,
    percent: bool = False,
) -> ChartSpec:
    """Draw a dot for every run, a thin line for every seed, and a tick at the mean of every arm.

    Args:
        rows: the points.
        colours: the colours of arms.
        title: the title of the horizontal axis.
        plateau: the loss of word frequencies, drawn as a dashed line with a band.
        percent: whether the axis is in per cent.
    """
    if not vega_code():
        return table_of_runs(rows)
    drawn = {row["arm"] for row in rows}
    arms = [arm for arm in colours if arm in drawn]
    ends = [row["value"] for row in rows]
    if plateau is not None:
        ends.append(plateau)
    reach = max(ends) - min(ends)
    # The chart needs a range even if all values are equal.
    margin = 0.08 * max(reach, 0.01)
    left = min(ends) - margin
    right = max(ends) + margin
    x = _quantity(
        "value",
        title=title,
        scale={"domain": [left, right], "nice": False, "zero": False},
        axis={"format": PERCENT if percent else NUMBER, "tickCount": 5},
    )
    labels = {"labelFontSize": 13, "labelPadding": 10, "grid": False}
    y = {"field": "arm", "type": "nominal", "sort": arms, "title": None, "axis": labels}
    mean = _quantity("value", aggregate="mean", title=title)
    seeds = {
        **_mark("line", color="#b9b4a8", strokeWidth=1, opacity=0.8),
        "encoding": {"x": x, "y": y, "detail": SEED, "order": _quantity("index")},
    }
    ticks = {**_mark("tick", thickness=3, size=26, color=INK), "encoding": {"x": mean, "y": y}}
    layers = [seeds, ticks, _dots(colours, x, y)]
    if plateau is not None:
        # Clip the band to the domain, because Vega shrinks the chart for marks outside of it.
        band = {
            **_mark("rect", color="#f3e3d3", opacity=0.75),
            "data": {"values": [{"from": max(plateau - PLATEAU_NATS, left), "to": right}]},
            "encoding": {"x": _quantity("from"), "x2": {"field": "to"}},
        }
        layers = [band, _rule("x", plateau), *layers]
    points = [{**row, "index": arms.index(row["arm"])} for row in rows]
    return _chart(points, layers, height=max(46 * len(arms), 60))


def choice_chart(rows: Points, colours: Colours, *, quantity: str) -> ChartSpec:
    """Draw quality by compute, with a menu below the chart that selects the measure.

    A dot is one run.
    """
    if not vega_code():
        return table_of_measures(rows, quantity)
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    bind = {"input": "select", "options": measures, "name": "Measure "}
    title = {"flops": FLOPS}.get(quantity, quantity)
    x = _quantity("x", title=title, scale={"zero": True}, axis=COUNTS)
    y = _quantity("value", title="measure", scale={"zero": False}, axis={"tickCount": 6})
    dots = _dots(colours, x, y, _quantity("x", format=".4s"))
    shapes = dot_shapes(colours)
    if {*shapes.values()} != {SHAPES[0]}:
        # Here, no axis names the arms.
        dots["mark"] = {**dots["mark"], "type": "point", "filled": True}
        scale = {"domain": [*shapes], "range": [*shapes.values()]}
        dots["encoding"]["shape"] = {**ARM, "scale": scale, "legend": None}
    # Vega evaluates this expression in the browser when the menu changes.
    dots["transform"] = [{"filter": "datum.measure == measure"}]
    menu = {"name": "measure", "value": measures[0], "bind": bind}
    return {**_chart(rows, [dots], height=320), "params": [menu]}


def line_chart(
    rows: Points,
    colours: Colours,
    *,
    title: str | None,
    x: str = "step",
    percent: bool = False,
    zero: bool = False,
    means: bool = False,
    rule: float | None = None,
) -> ChartSpec:
    """Draw a line for every run, and a dotted line for "scheduled" values.

    Args:
        rows: the points.
        colours: the colours of arms.
        title: the title of the vertical axis.
        x: the quantity on the horizontal axis, "step" or "tokens".
        percent: whether the vertical axis is in per cent.
        zero: whether the vertical axis includes 0.
        means: whether to draw runs as faint lines and the means of arms over them.
        rule: the value of a horizontal dashed line; None for no line.
    """
    if not vega_code():
        return table_of_curves(rows, x)
    colour = _arm_colour(colours)
    dashes = dashes_of(colours)
    dash = {**ARM, "scale": {"domain": [*dashes], "range": [*dashes.values()]}, "legend": None}
    title_x = "tokens read" if x == "tokens" else x
    across = _quantity(x, title=title_x, scale={"domainMin": 0}, axis=COUNTS)
    axis = {"format": PERCENT if percent else NUMBER, "tickCount": 6}
    up: ChartSpec = {"title": title, "axis": axis, "scale": {"zero": zero}}
    tips = [ARM, _quantity(x, format=","), _quantity("value", format=".3f")]
    runs = {
        "x": across,
        "y": _quantity("value", **up),
        "color": colour,
        "strokeDash": dash,
        "detail": SEED,
        "tooltip": tips,
    }
    thin = _mark("line", strokeWidth=1.0, opacity=0.3)
    usual = _mark("line", strokeWidth=1.9, opacity=0.75)
    layers = [{**(thin if means else usual), "encoding": runs}]
    if means:
        y = _quantity("value", aggregate="mean", **up)
        encoding = {"x": across, "y": y, "color": colour, "strokeDash": dash, "tooltip": tips[:2]}
        layers.append({**_mark("line", strokeWidth=2.2), "encoding": encoding})
    if any("scheduled" in row for row in rows):
        dotted = _mark("line", strokeDash=[2, 4], color="#000", strokeWidth=1.3, opacity=0.7)
        y = _quantity("scheduled", title=title)
        layers.append({**dotted, "encoding": {"x": across, "y": y, "detail": [ARM, SEED]}})
    if rule is not None:
        layers.append(_rule("y", rule))
    return _chart(rows, layers, height=260)


# Parts of all charts

ARM: ChartSpec = {"field": "arm", "type": "nominal"}
SEED: ChartSpec = {"field": "seed", "type": "nominal"}
COUNTS: ChartSpec = {"format": "~s", "tickCount": 6, "grid": False}
"""The axis of steps, tokens or FLOPs."""
AXES: ChartSpec = {
    "labelColor": INK,
    "titleColor": INK,
    "titleFontWeight": "normal",
    "gridColor": FAINT,
    "titleFontSize": 13,
    "labelFontSize": 12,
    "titlePadding": 10,
    "labelPadding": 6,
    "labelLimit": 190,
    "domain": False,
    "ticks": False,
}


def _mark(kind: str, **look: object) -> ChartSpec:
    return {"mark": {"type": kind, **look}}


def _quantity(field: str, **facts: object) -> ChartSpec:
    """Return a field of numbers, which is a position or a line of a tooltip."""
    return {"field": field, "type": "quantitative", **facts}


def _dots(colours: Colours, x: ChartSpec, y: ChartSpec, *tips: ChartSpec) -> ChartSpec:
    tooltip = [ARM, {"field": "seed", "type": "ordinal"}, *tips, _quantity("value", format=".4f")]
    encoding = {"x": x, "y": y, "color": _arm_colour(colours), "tooltip": tooltip}
    return {**_mark("circle", **DOT), "encoding": encoding}


def _rule(axis: str, at: float) -> ChartSpec:
    """Return a dashed line across the chart."""
    return {
        **_mark("rule", strokeDash=[5, 4], color=BROWN, strokeWidth=1.5),
        "data": {"values": [{"at": at}]},
        "encoding": {axis: _quantity("at")},
    }


def _arm_colour(colours: Colours) -> ChartSpec:
    # Charts need no legend, because the page has one.
    return {**ARM, "scale": {"domain": [*colours], "range": [*colours.values()]}, "legend": None}


def _chart(rows: Points, layers: Sequence[ChartSpec], *, height: int) -> ChartSpec:
    """Return a chart in the common style, whose layers draw the same rows unless they have own
    ones.
    """
    return {
        "$schema": SCHEMA,
        "data": {"values": list(rows)},
        "layer": list(layers),
        "width": "container",
        "height": height,
        "background": "transparent",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": {"font": FONT, "view": {"stroke": None}, "axis": AXES},
    }


# Numbers in templates


def figure(x: float | None, digits: int = 3) -> str:
    return "–" if x is None else in_decimals(x, digits)


def short(x: float | None) -> str:
    if x is None:
        return "–"
    if abs(x) >= 9999.5:
        return f"{x:,.0f}"
    return f"{x:.3f}" if abs(x) < 10 else f"{x:.4g}"


def share(x: float | None, digits: int = 0) -> str:
    return "–" if x is None else with_minus(f"{in_decimals(100 * x, digits)} %")


def in_powers_of_ten(x: float | None) -> str:
    """Format a number in scientific notation: 5.6e7 becomes 5.60 × 10⁷."""
    if x is None:
        return "–"
    digits, _, exponent = f"{x:.2e}".partition("e")
    raised = str(int(exponent)).translate(RAISED)
    return f"{digits} × 10{raised}"


def figures(text: object) -> str:
    """Insert no-break spaces between numbers and their units."""
    # An escaped text from a macro (Markup) stays escaped, because it is a str, too.
    if not isinstance(text, str):
        text = str(text)
    return text.replace(" %", "\u00a0%").replace("p = ", "p\u00a0=\u00a0")


def call(spec: str) -> Call:
    """Parse a policy, schedule or sampler; a text of another form counts as a name."""
    try:
        return parse_call(spec)
    except MaskwiseError:
        return Call(spec)


FILTERS = {
    "call": call,
    "dashes": dashes_of,
    "shapes": dot_shapes,
    "figure": figure,
    "short": short,
    "share": share,
    "in_powers_of_ten": in_powers_of_ten,
    "figures": figures,
}
"""Filters of the templates."""
