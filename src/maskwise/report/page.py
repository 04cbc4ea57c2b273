"""Write the page of a study or run, and the page of a learned policy.

A page is one HTML file of about 1 MB that needs no network, so it can be mailed, archived and
printed. The code of Vega is embedded once, and every chart is a small JSON object. The template
escapes all text from the user's files, such as names of arms, samples, errors and recipes. The
page's security policy forbids loading other resources and running other code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from maskwise import __version__
from maskwise.base.constants import (
    FIXED,
    PLATEAU_NATS,
    TUNED,
    overlap_matters,
    overlap_words,
    shade,
)
from maskwise.base.errors import duration, plural
from maskwise.base.folders import read_json, read_lines, write_page
from maskwise.base.specs import leaves
from maskwise.report.charts import (
    compute_view,
    curve_charts,
    heldout_charts,
    length_chart,
    objectives_view,
    score_charts,
    weight_charts,
)
from maskwise.report.drawing import (
    FILTERS,
    SLATE,
    Colours,
    View,
    arm_colours,
    made_vega,
    vega_code,
)
from maskwise.report.reading import Folder, LogLine, judged_words, read_folder
from maskwise.report.tables import (
    best_steps,
    choices,
    evaluation_table,
    forest_groups,
    score_table,
    task_table,
)
from maskwise.results.estimates import contrast_table, detected_words, loss_table, outcome_words
from maskwise.results.files import RULES, ArmFacts, Contrast, Summary

NO_CHARTS = "Tables of means replace the charts"
NO_VERDICTS = (
    "The folder has no records of runs, so the page has no verdicts. Repeat the maskwise study "
    "command that made this folder, with the same --out: the command runs only what is missing."
)
SCOPES = {
    TUNED: "For every seed, a search chose the settings of every arm. New runs with the chosen "
    "settings are compared.",
    FIXED: "The verdicts hold only at these settings. With other settings, such as another "
    "learning rate, another arm may be the best.",
}

COMPARED_RUNS = {"finetuning": "fine-tuning", "pretraining": "pre-training run"}
"""What a row of scores from elsewhere is."""


def write_report(folder: Path, html: Path | None = None, *, summary: Summary | None = None) -> Path:
    """Write the page of a study or pre-training run. A study is judged by today's rules.

    Args:
        folder: the ``--out`` folder of the study or run. Sections without files are left out.
        html: the path of the page; None for ``folder``/report.html.
        summary: the verdicts, if the records in the folder have just been judged.

    Returns:
        The path of the page.

    Raises:
        MaskwiseError: ``folder`` is neither a study nor a run, or the page cannot be written.
    """
    content = page_content(read_folder(Path(folder), summary))
    target = Path(html or Path(folder) / "report.html")
    write_page(target, "page.html.j2", FILTERS, **content, vega=vega_code())
    return target


def page_content(folder: Folder) -> View:
    """Return the data that the page's template displays."""
    colours = arm_colours(folder.arms, folder.study["baseline"])
    facts = _facts(folder)
    failures = [record for record in folder.records if record["kind"] == "failure"]
    samples = chain.from_iterable(folder.samples.values())
    moments = max((len(sample.get("moments", ())) for sample in samples), default=0)
    warnings, small_overlaps = _overlaps(folder)
    policies = defaultdict(list)
    for line in folder.of_kind("policy"):
        policies[line["arm"]].append(line)
    return {
        "kind": folder.kind,
        "name": folder.name,
        "study": folder.study,
        "summary": folder.summary,
        "story": _story(folder),
        "warnings": warnings,
        "small_overlaps": small_overlaps,
        "missing": _missing(folder) if folder.kind == "study" else [],
        "arms": [_arm(folder, arm, colours[arm]) for arm in folder.arms],
        "contrast_table": contrast_table(
            sorted(folder.summary["contrasts"], key=lambda row: not row["primary"]),
            folder.untrained,
        ),
        "forests": forest_groups(folder.summary["contrasts"], colours),
        "scores": score_charts(folder, colours),
        "task_table": task_table(folder),
        "score_table": score_table(folder),
        "policies": policies,
        "heldout": heldout_charts(folder, colours),
        "tokenizers_differ": any(
            flag["code"] == "different-tokenizers"
            for row in folder.summary["contrasts"]
            for flag in row["flags"]
        ),
        "losses": loss_table(folder.summary["losses"], folder.untrained),
        "evaluations": evaluation_table(folder),
        "lengths": length_chart(folder, colours),
        "choices": choices(folder),
        "best_steps": best_steps(folder),
        "compute": compute_view(folder, colours),
        "curves": curve_charts(folder, colours),
        "weights": weight_charts(folder),
        "names": folder.arms,
        "colours": colours,
        "reference": folder.reference,
        "untrained": folder.untrained,
        "several": objectives_view(folder, colours),
        "samples": _samples(folder, colours),
        "sampled": list(folder.samples),
        "moments": moments,
        "failures": failures,
        "finished": bool(facts),
        "facts": facts,
        "recipe_yaml": folder.study["recipe_yaml"],
    }


