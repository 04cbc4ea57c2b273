"""Evaluators of sentence-transformers as tasks: by a file, as an object, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskwise.errors import MaskwiseError
from maskwise.tasks import evaluate_tasks, evaluator_task, load_task
from tiny import write_lines

evaluation = pytest.importorskip(
    "sentence_transformers.evaluation", reason="pip install sentence-transformers"
)
SENTENCES = ("He writes books.", "She wrote a novel.", "It rains today.", "The sea is cold.")


def write_triplets(folder: Path) -> Path:
    names, (a, b, c, d) = ("anchor", "positive", "negative"), SENTENCES
    write_lines(
        folder / "three.jsonl",
        [dict(zip(names, each)) for each in ((a, b, c), (b, a, d), (c, d, a), (d, c, b))],
    )
    return folder / "three.jsonl"


def test_the_score_is_what_the_evaluator_says_of_the_same_vectors(tmp_path: Path) -> None:
    task = load_task(f"{write_triplets(tmp_path)}(kind='evaluator', evaluator='triplet')")
    # The last anchor is nearer to its negative (.89) than to its positive (.80).
    a, b, c, d = torch.tensor([[1.0, 0.0], [0.9, 0.436], [0.0, 1.0], [0.6, 0.8]])
    vectors = torch.stack([a, b, c, b, a, d, c, d, a, d, c, b])
    assert task.score("test", task.kind.answers(task, {"test": vectors})["test"]) == 0.75


def test_a_file_and_an_object_have_one_score(tmp_path: Path) -> None:
    a, b, c, d = SENTENCES
    given = evaluator_task(
        evaluation.TripletEvaluator([a, b, c, d], [b, a, d, c], [c, d, a, b]), "books"
    )
    spec = f"{write_triplets(tmp_path)}(kind='evaluator', evaluator='triplet')"
    file, object_ = evaluate_tasks("bundled:encoder", [spec, given])
    assert file["score"] == object_["score"] and object_["task"] == "books"
    assert len(given.splits["test"]) == 4  # every text is embedded once


def test_retrieval_asks_for_queries_and_a_corpus() -> None:
    texts = dict(enumerate(SENTENCES))
    evaluator = evaluation.InformationRetrievalEvaluator(
        texts, texts, {n: {n} for n in texts}, accuracy_at_k=[1]
    )
    (record,) = evaluate_tasks("bundled:encoder", [evaluator_task(evaluator)])
    assert record["score"] == 1.0  # every text is nearest to itself


def test_unknown_evaluators_and_columns_are_refused(tmp_path: Path) -> None:
    file = write_triplets(tmp_path)
    with pytest.raises(MaskwiseError, match="triplet"):
        load_task(f"{file}(kind='evaluator', evaluator='triplets')")
    with pytest.raises(MaskwiseError, match="sentence1"):
        load_task(f"{file}(kind='evaluator', evaluator='similarity', text='anchor')")
