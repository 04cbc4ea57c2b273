"""Tasks that are answered in words: metrics against published examples, cards, records,
fine-tuning, predictions.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import random
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForSeq2SeqLM, BartConfig

from maskwise.base.errors import MaskwiseError
from maskwise.models.loading import new_config
from maskwise.studies.single import run_finetune
from maskwise.tasks import (
    CARDS,
    KINDS,
    FinetuneSettings,
    finetune,
    load_task,
    task_record,
    task_tensors,
)
from maskwise.tasks.finetuning import answers_of, load_network, on_dev
from maskwise.tasks.metrics import ITEMS, METRICS, bootstrap_interval
from maskwise.tasks.tensors import TaskSource
from maskwise.text import train_tokenizer
from maskwise.training.best import Best
from maskwise.training.ranks import ALONE
from tiny import SPLITS, in_every_split, load_rows, read_lines

# Metrics
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "answer", "rights", "score"),
    [
        # SQuAD's normalisation is tested in test_tasks_kinds.py; KILT's is the same, word for word.
        ("exact-match", "a Zürich", ["Zürich"], 1),
        ("exact-match", "Zurich", ["Zürich"], 0),  # no accent is dropped
        ("exact-match", "“Zürich”", ["Zürich"], 0),  # only ASCII punctuation is
        # KILT's accuracy is strict: guess_answer in gold_candidate_answers, stripped, and nothing
        # else.
        ("accuracy", " Barack Obama ", ["Barack Obama", "Obama"], 1),
        ("accuracy", "barack obama", ["Barack Obama"], 0),
        ("accuracy", "the SUPPORTS", ["SUPPORTS"], 0),
        ("accuracy", "", ["SUPPORTS"], 0),
        # The README of rouge-score: F of 6 of 8 and 6 of 9 words, and of 5.
        (
            "rouge-1",
            "The quick brown dog jumps on the log.",
            ["The quick brown fox jumps over the lazy dog"],
            12 / 17,
        ),
        (
            "rouge-l",
            "The quick brown dog jumps on the log.",
            ["The quick brown fox jumps over the lazy dog"],
            10 / 17,
        ),
        # Lin 2004, section 3: S1 police killed the gunman; S2 police kill the gunman; S3 the gunman
        # kill police. the stemmer: killed is kill
        ("rouge-l", "police kill the gunman", ["police killed the gunman"], 1),
        ("rouge-l", "the gunman kill police", ["police killed the gunman"], 0.5),
        ("rouge-2", "the gunman kill police", ["police killed the gunman"], 1 / 3),
        # The union of two lines (Lin 2004, section 3.2): the lines of a summary are its sentences.
        (
            "rouge-lsum",
            "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5",
            ["w1 w2 w3 w4 w5"],
            2 * (4 / 10) * (4 / 5) / (4 / 10 + 4 / 5),
        ),
        ("rouge-1", "", ["something"], 0),
        ("rouge-1", "!?", ["something"], 0),
        ("rouge-l", "red cat", ["blue dog", "a red cat"], 0.8),
    ],
)
def test_published_and_worked_examples(metric, answer, rights, score):
    assert ITEMS[metric](rights, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("rouge-1", "rouge1"),
        ("rouge-2", "rouge2"),
        ("rouge-l", "rougeL"),
        ("rouge-lsum", "rougeLsum"),
    ],
)
def test_rouge_is_that_of_rouge_score_and_a_test_set_is_the_mean(ours, theirs):
    rights = [["The cat sat.\nIt was big.", "A cat"], ["Dogs are running quickly"], ["x"]]
    answers = ["the cats sit.\nIt is big", "a dog runs quick", ""]
    scorer = RougeScorer([theirs], use_stemmer=True)
    scores = [scorer.score_multi(*pair)[theirs].fmeasure for pair in zip(rights, answers)]
    assert METRICS[ours](rights, answers) == pytest.approx(sum(scores) / 3)


def test_the_interval_over_items_is_that_of_a_mean():
    items = [0.0] * 60 + [1.0] * 40
    low, high = bootstrap_interval(items)
    half = 1.96 * (0.4 * 0.6 / 100) ** 0.5
    assert low == pytest.approx(0.4 - half, abs=0.02) and high == pytest.approx(
        0.4 + half, abs=0.02
    )
    assert bootstrap_interval(items) == (low, high)  # nothing random
    assert bootstrap_interval([0.25, 0.25]) == (0.25, 0.25) == bootstrap_interval([0.25])


# Records
# ----------------------------------------------------------------------------

LEXICON = "red green blue cat dog fox runs sleeps sits big small old house river tree park"
WORDS = LEXICON.split(" ")


CHOICES = {"text": ["more", "less"], "label": ["A", "B"]}
AI2_CHOICES = [{"text": "more", "label": "A"}, {"text": "less", "label": "B"}]
AI2_QUESTION = {"stem": "Which?", "choices": AI2_CHOICES}
SHOWN = "Which? (A) more (B) less P."
WIQA = {"question_stem": "suppose", "question_para_step": ["One", "Two"], "answer_label": "none"}
AI2_WIQA = {"stem": "suppose", "para_steps": ["One", "Two"], "answer_label": "none"}
DIALOGUE = {"fname": "f", "dialogue": "d", "summary1": "a", "topic1": "t", "summary2": "b"}


@pytest.mark.parametrize(
    ("card", "record", "text", "answers"),
    [
        (None, {"input": "a b", "output": "c"}, "a b", ["c"]),
        (None, {"source": ["One.", "Two."], "target": ["A", "B"]}, "One. Two.", ["A", "B"]),
        (None, {"question": "who", "answer": ["X", "Y", "X"]}, "who", ["X", "Y"]),
        (None, {"question": "who", "answers": {"text": ["X"], "answer_start": [3]}}, "who", ["X"]),
        (None, {"question": "who", "answer": {"value": "V", "aliases": ["W"]}}, "who", ["V", "W"]),
        (None, DIALOGUE, "d", ["a", "b"]),
        (None, {"article": "a", "highlights": "h\ni"}, "a", ["h\ni"]),
        (None, {"document": "d", "summary": "s", "id": "7"}, "d", ["s"]),
        (None, {"question": "how many", "answer": 3}, "how many", ["3"]),
        # The hub's columns, and the fields of AI2's files.
        (
            "quartz",
            {"question": "Which?", "choices": CHOICES, "answerKey": "B", "para": "P."},
            SHOWN,
            ["less"],
        ),
        ("quartz", {"question": AI2_QUESTION, "answerKey": "A", "para": "P."}, SHOWN, ["more"]),
        (
            "wiqa",
            {**WIQA, "choices": {"label": ["A"], "text": ["none"]}},
            "suppose One Two",
            ["none"],
        ),
        ("wiqa", {"question": AI2_WIQA}, "suppose One Two", ["none"]),
        (
            "ropes",
            {"background": "B.", "situation": "S.", "question": "who", "answers": {"text": ["X"]}},
            "who S. B.",
            ["X"],
        ),
    ],
)
def test_published_columns_are_recognised(tmp_path, card, record, text, answers):
    (row,) = load_rows(tmp_path, in_every_split([record]), card=card).splits["test"]
    assert (row.text, row.answers) == (text, answers)


# By KILT's published schema (github.com/facebookresearch/KILT); the full files have not been read.
SOURCE = {"provenance": [{"wikipedia_id": "6"}]}
KILT = [
    {
        "input": "Ann [SEP] job",
        "output": [{"answer": "baker", **SOURCE}, {"answer": "cook"}, SOURCE],
    },
    {"input": "Bob [SEP] job", "output": [SOURCE]},
]


@pytest.mark.parametrize(("card", "metric"), [("kilt-aida", "accuracy"), ("kilt-wow", "f1")])
def test_kilts_records_are_read_and_rows_without_an_answer_are_counted(tmp_path, card, metric):
    task = load_rows(tmp_path, in_every_split(KILT), card=card)
    assert [row.answers for row in task.splits["test"]] == [["baker", "cook"]]
    assert task.metric == metric
    assert task.skipped == {f"{split}: no answer": 1 for split in SPLITS}


def test_ropes_has_two_texts_for_a_question(tmp_path):
    qas = [{"id": str(n), "question": f"Q{n}?", "answers": [{"text": f"a{n}"}]} for n in range(40)]
    paragraph = {"background": "B.", "situation": "S.", "qas": qas}
    (tmp_path / "ropes.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    row = load_task(f"{tmp_path}/ropes.json(card=ropes)").splits["test"][0]
    assert row.text == f"Q{row.answers[0][1:]}? S. B."


def test_triviaqas_own_file(tmp_path):
    answer = {"Value": "V", "Aliases": ["W"], "NormalizedValue": "v"}
    rows = [{"Question": f"q{n}", "Answer": answer} for n in range(30)]
    for name in ("unfiltered-web-train.json", "unfiltered-web-dev.json"):
        (tmp_path / name).write_text(json.dumps({"Data": rows, "Version": 1.0}), encoding="utf-8")
    task = load_task(f"{tmp_path}(card='trivia-qa')")
    assert len(task.splits["test"]) == 30 and task.splits["test"][0].answers == ["V", "W"]


@pytest.mark.parametrize("card", ["webquestions", "trivia-qa"])
def test_a_card_alone_is_loaded_from_the_hub(card, monkeypatch):
    record = {"question": "who", "answer": ["X", "Y"], "answers": ["X", "Y"]}
    rows, asked = datasets.Dataset.from_list([record]), []
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or splits)
    task = load_task(f"{card}(train_rows=1)")
    name, _, config = CARDS[card]["hub"].partition(":")
    assert asked == [(name, config or None)] and task.name == card
    assert [(row.text, row.answers) for row in task.splits["test"]] == [("who", ["X", "Y"])]


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def offline(*names):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(MaskwiseError) as caught:
        load_task("xsum")
    assert str(caught.value).endswith("'hf:EdinburghNLP/xsum': Couldn't reach the Hub")


@pytest.mark.parametrize("name", CARDS)
def test_cards_hold_arguments_of_load_task_and_say_whose_data_it_is(name):
    card = CARDS[name]
    required = {"title", "source", "licence", "options"}
    assert required <= set(card) <= required | {"hub", "files", "columns", "folders"}
    options = card["options"]
    make = KINDS[options["kind"]].make if "kind" in options else None
    settings = inspect.signature(make).parameters if make else {}
    assert set(options) <= {*inspect.signature(load_task).parameters, *settings}
    assert options.get("metric", "accuracy") in METRICS


def test_the_first_question_may_be_without_answer(tmp_path):
    """JSON lines may leave out what is empty, so columns are those of all rows."""
    rows = [{"question": f"who {n}", **({"answers": ["a"]} if n % 4 else {})} for n in range(8)]
    task = load_rows(tmp_path, in_every_split(rows))
    assert task.kind.name == "generation" and len(task.splits["test"]) == 6
    assert task.skipped == {f"{split}: no answer": 2 for split in SPLITS}


# Fine-tuning
# ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS) * 30], kind="wordpiece", vocab_size=160)


def bart(tokenizer, **more):
    """Two layers of 32; the decoder begins with [SEP], as BART's does."""
    sizes = {
        f"{side}_{what}": number
        for side in ("encoder", "decoder")
        for what, number in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))
    }
    sizes |= {"d_model": 32, "init_std": 0.1, "dropout": 0.0}
    return new_config("bart", tokenizer, 32, kind="encoder-decoder", **sizes, **more)


