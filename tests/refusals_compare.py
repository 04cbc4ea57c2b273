"""Tables of scores that ``compare`` refuses."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import maskwise as mw
from refusals import Refusal

Rows = list[dict[str, Any]]
BOTH: dict[str, Any] = {"replicate": "pretraining", "baseline": "b"}


def table(name: str = "score", arms: str = "ab", **more: Any) -> Rows:
    """Six runs of each arm, whose values are between 8 and 9 and fall from arm to arm."""
    return [
        {"arm": arm, "seed": seed, name: 9 - 0.1 * place + 0.01 * seed * (place + 1), **more}
        for place, arm in enumerate(arms)
        for seed in range(6)
    ]


def compared(rows: Any, folder: Path, **more: Any) -> object:
    return mw.compare(rows, **{**BOTH, **more})


def results(folder: Path) -> Path:
    """The results of transformers' example scripts of language models."""
    for row in table("perplexity"):
        path = folder / row["arm"] / f"seed-{row['seed']}" / "all_results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"perplexity": row["perplexity"], "eval_loss": 2.1}))
    return folder


def logged(name: str, rows: Rows, folder: Path) -> None:
    """Give the logarithm under another name, and name that as lower."""
    for row in rows:
        row["loss"] = math.log(row.pop(name))
    assert mw.compare(rows, **BOTH, lower=["loss"]).summary["verdict"] == "decided"


def refused(name: str, do: str, *facts: str) -> Refusal:
    """A column whose numbers are not in nats, named as lower."""
    rows = table(name)
    call = partial(compared, rows, lower=[name])
    by_log = do == "logarithm"
    advice = partial(logged, name, table(name)) if by_log else None
    return Refusal(f"compare-lower-{name}", call, (name, do, *facts), advice)


MEANS = [{"arm": arm, "task": "t", "mean": 0.5, "sd": 0.01} for arm in "ab"]
ARMS_IN_RUN = [
    {"run": row["arm"], "seed": row["seed"], "score": row["score"] / 10} for row in table()
]
TWICE = [
    {**row, "task": "t", "score": row["score"] / 10 + more} for row in table() for more in (0, 0.01)
]


def averaged(folder: Path) -> None:
    means = [{**row, "task": "t", "score": row["score"] / 10 + 0.005} for row in table()]
    mw.compare(means, **BOTH)


def shares(**more: Any) -> Rows:
    """Accuracies of two arms on one task, of which "a" is always better."""
    scores = (("b", 0.5), ("a", 0.6))
    return [
        {"arm": arm, "seed": seed, "task": "t", "score": score + seed / 100, **more}
        for seed in range(6)
        for arm, score in scores
    ]


def damaged(content: str, folder: Path) -> object:
    """Compare a folder of results of which one is something else."""
    (results(folder) / "a" / "seed-3" / "all_results.json").write_text(content)
    return mw.compare(folder, **BOTH, columns={"score": "eval_loss"}, lower=["loss"])


def into_a_file(below: str, folder: Path) -> object:
    (folder / "file").write_text("")
    return mw.compare(shares(), **BOTH).save(folder / "file" / below)


def one_more(**cells: Any) -> Rows:
    return [*shares(), {"arm": "a", "seed": 9, "task": "t", "score": 0.5, **cells}]


def in_files(files: dict[str, Rows], folder: Path, **more: Any) -> object:
    """Compare files of these rows, whose arms are only in the names of the files."""
    for name, rows in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pd.DataFrame(rows).drop(columns="arm", errors="ignore").to_csv(folder / name, index=False)
    return mw.compare([folder / name for name in files], **{**BOTH, **more})


def with_an_empty_file(folder: Path) -> object:
    (folder / "c.csv").write_text("seed,task,score\n")
    for arm in "ab":
        pd.DataFrame(of_arm(arm)).drop(columns="arm").to_csv(folder / f"{arm}.csv", index=False)
    return mw.compare([folder / f"{arm}.csv" for arm in "abc"], **BOTH)


def in_one_file(folder: Path) -> object:
    pd.DataFrame(MINE).drop(columns="arm").to_csv(folder / "a.csv", index=False)
    return mw.compare(folder / "a.csv", **BOTH)


