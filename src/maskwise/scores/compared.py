"""Judge scores that were measured elsewhere, by the rules and on the page of a study.

    arm,seed,task,score
    ours,0,sst2,0.913
    bert,0,sst2,0.902

Rows of two arms with the same seed form a pair, so the seed must mean the same in both, such as the
same order of the data. A table may also have a column for each task instead of the columns task and
score. What differs between two rows of an arm must be said (``REPLICATES``), because a verdict
holds only for what was repeated: twenty fine-tunings of one checkpoint say nothing about another
pre-training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any, cast

import numpy as np
from pandas import DataFrame, Series

from maskwise import __version__
from maskwise.base.constants import MOST_PRIMARY, NATS
from maskwise.base.errors import (
    MaskwiseError,
    dict_of,
    in_percent,
    items_of,
    plural,
    require_known,
    shell_word,
)
from maskwise.base.folders import read_json, refuse_file, write_json, write_lines
from maskwise.report.reading import NO_STUDY, NO_SUMMARY
from maskwise.results.estimates import summary_lines, with_minus
from maskwise.results.files import Record, Study, Summary
from maskwise.results.measurements import Measurement, measurements, table_of, unit_of
from maskwise.scores.table import (
    LOSSES,
    Row,
    Score,
    is_number,
    numbered,
    read_scores,
    refuse_shares,
    require_complete,
    require_nats,
    scale_of,
)
from maskwise.verdict import summarise
from maskwise.verdict.outcomes import require_task_name
from maskwise.verdict.sentences import ITEMS, REPLICATES
from maskwise.verdict.statistics import can_decide, fewest_runs

FEWEST_ITEMS = 30
"""With fewer test items, a normal interval would be too short."""
FEWEST_DIFFERENT = 10
"""With fewer items on which two arms differ, a normal interval misses the true difference too often
(in simulations in up to 19 % of tables, with this limit in at most 6.1 %; RESULTS)."""


@dataclass(frozen=True)
class ComparedScores:
    """Scores of several arms, and the verdicts on them.

    Attributes:
        study: the content of study.json.
        records: the scores, as lines of records.jsonl.
        summary: the verdicts, as in summary.json of a study. Scores of items have no verdicts,
            and their summary has only a headline.
        notes: how the table was read, and what the verdicts cannot know.
    """

    study: Study
    records: list[Record]
    summary: Summary
    notes: list[str] = field(default_factory=list)

    @property
    def verdicts(self) -> list[str]:
        """A sentence for each primary contrast."""
        return [row["sentence"] for row in self.summary["contrasts"] if row["primary"]]

    def __repr__(self) -> str:
        return f"<ComparedScores: {self.summary['headline']}>"

    def __str__(self) -> str:
        return "\n".join([*summary_lines(self.summary), *self.notes])

    def to_dataframe(self) -> DataFrame:
        """Return the scores as a long table (``measurements.Measurement``)."""
        tasks = cast(Mapping[str, Row], self.study["tasks"])
        return table_of(measurements(cast(list[Row], self.records), tasks))

    def save(self, folder: str | Path) -> Path:
        """Write a folder like that of a study, with its page, and return the path of the page.

        Raises:
            MaskwiseError: the folder has other files, or cannot be written.
        """
        from maskwise.report import write_report
        from maskwise.report.tables import COMPARED

        if not self.summary["contrasts"]:
            raise MaskwiseError(
                "scores of items have no page, because nothing is decided",
                do="leave out the folder",
            )
        folder = Path(folder)
        refuse_file(folder)
        own = ("study.json", "records.jsonl", "summary.json", "report.html", COMPARED)
        others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if set(others) - set(own) or (others and not _is_comparison(folder)):
            raise MaskwiseError(
                "the folder has other files than those of a comparison",
                got=str(folder),
                do="give a new folder",
            )
        write_json(folder / "study.json", self.study)
        write_lines(folder / "records.jsonl", self.records)
        write_json(folder / "summary.json", self.summary)
        return write_report(folder, summary=self.summary)


def compare(
    scores: str
    | Path
    | Sequence[str | Path]
    | DataFrame
    | Series
    | Iterable[Row]
    | Mapping[str, Sequence[Any]],
    *,
    replicate: str,
    baseline: str,
    contrasts: Sequence[tuple[str, str]] = (),
    columns: Mapping[str, str] | None = None,
    lower: Sequence[str] = (),
    chance: Mapping[str, float] | None = None,
    margin: float | None = None,
) -> ComparedScores:
    """Judge a table of scores: is the difference between two arms real?

    Args:
        scores: a file (.csv, .tsv, .json, .jsonl, .parquet), a list of files that are named after
            an arm each, a folder ARM/SEED/all_results.json, a data frame, a series whose index has
            names, dicts of a row each, or a dict with a list for each column.
        replicate: what a row repeats, a key of ``REPLICATES``.
        baseline: the arm that others are compared with.
        contrasts: the (arm, baseline) pairs of the primary contrasts, at most six, which share the
            error rate; by default, every arm against ``baseline``.
        columns: the names of the columns, keyed by "arm", "seed", "task" and "score", if they have
            other names than those of ``COLUMNS``; the notes say which were taken. For a folder with
            several scores, "score" names the one that is read, such as "eval_f1".
        lower: the tasks whose scores are losses in nats; lower is better. Give the logarithm of a
            perplexity.
        chance: the score of guessing, by task: a share, or per cent (more than 1) if the scores
            are.
        margin: the largest difference that does not matter, as ``study.margin`` in a recipe: a
            share (0.01: one point), or nats.

    Raises:
        MaskwiseError: the table cannot be read, lacks a column, has a score twice or not for all
            tasks of a run, or has an unknown arm or task; or an argument cannot be.

    >>> rows = [
    ...     {"arm": arm, "seed": seed, "task": "t", "score": score + seed / 100}
    ...     for arm, score in (("ours", 0.8), ("bert", 0.7))
    ...     for seed in range(6)
    ... ]
    >>> compare(rows, baseline="bert", replicate="pretraining").summary["verdict"]
    'decided'
    """
    require_known("replicate", replicate, REPLICATES)
    chance = dict_of("chance", chance, example="{'sst2': 0.5}, keyed by task")
    columns = dict_of("columns", columns, example="{'seed': 'run'}")
    lower = [*map(str, items_of("lower", lower, of="tasks", single=True))]
    for task in lower:
        require_nats(task)
    contrasts = _pairs(contrasts)
    found, notes, one_column = read_scores(scores, columns, lower, baseline)
    tasks = list(dict.fromkeys(task for _, _, task, _ in found))
    arms = list(dict.fromkeys(arm for arm, _, _, _ in found))
    require_known("arm", baseline, arms)
    pairs = contrasts or [(arm, baseline) for arm in arms if arm != baseline]
    for pair in pairs:
        for arm in pair:
            require_known("arm", arm, arms)
        # The opposite contrast is the same question, which would count twice in the correction.
        if pair[0] == pair[1] or sum({*other} == {*pair} for other in pairs) > 1:
            raise MaskwiseError(
                "a contrast is between two arms, and given once, in one direction",
                got=f"{pair[0]}:{pair[1]}",
            )
    if len(pairs) > MOST_PRIMARY and replicate != ITEMS:
        raise MaskwiseError(
            "too many primary contrasts",
            got=len(pairs),
            allowed=f"at most {MOST_PRIMARY}",
            do=f"name those that matter, such as --contrast {':'.join(pairs[0])} (in Python: "
            f"contrasts=[{pairs[0]!r}])",
        )
    for name, given in {"chance": chance, "margin": margin}.items():
        if given and replicate == ITEMS:
            raise MaskwiseError(
                f"{name} has no effect on scores of items, because nothing is decided",
                got=given,
                do=f"leave {name} out",
            )
    for task in (*lower, *chance):
        require_known("task", task, tasks)
    margin = _margin(margin)
    losses = frozenset(lower)
    if margin is not None and 0 < len(losses) < len(tasks):
        scored = [task for task in tasks if task not in losses]
        raise MaskwiseError(
            "a margin is for tasks in one unit",
            got=f"scores on {', '.join(scored)} and nats on {', '.join(sorted(losses))}",
            do="leave the margin out, or give these tasks as two tables",
        )
    for task in tasks:
        require_nats(task)
        if task.lower() in LOSSES and task not in losses:
            raise MaskwiseError(
                f"lower scores on {task} may be better",
                allowed="scores of which higher ones are better, and losses in nats",
                do=f"if it is a loss in nats, name it as lower: --lower {shell_word(task)} "
                f"(in Python: lower={[task]})",
            )
    if not pairs:
        raise MaskwiseError("there is only one arm", got=baseline, do="add rows of another arm")
    require_complete(found, tasks)
    seeds_of = defaultdict[str, set[str]](set)
    for arm, seed, _, _ in found:
        seeds_of[arm].add(seed)
    for pair in pairs:
        _require_paired(seeds_of, pair)
    if replicate == ITEMS:
        return ComparedScores(NO_STUDY, [], _of_items(found, pairs, tasks, losses), notes)
    for task in tasks:
        require_task_name(task, do="rename it in the table")
    seeds = numbered({seed for _, seed, _, _ in found})
    values: dict[str, dict[str, list[float]]] = {task: defaultdict(list) for task in tasks}
    for arm, _, task, score in found:
        values[task][arm].append(score)
    scales = {
        task: 1 if task in losses else scale_of(task, [*chain.from_iterable(arms.values())])
        for task, arms in values.items()
    }
    per_cent = [task for task, scale in scales.items() if scale != 1]
    if per_cent and one_column:
        refuse_shares(values, per_cent, losses)
    if per_cent:
        notes.append(f"The scores on {', '.join(per_cent)} are read as per cent.")
        shares = [task for task in tasks if task not in losses and task not in per_cent]
        if shares:
            notes.append(f"The scores on {', '.join(shares)} are read as shares.")
    guessing = {
        task: _chance(task, value, scales[task], is_loss=task in losses)
        for task, value in chance.items()
    }
    for task, value in guessing.items():
        if scales[task] != 1:
            notes.append(f"Guessing is read to score {in_percent(value)} % on {task}.")
    if margin is not None:
        # A margin is refused for scores and losses together.
        amount = f"{margin:g} nats" if losses else f"{in_percent(margin)} points"
        notes.append(f"Differences within ±{amount} do not matter.")
    metrics = {task: NATS if task in losses else "score" for task in tasks}
    records: list[Record] = []
    for arm, seed, task, score in found:
        row = Measurement(
            kind="task",
            arm=arm,
            seed=seeds[seed],
            measure=task,
            value=score / scales[task],
            metric=metrics[task],
            unit=unit_of(metrics[task]),
            higher_is_better=metrics[task] != NATS,
        )
        records.append(cast(Record, row.line()))
    facts: dict[str, Any] = {"policy": "", "ratio": "", "overrides": {}}
    study = cast(
        Study,
        {
            **NO_STUDY,
            "name": _name_of(scores),
            "maskwise": __version__,
            "baseline": baseline,
            "seeds": sorted(seeds.values()),
            "arms": {arm: dict(facts) for arm in arms},
            "tasks": {
                task: {
                    "metric": metrics[task] if metrics[task] != "score" else None,
                    "majority": guessing.get(task),
                }
                for task in tasks
            },
            "contrasts": [list(pair) for pair in pairs],
            "margin": margin,
            "compared": replicate,
        },
    )
    summary = summarise(records, study)
    notes += _limits(summary)
    if not chance:
        notes.append("The scores of guessing are not known, so no verdict checks for them.")
    return ComparedScores(study, records, summary, notes)


def _name_of(scores: object) -> str:
    return Path(scores).stem if isinstance(scores, str | Path) else "scores"


def _pairs(contrasts: object) -> list[tuple[str, str]]:
    """Return contrasts as pairs of two names."""
    given = [*items_of("contrasts", contrasts, of="pairs, such as [('ours', 'bert')]")]
    # A pair is not a list of pairs.
    if len(given) == 2 and all(isinstance(each, str) and ":" not in each for each in given):
        what = "a contrast is one of a list of pairs"
        raise MaskwiseError(what, got=repr(contrasts), do=f"give contrasts=[{(*given,)!r}]")
    pairs = []
    for each in given:
        if isinstance(each, list | tuple) and len(each) == 2:
            pairs.append((each[0], each[1]))
            continue
        arm, _, baseline = str(each).partition(":")
        pair = (arm, baseline) if baseline else ("ours", "bert")
        do = f"give contrasts=[{pair!r}]" if baseline else f"such as contrasts=[{pair!r}]"
        raise MaskwiseError("a contrast is a pair of two arms", got=repr(each), do=do)
    return pairs


def _margin(margin: float | None) -> float | None:
    """Return a margin that is a share. A difference of 1 would be 100 points."""
    if margin is None:
        return None
    if is_number(margin) and 0 < float(margin) < 1:
        return float(margin)
    raise MaskwiseError(
        "the margin is a share of the scores, or nats",
        got=margin,
        allowed="more than 0, less than 1",
        do="for one point, give 0.01",
    )


def _chance(task: str, value: float, scale: int, *, is_loss: bool) -> float:
    """Return the score of guessing: nats, or a share. It is per cent if the scores are.

    Raises:
        MaskwiseError: the score is none, or may be meant as a share beside scores in per cent.
    """
    if is_number(value):
        number = float(value)
        if scale != 1 and 0 < number <= 1:
            raise MaskwiseError(
                f"the score of guessing on {task} is a share or per cent; the scores are per cent",
                got=value,
                allowed="0, or more than 1 to 100",
                do=f"for {in_percent(number)} %, give {in_percent(number)}; for {number:g} %, give "
                "the scores as shares",
            )
        share = number / scale
        if share >= 0 and (is_loss or share <= 1):
            return share
    raise MaskwiseError(
        f"the score of guessing on {task} is no share",
        got=value,
        allowed="0 to 1, or 0 to 100 if the scores are per cent",
    )


def _is_comparison(folder: Path) -> bool:
    return "compared" in (read_json(folder / "study.json") or {})


def _limits(summary: Summary) -> list[str]:
    """Say what this number of pairs can decide, or which contrasts have too few of them.

    The contrast with the most pairs may be decided first, and the others then at a larger level.
    """
    rows = sorted(
        (row for row in summary["contrasts"] if row["primary"]), key=lambda row: -row["n"]
    )
    for place, row in enumerate(rows):
        left = len(rows) - place
        if not can_decide(row["n"], left):
            without = rows[place:]
            pairs = ", ".join(f"{each['arm']} and {each['baseline']}" for each in without)
            counts = sorted({each["n"] for each in without})
            having = plural(counts[-1], "pair")
            having = having if len(counts) == 1 else f"{counts[0]} to {having}"
            least = fewest_runs(0.05 / left)
            return [
                f"No decision is possible {f'between {pairs} ' if place else ''}with {having} for "
                f"{plural(len(rows), 'primary contrast')}: at least {least} pairs are needed."
            ]
    planned = summary["planned"]
    return [
        f"{planned['runs']} pairs find a true difference of {planned['detectable']:.1f} SDs of the "
        "paired differences in four of five such comparisons, and smaller ones less often."
    ]


def _of_items(
    found: Iterable[Score],
    pairs: Sequence[tuple[str, str]],
    tasks: Sequence[str],
    losses: Collection[str],
) -> Summary:
    """Return the mean differences over items, with 95 % intervals, as sentences of a headline."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for arm, item, task, score in found:
        scores.setdefault((arm, task), {})[item] = score
    sentences = []
    for (arm, baseline), task in product(pairs, tasks):
        mine, theirs = scores[arm, task], scores[baseline, task]
        differences = np.array([mine[item] - theirs[item] for item in mine])
        if task in losses:
            differences = -differences
        different = np.count_nonzero(differences)
        if len(differences) < FEWEST_ITEMS:
            raise MaskwiseError(
                f"too few items of {task} for an interval",
                got=len(differences),
                allowed=f"at least {FEWEST_ITEMS}",
            )
        mean = float(differences.mean())
        half = float(1.96 * differences.std(ddof=1) / math.sqrt(len(differences)))
        # All numbers get as many decimals as two significant digits of the interval need.
        digits = max(0, 1 - math.floor(math.log10(half))) if half else 3
        interval = with_minus(f"{mean - half:.{digits}f} to {mean + half:.{digits}f}")
        known = f"95 % interval of {arm}'s lead: {interval}; {len(differences)} items"
        if different < FEWEST_DIFFERENT:
            known = (
                f"they differ on {different} of {len(differences)} items, which are too few for "
            )
            known += f"an interval: it needs {FEWEST_DIFFERENT}"
        lead = f" by {abs(mean):.{digits}f}" if mean else ""
        order = "ahead of" if mean > 0 else "behind" if mean else "level with"
        sentences.append(f"{arm} is {order} {baseline} on {task}{lead} ({known}).")
    headline = " ".join([*sentences, REPLICATES[ITEMS]])
    return {**NO_SUMMARY, "headline": headline}


def _require_paired(seeds_of: Mapping[str, set[str]], pair: tuple[str, str]) -> None:
    """Raise an error if an arm of a pair has a seed that the other one lacks."""
    first, second = (seeds_of[name] for name in pair)
    for name, lacking in ((pair[0], second - first), (pair[1], first - second)):
        if lacking:
            raise MaskwiseError(
                f"arm {name!r} lacks seeds of the arm that it is paired with",
                got=", ".join(sorted(lacking)),
                do="add these runs, or remove them from the other arm",
            )
