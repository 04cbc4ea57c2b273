"""Compute verdicts from records: ``summarise`` returns the content of ``summary.json``.

docs/evidence.md explains the rules, and docs/files.md the format. The replicate is the pre-training
run, paired by seed. Task scores are standardised and averaged within a run before any statistic, so
several tasks of one run never count as several observations. Read in this order: ``outcomes``
(values), ``comparison`` (differences), ``flags`` (what invalidates, caps or qualifies a verdict),
``judge`` (tests and verdicts), ``words`` (sentences). A summary takes 10 to 50 ms, so nothing that
was written into a file is read again: a page is made of verdicts by the rules of the day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from maskwise.base.folders import finite
from maskwise.results.files import (
    RULES,
    ArmSummary,
    Contrast,
    MeanLosses,
    Planned,
    RaisedFlag,
    Record,
    Study,
    Summary,
)
from maskwise.verdict.comparison import matched_by, primary_pairs
from maskwise.verdict.flags import Raised, guessed_tasks
from maskwise.verdict.judge import Verdict, gained_nothing, judge, passed, worse_than_reference
from maskwise.verdict.outcomes import Outcomes, gate_outcomes
from maskwise.verdict.sentences import (
    OF_RECIPES,
    REPLICATES,
    ShownNames,
    advice_of,
    behind_reference,
    flag_sentence,
    guessed_sentence,
    headline_sentence,
    headline_verdict,
    names_of,
    no_gain,
    outlook_of,
    sentence_of,
    worth_words,
)
from maskwise.verdict.statistics import ALPHA, detectable_sds, look_weight, powers
from maskwise.verdict.untested import efficiency_points

__all__ = ["Verdict", "judge", "primary_pairs", "summarise"]


def summarise(records: Iterable[Record], study: Study) -> Summary:
    """Compute the content of summary.json: codes, numbers, and the sentences made of them.

    Args:
        records: the lines of records.jsonl.
        study: the content of study.json. The pairs in ``contrasts`` are the primary contrasts.
            If there are ``pending`` seeds, no contrast is tested or estimated.

    Raises:
        MaskwiseError: a run has no partner with the same seed, a score is not finite, or an outcome
            was measured in some runs only.

    >>> score = {"kind": "task", "measure": "t", "metric": "accuracy"}
    >>> points = [("a", 0, 0.50), ("a", 1, 0.51), ("b", 0, 0.60), ("b", 1, 0.61)]
    >>> runs = [score | {"arm": arm, "seed": seed, "value": x} for arm, seed, x in points]
    >>> facts = {"policy": "token", "ratio": "constant(0.15)", "overrides": {}}
    >>> study = {"baseline": "a", "seeds": [0, 1], "tasks": {"t": {}}, "contrasts": [("b", "a")]}
    >>> study["arms"] = {"a": facts, "b": facts}
    >>> [(row["outcome"], row["verdict"]) for row in summarise(runs, study)["contrasts"]]
    [('tasks', 'open'), ('t', None)]
    """
    lines = list(records)
    table = Outcomes(lines, study)
    verdicts = judge(table, gate_outcomes(lines, table))
    names = names_of(study)
    primary = [verdict for verdict in verdicts if verdict.primary]
    asked = _asked(primary)
    top = headline_verdict(asked, study["baseline"])
    # Advice covers the gate, too, if the gate did not pass.
    closed = study.get("gate") is not None and not passed(verdicts)
    advice = _advice(primary if closed else asked, table, names)
    guessed = guessed_tasks(primary, table)
    summary: Summary = {
        "rules": RULES,
        "baseline": study["baseline"],
        "planned": _planned(study, primary),
        "matched_by": matched_by(study),
        "arms": {arm: _described(table, arm) for arm in study["arms"]},
        "contrasts": [_row(verdict, names) for verdict in verdicts],
        "verdict": top.decision if top else None,
        "headline": _headline(top, asked, table, names) + guessed_sentence(guessed),
        "advice": list(dict.fromkeys(advice.values())),
        "advice_codes": list(dict.fromkeys(code.split()[0] for code in advice)),
        "overlap": table.lines["overlap"],
        "efficiency": {"points": efficiency_points(table)},
        "guessed": guessed,
        "losses": _losses(table),
    }
    pending = study.get("pending")
    if pending:
        planned = len(study["seeds"])
        done = planned - len(pending)
        summary["pending"] = {"planned": planned, "done": done}
        summary |= {"guessed": [], "losses": []}
        summary["headline"] = (
            f"No verdict yet: {done} of {planned} planned runs of each arm are done."
        )
    return summary


def _asked(primary: Sequence[Verdict]) -> list[Verdict]:
    """List the verdicts that the headline is about.

    The gate is among them only if it is the question: if the study has no other contrast, or if the
    others were to be tested only after this first one.
    """
    behind = [each for each in primary if not each.gate and not each.raises("not-asked")]
    return behind or [*primary]


def _headline(
    top: Verdict | None, asked: Sequence[Verdict], table: Outcomes, names: ShownNames
) -> str:
    study = table.study
    headline = headline_sentence(top, asked, names, study, failed=len(table.failed))
    if top is not None:
        headline += behind_reference(top, worse_than_reference(top, table), names, study)
        if gained_nothing(top, table):
            headline += no_gain(names, study)
    if "compared" in study:
        headline += f" {REPLICATES[study['compared']]}"
    return headline


def _advice(
    verdicts: Sequence[Verdict],
    table: Outcomes,
    names: ShownNames,
) -> dict[str, str]:
    """Return advice on the next step as sentences, keyed by code."""
    study = table.study
    steps = {arm: table.compute(arm).get("steps", 0.0) for arm in study["arms"]}
    advice = advice_of(verdicts, names, study, steps)
    if "compared" in study:
        advice = {code: line for code, line in advice.items() if code not in OF_RECIPES}
    return advice


def _row(verdict: Verdict, names: ShownNames) -> Contrast:
    """Return a verdict as a row of summary.json, with its sentences."""
    row: Contrast = {
        "arm": verdict.arm,
        "baseline": verdict.baseline,
        "outcome": verdict.outcome,
        "primary": verdict.primary,
        "n": verdict.n,
        "higher_is_better": verdict.scale.higher_is_better,
        "unit": verdict.scale.unit,
        **verdict.estimate,
        "p": verdict.p,
        "p_adjusted": verdict.p_adjusted,
        "metric": verdict.scale.metric,
        "compute": verdict.compute,
        "items": verdict.items,
        "verdict": verdict.decision,
        "better": verdict.better,
        "scope": verdict.scope,
        "flags": [_flag(flag, names) for flag in verdict.flags],
        "runs_to_decide": verdict.runs_to_decide,
        "detectable": verdict.detectable,
        "failures": verdict.failures,
        "break_even": verdict.break_even,
        "brief": sentence_of(verdict, names, brief=True),
        "outlook": outlook_of(verdict, names, brief=True),
        "sentence": sentence_of(verdict, names),
    }
    if verdict.natural is not None:
        row["natural"] = verdict.natural
    if verdict.least_sd:
        row["least_sd"] = True
    if verdict.gate:
        row["gate"] = True
    if verdict.worth is not None:
        row |= {"worth": verdict.worth, "reason": worth_words(verdict)}
    if verdict.equivalence is not None:
        row["equivalence"] = verdict.equivalence
    return row


def _flag(flag: Raised, names: ShownNames) -> RaisedFlag:
    return {
        "code": flag.code,
        "effect": flag.effect,
        "sentence": flag_sentence(flag, names),
        "facts": flag.facts,
    }


def _losses(table: Outcomes) -> list[MeanLosses]:
    """Return the mean held-out losses of all arms, for each kind of masks and ratio."""
    losses: list[MeanLosses] = []
    arms = [*table.study["arms"]]
    if not table.starts_at_frequencies:
        arms += table.study.get("untrained", {})
    for outcome in chain.from_iterable(table.parts.values()):
        means = {arm: table.mean(outcome, arm) for arm in arms}
        known = {arm: mean for arm, mean in means.items() if mean is not None}
        # All arms have the same masks, so the frequencies of one of them are enough.
        frequencies = outcome.replace("heldout:", "unigram:", 1)
        unigrams = [table.mean(frequencies, arm) for arm in known]
        least = next((loss for loss in unigrams if loss is not None), None)
        losses.append({"outcome": outcome, "frequencies": least, "means": known})
    return losses


def _described(table: Outcomes, arm: str) -> ArmSummary:
    """Return the scores of an arm's runs, keyed by outcome, and their costs and failures."""
    scores = {}
    for name in (*table.tasks, *table.heldout, *table.evaluations):
        if table.mean(name, arm) is not None:
            scores[name] = finite(table.runs(name, arm).tolist())
    return {
        "units": table.units(arm),
        "gap_nats": table.gap_nats(arm),
        "failures": table.failures[arm],
        "compute": table.compute(arm),
        "scores": scores,
    }


def _planned(study: Study, primary: Sequence[Verdict]) -> Planned:
    """Return the power of the planned runs at the level that every contrast gets.

    Scores from elsewhere have no plan, and arms may have other seeds: the fewest pairs count.
    """
    runs = len(study["seeds"])
    if "compared" in study and primary:
        runs = min(verdict.n for verdict in primary)
    contrasts = len(primary_pairs(study))
    if study.get("gate"):
        contrasts -= 1
    alpha = ALPHA * look_weight(study.get("looks"), runs) / max(contrasts, 1)
    return {
        "runs": runs,
        "contrasts": contrasts,
        "power": powers(runs, alpha=alpha),
        "detectable": detectable_sds(runs, alpha=alpha),
    }
