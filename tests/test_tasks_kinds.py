"""Kinds of tasks: metrics against others', windows and choices, frozen encoders, bad input, one
call for all.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
)

from maskwise.base import errors
from maskwise.base.errors import MaskwiseError
from maskwise.models.loading import new_config
from maskwise.objectives import MultipleChoice, SpanQuestionAnswering
from maskwise.studies.single import run_finetune
from maskwise.tasks import (
    KINDS,
    FinetuneSettings,
    finetune,
    load_task,
    task_record,
    task_tensors,
)
from maskwise.tasks.columns import choices_of
from maskwise.tasks.finetuning import answers_of
from maskwise.tasks.kinds.classes import ScoredRow, TextRow, text_row
from maskwise.tasks.kinds.questions import MAX_ANSWER_TOKENS, best_spans
from maskwise.tasks.metrics import (
    LOST,
    METRICS,
    entity_f1,
    error_of_items,
    pearson,
    spearman,
)
from maskwise.tasks.tensors import embed, encode_texts
from maskwise.text import train_tokenizer
from tiny import in_every_split, load_rows, read_lines, write_lines

LEXICON = (
    "red green blue cat dog fox runs sleeps sits big small old in on under by park house river tree"
)
WORDS = LEXICON.split(" ")
TEXT = " ".join(WORDS) + " . ? is where the what colour animal mat a b c d e "
ARCHITECTURES = ("bert", "roberta", "distilbert", "electra", "modernbert")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT * 30], kind="wordpiece", vocab_size=160)


def tiny(tokenizer, architecture="bert", length=48):
    sizes = {
        "bert": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    names = {"distilbert": ("dim", "n_layers", "n_heads", "hidden_dim")}.get(
        architecture, sizes["bert"]
    )
    more = {"embedding_size": 32} if architecture == "electra" else {}
    return new_config(architecture, tokenizer, length, **dict(zip(names, (32, 2, 2, 64))), **more)


# Metrics
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_their_formulas(seed):
    draw = np.random.default_rng(seed)
    gold, answer = draw.integers(0, 6, 50) / 2.0, draw.normal(size=50).round(1)  # with many ties
    assert pearson(gold, answer) == pytest.approx(np.corrcoef(gold, answer)[0, 1])
    assert spearman(gold, answer) == pytest.approx(spearmanr(gold, answer).statistic)
    assert spearman(gold, np.full(50, 0.1)) == 0.0 == pearson(np.full(50, 0.3), answer)


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_classes_equal_those_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows, classes = draw.integers(5, 200), draw.integers(1, 7)
    right, given = draw.integers(-1, classes, rows), draw.integers(LOST, classes, rows)
    labels = np.setdiff1d(np.union1d(right, given), [LOST])
    theirs = f1_score(right, given, labels=labels, average="macro")
    assert METRICS["macro-f1"](right, given) == pytest.approx(theirs)
    assert METRICS["matthews"](right, given) == pytest.approx(matthews_corrcoef(right, given))
    right, given = draw.random((2, rows, 4)) < 0.4
    theirs = f1_score(right, given, average="micro", zero_division=0)
    assert METRICS["label-micro-f1"](right, given) == theirs
    occurring = np.flatnonzero(right.any(0) | given.any(0))
    theirs = f1_score(right, given, labels=occurring, average="macro")
    assert METRICS["label-macro-f1"](right, given) == theirs
    empty = np.zeros((3, 2), dtype=bool)
    assert METRICS["label-micro-f1"](empty, empty) == 0 == METRICS["label-macro-f1"](empty, empty)


@pytest.mark.parametrize("seed", range(5))
def test_entity_f1_is_seqevals(seed):
    draw = random.Random(seed)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    lengths = [draw.randint(1, 9) for _ in range(20)]
    gold, given = ([[draw.choice(tags) for _ in range(n)] for n in lengths] for _ in range(2))
    starts = np.cumsum([0, *lengths])[:-1]
    flat = [[tag for row in rows for tag in row] for rows in (gold, given)]
    assert entity_f1(*flat, starts) == pytest.approx(seqeval_f1(gold, given))


@pytest.mark.parametrize(
    ("answer", "rights", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos", "the Broncos"], 1, 1),
        ("The  Denver broncos!", ["Denver Broncos"], 1, 1),  # case, articles, punctuation, spaces
        ("Broncos of Denver", ["Denver Broncos"], 0, 0.8),  # 2 of 3 and 2 of 2 words
        ("Broncos", ["Denver Broncos", "Carolina Panthers"], 0, 2 / 3),  # the nearer one counts
        ("cat cat dog", ["cat dog dog"], 0, 2 / 3),  # shared words are counted, not only seen
        ("", ["a thing"], 0, 0),
        ("the", ["a"], 1, 0),  # nothing is left of both: as the official script has it
        ("anthem", ["them"], 0, 0),  # "an" goes only as a word
        ("U.S.", ["us"], 1, 1),  # punctuation vanishes, it is no space
        ("well-known", ["well known"], 0, 0),
        ("café", ["Café"], 1, 1),
    ],
)
def test_squad_scores_by_hand(answer, rights, exact, f1):
    assert METRICS["exact-match"]([rights], [answer]) == exact
    assert METRICS["f1"]([rights], [answer]) == pytest.approx(f1)


# Loading
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["ud-pos(train_rows=40)", "wikigold"])
def test_the_counts_of_rows_sum_to_the_score(spec):
    """The accuracy of words by row, and F1 of entities by sentence: the ratio of the sums."""
    task = load_task(spec)
    right = task.gold("test")
    answers = np.where(np.random.default_rng(0).random(len(right)) < 0.3, 0, right)
    counts = task.row_counts("test", answers)
    above, below = counts.sum(0)
    assert above / below == pytest.approx(task.score("test", answers))
    assert len(counts) == len(task.splits["test"])


def test_the_error_of_items_is_that_of_sentences_and_not_of_words():
    """Words of a sentence that are right or wrong together count as one; rows of one document
    likewise.
    """
    right = np.random.default_rng(0).integers(0, 2, 400)
    names = [str(n) for n in range(400)]
    alone = np.column_stack([right, np.ones(400)])
    # 8,000 words of 400 sentences say no more than 400 words
    for counts in (alone, 20 * alone):
        assert error_of_items(counts, names) == pytest.approx(0.5 / 20, rel=0.1)
    documents = alone[:100].repeat(4, axis=0)
    error = error_of_items(documents, [str(n // 4) for n in range(400)])
    assert error == pytest.approx(0.05, rel=0.1)
    assert error_of_items([[1, 1], [1, 1]], ["a", "b"]) == 0


def numbered(line, count=60):
    """Lines in which {n} is a number and {a|b} is a in even lines and b in odd ones."""
    choose = lambda n: lambda match: match[1].split("|")[n % 2]  # noqa: E731
    lines = (
        re.sub(r"\{([^{}]*\|[^{}]*)\}", choose(n), line).replace("{n}", str(n))
        for n in range(count)
    )
    return "".join(each + "\n" for each in lines)


STS = numbered("main\tMSR\t2012\t{n}\t{2.5|1.0}\tleft {n}\tright {n}", 12)
SICK = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
SICK += numbered("{n}\ta {n}\tb {n}\t{2.5|3.5}\t{NEUTRAL|ENTAILMENT}", 12)
COLA = numbered("gj04\t{0|1}\t{|*}\tsentence {n}")
MNLI = "sentence1\tsentence2\tgold_label\n" + numbered("a {n}\tb {n}\t{entailment|neutral}", 12)
FOLDERS = {
    "CoLA": {"train.tsv": COLA, "dev.tsv": COLA, "test.tsv": "index\tsentence\n0\thidden\n"},
    "stsb": {f"sts-{split}.csv": STS + STS[:-1] + "\tmore\n" for split in ("train", "dev", "test")},
    "sick": {f"SICK_{split}.txt": SICK for split in ("train", "trial", "test")},
    "MNLI": {
        "train.tsv": MNLI,
        "dev_matched.tsv": MNLI,
        "dev_mismatched.tsv": MNLI.replace("a ", "c "),
        "test_matched.tsv": "sentence1\tsentence2\na\tb\n",
    },
}


def test_known_folders_need_no_arguments(tmp_path):
    tasks = {}
    for name, files in FOLDERS.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        tasks[name] = load_task(tmp_path / name)
    cola, stsb = tasks["CoLA"], tasks["stsb"]
    assert (cola.kind.name, cola.metric) == ("sequence-classification", "matthews")
    assert cola.splits["test"][1] == TextRow("sentence 1", None, "1")
    assert cola.notes == ("no labelled test split: dev is test", "dev is 15 % of train")
    # GLUE's test.tsv has no labels, and a header that the other tables lack: it is not read.
    assert cola.facts()["notes"] == list(cola.notes) and not cola.skipped
    assert (stsb.kind.name, stsb.metric, len(stsb.splits["test"])) == ("similarity", "spearman", 24)
    assert stsb.splits["dev"][4] == ScoredRow("left 4", "right 4", 2.5)
    assert stsb.notes == () and "notes" not in stsb.facts() and stsb.majority == 0
    assert tasks["sick"].kind.name == "similarity" and tasks["sick"].splits["dev"][0].score == 2.5
    entailment = load_task(f"{tmp_path}/sick(label='entailment_judgment')")
    assert entailment.labels == ("ENTAILMENT", "NEUTRAL")
    assert {row.text[0] for row in tasks["MNLI"].splits["test"]} == {"a"}
    # The card serves other places, too, and a column by number takes precedence over it.
    table = (tmp_path / "CoLA" / "train.tsv").rename(tmp_path / "table.tsv")
    assert load_task(table, card="cola").columns == {"text": "sentence", "label": "label"}
    assert load_task(table, card="cola", text=4, label=2).columns == {"text": "4", "label": "2"}


def test_a_folder_with_the_name_of_a_card_but_other_files_is_an_ordinary_folder(tmp_path):
    (tmp_path / "cola").mkdir()
    rows = "text,label\n" + numbered("text {n},{a|b}")
    for split in ("train", "dev", "test"):
        (tmp_path / "cola" / f"{split}.csv").write_text(rows)
    task = load_task(tmp_path / "cola")
    assert (task.labels, task.metric) == (("a", "b"), "accuracy")


def test_columns_by_place_and_rows_by_value(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"{2012 + i % 2}\tyes\ttext {i}\t{i % 3}\n" for i in range(90)))
    task = load_task(f"{path}(text=3, label=4, where='1=2013')")
    assert task.labels == ("0", "1", "2") and sum(map(len, task.splits.values())) == 45


def test_every_setting_that_names_a_column_reads_nested_ones(tmp_path):
    rows = []
    for i in range(240):
        meta = {"year": 2010 + i % 2, "author": f"a{i % 60}", "checked": i % 3 == 0}
        rows.append({"review": {"text": f"text {i}"}, "meta": meta, "label": "ab"[i % 4 // 2]})
    options = {"text": "body|review.text", "label": "label"}
    task = load_rows(tmp_path, rows, **options, where="meta.year=2011", split_by="meta.author")
    texts = [{row.text for row in part} for part in task.splits.values()]
    assert set.union(*texts) == {f"text {i}" for i in range(1, 240, 2)}
    authors = [{int(text.split()[1]) % 60 for text in part} for part in texts]
    assert sum(map(len, authors)) == 30
    for value in ("true", "True"):
        checked = load_rows(tmp_path, rows, **options, where=f"meta.checked={value}")
        assert sum(map(len, checked.splits.values())) == 80
    filled = load_rows(tmp_path, rows, text="{review.text} of {meta.writer|meta.author}")
    found = {row.text for part in filled.splits.values() for row in part}
    assert found == {f"text {i} of a{i % 60}" for i in range(240)}
    for wrong in ({"where": "meta.yaer=2011"}, {"split_by": "meta.yaer"}, {"text": "{meta.yaer}"}):
        with pytest.raises(
            MaskwiseError, match=r"'meta.yaer'; allowed: .*meta.year.* did you mean"
        ):
            load_rows(tmp_path, rows, **options | wrong)
    with pytest.raises(MaskwiseError, match="where must be 'column=value'"):
        load_rows(tmp_path, rows, **options, where=["meta.year=2011"])


def test_groups_of_a_table_without_a_header_are_named_by_number(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"text {i}\t{'ab'[i % 2]}\ta{i % 40}\n" for i in range(200)))
    tasks = [load_task(path, text=1, label=2, split_by=column) for column in ("3", 3)]
    assert tasks[0].fingerprint == tasks[1].fingerprint


@pytest.mark.parametrize(
    ("record", "label"),
    [
        ({"choices": ["x", "y", "z"], "answer": "y"}, 1),
        ({"choices": ["x", "y", "z"], "answer": 2}, 2),
        ({"options": ["x", "y"], "answer": "B"}, 1),
        ({"choices": ["1", "0"], "answer": "0"}, 1),  # the text before the place
        ({"choices": ["1", "0"], "answer": 0}, 0),  # a number is a place
        ({"choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "B"}, 1),
        ({"ending0": "x", "ending1": "y", "ending10": "k", "ending2": "z", "label": "3"}, 3),
        ({"choice1": "x", "choice2": "y", "label": 0}, 0),
    ],
)
def test_choices_in_their_layouts(tmp_path, record, label):
    task = load_rows(tmp_path, [{"question": f"q {i}", **record} for i in range(40)])
    assert task.kind.name == "multiple-choice" and task.splits["test"][0].label == label
    assert task.majority == pytest.approx(1 / len(task.splits["test"][0].choices))


PLAIN = {"choices": ["x", "y", "z"]}
COLUMNS = {"option1": "x", "option2": "y", "option3": "z"}
LETTERS = {"choices": {"label": ["A", "B", "C"], "text": ["x", "y", "z"]}}
NUMBERS = {"choices": {"label": ["1", "2", "3"], "text": ["x", "y", "z"]}}


def choice_rows(answers: list[Any], choices: dict[str, Any]) -> list[dict[str, Any]]:
    """Return questions with the answers in turn."""
    return [
        {"question": f"q {i}", **choices, "answer": answers[i % len(answers)]} for i in range(120)
    ]


@pytest.mark.parametrize(
    ("answers", "choices", "labels", "noted"),
    [
        ([0, 1, 2], PLAIN, [0, 1, 2], ()),
        ([1, 2, 3], PLAIN, [0, 1, 2], ("none is 0", "1 to 3", "number 1")),
        (["1", "2", "3"], LETTERS, [0, 1, 2], ("none is 0", "number 1")),
        # The last choice is never right, so the answers do not say where they begin.
        ([1, 2], PLAIN, [1, 2], ("none is 0", "1 to 2", "number 0")),
        (["1", "2"], COLUMNS, [0, 1], ("none is 0", "number 1")),
        (["1", "3"], COLUMNS, [0, 2], ("none is 0", "number 1")),
        (["0", "1", "2"], COLUMNS, [0, 1, 2], ()),  # COPA
        (["1", "2"], {"ending0": "x", "ending1": "y", "ending2": "z"}, [1, 2], ("number 0",)),
        # Names, texts and letters are no numbers of places.
        (["2", "3"], NUMBERS, [1, 2], ()),
        (["3", "4"], {"choices": ["4", "3", "2"]}, [1, 0], ()),
        (["A", "C"], COLUMNS, [0, 2], ()),
    ],
)
def test_choices_are_numbered_from_where_all_answers_say(tmp_path, answers, choices, labels, noted):
    rows = choice_rows(answers, choices)
    task = load_rows(tmp_path, rows)
    found = {int(row.question[2:]): row.label for part in task.splits.values() for row in part}
    assert found == {i: labels[i % len(labels)] for i in range(120)}
    remarks = "; ".join(task.remarks)
    assert all(fact in remarks for fact in noted) and ("none is 0" in remarks) == bool(noted)
    # A model that writes the answer learns the text of the same choice.
    texts = choices_of(rows[0])[1]
    written = load_rows(tmp_path, rows, kind="generation", text="{question}", label="answer")
    found = {int(row.text[2:]): row.answers for part in written.splits.values() for row in part}
    assert found == {i: [texts[labels[i % len(labels)]]] for i in range(120)}
    assert all(fact in "; ".join(written.remarks) for fact in noted)
    # A part of the rows, and missing answers, do not change how the others are read.
    more = [{**row, "part": answer} for row in rows for answer in [str(row["answer"])]]
    more += [{**rows[0], "question": "q 0 again", "answer": -1, "part": "none"}]
    some = load_rows(tmp_path, more, missing=-1, where=f"part={answers[0]}")
    found = {row.label for part in some.splits.values() for row in part}
    assert found == {labels[0]}


def test_squad_json_and_the_hubs_columns_are_the_same_task(tmp_path):
    paragraphs, flat = [], []
    for i in range(60):
        context = f"the cat {i} sits in park {i} ."
        qas = []
        for question, text in (("where ?", f"park {i}"), ("what ?", "cat")):
            start = context.index(text)
            asked = {"question": question, "answers": [{"text": text, "answer_start": start}]}
            answers = {"text": [text], "answer_start": [start]}
            qas.append(asked)
            flat.append({"context": context, "question": question, "answers": answers})
        paragraphs.append({"context": context, "qas": qas})
    (tmp_path / "s.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}, indent=1))
    task = load_task(tmp_path / "s.json")
    columns = load_rows(tmp_path, flat)
    assert task.fingerprint == columns.fingerprint and task.kind.name == "question-answering"
    assert task.metric == "f1" and task.majority == pytest.approx(0.5)  # "cat"
    train, dev, test = ({row.context for row in part} for part in task.splits.values())
    assert not (train & dev or train & test or dev & test)


def test_the_start_of_an_answer_that_is_off_is_moved_to_the_nearest_place(tmp_path):
    answers = [{"text": "dog", "answer_start": 11}]
    row = {"context": "cat dog cat dog x", "question": "q", "answers": answers}
    assert load_rows(tmp_path, in_every_split([row])).splits["test"][0].starts == [12]
    # Answers without starts are sought. They were lost.
    row["answers"] = {"text": ["dog", "x", "cat"], "answer_start": [12]}
    found = load_rows(tmp_path, in_every_split([row]), name="fewer").splits["test"][0]
    assert found.answers == ["dog", "x", "cat"] and found.starts == [12, 16, 0]


# Windows and choices
# ----------------------------------------------------------------------------


def questions(count, length, seed=0):
    """Long contexts with one colour in them, which is the answer."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = draw.choices(WORDS[3:], k=length)
        colour, place = draw.choice(WORDS[:3]), draw.randrange(length)
        words[place] = colour
        context = f"{' '.join(words)} {number}"
        rows.append({"context": context, "question": "what colour ?", "answers": [colour]})
    return rows