@pytest.fixture
def copying(tmp_path):
    """Say the colour of the text."""
    draw = random.Random(0)
    rows = []
    for split in ["train"] * 40 + ["dev"] * 6 + ["test"] * 8:
        for colour in WORDS[:3]:
            text = f"{colour} {draw.choice(WORDS[3:])} {draw.choice(WORDS[3:])}"
            rows.append({"input": text, "output": [colour, f"the {colour}"], "split": split})
    return load_rows(tmp_path, rows, name="colours", beams=2, max_target=6)


def test_a_tiny_model_learns_to_write_and_its_predictions_are_kept(tmp_path, tokenizer, copying):
    settings = FinetuneSettings(steps=150, learning_rate=5e-3, precision="no", max_length=16)
    start = {"tokenizer": tokenizer, "config": bart(tokenizer), "seeds": [0]}
    record = task_record(None, copying, settings=settings, folder=tmp_path / "out", **start)
    assert record["task_kind"] == "generation" and record["metric"] == "exact-match"
    # A search that stops as soon as two beams have ended scores .67 here, and one beam 1.
    assert record["score"] == 1.0 > record["majority"] == pytest.approx(1 / 3)
    assert set(record["others"]) == {"f1", "accuracy", "nats"} and 0 < record["others"]["nats"] < 1
    assert record["interval"] == [1.0, 1.0] and record["item_sd"] == 0
    lines = read_lines(tmp_path / "out/seed-0/predictions.jsonl")
    assert [line["input"] for line in lines] == [row.text for row in copying.splits["test"]]
    assert sum(line["score"] for line in lines) / len(lines) == pytest.approx(record["score"])
    assert {line["answer"] for line in lines} <= set(WORDS[:3]) and lines[0]["gold"] == [
        "red",
        "the red",
    ]
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out/seed-0/checkpoint")


