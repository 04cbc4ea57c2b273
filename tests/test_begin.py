"""First contact: the bare command, check, a recipe for one's own files."""

from __future__ import annotations

import csv
import gzip
import json
import random
import shlex
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from maskwise import __version__
from maskwise.base.errors import MaskwiseError
from maskwise.cli.terminal import out_folder, print_check
from maskwise.recipe import read_recipe
from maskwise.studies import dry_run, forecast, from_files
from maskwise.studies.forecast import check, lines_of
from maskwise.studies.from_files import draft_of_files, is_task, look_at, recipe_for
from maskwise.tasks import load_task
from tiny import WORDS, maskwise, write_inputs, write_lines


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_inputs(tmp_path / "in")


def test_a_bare_command_shows_where_to_begin(capsys):
    assert maskwise() == 0
    said = capsys.readouterr().out
    assert "Where to begin" in said and "maskwise check my_texts.txt" in said and "--help" in said
    assert maskwise("--version") == 0
    assert capsys.readouterr().out.strip() == f"maskwise {__version__}"


# Check
# ----------------------------------------------------------------------------


def test_check_counts_times_and_doubts(recipe, capfd):
    assert maskwise("check", recipe, "--json") == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["corpus"]["documents"] == 60 and facts["corpus"]["unknown"] < 0.01
    assert facts["corpus"]["tokens"] > 4000 and facts["model"]["weights"] > 1000
    token, word = facts["arms"]["token-15"], facts["arms"]["words-30"]
    assert token["tokens_per_unit"] == 1 < word["tokens_per_unit"]
    assert 0.1 < token["share"] < 0.2 < word["share"] < 0.4
    assert facts["tasks"]["task"]["rows"] == {"train": 20, "dev": 10, "test": 10}
    assert facts["tasks"]["task"]["labels"] == {"a": 10, "b": 10}
    assert [*facts["stages"]] == ["prepare", "pretrain", "evaluate", "finetune", "overlap"]
    assert facts["time"]["seconds"] > 1 and facts["time"]["memory_gib"] > 0.1
    doubts = " ".join(doubt["what"] for doubt in facts["doubts"])
    assert "2 runs of each arm cannot decide" in doubts and "only 10 test items" in doubts
    assert "and are truncated" not in doubts
    resolved = Path("resolved.yaml")
    resolved.write_text(facts["recipe"], encoding="utf-8")
    assert read_recipe(resolved) == read_recipe(recipe)
    # What was timed is known from now on, to a dry run too.
    planned = dry_run(read_recipe(recipe), recipe.parent / "none", jobs=1)
    assert planned["unknown"] == [] and planned["seconds"] > 1
    assert maskwise("check", recipe, "--no-timing") == 0
    assert "about" in capfd.readouterr().out


def doubts_of(subject: Path, *overrides: str) -> str:
    facts = check(str(subject), overrides, timing=False)
    return " ".join(doubt["what"] for doubt in facts["doubts"])


@pytest.mark.parametrize(("max_length", "do"), [(64, "at most 128"), (128, "no more positions")])
def test_advice_on_truncated_rows_knows_what_the_model_can_read(recipe, max_length, do):
    Path("long.csv").write_text(
        "text,label\n" + "".join(f"{'an owl flies ' * 90}{n},{n % 2}\n" for n in range(40))
    )
    facts = check(
        str(recipe),
        [
            "tasks=long.csv",
            f"finetune.max_length={max_length}",
            "model.settings.max_position_embeddings=128",
        ],
        timing=False,
    )
    (doubt,) = [doubt for doubt in facts["doubts"] if "are truncated" in doubt["what"]]
    assert do in doubt["do"]


def test_check_counts_the_held_out_rows_of_the_whole_text(recipe):
    """Neither the share of a sample's documents nor the setting is the share of the rows.

    ``corpus.held_out`` is 0.02 of the documents, and the held-out ones are short: ``prepare``
    writes 543 held-out rows and 40,249 training rows.
    """
    counts = check("quick-start", timing=False)["corpus"]
    assert counts["held_out_rows"] == pytest.approx(543, rel=0.1)
    assert counts["rows"] == pytest.approx(40_249, rel=0.1)
    assert "held-out loss is inexact" in doubts_of(recipe, "corpus.held_out=0.05")


