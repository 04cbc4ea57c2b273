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
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any, cast

import numpy as np
from pandas import DataFrame, Series, isna

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
from maskwise.results.estimates import reasons, with_minus
from maskwise.results.files import Record, Study, Summary
from maskwise.results.measurements import Measurement, measurements, table_of, unit_of
from maskwise.verdict import summarise
from maskwise.verdict.outcomes import require_task_name
from maskwise.verdict.statistics import can_decide, fewest_runs
from maskwise.verdict.words import ITEMS, REPLICATES

FEWEST_ITEMS = 30
"""With fewer test items, a normal interval would be too short."""
FEWEST_DIFFERENT = 10
"""With fewer items on which two arms differ, a normal interval misses the true difference too often
(in simulations in up to 19 % of tables, with this limit in at most 6.1 %; RESULTS)."""

COLUMNS = {
    "arm": ("arm", "model", "method", "system", "variant"),
    "seed": ("seed", "run", "replicate", "fold"),
    "task": ("task", "dataset", "benchmark"),
    "score": ("score", "main_score", "value", "accuracy", "f1"),
}
"""The names by which a column is known, in the order of preference. Upper case counts as lower."""

ABOUT_RUNS = frozenset(
    ("epoch", "epochs", "step", "steps", "lr", "learning_rate", "params", "time", "runtime")
)
"""Names of other columns of numbers, which are no tasks in a table with a column for each task."""

LOSSES = ("loss", "eval_loss", "test_loss", "nll")
"""Names of tasks whose lower scores are better, and which are refused unless ``lower`` has them."""

_LOGARITHM = "give its logarithm, under another name, such as loss, and name that as lower"
_NATS = "give it in nats (0.693 times the bits), under another name, and name that as lower"
_SHARE = "give 1 - error, under another name, and do not name it as lower"
NO_NATS = {
    **dict.fromkeys(("ppl", "perplexity", "eval_perplexity"), _LOGARITHM),
    **dict.fromkeys(("bpb", "bpc"), _NATS),
    **dict.fromkeys(("wer", "cer"), _SHARE),
}
"""What to do with numbers that are no losses in nats, by the name of the task."""

PLAIN_NUMBERS = "write numbers with a decimal point, without a sign"

RESULTS = "all_results.json"
"""The file in which transformers' example scripts write scores."""

SPLITS = ("eval_", "test_", "predict_")
"""What names of scores in this file begin with."""

OF_TRAINER = ("loss", "runtime", "samples", "samples_per_second", "steps_per_second")
"""What transformers' Trainer writes about every split, in addition to scores."""

Row = Mapping[str, Any]


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
        primary = [row for row in self.summary["contrasts"] if row["primary"]]
        lines = [*reasons(primary), *self.summary["advice"]]
        return "\n".join([self.summary["headline"], *self.verdicts, *lines, *self.notes])

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
    scores: str | Path | DataFrame | Series | Iterable[Row] | Mapping[str, Sequence[Any]],
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
        scores: a file (.csv, .tsv, .json, .jsonl, .parquet), a folder ARM/SEED/all_results.json, a
            data frame, a series whose index has names, dicts of a row each, or a dict with a list
            for each column.
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
        _require_nats(task)
    contrasts = _pairs(contrasts)
    folder = _folder_of(scores)
    read: list[str] = []
    if folder:
        rows, read = _results_in(folder, columns)
        columns = {}
    else:
        rows = _rows_of(scores)
    once = _once(rows)
    found, notes, one_column = _long(once, columns, lower, baseline)
    if folder:
        # Each file of a folder is like a row with columns.
        notes, one_column = read, False
    if len(once) < len(rows):
        repeated = len(rows) - len(once)
        notes.append(f"{repeated} rows repeat another row in every column, and are counted once.")
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
        _require_nats(task)
        if task.lower() in LOSSES and task not in losses:
            raise MaskwiseError(
                f"lower scores on {task} may be better",
                allowed="scores of which higher ones are better, and losses in nats",
                do=f"if it is a loss in nats, name it as lower: --lower {shell_word(task)} "
                f"(in Python: lower={[task]})",
            )
    if not pairs:
        raise MaskwiseError("there is only one arm", got=baseline, do="add rows of another arm")
    _require_complete(found, tasks)
    seeds_of = defaultdict[str, set[str]](set)
    for arm, seed, _, _ in found:
        seeds_of[arm].add(seed)
    for pair in pairs:
        _require_paired(seeds_of, pair)
    if replicate == ITEMS:
        return ComparedScores(NO_STUDY, [], _of_items(found, pairs, tasks, losses), notes)
    for task in tasks:
        require_task_name(task, do="rename it in the table")
    seeds = _numbered({seed for _, seed, _, _ in found})
    values: dict[str, dict[str, list[float]]] = {task: defaultdict(list) for task in tasks}
    for arm, _, task, score in found:
        values[task][arm].append(score)
    scales = {
        task: 1 if task in losses else _scale(task, [*chain.from_iterable(arms.values())])
        for task, arms in values.items()
    }
    per_cent = [task for task, scale in scales.items() if scale != 1]
    if per_cent and one_column:
        _refuse_shares(values, per_cent, losses)
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
    if _is_number(margin) and 0 < float(margin) < 1:
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
    if _is_number(value):
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


