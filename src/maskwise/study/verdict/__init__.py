"""From records to verdicts: ``summarise`` makes ``summary.json`` (docs/files.md).

The rules are in docs/evidence.md. The replicate is the pre-training run, paired by seed; tasks are
standardised and averaged within each run before any statistic, so seeds x tasks are never pooled.
Reading order: ``study.outcomes`` (the numbers), ``contrasts`` (differences, tests, verdicts),
``flags`` (what invalidates, caps or qualifies a row), ``words`` (sentences), ``gains`` (further
tables). A summary takes 10 to 50 milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from maskwise.constants import FRESH_RUN, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.files import RULES, Contrast, Look, Planned, Record, Study, Summary, TaskUse
from maskwise.study.outcomes import Outcomes
from maskwise.study.statistics import ALPHA, look_weight, powers
from maskwise.study.verdict.contrasts import Comparison, compare, decide, gate_of, primary_pairs
from maskwise.study.verdict.gains import efficiency, gain_shares, transfer_cells
from maskwise.study.verdict.words import (
    Names,
    advice_of,
    headline_row,
    headline_sentence,
    row_sentence,
)

__all__ = ["primary_pairs", "summarise"]

SIDES_OF_TRANSFER = {
    OWN_TASK: "the policy learned from the task itself",
    OTHER_TASKS: "policies learned from other tasks",
}


def summarise(records: Iterable[Record], study: Study) -> Summary:
    """Make the content of summary.json from the lines of records.jsonl and study.json.

    Args:
        records: every measured number.
        study: its ``contrasts`` are the primary (arm, baseline) pairs. While seeds are ``pending``,
            nothing is tested or estimated.

    Raises:
        MaskwiseError: the records cannot be compared: seeds without a partner, an arm without runs,
            scores that are not finite, or a task that was measured in some runs only.

    >>> score = {"kind": "score", "task": "t", "metric": "accuracy"}
    >>> points = [("a", 0, 0.50), ("a", 1, 0.51), ("b", 0, 0.60), ("b", 1, 0.61)]
    >>> runs = [score | {"arm": arm, "seed": seed, "score": x} for arm, seed, x in points]
    >>> facts = {"policy": "token", "ratio": "constant(0.15)", "overrides": {}}
    >>> study = {"baseline": "a", "seeds": [0, 1], "tasks": {"t": {}}, "contrasts": [("b", "a")]}
    >>> study["arms"] = {"a": facts, "b": facts}
    >>> [(row["outcome"], row["verdict"]) for row in summarise(runs, study)["contrasts"]]
    [('tasks', 'open'), ('t', None)]
    """
    lines = list(records)
    table = Outcomes([line for line in lines if line.get("role") != "gate"], study)
    names = {REFERENCE: study.get("reference") or REFERENCE, **SIDES_OF_TRANSFER}
    pending = study.get("pending")
    # A verdict before the planned runs are complete would be an unplanned look.
    pairs = [] if pending else primary_pairs(study)
    rows = _rows(lines, table, pairs, names)
    primary = [row for row in rows if row["primary"]]
    # The headline is about the contrasts, and about the gate only where there are no others.
    asked = [row for row in primary if "gate" not in row] or primary
    top = headline_row(asked, study["baseline"])
    match = study.get("match")
    # A gate that did not pass has advice as well.
    advice = advice_of(primary if table.gate else asked, names, study.get("looks") or ())
    tasks: dict[str, TaskUse] = {}
    for task, helped in table.helped.items():
        tasks[task] = {"helped": helped, "counted": task in table.counted}
    summary: Summary = {
        "rules": RULES,
        "baseline": study["baseline"],
        "planned": _planned(study),
        "matched_by": match["by"] if match else None,
        "arms": {arm: table.describe(arm) for arm in study["arms"]},
        "contrasts": rows,
        "verdict": top["verdict"] if top else None,
        "headline": headline_sentence(asked, names, study),
        "advice": [sentence for _, sentence in advice],
        "overlap": table.lines["overlap"],
        "tasks": tasks,
        "efficiency": efficiency(table, pairs),
    }
    if pending:
        planned = len(study["seeds"])
        done = planned - len(pending)
        summary["pending"] = {"planned": planned, "done": done}
        summary["headline"] = (
            f"No verdict yet: {done} of {planned} planned runs of each arm are done."
        )
        return summary
    share = study.get("share")
    if share:
        summary["shares"] = gain_shares(table, *share, names)
    learned = study.get("learned")
    if learned:
        summary["transfer"] = transfer_cells(table, learned, study["baseline"])
    return summary


def _rows(
    lines: list[Record], table: Outcomes, pairs: list[tuple[str, str]], names: Names
) -> list[Contrast]:
    """Make all rows with their verdicts and sentences, those of a gate first."""
    gate: list[Comparison] = []
    if pairs and gate_of(table.study):
        gate = compare(_gate_table(lines, table), *pairs[0])
        for comparison in gate:
            comparison.row["gate"] = True
        pairs = pairs[1:]
    others: list[Comparison] = []
    for pair in pairs:
        others += compare(table, *pair)
    decide(gate, others, table, names)
    rows = [comparison.row for comparison in gate + others]
    for row in rows:
        row["brief"] = row_sentence(row, names, brief=True)
        row["sentence"] = row_sentence(row, names)
    return rows


def _gate_table(lines: list[Record], table: Outcomes) -> Outcomes:
    """Return the runs at default settings that only the gate compares; all runs if there are none.

    These runs have the seeds of the search; looks and tasks are those of the study.
    """
    runs = [line for line in lines if line.get("role") == "gate"]
    if not runs:
        return table
    compared = {line["arm"] for line in runs}
    overlap = [line for line in lines if line["kind"] == "overlap"]
    seeds = table.study["seeds"]
    looked: list[Look] = []
    for look in table.study.get("looked") or ():
        seen = look.get("seeds", seeds[: look["runs"]])
        looked.append({**look, "seeds": [seed - FRESH_RUN for seed in seen]})
    study: Study = {
        **table.study,
        "arms": {arm: facts for arm, facts in table.study["arms"].items() if arm in compared},
        "seeds": [seed - FRESH_RUN for seed in seeds],
        "learned": {},
        "looked": looked,
    }
    # The gate counts the tasks of the study, so that both are about the same outcome.
    return Outcomes([*runs, *overlap], study, counted=table.counted)


def _planned(study: Study) -> Planned:
    """Return what the planned runs can decide, with the error rate shared by the contrasts."""
    runs = len(study["seeds"])
    contrasts = len(primary_pairs(study))
    if gate_of(study):
        contrasts -= 1
    alpha = ALPHA * look_weight(study.get("looks"), runs) / max(contrasts, 1)
    return {"runs": runs, "contrasts": contrasts, "power": powers(runs, alpha=alpha)}
