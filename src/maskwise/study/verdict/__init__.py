"""From records to verdicts: ``summarise`` makes ``summary.json`` (docs/files.md) of a study's numbers.

The rules (methods, section 5; docs/evidence.md in plain words). The replicate is the pre-training run, paired by
seed. Fine-tuning seeds are already averaged inside a score; tasks are standardised and averaged inside the run;
only then comes any statistic, so that seeds × tasks are never pooled. Every verdict carries its reasons, as
codes and as sentences, so that a page, a terminal and a script say the same.

Read in this order: ``measures`` and ``table`` (the records, checked), ``contrasts`` (differences, tests,
verdicts), ``reasons`` (what voids, caps or qualifies one), ``words`` (sentences), ``efficiency`` (quality against
compute). Cost: milliseconds to a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maskwise.study.verdict.contrasts import contrast_rows, decide, primary_contrasts
from maskwise.study.verdict.efficiency import efficiency
from maskwise.study.verdict.reasons import Reasons
from maskwise.study.verdict.table import REFERENCE, Table
from maskwise.study.verdict.words import (
    advice_of,
    contrast_sentence,
    describe_arms,
    headline_row,
    headline_sentence,
)

__all__ = ["primary_contrasts", "summarise"]


def summarise(
    records: Iterable[Mapping[str, Any]],
    study: Mapping[str, Any],
    *,
    contrasts: Sequence[Any] | None = None,
    alpha: float = 0.05,
) -> dict[str, Any]:
    """summary.json from the lines of records.jsonl and study.json.

    `contrasts` are the primary ones, (arm, baseline) pairs or {"arm", "baseline"} dicts, at most 6; by default
    study["contrasts"], or else every arm against study["baseline"]. A task may carry "majority" (the score of
    always giving the commonest answer) and "test_items"; an arm may carry "units" (by default its policy).
    Raises MaskwiseError for records that cannot be compared: unpaired seeds, an arm without runs, scores that
    are not numbers, a task measured in some runs only, contrasts of arms that do not exist.
    """
    pairs = primary_contrasts(study, contrasts)
    table = Table(list(records), study)
    words = describe_arms(study["arms"])
    names = words | {REFERENCE: study.get("reference") or REFERENCE}
    rows = [row for arm, baseline in pairs for row in contrast_rows(table, arm, baseline)]
    decide(rows, Reasons(table, names), tasks=len(table.tasks), alpha=alpha)
    for row in rows:
        row["brief"] = contrast_sentence(row, names, brief=True)
        row["sentence"] = contrast_sentence(row, names)
    primary = [row for row in rows if row["primary"]]
    return {
        "baseline": study["baseline"],
        "replicates": len(study["seeds"]),
        "matched_by": table.matched_by,
        "references": table.references(),
        "arms": {arm: {**table.describe(arm), "words": words[arm]} for arm in study["arms"]},
        "contrasts": rows,
        "verdict": (headline_row(primary) or {}).get("verdict"),
        "headline": headline_sentence(primary, names if primary else words, study["baseline"]),
        "advice": advice_of(primary, names),
        "overlap": table.overlap,
        "efficiency": efficiency(table, pairs, names),
    }