def test_check_says_what_is_wrong_before_anything_is_trained(recipe):
    for subject in ("nowhere.yaml", recipe):
        with pytest.raises(MaskwiseError, match="does not exist; got /"):
            check(str(subject), ["corpus.source=nowhere.txt"])
    draw = random.Random(0)
    proteins = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=200)) for _ in range(80)]
    Path("proteins.txt").write_text("\n\n".join(proteins))
    asked = ("corpus.source=proteins.txt", "tokenizer.kind=wordpiece", "tasks=[]")
    # Seven rows are fewer than the batch of the recipe, because of the unknown tokens.
    for more in ([], ["training.batch_size=4"]):
        with pytest.raises(MaskwiseError, match="are unknown to the tokenizer"):
            check(str(recipe), [*asked, *more])
    assert "longer than 3 tokens and are truncated" in doubts_of(recipe, "finetune.max_length=3")


@pytest.mark.parametrize("cut", [0.03, 0.6])
def test_a_plan_says_once_that_rows_are_truncated(recipe, capsys, cut):
    """Also of a task of which another warning, here of its labels, is printed."""
    record = check(str(recipe), timing=False)
    record["tasks"]["task"] |= {"cut": cut, "most": 0.99}
    record |= {"doubts": forecast.doubts_of(record), "cut": {"task": cut}, "max_length": 64}
    print_check(lambda tell: record, as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "99.0% of the rows of task have the same label" in said
    assert said.count("of the rows of task have more than") + said.count("are longer than") == 1


# A recipe for one's own files
# ----------------------------------------------------------------------------


def text_of(source: str, tasks: Sequence[str] = ()) -> str:
    return draft_of_files(source, tasks).text


def write_texts(path: Path, *, english: bool) -> Path:
    draw = random.Random(1)
    words = ["the", "of", "and", "is", "that"] if english else []

    def sentence() -> str:
        return " ".join(draw.choice(WORDS + words * 20) for _ in range(12)) + "."

    texts = [" ".join(sentence() for _ in range(4)) for _ in range(120)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def write_labels(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            [" ".join(WORDS[30 * (n % 2) :][n % 20 : n % 20 + 6]) + f" {n}", "ab"[n % 2]]
            for n in range(300)
        )
    return path


@pytest.mark.parametrize(("most", "whole"), [(2, False), (3, True)])
def test_a_text_with_as_many_documents_as_are_counted_is_whole(most, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(from_files, "LOOK_DOCUMENTS", most)
    write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in WORDS[:3]])
    facts = look_at(str(tmp_path / "texts.jsonl"))
    assert (facts.documents, facts.whole) == (most, whole)


@pytest.mark.parametrize("english", [True, False])
def test_a_recipe_is_written_for_a_file_or_two(
    english,
    tmp_path,
    monkeypatch,
    capfd,
):
    monkeypatch.chdir(tmp_path)
    texts = write_texts(tmp_path / "mine.txt", english=english)
    write_labels(tmp_path / "labels.csv")
    assert look_at(str(texts)).is_english == english
    assert maskwise("new", "mine.txt", "labels.csv") == 0
    assert "maskwise check mine.yaml" in capfd.readouterr().out
    lines = Path("mine.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 22 and sum("#" in line for line in lines) >= 5
    written = read_recipe("mine.yaml")
    study = written.study
    found = "kind='sequence-classification', text='text', label='label', metric='accuracy'"
    assert written.tasks == (f"labels.csv(train_rows=200, {found}, classes=2)",)
    assert study.seeds == 6 and len(study.pairs) == 1
    assert (written.model.pretrained == "bundled:encoder") == english
    # The same masks measure both arms, and a loss has less noise than scores of few items.
    assert study.outcome == "heldout:token" and "token" in written.evaluation.masks
    # The arms differ in one setting, so that a verdict has one explanation.
    assert [[*arm] for arm in study.arms.values()] == [["masking.ratio"]] * 2
    assert recipe_for(str(texts)).corpus.source == str(texts)
    assert maskwise("new", "mine.txt") == 2  # a recipe is never overwritten
    assert "exists already" in capfd.readouterr().err


def test_a_text_of_letters_gets_a_tokenizer_of_letters_and_rows_that_hold_a_sequence(
    tmp_path,
):
    draw = random.Random(0)
    chains = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=110)) for _ in range(40)]
    path = tmp_path / "some.fasta"
    path.write_text("".join(f">{n}\n{chain}\n" for n, chain in enumerate(chains)))
    written = text_of(str(path))
    for setting in ("kind: letter, lowercase: false", "length: 160", "masks: [token]"):
        assert setting in written
    facts = check(str(path), timing=False)
    assert facts["model"]["vocabulary"] == facts["corpus"]["vocabulary"] < 64
    assert facts["training"]["plateau_steps"] is None  # the rule was fitted on words