def of_arm(arm: str) -> Rows:
    return [row for row in shares() if row["arm"] == arm]


MINE, THEIRS = of_arm("a"), of_arm("b")
# Files of an arm each, and how compare is called, by what is wrong; and the facts of the line.
FILES: dict[str, tuple[dict[str, Rows], dict[str, Any], tuple[str, ...]]] = {
    "a seed of one file": (
        {"a.csv": MINE[:-1], "b.csv": THEIRS},
        {},
        ("'a'", "lacks seeds", "5"),
    ),
    "a task of one file": (
        {"a.csv": [*MINE, *({**row, "task": "u"} for row in MINE)], "b.csv": THEIRS},
        {},
        ("'b'", "seed 0", "score on u"),
    ),
    "a column of one file": (
        {
            "a.csv": [{"seed": n, "t": 0.5, "u": 0.5} for n in range(6)],
            "b.csv": [{"seed": n, "t": 0.4} for n in range(6)],
        },
        {},
        ("'b'", "got seed, t;", "u, too", "same tasks"),
    ),
    "seeds of another name": (
        {"a.csv": [{"run": row["seed"], **row} for row in MINE], "b.csv": THEIRS},
        {"columns": {"seed": "run"}},
        ("'b'", "got seed, task, score;", "run, too", "alike"),
    ),
    "scores of another name": (
        {"a.csv": MINE, "b.csv": [{**row, "f1": row["score"]} for row in THEIRS]},
        {"columns": {"score": "f1"}},
        ("'a'", "got seed, task, score;", "f1, too"),
    ),
    "one is long, and one wide": (
        {"a.csv": MINE, "b.csv": [{"seed": n, "t": 0.5} for n in range(6)]},
        {},
        ("'b'", "got seed, t;", "task, score, too"),
    ),
    "a column of models": (
        {"a.csv": [{**row, "model": "bert"} for row in MINE], "b.csv": THEIRS},
        {},
        ("a.csv", "column model", "one table"),
    ),
    "a column that is named": (
        {"a.csv": MINE, "b.csv": THEIRS},
        {"columns": {"arm": "which"}},
        ("a.csv", "column which"),
    ),
    "two of one name": (
        {"b.csv": THEIRS, "x/b.csv": THEIRS},
        {},
        ("named b", "x/b.csv", "rename"),
    ),
    "one": ({"b.csv": THEIRS}, {}, ("one arm", "b")),
    "a baseline that is none": (
        {"a.csv": MINE, "b.csv": THEIRS},
        {"baseline": "b.csv"},
        ("'b.csv'", "allowed: a, b"),
    ),
}