def network(tokenizer, task, config=None):
    model = load_network(
        None, task, tokenizer, config=config or bart(tokenizer), max_length=16, seed=1
    )
    return task.kind.objective(model)


def test_answers_do_not_depend_on_the_batch_and_nats_are_those_of_the_first_answer(
    tokenizer, copying, monkeypatch
):
    objective, data = (
        network(tokenizer, copying),
        task_tensors(copying, tokenizer, max_length=16)["test"],
    )
    together = answers_of(objective, data)
    monkeypatch.setattr("maskwise.tasks.kinds.written.EVAL_TOKENS", 1)
    alone = answers_of(objective, data)
    assert together == alone
    assert [a.nats for a in together] == pytest.approx([a.nats for a in alone], rel=1e-4)
    row = copying.splits["test"][0]
    labels = tokenizer(row.answers[0], return_tensors="pt")["input_ids"]
    inputs = tokenizer(row.text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = objective.model(**inputs, labels=labels).logits
    # [CLS], always the same, does not count
    log = logits.log_softmax(-1)[0].gather(1, labels.T)[1:]
    assert together[0].nats == pytest.approx(-float(log.sum()), rel=1e-4)
    assert together[0].tokens == len(log)


def test_in_every_epoch_one_of_the_right_answers_is_learned(tmp_path, tokenizer):
    """By (seed, epoch, row): the same after a stop, different in the next epoch, equally often."""
    rows = [
        {"input": f"{first} {then}", "output": WORDS[: 1 + n % 3]}
        for first in WORDS
        for n, then in enumerate(WORDS[:6])
    ]
    task = load_rows(tmp_path, in_every_split(rows))
    data = task_tensors(task, tokenizer, max_length=16)
    train, size = data["train"], len(task.splits["train"])

    def learned(epoch, seed=3):
        """Texts and answers of an epoch, by a source that is made anew, as after a stop."""
        settings = FinetuneSettings(epochs=8, batch_size=size).training(task, seed=seed)
        (batch,) = TaskSource(train, settings).batches(epoch, rank=0, ranks=1)
        texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        return dict(zip(texts, tokenizer.convert_ids_to_tokens(batch["labels"][:, 1])))

    assert learned(0) == learned(0) != learned(0, seed=4)
    epochs = [learned(epoch) for epoch in range(20)]
    counts = Counter(epoch[row.text] for epoch in epochs for row in task.splits["train"])
    # Two thirds of the rows have "red" and others, so "red" is learned in (1 + 1/2 + 1/3) / 3.
    assert counts["red"] / counts.total() == pytest.approx(11 / 18, abs=0.05)
    assert counts["blue"] / counts.total() == pytest.approx(1 / 9, abs=0.03)
    for row in task.splits["train"]:
        assert {epoch[row.text] for epoch in epochs} == set(row.answers)
    labels = data["test"].batch(torch.arange(len(data["test"])))["labels"]
    assert set(tokenizer.convert_ids_to_tokens(labels[:, 1])) == {"red"}  # the first is read


def test_nats_as_the_metric(tmp_path, tokenizer, copying):
    task = load_task(f"{tmp_path}/colours.jsonl(beams=1, max_target=6, metric=nats)")
    assert task.majority is None and task.facts()["higher_is_better"] is False
    again = load_task(f"{tmp_path}/colours.jsonl(beams=2, max_target=6)")
    assert task != copying and again == copying
    settings = FinetuneSettings(steps=2, precision="no", max_length=16)
    start = {"tokenizer": tokenizer, "config": bart(tokenizer), "seed": 0}
    score = finetune(None, task, settings=settings, **start)
    items = [item for item, _ in score["counts"]]
    assert sum(items) / len(items) == pytest.approx(score["score"])
    # Three colours and [SEP]: 40 of each and 120 of [SEP] in 240, each of 160 tokens counted once
    # more.
    size = tokenizer.vocab_size + 240
    assert score["majority"] == pytest.approx((math.log(size / 41) + math.log(size / 121)) / 2)


def test_what_is_cut_is_counted_and_said(tmp_path, tokenizer):
    rows = [{"input": " ".join(WORDS * 2), "output": "red " * n} for n in (1, 2, 9)]
    task = load_rows(tmp_path, in_every_split(rows), max_target=6)
    settings = FinetuneSettings(steps=1, max_length=16)
    start = {"tokenizer": tokenizer, "config": bart(tokenizer), "seeds": [0]}
    said = "mine: train: texts .*; train: answers cut at 6 tokens: 1 of 3; dev"
    with pytest.warns(UserWarning, match=said):
        record = task_record(None, task, settings=settings, **start)
    assert "test: texts cut at 16 tokens: 3 of 3" in record["notes"]


def test_answers_end_with_a_token_also_if_the_tokenizer_writes_none(tmp_path, tokenizer):
    """Gemma's writes only <bos>. Models learned no end, and wrote on until ``max_target``."""
    rows = [{"input": f"red {n}", "output": "red " * n} for n in (1, 2, 9)]
    task = load_rows(tmp_path, in_every_split(rows), max_target=6)
    usual = task_tensors(task, tokenizer, max_length=16)["train"]
    opening = copy.deepcopy(tokenizer)
    cls, sep = (tokenizer.cls_token, tokenizer.cls_token_id), tokenizer.sep_token_id
    opening.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{cls[0]} $A", special_tokens=[cls]
    )
    found = task_tensors(task, opening, max_length=16)["train"]
    assert found.targets.ids.tolist() == usual.targets.ids.tolist()
    assert found.targets.starts.tolist() == usual.targets.starts.tolist()
    assert (found.targets.ids == sep).sum() == len(found.targets.lengths)
    assert found.notes()[0] == "answers cut at 6 tokens: 1 of 3"