def test_a_file_whose_labels_are_all_hidden_is_no_plain_text(tmp_path):
    lines = [f"a sentence of the text {n},-1" for n in range(60)]
    (tmp_path / "hidden.csv").write_text("\n".join(["text,label", *lines]))
    with pytest.raises(MaskwiseError) as caught:
        text_of(str(tmp_path / "hidden.csv"))
    assert caught.value.got == "skipped 60 × no label"


def test_a_file_of_labels_alone_is_judged_on_the_bundled_text(tmp_path):
    labels = write_labels(tmp_path / "labels.csv")
    with pytest.warns(
        UserWarning, match=r"labels\.csv was read as labels, so models are trained on"
    ):
        written = text_of(str(labels))
    assert "bundled:wikipedia" in written and "labels.csv" in written
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(labels.read_bytes()))
    with pytest.warns(UserWarning, match=r"packed\.csv\.gz was read as labels"):
        assert "bundled:wikipedia" in text_of(str(packed))
    assert "labels.csv(label='label', train_rows=200, kind='sequence-classification', " in text_of(
        str(labels), [f"{labels}(label='label')"]
    )


def test_columns_that_describe_texts_are_no_labels(tmp_path):
    draw = random.Random(0)
    text = [" ".join(draw.choice(WORDS) for _ in range(12)) for _ in range(300)]
    rows = [{"text": each, "source": "web" if n % 2 else "mail"} for n, each in enumerate(text)]
    corpus = write_lines(tmp_path / "mine.jsonl", rows)
    assert f'source: "{corpus}"' in text_of(str(corpus))
    assert load_task(corpus, label="source").labels == ("mail", "web")


def test_check_says_how_many_of_the_labelled_rows_are_used(tmp_path):
    labels = write_labels(tmp_path / "labels.csv")
    for rows, found in ((None, 210), (50, 210)):
        subject = str(labels)
        asked = [f"tasks=['{labels}(train_rows={rows})']"] if rows else []
        facts = check(subject, [*asked, "corpus.limit=300"], timing=False)
        task = facts["tasks"]["labels"]
        assert (task["rows"]["train"], task["found"]) == (rows or 200, found)
        [line] = [line for name, line in lines_of(facts) if name == "task labels"]
        assert f"{rows or 200} train of {found} (train_rows)" in line


def test_names_with_brackets_and_signs_are_written_so_that_they_can_be_read(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "my #1 (2).txt", english=True)
    (tmp_path / "data (1)").mkdir()
    for name in ("labels (1).csv", "data (1)/train.csv", "data (1)/test.csv"):
        write_labels(tmp_path / name)
    tasks = ["labels (1).csv", "data (1)", "labels (1).csv(name='again', metric='macro-f1')"]
    assert maskwise("new", "my #1 (2).txt", *tasks) == 0
    command = capfd.readouterr().out.partition("next: maskwise ")[2].splitlines()[0]
    written = read_recipe(shlex.split(command)[1])
    assert "my #1 (2)" in written.description and written.corpus.source == "my #1 (2).txt"
    loaded = [load_task(spec) for spec in written.tasks]
    rows = [(task.name, len(task.splits["train"])) for task in loaded]
    assert rows == [("labels (1)", 200), ("data (1)", 200), ("again", 200)]
    assert loaded[2].metric == "macro-f1"


