"""Invented worlds: texts, layers, splits and questions; tasks answered at masks; a study in a world
per run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskwise.annotate.registry import annotator
from maskwise.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.recipe import read_recipe
from maskwise.study.plan import make_plan
from maskwise.study.store import StageStore
from maskwise.study.work import run_stage
from maskwise.tasks import encode, load_task
from maskwise.text import Rows, bundled_path, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.text.settings import CorpusSettings
from maskwise.text.worlds import (
    SAME_WORDS,
    TAGS,
    CausalWorld,
    FactWorld,
    lexicon,
    of_run,
    read_world,
)
from tiny import find_recipe, read_lines


@pytest.fixture(scope="module")
def world():
    return FactWorld(people=40)


@pytest.fixture(scope="module")
def tokenizer(world):
    return train_tokenizer([text for _, text in world.documents()], vocab_size=2048)


# Texts
# ----------------------------------------------------------------------------


def test_the_same_options_give_the_same_texts_in_every_process_and_version():
    """Hashes of strings differ from process to process; nothing of a world may depend on them."""
    code = "from maskwise.text.worlds import *; print(FactWorld(people=20).version)"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.strip() == FactWorld(people=20).version == "6e65e3aeab0fb011"
    asked = FactWorld(asked=("job", "city"), decoys=2, people=20)
    assert asked.version == "42e53557273f3b33"
    assert FactWorld(people=20, seed="run").version == FactWorld(people=20).version


def test_tags_say_what_every_word_is():
    told = FactWorld(people=10, biographies=1, tags=True)
    text = told.documents()[0][1]
    start, end, codes = told.annotate([text])[0]["tag"]
    said = {text[a:b]: TAGS[code - 1] for a, b, code in zip(start, end, codes, strict=True)}
    person = told.persons[0]
    for kind in ("job", "employer", "university", "name"):
        assert said[person[kind]] == kind
    assert said["."] == said["worked"] == "other"
    plain = FactWorld(people=10, biographies=1)
    assert "tag" not in plain.annotate([text])[0] and plain.documents()[0][1] == text


def test_another_option_gives_another_world():
    options = (
        "",
        "seed=1",
        "others=True",
        "fillers=1",
        "friends=False",
        "paraphrases=3",
        "biographies=2",
        "facts=(work,)",
        "asked=city",
        "asked=(job, city)",
        "decoys=1",
        "tags=True",
    )
    versions = {read_world(f"factworld(people=40, {more})").version for more in options}
    assert len(versions) == len(options)


def test_words_stand_for_one_thing_each():
    kinds = lexicon().keys() - {*SAME_WORDS, "cause"}
    names = [word.lower() for kind in kinds for word in lexicon()[kind]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z]+|19[0-5][0-9]", name) for name in names)


def test_every_fact_stands_in_every_biography(world):
    texts = dict(world.documents())
    assert len(texts) == 160
    for number, person in enumerate(world.persons):
        for copy in range(4):
            text = texts[f"person-{number}-{copy}"]
            assert all(value in text for value in person.values())


def test_others_share_no_name_with_the_people(world):
    others = FactWorld(people=40, others=True)
    assert not {p["name"] for p in world.persons} & {p["name"] for p in others.persons}


# Layers
# ----------------------------------------------------------------------------


def marked(world, text, layer):
    """The marked stretches of a text."""
    start, end, _ = world.annotate([text])[0][layer]
    return [text[a:b] for a, b in zip(start, end)]


def test_layers_cover_what_they_say(world):
    entities = {value for person in world.persons for key, value in person.items() if key != "job"}
    entities |= set(lexicon()["friend"]) | set(lexicon()["place"])
    for _, text in world.documents()[:40]:
        (asked,) = marked(world, text, "asked")
        salient = marked(world, text, "salient")
        assert asked in lexicon()["job"]
        assert set(salient) <= entities and len(salient) >= 10
        capitals = re.findall(r"[A-Z][a-z]+|19\d\d", text)
        assert " ".join(salient).split() == capitals  # everything with a capital letter, and years


def test_two_attributes_are_asked_of_everybody_and_the_oracle_knows_both():
    world = read_world("factworld(people=40, asked=(job, university))")
    assert world.task_name == "factworld-job-university" and read_world(str(world)) == world
    task = load_task("factworld(people=40, asked=(job, university), train_rows=10)")
    assert task.name == world.task_name and len(task.splits["train"]) == 10
    train, dev, test = world.questions().values()
    assert [len(train), len(dev), len(test)] == [40, 8, 32]
    names = [{row["question"].split(maxsplit=2)[2] for row in rows} for rows in (train, dev + test)]
    assert not names[0] & names[1] and len(names[0]) == 20
    person = world.persons[0]
    assert [row["answers"][0] for row in train[:2]] == [person["job"], person["university"]]
    for _, text in world.documents()[:40]:
        found = marked(world, text, "asked")
        assert len(found) == 2
        assert set(found) & set(lexicon()["job"]) and set(found) & set(lexicon()["university"])


@pytest.mark.parametrize(
    ("asked", "telling", "named"), [("job", "worked as a ", 0), ("university", "studied at ", 3)]
)
def test_a_decoy_is_the_same_kind_of_word_and_the_oracle_leaves_it_alone(asked, telling, named):
    world = FactWorld(people=40, asked=asked, decoys=2)
    words = set(lexicon()[asked])
    for _, text in world.documents()[:40]:
        (start,), (end,), _ = world.annotate([text])[0]["asked"]
        assert text[start:end] in words and text[:start].endswith(telling)
        # the right one, and two decoys
        assert sum(word in words for word in re.findall(r"\w+", text)) == 3
        assert sum(word in words for word in marked(world, text, "salient")) == named
    # Nothing else of the world is another.
    assert [p["name"] for p in world.persons] == [p["name"] for p in FactWorld(people=40).persons]


def test_every_word_is_a_token_and_layers_lie_on_words(world, tokenizer):
    documents = list(read_documents("factworld(people=40)"))
    for document, tokens in zip(
        documents, tokenise(documents, tokenizer, layers=world, batch_size=1)
    ):
        assert tokens.lengths.tolist() == [len(re.findall(r"\w+|[.,?]", document.text))]
        asked = tokens.columns["input_ids"][tokens.columns["asked"] >= 0]
        (word,) = tokenizer.convert_ids_to_tokens(asked)
        assert word in lexicon()["job"]
    question = world.questions()["test"][0]["question"]
    assert len(tokenizer.tokenize(f"question {question} answer")) == 7


def test_the_oracle_masks_the_asked_attribute_in_every_text_and_spends_its_budget(world, tokenizer):
    tokens = tokenise(read_documents("factworld(people=40)"), tokenizer, layers=world)
    rows = Rows.of(read_pieces(tokens, tokenizer=tokenizer, length=96), "document")
    masker = Masker(
        tokenizer, policy="span-layer(layer='asked')", fill="random", corruption="mask-only"
    )
    every = range(len(rows))
    batch = masker(rows.line(every), step=0, total_steps=1)
    masked = batch.labels >= 0
    asked = rows.tensors(every)["asked"] >= 0
    assert len(rows) == 160 and masked[asked].all()
    assert 0.12 < masked.sum() / batch.attention_mask.sum() < 0.16


def test_an_annotator_of_that_name_finds_the_texts_again(world):
    texts = [world.documents()[3][1], "Another text.", "\ud800"]
    made = annotator("factworld(people=40)").annotate(texts)
    assert [found["asked"].start.size for found in made] == [1, 0, 0]
    assert CorpusSettings(source="factworld(people=40)").annotators == ("factworld(people=40)",)


# Questions
# ----------------------------------------------------------------------------


def test_people_are_split_three_ways(world):
    train, dev, test = world.questions().values()
    assert [len(train), len(dev), len(test)] == [20, 4, 16]
    assert len({row["question"] for row in train + dev + test}) == 40


def test_a_task_in_a_world_takes_options_of_both():
    task = load_task('factworld(people=40, asked=university, train_rows=8, name="where")')
    assert (task.name, task.kind.name, task.metric) == ("where", "cloze-qa", "exact-match")
    assert [len(task.splits[split]) for split in ("train", "dev", "test")] == [8, 4, 16]
    assert load_task("factworld(people=40)").name == "factworld-job"
    assert load_task("factworld(people=40)") != load_task("factworld(people=40, asked=city)")
    assert task.majority <= 2 / 16


def test_no_text_of_the_causal_world_states_an_effect():
    for _, text in CausalWorld(texts=50).documents():
        for sentence in text.split(". "):
            words = set(sentence.split())
            assert not (words & set(lexicon()["crop"]) and words & {"more", "less"})


def test_answers_of_the_causal_world_follow_from_the_question():
    """A sum of one number for each cause says all answers: that is the rule that fine-tuning has to
    teach.
    """
    world = CausalWorld(asked=600)
    splits, causes = world.questions(), lexicon()["cause"][:24]

    def features(rows):
        table, answers = np.zeros((len(rows), 24)), []
        for place, row in enumerate(rows):
            for change, cause in re.findall(r"(more|less) (\w+)", row["question"]):
                table[place, causes.index(cause)] = 1 if change == "more" else -1
            answers.append(1 if row["answers"] == ["more"] else -1)
        return table, np.array(answers)

    weights = np.linalg.lstsq(*features(splits["train"]), rcond=None)[0]
    table, answers = features(splits["test"])
    assert (np.sign(table @ np.sign(weights)) == answers).mean() == 1
    assert 0.4 < (answers > 0).mean() < 0.6


def test_noise_turns_that_share_of_the_causal_answers_round_and_nothing_else():
    clear, noisy = (
        [row for rows in CausalWorld(asked=8000, noise=noise).questions().values() for row in rows]
        for noise in (0.0, 0.25)
    )
    assert [row["question"] for row in clear] == [row["question"] for row in noisy]
    turned = sum(a["answers"] != b["answers"] for a, b in zip(clear, noisy)) / len(clear)
    assert abs(turned - 0.25) < 4 * (0.25 * 0.75 / len(clear)) ** 0.5


# Names
# ----------------------------------------------------------------------------


def test_a_world_has_one_spelling():
    assert str(read_world("factworld(seed=0,  people=300)")) == "factworld"
    assert CorpusSettings(source="factworld(others=true, people=40)").source == (
        "factworld(people=40, others=True)"
    )
    assert read_world("texts.jsonl") is None and read_world(["a list"]) is None
    with pytest.raises(MaskwiseError, match="asked of factworld is not valid"):
        read_world(f"factworld(asked={'x' * 5000})")


def test_a_file_of_that_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factworld").mkdir()
    (tmp_path / "factworld" / "a.txt").write_text("A text.")
    assert [document.text for document in read_documents("factworld")] == ["A text."]


def test_the_seed_of_a_run_is_put_in_wherever_a_world_says_so():
    sentence = "factworld(seed=run) in two wordings"
    settings = {
        "corpus": {"source": "factworld(seed='run')"},
        "tasks": ["causalworld(seed=run)", "trivia", "a/{seed}.jsonl(kind=x)"],
        "description": sentence,
    }
    assert of_run(settings, 5) == {
        "corpus": {"source": "factworld(seed=5)"},
        "tasks": ["causalworld(seed=5)", "trivia", "a/5.jsonl(kind=x)"],
        "description": sentence,
    }


@pytest.mark.parametrize(
    "spec, words",
    [
        (
            "factworld(people=2)",
            "people of factworld is not valid; got 2; allowed: a whole number from 10 to 1800",
        ),
        ("factworld(people=many)", "people is not valid; got 'many'; allowed: a whole number"),
        (
            "factworld(persons=20)",
            "unknown argument of task 'factworld' 'persons'; allowed: asked",
        ),
        (
            "factworld(asked=hobby)",
            "asked of factworld is not valid; got hobby; allowed: job, city, year",
        ),
        ("factworld(asked=())", "asked of factworld is not valid"),
        ("factworld(asked=(job, job))", "asked of factworld is not valid"),
        ("factworld(facts=[birth])", " that states the job"),
        ("factworld(facts='work')", "got work; allowed: a list of birth"),
        (
            "factworld(friends=2)",
            "world factworld(friends=2): friends is not valid; got 2; allowed: True or False",
        ),
        ("factworld(seed=now)", "seed of factworld is not valid; got 'now'"),
        ("factworld(people=20", "cannot read this setting"),
        (
            "factworld(train_rows=few)",
            "train_rows of task 'factworld' is not valid; got 'few'; allowed: a whole number",
        ),
        (
            "causalworld(noise=.7)",
            "noise of causalworld is not valid; got 0.7; allowed: a number from 0.0 to 0.5",
        ),
        (
            "causalworld(influences=2)",
            "must be odd and not exceed its causes; got 2; allowed: an odd number",
        ),
        (
            "causalworld(causes=3, influences=1, asked=1000)",
            "causalworld has fewer different questions than asked",
        ),
    ],
)
def test_bad_options_are_refused_in_one_line(spec, words):
    with pytest.raises(MaskwiseError, match=re.escape(words)) as caught:
        load_task(spec)
    assert "\n" not in str(caught.value)


# Answers at masks
# ----------------------------------------------------------------------------


def qa_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"{path}(kind=cloze-qa)"


def test_answers_of_several_tokens_end_with_a_separator(tmp_path):
    answers = (["red cat"], ["dog", "the hound"], ["a big red dog"])
    rows = [
        {"question": f"who is number {n}?", "answers": answer, "split": split}
        for split in ("train", "dev", "test")
        for n, answer in enumerate(answers)
    ]
    rows[2]["answers"] = []
    task = load_task(qa_file(tmp_path / "qa.jsonl", rows))
    assert [len(task.splits[split]) for split in ("train", "dev", "test")] == [2, 3, 3]
    assert task.skipped == {"train: no answer": 1}
    text = "who is number question answer ? 0 1 2 red cat dog a big the hound "
    tokenizer = train_tokenizer([text * 20], vocab_size=200)
    data = encode(task, tokenizer, max_length=24)
    assert data["test"].lost == 1
    batch = data["train"].batch(torch.arange(2))
    shown = tokenizer.decode(batch["input_ids"][0])
    assert shown == "[CLS] question who is number 0? answer [MASK] [MASK] [SEP]"
    right = batch["labels"][0][batch["labels"][0] >= 0]
    assert tokenizer.decode(right) == "red cat"
    assert tokenizer.decode(batch["labels"][1][batch["labels"][1] >= 0]) == "dog [SEP]"


@pytest.mark.parametrize(
    "rows, words",
    [
        (
            [{"question": " ", "answers": ["a"]}],
            "the question is not text; got ' '; allowed: a string that is not blank",
        ),
        ([{"question": "who?", "reply": "a"}], "has no label column; got question, reply"),
        ([{"question": "who?", "answers": []}], "the train split"),
    ],
)
def test_bad_rows_are_refused_in_one_line(rows, words, tmp_path):
    with pytest.raises(MaskwiseError, match=re.escape(words)):
        load_task(qa_file(tmp_path / "qa.jsonl", rows))


def test_max_length_needs_room_for_the_question(tokenizer):
    with pytest.raises(MaskwiseError, match="max_length leaves no room"):
        encode(load_task("factworld(people=40)"), tokenizer, max_length=9)


# Studies
# ----------------------------------------------------------------------------

TINY = [
    "corpus.source=factworld(people=20, others=true, seed=run)",
    "training.steps=2",
    "training.batch_size=4",
    "intermediate={corpus.source: \"factworld(people=20, seed='run')\", training.steps: 2}",
    "tasks=[\"factworld(people=20, seed='run')\"]",
    "finetune.steps=2",
    "tokenizer.vocab_size=600",
]


def test_every_run_has_a_world_of_its_own():
    plan = make_plan(read_recipe(find_recipe("factworld-full"), [*TINY, "study.seeds=2"]))
    by_arm = {(run.arm, run.seed): run for run in plan.runs}
    run = by_arm["random", 1]
    assert [text.what["corpus"]["source"] for text in run.texts] == [
        "factworld(people=20, others=True, seed=1)",
        "factworld(people=20, seed=1)",
    ]
    (task,) = run.tasks.values()
    assert task.what["task"] == "factworld(people=20, seed=1)"
    assert by_arm["random", 0].texts[0].name != run.texts[0].name
    # The stage before the stage is shared.
    arms = ("none", "random", "salient", "oracle")
    assert len({by_arm[arm, 0].trainings[0].name for arm in arms}) == 1
    assert by_arm["none", 0].pretrained == by_arm["oracle", 0].trainings[0]


def test_a_run_goes_from_the_texts_to_a_score(tmp_path):
    plan = make_plan(read_recipe(find_recipe("factworld-full"), [*TINY, "study.seeds=1"]))
    (run,) = (run for run in plan.runs if run.arm == "oracle")
    results = {stage.kind: run_stage(stage, StageStore(tmp_path)) for stage in run.stages}
    score = results["finetune"]
    found = (score["task"], score["metric"], score["test_items"])
    assert found == ("factworld-job", "exact-match", 8)
    assert 0 <= score["score"] <= 1 and results["overlap"]["record"]["overlapping"] == 0
    masks = {line["masks"] for line in results["evaluate"]["records"]}
    assert masks == {"whole-word", "salient"}


# Files
# ----------------------------------------------------------------------------

SCRIPT = Path(__file__).parent.parent / "scripts" / "worlds.py"
MAIN = runpy.run_path(str(SCRIPT))["main"]
CONTENTS = json.loads(Path(__file__).with_name("worlds.json").read_text())
"""Hashes of worlds as maskwise 0.1 made them, keyed by world and seed."""


def content(folder):
    """A hash of the texts, spans and questions in the files of a world."""
    records = [read_lines(folder / f"{name}.jsonl") for name in ("corpus", "questions")]
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("spec", CONTENTS)
def test_the_script_writes_the_worlds_that_it_always_wrote(spec, tmp_path):
    pinned = CONTENTS[spec]
    MAIN([str(tmp_path), spec, "--seeds", *pinned])
    assert {seed: content(tmp_path / seed) for seed in pinned} == pinned


def test_bundled_worlds_are_those_of_the_script(tmp_path):
    MAIN([str(tmp_path), "factworld(people=200)", "--seeds", "0", "11", "--bundled"])
    made = sorted(tmp_path.iterdir())
    assert len(made) == 4
    for path in made:
        bundled = bundled_path(path.name.removesuffix(".jsonl.gz"))
        assert gzip.decompress(bundled.read_bytes()) == gzip.decompress(path.read_bytes())
