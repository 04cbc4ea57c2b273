"""``benchmarks/masked_answers.py``: whether right answers stand in a corpus, and how often they are
masked; and studies of tasks with written answers.
"""

from __future__ import annotations

from pathlib import Path

import masked_answers as answers
import pytest
from masked_answers import masked_answers

from maskwise.evaluation.measures.overlap import occurring
from maskwise.masking import Masker
from maskwise.recipe import read_recipe
from maskwise.studies.checks import check_inputs
from maskwise.text import Document, read_pieces, split, tokenise, train_tokenizer
from tiny import load_json, maskwise, read_lines, records_of, write_inputs, write_lines

pytestmark = pytest.mark.script

TEXTS = [f"Person {n} was born in Old York and is a baker ." for n in range(60)]
TOKENIZER = train_tokenizer(TEXTS * 5, kind="bpe", vocab_size=400)

DENOISING = [
    "objective=denoise",
    "tokenizer.sentinels=20",
    "masking={policy: span, ratio: 0.3, corruption: t5}",
    "model={architecture: t5, settings: {d_model: 16, d_kv: 8, num_heads: 2, num_layers: 1, "
    "d_ff: 32}}",
]
"""Overrides for a small encoder-decoder."""


def rows_of(texts):
    documents = (Document(str(number), text) for number, text in enumerate(texts))
    return split(
        read_pieces(tokenise(documents, TOKENIZER), tokenizer=TOKENIZER, length=32), held_out=0.1
    )[0]


def test_answers_stand_in_a_corpus_word_by_word():
    long = " ".join(f"w{n}" for n in range(30))
    rights = [["old york!"], ["York Old"], ["bake"], ["Baker", "none"], ["new", "none"], [long], []]
    documents = [*TEXTS, f"x {long.upper()} y"]
    found, *_ = occurring(documents, rights, least=1)
    assert found.tolist() == [True, False, False, True, False, True, False]


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_masked_answers_are_counted_whole_and_in_part(ratio):
    rows = rows_of(TEXTS)
    masker = Masker(TOKENIZER, policy="token", ratio=ratio, seed=0)
    places = sum(rows.line([row]).pieces for row in range(len(rows)))  # one text a piece
    masked = masked_answers(rows, masker, TOKENIZER, ["Old York", "Old York", "absent"])
    assert masked.occurrences == places
    if ratio in (0, 1):
        assert masked.whole == masked.part == ratio * places
    else:
        assert 0 < masked.whole < masked.part < places


def test_an_answer_is_whole_words():
    masker = Masker(TOKENIZER, policy="token", ratio=1.0, seed=0)
    rows = rows_of([f"a bakery is here {n}" for n in range(60)])
    assert masked_answers(rows, masker, TOKENIZER, ["bake", "baker"]) == (0, 0, 0)


def test_answers_of_a_study_of_questions(tmp_path):
    recipe = write_inputs(tmp_path)
    texts = [line["text"] for line in read_lines(tmp_path / "corpus.jsonl")]
    words = [text.split()[1].strip(".").lower() for text in texts[:40]]
    rows = [
        {
            "question": f"which word is number {n} ?",
            "context": f"it is {word} .",
            "answers": [word],
            "split": ("train", "train", "dev", "test")[n % 4],
        }
        for n, word in enumerate(words)
    ]
    write_lines(tmp_path / "asked.jsonl", rows)
    task = str(tmp_path / "asked.jsonl")
    assert (
        maskwise(
            "study",
            recipe,
            "--out",
            tmp_path / "out",
            f"tasks=[{task}]",
            "training.steps=4",
            "study.seeds=1",
            "finetune.epochs=1",
            "training.eval_every=0",
        )
        == 0
    )
    by_arm = {line["arm"]: line for line in answers.main(tmp_path / "out")}
    assert set(by_arm) == {"token-15", "words-30"}
    for line in by_arm.values():
        assert line["task"] == "asked" and line["standing"] == 1 and line["occurrences"] > 10
    assert by_arm["words-30"]["whole"] > by_arm["token-15"]["whole"] > 0


def with_written_task(folder: Path) -> Path:
    """The recipe of ``write_inputs``, and write.jsonl with the first word of each text."""
    recipe = write_inputs(folder)
    texts = [line["text"] for line in read_lines(folder / "corpus.jsonl")]
    rows = [
        {
            "input": text[:40],
            "output": text.split()[0],
            "split": ("train", "train", "dev", "test")[n % 4],
        }
        for n, text in enumerate(texts)
    ]
    write_lines(folder / "write.jsonl", rows)
    return recipe


@pytest.mark.parametrize(
    ("metric", "given", "named"),
    [
        ("nats", [], True),
        ("f1", [], False),
        ("nats", ["study.secondary=[write]"], False),
        ("nats", ["study.outcome=heldout:token"], False),
    ],
)
def test_a_margin_of_scores_and_nats_is_said_to_have_no_effect(metric, given, named, tmp_path):
    path = with_written_task(tmp_path)
    written = f"{tmp_path / 'write.jsonl'}(metric={metric}, max_target=8, beams=1)"
    tasks = f"tasks=['{tmp_path / 'task.jsonl'}', '{written}']"
    notes = check_inputs(read_recipe(path, [*DENOISING, "study.margin=0.01", tasks, *given]))
    assert any("study.margin" in note for note in notes) == named


def test_a_study_of_encoder_decoders_with_a_task_in_nats(tmp_path):
    recipe = with_written_task(tmp_path)
    small = [
        *DENOISING,
        "training.steps=6",
        "training.eval_every=0",
        "finetune.epochs=1",
        "finetune.seeds=1",
        f"tasks=['{tmp_path / 'write.jsonl'}(metric=nats, max_target=8, beams=1)']",
        "study.arms={span: {}, token: {masking.policy: token}}",
        "study.seeds=2",
    ]
    assert maskwise("study", recipe, "--out", tmp_path / "out", *small) == 0
    scores = [r for r in records_of(tmp_path / "out", "task") if r["split"] == "test"]
    assert len(scores) == 6
    for record in scores:
        assert record["metric"] == "nats" and not record["higher_is_better"]
        assert record["chance"] > 0 and record["item_sd"] > 0
    lines = read_lines(tmp_path / "out/predictions.jsonl")
    rows = read_lines(tmp_path / "write.jsonl")
    tested = [row for row in rows if row["split"] == "test"]
    assert [(line["input"], line["gold"]) for line in lines] == [
        (row["input"], [row["output"]]) for row in tested
    ]
    for line in lines:
        assert line["task"] == "write" and set(line["answers"]) == {
            "span",
            "token",
            "no-pretraining",
        }
        assert all(set(by_seed) == {"0", "1"} for by_seed in line["answers"].values())
    of_seed = next((tmp_path / "out/stages").glob("finetune-*/seed-*/predictions.jsonl"))
    whole = read_lines(of_seed)
    assert len(whole) == len(tested)
    assert set(whole[0]) == {"input", "gold", "answer", "score", "nats"}
    assert not [*(tmp_path / "out/stages").glob("finetune-*/seed-*/checkpoint")]
    summary = load_json(tmp_path / "out/summary.json")
    (row,) = [row for row in summary["contrasts"] if row["outcome"] == "write"]
    assert row["higher_is_better"] is False
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "nats (left is better)" in page
    assert (
        maskwise(
            "study", recipe, "--out", tmp_path / "other", f"tasks=[{tmp_path / 'write.jsonl'}]"
        )
        == 2
    )
