"""Tables of scores that ``compare`` refuses."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

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


def compared(rows: Rows, folder: Path, **more: Any) -> object:
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
]
