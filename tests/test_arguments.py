"""Public functions in Python: what is no list or dict is refused in one line, or is read as a list
of one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

import maskwise as mw
from maskwise.annotate.run import annotate_corpus
from maskwise.base.errors import MaskwiseError
from maskwise.text import load_tokenizer, read_documents, train_tokenizer

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(mw, name) for name in mw.__all__ if callable(getattr(mw, name))
} | {
    "annotate_corpus": annotate_corpus,
    "read_documents": read_documents,
    "train_tokenizer": train_tokenizer,
    "samplers.Uniform": mw.samplers.Uniform,
    "samplers.Mometas": mw.samplers.Mometas,
}
LISTS = re.compile(r"\b(Sequence|Iterable|Mapping|AnyRecipe|Overrides|list|dict)\b")
SCORES = [
    {"arm": arm, "seed": seed, "task": "t", "score": 0.5 + seed / 100 + (arm == "a") / 10}
    for arm in "ab"
    for seed in range(6)
]
TEXTS = ["The cat sat on the mat."] * 9


def good(out: str) -> dict[str, dict[str, Any]]:
    """The arguments of a call of each function that has an argument with several values."""
    tokenizer = load_tokenizer("bundled:encoder")
    study = {"recipe": "quick-start", "out": f"{out}/study"}
    return {
        "adapt": {"model": "bundled:encoder", "texts": TEXTS, "out": f"{out}/adapt", "steps": 2},
        "annotate_corpus": {"source": TEXTS, "annotators": ["words"], "out": f"{out}/layers"},
        "annotate_rows": {"batch": {"text": TEXTS}, "tokenizer": tokenizer},
        "change": {
            "old": "bundled:encoder",
            "new": f"{out}/changed",
            "changes": "trim-tokens('a')",
        },
        "check": {"recipe": "quick-start", "timing": False},
        "compare": {"scores": SCORES, "baseline": "b", "replicate": "pretraining"},
        "encode": {"tokenizer": tokenizer, "texts": TEXTS},
        "evaluate": {"model": "bundled:encoder", "texts": TEXTS},
        "finetune": {"model": "bundled:encoder", "tasks": "banking77", "out": f"{out}/tuned"},
        "learn": {"recipe": "learn-supervised", "out": f"{out}/learn"},
        "load_task": {"spec": "banking77"},
        "Masker": {"tokenizer": tokenizer},
        "push_to_hub": {"folder": "bundled:encoder", "name": "you/it"},
        "read_documents": {"source": TEXTS},
        "samplers.Mometas": {"objectives": ["mlm", "atd"]},
        "samplers.Uniform": {"objectives": ["mlm", "atd"]},
        "SteppedDataset": {"data": [{"input_ids": [5]}]},
        "study": study,
        "train_tokenizer": {"texts": TEXTS},
    }


def arguments() -> list[tuple[str, str]]:
    found = []
    for name, function in FUNCTIONS.items():
        if name in ("MaskedBatch", "MaskwiseError", "StudyResult"):
            continue
        for argument, parameter in inspect.signature(function).parameters.items():
            if LISTS.search(str(parameter.annotation)):
                found.append((name, argument))
    return [*found, ("load_task", "spec"), ("study", "recipe")]


@pytest.mark.parametrize("value", ["zebra", 0.5, pd.DataFrame({"text": TEXTS, "label": TEXTS})])
@pytest.mark.parametrize(("name", "argument"), arguments())
def test_what_is_no_list_or_dict_is_refused_or_read_as_one(
    name: str, argument: str, value: object, tmp_path: Any
) -> None:
    if isinstance(value, pd.DataFrame) and argument in ("scores", "texts") and name != "encode":
        return
    call = good(str(tmp_path))[name] | {argument: value}
    with pytest.raises(MaskwiseError) as refused:
        FUNCTIONS[name](**call)
    said = str(refused.value)
    # Never a single character of the text, or the name of a column.
    assert not re.search(r"'(z|text|label)'(?!\])", said)
    assert "\n" not in said
    if isinstance(value, str) and (name, argument) != ("encode", "ids"):
        assert "zebra" in said or f"{argument} must" in said or "a dict" in said


@pytest.mark.parametrize(
    ("function", "given", "named"),
    [
        ("evaluate", {"measures": "pairs('bundled:pairs', items=2)"}, None),
        ("encode", {"layers": "sentences"}, None),
        ("annotate_corpus", {"annotators": "sentences"}, None),
        ("compare", {"contrasts": ("a", "b")}, "contrasts=[('a', 'b')]"),
        ("compare", {"contrasts": ["a:b"]}, "contrasts=[('a', 'b')]"),
        ("compare", {"contrasts": "a:b"}, "contrasts"),
        ("compare", {"chance": 0.5}, "chance={"),
        ("encode", {"texts": pd.DataFrame({"text": TEXTS})}, "texts=table['text'].tolist()"),
        ("train_tokenizer", {"texts": "a text"}, "texts=['a text']"),
        ("train_tokenizer", {"texts": pd.DataFrame({"text": TEXTS})}, "table['text'].tolist()"),
        ("load_task", {"spec": pd.DataFrame({"text": TEXTS})}, "to_csv"),
    ],
)
def test_a_refused_argument_says_how_it_is_given_in_python(
    function: str, given: dict[str, Any], named: str | None, tmp_path: Any
) -> None:
    call = good(str(tmp_path))[function] | given
    if named is None:
        assert FUNCTIONS[function](**call)
        return
    with pytest.raises(MaskwiseError) as refused:
        FUNCTIONS[function](**call)
    assert named in str(refused.value)