def test_answers_that_a_tokenizer_cannot_write_are_said(tmp_path, tokenizer):
    rows = [{"input": f"red {n}", "output": "RED" if n % 4 else "red"} for n in range(80)]
    notes = {}
    # the tokenizer lower-cases, and so does SQuAD's exact match
    for metric in ("accuracy", "exact-match"):
        task = load_rows(tmp_path, rows, metric=metric)
        notes[metric] = task_tensors(task, tokenizer, max_length=16)["train"].notes()
    capitals = sum(row.answers == ["RED"] for row in task.splits["train"])
    assert notes["exact-match"] == [] and len(notes["accuracy"]) == 1
    assert notes["accuracy"][0].startswith("answers that the tokenizer cannot write")
    assert notes["accuracy"][0].endswith(f": {capitals} of {len(task.splits['train'])}")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"decoder_start_token_id": None}, "no start token for its decoder; set decoder_start"),
        ({"max_position_embeddings": 16}, "max_target of a task is more than .* positions; got 32"),
        ({"max_position_embeddings": 8}, "more than the model's positions"),
    ],
)
def test_models_that_cannot_write_are_refused_in_one_line(tmp_path, tokenizer, changes, line):
    rows = [{"input": f"red {n}", "output": "red"} for n in range(40)]
    task = load_rows(tmp_path, rows)
    wrong = BartConfig.from_dict(bart(tokenizer).to_dict() | changes)
    with pytest.raises(MaskwiseError, match=line):
        network(tokenizer, task, wrong)