def test_new_names_the_folder_that_study_takes_by_default(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for text in ("v1.2.txt", "my #1 (2).txt"):
        write_texts(tmp_path / text, english=True)
        assert maskwise("new", text) == 0
        command = capfd.readouterr().out.partition("then: maskwise ")[2].splitlines()[0]
        _, recipe, _, out = shlex.split(command)
        assert Path(out) == out_folder(None, recipe), text


def test_settings_of_new_are_written_into_the_recipe(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    rows = [f"a remark of several words {n},author {n % 40}" for n in range(400)]
    Path("remarks.csv").write_text("\n".join(["remark,writer", *rows]))
    settings = ("corpus.group_field=writer", "training.steps=4")
    assert maskwise("new", "remarks.csv", "ud-pos(train_rows=50)", *settings) == 0
    found = read_recipe("remarks.yaml")
    assert found.corpus.source == "remarks.csv" and found.corpus.group_field == "writer"
    assert found.training.steps == 4 and found.tasks == ("ud-pos(train_rows=50)",)
    # Another one is not written over it, nor one with a setting that does not exist.
    assert maskwise("new", "remarks.csv", "--out", "b.yaml", "training.step=4") == 2
    assert "training.step=4" in capfd.readouterr().err and not Path("b.yaml").exists()


def test_new_refuses_the_options_of_a_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "mine.txt", english=True)
    assert maskwise("new", "mine.txt", "--dry-run") == 2
    assert "--dry-run" in capfd.readouterr().err and not Path("mine.yaml").exists()


def test_a_recipe_is_written_where_the_user_says(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "mine.txt", english=True)
    assert maskwise("new", "mine.txt", "--out", "my study.yaml") == 0
    assert "maskwise check 'my study.yaml'" in capfd.readouterr().out
    assert read_recipe("my study.yaml").corpus.source == "mine.txt"


# The files of strangers
# ----------------------------------------------------------------------------


def test_the_text_is_in_the_longest_column(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = write_texts(tmp_path / "mine.txt", english=True).read_text().split("\n\n")
    rows = [f'{number};a head;"{text}"' for number, text in enumerate(texts)]
    Path("catalogue.csv").write_text("\n".join(["nr;headline;body of it", *rows]))
    written = text_of("catalogue.csv")
    assert 'text_field: "body of it", length' in written
    assert "your text, its column with the longest texts" in written
    assert recipe_for("catalogue.csv").corpus.text_field == "body of it"
    records = [{"uid": "a" * 9, "data": {"text": text}, "meta": {"topic": "b"}} for text in texts]
    write_lines(Path("news.jsonl"), records)
    assert look_at("news.jsonl").text_field == "data.text"
    assert "text_field" not in text_of("mine.txt")


def family_of(folder: Path, sequences: int = 150, longest: int = 0) -> Path:
    """Write a family of proteins, of which one may be much longer than the others."""
    draw = random.Random(0)
    lengths = [draw.randrange(80, 160) for _ in range(sequences)] + [longest] * bool(longest)
    letters = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=length)) for length in lengths]
    file = folder / "family.fasta"
    file.write_text("".join(f">protein{n}\n{each}\n" for n, each in enumerate(letters)))
    return file


def test_a_first_recipe_holds_out_enough_rows_to_judge_by(tmp_path):
    """The usual share of 2 % of 150 sequences would be three of them, or none."""
    few = draft_of_files(str(family_of(tmp_path)))
    facts = check(few.recipe, timing=False)
    assert few.recipe.corpus.held_out == 0.2 and facts["corpus"]["held_out_rows"] >= 20
    assert "held_out" in few.text and "enough to judge by" in few.text
    many = draft_of_files(str(family_of(tmp_path, 3000)))
    assert many.recipe.corpus.held_out == 0.02