def _story(folder: Folder) -> View | None:
    """Return sentences about what was compared, what the verdicts mean, and the next steps."""
    summary = folder.summary
    study = folder.study
    rows = [row for row in summary["contrasts"] if row["primary"]]
    if not rows:
        return None
    arms = folder.arms
    if "compared" in study:
        # Each contrast may have other seeds.
        fewest, most = (end(row["n"] for row in rows) for end in (min, max))
        runs = plural(most, COMPARED_RUNS.get(study["compared"], "run"))
        runs = runs if fewest == most else f"{fewest} to {runs}"
        tasks = ", ".join(study["tasks"])
        sentence = f"{runs} of each arm with the same seeds are compared, on these tasks: {tasks}."
        return _answer(folder, rows, [sentence])
    what = f"{len(arms)} ways to train (arms)"
    if len(arms) == 1:
        what = f"{arms[0]} with {folder.reference}"
    runs = plural(len(study["seeds"]), "run")
    by = "by held-out loss and other measures without fine-tuning"
    if study["tasks"]:
        by = f"on these tasks: {', '.join(study['tasks'])}"
    outcome = study.get("outcome")
    if outcome:
        # "in the bound" and "in held-out loss" without preposition and article
        name = outcome_words(outcome).removeprefix("in ").removeprefix("the ")
        by = f"by the {name} (the primary outcome), and {by}"
    compared = [
        f"The study compares {what}, in {runs} of each with the same seeds. The trained models are "
        f"evaluated {by}."
    ]
    if summary["matched_by"] and all(row["compute"]["matched"] for row in rows):
        compared.append(f"The arms are compared at equal {summary['matched_by']}.")
    return _answer(folder, rows, compared)


def _answer(folder: Folder, rows: Sequence[Contrast], compared: Sequence[str]) -> View:
    """Return what was compared, what the verdicts of primary rows mean, and the next steps."""
    reading = []
    scopes = {row["scope"] for row in rows}
    if len(scopes) == 1:
        reading.append(SCOPES.get(scopes.pop(), ""))
    if any(row["verdict"] == "open" for row in rows):
        reading.append("“Open” means that these runs do not decide which of two arms is better.")
    reading.append(_power(folder))
    return {
        "compared": " ".join(compared),
        "reading": " ".join(filter(None, reading)),
        "advice": folder.summary["advice"],
        "adapted": folder.adapted,
    }


def _power(folder: Folder) -> str:
    """Describe what the planned runs can decide."""
    planned = folder.summary.get("planned")
    # A study of one arm compares nothing.
    if planned is None or not planned["contrasts"]:
        return ""
    contrasts = plural(planned["contrasts"], "comparison")
    if not any(planned["power"].values()):
        are = "is" if planned["runs"] == 1 else "are"
        few = f"{plural(planned['runs'], 'run')} of each arm {are}"
        return f"{few} too few to decide {contrasts}."
    detected = detected_words(planned["detectable"])
    return f"With {planned['runs']} pairs of runs and {contrasts}, {detected}."


def _arm(folder: Folder, arm: str, colour: str) -> View:
    view: View = {
        "name": arm,
        "facts": _arm_facts(folder.study["arms"].get(arm)),
        "colour": colour,
        "targets": None,
        "floor": None,
    }
    summary = folder.summary["arms"].get(arm)
    if summary:
        spent = summary["compute"]
        if "targets" in spent:
            view["targets"] = spent["targets"] / spent["steps"]
        # The gap is shown only if the arm learned little more than word frequencies.
        gap = summary["gap_nats"]
        if gap is not None and gap < PLATEAU_NATS:
            view["floor"] = gap
    return view


def _arm_facts(facts: ArmFacts | None) -> View | None:
    """Return the facts of an arm, with its settings as dotted names, as recipes spell them.

    The result is None for a single run, and for arms of which only the scores are known.
    """
    if facts is None or not facts["policy"]:
        return None
    settings = {}
    for key, value in facts["overrides"].items():
        for name, each in leaves(_numbered({key: value})):
            settings[name] = _spelt(each)
    return {**facts, "overrides": settings}


