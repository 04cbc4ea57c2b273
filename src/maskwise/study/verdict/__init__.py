"""From records to verdicts: ``summarise`` makes ``summary.json`` (docs/files.md) of a study's
numbers.

The rules are in docs/evidence.md. The replicate is the pre-training run, paired by seed.
Fine-tuning seeds are already averaged inside a score; tasks are standardised and averaged inside
the run; only then comes any statistic, so that seeds × tasks are never pooled.

Read in this order: ``table`` (the records, checked), ``contrasts`` (differences, tests, verdicts),
``flags`` (what makes a row not comparable, caps or qualifies it), ``words`` (sentences),
``shares``, ``efficiency``, ``transfer``.
Cost: milliseconds to a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maskwise.constants import FRESH_RUN, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.files import RULES, Contrast, Look, Planned, Record, Study, Summary
from maskwise.study.power import look_weight, power_of
from maskwise.study.verdict.contrasts import Comparison, compare, decide, gate_of, primary_pairs
from maskwise.study.verdict.efficiency import efficiency
from maskwise.study.verdict.shares import gain_shares
from maskwise.study.verdict.table import Table
from maskwise.study.verdict.transfer import cells
from maskwise.study.verdict.words import (
    advice_of,
    describe_arms,
    headline_row,
    headline_sentence,
    row_sentence,
)

__all__ = ["primary_pairs", "summarise"]

MADE_OF_ARMS = {
    OWN_TASK: "the policy learned from the task itself",
    OTHER_TASKS: "policies learned from other tasks",
}
"""What sentences call the two sides of a study of transfer."""


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
    >>> arms = {arm: {"policy": "token", "ratio": "constant(0.15)", "overrides": {}} for arm in "ab"}
    >>> study = {"baseline": "a", "arms": arms, "seeds": [0, 1], "tasks": {"t": {}}, "contrasts": [("b", "a")]}
    >>> [(row["outcome"], row["verdict"]) for row in summarise(runs, study)["contrasts"]]
    [('tasks', 'open'), ('t', None)]
    """
    lines = list(records)
    pending = study.get("pending") or []
    table = Table([line for line in lines if line.get("role") != "gate"], study)
    words = describe_arms(study["arms"])
    names = words | {REFERENCE: study.get("reference") or REFERENCE} | MADE_OF_ARMS
    comparisons = [] if pending else _judged(lines, table, names)
    rows = [comparison.row for comparison in comparisons]
    primary = [row for row in rows if row["primary"]]
    asked = [row for row in primary if "gate" not in row] or primary
    head = headline_row(asked, study["baseline"])
    planned, done = len(study["seeds"]), len(study["seeds"]) - len(pending)
    summary: Summary = {
        "rules": RULES,
        "baseline": study["baseline"],
        "planned": _planned(study),
        "matched_by": table.matched_by,
        "arms": {arm: table.describe(arm, words[arm]) for arm in study["arms"]},
        "contrasts": rows,
        "verdict": head["verdict"] if head else None,
        "headline": headline_sentence(asked, names if primary else words, study["baseline"]),
        "advice": _advice(primary, asked, table, names),
        "overlap": table.overlap,
        "tasks": {
            task: {"helped": share, "counted": task in table.counted}
            for task, share in table.helped.items()
        },
        "efficiency": efficiency(
            table, [] if pending else list(dict.fromkeys(primary_pairs(study)))
        ),
    }
    if pending:
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
        summary["transfer"] = cells(
            table.outcomes, table.tasks, learned, study["baseline"], table.sign
        )
    return summary


def _judged(lines: list[Record], table: Table, names: Mapping[str, str]) -> list[Comparison]:
    """All rows with their verdicts and sentences; those of the gate first."""
    study = table.study
    gate = list[Comparison]()
    others = list[Comparison]()
    pairs = primary_pairs(study)
    if gate_of(study) is not None:
        gate = compare(_gate_table(lines, table), *pairs.pop(0))
        for one in gate:
            one.row["gate"] = True
    for pair in pairs:
        others += compare(table, *pair)
    decide(gate, others, table, names)
    for one in (*gate, *others):
        one.row["brief"] = row_sentence(one.row, names, brief=True)
        one.row["sentence"] = row_sentence(one.row, names)
    return [*gate, *others]


def _gate_table(lines: list[Record], table: Table) -> Table:
    """The runs that only the gate compares, at default settings; all runs, where the study has none
    of its own.
    """
    own = [line for line in lines if line.get("role") == "gate"]
    if not own:
        return table
    arms = {
        arm: facts
        for arm, facts in table.study["arms"].items()
        if any(line.get("arm") == arm for line in own)
    }
    overlap = [line for line in lines if line["kind"] == "overlap"]
    looked = list[Look]()
    for look in table.study.get("looked") or ():
        own_look = look.copy()
        if "seeds" in look:
            own_look["seeds"] = [seed - FRESH_RUN for seed in look["seeds"]]
        looked.append(own_look)
    # The gate's runs have the seeds that searched, and the looks and the tasks of the study.
    seeds = [seed - FRESH_RUN for seed in table.study["seeds"]]
    study: Study = {**table.study, "arms": arms, "seeds": seeds, "learned": {}, "looked": looked}
    return Table([*own, *overlap], study, counted=table.counted)


def _planned(study: Study) -> Planned:
    runs = len(study["seeds"])
    contrasts = len(primary_pairs(study)) - (gate_of(study) is not None)
    alpha = 0.05 * look_weight(study.get("looks"), runs) / max(contrasts, 1)
    power = {
        f"{effect:g}": round(power_of(1.0, effect, runs, alpha=alpha), 2) for effect in (1, 1.5)
    }
    return {"runs": runs, "contrasts": contrasts, "power": power}


def _advice(
    primary: list[Contrast], asked: list[Contrast], table: Table, names: Mapping[str, str]
) -> list[str]:
    """Behind a gate that did not pass, the advice is on the gate, too."""
    rows = primary if table.closed else asked
    return [sentence for _, sentence in advice_of(rows, names, table.study.get("looks"))]
