"""Retrieval with fine-tuning: in-batch negatives, ranks, and its metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from transformers import AutoModel

import maskwise as mw
from maskwise.base.errors import MaskwiseError
from maskwise.objectives import InBatchNegatives
from maskwise.tasks import load_task
from maskwise.tasks.finetuning import finetune, load_network
from maskwise.tasks.kinds.embeddings import Candidates, ranks_of
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.settings import FinetuneSettings
from maskwise.tasks.tensors import embed, encode_texts, task_tensors
from tiny import maskwise, write_lines
from training_tools import config, tokenizer

WORDS = [f"w{number}" for number in range(40)]


def pairs_in(folder: Path, rows: int = 90, *, name: str = "pairs.jsonl") -> Path:
    """Queries of two words, and texts that begin with one of them; some texts have two queries."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(rows):
        words = rng.choice(WORDS, size=5)
        for asked in words[: 2 if number % 4 == 0 else 1]:
            query = f"{asked} w{number % 40}"
            lines.append({"query": query, "positive": " ".join([*words, WORDS[number % 40]])})
    return write_lines(folder / name, lines)


def asked(path: Path, **more: Any) -> Any:
    return load_task(path, kind="retrieval", fine_tuned=True, **more)


def network() -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(config("bert")).eval()


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_loss_of_a_batch_is_that_of_the_formula(tmp_path: Path, pooling: str) -> None:
    """Row by row, each text alone, so that there is no padding."""
    task = asked(pairs_in(tmp_path), pooling=pooling, temperature=0.1)
    data = task_tensors(task, tokenizer(), max_length=16)["train"]
    rows = torch.arange(48)
    model = network()
    objective = task.objective(model)
    assert isinstance(objective, InBatchNegatives)
    loss = objective.eval()(data.batch(rows))

    def vector(text: str) -> torch.Tensor:
        ids = tokenizer()(text, return_tensors="pt")["input_ids"]
        states = model(input_ids=ids).last_hidden_state[0]
        return {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]

    train = task.splits["train"][:48]
    total = 0.0
    for row in train:
        right = {other.passage for other in task.splits["train"] if other.query == row.query}
        sums = []
        for other in train:
            if other is row or other.passage not in right:
                cosine = torch.cosine_similarity(vector(row.query), vector(other.passage), dim=0)
                sums.append(float(cosine) / 0.1)
                if other is row:
                    own = sums[-1]
        total += math.log(sum(map(math.exp, sums))) - own
    # Two queries have one text, which is no negative one of either.
    assert len({row.passage for row in train}) < 48
    assert int(loss.divisor) == 48
    assert float(loss.total) == pytest.approx(total, rel=1e-4)


def test_ndcg_is_that_of_scikit_learn() -> None:
    """One text is right for each query."""
    rng = np.random.default_rng(1)
    texts = Candidates([*range(40)], [], torch.arange(40), ~torch.eye(40, dtype=torch.bool))
    passages = torch.from_numpy(rng.normal(size=(40, 6)))
    queries = passages + 1.2 * torch.from_numpy(rng.normal(size=(40, 6)))
    ranks = np.asarray(ranks_of(queries, passages, texts))
    scores = torch.cosine_similarity(queries[:, None], passages[None], dim=-1).numpy()
    gold = np.eye(40)
    assert 1 < ranks.mean() < 15 and (ranks > 10).any()
    found = METRICS["ndcg-at-10"](np.ones(40), ranks)
    assert found == pytest.approx(ndcg_score(gold, scores, k=10))
    # The reciprocal rank, from the order of scores.
    order = (-scores).argsort(1)
    places = 1 + np.array([[*row].index(number) for number, row in enumerate(order)])
    assert METRICS["mrr"](np.ones(40), ranks) == pytest.approx(
        np.where(places <= 10, 1 / places, 0).mean()
    )