@pytest.mark.parametrize("version", ["0.23.1", "0.23.2"])
def test_windows_are_refused_where_tokenizers_would_lose_some(
    tmp_path, version, monkeypatch, tokenizer
):
    monkeypatch.setattr(errors, "_version", {"tokenizers": version}.get)
    task = load_rows(tmp_path, questions(60, 80))
    with pytest.raises(MaskwiseError, match=f"got {version}; allowed: 0.23.3 or newer; pip"):
        task_tensors(task, tokenizer, max_length=64)
    whole = task_tensors(task, tokenizer, max_length=300)["train"]
    assert len(whole) == len(task.splits["train"])


@pytest.mark.pinned
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("max_length", [12, 20, 64, 300])
def test_windows_hold_every_answer(tmp_path, kind, max_length):
    task = load_rows(tmp_path, questions(60, 80))
    backend = train_tokenizer([TEXT * 30], kind=kind, vocab_size=320)
    data = task_tensors(task, backend, max_length=max_length)["train"]
    rows = task.splits["train"]
    assert data.lost == 0 and int(data.lengths.max()) <= max_length
    assert (len(data) > len(rows)) == (max_length < 100)
    marked = data.targets.any(1)
    assert set(data.question[marked].tolist()) == set(range(len(rows)))
    seen = [set() for _ in rows]
    for window, question in enumerate(data.question.tolist()):
        row, start = rows[question], data.flat.starts[window]
        spans = data.span[start : data.flat.starts[window + 1]].tolist()
        if marked[window]:
            first, last = data.targets[window]
            assert row.context[spans[first][0] : spans[last][1]].strip() == row.answers[0]
        for begin, end in spans:
            seen[question] |= set(range(begin, end))
    for row, places in zip(rows, seen):  # all windows of a question together show its context
        assert {place for place, letter in enumerate(row.context) if letter != " "} <= places


