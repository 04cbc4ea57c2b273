"""Fact worlds of real sentences: the script that draws them, the recipes that read them, and one
file for each seed of a study."""

from __future__ import annotations

import gzip
import json
import runpy
from itertools import cycle
from pathlib import Path

import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.recipe import read_recipe
from maskwise.studies.checks import check_inputs
from maskwise.studies.plan import make_plan
from maskwise.studies.single import run_learn, run_pretrain, with_own_seed
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from tiny import find_recipe, maskwise, read_lines, write_lines

SCRIPT = Path(__file__).parent.parent / "scripts" / "trex.py"
TYPES = {
    "P106": "occupation",
    "P413": "position / speciality",
    "P39": "office",
    "P19": "birthplace",
}
WORDS = ("baker", "pilot", "keeper", "Oslo")
SEEDS = ("0", "500", "501")
ALONE = ["study.contrasts=null", "study.gate=null", "study.baseline=null"]
FEW = ["study.seeds=[500, 501]", "training.steps=2", "finetune.steps=2", "finetune.seeds=1"]


def facts():
    """Facts of four relations with made-up subjects; some sentences or answers are of no use."""
    lines = []
    for number, (relation, word) in zip(range(120), cycle(zip(TYPES, WORDS))):
        subject = f"Person{number} Smith"
        year = 1900 + number
        good = {"obj_surface": word, "masked_sentence": f"In {year} {subject} was [MASK]."}
        twice = {"obj_surface": word, "masked_sentence": f"[MASK] and [MASK] is {subject}."}
        other = {"obj_surface": "it", "masked_sentence": f"Some say [MASK] of {subject}."}
        fact = {"predicate_id": relation, "sub_label": subject, "obj_label": word}
        lines.append(fact | {"evidences": [good, twice, other]})
    # A second answer to the same question, an answer of two words, and one that occurs once.
    again = lines[0] | {
        "obj_label": "other",
        "evidences": [{"obj_surface": "other", "masked_sentence": "A [MASK]."}],
    }
    two = lines[1] | {"sub_label": "Two Words", "obj_label": "ice cream"}
    return [*lines, again, two]