FRAME = pd.DataFrame(shares())
SUGGESTED: dict[str, Any] = {
    "arm=path": lambda arm, seed, score: {"Name": f"dew-{arm}{seed}", "seed": seed, "path": arm},
    "score=NAME": lambda arm, seed, score: {"arm": arm, "seed": seed, "task": "t", "mcc": score},
    "b is a column": lambda arm, seed, score: {"seed": seed, "task": "t", "a": score, "b": score},
    "row for each run": lambda arm, seed, score: {"Model": arm, "SST-2": f"{score} ± 0.3"},
    "decimal point": lambda arm, seed, score: {
        "arm": arm,
        "seed": seed,
        "sst2": f"{100 * score} %",
    },
}
NO_NUMBER: tuple[Any, ...] = (0, -0.1, float("nan"), "x")
# Tables, and how compare is called, by name; and the facts of the line.
TABLES: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "no rows": ([], {}, ("rows",)),
    "no arm": ([{"x": 1}], {}, ("arm", "x")),
    "numbers": ([1, 2], {}, ("rows of scores", "int")),
    "unknown arm": (shares(), {"baseline": "c"}, ("'c'",)),
    "unknown replicate": (shares(), {"replicate": "luck"}, ("replicate", "luck")),
    "unknown task": (shares(), {"lower": ["u"]}, ("'u'",)),
    "unknown column": (shares(), {"columns": {"run": "seed"}}, ("'run'",)),
    "two scores": (one_more(seed=0, score=0.9), {}, ("two scores", "on t")),
    "two scores, a seed as text": (one_more(seed="0", score=0.9), {}, ("two scores", "on t")),
    "two seeds of one number": (
        [*shares(), *({**row, "seed": "01"} for row in shares() if row["seed"] == 1)],
        {},
        ("same number", "01"),
    ),
    "a run without a task": (one_more(seed=0, task="u", score=1), {}, ("score on u",)),
    "a seed of one arm": (one_more(), {}, ("lacks seeds", "9")),
    "a dash": (one_more(score="-"), {}, ("finite number", "-")),
    "a huge number": (one_more(score=10**400), {}, ("finite number",)),
    "no task": (one_more(task=None), {}, ("task",)),
    "no task in a frame": (pd.DataFrame([*shares(), {"arm": "a", "seed": 9}]), {}, ("task",)),
    "neither shares nor per cent": (shares(score=523), {}, ("shares", "per cent", "523")),
    "one arm": ([row for row in shares() if row["arm"] == "b"], {}, ("one arm", "b")),
    "a margin of all points": (shares(), {"margin": 1.0}, ("margin", "0.01")),
    **{f"margin {it}": (shares(), {"margin": it}, ("margin", "0.01")) for it in NO_NUMBER},
    **{
        f"a task called {task}": (shares(task=task), {}, (task, "rename"))
        for task in ("tasks", "mean over tasks", "heldout:x@y", "dev:t", "cost:x")
    },
    "two units": (
        [*shares(), *shares(task="u")],
        {"lower": ["u"], "margin": 0.01},
        ("scores on t", "nats on u"),
    ),
    **{
        f"chance {it}": (shares(), {"chance": {"t": it}}, ("share", "t"))
        for it in (50, -1, float("nan"), "half")
    },
    "an arm with itself": (shares(), {"contrasts": [("a", "a")]}, ("two arms",)),
    "a contrast twice": (shares(), {"contrasts": [("a", "b")] * 2}, ("once",)),
    "both directions": (shares(), {"contrasts": [("a", "b"), ("b", "a")]}, ("once",)),
    "a rate of errors": (shares(task="wer"), {"lower": ["wer"]}, ("wer", "loss")),
    "a column of errors": (
        [{"arm": row["arm"], "seed": row["seed"], "CER": 0.1} for row in shares()],
        {"lower": ["CER"]},
        ("CER", "loss"),
    ),
    **{
        f"a row with {column} {lacking!r}": (
            [*shares(), {**shares()[0], column: lacking}],
            {},
            (f"no {column}", "fill the cell in"),
        )
        for column in ("arm", "seed")
        for lacking in (None, "", float("nan"), pd.NA)
    },
    "per cent of one arm": (
        [{**row, "score": row["score"] * (100 if row["arm"] == "a" else 1)} for row in shares()],
        {},
        ("shares", "per cent"),
    ),
    **{
        f"score {it}": (shares(score=it), {}, ("decimal point",))
        for it in ("0,913", "91.3%", "91 %")
    },
    "a task in per cent": (
        [
            {"arm": row["arm"], "seed": row["seed"], "t": row["score"], "u": "61 %"}
            for row in shares()
        ],
        {},
        ("u ", "finite number"),
    ),
    # What is suggested fits the values.
    **{
        f"columns {do}": (
            [make(row["arm"], row["seed"], row["score"]) for row in shares()],
            {},
            (do,),
        )
        for do, make in SUGGESTED.items()
    },
    # What is no table.
    "None": (None, {}, ("NoneType",)),
    "3": (3, {}, ("int",)),
    "bytes": (b"arm,seed", {}, ("bytes",)),
    "a long text": ("x" * 5000, {}, ("file of scores",)),
    "the text of a table": (FRAME.to_csv(), {}, ("file of scores",)),
    "a series without arms": (FRAME.score, {}, ("score",)),
    "an array": (FRAME[["score"]].to_numpy(), {}, ("ndarray",)),
    "a scalar": (np.array(0.5), {}, ("ndarray",)),
    "tuples": ([tuple(row.values()) for row in shares()], {}, ("list of tuple",)),
    "rows and None": ([*shares(), None], {}, ("list of NoneType",)),
    "a dict of dicts": (FRAME.to_dict(), {}, ("dict of dict",)),
    "one row": (shares()[0], {}, ("dict of str",)),
    "lengths": ({"arm": ["a"], "seed": [0, 1]}, {}, ("lengths",)),
    "one name twice": (FRAME[["arm", "arm", "seed", "score"]], {}, ("arm",)),
}