def test_training_helps_on_queries_that_are_held_out(tmp_path: Path) -> None:
    path = pairs_in(tmp_path, 300)
    network().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    tasks = [f"{path}(kind=retrieval, fine_tuned=true, metric='ndcg-at-10')"]
    tasks.append(f"{path}(kind=retrieval)")
    settings = {"steps": 120, "learning_rate": 3e-3, "max_length": 16}
    out = tmp_path / "out"
    tuned, frozen = mw.finetune(tmp_path / "model", tasks, out=out, runs=1, overrides=settings)
    assert tuned["metric"] == "ndcg-at-10" and {"mrr", "recall-at-1"} <= tuned["others"].keys()
    assert tuned["score"] > 2 * frozen["others"]["ndcg-at-10"] + tuned["majority"], tuned
    queries = {split: {row.query for row in rows} for split, rows in asked(path).splits.items()}
    assert not queries["test"] & queries["train"]
    # The folder is an ordinary model.
    (folder,) = out.rglob("checkpoint")
    assert AutoModel.from_pretrained(folder).config.model_type == "bert"


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_further_texts_are_candidates(tmp_path: Path, fine_tuned: bool) -> None:
    path = pairs_in(tmp_path)
    passages = {row.passage for row in load_task(path, kind="retrieval").splits["test"]}
    (tmp_path / "more.txt").write_text("\n".join([*WORDS, *passages]) + "\n")
    more = {"corpus": str(tmp_path / "more.txt"), "fine_tuned": fine_tuned}
    task, alone = (load_task(path, kind="retrieval", **given) for given in (more, {}))
    assert task.fingerprint != alone.fingerprint
    if not fine_tuned:
        assert task.majority < alone.majority
    same = {"tokenizer": tokenizer(), "config": config("bert"), "seed": 1}
    settings = FinetuneSettings(steps=1, learning_rate=1e-9, max_length=16, precision="no")
    score = finetune(None, task, settings=settings, **same)["score"]
    # By other code, with all texts as candidates.
    model = load_network(None, task, tokenizer(), config=same["config"], max_length=16, seed=1)
    rows = task.splits["test"]
    known = [*dict.fromkeys([*(row.passage for row in rows), *WORDS, *passages])]
    asked_for = [row.query for row in rows]
    queries, texts = (
        torch.nn.functional.normalize(embed(model, encode_texts(each, tokenizer(), max_length=16)))
        for each in (asked_for, known)
    )
    total = 0.0
    for number, row in enumerate(rows):
        right = {other.passage for other in rows if other.query == row.query}
        cosines = dict(zip(known, (texts @ queries[number]).tolist(), strict=True))
        rank = 1 + sum(
            cosine >= cosines[row.passage] - 1e-9
            for text, cosine in cosines.items()
            if text not in right
        )
        total += 1 / rank if rank <= 10 else 0
    assert score == pytest.approx(total / len(rows), abs=0.02)


def test_columns_of_queries_are_recognised_unless_there_are_labels(tmp_path: Path) -> None:
    task = load_task(pairs_in(tmp_path))
    assert task.kind.name == "retrieval" and task.frozen
    assert task.columns == {"text": "query", "pair": "positive"}
    assert task.suggested["kind"] == "retrieval"
    rows = [{"query": f"w{n}", "passage": f"w{n} w1", "label": n % 2} for n in range(40)]
    with pytest.raises(MaskwiseError, match="no text column"):
        load_task(write_lines(tmp_path / "labelled.jsonl", rows))


def test_what_has_no_effect_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pairs_in(tmp_path)
    for more, said in (
        ({"temperature": 0.1}, "temperature of a task has no effect"),
        ({"fine_tuned": True, "temperature": 0}, "temperature of a task"),
        ({"fine_tuned": True, "pooling": "dev"}, "pooling"),
        ({"train_rows": 5}, "train_rows"),
    ):
        with pytest.raises(MaskwiseError, match=said):
            load_task(path, kind="retrieval", **more)
    assert asked(path, train_rows=20).splits["train"].__len__() == 20
    spec = f"{path}(kind=retrieval, fine_tuned=true)"
    out = tmp_path / "out"
    command = ["finetune", "bundled:encoder", "--task", spec, "--out", out, "--runs", 1]
    assert maskwise(*command, "batch_size=1", "steps=1") == 2
    assert "finetune.batch_size to 2 or more" in capsys.readouterr().err


def test_a_study_compares_arms_on_it(tmp_path: Path) -> None:
    path = pairs_in(tmp_path)
    recipe = {
        "corpus": {"source": "bundled:wikipedia", "limit": 60, "length": 32, "held_out": 0.2},
        "model": {"pretrained": "bundled:encoder"},
        "training": {"steps": 2, "batch_size": 4},
        "evaluation": {"rows": 8, "masks": "token"},
        "finetune": {"steps": 2, "seeds": 1},
        "tasks": [f"{path}(kind=retrieval, fine_tuned=true, pooling=cls)"],
        "study": {
            "seeds": 1,
            "arms": {"retromae": {"objective": {"retromae": "retromae"}}},
            "contrasts": [["retromae", "no-pretraining"]],
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert maskwise("study", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--jobs", 1) == 0
    lines = map(json.loads, (tmp_path / "out" / "records.jsonl").read_text().splitlines())
    arms = {line["arm"] for line in lines if line["kind"] == "task"}
    assert arms == {"retromae", "no-pretraining"}