# Reading


def _name_of(scores: object) -> str:
    return Path(scores).stem if isinstance(scores, str | Path) else "scores"


def _folder_of(scores: object) -> Path | None:
    """Return the folder of scores; None if they are in a file or in Python."""
    if isinstance(scores, str | Path):
        # A text that is too long is no path.
        with suppress(OSError):
            path = Path(scores).expanduser()
            return path if path.is_dir() else None
    return None


def _rows_of(scores: object) -> list[Row]:
    """Return the rows of a table in a file or in Python."""
    if isinstance(scores, str | Path):
        path = Path(scores).expanduser()
        is_file = False
        with suppress(OSError):
            is_file = path.is_file()
        if not is_file:
            raise MaskwiseError("there is no file of scores", got=str(scores))
        # Reading other formats imports more.
        from maskwise.text.source import read_records

        return list(read_records(path))
    if isinstance(scores, Series):
        scores = scores.to_frame("score" if scores.name is None else scores.name)
    if isinstance(scores, DataFrame):
        # An index with names has columns, such as those of a mean over groups.
        named = [name for name in scores.index.names if name is not None]
        frame = scores.reset_index(level=[name for name in named if name not in scores.columns])
        frame = frame.rename(columns=str)
        if not frame.columns.is_unique:
            twice = frame.columns[frame.columns.duplicated()]
            raise MaskwiseError("two columns of scores have one name", got=", ".join({*twice}))
        return cast(list[Row], frame.to_dict("records"))
    for name in ("to_dicts", "to_pylist"):
        # The rows of a table of polars, or of pyarrow.
        if hasattr(scores, name):
            return cast(list[Row], getattr(scores, name)())
    if isinstance(scores, Mapping):
        return _rows_of_columns(scores)
    try:
        rows = list(cast(Iterable[Row], scores))
    except TypeError:
        raise _no_rows(scores, scores) from None
    for row in rows:
        if not isinstance(row, Mapping):
            raise _no_rows(scores, row)
    return rows


def _rows_of_columns(columns: Mapping[object, Any]) -> list[Row]:
    """Return the rows of a dict with a list for each column."""
    lengths = set()
    for values in columns.values():
        if isinstance(values, str | Mapping) or not hasattr(values, "__len__"):
            raise _no_rows(columns, values)
        lengths.add(len(values))
    if len(lengths) > 1:
        raise MaskwiseError("the columns of scores have different lengths", got=sorted(lengths))
    names = [*map(str, columns)]
    return [dict(zip(names, row)) for row in zip(*columns.values())]


def _no_rows(scores: object, row: object) -> MaskwiseError:
    """Return the error for scores that are no table."""
    kind = type(scores).__name__
    return MaskwiseError(
        "these are no rows of scores",
        got=kind if row is scores else f"{kind} of {type(row).__name__}",
        allowed="a file, a folder, a data frame, dicts of a row each, or a dict with a list for "
        "each column",
        do="give every score its arm and its seed, such as "
        "[{'arm': 'ours', 'seed': 0, 'task': 'sst2', 'score': 0.91}, …]",
    )