ROWS = [
    refused("ppl", "logarithm", "nats"),
    refused("perplexity", "logarithm"),
    refused("eval_perplexity", "logarithm"),
    refused("wer", "1 - error"),
    refused("bpb", "0.693"),
    Refusal(
        "compare-lower-task-of-a-perplexity",
        partial(compared, table(task="ppl"), lower=["ppl"]),
        ("ppl", "logarithm"),
    ),
    Refusal(
        "compare-score-column-perplexity",
        partial(
            compared, table("perplexity", task="lm"), lower=["lm"], columns={"score": "perplexity"}
        ),
        ("perplexity", "logarithm"),
    ),
    Refusal(
        "compare-perplexity-without-lower",
        partial(compared, table("ppl")),
        ("ppl", "logarithm"),
    ),
    Refusal(
        "compare-folder-perplexity",
        lambda folder: mw.compare(results(folder), **BOTH, columns={"score": "perplexity"}),
        ("perplexity", "logarithm"),
        lambda folder: mw.compare(folder, **BOTH, columns={"score": "eval_loss"}, lower=["loss"]),
    ),
    Refusal(
        "compare-lower-nothing",
        partial(compared, table(task="3"), lower=[None]),
        ("task", "None", "3"),
        partial(compared, table(task=3), lower=[3]),
    ),
    Refusal(
        "compare-seven-contrasts",
        lambda folder: compared(
            [{**row, "score": row["score"] / 10} for row in table(arms="abcdefgh")], folder
        ),
        ("7", "at most 6", "--contrast a:b"),
        lambda folder: compared(
            [{**row, "score": row["score"] / 10} for row in table(arms="abcdefgh")],
            folder,
            contrasts=[("a", "b")],
        ),
    ),
    Refusal(
        "compare-two-scores-of-a-run",
        partial(compared, TWICE),
        ("'a'", "seed 0", "average"),
        averaged,
    ),
    Refusal(
        "compare-arms-in-a-column-run",
        partial(compared, ARMS_IN_RUN),
        ("--column arm=run", "columns={'arm': 'run'}"),
        partial(compared, ARMS_IN_RUN, columns={"arm": "run", "seed": "seed"}),
    ),
    Refusal("compare-means", partial(compared, MEANS), ("seed", "row for each run", "means")),
    Refusal(
        "compare-means-in-a-cell",
        partial(compared, [{**row, "score": "0.91 ± 0.02"} for row in table(task="t")]),
        ("±", "single run"),
    ),
    *(
        Refusal(f"compare: results {content}", partial(damaged, content), ("seed-3", fact))
        for content, fact in {"{broken": "read", "[1]": "read", '{"epoch": 3}': "eval_loss"}.items()
    ),
    *(
        Refusal(f"compare into a file {below!r}", partial(into_a_file, below), ("folder", "file"))
        for below in ("", "below")
    ),
    *(
        Refusal(f"compare files: {name}", partial(in_files, files, **more), facts)
        for name, (files, more, facts) in FILES.items()
    ),
    Refusal("compare files: one is empty", with_an_empty_file, ("no rows", "c.csv")),
    Refusal(
        "compare files: one is missing",
        lambda folder: mw.compare([folder / "b.csv", folder / "a.csv"], **BOTH),
        ("no file", "b.csv"),
    ),
    Refusal(
        "compare files: one is a folder",
        lambda folder: mw.compare([folder, folder / "a.csv"], **BOTH),
        ("no file", "one folder ARM/SEED/all_results.json"),
    ),
    Refusal(
        "compare files: one alone, without arms",
        in_one_file,
        ("column for the arm", "a file of its own"),
        lambda folder: in_files({"a.csv": MINE, "b.csv": THEIRS}, folder),
    ),
    *(
        Refusal(f"compare: {name}", partial(compared, rows, **more), facts)
        for name, (rows, more, facts) in TABLES.items()
    ),
]