@pytest.mark.pinned
def test_a_model_that_knows_finds_the_answer_in_the_right_window(tmp_path, tokenizer):
    task = load_rows(tmp_path, questions(60, 80))
    data = task_tensors(task, tokenizer, max_length=24)["test"]
    colours = torch.tensor([tokenizer.convert_tokens_to_ids(word) for word in WORDS[:3]])

    class Knows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.anything = torch.nn.Parameter(torch.zeros(1))  # a model has a device

        def logits(self, batch):
            hit = torch.isin(batch["input_ids"], colours).float()
            return torch.stack([hit, hit], 1)

    found = answers_of(Knows(), data)
    assert found == [row.answers[0] for row in task.splits["test"]]
    assert task.score("test", found) == 1.0


def test_the_best_span_is_that_of_trying_all():
    draw = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 5, 50, generator=draw)
    end[:, 0] = 9.0  # an end before every start but one
    near = [(i, j) for i in range(50) for j in range(i, min(50, i + MAX_ANSWER_TOKENS))]
    for row, (value, *span) in enumerate(zip(*best_spans(start, end))):
        tried = {(i, j): float(start[row, i] + end[row, j]) for i, j in near}
        assert max(tried, key=tried.__getitem__) == tuple(map(int, span))
        assert float(value) == pytest.approx(max(tried.values()))


