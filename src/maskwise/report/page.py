"""Writes the page: one self-contained HTML file of about a megabyte that needs no network.

One file can be mailed, archived and printed. The Vega code is embedded once, and each chart is a
small JSON text. The template escapes everything that comes from the user's files (names of arms,
samples, errors, recipes), and the page's security policy forbids loading anything and running other
code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import chain, product
from pathlib import Path
from statistics import fmean, median

from maskwise import __version__
from maskwise.constants import FIXED, PLATEAU_NATS, TUNED, overlap_matters, overlap_words
from maskwise.errors import duration, plural
from maskwise.estimates import outcome_label
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
    environment,
    made_vega,
    vega_code,
)
from maskwise.report.reading import Folder, Line, read_folder
from maskwise.report.tables import (
    choices,
    common_notes,
    evaluation_table,
    forest_groups,
    score_table,
    task_table,
)

NO_CHARTS = "Tables of means stand in place of charts"
MOST_NAMED = 6
"""The most missing runs that are listed by name."""
ODDITIES = {"stopped": "stopped early", "overshoot": "inner steps too long"}
"""What a key in the record of a learned policy means."""
SCOPES = {
    TUNED: "Every seed chose the settings of each arm, and a fresh run at them is compared.",
    FIXED: "The verdicts hold at these settings: with others, such as other learning rates, the "
    "order may change.",
}


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
    content = page_content(read_folder(Path(folder)))
    target = Path(html) if html is not None else Path(folder) / "report.html"
    template = environment().get_template("page.html.j2")
    write_whole(target, template.render(**content, vega=vega_code()))
    return target


def page_content(folder: Folder) -> View:
    """Return the content of the template as plain data."""
    colours = arm_colours(folder.arms, folder.study["baseline"])
    facts = _facts(folder)
    failures = [record for record in folder.records if record["kind"] == "failure"]
    samples = chain.from_iterable(folder.samples.values())
    moments = max((len(sample.get("moments", ())) for sample in samples), default=0)
    warnings, small_overlaps = _overlaps(folder)
    return {
        "kind": folder.kind,
        "name": folder.name,
        "study": folder.study,
        "summary": folder.summary,
        "story": _story(folder),
        "warnings": warnings,
        "small_overlaps": small_overlaps,
        "missing": _missing(folder, failures) if folder.kind == "study" else [],
        "arms": [_arm(folder, arm, colours[arm], failures) for arm in folder.arms],
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
        "moments": moments,
        "failures": failures,
        "finished": bool(facts),
        "facts": facts + _speed(folder),
        "recipe_yaml": folder.study["recipe_yaml"],
    }


def _story(folder: Folder) -> View | None:
    """Return the study in plain words: what was compared, the results, and what to do next."""
    summary = folder.summary
    study = folder.study
    rows = [row for row in summary["contrasts"] if row["primary"]]
    if not rows:
        return None
    ways = plural(len(folder.arms), "way")
    runs = plural(len(study["seeds"]), "run")
    by = "by held-out loss and what needs no fine-tuning"
    if study["tasks"]:
        by = f"on {', '.join(study['tasks'])}"
    outcome = study.get("outcome")
    if outcome:
        by = f"by the held-out loss on {outcome_label(outcome)}, and {by}"
    compared = [f"{ways} to pre-train, {runs} of each with the same seeds, judged {by}."]
    if summary["matched_by"] and all(row["compute"]["matched"] for row in rows):
        compared.append(f"All arms spent equal {summary['matched_by']}.")
    # A gate is passed before the question is asked, but the answer is read first.
    rows.sort(key=lambda row: "gate" in row)
    # Rows of earlier rules have no scope.
    scopes = {row.get("scope") for row in rows}
    if len(scopes) == 1:
        compared.append(SCOPES.get(str(scopes.pop()), ""))
    compared.append(_power(folder))
    return {
        "compared": " ".join(filter(None, compared)),
        "lines": [{"verdict": row["verdict"], "sentence": row["brief"]} for row in rows],
        "known": common_notes(summary["contrasts"]),
        "advice": summary["advice"],
    }


def _power(folder: Folder) -> str:
    """Say what the planned runs can decide."""
    planned = folder.summary.get("planned")
    # Summaries of earlier rules have no plan.
    if planned is None:
        return ""
    contrasts = plural(planned["contrasts"], "comparison")
    power = planned["power"]
    if not any(power.values()):
        return f"So few runs cannot decide {contrasts}."
    chances = [f"{chance:.2f} where it is {effect} spreads" for effect, chance in power.items()]
    return (
        f"With {contrasts}, a true difference is decided with probability "
        f"{' and '.join(chances)} between paired runs."
    )


def _arm(folder: Folder, arm: str, colour: str, failures: Sequence[Line]) -> View:
    words = ""
    facts = folder.study["arms"].get(arm)
    if facts:
        words = facts.get("sampler") or f"{facts['policy']} {facts['ratio']}"
    # Shown only where the arm learned little more than word frequencies.
    floor = None
    summary = folder.summary["arms"].get(arm)
    if summary and summary["gap_nats"] is not None and summary["gap_nats"] < PLATEAU_NATS:
        floor = summary["gap_nats"]
    if summary and "targets" in summary["compute"]:
        spent = summary["compute"]
        words += f" · {spent['targets'] / spent['steps']:,.0f} targets a step"
    return {
        "name": arm,
        "colour": colour,
        "baseline": arm == folder.study["baseline"],
        "words": words,
        "floor": floor,
        "failures": sum(line["arm"] == arm for line in failures),
    }


def _overlaps(folder: Folder) -> tuple[list[str], list[str]]:
    """Return corpora with enough test items to affect scores, and corpora with a few."""
    warnings = []
    small = []
    for line in folder.records:
        if line["kind"] == "overlap" and line["overlapping"]:
            counts = line["overlapping"], line["items"]
            words = f"{overlap_words(*counts, line['task'])} ({line['corpus']})"
            if overlap_matters(*counts):
                warnings.append(f"{words}: the scores may reflect memory.")
            else:
                small.append(f"{words}.")
    return warnings, small


def _policies(folder: Folder) -> list[View]:
    """Return the findings and oddities of learned policies by arm."""
    by_arm: dict[str, list[Line]] = defaultdict(list)
    for line in folder.of_kind("policy"):
        by_arm[line["arm"]].append(line)
    views: list[View] = []
    for arm, runs in by_arm.items():
        remarks = []
        for key, words in ODDITIES.items():
            count = sum(key in line for line in runs)
            if count:
                remarks.append(f"{words} in {count} of {len(runs)}")
        # Settings of the arm, so the same in all its runs.
        tries = len(runs[0].get("tries") or ())
        if tries > 1:
            remarks.append(f"each the best of {tries} tries")
        even = runs[0].get("labelled_words")
        views.append({"arm": arm, "runs": runs, "even": even, "remarks": remarks})
    return views


def _missing(folder: Folder, failures: Sequence[Line]) -> list[str]:
    """Say what the folder of a study lacks."""
    study = folder.study
    lines = list[str]()
    if not vega_code():
        lines.append(f"{NO_CHARTS} ({made_vega()[1]}).")
    if not folder.summary["headline"]:
        why = "the study is still running, or was stopped; the same command resumes it"
        lines.append(f"There are no verdicts yet (summary.json): {why}.")
    # Runs that failed have their own section.
    failed = {(line["arm"], line["seed"]) for line in failures}
    runs = [run for run in product(folder.arms, study["seeds"]) if run not in failed]
    scores = folder.of_kind("score")
    losses = folder.of_kind("heldout")
    measured = {}
    for task in study["tasks"]:
        measured[f"score on {task}"] = [line for line in scores if line["task"] == task]
    if losses or not study["tasks"]:
        measured["held-out loss"] = losses
    measured["curve (stages/…/metrics.jsonl)"] = folder.curves
    for what, known in measured.items():
        found = {(line["arm"], line["seed"]) for line in known}
        lacking = [f"{arm} with seed {seed}" for arm, seed in runs if (arm, seed) not in found]
        named = ", ".join(lacking[:MOST_NAMED])
        if len(lacking) > MOST_NAMED:
            named += ", …"
        if lacking and len(lacking) == len(runs):
            lines.append(f"No run has a {what}.")
        elif lacking:
            lines.append(f"{len(lacking)} of {len(runs)} runs have no {what}: {named}.")
    if not folder.samples:
        lines.append("There are no masked sentences to look at (samples.json).")
    if folder.unread:
        lines.append(f"{plural(folder.unread, 'line')} of records.jsonl cannot be used.")
    # Another version may read or judge the same files differently.
    made = study["maskwise"]
    if made and made != __version__:
        lines.append(f"The study was made by maskwise {made}, and this page by {__version__}.")
    return lines


# Samples and facts


def _samples(folder: Folder, colours: Colours) -> list[View]:
    """Return the samples by document; arms that mask a document alike share a version of it.

    A version has the text at every recorded step of training.
    """
    documents: dict[str, dict[str, Line]] = defaultdict(dict)
    for number, (arm, samples) in enumerate(folder.samples.items()):
        for sample in samples:
            moments = sample.get("moments") or [{"pieces": sample["pieces"]}]
            if not moments[0]["pieces"]:
                continue
            pieces = repr([moment["pieces"] for moment in moments])
            versions = documents[sample["document"]]
            if pieces not in versions:
                versions[pieces] = {
                    "names": [],
                    "arms": [],
                    "colour": colours.get(arm, SLATE),
                    "moments": [_moment(moment) for moment in moments],
                    "learnt": sample.get("learnt", False),
                }
            versions[pieces]["names"].append(arm)
            # The number of the checkbox that shows this arm.
            versions[pieces]["arms"].append(str(number))
    return [
        {"document": name, "versions": list(versions.values())}
        for name, versions in documents.items()
    ]


def _moment(moment: Line) -> View:
    pieces = [_piece(piece) for piece in moment["pieces"] if piece["text"]]
    selected = sum(piece["state"] != "shown" for piece in moment["pieces"])
    return {"step": moment.get("step"), "pieces": pieces, "selected": selected}


def _piece(piece: Line) -> dict[str, str]:
    """Split the white space off a token, so that a coloured chip holds only the word."""
    text = piece["text"]
    state = piece["state"]
    shown = piece.get("shown", "").strip()
    word = text.lstrip()
    tip = {
        "masked": f"masked: the model saw [MASK], and had to find “{word}”",
        "random": f"replaced: the model saw “{shown}”, and had to find “{word}”",
        "kept": f"kept: the model saw “{word}”, and had to confirm it",
    }.get(state, "")
    return {
        "space": text[: len(text) - len(word)],
        # A random replacement may be white space, which would leave an empty chip.
        "text": shown if state == "random" and shown else word,
        "state": state,
        "tip": tip,
    }


def _facts(folder: Folder) -> list[tuple[str, str]]:
    study = folder.study
    hardware = study["hardware"]
    machine = [hardware.get("cpu")]
    if hardware:
        machine.append(f"{hardware.get('cores')} cores")
        machine.append(f"{hardware.get('memory_gib')} GiB memory")
        machine.append(hardware.get("accelerator") or "no accelerator")
    started = ""
    if study["started"]:
        started = f"{datetime.fromisoformat(study['started']):%-d %B %Y, %H:%M} UTC"
    versions = [f"{name} {version}" for name, version in study["versions"].items()]
    facts = {
        "Started": started,
        "Time": "" if study["seconds"] is None else duration(study["seconds"]),
        "Steps": "" if folder.steps is None else f"{folder.steps:,}",
        "Seeds": ", ".join(map(str, study["seeds"])),
        "Hardware": ", ".join(str(part) for part in machine if part),
        "maskwise": study["maskwise"],
        "Versions": ", ".join(versions),
    }
    return [(name, text) for name, text in facts.items() if text]


def _speed(folder: Folder) -> list[tuple[str, str]]:
    """Return speed, padding and peak memory of training."""
    # Medians, because the first lines of a run include compilation.
    lines = [line for line in folder.curves if line["kind"] == "train" and line.get("speed")]
    if not lines:
        return []
    speeds = [line["speed"] for line in lines]
    rate = median(speed["tokens_per_second"] for speed in speeds)
    parts = [f"{rate:,.0f} tokens a second in each run"]
    used = [speed["mfu"] for speed in speeds if "mfu" in speed]
    if used:
        products = "of the hardware's measured matrix products (MFU)"
        parts.append(f"{100 * median(used):.0f} % {products}")
    paddings = [line["padding"] for line in lines if "padding" in line]
    if paddings:
        parts.append(f"{100 * fmean(paddings):.0f} % of the positions padding")
    parts.append(f"at most {max(speed['memory_gib'] for speed in speeds):.1f} GiB of memory")
    return [("Training", ", ".join(parts))]
