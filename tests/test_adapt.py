"""adapt: a recipe with sensible arms, an answer in a sentence, folders for transformers and sentence-transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from maskwise.errors import MaskwiseError
from maskwise.study.adapt import adapt_recipe, answer_of, kept_of
from maskwise.study.prospects import prospects_of
from maskwise.tasks import load_task
from tiny import WORDS, maskwise, write_lines


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    draw = random.Random(0)
    lines = []
    for number in range(60):
        topic = WORDS[5 * (number % 16) :][:12]
        body = ". ".join(" ".join(draw.choices(topic, k=7)).capitalize() for _ in range(4)) + "."
        lines.append({"title": " ".join(draw.sample(topic, 3)), "text": body})
    write_lines(tmp_path / "texts.jsonl", lines)
    return tmp_path / "texts.jsonl"


def test_the_recipe_fits_the_model(texts: Path, tmp_path: Path) -> None:
    recipe = adapt_recipe("bundled:encoder", str(texts), pairs=tmp_path / "pairs.jsonl")
    assert [*recipe.study.arms] == ["token-15", "words-30", "tsdae"] and recipe.study.seeds == 6
    with pytest.raises(MaskwiseError, match=r"adapt needs an encoder; got bart, .*; take the recipe intermediate"):
        adapt_recipe("bundled:seq2seq", str(texts))
    assert recipe.study.pairs == [("words-30", "no-pretraining")]
    assert not prospects_of(recipe)[0]["limits"]  # it can be decided without a search
    assert recipe.training.learning_rate == 1e-3 and recipe.arm("tsdae", seed=0).judged_on() == ()
    task = load_task(recipe.tasks[0])
    assert task.kind.name == "retrieval" and task.test_items == 60 and 0 < task.majority < 0.1
    learned = adapt_recipe("bundled:encoder", str(texts), ["banking77"], overrides=["training.batch_size=4"])
    assert learned.tasks == ("banking77",) and learned.training.batch_size == 4
    (tmp_path / "short.txt").write_text("\n".join(f"word {n}" for n in range(30)))
    with pytest.raises(MaskwiseError, match="nothing to judge by"):
        adapt_recipe("bundled:encoder", str(tmp_path / "short.txt"), pairs=tmp_path / "p.jsonl")


def test_adapt_answers_and_saves_both_folders(texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ["training.batch_size=4", "evaluation.rows=4", "corpus.length=32", "corpus.held_out=0.2"]
    out = tmp_path / "out"
    command = ["adapt", "bundled:encoder", texts, *small, "--steps", 2, "--seeds", 1, "--out", out]
    assert maskwise(*command, "--dry-run") == 0
    assert capfd.readouterr().out.lstrip().startswith("stages")  # a table; JSON where it is asked for
    assert not [*tmp_path.glob("*pairs*")]  # nothing was written
    assert maskwise(*command, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert "points" in said["answer"] and "steps a run" in said["answer"]
    scores = {line["arm"] for line in map(json.loads, (out / "records.jsonl").open()) if line["kind"] == "score"}
    assert scores == {"token-15", "words-30", "tsdae", "no-pretraining"}
    if said["best"]:
        whole, sentences = map(Path, said["folders"])
        AutoModelForMaskedLM.from_pretrained(whole)
        assert "held-out text" in (whole / "README.md").read_text()
        assert "SentenceTransformer(FOLDER)" in (sentences / "README.md").read_text()
        AutoTokenizer.from_pretrained(sentences)
        width = AutoModel.from_pretrained(sentences).config.hidden_size
        assert json.loads((sentences / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == width
        assert [m["type"].rpartition(".")[2] for m in json.loads((sentences / "modules.json").read_text())] == [
            "Transformer", "Pooling",
        ]  # fmt: skip


def test_the_answer_is_a_sentence_for_every_verdict(texts: Path, tmp_path: Path) -> None:
    recipe = adapt_recipe("bundled:encoder", str(texts), pairs=tmp_path / "pairs.jsonl")
    row = {"primary": True, "outcome": "tasks", "mean": 1.0, "low": 0.2, "high": 1.9, "n": 6, "reason": "plateau",
           "natural": {"mean": 0.021, "low": 0.004, "high": 0.039}}  # fmt: skip
    for verdict, better, begins in (
        ("decided", "arm", "Yes, going on helps: +2.1 points"), ("decided", "baseline", "No, going on harms"),
        ("suggests", "arm", "Perhaps"), ("equal", None, "No: it makes"), ("undecided", None, "It cannot be told"),
        ("void", None, "No verdict, because plateau"),
    ):  # fmt: skip
        result = {"contrasts": [{**row, "verdict": verdict, "better": better}], "seconds": 600}
        assert answer_of(result, recipe).startswith(begins)


def test_a_model_that_is_saved_is_not_praised_beyond_the_verdict() -> None:
    folders = [Path("out/model"), Path("out/sentence-model")]
    assert "may be chance" in kept_of("tsdae", folders, helps=None)
    assert "nothing" in kept_of(None, (), helps=None)
    assert kept_of("tsdae", folders, helps="tsdae").endswith("saved in out/model and out/sentence-model.")
    assert "It is words-30 that is shown to help" in kept_of("tsdae", folders, helps="words-30")