def test_a_text_that_is_much_of_a_corpus_is_named(tmp_path):
    file = family_of(tmp_path, longest=15_000)
    why = " ".join(draft_of_files(str(file)).why)
    assert "protein150" in why and "45 %" in why
    assert "one text (protein150) is 45 % of the corpus" in doubts_of(file)
    assert "protein" not in " ".join(draft_of_files(str(family_of(tmp_path))).why)


def test_sequences_are_not_called_a_foreign_language(tmp_path):
    why = " ".join(draft_of_files(str(family_of(tmp_path))).why)
    assert "English" not in why and "letter" in why


def test_a_setting_that_names_a_field_says_that_a_file_is_a_corpus(tmp_path):
    """Its second column would otherwise be taken for labels."""
    rows = [f"a remark of several words {n},author {n % 40}" for n in range(400)]
    file = tmp_path / "remarks.csv"
    file.write_text("\n".join(["remark,writer", *rows]))
    for setting in ("corpus.group_field=writer", "corpus.text_field=remark"):
        recipe = recipe_for(str(file), [setting])
        assert recipe.corpus.source == str(file) and not recipe.tasks
    with pytest.warns(UserWarning, match="corpus.text_field=remark"):
        assert recipe_for(str(file)).tasks


@pytest.mark.filterwarnings("error:.*was read as labels")
def test_check_finds_once_what_a_file_is(tmp_path, monkeypatch):
    """Each setting is also tried without, and the file was then read again, as labels."""
    rows = [f"a remark of several words {n},author {n % 40}" for n in range(400)]
    file = tmp_path / "remarks.csv"
    file.write_text("\n".join(["remark,writer", *rows]))
    drafts = []

    def counted(*arguments, **options):
        drafts.append(draft_of_files(*arguments, **options))
        return drafts[-1]

    monkeypatch.setattr(from_files, "draft_of_files", counted)
    settings = ["corpus.group_field=writer", "training.steps=4"]
    found = check(str(file), settings, timing=False)
    assert "remarks.csv" in found["recipe"] and len(drafts) == 1


def test_a_first_recipe_keeps_a_row_of_every_class(tmp_path):
    rows = [f"some words number {n},class {n % 250}" for n in range(2500)]
    file = tmp_path / "many.csv"
    file.write_text("\n".join(["text,label", *rows]))
    assert "train_rows=250" in text_of(str(file))


def test_the_error_of_a_correlation_is_twice_that_of_a_share(recipe, tmp_path):
    file = tmp_path / "scores.csv"
    rows = [f"some words number {n},{n / 7:.2f}" for n in range(300)]
    file.write_text("\n".join(["text,label", *rows]))
    task = load_task(file)
    error = 100 / task.test_items**0.5
    assert f"uncertain by ±{error:.0f} points" in doubts_of(recipe, f"tasks=['{file}']")


def test_what_is_left_out_is_counted_over_all_that_was_seen(recipe, monkeypatch):
    monkeypatch.setattr("maskwise.studies.rehearsal.SAMPLE_CHARACTERS", 20_000)
    texts = write_texts(Path("mine.txt"), english=True)
    documents = texts.read_text().split("\n\n")
    documents[90:90] = documents[:50]
    texts.write_text("\n\n".join(documents))
    whole = len(documents) - 50
    for most, seen in ((10_000, whole), (100, 100)):
        monkeypatch.setattr("maskwise.studies.from_files.LOOK_DOCUMENTS", most)
        found = doubts_of(recipe, f"corpus.source={texts}", "tasks=[]")
        assert f"{seen} documents were kept, and these were left out: 50 × repeated text" in found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "nowhere.txt"], "file 'nowhere.txt' does not exist"),
        (["new", "quick-start"], "new needs a file with texts"),
        (["new", "missing.txt", "labels.csv"], "file 'missing.txt' does not exist"),
    ],
)
def test_a_missing_file_is_told_before_torch_is_imported(
    arguments,
    said,
    tmp_path,
    monkeypatch,
    capfd,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "maskwise.studies.from_files", None)
    monkeypatch.setitem(sys.modules, "maskwise.studies.forecast", None)
    assert maskwise(*arguments) == 2
    assert said in capfd.readouterr().err


