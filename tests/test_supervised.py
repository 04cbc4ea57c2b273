"""Policies that learn from labels: what is labelled, what is learned, and the command that does
both.
"""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch

from maskwise.errors import MaskwiseError
from maskwise.learning.card import judge
from maskwise.learning.labels import (
    NO_SHARED_WORD,
    NOT_IN_CONTEXT,
    Marked,
    answer_labels,
    classifier_labels,
    labels_of,
)
from maskwise.learning.loop import CUT, LONG, FindSpans, LabelledWindows, learn_supervised
from maskwise.learning.meta import MetaLearner
from maskwise.learning.scorer import PolicyModel
from maskwise.tasks import CARDS, load_task
from maskwise.text import train_tokenizer
from maskwise.training import TrainingSettings
from tiny import WORDS, maskwise, read_lines, write_lines

NAMES, JOBS = WORDS[:30], WORDS[30:40]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS) + " is a . ,"] * 9, vocab_size=300)


def biographies(count: int, *, seed: int = 0) -> list[dict]:
    """Contexts in which the answer stands behind "is a": one or two words."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        name, job = draw.choice(NAMES), " ".join(draw.sample(JOBS, draw.choice((1, 2))))
        filler = [" ".join(draw.choices(WORDS[40:], k=4)) for _ in range(2)]
        context = f"{filler[0]}. {name} is a {job}. {filler[1]}."
        rows.append(
            {"context": context, "question": f"what is {name}", "answers": [job], "split": "train"}
        )
        rows[-1]["split"] = ("train", "train", "train", "dev", "test")[number % 5]
    return rows


def training(**more) -> TrainingSettings:
    settings = {"steps": 60, "batch_size": 16, "learning_rate": 1e-2, "precision": "no"}
    return TrainingSettings(**{**settings, "log_every": 20, "eval_every": 30, **more})


# What is labelled


def test_all_occurrences_of_all_answers_are_labelled_and_answers_that_are_not_there_are_counted():
    counts: Counter[str] = Counter()
    pairs = [
        ("Bo met Ada. Adam met Bo-Bo.", ["Ada", "ADA"]),
        ("Bo met Ada. Adam met Bo-Bo.", ["bo"]),
        ("Bo met Ada. Adam met Bo-Bo.", ["Eve"]),
        ("x (C++) y", ["C++"]),
        ("x", ["", " "]),
    ]
    first, second = answer_labels(pairs, counts)
    assert [first.text[a:b] for a, b in first.spans] == ["Bo", "Ada", "Bo", "Bo"]
    assert first.questions == (("Ada", "ADA"), ("bo",)) and second.spans == ((3, 6),)
    assert counts == {NOT_IN_CONTEXT: 2}


def test_files_with_contexts_are_cut_by_article(tmp_path):
    def question(answer: str) -> dict:
        return {"id": answer, "question": "?", "answers": [{"text": answer, "answer_start": 0}]}

    articles = []
    for number in range(40):
        questions = [question("owls"), question("mice")]
        contexts = [f"text {number} {place} tells of owls" for place in range(3)]
        parts = [{"context": context, "qas": questions} for context in contexts]
        articles.append({"title": f"t{number}", "paragraphs": parts})
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    labels = labels_of(str(tmp_path / "squad.json"))
    of = {split: {each.text.split()[1] for each in part} for split, part in labels.splits.items()}
    assert all(len(part) == 3 * len(of[split]) for split, part in labels.splits.items())
    assert len(of["train"] | of["dev"] | of["test"]) == sum(map(len, of.values())) == 40
    assert len(of["train"]) > 20 and of["test"]
    assert (labels.kind, labels.head, labels.counts[NOT_IN_CONTEXT]) == ("answers", "spans", 120)


def asked(count: int) -> list[dict]:
    """One file without splits: a question about each of so many contexts."""
    rows = biographies(2 * count)[:count]
    return [
        {"question": f"q{n}", "context": row["context"], "answers": row["answers"]}
        for n, row in enumerate(rows)
    ]


@pytest.mark.parametrize("kind", ["question-answering", "generation"])
def test_no_policy_learns_from_what_a_task_of_the_same_file_is_tested_by(kind, tmp_path):
    """Each cut the file by a hash of its own: 26 of 34 contexts of the task's test were in the
    policy's train.
    """
    write_lines(tmp_path / "qa.jsonl", rows := asked(200))
    labels, task = (
        labels_of(str(tmp_path / "qa.jsonl")),
        load_task(tmp_path / "qa.jsonl", kind=kind),
    )
    context = {row["question"]: row["context"] for row in rows}
    for split, marked in labels.splits.items():
        questions = [row.texts[-1] for row in task.splits[split]]
        assert {each.text for each in marked} == {
            context[question] for question in questions
        } and len(marked) > 15


def test_a_part_of_a_file_is_cut_as_the_whole_file_is(tmp_path):
    """By article, of which the whole has forty and the part ten; rows whose article has no title go
    by context.
    """
    rows = [
        {**row, "article_title": f"t{n // 4}" if n % 8 else None, "lang": "xyzw"[n // 4 % 4]}
        for n, row in enumerate(asked(160))
    ]
    write_lines(tmp_path / "qa.jsonl", rows)
    labels = labels_of(str(tmp_path / "qa.jsonl"))
    task = load_task(tmp_path / "qa.jsonl", kind="question-answering", where="lang=x")
    for split, part in task.splits.items():
        assert part and {row.context for row in part} <= {
            each.text for each in labels.splits[split]
        }
    assert max(len(part) for part in labels.splits.values()) < 130


def test_many_questions_about_few_texts_are_questions(tmp_path):
    rows = [
        {"question": f"what is {n}?", "answer": f"w{n}", "split": ("train", "dev", "test")[n % 3]}
        for n in range(900)
    ]
    write_lines(tmp_path / "qa.jsonl", rows)
    texts = [" ".join(f"{n} is w{n}." for n in range(900)), "none"]
    labels = labels_of(f"{tmp_path / 'qa.jsonl'}(kind='generation')", texts=texts)
    assert labels.kind == "answers" and len(labels.splits["train"]) == 1


def test_a_policy_with_labels_in_train_alone_is_evaluated_on_an_unseen_part_of_it(tmp_path):
    (tmp_path / "only").mkdir()
    write_lines(tmp_path / "only/train.jsonl", asked(60))
    splits = labels_of(str(tmp_path / "only")).splits
    learned, judged = ({each.text for each in splits[name]} for name in ("train", "test"))
    assert len(learned) > 30 and judged and not learned & judged
    # as benchmarks publish it
    write_lines(tmp_path / "only/test.jsonl", [{**row, "answers": []} for row in asked(9)])
    assert labels_of(str(tmp_path / "only")).splits == splits


def test_a_task_with_arguments_brings_its_contexts(tmp_path):
    """They were thrown away, and looked for in the corpus."""
    write_lines(tmp_path / "qa.jsonl", asked(60))
    labels = labels_of(
        f"{tmp_path / 'qa.jsonl'}(kind='question-answering')", texts=["some other text is a thing."]
    )
    assert (
        labels.kind == "answers" and labels.splits == labels_of(str(tmp_path / "qa.jsonl")).splits
    )


def test_content_words_of_targets_are_labelled_in_the_source_whatever_the_corpus(tmp_path):
    splits = ["train", "train", "dev", "test"]
    rows = [
        {"source": f"The owl {n} hunts mice at night.", "target": f"Owl hunts {n}", "split": split}
        for n, split in enumerate(splits)
    ]
    rows[1]["target"] = "nothing of the kind"
    write_lines(tmp_path / "rows.jsonl", rows)
    spec = f"{tmp_path / 'rows.jsonl'}(kind='generation', text='source', label='target')"
    labels = labels_of(spec, texts=["The owl 1 hunts mice at night."])
    (first, second), counts = labels.splits["train"], labels.counts
    assert [first.text[a:b] for a, b in first.spans] == ["owl", "0", "hunts"]
    assert not second.spans and counts[NO_SHARED_WORD] == 1 and labels.head == "tokens"
    with pytest.raises(MaskwiseError, match="can be labelled") as caught:
        labels_of(spec, kind="answers", texts=["nothing"])
    assert "without an answer in any text" in caught.value.got


def test_targets_that_share_no_word_with_their_sources_are_refused_and_meta_is_named(tmp_path):
    rows = [
        {"source": "rain falls on the hill", "target": "more", "split": s}
        for s in ("train", "dev", "test")
    ]
    write_lines(tmp_path / "wiqa.jsonl", rows)
    with pytest.raises(MaskwiseError, match=r"labels would teach nothing.*meta"):
        labels_of(f"{tmp_path / 'wiqa.jsonl'}(kind='generation', text='source', label='target')")


def test_answers_that_stand_in_no_context_are_refused(tmp_path):
    write_lines(
        tmp_path / "qa.jsonl",
        [{"context": "x", "question": "?", "answers": ["y"], "split": "train"}],
    )
    with pytest.raises(
        MaskwiseError, match=r"1 × answers that are not in their context.*learning.method: meta"
    ):
        labels_of(str(tmp_path / "qa.jsonl"))


def test_words_without_which_a_classifier_is_less_sure_are_labelled():
    def confidence(texts, classes):
        good = np.array([0.9 if "good" in text else 0.4 for text in texts])
        return np.where(np.array(classes) == 1, good, 1 - good)

    rows = [("a good film", 1), ("a good film", 0), ("good, good", 1)]
    marked = classifier_labels(rows, confidence, drop=0.05)
    assert [[each.text[a:b] for a, b in each.spans] for each in marked] == [["good"], [], []]


@pytest.mark.parametrize("spec", ["squad-closed-book", "hf:a/questions(train_rows=9)"])
def test_a_card_or_arguments_choose_the_columns_of_labels(spec, monkeypatch):
    """Neither is the name of a file or of a data set: ``load_task`` reads both."""
    asked = []
    rows = [{"text": f"Ada met Bo {n}", "label": "ab"[n % 2]} for n in range(60)]
    monkeypatch.setattr("maskwise.tasks.files.read_hub", lambda name: {"train": rows})
    known = {**CARDS, "squad-closed-book": {"hub": "a/questions", "options": {}}}
    monkeypatch.setattr("maskwise.tasks.loading.CARDS", known)

    def classifier(task):
        asked.append(len(task.splits["train"]))
        return lambda texts, classes: np.array([float("Bo" in text) for text in texts])

    assert labels_of(spec, classifier=classifier).kind == "classifier" and asked


def test_pairs_of_texts_have_no_labels_of_a_classifier(tmp_path):
    splits = ["train", "train", "dev", "test"]
    rows = [
        {"sentence1": f"w{n}", "sentence2": "b", "label": "ab"[n % 2], "split": split}
        for n, split in enumerate(splits)
    ]
    write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(MaskwiseError, match="pairs"):
        labels_of(str(tmp_path / "pairs.jsonl"))


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
        float(outcome.loss) == pytest.approx(float(by_hand), rel=1e-5) and int(outcome.targets) == 4
    )


def test_labels_that_cannot_be_learned_are_counted(tokenizer):
    policy = PolicyModel.new(
        tokenizer, settings={"hidden_size": 8}, head="spans", length=8, longest=2
    )
    text = " ".join(WORDS[:12])  # windows of six words
    ends = np.cumsum([len(word) + 1 for word in WORDS[:12]]) - 1
    data = LabelledWindows.of(
        [Marked(text, ((0, int(ends[0])), (0, int(ends[3])), (int(ends[4]) + 1, int(ends[6]))))],
        policy,
    )
    assert len(data) == 1 and data.counts == {LONG: 1, CUT: 1}
    with pytest.raises(MaskwiseError, match="no label is left"):
        LabelledWindows.of([Marked(text, ((0, int(ends[3])),))], policy)


@pytest.mark.parametrize("head", ["spans", "tokens"])
def test_a_policy_learns_to_find_answers_that_it_has_not_seen(head, tokenizer):
    rows = biographies(300)
    for row in rows:  # jobs of the test are in no training text
        row["answers"] = [row["answers"][0]]
    train = [
        row
        for row in rows
        if WORDS[30] not in row["answers"][0] and WORDS[31] not in row["answers"][0]
    ]
    test = [row for row in rows if row not in train]
    marked = [
        answer_labels([(row["context"], row["answers"]) for row in part], Counter())
        for part in (train, test)
    ]
    policy = PolicyModel.new(tokenizer, settings={"hidden_size": 16}, head=head, length=32)
    before = judge(policy, marked[1])
    learn_supervised(policy, marked[0], training=training())
    after = judge(policy, marked[1])
    assert before["weight_on_labels"] == pytest.approx(before["labelled_words"], abs=0.1)
    assert after["weight_on_labels"] > 0.6 > 3 * before["weight_on_labels"]
    if head == "spans":
        assert (
            after["exact_match"] > 0.6 > before["exact_match"]
            and after["recall"] == after["exact_match"]
        )


def test_recall_is_taken_at_as_many_spans_as_there_are_salient_ones(tokenizer):
    marked = [
        Marked("In 1999 Ada Lovelace met bada kefe in Paris.", ((8, 20),), (("Ada Lovelace",),))
    ]
    policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8}, head="spans", length=32)
    measures = judge(policy, marked)
    assert (
        measures["salient"]["recall"] == 1
        and measures["spans"] == measures["salient"]["spans"] == 3
    )
    assert (
        measures["words"] >= 3
        and 0 <= measures["covered_in_as_many_words"] <= measures["covered"] <= 1
    )


# The command


def reviews() -> list[dict]:
    """Texts whose class is told by one word."""
    splits = ("train", "train", "dev", "test")
    rows = []
    for n in range(80):
        text = f"{WORDS[n % 7 + 20]} {('bad', 'good')[n % 2]} {WORDS[n % 5 + 40]}"
        rows.append({"text": text, "label": "np"[n % 2], "split": splits[n // 2 % 4]})
    return rows


def recipe(tmp_path, **learning) -> list[str]:
    write_lines(tmp_path / "qa.jsonl", biographies(60))
    write_lines(tmp_path / "corpus.jsonl", [{"text": row["context"]} for row in biographies(60)])
    training = {"steps": 20, "batch_size": 8, "learning_rate": 1e-2, "log_every": 5}
    training |= {"save_every": 10, "precision": "no"}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small["intermediate_size"] = 16
    settings = {
        "corpus": {"source": str(tmp_path / "corpus.jsonl"), "length": 32},
        "tokenizer": {"vocab_size": 200},
        "model": {"architecture": "bert", "settings": small},
        "learning": {
            "method": "supervised",
            "task": str(tmp_path / "qa.jsonl"),
            "policy": {"settings": {"hidden_size": 8}, "length": 32},
            "supervised": {"training": training},
            **learning,
        },
    }
    (tmp_path / "learn.yaml").write_text(json.dumps(settings))
    return ["learn", str(tmp_path / "learn.yaml")]


def test_the_command_makes_a_policy_that_masks(tmp_path, capsys):
    command, out = recipe(tmp_path), tmp_path / "out"
    assert maskwise(*command, "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "supervised"
    written = {path.name for path in out.iterdir()}
    assert {"policy", "metrics.jsonl", "shown.json", "recipe.yaml", "done.json"} <= written
    page = (out / "report.html").read_bytes()
    # it was overwritten, or fell
    assert maskwise("report", out) == 2 and (out / "report.html").read_bytes() == page
    assert "a learned policy, which has a page of its own" in capsys.readouterr().err
    assert not (out / "resume").exists() and len(read_lines(out / "metrics.jsonl")) == 5
    card = (out / "policy" / "README.md").read_text()
    assert "masking-policy" in card and "Heaviest words" in card and "exact_match" in card
    policy, salient = result["held_out"], result["held_out"]["salient"]
    assert f"| recall | {policy['recall']:.3f} | {salient['recall']:.3f} |" in card
    page = (out / "report.html").read_text()
    assert "norm of the policy&#39;s gradient" in page and page.count("<polyline") >= 2
    assert page.count('<div class="when">before</div>') == 5 and "http" not in page.replace(
        "http-equiv", ""
    )
    weights = PolicyModel.from_pretrained(out / "policy").state_dict()
    assert maskwise(*command, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == result
    policy = f"learned({str(out / 'policy')!r})"
    assert maskwise("inspect", "bada is a kefe", "--policy", policy, "--ratio", "0.5") == 0
    assert maskwise(*command, "training.seed=1", "--out", out) == 2
    assert "policy of a different recipe" in capsys.readouterr().err
    assert maskwise(*command, "--out", tmp_path / "again") == 0
    again = PolicyModel.from_pretrained(tmp_path / "again" / "policy").state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    for file in ("qa", "corpus"):  # the recipe names the same files, and they hold something else
        before = (tmp_path / f"{file}.jsonl").read_text()
        (tmp_path / f"{file}.jsonl").write_text(
            before + before.splitlines()[0].replace(" is ", " was ") + "\n"
        )
        assert maskwise(*command, "--out", out) == 2, file
        assert "learned from other data" in " ".join(capsys.readouterr().err.split())
        (tmp_path / f"{file}.jsonl").write_text(before)
    assert maskwise(*command, "--out", out) == 0


def test_a_stopped_learning_goes_on_to_the_same_policy(tmp_path, monkeypatch):
    from maskwise.learning import run

    command = recipe(tmp_path)
    assert maskwise(*command, "--out", tmp_path / "whole") == 0
    learned = run.judge

    def stopped(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "judge", stopped)
    assert maskwise(*command, "--out", tmp_path / "part") == 130
    monkeypatch.setattr(run, "judge", learned)
    assert (tmp_path / "part" / "resume").is_dir() and not (tmp_path / "part" / "policy").exists()
    assert maskwise(*command, "--out", tmp_path / "part") == 0
    one, other = (
        PolicyModel.from_pretrained(tmp_path / name / "policy").state_dict()
        for name in ("whole", "part")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_classification_task_gives_a_policy_too(tmp_path, capsys):
    command = recipe(tmp_path)
    write_lines(tmp_path / "task.jsonl", reviews())
    write_lines(tmp_path / "corpus.jsonl", reviews())
    tuned = {"steps": 60, "learning_rate": 0.02, "max_length": 16}
    options = [
        f"learning.task={tmp_path / 'task.jsonl'}",
        f"learning.supervised.finetune={json.dumps(tuned)}",
        "learning.supervised.training.steps=60",
        # Sixty steps on forty rows: the classifier needs it, not to learn single words by heart.
        "model.attention_dropout=0.1",
    ]
    assert maskwise(*command, *options, "--out", tmp_path / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    held_out = result["held_out"]
    assert (
        result["labels"] == "classifier"
        and held_out["weight_on_labels"] > 1.2 * held_out["labelled_words"] > 0
    )
    words = json.loads((tmp_path / "out" / "shown.json").read_text())["words"]
    assert next(iter(words)) in ("good", "bad")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["learning=null"], "learns no policy"),
        (["learning.task=null"], "needs a task"),
        (["learning.policy.head=words"], "learning.policy.head"),
        (["learning.policy.architecture=berd"], "architecture"),
        (["learning.supervised.drop=2"], "drop"),
        (["learning.task=./nowhere.jsonl"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(options, said, tmp_path, capsys):
    assert maskwise(*recipe(tmp_path), *options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_same_command_learns_by_the_meta_gradient(tmp_path, capsys, monkeypatch):
    command = recipe(tmp_path)
    write_lines(tmp_path / "task.jsonl", reviews())
    meta = {"steps": 4, "eval_every": 2, "batch_size": 8}
    options = [
        f"learning.task={tmp_path / 'task.jsonl'}",
        "learning.method=meta",
        f"learning.meta={json.dumps(meta)}",
    ]
    assert maskwise(*command, *options, "--out", tmp_path / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "meta" and result["best_step"] in (0, 2, 4)
    assert PolicyModel.from_pretrained(tmp_path / "out" / "policy").config.head == "tokens"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count(">before</div>") == page.count(">after</div>") > 0
    assert "gain" in result and "held_out" not in result
    assert "<figcaption>agreement of the gradients" in page

    # Of several tries the best is kept, with its own measures; the first is the one that alone
    # would have been made.
    options += ["training.seed=1", "learning.meta.learning_rate=0.3", "learning.meta.mask_rate=0.3"]
    assert maskwise(*command, *options, "--out", tmp_path / "single", "--json") == 0
    single = json.loads(capsys.readouterr().out)
    options.append("learning.meta.tries=3")
    assert maskwise(*command, *options, "--out", tmp_path / "tries", "--json") == 0
    kept = json.loads(capsys.readouterr().out)
    gains = [each["gain"] for each in kept["tries"]]
    told = ", ".join(f"{gain:.4f}" for gain in gains)
    page = (tmp_path / "tries/report.html").read_text()
    assert f"The best of 3 tries; their gains on dev, in nats: {told}." in page
    assert gains[0] == single["gain"] and len(set(gains)) == 3 and kept["gain"] == max(gains), gains
    of_best = tmp_path / "tries" / f"try-{gains.index(max(gains))}" / "metrics.jsonl"
    assert (tmp_path / "tries/metrics.jsonl").read_text() == of_best.read_text()
    assert not list((tmp_path / "tries").rglob("resume")) and gains[0] < max(gains)
    first, best = (
        (tmp_path / run / "policy/model.safetensors").read_bytes() for run in ("single", "tries")
    )
    assert first != best

    # Killed in the second try of three, the same command goes on there: its last two steps are
    # left, and the third try.
    steps, one_step = [], MetaLearner.step

    def counted(learner: MetaLearner) -> dict[str, float]:
        steps.append(learner)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return one_step(learner)

    monkeypatch.setattr(MetaLearner, "step", counted)
    again = [*command, *options, "--out", tmp_path / "killed", "--json"]
    assert maskwise(*again) == 130
    capsys.readouterr()
    assert maskwise(*again) == 0
    assert json.loads(capsys.readouterr().out)["tries"] == kept["tries"] and len(steps) == 8 + 2 + 4
    killed = tmp_path / "killed/policy/model.safetensors"
    assert killed.read_bytes() == (tmp_path / "tries/policy/model.safetensors").read_bytes()

    # A learning that diverges ends, says so, and leaves the best policy: here the one of the
    # beginning.
    meta["mask_rate"] = 1e30
    options[3:] = [f"learning.meta={json.dumps(meta)}"]
    assert maskwise(*command, *options, "--out", tmp_path / "wild") == 0
    said = capsys.readouterr().err
    page = (tmp_path / "wild" / "report.html").read_text()
    assert "learning stopped early: diverged: outer loss" in said and "diverged" in page
    assert all("a step of mask_rate 1e+30 raises its own loss" in each for each in (said, page))
    policy = PolicyModel.from_pretrained(tmp_path / "wild" / "policy")
    assert not policy.head.weight.any() and not policy.head.bias.any()


@pytest.mark.parametrize("method", ["supervised", "meta"])
def test_a_task_of_one_class_teaches_nothing(method, tmp_path, capsys):
    command = recipe(tmp_path)
    write_lines(tmp_path / "one.jsonl", [{"text": f"w{n}", "label": "a"} for n in range(20)])
    options = [f"learning.task={tmp_path / 'one.jsonl'}", f"learning.method={method}"]
    assert maskwise(*command, *options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert "at least two classes; got only 'a'" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