def _numbered(value: object) -> Any:
    """Replace lists of sections, such as training phases, by sections with the keys 0, 1, …"""
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        value = {str(number): part for number, part in enumerate(value)}
    if isinstance(value, dict):
        return {key: _numbered(part) for key, part in value.items()}
    return value


def _spelt(value: object) -> str:
    """Spell a value as YAML does: true, null, [a, b], a mix of texts as {a.txt: 1}."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spelt, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_spelt(part)}' for key, part in value.items())}}}"
    return str(value)


def _overlaps(folder: Folder) -> tuple[list[str], list[str]]:
    """Return warnings about test items in the corpus that may affect scores, and minor notes."""
    warnings = []
    small = []
    for line in folder.of_kind("overlap"):
        words = f"{overlap_words(line)} ({line['corpus']})"
        if line["overlapping"] and overlap_matters(line):
            warnings.append(f"{words}: the scores may reflect memorisation.")
        elif line["overlapping"]:
            small.append(f"{words}.")
    return warnings, small


def _missing(folder: Folder) -> list[str]:
    """Return sentences about missing charts, missing verdicts and different versions."""
    lines = []
    if not vega_code():
        lines.append(f"{NO_CHARTS} ({made_vega()[1]}).")
    if folder.incomplete:
        lack = "1 line lacks keys or has values of wrong types, and is"
        if folder.incomplete > 1:
            lack = f"{folder.incomplete} lines lack keys or have values of wrong types, and are"
        lines.append(f"In records.jsonl, {lack} left out.")
    if folder.unjudged:
        lines.append(f"The records cannot be judged, so there are no verdicts: {folder.unjudged}.")
    elif not folder.summary["headline"]:
        lines.append(NO_VERDICTS)
    if folder.judged_by not in (None, RULES):
        lines.append(judged_words(folder.judged_by))
    # Another version may interpret the same files differently.
    made = folder.study["maskwise"]
    if made and made != __version__:
        lines.append(f"maskwise {made} ran the study, and maskwise {__version__} wrote this page.")
    return lines


# Samples and facts


def _samples(folder: Folder, colours: Colours) -> list[View]:
    """Return the samples, grouped by document.

    A document has several versions, each with the masked text at all recorded training steps. Arms
    with identical masks share a version.
    """
    documents = defaultdict[str, dict[str, LogLine]](dict)
    for number, (arm, samples) in enumerate(folder.samples.items()):
        for sample in samples:
            moments = sample.get("moments") or [sample]
            pieces = [moment["pieces"] for moment in moments]
            if not pieces[0]:
                continue
            version = documents[sample["document"]].setdefault(
                repr(pieces),
                {
                    "names": [],
                    "arms": [],
                    "colour": colours.get(arm, SLATE),
                    "moments": [_moment(moment) for moment in moments],
                    "learnt": sample.get("learnt", False),
                },
            )
            version["names"].append(arm)
            # This number identifies the arm's checkbox on the page.
            version["arms"].append(str(number))
    return [
        {"document": name, "versions": list(versions.values())}
        for name, versions in documents.items()
    ]


def _moment(moment: LogLine) -> View:
    pieces = [_piece(piece) for piece in moment["pieces"] if piece["text"]]
    selected = sum(piece["state"] != "shown" for piece in moment["pieces"])
    return {"step": moment.get("step"), "pieces": pieces, "selected": selected}


def _piece(piece: LogLine) -> dict[str, str]:
    """Separate leading white space from a token, so that only the word is highlighted."""
    text = piece["text"]
    state = piece["state"]
    shown = piece.get("shown", "").strip()
    word = text.lstrip()
    tip = {
        "masked": f"masked: the model saw [MASK] and had to predict “{word}”",
        "random": f"replaced: the model saw “{shown}” and had to predict “{word}”",
        "kept": f"kept: the model saw “{word}” and had to predict it",
    }.get(state, "")
    return {
        "space": text[: len(text) - len(word)],
        # If a random replacement is white space, show the original word.
        "text": shown if state == "random" and shown else word,
        "state": state,
        "tip": tip,
    }


def _facts(folder: Folder) -> list[tuple[str, str]]:
    study = folder.study
    facts = {}
    if study["started"]:
        facts["Started"] = f"{datetime.fromisoformat(study['started']):%-d %B %Y, %H:%M} UTC"
    if study["seconds"] is not None:
        facts["Time"] = duration(study["seconds"])
    if folder.steps is not None:
        facts["Steps"] = f"{folder.steps:,}"
    facts["Seeds"] = ", ".join(map(str, study["seeds"]))
    machines = [study["hardware"], *study.get("earlier_hardware", ())]
    facts["Hardware"] = "; ".join(map(_listed, machines))
    facts["maskwise"] = study["maskwise"]
    facts["Versions"] = _listed(study["versions"])
    return [(name, text) for name, text in facts.items() if text]


def _listed(facts: Mapping[str, object]) -> str:
    """Write facts as "cores 2, memory_gib 23.5". Empty values are left out."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value)


