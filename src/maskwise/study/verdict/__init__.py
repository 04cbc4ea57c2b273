"""From records to verdicts: ``summarise`` makes ``summary.json`` (docs/files.md) of a study's numbers.

The rules stand in docs/evidence.md. The replicate is the pre-training run, paired by seed. Fine-tuning seeds are
already averaged inside a score; tasks are standardised and averaged inside the run; only then comes any statistic, so
that seeds × tasks are never pooled. Every verdict carries its reasons, as codes and as sentences, so that a page, a
terminal and a script say the same.

Read in this order: ``table`` (the records, checked), ``contrasts`` (differences, tests, verdicts), ``reasons`` (why
a verdict is what it is), ``words`` (sentences), ``efficiency`` (quality against compute), ``transfer``. Cost:
milliseconds to a second.
"""

from __future__ import annotations

from collections.abc import Iterable

from maskwise.constants import OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.files import Record, Study, Summary
from maskwise.study.verdict.contrasts import compare, decide, gain_shares, primary_pairs
from maskwise.study.verdict.efficiency import efficiency
from maskwise.study.verdict.reasons import Reasons
from maskwise.study.verdict.table import Table
from maskwise.study.verdict.transfer import cells
from maskwise.study.verdict.words import (
    advice_of,
    contrast_sentence,
    describe_arms,
    headline_row,
    headline_sentence,
)

__all__ = ["primary_pairs", "summarise"]

MADE_OF_ARMS = {
    OWN_TASK: "the policy learned from the task itself",
    OTHER_TASKS: "policies learned from other tasks",
}
"""What sentences call the two sides of a study of transfer."""


def summarise(records: Iterable[Record], study: Study, *, alpha: float = 0.05) -> Summary:
    """The content of summary.json, from the lines of records.jsonl and study.json.

    Args:
        records: every number that was measured.
        study: its ``contrasts`` are the primary ones, (arm, baseline) pairs.
        alpha: the level of the test, after Holm's correction over the primary contrasts.

    Raises:
        MaskwiseError: records that cannot be compared: unpaired seeds, an arm without runs, scores that are not
            finite numbers, a task that was measured in some runs only.

    >>> score = {"kind": "score", "task": "t", "metric": "accuracy"}
    >>> points = [("a", 0, 0.50), ("a", 1, 0.51), ("b", 0, 0.60), ("b", 1, 0.61)]
    >>> runs = [score | {"arm": arm, "seed": seed, "score": x} for arm, seed, x in points]
    >>> arms = {arm: {"policy": "token", "ratio": "constant(0.15)", "overrides": {}} for arm in "ab"}
    >>> study = {"baseline": "a", "arms": arms, "seeds": [0, 1], "tasks": {"t": {}}, "contrasts": [("b", "a")]}
    >>> [(row["outcome"], row["verdict"], row["reason"]) for row in summarise(runs, study)["contrasts"]]
    [('tasks', 'suggests', 'few-runs'), ('t', 'suggests', 'few-runs')]
    """
    pairs = primary_pairs(study)
    table = Table([record for record in records if "role" not in record], study)
    words = describe_arms(study["arms"])
    names = words | {REFERENCE: study.get("reference") or REFERENCE} | MADE_OF_ARMS
    comparisons = [comparison for pair in pairs for comparison in compare(table, *pair)]
    reasons = Reasons(table, names)
    decide(comparisons, reasons, alpha=alpha)
    rows = [comparison.row for comparison in comparisons]
    for row in rows:
        row["brief"] = contrast_sentence(row, names, brief=True)
        row["sentence"] = contrast_sentence(row, names)
    primary = [row for row in rows if row["primary"]]
    asked = [row for row in primary if "gate" not in row] or primary
    head = headline_row(asked, study["baseline"])
    summary: Summary = {
        "baseline": study["baseline"],
        "replicates": len(study["seeds"]),
        "matched_by": table.matched_by,
        "references": table.references(),
        "arms": {arm: table.describe(arm, words[arm]) for arm in study["arms"]},
        "contrasts": rows,
        "verdict": head["verdict"] if head else None,
        "headline": headline_sentence(asked, names if primary else words, study["baseline"]),
        "advice": [
            sentence for _, sentence in advice_of(primary if reasons.closed else asked, names, study.get("looks"))
        ],
        "overlap": table.overlap,
        "tasks": {task: {"helped": share, "counted": task in table.counted} for task, share in table.helped.items()},
        "efficiency": efficiency(table, pairs, names),
    }
    if share := study.get("share"):
        summary["shares"] = gain_shares(reasons, *share)
    if learned := study.get("learned"):
        summary["transfer"] = cells(table.outcomes, table.tasks, learned, study["baseline"], table.sign)
    return summary
