"""Arguments of the public functions that cannot be meant, and rows of the user's that are none."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

import maskwise as mw
from maskwise.studies.inputs import file_of_rows, overrides_of, task_specs
from maskwise.tasks import load_task
from refusals import Refusal
from report_fixture import CLEAR, study_of, write_study

LABELLED = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
ARGUMENTS = [(name, value) for name in ("steps", "runs", "jobs") for value in ("6", 1.5, 0, True)]
ARGUMENTS += [("patience", "x"), ("new_words", 1.5), ("replay", "0.2"), ("lengths", 0.5)]
ARGUMENTS += [("arms", ()), ("arms", None), ("arms", 3), ("time", 60), ("overrides", 3)]
ARGUMENTS += [("policy", "")]
ARMS: dict[str, Any] = {"a": {}, "b": {"masking.ratio": 0.3}}
BOTH: list[tuple[Any, str, str]] = [
    ({"corpus.source": "other.txt"}, "corpus.source", "other.txt"),
    (["corpus.source=other.txt"], "corpus.source", "other.txt"),
    (["corpus.source.wiki=0.5"], "corpus.source", "0.5"),
    ({"corpus": {"source": "other.txt", "length": 8}}, "corpus.source", "other.txt"),
    ({"tasks": ["trivia"]}, "tasks", "trivia"),
    (["tasks=[trivia]"], "tasks", "trivia"),
]


def unfinished(folder: Path) -> object:
    """The best arm of a study of which two seeds have not run."""
    study, records = study_of(CLEAR)
    return mw.StudyResult.read(write_study(folder, study | {"pending": [8, 9]}, records)).best_arm


def topics(folder: Path) -> object:
    rows = [{"text": f"text {n}", "labels": [1.0, 0.0, float(n % 2)]} for n in range(60)]
    return load_task(*task_specs({"topics": rows}, folder))


ROWS = [
    *(
        Refusal(
            f"adapt: {name} {value!r}",
            lambda at, n=name, v=value: mw.adapt("bundled:encoder", ["a"], out=at, **{n: v}),
            (f"{name} ",),
        )
        for name, value in ARGUMENTS
    ),
    *(
        Refusal(
            f"an argument and an override {given}",
            lambda at, given=given: overrides_of(given, ["a"], {"letters": LABELLED}, at / "out"),
            (name, value, "give one"),
            lambda at, given=given: overrides_of(given, None, None, at),
        )
        for given, name, value in BOTH
    ),
    Refusal(
        "overrides in a text", lambda at: overrides_of("a=1", None, None, at), ("list of texts",)
    ),
    *(
        Refusal(f"no table of rows {n}", partial(file_of_rows, rows, name="rows"), facts)
        for n, (rows, *facts) in enumerate(
            (
                ([], "no rows"),
                (3, "int"),
                ("", "str"),
                ({"a": 1}, "dict"),
                ([1], "row 0"),
                ([{"text": object()}], "row 0"),
                ([{"text": {1, 2}}], "row 0"),
            )
        )
    ),
    *(
        Refusal(
            f"a task without a name, {type(rows).__name__}",
            lambda at, rows=rows: task_specs(rows, at),
            ("name",),
            lambda at, rows=rows: task_specs({"letters": rows}, at),
        )
        for rows in (pd.DataFrame(LABELLED), LABELLED)
    ),
    Refusal("ones and zeros as labels", topics, ("ones and zeros", "3 labels")),
    Refusal("no study in a folder", lambda at: mw.StudyResult.read(at), ("no study",)),
    Refusal("no folder of a study", lambda at: mw.StudyResult.read(at / "no"), ("no such folder",)),
    Refusal("the best arm before all seeds", unfinished, ("got without 8, 9",)),
    *(
        Refusal(
            f"study: {fact}",
            lambda at, x=settings: mw.study(x, out=at / "out", texts=["a text"] * 9),
            (fact,),
        )
        for settings, fact in (
            ({"traning": {}}, "did you mean 'training'"),
            ({"training": {"steps": 3}}, "arms"),
            ({"study": {"arms": ARMS}, "training": {"seed": 5}}, "training.seed"),
        )
    ),
    Refusal(
        "study: jobs",
        lambda at: mw.study("quick-start", out=at / "out", jobs=-1),
        ("jobs ", "-1"),
    ),
]