# The page of a learned policy

NAMES = {
    "exact_match": "questions whose answer is the best span (share)",
    "f1": "words shared by the best span and the answer (F1)",
    "covered_in_as_many_words": "questions whose answer lies inside of spans (share), if both "
    "have as many words as the salient spans",
    "recall": "questions whose answer is one of the spans (share)",
    "covered": "questions whose answer lies inside of the spans (share)",
    "weight_on_labels": "share of the masking weight that is on words of answers",
    "labelled_words": "the same share, if all words had equal weights",
    "spans": "spans per text",
    "words": "words in spans, per text",
}
CURVES = {
    "meta": (
        ("train", "loss", "task loss after a few pre-training steps with the masks, nats"),
        ("eval", "gain", "gain over random masks on dev rows, nats"),
        ("train", "answers", "share of the masking weight that is on words of answers"),
        ("train", "entropy", "entropy of the masking weights, nats (lower: more selective)"),
        ("train", "grad_norm", "size of the policy's gradient"),
        (
            "eval",
            "agreement",
            "agreement of gradients (1: all in the same direction; near 0: noise)",
        ),
    ),
    "supervised": (
        ("train", "loss", "loss on labelled train texts, nats"),
        ("eval", "loss", "loss on labelled dev texts, nats"),
        ("train", "grad_norm", "size of the policy's gradient"),
    ),
}
"""Curves from metrics.jsonl for each method of learning: kind of line, key and title."""
FULL = 6.0
"""Multiple of the mean weight at which a word gets the darkest colour."""


def write_policy_page(folder: Path, *, title: str, measures: Mapping[str, object]) -> Path:
    """Write the page of a learned policy: scores, curves, and weights before and after learning.

    Args:
        folder: the ``--out`` folder of ``maskwise learn``, which gets ``report.html``.
        title: the name of the recipe.
        measures: the content of ``done.json``, with the ``method`` of learning.
    """
    shown = read_json(folder / "shown.json") or {}
    lines = [*read_lines(folder / "metrics.jsonl")]
    curves = [_curve(lines, *curve) for curve in CURVES[str(measures["method"])]]
    write_page(
        folder / "report.html",
        "policy.html.j2",
        title=title,
        measures=measures,
        names=NAMES,
        examples=[_example(text) for text in shown.get("examples", [])],
        words=shown.get("words", {}),
        tags=shown.get("tags", {}),
        curves=[curve for curve in curves if curve],
    )
    return folder / "report.html"


def _example(text: list[tuple[str, float, float]]) -> list[View]:
    """Return the words of a text with weights and colours, before and after learning."""
    before = []
    after = []
    for word, first, last in text:
        before.append((word, first, shade(first / FULL)))
        after.append((word, last, shade(last / FULL)))
    return [{"when": "before", "words": before}, {"when": "after", "words": after}]


def _curve(lines: list[LogLine], kind: str, key: str, name: str) -> View | None:
    """Return a curve as an SVG polyline and a view box; None with fewer than two points."""
    # A number that was not finite is null: a loss without targets, or a gradient that was skipped.
    logged = [line for line in lines if line["kind"] == kind and line.get(key) is not None]
    if len(logged) < 2:
        return None
    steps = [line["step"] for line in logged]
    values = [line[key] for line in logged]
    low = min(values)
    # Browsers do not draw a view box of height 0.
    height = (max(values) - low) or 1.0
    return {
        "name": name,
        # The y axis of SVG points down, so values are negated.
        "points": " ".join(f"{step:g},{-value:.6g}" for step, value in zip(steps, values)),
        "box": f"{steps[0]:g} {-low - height:.6g} {steps[-1] - steps[0]:g} {height:.6g}",
        "steps": steps,
        "values": values,
    }