def test_an_encoder_is_refused_before_the_first_task_is_trained(tmp_path, tokenizer, copying):
    config = new_config("bert", tokenizer, 32, hidden_size=16, num_attention_heads=2)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MaskwiseError, match="needs an encoder-decoder; got bert"):
        specs = ["banking77", f"{tmp_path}/colours.jsonl"]
        run_finetune(str(tmp_path), specs, [], seeds=1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_t5_writes_too(tokenizer, copying):
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    config = new_config("t5", tokenizer, 32, kind="encoder-decoder", **sizes)
    data = task_tensors(copying, tokenizer, max_length=16)["test"]
    answers = answers_of(network(tokenizer, copying, config), data)
    assert len(answers) == 24 and all(a.tokens == 2 for a in answers)


# The best state on dev
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "best"), [("exact-match", 0.9), ("nats", 0.1)])
def test_the_state_that_is_best_on_dev_is_kept(
    tmp_path, tokenizer, copying, monkeypatch, metric, best
):
    task = load_task(f"{tmp_path}/colours.jsonl(beams=1, max_target=6, metric='{metric}')")
    given = iter([0.5, best, 0.5, 0.6, 0.2])

    def dev_score(task, split, answers, metric=None):
        assert split == "dev", "test is not looked at before the end"
        return next(given)

    monkeypatch.setattr("maskwise.tasks.task.Task.finite_score", dev_score)
    objective, data = network(tokenizer, task), task_tensors(task, tokenizer, max_length=16)
    best = Best(9, every=1)
    best.configure(objective)
    _, weight = next(objective.named_parameters())
    for number in range(5):
        with torch.no_grad():
            weight.fill_(number)
        on_dev(task, objective, data["dev"], best, number + 1, ALONE)
        best.evaluated()
    best.load_best()
    assert weight.detach().flatten()[0] == 1.0 and best.step == 2


