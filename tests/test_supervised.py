"""Policies that learn from labels: what is labelled, what is learned, and the command that does
both.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from maskwise.base import errors
from maskwise.base.errors import MaskwiseError
from maskwise.learning.card import measures_of
from maskwise.learning.examples import contexts_of, find_contexts, occurrences
from maskwise.learning.gradients import values_of
from maskwise.learning.labels import (
    NOT_IN_CONTEXT,
    Marked,
    answer_labels,
    labels_of,
)
from maskwise.learning.meta import learn_policy
from maskwise.learning.scorer import PolicyModel
from maskwise.learning.supervised import (
    CUT,
    LONG,
    FindSpans,
    LabelledWindows,
    learn_supervised,
    with_batches_of,
)
from maskwise.recipe import read_recipe
from maskwise.studies.checks import check_names
from maskwise.studies.work import lesson_of
from maskwise.tasks import CARDS, load_task
from maskwise.text import train_tokenizer
from maskwise.training import TrainingSettings
from maskwise.training.engine import Engine
from tiny import WORDS, maskwise, read_lines, unversioned, write_lines

NAMES, JOBS = WORDS[:30], WORDS[30:40]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS) + " is a . ,"] * 9, vocab_size=300)


def biographies(count: int) -> list[dict]:
    """Contexts in which the answer stands behind "is a": one or two words."""
    draw, rows = random.Random(0), []
    for number in range(count):
        name, job = draw.choice(NAMES), " ".join(draw.sample(JOBS, draw.choice((1, 2))))
        before, after = (" ".join(draw.choices(WORDS[40:], k=4)) for _ in range(2))
        row = {"context": f"{before}. {name} is a {job}. {after}.", "question": f"what is {name}"}
        split = ("train", "train", "train", "dev", "test")[number % 5]
        rows.append({**row, "answers": [job], "split": split})
    return rows


def shown(marked: Marked) -> list[str]:
    """The labelled parts of a text."""
    return [marked.text[start:end] for start, end in marked.spans]


# What is labelled


def test_all_occurrences_of_all_answers_are_labelled_and_answers_that_are_not_there_are_counted():
    counts: Counter[str] = Counter()
    text = "Bo met Ada. Adam met Bo-Bo."
    pairs = [(text, ["Ada", "ADA"]), (text, ["bo"]), (text, ["Eve"])]
    pairs += [("x (C++) y", ["C++"]), ("x", ["", " "])]
    first, second = answer_labels(pairs, counts)
    assert shown(first) == ["Bo", "Ada", "Bo", "Bo"] and shown(second) == ["C++"]
    assert first.questions == (("Ada", "ADA"), ("bo",))
    assert counts == {NOT_IN_CONTEXT: 2}


def test_answers_are_words_in_every_script():
    """A vowel sign continues a word, and Chinese has no spaces between words."""
    assert occurrences("कल", "कला सुंदर है") == []
    assert occurrences("Zoe", "Zoe\u0301 Smith") == []
    assert occurrences("北京", "我住在北京市。") == [(3, 5)]
    assert occurrences("Art of Art", "Bart of Art of Art") == [(8, 18)]
    assert occurrences("a", "b-a_a") and occurrences("", "don't") == []
    assert find_contexts(["北京在哪里"], [["北京"]], ["我住在北京市。", "上海"]) == [[0]]


def asked(folder, count: int, **more) -> tuple[str, list[dict]]:
    """A file without splits, with a question about each of so many contexts; and its rows."""
    rows = []
    for number, row in enumerate(biographies(count)):
        fields = {name: value(number) for name, value in more.items()}
        rows.append({**row, "question": f"q{number}", **fields})
        del rows[-1]["split"]
    write_lines(folder / "qa.jsonl", rows)
    return str(folder / "qa.jsonl"), rows


@pytest.mark.parametrize("kind", ["question-answering", "generation"])
def test_no_policy_learns_from_what_a_task_of_the_same_file_is_tested_by(kind, tmp_path):
    """Each cut the file by a hash of its own: 26 of 34 contexts of the task's test were in the
    policy's train.
    """
    file, rows = asked(tmp_path, 200)
    task = load_task(file, kind=kind)
    context = {row["question"]: row["context"] for row in rows}
    for split, marked in labels_of(file).splits.items():
        questions = [row.texts[-1] for row in task.splits[split]]
        assert {each.text for each in marked} == {context[question] for question in questions}
        assert len(marked) > 15


def test_a_part_of_a_file_is_cut_as_the_whole_file_is(tmp_path):
    """By article, of which the whole has forty and the part ten; rows whose article has no title go
    by context.
    """
    title = lambda n: f"t{n // 4}" if n % 8 else None  # noqa: E731
    file, _ = asked(tmp_path, 160, article_title=title, lang=lambda n: "xyzw"[n // 4 % 4])
    labels = labels_of(file)
    task = load_task(file, kind="question-answering", where="lang=x")
    for split, part in task.splits.items():
        texts = {each.text for each in labels.splits[split]}
        assert part and {row.context for row in part} <= texts and len(texts) < 130


@pytest.mark.slow
def test_many_questions_about_few_texts_are_questions(tmp_path):
    rows = [
        {"question": f"what is {n}?", "answer": f"w{n}", "split": ("train", "dev", "test")[n % 3]}
        for n in range(900)
    ]
    write_lines(tmp_path / "qa.jsonl", rows)
    texts = [" ".join(f"{n} is w{n}." for n in range(900)), "none"]
    labels = labels_of(f"{tmp_path / 'qa.jsonl'}(kind='generation')", texts=texts)
    assert len(labels.splits["train"]) == 1
    with pytest.raises(MaskwiseError, match=r"can be labelled.*without an answer in any text"):
        labels_of(f"{tmp_path / 'qa.jsonl'}(kind='generation')", texts=["nothing"])


def test_a_policy_with_labels_in_train_alone_is_evaluated_on_an_unseen_part_of_it(tmp_path):
    file, rows = asked(tmp_path, 60)
    (tmp_path / "only").mkdir()
    Path(file).rename(tmp_path / "only" / "train.jsonl")
    splits = labels_of(str(tmp_path / "only")).splits
    learned, judged = ({each.text for each in splits[name]} for name in ("train", "test"))
    assert len(learned) > 30 and judged and not learned & judged
    # as benchmarks publish it
    write_lines(tmp_path / "only" / "test.jsonl", [{**row, "answers": []} for row in rows[:9]])
    assert labels_of(str(tmp_path / "only")).splits == splits


@pytest.mark.parametrize(
    "arguments",
    [
        "kind='question-answering'",
        "kind='generation'",
        "kind='generation', metric=nats, max_target=12",
        "kind='cloze-qa'",
        "kind='generation', text='{question} {context}'",
        "kind='generation', text='question', label='answers', train_rows=1000",
    ],
)
def test_a_task_with_arguments_brings_its_contexts(tmp_path, arguments):
    """They were thrown away, and looked for in the corpus."""
    file, _ = asked(tmp_path, 60)
    # Every question and every job is in this text, so a search of the corpus would find it.
    elsewhere = [" ".join([*JOBS, *(f"q{n}" for n in range(60))]), "a text of no use"]
    labels = labels_of(f"{file}({arguments})", texts=elsewhere)
    assert labels.splits == labels_of(file).splits
    task = load_task(f"{file}({arguments})")
    for split, rows in task.splits.items():
        _, contexts = contexts_of(rows, elsewhere)
        assert not set(contexts) & set(elsewhere), split


def test_answers_and_contexts_need_no_questions(tmp_path):
    file, rows = asked(tmp_path, 60)
    whole = labels_of(file)
    write_lines(tmp_path / "qa.jsonl", [{**row, "question": None} for row in rows])
    assert labels_of(file).splits == whole.splits
    write_lines(
        tmp_path / "qa.jsonl", [{k: row[k] for k in ("context", "answers")} for row in rows]
    )
    assert labels_of(file).splits == whole.splits


def test_answers_that_are_not_in_their_context_are_left_out_one_by_one(tmp_path):
    file, rows = asked(tmp_path, 60)
    whole = labels_of(file)
    more = [{**row, "answers": [*row["answers"], "an alias"]} for row in rows]
    write_lines(tmp_path / "qa.jsonl", more)
    assert [m.spans for m in labels_of(file).marked("train")] == [
        m.spans for m in whole.marked("train")
    ]


def test_answers_that_stand_in_no_context_are_refused(tmp_path):
    row = {"context": "x", "question": "?", "answers": ["y"]}
    rows = [{**row, "split": split} for split in ("train", "dev", "test")]
    write_lines(tmp_path / "qa.jsonl", rows)
    says = r"3 × answers that do not occur in their context.*learning.method: meta"
    with pytest.raises(MaskwiseError, match=says):
        labels_of(str(tmp_path / "qa.jsonl"))


@pytest.mark.parametrize("spec", ["squad-closed-book", "hf:a/questions(train_rows=9)"])
def test_a_card_or_arguments_choose_the_columns_of_labels(spec, monkeypatch):
    """Neither is the name of a file or of a data set: ``load_task`` reads both. Classes are no
    labels."""
    rows = [{"text": f"Ada met Bo {n}", "label": "ab"[n % 2]} for n in range(60)]
    monkeypatch.setattr("maskwise.tasks.reading.read_hub", lambda name: {"train": rows})
    known = {**CARDS, "squad-closed-book": {"hub": "a/questions", "options": {}}}
    monkeypatch.setattr("maskwise.tasks.loading.CARDS", known)
    with pytest.raises(MaskwiseError, match=r"no answers to learn from.*learning\.method: meta"):
        labels_of(spec)


# What is learned


def test_the_loss_is_the_cross_entropy_over_the_words_of_a_window(tokenizer):
    policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8}, head="spans", length=16)
    torch.nn.init.normal_(policy.head.weight, generator=torch.Generator().manual_seed(0))
    text = "bada kefe, tal"
    data = LabelledWindows.of([Marked(text, ((0, 9), (0, 9), (11, 14)))], policy)
    row = policy.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        outcome = FindSpans(policy)(data.batch(torch.tensor([0])))
        chance = policy(row["input_ids"], row["attention_mask"])[0, 1:-1].log_softmax(0)
    tokens = policy.tokenizer.convert_ids_to_tokens(row["input_ids"][0])[1:-1]
    comma = tokens.index(",")  # the second word ends before it, the third begins behind it
    by_hand = -(2 * chance[0, 0] + 2 * chance[comma - 1, 1] + chance[comma + 1, 0] + chance[-1, 1])
    assert (
        float(outcome.total) == pytest.approx(float(by_hand), rel=1e-5)
        and int(outcome.divisor) == 4
    )


def test_labels_that_cannot_be_learned_are_counted(tokenizer):
    small = {"hidden_size": 8}
    policy = PolicyModel.new(tokenizer, settings=small, head="spans", length=8, longest=2)
    text = " ".join(WORDS[:12])  # windows of six words
    ends = np.cumsum([len(word) + 1 for word in WORDS[:12]]) - 1
    fits, cut, long = (0, int(ends[0])), (int(ends[4]) + 1, int(ends[6])), (0, int(ends[3]))
    data = LabelledWindows.of([Marked(text, (fits, long, cut))], policy)
    assert len(data) == 1 and data.counts == {LONG: 1, CUT: 1}
    with pytest.raises(MaskwiseError, match="no label is left"):
        LabelledWindows.of([Marked(text, (long,))], policy)


def test_a_label_has_no_target_at_white_space_between_its_words():
    """The second space is a token of no word, and the loss was infinite."""
    tokenizer = train_tokenizer(["new york is in the us"] * 9, vocab_size=300, kind="bpe")
    policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8}, head="tokens", length=16)
    data = LabelledWindows.of([Marked("in new  york", ((3, 12),))], policy)
    outcome = FindSpans(policy)(data.batch(torch.tensor([0])))
    words = int(data.inside.sum())
    assert len(tokenizer("in new  york")["input_ids"]) == words + 3  # [CLS], [SEP], the space
    labelled = words - len(tokenizer.tokenize("in"))
    assert int(outcome.divisor) == labelled
    assert float(outcome.total.detach()) == pytest.approx(labelled * np.log(words), rel=1e-5)


def test_labels_of_dev_that_fit_into_no_window_stop_no_learning(tokenizer):
    policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8}, head="spans", longest=1)
    short, long = Marked("bada kefe", ((0, 4),)), Marked("bada kefe", ((0, 9),))
    how = TrainingSettings(steps=1, batch_size=1, precision="no")
    done, counts = learn_supervised(policy, [short], training=how, dev_texts=[long])
    assert done["steps"] == 1 and not counts


@pytest.mark.parametrize("head", ["spans", "tokens"])
def test_a_policy_learns_to_find_answers_that_it_has_not_seen(head, tokenizer):
    train, test = [], []
    for row in biographies(300):  # jobs of the test are in no training text
        unseen = any(job in row["answers"][0] for job in WORDS[30:32])
        (test if unseen else train).append((row["context"], row["answers"]))
    known, unknown = (answer_labels(pairs, Counter()) for pairs in (train, test))
    policy = PolicyModel.new(tokenizer, settings={"hidden_size": 16}, head=head, length=32)
    before = measures_of(policy, unknown)
    how = {"steps": 60, "batch_size": 16, "learning_rate": 1e-2, "precision": "no"}
    learn_supervised(policy, known, training=TrainingSettings(**how, eval_every=30))
    after = measures_of(policy, unknown)
    assert before["weight_on_labels"] == pytest.approx(before["labelled_words"], abs=0.1)
    assert after["weight_on_labels"] > 0.6 > 3 * before["weight_on_labels"]
    if head == "spans":
        assert after["exact_match"] > 0.6 > before["exact_match"]
        assert after["recall"] == after["exact_match"]


def test_recall_is_taken_at_as_many_spans_as_there_are_salient_ones(tokenizer):
    text = "In 1999 Ada Lovelace met bada kefe in Paris."
    policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8}, head="spans", length=32)
    measures = measures_of(policy, [Marked(text, ((8, 20),), (("Ada Lovelace",),))])
    assert measures["salient"]["recall"] == 1
    assert measures["spans"] == measures["salient"]["spans"] == 3 <= measures["words"]
    assert 0 <= measures["covered_in_as_many_words"] <= measures["covered"] <= 1
    # At equal numbers of words, the baseline is what salient spans cover: every table shows both.
    assert measures["salient"]["covered_in_as_many_words"] == measures["salient"]["covered"]


# The command


def reviews() -> list[dict]:
    """Texts whose class is told by one word."""
    splits = ("train", "train", "dev", "test")
    rows = []
    for n in range(80):
        text = f"{WORDS[n % 7 + 20]} {('bad', 'good')[n % 2]} {WORDS[n % 5 + 40]}"
        rows.append({"text": text, "label": "np"[n % 2], "split": splits[n // 2 % 4]})
    return rows


def recipe(folder) -> list[str]:
    """The command that learns from biographies."""
    rows = biographies(60)
    write_lines(folder / "qa.jsonl", rows)
    write_lines(folder / "corpus.jsonl", [{"text": row["context"]} for row in rows])
    training = {"steps": 20, "batch_size": 8, "learning_rate": 1e-2, "log_every": 5}
    training |= {"save_every": 10, "precision": "no"}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small["intermediate_size"] = 16
    settings = {
        "corpus": {"source": str(folder / "corpus.jsonl"), "length": 32},
        "tokenizer": {"vocab_size": 200},
        "model": {"architecture": "bert", "settings": small},
        "learning": {
            "task": str(folder / "qa.jsonl"),
            "policy": {"settings": {"hidden_size": 8}, "length": 32},
            "supervised": {"training": training},
        },
    }
    (folder / "learn.yaml").write_text(json.dumps(settings))
    return ["learn", str(folder / "learn.yaml")]


def weights(folder) -> bytes:
    return (folder / "policy" / "model.safetensors").read_bytes()


def test_the_command_makes_a_policy_that_masks(tmp_path, capsys):
    command, out = recipe(tmp_path), tmp_path / "out"
    assert maskwise(*command, "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "supervised"
    written = {path.name for path in out.iterdir()}
    assert {"policy", "metrics.jsonl", "shown.json", "recipe.yaml", "done.json"} <= written
    assert not unversioned(out)
    assert "resume" not in written and len(read_lines(out / "metrics.jsonl")) == 5
    page = (out / "report.html").read_text()
    # it was overwritten, or fell
    assert maskwise("report", out) == 2 and (out / "report.html").read_text() == page
    assert "a learned policy, and its page exists already" in capsys.readouterr().err
    card = (out / "policy" / "README.md").read_text()
    assert "masking-policy" in card and "Heaviest words" in card and "exact_match" in card
    policy, salient = result["held_out"], result["held_out"]["salient"]
    assert f"| recall | {policy['recall']:.3f} | {salient['recall']:.3f} |" in card
    assert "size of the policy&#39;s gradient" in page and page.count("<polyline") >= 2
    assert page.count('<div class="when">before</div>') == 5
    assert "http" not in page.replace("http-equiv", "")
    assert maskwise(*command, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == result
    policy = f"learned({str(out / 'policy')!r})"
    assert maskwise("inspect", "bada is a kefe", "--policy", policy, "--ratio", "0.5") == 0
    assert maskwise(*command, "training.seed=1", "--out", out) == 2
    assert "with other values of training.seed" in capsys.readouterr().err
    # A damaged stage.json does not hide the change.
    stage = (out / "stage.json").read_text()
    (out / "stage.json").write_text(stage[:40])
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for lost in ((), ("done.json",)):
        for name in lost:
            kept.pop(out / name)
            (out / name).unlink()
        assert maskwise(*command, "training.seed=1", "--out", out) == 2
        assert "with other values of training.seed" in capsys.readouterr().err
        assert kept == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert maskwise(*command, "--out", out, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["held_out"] == result["held_out"]
    assert (out / "stage.json").read_text() == stage
    assert maskwise(*command, "--out", tmp_path / "again") == 0
    assert weights(out) == weights(tmp_path / "again")
    for file in ("qa", "corpus"):  # the recipe names the same files, and they hold something else
        path = tmp_path / f"{file}.jsonl"
        before = path.read_text()
        path.write_text(before + before.splitlines()[0].replace(" is ", " was ") + "\n")
        assert maskwise(*command, "--out", out) == 2, file
        assert "_content" in capsys.readouterr().err
        path.write_text(before)
    assert maskwise(*command, "--out", out) == 0
    # What does not change the policy may change.
    free = "learning.supervised.training.log_every=3"
    assert maskwise(*command, free, "--out", out) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["learning=null"], "learns no policy"),
        (["learning.task=null"], "needs a task"),
        (["learning.policy.architecture=berd"], "architecture"),
        (["learning.task=./nowhere.jsonl"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(options, said, tmp_path, capsys):
    assert maskwise(*recipe(tmp_path), *options, "--out", tmp_path / "out") == 2
    *progress, error = capsys.readouterr().err.strip().splitlines()
    assert said in error and not any("maskwise: " in line for line in progress)
    assert not (tmp_path / "out").exists()


def test_without_a_tagger_nothing_is_learned(tmp_path, monkeypatch):
    """The library was missed only after the last step, and the policy was lost."""
    found = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: name != "spacy" and found(name))
    read = read_recipe(recipe(tmp_path)[1])
    with pytest.raises(MaskwiseError, match="spacy, which is not installed"):
        lesson_of(read, tmp_path / "out").learn()
    assert not (tmp_path / "out").exists()
    arm = read_recipe(recipe(tmp_path)[1], ["study.arms={a: {masking.policy: learned}}"])
    with pytest.raises(MaskwiseError, match="spacy, which is not installed"):
        check_names(arm)


def test_learning_that_fails_after_a_long_preparation_keeps_its_text(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("maskwise.base.folders.KEPT_SECONDS", 0)

    def fails(lesson):
        raise MaskwiseError("no step was possible")

    with monkeypatch.context() as patch:
        patch.setattr("maskwise.learning.lesson.Lesson.learn", fails)
        assert maskwise(*recipe(tmp_path), "--out", out) == 2
    assert "no step was possible" in capsys.readouterr().err
    [text] = out.glob("stages/prepare-*/done.json")
    written = text.stat().st_mtime_ns
    # Another recipe on the same text is not refused, because nothing was learned.
    assert maskwise(*recipe(tmp_path), "learning.supervised.training.steps=7", "--out", out) == 0
    assert text.stat().st_mtime_ns == written


def test_the_meta_gradient_needs_no_adapter_and_no_tracker(tmp_path, capsys):
    """With LoRA, the encoder had random weights; with a tracker, learning failed."""
    command = recipe(tmp_path)
    write_lines(tmp_path / "task.jsonl", reviews())
    command += [f"learning.task={tmp_path / 'task.jsonl'}", "learning.method=meta"]
    command += ["learning.meta={steps: 1, eval_every: 1, batch_size: 8}"]
    results = []
    for name in ("a", "b"):
        if name == "b":
            path = Path(command[1])
            added = {"model": {"adapter": "lora(rank=2)"}, "training": {"trackers": ["all"]}}
            whole = yaml.safe_load(path.read_text())
            for section, settings in added.items():
                whole[section] = whole.get(section, {}) | settings
            path.write_text(yaml.safe_dump(whole))
        assert maskwise(*command, "--out", tmp_path / name, "--json") == 0
        result = json.loads(capsys.readouterr().out)
        results.append((result["gain"], weights(tmp_path / name)))
    assert results[0] == results[1]


def test_the_same_command_learns_by_the_meta_gradient(tmp_path, capsys, monkeypatch):
    command = recipe(tmp_path)
    write_lines(tmp_path / "task.jsonl", reviews())
    command += [f"learning.task={tmp_path / 'task.jsonl'}", "learning.method=meta"]
    command += ["learning.meta={steps: 4, eval_every: 2, batch_size: 8}"]

    def learned(name: str, *options: str) -> dict:
        assert maskwise(*command, *options, "--out", tmp_path / name, "--json") == 0
        return json.loads(capsys.readouterr().out)

    result = learned("out")
    assert result["method"] == "meta" and result["best_step"] in (0, 2, 4)
    assert PolicyModel.from_pretrained(tmp_path / "out" / "policy").config.head == "tokens"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count(">before</div>") == page.count(">after</div>") > 0
    assert "gain" in result and "held_out" not in result
    assert "<figcaption>agreement of gradients" in page

    # Of several tries the best is kept, with its own measures; the first is the one that alone
    # would have been made.
    command += ["training.seed=1", "learning.meta.learning_rate=0.3", "learning.meta.mask_rate=0.3"]
    single = learned("single")
    began, found = [], []

    def recorded(policy, losses, examples, dev, *how, **more):
        began.append(values_of(losses))
        found.append((examples, dev))
        return learn_policy(policy, losses, examples, dev, *how, **more)

    with monkeypatch.context() as patch:
        patch.setattr("maskwise.learning.lesson.learn_policy", recorded)
        kept = learned("tries", "learning.meta.tries=3")
    # All begin with the same model, whose head of the task differed, and read the same examples,
    # which were searched for in each try.
    assert all(torch.equal(began[0][name], other[name]) for other in began for name in other)
    assert all(other == found[0] for other in found)
    gains = [each["gain"] for each in kept["tries"]]
    told = ", ".join(f"{gain:.4f}" for gain in gains)
    page = (tmp_path / "tries/report.html").read_text()
    assert (
        f"This policy is the best of 3 tries. Gains over random masks on dev rows, in nats: {told}."
        in page
    )
    assert gains[0] == single["gain"] < max(gains) == kept["gain"] and len(set(gains)) == 3, gains
    of_best = tmp_path / "tries" / f"try-{gains.index(max(gains))}" / "metrics.jsonl"
    assert (tmp_path / "tries/metrics.jsonl").read_text() == of_best.read_text()
    assert not list((tmp_path / "tries").rglob("resume"))
    assert weights(tmp_path / "single") != weights(tmp_path / "tries")

    # Killed in the second try of three, the same command goes on there: the last two steps of the
    # first try are repeated, two are left of the second, and the third try.
    steps, update = [], Engine.update

    def counted(engine: Engine, *how: Any) -> Any:
        steps.append(engine)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return update(engine, *how)

    monkeypatch.setattr(Engine, "update", counted)
    assert maskwise(*command, "learning.meta.tries=3", "--out", tmp_path / "killed") == 130
    capsys.readouterr()
    assert learned("killed", "learning.meta.tries=3")["tries"] == kept["tries"]
    assert len(steps) == 8 + 2 + 2 + 4
    assert weights(tmp_path / "killed") == weights(tmp_path / "tries")

    # A learning that diverges ends, says so, and leaves the best policy: here the one of the
    # beginning.
    command += ["learning.meta.mask_rate=1e30", "learning.meta.learning_rate=0.01"]
    assert maskwise(*command, "--out", tmp_path / "wild") == 0
    said = capsys.readouterr().err
    page = (tmp_path / "wild" / "report.html").read_text()
    assert (
        "learning stopped early: diverged: the loss is not finite at step 1" in said
        and "diverged" in page
    )
    assert all("step of size mask_rate=1e+30 raises the loss" in each for each in (said, page))
    policy = PolicyModel.from_pretrained(tmp_path / "wild" / "policy")
    assert not policy.head.weight.any() and not policy.head.bias.any()


@pytest.mark.parametrize(
    ("windows", "accumulate", "ranks", "rows"),
    [(25, 1, 1, 25), (25, 1, 2, 24), (25, 4, 2, 24), (99, 4, 2, 32), (5, 4, 2, 8)],
)
def test_few_windows_are_a_batch_that_ranks_can_divide(
    windows: int, accumulate: int, ranks: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    settings = TrainingSettings(batch_size=32, accumulate=accumulate)
    assert with_batches_of(windows, settings).batch_size == rows
