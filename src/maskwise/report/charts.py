"""Which charts a page has: picks the rows out of a folder's records and metrics, and has them drawn.

A number that is missing or not finite is left out of its chart; a chart without numbers is left out of the
page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maskwise.report.drawing import dot_chart, group_chart, line_chart
from maskwise.report.reading import REFERENCE, Folder, finite

MOST_POINTS = 200  # per line: more is not seen


def score_charts(folder: Folder, colours: dict[str, str]) -> list[dict[str, Any]]:
    """One dot chart per task, and the facts of its caption."""
    charts = []
    scores = [r for r in whole_runs(folder) if r["kind"] == "score" and finite(r.get("score"))]
    for task in dict.fromkeys(r.get("task") for r in scores):
        records = [r for r in scores if r.get("task") == task]
        rows = [_row(r, "score") for r in records if r["arm"] in colours]
        if not rows:
            continue
        facts = (folder.study.get("tasks") or {}).get(task) or {}
        known = (folder.summary.get("references") or {}).get(task) or {}
        majority = known.get("majority", facts.get("majority"))
        scratch = _mean([r["score"] for r in records if r["arm"] == REFERENCE])
        references = {"commonest answer": majority, folder.reference: scratch}
        metric = str(facts.get("metric") or records[0].get("metric") or "score")
        percent = all(0 <= row["value"] <= 1 for row in rows)
        spec = dot_chart(
            rows,
            colours,
            title=f"{metric} (right is better)",
            references={
                label: float(at) for label, at in references.items() if at is not None and finite(at)
            },
            percent=percent,
        )
        chart = {"name": task, "metric": metric, "spec": spec, "percent": percent, "scratch": scratch}
        chart |= {"majority": majority if finite(majority) else None, "classes": facts.get("classes")}
        charts.append(chart | {"test_items": facts.get("test_items")})
    return charts


def heldout_charts(folder: Folder, colours: dict[str, str]) -> list[dict[str, Any]]:
    """One dot chart per kind of mask and ratio, with the unigram line and the plateau beside it."""
    every = [r for r in whole_runs(folder) if r["kind"] == "heldout"]
    records = [r for r in every if r["arm"] in colours]
    untouched = _by_masks([r for r in every if r["arm"] == REFERENCE])
    starts = {(masks, ratio): same[0]["loss"] for masks, ratio, same, _ in untouched}  # of any seed
    charts = []
    for masks, ratio, same, unigram in _by_masks(records):
        rows = [_row(r, "loss") for r in same]
        start = starts.get((masks, ratio))
        lines = {} if start is None else {folder.reference: start}
        title = "loss in nats (left is better)"
        spec = dot_chart(rows, colours, title=title, plateau=unigram, references=lines)
        charts.append({"masks": masks, "ratio": ratio, "unigram": unigram, "start": start, "spec": spec})
    return charts


def curve_charts(folder: Folder, colours: dict[str, str]) -> dict[str, Any]:
    """{"train": spec, "ratio": spec, "eval": [{"masks", "ratio", "spec"}, …]}, as far as it was logged."""
    charts: dict[str, Any] = {"eval": []}
    train = [r for r in folder.curves if r.get("kind") == "train" and finite(r.get("step"))]
    losses = thin([r for r in train if finite(r.get("loss"))])
    if losses:
        by_tokens = all(finite(r.get("tokens")) for r in losses)
        x, title = ("tokens", "tokens read") if by_tokens else ("step", "step")
        rows = [_row(r, "loss") | {x: r[x]} for r in losses]
        charts["train"] = line_chart(rows, colours, x=x, x_title=title, y_title="training loss, nats")
    ratios = thin([r for r in train if finite(r.get("ratio"))])
    if ratios:
        rows = [_row(r, "ratio") | {"step": r["step"]} for r in ratios]
        for row, r in zip(rows, ratios):
            row |= {"scheduled": r["scheduled_ratio"]} if finite(r.get("scheduled_ratio")) else {}
        charts["ratio"] = line_chart(rows, colours, x="step", x_title="step", y_title="masked", percent=True)
    evals = [r for r in folder.curves if r.get("kind") == "eval" and finite(r.get("step"))]
    for masks, ratio, same, unigram in _by_masks(evals):
        rows = [_row(r, "loss") | {"step": r["step"]} for r in thin(same)]
        look: dict[str, Any] = {"x": "step", "x_title": "step", "y_title": "held-out loss, nats"}
        spec = line_chart(rows, colours, unigram=unigram, dots=True, **look)
        charts["eval"].append({"masks": masks, "ratio": ratio, "spec": spec})
    return charts


def whole_runs(folder: Folder) -> list[dict[str, Any]]:
    """Records without those of shorter companion runs, which are never pooled with them."""
    return [record for record in folder.records if record.get("fraction", 1.0) == 1.0]


def learnt_charts(folder: Folder) -> list[dict[str, Any]]:
    """The weights of groups that policies learnt, over the steps: one chart per arm, and objective of an arm."""
    charts = []
    for arm in folder.arms:
        lines = thin([r for r in folder.curves if r["arm"] == arm])
        keys = dict.fromkeys(key for line in lines for key in line if key.split(" ")[-1] == "weights")
        for key in keys:
            rows = [
                {"arm": str(name), "seed": line.get("seed", 0), "step": line.get("step"), "value": value}
                for line in lines
                if isinstance(line.get(key), dict)
                for name, value in line[key].items()
                if finite(value) and finite(line.get("step"))
            ]
            if rows:
                last = max(row["step"] for row in rows)
                order = sorted({row["arm"] for row in rows}, key=lambda name: -_last(rows, name, last))
                title = " ".join([arm, *key.split(" ")[:-1]])
                charts.append({"arm": title, "names": len(order), "spec": group_chart(rows, order, "weight")})
    return charts


def _last(rows: list[dict[str, Any]], name: str, step: int) -> float:
    return _mean([row["value"] for row in rows if row["arm"] == name and row["step"] == step]) or 0.0


def _by_masks(records: list[dict[str, Any]]) -> Iterator[tuple[str, Any, list[dict[str, Any]], float | None]]:
    """(kind of mask, ratio, its records, their mean unigram loss)."""
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for record in records:
        if finite(record.get("loss")):
            groups.setdefault((str(record.get("masks")), record.get("ratio")), []).append(record)
    for (masks, ratio), same in groups.items():
        yield masks, ratio, same, _mean([r["unigram"] for r in same if finite(r.get("unigram"))])


def _row(record: dict[str, Any], value: str) -> dict[str, Any]:
    return {"arm": record["arm"], "seed": record.get("seed", 0), "value": record[value]}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def thin(lines: list[dict[str, Any]], most: int = MOST_POINTS) -> list[dict[str, Any]]:
    """Every k-th line of each run, so that no run has more than `most`."""
    runs: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault((line["arm"], line.get("seed")), []).append(line)
    return [line for run in runs.values() for line in run[:: -(-len(run) // most)]]
