"""Evaluators of sentence-transformers as tasks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskwise.errors import MaskwiseError
from maskwise.tasks import evaluate_tasks, load_task
from tiny import write_lines

pytest.importorskip("sentence_transformers.evaluation", reason="pip install sentence-transformers")
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


@pytest.mark.parametrize("evaluator", ["similarity", "binary"])
def test_pairs_are_evaluated_by_a_model(evaluator: str, tmp_path: Path) -> None:
    a, b, c, d = SENTENCES
    rows = [(a, b, 1), (c, d, 1), (a, d, 0), (b, c, 0)]
    columns = ("sentence1", "sentence2", "score" if evaluator == "similarity" else "label")
    write_lines(tmp_path / "two.jsonl", [dict(zip(columns, row)) for row in rows])
    spec = f"{tmp_path / 'two.jsonl'}(kind='evaluator', evaluator='{evaluator}')"
    (record,) = evaluate_tasks("bundled:encoder", [spec])
    assert -1 <= record["score"] <= 1 and record["task"] == "two-evaluator"


def test_unknown_evaluators_and_columns_are_refused(tmp_path: Path) -> None:
    file = write_triplets(tmp_path)
    with pytest.raises(MaskwiseError, match="triplet"):
        load_task(f"{file}(kind='evaluator', evaluator='triplets')")
    with pytest.raises(MaskwiseError, match="sentence1"):
        load_task(f"{file}(kind='evaluator', evaluator='similarity', text='anchor')")
