"""Files, settings and measures with which a model cannot be evaluated."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from maskwise.evaluation import EvaluationSettings, load_measures
from maskwise.evaluation.measures.cloze import Cloze
from maskwise.evaluation.sets import Pairs, load_set
from maskwise.recipe import read_recipe
from refusals import Refusal, cases
from tiny import write_lines

FILES: list[tuple[Any, ...]] = [
    (Pairs.read, "", "a.jsonl", "empty"),
    (Pairs.read, {"sentence_good": "a"}, "row 1 of", "sentence_bad", "got sentence_good"),
    (Pairs.read, {"sentence_good": "a", "sentence_bad": 3}, "row 1 of", "sentence_bad", "got 3"),
    (Pairs.read, "{", "line 1 of", "got {; allowed: JSON lines"),
    (Pairs.read, [1], "record 1 of", "got [1]"),
    (Cloze.read, {"masked_sentences": ["[MASK]"]}, "answer", "got masked_"),
    (Cloze.read, {"obj_label": " "}, "row 1 of", "answer", "got ' '"),
    (Cloze.read, {"obj_label": "a", "masked_sentences": ["x"]}, "'a'", "1 × not exactly"),
    *(
        (Cloze.read, {"obj_label": "a", **more}, "row 1 of", "sentence", "got obj_label")
        # A null asks nothing.
        for more in (
            {},
            {"sub_label": None, "predicate_id": "P1"},
            {"masked_sentences": None},
            {"masked_sentences": [None]},
            {"evidences": [{"masked_sentence": None}]},
        )
    ),
]


def read(reader: Any, line: Any, folder: Path) -> object:
    relation = {"relation": "P1", "template": "[X] is in [Y] ."}
    write_lines(folder / "relations.jsonl", [relation])
    (folder / "a.jsonl").write_text(line if isinstance(line, str) else json.dumps(line))
    return reader(folder / "a.jsonl")


def two_of_one_name(folder: Path) -> object:
    own = write_lines(folder / "pairs.jsonl", [{"sentence_good": "a", "sentence_bad": "b"}])
    measures = ("pairs('bundled:pairs')", f"pairs({str(own)!r})")
    return load_measures(EvaluationSettings(measures=measures))


ROWS = [
    *(
        Refusal(f"evaluation file {n}", partial(read, reader, line), facts)
        for n, (reader, line, *facts) in enumerate(FILES)
    ),
    *cases(
        "evaluation set",
        lambda spec: load_set(spec, Pairs.read),
        ("bundled:pear", "'pear'", "allowed: pairs"),
        ("nothing.jsonl", "'nothing.jsonl'"),
        ("bundled:pairs(item=3)", "'bundled:pairs'", "'item'"),
        ("bundled:pairs(items=0)", "items", "got 0"),
        ("bundled:pairs(items=2.5)", "items of", "got 2.5; allowed: a whole"),
    ),
    *cases(
        "evaluation settings",
        lambda given: read_recipe("quick-start", [f"evaluation={given}"]),
        ("{ratios: [0.15, 0.15]}", "evaluation.ratios", "0.15, 0.15"),
        ("{ratios: [1.5]}", "numbers above 0 and below 1"),
        ("{ratio: 0.1, ratios: [0.2]}", "ratio", "ratios"),
        ("{masks: [wordy]}", "'wordy'"),
        ("{row: 3}", "evaluation", "row"),
    ),
    Refusal("two measures of one name", two_of_one_name, ("'pairs'", "rename")),
    *cases(
        "a measure that settings have",
        lambda spec: load_measures(EvaluationSettings(measures=(spec,))),
        ("heldout(0.3)", "'heldout'", "evaluation.ratios"),
    ),
]