def test_question_loss_is_the_models_own(tmp_path, tokenizer):
    task = load_rows(tmp_path, questions(40, 30))
    data = task_tensors(task, tokenizer, max_length=40)["train"]
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(tiny(tokenizer)).eval()
    rows = (data.lengths == data.lengths.max()).nonzero().flatten()[:6]  # theirs counts padding
    batch = data.batch(rows)
    total, count, *_ = SpanQuestionAnswering(model)(batch)
    start, end = batch.pop("labels").T
    theirs = model(**batch, start_positions=start, end_positions=end).loss
    torch.testing.assert_close(total / count, theirs)


def test_choice_loss_is_the_models_own_and_choices_may_differ_in_number(tmp_path, tokenizer):
    rows = [
        {"question": f"what {n} is red", "choices": WORDS[: 2 + n % 3], "answer": n % 2}
        for n in range(4)
    ]
    task = load_rows(tmp_path, in_every_split(rows))
    data = task_tensors(task, tokenizer, max_length=16)["train"]
    torch.manual_seed(0)
    model = AutoModelForMultipleChoice.from_config(tiny(tokenizer)).eval()
    total, count, *_ = MultipleChoice(model)(data.batch(torch.arange(4)))
    expected = 0.0
    for row in range(4):
        batch = data.batch(torch.tensor([row]))
        del batch["choices"]
        labels = batch.pop("labels")
        inputs = {name: value.unsqueeze(0) for name, value in batch.items()}
        expected += model(**inputs, labels=labels).loss
    torch.testing.assert_close(total, expected)
    assert int(count) == 4 and answers_of(MultipleChoice(model), data).shape == (4,)


