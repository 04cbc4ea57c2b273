"""Invented worlds as files: texts, spans and questions; recipes that read them; tasks answered at
masks.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from invented import SCRIPT, script, world
from maskwise.annotate.registry import annotator
from maskwise.annotate.run import Live
from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import of_run
from maskwise.masking import Masker
from maskwise.recipe import read_recipe
from maskwise.studies.plan import make_plan
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.tasks import load_task, task_tensors
from maskwise.text import Rows, bundled_path, read_documents, read_pieces, tokenise, train_tokenizer
from tiny import find_recipe, maskwise, read_lines

CONTENTS = json.loads(Path(__file__).with_name("worlds.json").read_text())
"""Hashes of worlds as maskwise 0.1 made them, keyed by world and seed."""
FORTY = world("factworld(people=40)")


def made(spec, seed=0):
    """A world of the script."""
    return script()["read_world"](spec, seed)


def lexicon():
    return script()["lexicon"]()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(FORTY.texts, vocab_size=2048)


# Files
# ----------------------------------------------------------------------------


def content(folder):
    """A hash of the texts, spans and questions in the files of a world."""
    records = [read_lines(folder / f"{name}.jsonl") for name in ("corpus", "questions")]
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("spec", CONTENTS)
def test_the_script_writes_the_worlds_that_it_always_wrote(spec, tmp_path):
    pinned = CONTENTS[spec]
    script()["main"]([str(tmp_path), spec, "--seeds", *pinned])
    assert {seed: content(tmp_path / seed) for seed in pinned} == pinned


def test_bundled_worlds_are_those_of_the_script(tmp_path):
    script()["main"]([str(tmp_path), "factworld(people=200)", "--seeds", "0", "11", "--bundled"])
    written = sorted(tmp_path.iterdir())
    assert len(written) == 4
    for path in written:
        bundled = bundled_path(path.name.removesuffix(".jsonl.gz"))
        assert gzip.decompress(bundled.read_bytes()) == gzip.decompress(path.read_bytes())


def test_a_world_does_not_depend_on_the_process(tmp_path):
    """Hashes of strings differ from process to process; nothing of a world may depend on them."""
    spec = "factworld(people=20)"
    subprocess.run([sys.executable, SCRIPT, tmp_path, spec, "--seeds", "5"], check=True)
    assert content(tmp_path / "5") == CONTENTS[spec]["5"]


@pytest.mark.parametrize(
    "spec, words",
    [
        (
            "factworld(people=2)",
            "people of factworld is not valid; got 2; allowed: a whole number from 10 to 1800",
        ),
        ("factworld(people=many)", "people is not valid; got 'many'; allowed: a whole number"),
        ("factworld(persons=20)", "got an unexpected keyword argument 'persons'"),
        (
            "factworld(asked=hobby)",
            "asked of factworld is not valid; got hobby; allowed: job, city, year",
        ),
        ("factworld(asked=())", "asked of factworld is not valid"),
        ("factworld(asked=(job, job))", "asked of factworld is not valid"),
        ("factworld(facts=[birth])", " that states the job"),
        ("factworld(facts='work')", "got work; allowed: a list of birth"),
        ("factworld(friends=2)", "friends is not valid; got 2; allowed: True or False"),
        ("factworld(people=20", "cannot read this setting"),
        ("factworlds", "unknown world 'factworlds'"),
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
def test_bad_options_are_refused_in_one_line_and_nothing_is_written(spec, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        script()["main"]([str(tmp_path / "out"), spec])
    assert caught.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in line and not (tmp_path / "out").exists()


# Texts
# ----------------------------------------------------------------------------


def marked(record, field):
    """The marked stretches of a text."""
    return [record["text"][span[0] : span[1]] for span in record[field]]


def corpus(spec):
    return list(made(spec).corpus())


def test_tags_say_what_every_word_is():
    told = made("factworld(people=10, biographies=1, tags=True)")
    record = next(told.corpus())
    text, tags = record["text"], record["tag"]
    said = {text[start:end]: tag for start, end, tag in tags}
    person = told.persons[0]
    for kind in ("job", "employer", "university", "name"):
        assert said[person[kind]] == kind
    assert said["."] == said["worked"] == "other"
    assert {tag for *_, tag in tags} <= set(script()["TAGS"])
    plain = next(made("factworld(people=10, biographies=1)").corpus())
    assert "tag" not in plain and plain["text"] == text


def test_another_option_gives_another_world():
    options = (
        "",
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
    worlds = {json.dumps(corpus(f"factworld(people=40, {more})")) for more in options}
    worlds.add(json.dumps(list(made("factworld(people=40)", 1).corpus())))
    assert len(worlds) == len(options) + 1


def test_words_stand_for_one_thing_each():
    kinds = lexicon().keys() - {*script()["SAME_WORDS"], "cause"}
    names = [word.lower() for kind in kinds for word in lexicon()[kind]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z]+|19[0-5][0-9]", name) for name in names)


def test_every_fact_stands_in_every_biography():
    world = made("factworld(people=40)")
    texts = {record["id"]: record["text"] for record in world.corpus()}
    assert len(texts) == 160
    for number, person in enumerate(world.persons):
        for copy in range(4):
            text = texts[f"person-{number}-{copy}"]
            assert all(value in text for value in person.values())


def test_others_share_no_name_with_the_people():
    groups = [made(f"factworld(people=40, others={others})") for others in (False, True)]
    people, others = ({person["name"] for person in group.persons} for group in groups)
    assert not people & others


def test_spans_cover_what_they_say():
    world = made("factworld(people=40)")
    entities = {value for person in world.persons for key, value in person.items() if key != "job"}
    entities |= set(lexicon()["friend"]) | set(lexicon()["place"])
    for record in corpus("factworld(people=40)")[:40]:
        (asked,) = marked(record, "asked")
        salient = marked(record, "salient")
        assert asked in lexicon()["job"]
        assert set(salient) <= entities and len(salient) >= 10
        capitals = re.findall(r"[A-Z][a-z]+|19\d\d", record["text"])
        assert " ".join(salient).split() == capitals  # everything with a capital letter, and years


def test_two_attributes_are_asked_of_everybody_and_both_are_marked():
    world = made("factworld(people=40, asked=(job, university))")
    by_split = {split: [] for split in ("train", "dev", "test")}
    for row in world.questions():
        by_split[row["split"]].append(row)
    train, dev, test = by_split.values()
    assert [len(train), len(dev), len(test)] == [40, 8, 32]
    names = [{row["question"].split(maxsplit=2)[2] for row in rows} for rows in (train, dev + test)]
    assert not names[0] & names[1] and len(names[0]) == 20
    person = world.persons[0]
    assert [row["answers"][0] for row in train[:2]] == [person["job"], person["university"]]
    for record in list(world.corpus())[:40]:
        found = marked(record, "asked")
        assert len(found) == 2
        assert set(found) & set(lexicon()["job"]) and set(found) & set(lexicon()["university"])


@pytest.mark.parametrize(
    ("asked", "telling", "named"), [("job", "worked as a ", 0), ("university", "studied at ", 3)]
)
def test_a_decoy_is_the_same_kind_of_word_and_is_not_marked_as_asked(asked, telling, named):
    world = made(f"factworld(people=40, asked={asked}, decoys=2)")
    words = set(lexicon()[asked])
    for record in list(world.corpus())[:40]:
        text = record["text"]
        ((start, end),) = record["asked"]
        assert text[start:end] in words and text[:start].endswith(telling)
        # the right one, and two decoys
        assert sum(word in words for word in re.findall(r"\w+", text)) == 3
        assert sum(word in words for word in marked(record, "salient")) == named
    # Nothing else of the world is another.
    assert world.persons == made("factworld(people=40)").persons


# Layers
# ----------------------------------------------------------------------------


def test_every_word_is_a_token_and_layers_lie_on_words(tokenizer):
    documents = list(read_documents(FORTY.source))
    layers = Live(FORTY.layers)
    for document, tokens in zip(
        documents, tokenise(documents, tokenizer, layers=layers, batch_size=1)
    ):
        assert tokens.lengths.tolist() == [len(re.findall(r"\w+|[.,?]", document.text))]
        asked = tokens.columns["input_ids"][tokens.columns["asked"] >= 0]
        (word,) = tokenizer.convert_ids_to_tokens(asked)
        assert word in lexicon()["job"]
    question = load_task(FORTY.task()).splits["test"][0].question
    assert len(tokenizer.tokenize(f"question {question} answer")) == 7


def test_the_oracle_masks_the_asked_attribute_in_every_text_and_spends_its_budget(tokenizer):
    layers = Live(FORTY.layers)
    tokens = tokenise(read_documents(FORTY.source), tokenizer, layers=layers)
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


@pytest.mark.parametrize("field", ["salient", "asked"])
def test_bundled_spans_are_those_of_the_texts(field):
    annotator_of_field = annotator(f"spans('bundled:world-4', field='{field}', layer='it')")
    records = list(made("factworld(people=200)", 4).corpus())
    texts = [record["text"] for record in records]
    found = annotator_of_field.annotate([*texts, "Another text."])
    places = [np.stack([spans["it"].start, spans["it"].end], axis=1).tolist() for spans in found]
    assert places == [*(record[field] for record in records), []]


# Questions
# ----------------------------------------------------------------------------


def test_a_task_in_a_world_splits_people_three_ways():
    task = load_task(world("factworld(people=40, asked=university)").task(train_rows=8))
    assert (task.kind.name, task.metric) == ("cloze-qa", "exact-match")
    assert [len(task.splits[split]) for split in ("train", "dev", "test")] == [8, 4, 16]
    whole = load_task(FORTY.task())
    rows = [row for split in whole.splits.values() for row in split]
    assert len(whole.splits["train"]) == 20 and len({row.question for row in rows}) == 40
    assert task.majority <= 2 / 16


def test_a_bundled_world_is_a_task():
    task = load_task("bundled:world-0-questions(kind='cloze-qa')")
    assert task.name == "world-0-questions" and not task.skipped
    assert [len(rows) for rows in task.splits.values()] == [100, 20, 80]
    written = load_task(world("factworld(people=200)").task())
    assert task.splits == written.splits


def test_no_text_of_the_causal_world_states_an_effect():
    for record in corpus("causalworld(texts=50)"):
        for sentence in record["text"].split(". "):
            words = set(sentence.split())
            assert not (words & set(lexicon()["crop"]) and words & {"more", "less"})


def test_answers_of_the_causal_world_follow_from_the_question():
    """A sum of one number for each cause says all answers: that is the rule that fine-tuning has to
    teach.
    """
    questions = made("causalworld(asked=600)").questions()
    causes = lexicon()["cause"][:24]

    def features(split):
        rows = [row for row in questions if row["split"] == split]
        table, answers = np.zeros((len(rows), 24)), []
        for place, row in enumerate(rows):
            for change, cause in re.findall(r"(more|less) (\w+)", row["question"]):
                table[place, causes.index(cause)] = 1 if change == "more" else -1
            answers.append(1 if row["answers"] == ["more"] else -1)
        return table, np.array(answers)

    weights = np.linalg.lstsq(*features("train"), rcond=None)[0]
    table, answers = features("test")
    assert (np.sign(table @ np.sign(weights)) == answers).mean() == 1
    assert 0.4 < (answers > 0).mean() < 0.6


def test_noise_turns_that_share_of_the_causal_answers_round_and_nothing_else():
    worlds = [made(f"causalworld(asked=8000, noise={noise})") for noise in (0.0, 0.25)]
    clear, noisy = (world.questions() for world in worlds)
    assert [row["question"] for row in clear] == [row["question"] for row in noisy]
    turned = sum(a["answers"] != b["answers"] for a, b in zip(clear, noisy)) / len(clear)
    assert abs(turned - 0.25) < 4 * (0.25 * 0.75 / len(clear)) ** 0.5


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
    data = task_tensors(task, tokenizer, max_length=24)
    assert data["test"].lost == 1
    batch = data["train"].batch(torch.arange(2))
    shown = tokenizer.decode(batch["input_ids"][0])
    assert shown == "[CLS] question who is number 0? answer [MASK] [MASK] [SEP]"
    right = batch["labels"][0][batch["labels"][0] >= 0]
    assert tokenizer.decode(right) == "red cat"
    assert tokenizer.decode(batch["labels"][1][batch["labels"][1] >= 0]) == "dog [SEP]"


def test_max_length_needs_room_for_the_question(tokenizer):
    with pytest.raises(MaskwiseError, match="max_length leaves no room"):
        task_tensors(load_task(FORTY.task()), tokenizer, max_length=9)


# Recipes
# ----------------------------------------------------------------------------

FEW = world("factworld(people=20)", 0, 1)
OTHERS = world("factworld(people=20, others=True)", 0, 1)
TINY = [
    *OTHERS.settings,
    "corpus.held_out=0.1",
    "training.steps=2",
    "training.batch_size=4",
    f"phases=[{{}}, {{corpus.source: '{FEW.source}', corpus.layers: {json.dumps(FEW.layers)}, "
    "training.steps: 2}]",
    f"tasks={json.dumps([FEW.task(name='factworld-job')])}",
    "finetune.steps=2",
    "tokenizer.vocab_size=600",
    "study.search=null",
    "study.contrasts=null",
]
ARMS = "study.arms={none: {phases: null}, random: {}, oracle: {phases.1.masking.policy: "
ARMS += "\"span-layer(layer='asked')\"}}"


def test_every_run_has_a_world_of_its_own():
    plan = make_plan(read_recipe(find_recipe("factworld-full"), [*TINY, ARMS, "study.seeds=2"]))
    by_arm = {(run.arm, run.seed): run for run in plan.runs}
    run = by_arm["random", 1]
    sources = [text.what["corpus"]["source"] for text in run.texts]
    assert sources == [OTHERS.of(1).source, FEW.of(1).source]
    (task,) = run.tasks.values()
    assert task.what["task"].startswith(FEW.of(1).file("questions"))
    assert by_arm["random", 0].texts[0].name != run.texts[0].name
    # The stage before the stage is shared.
    arms = ("none", "random", "oracle")
    assert len({by_arm[arm, 0].trainings[0].name for arm in arms}) == 1
    assert by_arm["none", 0].pretrained == by_arm["oracle", 0].trainings[0]


def test_a_run_goes_from_the_texts_to_a_score(tmp_path):
    plan = make_plan(read_recipe(find_recipe("factworld-full"), [*TINY, ARMS, "study.seeds=1"]))
    (run,) = (run for run in plan.runs if run.arm == "oracle")
    results = {stage.kind: run_stage(stage, StageStore(tmp_path)) for stage in run.stages}
    score = results["finetune"]["measurements"][0]
    found = (score["measure"], score["metric"], score["items"])
    assert found == ("factworld-job", "exact-match", 8)
    assert 0 <= score["value"] <= 1 and results["overlap"]["record"]["overlapping"] == 0
    masks = {line["measure"] for line in results["evaluate"]["measurements"]}
    assert masks == {"whole-word", "salient"}


def test_the_seed_of_a_run_is_put_in_wherever_a_name_says_so():
    settings = {
        "corpus": {"source": {"a/{seed}.jsonl": 2, "b.jsonl": 1}},
        "tasks": ["trivia", "a/{seed}.jsonl(kind=x)"],
        "training": {"steps": 5},
    }
    assert of_run(settings, 5) == {
        "corpus": {"source": {"a/5.jsonl": 2, "b.jsonl": 1}},
        "tasks": ["trivia", "a/5.jsonl(kind=x)"],
        "training": {"steps": 5},
    }


@pytest.mark.parametrize("recipe", ["factworld", "learn-meta", "learn-supervised"])
def test_shipped_recipes_read_a_bundled_world_in_each_run(recipe):
    plan = make_plan(read_recipe(recipe, ["study.seeds=[3, 11]"]))
    for run in plan.runs:
        assert {text.what["corpus"]["source"] for text in run.texts} == {
            f"bundled:world-{run.seed}"
        }
        (task,) = run.tasks.values()
        assert task.what["task"].startswith(f"bundled:world-{run.seed}-questions(")


@pytest.mark.parametrize("command", ["study", "pretrain"])
def test_seeds_without_a_bundled_world_are_refused_in_one_line(command, tmp_path, capsys):
    seeds = {"study": "study.seeds=[12]", "pretrain": "training.seed=12"}
    out = tmp_path / "out"
    assert maskwise(command, "factworld", seeds[command], "--out", out) == 2
    *notes, error = capsys.readouterr().err.strip().splitlines()
    assert "no world-12" in error and "scripts/worlds.py" in error
    assert not any("world" in note for note in notes) and not out.exists()
