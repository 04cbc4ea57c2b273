"""Writes the page: one self-contained HTML file, about a megabyte, that needs no network and opens
in ten years.

Why one file: it is mailed, archived and printed. The Vega code is embedded once, each chart is a
small JSON text. Whatever comes from the user's files (names of arms, text of samples, errors,
recipes) is escaped by the template; the page's own policy forbids every load and every code but its
own.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from maskwise import __version__
from maskwise.constants import (
    PLATEAU_NATS,
    overlap_matters,
    overlap_words,
)
from maskwise.errors import duration
from maskwise.files import Contrast
from maskwise.folders import write_whole
from maskwise.report.charts import (
    compute_view,
    coverage_view,
    curve_charts,
    heldout_charts,
    objectives_view,
    score_charts,
    transfer_view,
    weight_charts,
)
from maskwise.report.drawing import (
    SLATE,
    Colours,
    View,
    arm_colours,
    common_notes,
    forest_groups,
    outcome_label,
)
from maskwise.report.reading import Folder, Piece, read_folder
from maskwise.report.tables import choices, evaluation_table, score_table, task_table

VEGA = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"
NO_CHARTS = "There are no charts: the memory allowed here is too small to make them."
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_report(folder: Path, html: Path | None = None) -> Path:
    """Make the page of a study or pre-training run.

    Args:
        folder: the ``--out`` folder of either. Files that are missing make a smaller page.
        html: where to write; ``folder``/report.html if not given.

    Returns:
        The path of the page.

    Raises:
        MaskwiseError: ``folder`` is neither a study nor a run, or the page cannot be written.
    """
    folder = Path(folder)
    content = page_content(read_folder(folder))
    target = Path(html) if html is not None else folder / "report.html"
    write_whole(
        target, environment().get_template("page.html.j2").render(**content, vega=vega_code())
    )
    return target


def page_content(folder: Folder) -> View:
    """All that the template says, as plain data."""
    colours = arm_colours(folder.arms, folder.study["baseline"])
    facts = _facts(folder)
    return {
        "kind": folder.kind,
        "name": folder.name,
        "study": folder.study,
        "summary": folder.summary,
        "story": _story(folder),
        "warnings": _overlaps(folder, matter=True),
        "small_overlaps": _overlaps(folder, matter=False),
        "missing": _missing(folder),
        "arms": [_arm(folder, arm, colours[arm]) for arm in folder.arms],
        "forests": forest_groups(folder.summary["contrasts"], colours),
        "scores": score_charts(folder, colours),
        "task_table": task_table(folder),
        "score_table": score_table(folder),
        "coverage": coverage_view(folder, colours),
        "transfer": transfer_view(folder),
        "policies": _policies(folder),
        "heldout": heldout_charts(folder, colours),
        "evaluations": evaluation_table(folder),
        "choices": choices(folder),
        "compute": compute_view(folder, colours),
        "curves": curve_charts(folder, colours),
        "weights": weight_charts(folder),
        "names": folder.arms,
        "colours": colours,
        "reference": folder.reference,
        "several": objectives_view(folder, colours),
        "samples": _samples(folder, colours),
        "sampled": list(folder.samples),
        "moments": max(
            (len(s.get("moments", ())) for arm in folder.samples.values() for s in arm), default=0
        ),
        "failures": [record for record in folder.records if record["kind"] == "failure"],
        "finished": bool(facts),
        "facts": facts + _speed(folder),
        "recipe_yaml": folder.recipe_yaml,
    }


def _story(folder: Folder) -> View | None:
    """The page in plain words: what was compared, what was found (a line per primary contrast),
    what to do.
    """
    summary, study = folder.summary, folder.study
    rows = [row for row in summary["contrasts"] if row["primary"]]
    if not rows:
        return None
    runs = f"{len(study['seeds'])} run{'s' if len(study['seeds']) != 1 else ''}"
    judged = ", ".join(study["tasks"])
    sentence = (
        f"{len(folder.arms)} way{'s' * (len(folder.arms) != 1)} to pre-train, {runs} of "
        f"each with the same seeds"
    )
    sentence += (
        f", judged on {judged}"
        if judged
        else ", judged by held-out loss and what needs no fine-tuning"
    )
    by = summary["matched_by"]
    sentence += (
        f". All arms spent equal {by}"
        if by and all(row["compute"]["matched"] for row in rows)
        else ""
    )
    sentence += f". {_scopes(rows)} {_seen(folder)}".rstrip()
    lines = [{"verdict": row["verdict"], "sentence": row["brief"]} for row in rows]
    known = common_notes(summary["contrasts"])
    return {"compared": sentence, "lines": lines, "known": known, "advice": summary["advice"]}


def _seen(folder: Folder) -> str:
    """What so many runs can decide; nothing where a summary of earlier rules does not say it."""
    planned = folder.summary.get("planned")
    if planned is None:
        return ""
    contrasts = f"{planned['contrasts']} comparison{'s' * (planned['contrasts'] != 1)}"
    if not any(planned["power"].values()):
        return f"So few runs cannot decide {contrasts}."
    chances = [
        f"{power:.2f} where it is {effect} spreads" for effect, power in planned["power"].items()
    ]
    return (
        f"With {contrasts}, a true difference is decided with probability "
        f"{' and '.join(chances)} between paired runs."
    )


def _scopes(rows: list[Contrast]) -> str:
    """What the verdicts hold for; nothing more is known of those of earlier rules."""
    scopes = {row.get("scope") for row in rows}
    if scopes == {"each arm tuned"}:
        return "Every seed chose the settings of each arm, and a fresh run at them is compared."
    if scopes == {"at these settings"}:
        return (
            "The verdicts hold at these settings: with others, such as other learning rates, "
            "the order may change."
        )
    return ""


def _arm(folder: Folder, arm: str, colour: str) -> View:
    facts, known = folder.study["arms"].get(arm), folder.summary["arms"].get(arm)
    gap = known.get("gap_nats") if known else None
    recipe = (
        (facts["sampler"] if "sampler" in facts else f"{facts['policy']} {facts['ratio']}")
        if facts
        else ""
    )
    return {
        "name": arm,
        "colour": colour,
        "baseline": arm == folder.study["baseline"],
        "words": known["words"] if known and known["words"] != arm else recipe,
        "floor": gap if gap is not None and gap < PLATEAU_NATS else None,
        "failures": sum(r["kind"] == "failure" and r["arm"] == arm for r in folder.records),
    }


def _overlaps(folder: Folder, *, matter: bool) -> list[str]:
    """Corpora that hold so many test items that scores may be of memory; or, in plain notes, those
    that hold fewer.
    """
    return [
        overlap_words(line["overlapping"], line["items"], line["task"])
        + f" ({line['corpus']}){': the scores may reflect memory' if matter else ''}."
        for line in folder.records
        if line["kind"] == "overlap"
        and line["overlapping"]
        and overlap_matters(line["overlapping"], line["items"]) == matter
    ]


def _policies(folder: Folder) -> list[View]:
    """By arm that learned its policies: what they found, and in how many runs the learning was odd."""
    lines = [line for line in folder.whole if line["kind"] == "policy"]
    views = list[View]()
    for arm in dict.fromkeys(line["arm"] for line in lines):
        runs: list[Any] = [line for line in lines if line["arm"] == arm]
        odd = {"stopped early": "stopped", "inner steps too long": "overshoot"}
        counts = {what: sum(key in line for line in runs) for what, key in odd.items()}
        remarks = [f"{what} in {count} of {len(runs)}" for what, count in counts.items() if count]
        remarks += (
            [f"each the best of {tries} tries"]
            if (tries := len(runs[0].get("tries") or [])) > 1
            else []
        )
        views.append(
            {"arm": arm, "runs": runs, "even": runs[0].get("labelled_words"), "remarks": remarks}
        )
    return views


MOST_NAMED = 6
"""So many missing runs are named; of more it is said that there are more."""


def _missing(folder: Folder) -> list[str]:
    """What a whole study has and this folder lacks, in sentences; runs that failed have a section
    of their own.
    """
    if folder.kind != "study":
        return []
    study, lines = folder.study, list[str]()
    if not vega_code():
        lines.append(NO_CHARTS)
    if not folder.summary["headline"]:
        why = "the study is still running, or was stopped; the same command goes on"
        lines.append(f"There are no verdicts yet (summary.json): {why}.")
    failed = {(r["arm"], r["seed"]) for r in folder.records if r["kind"] == "failure"}
    runs = [
        (arm, seed) for arm in folder.arms for seed in study["seeds"] if (arm, seed) not in failed
    ]
    scores = [record for record in folder.whole if record["kind"] == "score"]
    has = {
        f"a score on {task}": {(r["arm"], r["seed"]) for r in scores if r["task"] == task}
        for task in study["tasks"]
    }
    losses = [record for record in folder.whole if record["kind"] == "heldout"]
    if losses or not study["tasks"]:
        has["a held-out loss"] = {(r["arm"], r["seed"]) for r in losses}
    has["curves (stages/…/metrics.jsonl)"] = {(line["arm"], line["seed"]) for line in folder.curves}
    for what, known in has.items():
        lines += _lacking([run for run in runs if run not in known], len(runs), what)
    if not folder.samples:
        lines.append("There are no masked sentences to look at (samples.json).")
    if folder.unread:
        lines.append(
            f"{folder.unread} line{'s' * (folder.unread > 1)} of records.jsonl cannot be used."
        )
    if (made := study["maskwise"]) and made != __version__:
        lines.append(f"The study was made by maskwise {made}, and this page by {__version__}.")
    return lines


def _lacking(runs: list[tuple[str, int]], total: int, what: str) -> list[str]:
    """The sentence that so many runs do not have something; none where all have it."""
    if not runs:
        return []
    if len(runs) == total:
        return [f"No run has {what}."]
    named = ", ".join(f"{arm} with seed {seed}" for arm, seed in runs[:MOST_NAMED])
    more = ", …" if len(runs) > MOST_NAMED else ""
    return [
        f"{len(runs)} of {total} runs {'has' if len(runs) == 1 else 'have'} not {what}: "
        f"{named}{more}."
    ]


# Samples and facts
# -----------------------------------------------------------------------------------


def _samples(folder: Folder, colours: Colours) -> list[View]:
    """By document, so that the same sentence stands side by side; arms that mask it alike are shown
    once.

    A version has the text at every moment that was written, the middle one of which is shown first.
    """
    documents: dict[str, dict[str, View]] = defaultdict(dict)
    for number, (arm, samples) in enumerate(folder.samples.items()):
        for sample in samples:
            moments = [
                _moment(moment) for moment in sample.get("moments", [{"pieces": sample["pieces"]}])
            ]
            versions, key = (
                documents[sample["document"]],
                repr([moment["pieces"] for moment in moments]),
            )
            if key in versions:
                versions[key]["arm"] = f"{versions[key]['arm']}, {arm}"
                versions[key]["arms"] = f"{versions[key]['arms']} {number}"
            elif moments[0]["pieces"]:
                versions[key] = {
                    "arm": arm,
                    "arms": f"{number}",
                    "colour": colours.get(arm, SLATE),
                    "moments": moments,
                    "learnt": sample.get("learnt", False),
                }
    return [
        {"document": name, "versions": list(alike.values())} for name, alike in documents.items()
    ]


def _moment(moment: Mapping[str, Any]) -> View:
    pieces = [_piece(piece) for piece in moment["pieces"] if piece["text"]]
    selected = sum(piece["state"] != "shown" for piece in moment["pieces"])
    return {"step": moment.get("step"), "pieces": pieces, "selected": selected}


def _piece(piece: Piece) -> dict[str, str]:
    """A token with the white space before it set apart, so that a coloured chip holds the word
    only.
    """
    text, state, shown = piece["text"], piece["state"], piece.get("shown", "").strip()
    word = text.lstrip()
    tip = {
        "masked": f"masked: the model saw [MASK], and had to find “{word}”",
        "random": f"replaced: the model saw “{shown}”, and had to find “{word}”",
        "kept": f"kept: the model saw “{word}”, and had to confirm it",
    }.get(state, "")
    body = shown if state == "random" and shown else word
    return {
        "space": text[: len(text) - len(word)],
        "text": body,
        "state": state if tip else "shown",
        "tip": tip,
    }


def _facts(folder: Folder) -> list[tuple[str, str]]:
    study, hardware = folder.study, folder.study["hardware"]
    machine = [
        hardware.get("cpu"),
        f"{hardware['cores']} cores" if hardware.get("cores") else None,
        f"{hardware['memory_gib']} GiB memory" if hardware.get("memory_gib") else None,
        hardware.get("accelerator") or ("no accelerator" if hardware else None),
    ]
    facts = [
        (
            "Started",
            f"{datetime.fromisoformat(study['started']):%-d %B %Y, %H:%M} UTC"
            if study["started"]
            else "",
        ),
        ("Time", "" if folder.seconds is None else duration(folder.seconds)),
        ("Steps", "" if folder.steps is None else f"{folder.steps:,}"),
        ("Seeds", ", ".join(map(str, study["seeds"]))),
        ("Hardware", ", ".join(str(part) for part in machine if part)),
        ("maskwise", study["maskwise"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in study["versions"].items())),
    ]
    return [(name, text) for name, text in facts if text]


def _speed(folder: Folder) -> list[tuple[str, str]]:
    """How fast trainings were, by their metrics: the middle of what the lines say, and the highest
    peak of memory.
    """
    needed = {"tokens_per_second", "memory_gib"}
    lines = [
        line
        for line in folder.curves
        if line["kind"] == "train" and needed <= line.get("speed", {}).keys()
    ]
    if not lines:
        return []
    middle = {
        name: median(values)
        for name in ("tokens_per_second", "mfu")
        if (values := [line["speed"][name] for line in lines if name in line["speed"]])
    }
    parts = [f"{middle['tokens_per_second']:,.0f} tokens a second in each run"]
    if "mfu" in middle:
        parts.append(
            f"{100 * middle['mfu']:.0f} % of the hardware's measured matrix products (MFU)"
        )
    if paddings := [line["padding"] for line in lines if "padding" in line]:
        parts.append(f"{100 * sum(paddings) / len(paddings):.0f} % of the positions padding")
    parts.append(f"at most {max(line['speed']['memory_gib'] for line in lines):.1f} GiB of memory")
    return [("Training", ", ".join(parts))]


def powers(x: float | None) -> str:
    """5.6e7 as 5.60 × 10⁷."""
    if x is None:
        return "–"
    digits, _, power = f"{x:.2e}".partition("e")
    return f"{digits} × 10{str(int(power)).translate(RAISED)}"


@cache
def vega_code() -> str:
    """Vega, Vega-Lite and vega-embed as one script (0.9 MB); no `</script` ends the element early.

    Another process makes it: where memory is limited (``ulimit -v``) V8 ends its process. Then it
    is "".
    """
    made = subprocess.run([sys.executable, "-P", "-c", VEGA], capture_output=True, check=False)
    return "" if made.returncode else made.stdout.decode().replace("</script", "<\\/script")


def environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = lambda x, digits=3: "–" if x is None else f"{x:.{digits}f}"
    environment.filters["short"] = lambda x: (
        "–" if x is None else f"{x:.3f}" if abs(x) < 10 else f"{x:.4g}"
    )
    environment.filters["share"] = lambda x, digits=0: (
        "–" if x is None else f"{100 * x:.{digits}f} %"
    )
    environment.filters |= {"powers": powers, "outcome": outcome_label}
    # Numbers keep to their units at the end of a line.
    environment.filters["figures"] = lambda text: (
        str(text).replace(" %", "\u00a0%").replace("p = ", "p\u00a0=\u00a0")
    )
    return environment