# Learning
# ----------------------------------------------------------------------------


def made_up(kind, folder, count=160, seed=0):
    """Rows that a model of two layers learns in seconds."""
    draw = random.Random(seed)
    rows = []
    for n in range(count):
        colour, other = draw.choice(WORDS[:3]), WORDS[n % 2]
        noise = draw.choices(WORDS[3:], k=4)
        text = " ".join([*noise, colour, draw.choice(WORDS[3:])])
        reds = " ".join(["red"] * (n % 4) + noise[n % 4 :])
        words = draw.sample(WORDS, 8)
        first, shifted = " ".join(words[:4]), " ".join(words[4 - n % 5 : 8 - n % 5])
        classified = {"text": text, "label": colour}
        tagged = draw.choices(WORDS, k=6)
        choices = [draw.choice(WORDS[3:]) for _ in range(3)]
        choices[n % 3] = colour
        rows.append(
            {
                "sequence-classification": classified,
                "sentence-embedding": classified,
                # the second text decides
                "pairs": {
                    "sentence1": " ".join(noise[:3]),
                    "sentence2": f"the {colour}",
                    "label": colour,
                },
                "token-classification": {
                    "tokens": tagged,
                    "tags": ["B-C" if word in WORDS[:3] else "O" for word in tagged],
                },
                "similarity": {"sentence1": first, "sentence2": reds, "score": 1.5 + n % 4},
                "regression": {"text": reds, "score": 1.5 + n % 4},
                "zero-shot-similarity": {
                    "sentence1": first,
                    "sentence2": shifted,
                    "score": float(n % 5),
                },
                "cloze-qa": {"question": text, "answers": [colour]},
                "multiple-choice": {
                    "question": f"what colour is {n}",
                    "choices": choices,
                    "answer": n % 3,
                },
                "multi-label": {"text": f"{text} {other}", "labels": sorted({colour, other})},
                "retrieval": {"query": first, "passage": " ".join(words[2:6])},
                "question-answering": questions(1, 12, seed=seed * 1000 + n)[0],
            }[kind]
        )
    return write_lines(folder / f"{kind}.jsonl", [{**row, "id": n} for n, row in enumerate(rows)])


