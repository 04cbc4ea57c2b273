"""Writes the page: one self-contained HTML file, about a megabyte, that needs no network and opens in ten
years.

Why one file: it is mailed, archived and printed. The Vega code is embedded once, each chart is a small JSON
text. Whatever comes from the user's files (names of arms, text of samples, errors, recipes) is escaped by the
template; the page's own policy forbids every load and every code but its own.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from maskwise.report.charts import curve_charts, heldout_charts, learnt_charts, score_charts, whole_runs
from maskwise.report.drawing import SLATE, arm_colours
from maskwise.report.forest import common_notes, forest_groups
from maskwise.report.objectives import objectives_view
from maskwise.report.reading import REFERENCE, Folder, finite, read_folder
from maskwise.report.tables import choices, compute_view, evaluation_table, task_table, warnings

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_report(folder: Path, html: Path | None = None) -> Path:
    """Makes the page of a study or pre-training run; returns its path (default: `folder`/report.html).

    Raises MaskwiseError if `folder` is neither. Missing pieces make a smaller page.
    """
    folder = Path(folder)
    found = read_folder(folder)
    target = Path(html) if html is not None else folder / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = _environment().get_template("page.html.j2").render(**page_content(found), vega=vega_code())
    draft = target.with_name(target.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(target)  # whoever reloads sees the old page or the new one
    return target


def page_content(found: Folder) -> dict[str, Any]:
    """All that the template says, as plain data."""
    colours = arm_colours(found.arms, found.baseline)
    seeds = found.study.get("seeds") or []
    return {
        "kind": found.kind,
        "name": found.name,
        "study": found.study,
        "summary": found.summary,
        "badge": found.summary.get("verdict"),
        "story": _story(found),
        "warnings": warnings(found),
        "arms": [_arm(found, arm, colours[arm]) for arm in found.arms],
        "forests": forest_groups(found.summary.get("contrasts") or [], colours),
        "scores": score_charts(found, colours),
        "task_table": task_table(found),
        "score_table": _score_table(found),
        "heldout": heldout_charts(found, colours),
        "evaluations": evaluation_table(found),
        "choices": choices(found),
        "compute": compute_view(found, colours),
        "curves": curve_charts(found, colours),
        "learnt": learnt_charts(found),
        "names": found.arms,
        "reference": found.reference,
        "several": objectives_view(found, colours),
        "samples": _samples(found, colours),
        "failures": [record for record in found.records if record["kind"] == "failure"],
        "facts": _facts(found, seeds),
        "recipe_yaml": found.recipe_yaml,
        "versions": found.study.get("versions") or {},
    }


def _story(found: Folder) -> dict[str, Any] | None:
    """The page in plain words: what was compared, what was found (a line per primary contrast), what to do."""
    rows = [row for row in found.summary.get("contrasts") or [] if row.get("primary")]
    if not rows:
        return None
    seeds, tasks = len(found.study.get("seeds") or []), list(found.study.get("tasks") or {})
    told = f"{len(found.arms)} ways to pre-train, {seeds} run{'s' if seeds != 1 else ''} of each with the same seeds"
    told += (
        f", judged on {', '.join(tasks)}"
        if tasks
        else ", judged by held-out loss and what needs no fine-tuning"
    )
    by = found.summary.get("matched_by")
    told += (
        f". All arms spent equal {by}"
        if by and all((row.get("compute") or {}).get("matched") for row in rows)
        else ""
    )
    search = found.study.get("search")
    told += ". Each arm has the settings that were best for it on other seeds." if search else "."
    lines = [{"verdict": row["verdict"], "sentence": row.get("brief") or row["sentence"]} for row in rows]
    known = common_notes(found.summary["contrasts"])
    return {"compared": told, "found": lines, "known": known, "advice": found.summary.get("advice") or []}


def _arm(found: Folder, arm: str, colour: str) -> dict[str, Any]:
    facts, known = (
        (found.study.get("arms") or {}).get(arm, {}),
        (found.summary.get("arms") or {}).get(arm, {}),
    )
    what = ("sampler",) if "sampler" in facts else ("policy", "ratio")
    words, recipe = known.get("words"), " ".join(str(facts[k]) for k in what if facts.get(k))
    return {
        "name": arm,
        "colour": colour,
        "baseline": arm == found.baseline,
        "words": words if words and words != arm else recipe,
        "plateau": bool(known.get("plateau")),
        "gap": known.get("gap_nats"),
        "failures": sum(r["kind"] == "failure" and r["arm"] == arm for r in found.records),
    }


def _score_table(found: Folder) -> list[dict[str, Any]]:
    """Every number behind the dots: per task and arm the runs by seed, and their mean."""
    rows = []
    scores = [r for r in whole_runs(found) if r["kind"] == "score" and finite(r.get("score"))]
    for task in dict.fromkeys(r.get("task") for r in scores):
        for arm in [*found.arms, REFERENCE]:
            runs = {r.get("seed"): r["score"] for r in scores if r.get("task") == task and r["arm"] == arm}
            if runs:
                rows.append({"task": task, "arm": arm, "runs": runs, "mean": sum(runs.values()) / len(runs)})
    return rows


def _samples(found: Folder, colours: dict[str, str]) -> list[dict[str, Any]]:
    """By document, so that the same sentence stands side by side."""
    documents: dict[str, list[dict[str, Any]]] = {}
    for arm, samples in found.samples.items():
        for sample in samples if isinstance(samples, list) else []:
            pieces = [piece for piece in sample.get("pieces") or [] if piece.get("text")]
            if pieces:
                version: dict[str, Any] = {
                    "arm": arm,
                    "colour": colours.get(arm, SLATE),
                    "pieces": [_piece(p) for p in pieces],
                }
                version["selected"] = sum(p.get("state") != "shown" for p in pieces)
                version["learnt"] = bool(sample.get("learnt"))
                _add_version(documents.setdefault(str(sample.get("document")), []), version)
    return [{"document": name, "versions": versions} for name, versions in documents.items()]


def _add_version(versions: list[dict[str, Any]], version: dict[str, Any]) -> None:
    """Arms that mask a text alike, such as those with different samplers, are shown once, under all their names."""
    for other in versions:
        if other["pieces"] == version["pieces"]:
            other["arm"] += f", {version['arm']}"
            return
    versions.append(version)


def _piece(piece: dict[str, Any]) -> dict[str, str]:
    """A token with the white space before it set apart, so that a coloured chip holds the word only."""
    text, state = str(piece["text"]), str(piece.get("state", "shown"))
    word = text.lstrip()
    shown = str(piece.get("shown", "")).strip()
    tip = {
        "masked": f"masked: the model saw [MASK], and had to find “{word}”",
        "random": f"replaced: the model saw “{shown}”, and had to find “{word}”",
        "kept": f"kept: the model saw “{word}”, and had to confirm it",
    }.get(state, "")
    return {
        "space": text[: len(text) - len(word)],
        "text": shown if state == "random" and shown else word,
        "state": state if tip else "shown",
        "tip": tip,
    }


def _facts(found: Folder, seeds: list[Any]) -> list[tuple[str, str]]:
    study, hardware = found.study, found.study.get("hardware") or {}
    seconds = study.get("seconds") or found.done.get("seconds")
    machine = [
        hardware.get("cpu"),
        f"{hardware['cores']} cores" if hardware.get("cores") else None,
        f"{hardware['memory_gib']} GiB memory" if hardware.get("memory_gib") else None,
        hardware.get("accelerator") or ("no accelerator" if hardware else None),
    ]
    facts = [
        ("Started", _when(study.get("started"))),
        ("Time", _duration(seconds)),
        ("Steps", f"{found.done['steps']:,}" if finite(found.done.get("steps")) else None),
        ("Seeds", ", ".join(map(str, seeds)) or None),
        ("Hardware", ", ".join(str(part) for part in machine if part) or None),
        ("maskwise", study.get("maskwise")),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _when(text: Any) -> str | None:
    try:
        return f"{datetime.fromisoformat(str(text)):%-d %B %Y, %H:%M} UTC" if text else None
    except ValueError:
        return str(text)


def _duration(seconds: Any) -> str | None:
    if not finite(seconds):
        return None
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def powers(x: Any) -> str:
    """5.6e7 as 5.60 × 10⁷."""
    if not finite(x):
        return "–"
    digits, _, power = f"{x:.2e}".partition("e")
    return f"{digits} × 10{str(int(power)).translate(RAISED)}"


@cache
def vega_code() -> str:
    """Vega, Vega-Lite and vega-embed as one script (0.9 MB); no `</script` ends the element early."""
    code = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub is wrong
    return code.replace("</script", "<\\/script")


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = lambda x, digits=3: f"{x:.{digits}f}" if finite(x) else "–"
    environment.filters["figures"] = lambda text: (
        str(text).replace(" %", "\u00a0%").replace("p = ", "p\u00a0=\u00a0")
    )
    environment.filters["short"] = lambda x: (f"{x:.3f}" if abs(x) < 10 else f"{x:.4g}") if finite(x) else "–"
    environment.filters["powers"] = powers
    environment.filters["percent"] = lambda x: f"{100 * x:.0f} %" if finite(x) else (x or "–")
    environment.filters["share"] = lambda x, digits=0: f"{100 * x:.{digits}f} %" if finite(x) else "–"
    return environment
