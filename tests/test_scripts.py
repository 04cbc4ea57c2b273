"""Scripts that write the data of studies in benchmarks/PLAN.md."""

from __future__ import annotations

import ast
import gzip
import importlib
import json
import runpy
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskwise.recipe import read_recipe
from maskwise.tasks import load_task
from maskwise.text import Document
from maskwise.text.new_words import read_words
from maskwise.text.rows import held_out_below, holds_out
from tiny import find_recipe, read_lines, write_lines

SPLITS = ("train", "dev", "test")
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


@pytest.mark.script
def test_titles_of_dev_and_test_are_of_documents_that_are_held_out(tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    runpy.run_path(str(SCRIPTS / "title_pairs.py"))["main"](out)
    assert "800 train, 100 dev, 500 test" in capsys.readouterr().out
    task = load_task(f"{out}(kind=retrieval, fine_tuned=true)")
    recipe = ROOT / "benchmarks" / "recipes" / "retrieval-pretraining.yaml"
    corpus = read_recipe(recipe, [f"tasks=['{out}(kind=retrieval)']"]).corpus
    end = held_out_below(corpus.held_out)
    places = {document.text[:400]: document.place for document in corpus.documents()}
    for split, rows in task.splits.items():
        for row in rows:
            assert (places[row.passage] < end) == (split != "train")


@pytest.mark.script
def test_questions_are_split_by_article_and_test_answers_are_marked(tmp_path, monkeypatch, capsys):
    articles = []
    for number in range(10):
        text = f"The lamp of town {number} burns at night."
        answer = {"text": f"town {number}", "answer_start": 12}
        asked = [{"question": f"Where is lamp {number}?", "answers": [answer, answer]}]
        paragraph = {"context": text, "qas": asked}
        articles.append({"title": f"lamp {number}", "paragraphs": [paragraph]})
    squad = tmp_path / "squad.json"
    squad.write_text(json.dumps({"data": articles}))
    runpy.run_path(str(SCRIPTS / "closed_book.py"))["main"](squad, tmp_path / "trivia")
    assert "6 train, 1 dev, 3 test" in capsys.readouterr().out
    contexts = read_lines(tmp_path / "trivia" / "contexts.jsonl")
    marked = [row["text"][start:end] for row in contexts for start, end in row["spans"]]
    test = read_lines(tmp_path / "trivia" / "closed" / "test.jsonl")
    assert sorted(marked) == sorted(row["answers"][0] for row in test)
    learned_from = read_lines(tmp_path / "trivia" / "open" / "train.jsonl")
    assert not set(marked) & {row["answers"][0] for row in learned_from}
    assert sum(bool(row["spans"]) for row in contexts) == 3
    right = read_lines(tmp_path / "trivia" / "right.jsonl")
    other = read_lines(tmp_path / "trivia" / "other.jsonl")
    assert len(right) == len(other) == 4
    assert all(row in right for row in contexts if row["spans"])
    apart = {
        split: read_lines(tmp_path / "trivia" / "apart" / f"{split}.jsonl") for split in SPLITS
    }
    assert {split: len(rows) for split, rows in apart.items()} == {"train": 2, "dev": 1, "test": 3}
    others = " ".join(row["text"] for row in other)
    rights = " ".join(row["text"] for row in right)
    for split, rows in apart.items():
        for row in rows:
            assert row["answers"][0] not in others
            assert (row["answers"][0] in rights) == (split != "train")
    # With false answers, no true one is left in its article. Shuffled ones are of other articles.
    true = {row["id"]: row["text"] for row in right}
    known = {row["answers"][0] for split in ("dev", "test") for row in apart[split]}
    answer_in = {name: next(a for a in known if a in text) for name, text in true.items()}
    foreign = read_lines(tmp_path / "trivia" / "foreign.jsonl")
    shuffled = read_lines(tmp_path / "trivia" / "shuffled.jsonl")
    for row in [*foreign, *shuffled]:
        assert answer_in[row["id"]] not in row["text"]
    assert not any(answer in row["text"] for answer in known for row in foreign)
    for row in shuffled:
        assert sum(answer in row["text"] for answer in known) == 1
    monkeypatch.chdir(tmp_path)
    for recipe in (
        "trivia-own",
        "corpus-and-policy",
        "false-answers",
        "false-answers-pilot",
        "corpus-rates",
    ):
        assert read_recipe(find_recipe(recipe)).name == recipe


@pytest.mark.script
def test_labelled_passages_of_novels_are_not_in_the_text(tmp_path):
    lines = []
    for title in ("One", "Two"):
        paragraphs = [" ".join([f"{title.lower()}{n}"] * 35) for n in range(90)]
        lines.append(json.dumps({"title": title, "text": "\n".join(paragraphs)}))
    novels = tmp_path / "novels.jsonl.gz"
    with gzip.open(novels, "wt") as file:
        file.write("\n".join(lines))
    runpy.run_path(str(SCRIPTS / "novels.py"))["main"](novels, tmp_path / "out")
    train = read_lines(tmp_path / "out" / "novels" / "train.jsonl")
    test = read_lines(tmp_path / "out" / "novels" / "test.jsonl")
    assert (len(train), len(test)) == (20, 40)
    text = "\n".join(row["text"] for row in read_lines(tmp_path / "out" / "novels.jsonl"))
    for row in [*train, *test]:
        assert row["text"] not in text
    assert len(text.split("\n")) == 2 * 90 - 60


@pytest.mark.script
def test_labelled_terms_have_one_organ_system_and_are_not_in_the_text(tmp_path):
    blocks = ["format-version: 1.2", "[Term]\nid: HP:0000118\nname: Phenotypic abnormality"]
    numbers = count(1000)
    for system in ("eye", "ear", "skin"):
        top = f"HP:{next(numbers)}"
        blocks.append(f"[Term]\nid: {top}\nname: {system} system\nis_a: HP:0000118 ! root")
        # Too few terms of the skin to be a label.
        for number in range(100 if system != "skin" else 20):
            lines = [f"id: HP:{next(numbers)}", f"name: {system} term {number}"]
            lines += [f'def: "The \\"{system}\\" of kind {number}." [PMID:1]', f"is_a: {top} ! top"]
            lines += [f'synonym: "{system} word {number}" EXACT []', "comment: Seen once."]
            blocks.append("\n".join(["[Term]", *lines]))
    both = ["id: HP:9999", "name: eye and ear", 'def: "Both." []', "is_a: HP:1001", "is_a: HP:1102"]
    blocks.append("\n".join(["[Term]", *both]))
    blocks.append('[Term]\nid: HP:9998\nname: gone\ndef: "Gone." []\nis_obsolete: true')
    ontology = tmp_path / "hp.obo"
    ontology.write_text("\n\n".join(blocks))
    runpy.run_path(str(SCRIPTS / "hpo.py"))["main"](ontology, tmp_path / "out")
    rows = read_lines(tmp_path / "out" / "systems" / "train.jsonl")
    rows += read_lines(tmp_path / "out" / "systems" / "test.jsonl")
    assert Counter(row["label"] for row in rows) == {"eye system": 75, "ear system": 75}
    assert all(row["text"].split()[0] == row["label"].split()[0] for row in rows)
    texts = [row["text"] for row in read_lines(tmp_path / "out" / "hpo.jsonl")]
    assert len(texts) == 25 + 25 + 20 + 1 and not any("gone" in text.lower() for text in texts)
    names = {text.partition(";")[0] for text in texts}
    assert names.isdisjoint(row["text"] for row in rows)
    known = 'skin term 3; skin word 3. The "skin" of kind 3. Seen once.'
    assert known in texts


@pytest.mark.script
def test_a_second_draw_tests_terms_that_the_first_left_in_the_text(tmp_path, monkeypatch):
    main = runpy.run_path(str(SCRIPTS / "hpo.py"))["main"]
    monkeypatch.setitem(main.__globals__, "TRAIN_ROWS", 2)
    monkeypatch.setitem(main.__globals__, "TEST_ROWS", 4)
    # Of 12 terms, the first draw leaves 6 in the text, of 7 only one.
    ontology = ["format-version: 1.2", "[Term]\nid: HP:0000118\nname: Phenotypic abnormality"]
    for system, size in (("eye", 12), ("ear", 7)):
        ontology.append(f"[Term]\nid: {system}\nname: {system} system\nis_a: HP:0000118 ! root")
        for n in range(size):
            of = f"[Term]\nid: {system}{n}\nname: {system} {n}\nis_a: {system} ! top"
            ontology.append(f'{of}\ndef: "Seen." []')
    (tmp_path / "hp.obo").write_text("\n\n".join(ontology))
    first, second = tmp_path / "first", tmp_path / "second"
    main(tmp_path / "hp.obo", first)
    main(tmp_path / "hp.obo", second, second_draw=True)
    train, old, new = (
        {row["text"] for row in read_lines(file)}
        for file in (
            first / "systems" / "train.jsonl",
            first / "systems" / "test.jsonl",
            second / "systems" / "test.jsonl",
        )
    )
    assert train == {row["text"] for row in read_lines(second / "systems" / "train.jsonl")}
    assert len(new) == 8 and not new & train
    assert Counter(name.split()[0] for name in new & old) == {"ear": 3}
    texts = {row["text"].partition(".")[0] for row in read_lines(second / "hpo.jsonl")}
    assert not texts & (new | train) and old - new <= texts
    assert len(texts) == 12 + 7 - 4 - 8

    # Every size holds out the same texts, and a smaller text is part of a larger one.
    main(tmp_path / "hp.obo", first, sizes=[1, 3], held_out=0.4)
    whole, small, large = (
        {row["text"] for row in read_lines(first / f"hpo{size}.jsonl")} for size in ("", "-1", "-3")
    )
    held = {text for text in whole if holds_out(Document("", text), 0.4)}
    assert held and held < small < large < whole
    assert (len(small), len(large)) == (len(held) + 1, len(held) + 3)


@pytest.mark.script
def test_random_words_are_candidates_and_differ_between_seeds(tmp_path):
    rare = "neuropathologist"
    words = ["cardiomyopathy", "electrolyte", "arrhythmia", "keratoconus", "nephrolithiasis"]
    texts = [f"the {' and '.join(words)} of {rare if n < 4 else 'it'} {n}." for n in range(12)]
    text = tmp_path / "text.jsonl"
    write_lines(text, [{"text": each} for each in texts])
    draw = runpy.run_path(str(SCRIPTS / "random_words.py"))["main"]
    draw("bundled:encoder", str(text), tmp_path / "out", words=3, seeds=6, held_out=0.0)
    drawn = [read_words(tmp_path / "out" / f"{seed}.txt") for seed in range(6)]
    assert all(len(each) == 3 and {*each} <= {*words} for each in drawn) and len({*drawn}) > 1


def test_the_text_of_every_mutant_is_in_the_source_once():
    """A stale mutant is never killed, and only a slow script would notice."""
    source = ROOT / "src" / "maskwise"
    stale = [
        f"{mutant['file']}: {mutant['old']!r}"
        for mutant in json.loads((ROOT / "tests" / "mutants.json").read_text(encoding="utf-8"))
        if (source / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"]) != 1
    ]
    assert not stale


def test_a_test_that_fails_anyway_kills_no_mutant(monkeypatch, capsys):
    script = runpy.run_path(str(SCRIPTS / "mutants.py"))
    ran = []

    def outcome_of(tests, source):
        ran.append(tests)
        return 1

    main = script["main"]
    main.__globals__.update(outcome_of=outcome_of, LIBRARIES=())
    monkeypatch.setattr(main.__globals__["shutil"], "copytree", lambda *given, **named: None)
    assert main(["no such file"]) == 1 and ran == []
    capsys.readouterr()
    assert main(["schedules.py"]) == 1
    (tests,) = ran
    assert len(tests) > 0 and all("::" in test for test in tests)
    printed = capsys.readouterr().out
    assert tests[0] in printed and "killed" not in printed


@pytest.fixture
def cuda_stub(monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    return runpy.run_path(str(SCRIPTS / "cuda_stub.py"))


@pytest.mark.script
def test_a_walk_of_some_cases_does_not_replace_the_record(cuda_stub, tmp_path):
    result_of, record, source = (cuda_stub[name] for name in ("result_of", "RESULT", "ROOT"))
    given = SimpleNamespace(result=None, build=tmp_path, only="", src=source / "src")
    assert result_of(given) == record
    for change in ({"only": "rtd"}, {"src": tmp_path}):
        other = SimpleNamespace(**{**vars(given), **change})
        assert result_of(other) == tmp_path / record.name
        assert result_of(SimpleNamespace(**{**vars(other), "result": record})) == record


@pytest.mark.script
def test_a_graph_without_code_and_a_block_without_a_graph_are_wrong(cuda_stub):
    graph = {"pass": "forward", "attention": ["torch_attn._varlen_attn"]}
    line = {
        "waits": {},
        "attention": {"_varlen_attn bfloat16": 4},
        "heads": 1,
        "graphs": 2,
        "graphs_of_head": [graph, graph],
        "graphs_of_blocks": [graph, graph],
    }

    def wrong(**changes):
        return cuda_stub["wrong_with"]({**line, **changes}, encodes=True, chunked=False)

    assert wrong() == []
    failed = {"pass": "backward", "attention": [], "failed": "KeyError: 1"}
    assert len(wrong(graphs_of_head=[graph, failed])) == 1
    assert len(wrong(graphs_of_blocks=[graph, failed])) == 1
    assert len(wrong(graphs_of_blocks=[])) == 1 + 1


@pytest.mark.script
def test_the_walk_includes_every_variant_of_the_step(cuda_stub, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    words = [words for _, words, _ in cuda_stub["runs"]()]
    tries = {each.removeprefix(cuda_stub["TRY"]) for each in words if cuda_stub["TRY"] in each}
    assert tries == {*cuda_stub["variants"]()} and len(tries) == 5


def imports_of_maskwise() -> Iterator[tuple[str, str, str]]:
    """Yield the file, the module and the name of each import in scripts and benchmarks."""
    for path in sorted([*SCRIPTS.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskwise"):
                for alias in node.names:
                    yield path.name, node.module or "", alias.name


IMPORTS = [*imports_of_maskwise()]


@pytest.mark.parametrize("module", sorted({module for _, module, _ in IMPORTS}))
def test_scripts_and_benchmarks_import_what_exists(module):
    """Nothing else runs most of them, so a name that has moved would be found years later."""
    asked = [(path, name) for path, of, name in IMPORTS if of == module]
    there = importlib.import_module(module)
    missing = []
    for path, name in asked:
        is_module = hasattr(there, "__path__") and find_spec(f"{module}.{name}")
        if not is_module and not hasattr(there, name):
            missing.append(f"{path}: {name}")
    assert not missing


@pytest.mark.script
def test_summaries_of_the_task_have_one_part_and_are_not_in_the_text(tmp_path, monkeypatch):
    lines = []
    for number in range(90):
        lines += [f"def function_{number}():", f'    """Compute quantity {number} of a sample.', ""]
        lines += ["    It has details." * 20, '    """', "def _hidden():", '    """Hidden."""']
    for part, code in (
        ("one", lines),
        ("two", [line.replace("a sample", "a graph") for line in lines]),
        # Its summaries are also those of "one", and have no one answer.
        ("three", [line.replace("details", "cases") for line in lines[: 7 * 80]]),
        # Its docstrings are also those of "two", word by word.
        ("twin", [line.replace("a sample", "a graph") for line in lines[: 7 * 20]]),
        ("_own", [line.replace("a sample", "nothing") for line in lines]),
        ("tests", [line.replace("a sample", "a test") for line in lines]),
    ):
        folder = tmp_path / "made_up_package" / part
        folder.mkdir(parents=True)
        (folder / "code.py").write_text("\n".join(code))
    (tmp_path / "made_up_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    script = runpy.run_path(str(SCRIPTS / "docstrings.py"))
    script["main"].__globals__["PACKAGES"] = ("made_up_package",)
    script["main"](tmp_path / "out")
    rows = read_lines(tmp_path / "out" / "parts" / "train.jsonl")
    rows += read_lines(tmp_path / "out" / "parts" / "test.jsonl")
    assert Counter(row["label"] for row in rows) == {"made_up_package.two": 62}
    labelled = {row["text"] for row in rows}
    assert len(labelled) == 62 and all("of a graph." in text for text in labelled)
    shared = {f"Compute quantity {number} of a graph." for number in range(20)}
    assert labelled.isdisjoint(shared)
    texts = [row["text"] for row in read_lines(tmp_path / "out" / "docstrings.jsonl")]
    assert len(texts) == 90 + 28 + 80 and all("It has" in text for text in texts)
    assert labelled.isdisjoint(text.partition("\n")[0] for text in texts)