def test_a_text_of_several_queries_and_texts_of_one_query_are_no_rivals(tmp_path):
    """A perfect model had mrr .33 if three questions had each text."""
    rows = [{"query": f"q {n // 2} of {n % 2}", "passage": f"text {n // 4}"} for n in range(40)]
    rows += [{"query": "q 0 of 0", "passage": "text 9"}] * 2
    task = load_rows(tmp_path, rows, kind="retrieval")
    test = task.splits["test"]
    places = [int(row.passage.split()[1]) for row in test]
    perfect = torch.eye(10)[places].repeat_interleave(2, dim=0)
    # The last two rows have a query of text 0, whose embedding is nearer to text 0.
    perfect[[-4, -2]] = perfect[0].clone()
    ranks = task.kind.answers(task, {"test": perfect})["test"]
    assert ranks[:-2].tolist() == [1] * 40 and task.score("test", ranks[:-2]) == 1
    # Text 9 ties with eight wrong texts, and comes last of them. Text 0 is no rival.
    assert ranks[-2:].tolist() == [9, 9]
    rng = np.random.default_rng(0)
    for metric in ("mrr", "recall-at-1"):
        random = replace(task, metric=metric)
        drawn = []
        for _ in range(60):
            vectors = torch.from_numpy(rng.normal(size=(2 * len(test), 4)))
            answers = random.kind.answers(random, {"test": vectors})["test"]
            drawn.append(random.score("test", answers))
        assert np.mean(drawn) == pytest.approx(random.majority, abs=0.02)