def test_a_file_of_labels_may_have_arguments(tmp_path):
    path = tmp_path / "labels.csv"
    rows = "".join(f"a text of several words {n},{('yes', 'no', -1)[n % 3]}\n" for n in range(90))
    path.write_text("text,label\n" + rows)
    recipe = recipe_for(f"{path}(missing=-1)")
    assert len(recipe.tasks) == 1 and load_task(recipe.tasks[0]).labels == ("no", "yes")


# Recipes that extend others
# ----------------------------------------------------------------------------


def test_a_recipe_extends_another(recipe, tmp_path):
    own = tmp_path / "own.yaml"
    model = "model: {settings: {hidden_size: 8}}"
    own.write_text(f"extends: {recipe}\ntraining.steps: 7\n{model}\n")
    found, base = read_recipe(own), read_recipe(recipe)
    assert found.name == "own" and found.training.steps == 7 and found.training.batch_size == 8
    assert found.model.settings == {**base.model.settings, "hidden_size": 8}
    assert found.study == base.study
    # Arms are replaced, not added to.
    own.write_text(f"extends: {recipe}\nstudy: {{arms: {{ratio-20: {{masking.ratio: 0.2}}}}}}\n")
    assert list(read_recipe(own).study.arms) == ["ratio-20"]
    for name, said in (
        ("own.yaml", "extend each other"),
        ("quick-strat", "unknown recipe 'quick-strat'"),
    ):
        own.write_text(f"extends: {name}")
        with pytest.raises(MaskwiseError, match=said):
            read_recipe(own)


def test_repeated_titles_are_no_labels(tmp_path):
    """Paragraphs of an article share its title; the file is text, not labelled rows."""
    lines = []
    for n in range(60):
        lines.append({"title": f"article {n % 3}", "text": f"the story of day number {n} is short"})
    file = write_lines(tmp_path / "paragraphs.jsonl", lines)
    written = text_of(str(file))
    assert f"source: {json.dumps(str(file))}" in written and "tasks: []" in written


def test_new_points_to_encoder_decoders_for_written_answers(tmp_path):
    rows = [{"question": f"what is {n}?", "answers": [str(n)]} for n in range(60)]
    questions = write_lines(tmp_path / "questions.jsonl", rows)
    with pytest.raises(MaskwiseError) as caught:
        text_of("bundled:wikipedia", [str(questions)])
    assert "maskwise study intermediate" in caught.value.do


@pytest.mark.parametrize("name", ["adapt", "generate", "learn", "report"])
def test_help_breaks_lines_only_where_the_next_word_does_not_fit(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert maskwise(name, "--help") == 0
    introduction = capsys.readouterr().out.split("╭")[0]
    lines = [line.strip() for line in introduction.splitlines()]
    for line, following in pairwise(lines):
        assert not line or not following or len(f" {line} {following.split()[0]} ") > 80


def test_a_damaged_file_of_labels_does_not_become_a_text_unnoticed(tmp_path):
    films = [f"good film {n};pos\nbad film {n};neg\n" for n in range(30)]
    rows = ("text;label\n" + "".join(films)).encode()
    (tmp_path / "whole.csv").write_bytes(rows)
    (tmp_path / "damaged.csv").write_bytes(rows + b"caf\xe9;pos\n")
    assert is_task(str(tmp_path / "whole.csv"))
    with pytest.warns(UserWarning, match=r"read as text, not as labels: .*not UTF-8"):
        assert not is_task(str(tmp_path / "damaged.csv"))
    (tmp_path / "text.csv").write_text("text;page\n" + "".join(f"a b {n};{n}\n" for n in range(30)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        is_task(str(tmp_path / "text.csv"))
