"""Read a table of scores: a row for each arm, seed and task, or a column for each task."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple, cast

from pandas import DataFrame, Series, isna

from maskwise.base.errors import MaskwiseError, require_known, shell_word
from maskwise.base.folders import read_json, stem_of

COLUMNS = {
    "arm": ("arm", "model", "method", "system", "variant"),
    "seed": ("seed", "run", "replicate", "fold"),
    "task": ("task", "dataset", "benchmark"),
    "score": ("score", "main_score", "value", "accuracy", "f1"),
}
"""The names by which a column is known, in the order of preference. Upper case counts as lower."""

FILE_NAME = "the file's name"
"""What stands for the column of arms if each arm has a file of its own."""

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

Score = tuple[str, str, str, float]
"""The arm, the seed as it is spelt, the task and the score."""


class ScoreTable(NamedTuple):
    """The scores of a table, what is noted about it, and whether all scores are in one column."""

    scores: list[Score]
    notes: list[str]
    one_column: bool


def read_scores(
    scores: object, columns: Mapping[str, str], lower: Sequence[str], baseline: str
) -> ScoreTable:
    """Read a table in a file, in files of an arm each, in a folder, or in Python.

    Args:
        scores: as for ``maskwise.compare``.
        columns: the names of columns that were given, by what they have (a key of ``COLUMNS``).
        lower: the tasks whose scores are losses.
        baseline: the arm that others are compared with.

    Raises:
        MaskwiseError: there is no table, it has no rows, or a column or score cannot be read.
    """
    folder = _folder_of(scores)
    if folder:
        rows, notes = _results_in(folder, columns)
        once = _once(rows)
        found, _, _ = _long(once, {}, lower, baseline)
        # Each file of a folder is like a row with columns.
        table = ScoreTable(found, notes, one_column=False)
    else:
        files = _files_of(scores)
        if files:
            rows = _rows_of_arms(files, columns)
            columns = {**columns, "arm": FILE_NAME}
        else:
            rows = _rows_of(scores)
        once = _once(rows)
        table = _long(once, columns, lower, baseline)
    repeated = len(rows) - len(once)
    if repeated:
        said = f"{repeated} rows repeat another row in every column, and are counted once."
        table.notes.append(said)
    return table


def _folder_of(scores: object) -> Path | None:
    """Return the folder of scores; None if they are in a file or in Python."""
    if isinstance(scores, str | Path):
        # A text that is too long is no path.
        with suppress(OSError):
            path = Path(scores).expanduser()
            return path if path.is_dir() else None
    return None


def _files_of(scores: object) -> list[str | Path]:
    """Return the files of scores if each arm has its own."""
    if isinstance(scores, list | tuple) and all(isinstance(each, str | Path) for each in scores):
        return [*scores]
    return []


def _rows_of(scores: object) -> list[Row]:
    """Return the rows of a table in a file or in Python."""
    if isinstance(scores, str | Path):
        path = Path(scores).expanduser()
        is_file = False
        with suppress(OSError):
            is_file = path.is_file()
        if not is_file:
            raise MaskwiseError(
                "there is no file of scores",
                got=str(scores),
                allowed=f"one table, one for each arm, or one folder ARM/SEED/{RESULTS}",
            )
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


def _rows_of_arms(files: Sequence[str | Path], columns: Mapping[str, str]) -> list[Row]:
    """Return the rows of files of an arm each, which has the name of its file.

    Raises:
        MaskwiseError: two files name one arm, or a file has no rows, or a column with arms.
    """
    rows: list[Row] = []
    arms: dict[str, str | Path] = {}
    for file in files:
        arm = stem_of(Path(file).name)
        if arm in arms:
            raise MaskwiseError(
                f"two files of scores are named {arm}, and a file's name is its arm",
                got=f"{arms[arm]} and {file}",
                do="rename one of them",
            )
        arms[arm] = file
        own = _rows_of(file)
        if not own:
            raise MaskwiseError("the table has no rows", got=str(file))
        column = columns.get("arm") or _known_by("arm", _columns(own))
        if column:
            raise MaskwiseError(
                f"{file} has two arms: its name, and those of a column",
                got=f"{arm}, and the column {column}",
                do="remove this column, or give one table of all arms",
            )
        rows += [{**row, FILE_NAME: arm} for row in own]
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
        allowed="a file, a list of files of an arm each, a folder, a data frame, dicts of a row "
        "each, or a dict with a list for each column",
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


def _once(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without those that repeat another one in every column."""
    return list({tuple(map(str, chain.from_iterable(row.items()))): row for row in rows}.values())


def _long(
    rows: Sequence[Row], named: Mapping[str, str], lower: Sequence[str], baseline: str
) -> ScoreTable:
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
        require_nats(score)
        _require_alike(rows, [*taken.values()])
        for row in rows:
            if _is_missing(row.get(task)):
                raise _no_cell("task", row)
        found = [_score(row, taken, str(row[task]), score) for row in rows]
        said = f"{', '.join(taken.values())} are arm, seed, task and score"
        read = [*taken.values()]
    else:
        free = [name for name in known if name not in taken.values()]
        tasks = _score_columns(free, named, lower)
        _require_alike(rows, [*taken.values(), *tasks])
        found = [_score(row, taken, name, name) for row in rows for name in tasks]
        said = f"{', '.join(taken.values())} are arm and seed, and {', '.join(tasks)} scores"
        read = [*taken.values(), *tasks]
    notes = [f"Columns: {said}."]
    unread = [name for name in known if name not in read]
    if unread:
        notes.append(f"Columns that are not read: {', '.join(unread)}.")
    return ScoreTable(found, notes, "task" in taken)


def _require_alike(rows: Iterable[Row], read: Sequence[str]) -> None:
    """Raise an error if the file of an arm lacks a column that is read from the other files."""
    files = defaultdict[str, list[Row]](list)
    for row in rows:
        if FILE_NAME in row:
            files[row[FILE_NAME]].append(row)
    for arm, own in files.items():
        columns = _columns(own)
        lacking = [name for name in read if name not in columns]
        if lacking:
            raise MaskwiseError(
                f"the file of arm {arm!r} lacks columns that other files have",
                got=", ".join(name for name in columns if name != FILE_NAME),
                allowed=f"{', '.join(lacking)}, too",
                do="name the columns of all files alike, and give all of them the same tasks",
            )


def _no_cell(key: str, row: Row) -> MaskwiseError:
    return MaskwiseError(
        f"a row has no {key}", got=dict(row), do="fill the cell in, or remove the row"
    )


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
    if key == "arm":
        do += "; or give each arm a file of its own"
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


def require_nats(name: str) -> None:
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


def is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def _is_missing(value: object) -> bool:
    return isna(value) is True or value == ""


def _reads_as_number(value: object) -> bool:
    """Return whether a person reads a number: 0.913, 0,913 or 91.3 %."""
    return is_number(value) or bool(re.fullmatch(r"-?\d+([.,]\d+)?\s*%?", str(value)))


def _score(row: Row, taken: Mapping[str, str], task: str, column: str) -> Score:
    arm, seed = row.get(taken["arm"]), row.get(taken["seed"])
    value = row.get(column)
    for key, cell in {"arm": arm, "seed": seed}.items():
        if _is_missing(cell):
            raise _no_cell(key, row)
    if not is_number(value):
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


def require_complete(found: Iterable[Score], tasks: Sequence[str]) -> None:
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


def numbered(seeds: Iterable[str]) -> dict[str, int]:
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


def refuse_shares(
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


def scale_of(task: str, values: Sequence[float]) -> int:
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