# The files in ../shared/data, as they are published
# ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "metric", "rows"),
    [
        ("qa/nq_open/nq_open_dev.jsonl.gz(card='nq-open')", "exact-match", 3610),
        ("qa/nq_open/efficientqa_dev.jsonl(card='nq-open')", "exact-match", 1800),
        ("qa/webquestions(card='webquestions')", "exact-match", 3778),
        ("qa/open_trivia_qa(card='open-trivia-qa')", "exact-match", 48349),
        ("qa/qed/qed-dev.jsonlines.gz(card='qed')", "exact-match", 1355),
        ("qa/squadshifts/new_wiki_v1.0.json.gz(card='squad-closed-book')", "exact-match", 7938),
        ("qa/xquad_en(card='squad-closed-book')", "exact-match", 1190),
        ("kilt_like/fever/paper_dev.jsonl.gz(card='fever')", "accuracy", 9999),
        ("kilt_like/begin_wow(card='begin-wow')", "f1", 1572),
        ("kilt_like/lama/trex_subset.jsonl.gz(card='lama-trex')", "accuracy", 22881),
        ("summarization/scitldr_a(card='scitldr')", "rouge-l", 3229),
        ("summarization/dialogsum(card='dialogsum')", "rouge-l", 1000),
        ("kilt_like/fever_symmetric(card='fever-symmetric')", "accuracy", 1420),
        ("summarization/wiki_split(card='wiki-split')", "rouge-l", 15000),
        ("summarization/legal_plain_english(card='plain-english')", "rouge-l", 446),
        ("wikinews_en(card='headlines')", "rouge-l", 19374),
    ],
)
def test_published_files_are_read_as_they_are(spec, metric, rows):
    shared = Path(__file__).parents[2] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("no ../shared/data")
    task = load_task(f"{shared}/{spec}")
    read = [row for split in ("train", "dev", "test") for row in task.splits[split]]
    assert (task.metric, len(read)) == (metric, rows)
    assert all(row.text.strip() and row.answers for row in read)
