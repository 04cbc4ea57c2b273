"""From records to verdicts: ``summarise`` makes ``summary.json`` (docs/files.md).

The rules are in docs/evidence.md. The replicate is the pre-training run, paired by seed; tasks are
standardised and averaged inside the run before any statistic, so that seeds x tasks are never
pooled. Read in this order: ``study.outcomes`` (the numbers), ``contrasts`` (differences, tests,
verdicts), ``flags`` (what makes a row not comparable, caps or qualifies it), ``words`` (sentences),
``gains`` (tables beside the contrasts). Cost: milliseconds to a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maskwise.constants import FRESH_RUN, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.files import RULES, Look, Planned, Record, Study, Summary
from maskwise.study.outcomes import Outcomes
from maskwise.study.statistics import look_weight, power_of
from maskwise.study.verdict.contrasts import Comparison, compare, decide, gate_of, primary_pairs
from maskwise.study.verdict.gains import efficiency, gain_shares, transfer_cells
from maskwise.study.verdict.words import advice_of, headline_row, headline_sentence, row_sentence

__all__ = ["primary_pairs", "summarise"]

SIDES_OF_TRANSFER = {
    OWN_TASK: "the policy learned from the task itself",
    OTHER_TASKS: "policies learned from other tasks",
}


def summarise(records: Iterable[Record], study: Study) -> Summary:
    """The content of summary.json, from the lines of records.jsonl and study.json.

    Args:
        records: every number that was measured.
        study: its ``contrasts`` are the primary ones, (arm, baseline) pairs. While seeds are
            ``pending``, nothing is tested or estimated.

    Raises:
        MaskwiseError: records that cannot be compared: unpaired seeds, an arm without runs, scores
            that are not finite numbers, a task that was measured in some runs only.

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
    pending = study.get("pending")
    table = Outcomes([line for line in lines if line.get("role") != "gate"], study)
    names = {REFERENCE: study.get("reference") or REFERENCE, **SIDES_OF_TRANSFER}
    pairs = [] if pending else primary_pairs(study)
    comparisons = _judged(lines, table, pairs, names)
    rows = [comparison.row for comparison in comparisons]
    primary = [row for row in rows if row["primary"]]
    # The page is about the contrasts, and about the gate where nothing else was asked.
    asked = [row for row in primary if "gate" not in row] or primary
    head = headline_row(asked, study["baseline"])
    match = study.get("match")
    advice = advice_of(primary if table.gate else asked, names, study.get("looks") or ())
    summary: Summary = {
        "rules": RULES,
        "baseline": study["baseline"],
        "planned": _planned(study),
        "matched_by": match["by"] if match else None,
        "arms": {arm: table.describe(arm) for arm in study["arms"]},
        "contrasts": rows,
        "verdict": head["verdict"] if head else None,
        "headline": headline_sentence(asked, names, study),
        "advice": [sentence for _, sentence in advice],
        "overlap": table.lines["overlap"],
        "tasks": {
            task: {"helped": share, "counted": task in table.counted}
            for task, share in table.helped.items()
        },
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


def _judged(
    lines: list[Record], table: Outcomes, pairs: list[tuple[str, str]], names: Mapping[str, str]
) -> list[Comparison]:
    """All rows with their verdicts and sentences; those of the gate first."""
    gate = list[Comparison]()
    if pairs and gate_of(table.study):
        gate = compare(_gate_table(lines, table), *pairs[0])
        for one in gate:
            one.row["gate"] = True
        pairs = pairs[1:]
    others = [one for pair in pairs for one in compare(table, *pair)]
    decide(gate, others, table, names)
    for one in (*gate, *others):
        one.row["brief"] = row_sentence(one.row, names, brief=True)
        one.row["sentence"] = row_sentence(one.row, names)
    return [*gate, *others]


def _gate_table(lines: list[Record], table: Outcomes) -> Outcomes:
    """The runs that only the gate compares, at default settings; all runs, where there are none."""
    own = [line for line in lines if line.get("role") == "gate"]
    if not own:
        return table
    compared = {line["arm"] for line in own}
    arms = {arm: facts for arm, facts in table.study["arms"].items() if arm in compared}
    overlap = [line for line in lines if line["kind"] == "overlap"]
    # The gate's runs have the seeds that searched, and the looks and the tasks of the study.
    now = table.study["seeds"]
    seeds = [seed - FRESH_RUN for seed in now]
    looked: list[Look] = [
        {**look, "seeds": [seed - FRESH_RUN for seed in look.get("seeds", now[: look["runs"]])]}
        for look in table.study.get("looked") or ()
    ]
    study: Study = {**table.study, "arms": arms, "seeds": seeds, "learned": {}, "looked": looked}
    return Outcomes([*own, *overlap], study, counted=table.counted)


def _planned(study: Study) -> Planned:
    """What so many runs can decide, with the contrasts that share the error."""
    runs = len(study["seeds"])
    contrasts = len(primary_pairs(study)) - (gate_of(study) is not None)
    alpha = 0.05 * look_weight(study.get("looks"), runs) / max(contrasts, 1)
    power = {
        f"{effect:g}": round(power_of(1.0, effect, runs, alpha=alpha), 2) for effect in (1, 1.5)
    }
    return {"runs": runs, "contrasts": contrasts, "power": power}