def _results_in(folder: Path, columns: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Return the scores in ARM/SEED/all_results.json, and which were read; SEED has the seed.

    ``columns`` may name the score to read, such as "predict_f1". It must if there are several.

    Raises:
        MaskwiseError: there is no score, or there are several and none is named; or a file cannot
            be read, or lacks the score.
    """
    if {*columns} - {"score"}:
        raise MaskwiseError(
            "a folder of results has no columns but scores",
            got=", ".join(columns),
            allowed="score",
            do="leave the others out: the names of the folders are the arms and the seeds",
        )
    files = {path.parent: _results_of(path) for path in sorted(folder.glob(f"*/*/{RESULTS}"))}
    known = list(dict.fromkeys(chain.from_iterable(files.values())))
    name = columns.get("score") or _only_score(folder, known)
    require_known("score", name, known)
    lacking = [run for run, results in files.items() if name not in results]
    if lacking:
        raise MaskwiseError(
            f"some runs have no score on {name}, which other runs have",
            got=", ".join(f"{run.parent.name}/{run.name}" for run in lacking),
            do="measure it in these runs, or remove them from all arms",
        )
    task = next((name.removeprefix(split) for split in SPLITS if name.startswith(split)), name)
    rows: list[Row] = []
    for run, results in files.items():
        place = {"arm": run.parent.name, "seed": _seed_in(run)}
        rows.append({**place, "task": task, "score": results[name]})
    notes = [f"Scores: {name}."]
    unread = [other for other in known if other != name]
    if unread:
        notes.append(f"Numbers that are not read: {', '.join(unread)}.")
    arms = {run.parent for run in files}
    without = [
        f"{path.parent.name}/{path.name}"
        for path in sorted(folder.glob("*/*"))
        if path.is_dir() and path not in files and path.parent in arms
    ]
    if without:
        notes.append(f"Folders without {RESULTS}, which are not read: {', '.join(without)}.")
    return rows, notes


def _only_score(folder: Path, known: Sequence[str]) -> str:
    """Return the name of the score in a folder that has one."""
    scores = []
    for split, name in product(SPLITS, known):
        if name.startswith(split) and name.removeprefix(split) not in OF_TRAINER:
            scores.append(name)
    if not scores:
        got = f"{folder} with {', '.join(known)}" if known else str(folder)
        do = _naming("score", known[0]) if known else ""
        what = "the folder has no scores"
        raise MaskwiseError(what, got=got, allowed=f"ARM/SEED/{RESULTS}", do=do)
    if len(scores) > 1:
        raise MaskwiseError(
            "the folder has several scores", got=", ".join(scores), do=_naming("score", scores[0])
        )
    return scores[0]


def _results_of(path: Path) -> dict[str, float]:
    """Return the numbers in a file of results, by their names."""
    found = read_json(path)
    if found is None:
        raise MaskwiseError(
            "the results of a run cannot be read",
            got=str(path),
            do="evaluate the run again, or remove it from all arms",
        )
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _seed_in(run: Path) -> int:
    """Return the seed in the name of the folder of a run, such as 3 in lr2e-5_seed3."""
    name = run.name.lower()
    number = re.search(r"seed\D?(\d+)", name) or re.search(r"(\d+)", name)
    if number is None:
        raise MaskwiseError(
            "a folder of a run has no seed in its name", got=str(run), allowed="seed-3"
        )
    return int(number[1])


Score = tuple[str, str, str, float]
"""The arm, the seed as it is spelt, the task and the score."""


def _once(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without those that repeat another one in every column."""
    return list({tuple(map(str, chain.from_iterable(row.items()))): row for row in rows}.values())


def _long(
    rows: Sequence[Row], named: Mapping[str, str], lower: Sequence[str], baseline: str
) -> tuple[list[Score], list[str], bool]:
    """Return the scores of a table, which columns were taken, and whether all scores are in one."""
    if not rows:
        raise MaskwiseError("the table has no rows")
    for key in named:
        require_known("column", key, COLUMNS)
    known = _columns(rows)
    taken: dict[str, str] = {}
    for key in ("arm", "seed"):
        taken[key] = _column(key, rows, named, baseline, taken=taken)
    if "task" in named or _known_by("task", known):
        task = taken["task"] = _column("task", rows, named, baseline, taken=taken)
        score = taken["score"] = _column("score", rows, named, baseline, taken=taken)
        _require_nats(score)
        for row in rows:
            if _is_missing(row.get(task)):
                raise MaskwiseError("a row has no task", got=dict(row))
        found = [_score(row, taken, str(row[task]), score) for row in rows]
        said = f"{', '.join(taken.values())} are arm, seed, task and score"
        read = [*taken.values()]
    else:
        free = [name for name in known if name not in taken.values()]
        tasks = _score_columns(free, named, lower)
        found = [_score(row, taken, name, name) for row in rows for name in tasks]
        said = f"{', '.join(taken.values())} are arm and seed, and {', '.join(tasks)} scores"
        read = [*taken.values(), *tasks]
    notes = [f"Columns: {said}."]
    unread = [name for name in known if name not in read]
    if unread:
        notes.append(f"Columns that are not read: {', '.join(unread)}.")
    return found, notes, "task" in taken


def _score_columns(
    free: Sequence[str], named: Mapping[str, str], lower: Sequence[str]
) -> list[str]:
    """Return the columns of scores of a table without a column of tasks; each is a task.

    They are the one that is named, otherwise those with a known name and those in ``lower``,
    otherwise all columns that are not about runs.
    """
    if "score" in named:
        require_known("column", named["score"], free)
        return [named["score"]]
    known = [name for name in free if name.lower() in COLUMNS["score"] or name in lower]
    tasks = known or [name for name in free if name.lower() not in ABOUT_RUNS]
    if not tasks:
        raise MaskwiseError(
            "the table has no column of scores",
            got=", ".join(free) or "no other columns than arm and seed",
            do="add a column score, or one for each task",
        )
    return tasks


def _known_by(key: str, columns: Iterable[str]) -> str | None:
    """Return the first of the columns by the order of ``COLUMNS``; None if there is none."""
    by_name = {name.lower(): name for name in columns}
    return next((by_name[name] for name in COLUMNS[key] if name in by_name), None)


def _column(
    key: str,
    rows: Sequence[Row],
    named: Mapping[str, str],
    baseline: str,
    *,
    taken: Mapping[str, str],
) -> str:
    """Return the name of a column, as named or known by ``COLUMNS``.

    Args:
        key: what the column has, a key of ``COLUMNS``.
        rows: the table.
        named: the names that were given, by key.
        baseline: the arm that others are compared with.
        taken: the columns that have something else, by key.
    """
    known = _columns(rows)
    if key in named:
        require_known("column", named[key], known)
        return named[key]
    free = [name for name in known if name not in taken.values()]
    found = _known_by(key, free)
    if found is not None:
        return found
    do = f"add a column {key}, or name one: --column {key}=NAME (in Python: columns={{'{key}': …}})"
    with_baseline = [name for name in free if any(str(row.get(name)) == baseline for row in rows)]
    if key == "arm" and with_baseline:
        do = _naming("arm", with_baseline[0])
    elif key == "arm" and baseline in free:
        do = f"give a row for each arm: {baseline} is a column"
    elif key == "seed":
        do += "; give a row for each run: means over runs, with or without SDs, cannot be judged"
    raise MaskwiseError(
        f"the table has no column for the {key}",
        got=", ".join(known),
        allowed=", ".join(COLUMNS[key]),
        do=do,
    )


def _naming(key: str, column: str) -> str:
    """Say how a column is named, on the command line and in Python."""
    in_python = f"columns={{{key!r}: {column!r}}}"
    return f"name it: --column {shell_word(f'{key}={column}')} (in Python: {in_python})"


def _require_nats(name: str) -> None:
    """Raise an error if a task has the name of a number that is no loss in nats."""
    do = NO_NATS.get(name.lower())
    if do:
        raise MaskwiseError(
            f"{name} is no loss in nats, by its name",
            allowed="scores of which higher ones are better, and losses in nats",
            do=do,
        )


def _columns(rows: Iterable[Row]) -> list[str]:
    """Return the names of the columns of all rows. Rows of JSON may leave out empty columns."""
    return [*dict.fromkeys(map(str, chain.from_iterable(rows)))]


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def _is_missing(value: object) -> bool:
    return isna(value) is True or value == ""


def _reads_as_number(value: object) -> bool:
    """Return whether a person reads a number: 0.913, 0,913 or 91.3 %."""
    return _is_number(value) or bool(re.fullmatch(r"-?\d+([.,]\d+)?\s*%?", str(value)))


def _score(row: Row, taken: Mapping[str, str], task: str, column: str) -> Score:
    arm, seed = row.get(taken["arm"]), row.get(taken["seed"])
    value = row.get(column)
    if _is_missing(arm) or _is_missing(seed):
        raise MaskwiseError("a row has no arm or no seed", got=dict(row))
    if not _is_number(value):
        do = "run it again, or remove the run"
        if "±" in str(value):
            do = "give a row for each single run: means with SDs cannot be judged"
        if task == column:
            do += "; if the column has no scores, remove it, or name the one that has"
        raise MaskwiseError(
            f"the score of arm {arm!r} with seed {seed} on {task} is not a finite number",
            got="an empty cell" if _is_missing(value) else value,
            do=PLAIN_NUMBERS if _reads_as_number(value) else do,
        )
    return str(arm), str(seed), task, float(value)  # type: ignore[arg-type]


def _require_complete(found: Iterable[Score], tasks: Sequence[str]) -> None:
    """Raise an error if a run has a score twice, or not on all tasks."""
    runs = defaultdict[tuple[str, str], Counter[str]](Counter)
    for arm, seed, task, _ in found:
        runs[arm, seed][task] += 1
    for (arm, seed), measured in runs.items():
        twice = [task for task in tasks if measured[task] > 1]
        if twice:
            raise MaskwiseError(
                f"arm {arm!r} with seed {seed} has two scores on {twice[0]}",
                do="average them if they are of one run, such as fine-tunings of one pre-training; "
                "runs of one arm need different seeds",
            )
        lacking = [task for task in tasks if task not in measured]
        if lacking:
            raise MaskwiseError(
                f"arm {arm!r} with seed {seed} has no score on {', '.join(lacking)}",
                do="add it, or remove the run or the task",
            )


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


def _numbered(seeds: Iterable[str]) -> dict[str, int]:
    """Return whole numbers for seeds: themselves, or their order if they are other names.

    Raises:
        MaskwiseError: two seeds are one number in two spellings, such as 1 and 01.
    """
    names = sorted(seeds)
    # Longer numbers are names, too: Python reads at most 4300 digits.
    if not all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return {name: number for number, name in enumerate(names)}
    spelt: dict[int, str] = {}
    for name in names:
        number = int(name)
        if number in spelt:
            raise MaskwiseError(
                "two seeds are the same number",
                got=f"{spelt[number]} and {name}",
                do="spell a seed in one way; give other runs other seeds",
            )
        spelt[number] = name
    return {name: number for number, name in spelt.items()}


def _refuse_shares(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    per_cent: Sequence[str],
    losses: Collection[str],
) -> None:
    """Raise an error if a column with scores in per cent has what may be shares of another task.

    Columns of their own may have units of their own.
    """
    for task, scores in values.items():
        largest = max(map(abs, chain.from_iterable(scores.values())))
        if 0 < largest <= 1 and task not in losses:
            raise MaskwiseError(
                f"the scores on {task} are shares or per cent; those on {per_cent[0]} are per cent",
                got=f"up to {largest:g} on {task}",
                do="write all scores as shares, or give each task a column",
            )


def _scale(task: str, values: Sequence[float]) -> int:
    """Return 100 for scores in per cent, and 1 for shares, which are at most 1."""
    least, largest = min(values), max(map(abs, values))
    if largest <= 1:
        return 1
    if least < 0 or largest > 100:
        raise MaskwiseError(
            f"the scores on {task} are neither shares nor per cent",
            got=f"{least:g} to {max(values):g}",
            allowed="-1 to 1, or 0 to 100",
            do="name losses in nats as lower; write correlations as shares",
        )
    small = [value for value in values if 0 < value <= 1]
    if small:
        raise MaskwiseError(
            f"the scores on {task} are shares and per cent",
            got=f"{small[0]:g} and {largest:g}",
            do="write all of them as shares, or all as per cent",
        )
    return 100