@pytest.mark.parametrize("metric", ["label-micro-f1", "label-macro-f1"])
@pytest.mark.parametrize("shares", [(0.4, 0.4, 0.4, 0.4), (0.9, 0.3, 0.1, 0.02), (0.3, 0.2, 0, 0)])
def test_no_labels_for_all_rows_score_better_than_guessing(tmp_path, metric, shares):
    """Guessing gave the labels of most rows, or one label, though more of them scored higher."""
    drawn = np.random.default_rng(1).random((300, 4)) < shares
    rows = [
        {"text": f"text {n}", "labels": [*np.array([*"abcd"])[row]]} for n, row in enumerate(drawn)
    ]
    # Train, dev and test have equal rows, so that the best answer in train is the best in test.
    task = load_rows(tmp_path, in_every_split(rows), metric=metric)
    scores = []
    for number in range(2 ** len(task.labels)):
        answer = [number >> label & 1 for label in range(len(task.labels))]
        scores.append(task.score("test", np.tile(answer, (task.test_items, 1))))
    assert task.majority == pytest.approx(max(scores))


FLOORS = {
    "sequence-classification": 0.9,
    "token-classification": 0.9,
    "question-answering": 0.8,
    "multiple-choice": 0.8,
    "cloze-qa": 0.9,
    "similarity": 0.5,
    "zero-shot-similarity": 0.4,
    "sentence-embedding": 0.7,
    "pairs": 0.8,
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "multiple-choice")) for kind in FLOORS],
)
def test_every_kind_learns_and_repeats(tmp_path, tokenizer, kind):
    path = made_up(kind, tmp_path, count=160 if KINDS.get(kind) and KINDS[kind].frozen else 300)
    task = load_task(path, kind=kind if kind in KINDS else None)
    settings = FinetuneSettings(
        steps=160, batch_size=16, learning_rate=3e-3, precision="no", max_length=40
    )
    same = {"tokenizer": tokenizer, "settings": settings, "config": tiny(tokenizer), "seed": 2}
    found = finetune(None, task, **same)
    assert found["score"] > FLOORS[kind] > found["majority"] + 0.2, found
    assert found["steps"] == (0 if task.frozen else 160) and found["test_items"] == task.test_items
    if task.frozen or kind == "multiple-choice":
        again = finetune(None, task, **same)
        assert {**again, "seconds": 0} == {**found, "seconds": 0}


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "modernbert"))
        for name in ARCHITECTURES
    ],
)
def test_every_architecture_runs_every_kind(tmp_path, tokenizer, architecture):
    AutoModel.from_config(tiny(tokenizer, architecture)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    kinds = [kind for kind in KINDS if kind != "generation"]  # it has tests of its own
    specs = [f"{made_up(kind, tmp_path, count=60)}(kind='{kind}')" for kind in kinds]
    settings = ["steps=2", "batch_size=4", "precision=no", "max_length=32"]
    records = run_finetune(str(tmp_path / "model"), specs, settings, seeds=2, out=tmp_path / "out")
    assert [record["task_kind"] for record in records] == kinds
    assert read_lines(tmp_path / "out/records.jsonl") == records
    for record in records:
        frozen = KINDS[record["task_kind"]].frozen
        assert len(record["fine_tuning"]) == (1 if frozen else 2) and -1 <= record["score"] <= 1
        checkpoint = tmp_path / "out" / record["task"] / "seed-1/checkpoint/config.json"
        assert checkpoint.is_file() != frozen
    assert {"exact-match"} == set(records[kinds.index("question-answering")]["others"])
    config = AutoConfig.from_pretrained(tmp_path / "out/question-answering/seed-0/checkpoint")
    assert config.architectures[0].endswith("ForQuestionAnswering")


def test_all_tasks_are_checked_before_the_first_is_trained(tmp_path, tokenizer):
    AutoModel.from_config(tiny(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    one = made_up("sequence-classification", tmp_path, count=60)
    asked = made_up("question-answering", tmp_path, count=60)
    for other, says in (
        (f"{one}(train_rows=10)", "two tasks are called 'sequence-classification'"),
        (str(asked), "no room for text; got 6; allowed: ≥ 11"),
    ):
        with pytest.raises(MaskwiseError, match=says):
            specs = [str(one), other]
            run_finetune(
                str(tmp_path / "model"), specs, ["max_length=6"], seeds=1, out=tmp_path / "out"
            )
        assert not (tmp_path / "out").exists()


# A new kind is one ``TaskKind`` and one entry of the table


def shouted(record, columns, where):
    row = text_row(record, columns, where)
    return replace(row, text=row.text.upper())


def shouting(shift: int = 0):
    """Classifies texts in capital letters."""
    settings = {"shift": shift}
    kind = {"name": "shouting", "row": shouted, "settings": settings, "make": shouting}
    return replace(KINDS["sequence-classification"], **kind)


def test_a_new_kind_is_one_value(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(KINDS, "shouting", shouting())
    rows = [{"text": f"the {WORDS[n % 3]} {n}", "label": WORDS[n % 3]} for n in range(90)]
    task = load_rows(tmp_path, rows, kind="shouting")
    assert all(row.text.isupper() for row in task.splits["test"])
    settings = FinetuneSettings(steps=2, precision="no", max_length=16)
    fixed = {"tokenizer": tokenizer, "settings": settings, "config": tiny(tokenizer)}
    record = task_record(None, task, seeds=range(1), **fixed)
    assert record["task_kind"] == "shouting" and record["metric"] == "accuracy"
    shifted = load_task(f"{tmp_path / 'mine.jsonl'}(kind=shouting, shift=2)")
    assert shifted.kind.settings == {"shift": 2} and shifted.fingerprint != task.fingerprint
    with pytest.raises(MaskwiseError, match=r"argument of generation.*shift"):
        load_rows(tmp_path, rows, kind="generation", shift=2)


# Frozen
# ----------------------------------------------------------------------------


def test_embeddings_are_means_of_real_tokens_whatever_the_batch(tokenizer):
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny(tokenizer)).eval()
    texts = ["the cat sits", "red", "a big old dog runs in the park by the river"]
    encoded = encode_texts(texts, tokenizer, max_length=40)
    together = embed(model, encoded)
    for text, vector in zip(texts, together):
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(vector, states.mean(0), rtol=1e-4, atol=1e-5)
        alone = encode_texts([text], tokenizer, max_length=40)
        first = embed(model, alone, pooling="cls")[0]
        torch.testing.assert_close(first, states[0], rtol=1e-4, atol=1e-5)
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(MaskwiseError, match="embeddings are not finite numbers"):
        embed(model, encoded)


@pytest.mark.parametrize("knows", ["mean", "cls"])
def test_dev_chooses_the_pooling_that_tells_classes_apart(tokenizer, tmp_path, monkeypatch, knows):
    splits = ["train"] * 40 + ["dev"] * 20 + ["test"] * 20
    rows = [
        {"text": f"the {'cat' if n % 2 else 'dog'} {n}", "label": n % 2, "split": split}
        for n, split in enumerate(splits)
    ]
    task = load_rows(tmp_path, rows, kind="sentence-embedding", pooling="dev")

    def embedded(network, flat, *, pooling):
        texts = [tokenizer.decode(ids) for ids in flat.ids.split(flat.lengths.tolist())]
        vectors = torch.randn(len(texts), 4, generator=torch.Generator().manual_seed(len(texts)))
        if pooling == knows:
            vectors[:, 0] = torch.tensor([8.0 if "cat" in text else -8.0 for text in texts])
        return vectors

    monkeypatch.setattr("maskwise.tasks.finetuning.embed", embedded)
    fixed = {"tokenizer": tokenizer, "config": tiny(tokenizer), "seed": 0}
    score = finetune(None, task, settings=FinetuneSettings(max_length=16), **fixed)
    assert score["score"] == 1.0
    assert score["notes"][0].startswith(f"pooling {knows}, chosen on dev (")


def test_zero_shot_needs_no_train_rows_and_pooling_by_dev_needs_dev_rows(tmp_path):
    rows = [{"s1": f"a {i}", "s2": "b", "score": i % 5} for i in range(20)]
    given = {"kind": "zero-shot-similarity"}
    task = load_rows(tmp_path, rows, **given)
    assert (task.name, task.test_items) == ("mine-zero-shot", 20)
    assert task.splits["train"] == () and task.notes == ("test is all rows",)
    assert load_rows(tmp_path, rows, **given, pooling="cls").fingerprint != task.fingerprint
    tested = load_rows(tmp_path, [{**row, "split": "test"} for row in rows], **given)
    assert tested == task and tested.notes == ()
    with pytest.raises(MaskwiseError, match="needs dev rows; got none; give it a dev split"):
        load_rows(tmp_path, rows, **given, pooling="dev")