def draw(folder, out, *options):
    """Draw worlds in this process: a new one takes seconds to import torch."""
    files = [folder / "facts.jsonl.gz", folder / "relations.jsonl", folder / out]
    few = ["--facts", "48", "--vocabulary", "300"]
    runpy.run_path(str(SCRIPT))["main"]([*map(str, files), *few, *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trex")
    text = "".join(json.dumps(fact) + "\n" for fact in facts())
    (folder / "facts.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    names = [{"relation": name, "label": label} for name, label in TYPES.items()]
    write_lines(folder / "relations.jsonl", names)
    draw(folder, "trex-nouns", "--seeds", *SEEDS, "--relations", "P106", "P413")
    draw(folder, "trex-names", "--seeds", *SEEDS, "--relations", "P19")
    four = ["--relations", "P413", "P39", "P106", "P19", "--asked", "P413", "P39"]
    draw(folder, "trex-transfer", "--seeds", *SEEDS, *four)
    return folder


@pytest.mark.script
def test_a_world_has_sentences_with_places_and_questions_split_by_subject(folder):
    world = folder / "trex-transfer" / "500"
    corpus = read_lines(world / "corpus.jsonl")
    questions = read_lines(world / "questions.jsonl")
    assert len(corpus) == 48 and len(questions) == 24
    # Places are those of the asked relations alone.
    marked = [line["text"][a:b] for line in corpus for a, b in line["spans"]]
    assert sorted(set(marked)) == ["keeper", "pilot"] and len(marked) == 24
    assert {q["relation"] for q in read_lines(world / "P19.jsonl")} == {"P19"}
    everything = questions + read_lines(world / "P19.jsonl") + read_lines(world / "P106.jsonl")
    by_split = {
        split: {q["question"].partition(" of ")[2] for q in everything if q["split"] == split}
        for split in ("train", "dev", "test")
    }
    assert [*map(len, by_split.values())] == [24, 5, 19]
    assert len(set.union(*by_split.values())) == 48
    assert any(q["question"].startswith("position of Person") for q in questions)
    assert all(q["answers"][0] in ("pilot", "keeper") for q in questions)


@pytest.mark.script
def test_facts_are_drawn_anew_by_the_seed_and_again_by_the_same_one(folder, tmp_path):
    texts = [(folder / "trex-nouns" / seed / "corpus.jsonl").read_text() for seed in SEEDS]
    assert len(set(texts)) == len(SEEDS)
    draw(folder, tmp_path, "--seeds", "501", "--relations", "P106", "P413")
    assert (tmp_path / "501" / "corpus.jsonl").read_text() == texts[2]


@pytest.mark.script
@pytest.mark.parametrize("name", ["trex-nouns", "trex-names", "trex-transfer"])
def test_the_recipes_read_another_file_for_each_seed(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    recipe = read_recipe(find_recipe(name), FEW)
    study = recipe.study
    assert study.gate is not None and study.gate.contrast == ("oracle", "random")
    assert (study.margin, recipe.baseline) == (0.03, "random")
    check_inputs(recipe)
    plan = make_plan(recipe)
    read = {run.seed: {text.what["corpus"]["source"] for text in run.texts} for run in plan.runs}
    assert read == {seed: {f"{name}/{seed}/corpus.jsonl"} for seed in (500, 501)}
    contents = {task.what["task_content"] for run in plan.runs for task in run.tasks.values()}
    assert len(contents) == 2
    for run in plan.runs:
        (task,) = run.tasks.values()
        assert f"{name}/{run.seed}/" in task.what["task"]
    learned = [stage.what["task"] for stage in plan.stages() if stage.kind == "learn"]
    assert all("{seed}" not in task for task in learned)
    assert len(learned) == {"trex-nouns": 4, "trex-names": 0, "trex-transfer": 6}[name]


@pytest.mark.script
def test_content_words_are_marked_and_policies_share_their_budget_with_random_tokens(
    folder, monkeypatch
):
    corpus = read_lines(folder / "trex-transfer" / "500" / "corpus.jsonl")
    content = {line["text"][a:b] for line in corpus for a, b in line["content"]}
    assert {"pilot", "keeper"} <= content and content.isdisjoint({"the", "of", "a", "is", "."})
    monkeypatch.chdir(folder)
    recipe = read_recipe(find_recipe("trex-content"), FEW)
    check_inputs(recipe)
    for arm in recipe.study.arms:
        policy = recipe.arm(arm, seed=500).masking.policy
        assert "0.5" in policy or arm == "random"


def test_a_run_reads_the_places_of_its_own_seed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    small = ["study.arms=oracle", *ALONE, "tokenizer.vocab_size=300", "corpus.held_out=0.2"]
    plan = make_plan(read_recipe(find_recipe("trex-nouns"), [*FEW, *small]))
    (run,) = (run for run in plan.runs if run.arm == "oracle" and run.seed == 501)
    results = {stage.kind: run_stage(stage, StageStore(folder / "stages")) for stage in run.stages}
    score = results["finetune"]["measurements"][0]
    assert score["measure"] == "nouns" and score["chance"] >= 0.4


@pytest.mark.slow
def test_a_seed_stands_in_paths_and_seed_0_where_there_is_no_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    changes = ["study.arms=random", *ALONE, "study.seeds=[500]", "--dry-run", "--json"]
    # The little worlds have fewer rows than a batch of the recipe.
    changes.append("training.batch_size=8")
    assert maskwise("study", find_recipe("trex-names"), *changes) == 0
    assert json.loads(capsys.readouterr().out)
    with pytest.raises(MaskwiseError, match=r"trex-nouns/502/questions.jsonl"):
        make_plan(read_recipe(find_recipe("trex-nouns"), ["study.seeds=[502]"]))


def test_a_single_run_reads_the_places_of_its_own_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = 'corpus: {source: "{seed}/c.txt"}\ntasks: ["{seed}/l.csv"]\n'
    Path("one.yaml").write_text(
        f"{places}training: {{seed: 3}}\nlearning: {{method: supervised}}\n"
    )
    with pytest.raises(MaskwiseError, match=r"'3/c\.txt' does not exist"):
        run_pretrain(read_recipe("one.yaml"), tmp_path / "pretrain")
    with pytest.raises(MaskwiseError, match=r"'3/l\.csv' does not exist"):
        run_learn(read_recipe("one.yaml"), tmp_path / "learn")
    recipe = read_recipe("quick-start")
    assert with_own_seed(recipe) is recipe
