"""The front door: bad input is one line and exit code 2, nothing half-written; the single-run
commands.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import typer
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
)

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import IDENTITY, OutputFolder, damage
from maskwise.cli import app
from maskwise.recipe import read_recipe
from processes import PATIENCE
from tiny import maskwise, read_lines, start, unversioned, write_inputs
from training_tools import model, tokenizer

SHORT = [
    "training.steps=10",
    "training.log_every=5",
    "training.save_every=5",
    "training.eval_every=0",
]


@pytest.fixture
def inputs(tmp_path) -> Path:
    write_inputs(tmp_path / "in")
    return tmp_path / "in"


# Bad input
# ----------------------------------------------------------------------------


def _write_tokenizers(folder: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "[PAD]": 2}, unk_token="[UNK]"))
    maskless = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]"
    )
    maskless.save_pretrained(folder / "maskless")
    ByT5Tokenizer(mask_token="<extra_id_0>").save_pretrained(folder / "slow")


LATIN = "\n\n".join(f"Größe Nummer {n}" for n in range(50)).encode("latin-1")
ARCHIVE = gzip.compress(b'{"text": "a word"}\n' * 5000)
UNLABELLED = b'{"text": "a text"}\n' * 40
BLANK = b'{"text": "a text", "label": ""}\n' * 40
BAD = {
    "nowhere.txt": (None, ["corpus.source=FILE"], "does not exist"),
    "empty.txt": (b" \n\n \n", ["corpus.source=FILE"], "no document"),
    "binary.txt": (bytes(range(256)) * 40, ["corpus.source=FILE"], "binary"),
    "utf16.txt": (("Ein Satz. " * 50).encode("utf-16"), ["corpus.source=FILE"], "UTF"),
    "latin.txt": (LATIN, ["corpus.source=FILE"], "UTF-8"),
    "cut.jsonl.gz": (ARCHIVE[: len(ARCHIVE) // 2], ["corpus.source=FILE"], "cut.jsonl.gz"),
    "corpus.jsonl": (None, ["corpus.source=FILE", "corpus.text_field=body"], "'body'"),
    "maskless": (None, ["tokenizer.name=FILE"], "no mask token"),
    "slow": (
        None,
        ["tokenizer.name=FILE", "masking.policy=whole-word", "tasks=[]"],
        "which a slow tokenizer cannot find without character offsets",
    ),
    "nothing": (None, ["tokenizer.name=FILE"], "there is no model or tokenizer"),
    "unlabelled.jsonl": (UNLABELLED, ["tasks=[FILE]"], "no label column"),
    "blank.jsonl": (BLANK, ["tasks=[FILE]"], "no label"),
}
"""By the name of a file: its content, the settings that name it, and what is wrong with it."""


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(name, inputs, tmp_path, capfd):
    content, settings, said = BAD[name]
    _write_tokenizers(inputs)
    if content is not None:
        (inputs / name).write_bytes(content)
    settings = [setting.replace("FILE", str(inputs / name)) for setting in settings]
    capfd.readouterr()
    # pre-training looks at no task
    for command in ("study",) if "tasks" in settings[0] else ("study", "pretrain"):
        out = tmp_path / "deep" / "out"
        assert maskwise(command, inputs / "recipe.yaml", *settings, "--out", out) == 2
        printed, err = capfd.readouterr()
        assert said in err and err.count("\n") == 1 and err.startswith("maskwise: ") and not printed
        assert not out.exists()


IDLE = [
    ("annotate plain.txt --text-field foo --out out", "text_field"),
    ("annotate plain.txt.gz --text-field foo --out out", "text_field"),
    ("annotate some.fasta --text-field foo --out out", "text_field"),
    ("annotate some.conllu --text-field foo --out out", "text_field"),
    ("annotate lines.jsonl --text-per line --out out", "text_per"),
    ("annotate bundled:wikipedia --text-per block --out out", "text_per"),
    ("annotate some.fasta --text-per block --out out", "text_per"),
    (
        "export bundled:wikipedia --tokenizer TINY --max-length 32 --text-per block --out out",
        "text_per",
    ),
    ("export TEXT --tokenizer TINY --max-length 32 --text-field foo --out out", "text_field"),
    ("export bundled:wikipedia --tokenizer TINY --max-length 32 --step 3 --out out", "step"),
    (
        "export bundled:wikipedia --tokenizer TINY --max-length 32 --total-steps 9 --out out",
        "total_steps",
    ),
    (
        "export bundled:wikipedia --tokenizer TINY --max-length 32 --with pos --out out",
        "the annotator pos",
    ),
    (
        "export bundled:wikipedia policy=salient --tokenizer TINY --max-length 32 "
        "--with salient,pos --out out",
        "the annotator pos",
    ),
    ("evaluate bundled:encoder --text plain.txt --text-field foo", "text_field"),
    ("evaluate bundled:encoder --with pairs('bundled:pairs') --text-field foo", "text_field"),
    (
        "finetune bundled:encoder --task trivia(kind='sentence-embedding') --runs 3 --out out",
        "runs",
    ),
    ("generate TINY --prompt a[MASK] --length 4", "length"),
    ("generate TINY --block 4", "block"),
    ("generate TINY --block 4 --order random", "block"),
    ("generate TINY --temperature 0 --seed 3", "seed"),
    ("inspect the_cat --policy token --fill random", "fill"),
    ("inspect the_cat --policy token,whole-word --fill random", "fill"),
    ("inspect the_cat --policy t5-span(3,0.2) --ratio 0.4", "ratio"),
    ("inspect the_cat --step 3", "step"),
    ("inspect the_cat --total-steps 3", "total_steps"),
    ("check quick-start corpus.source=plain.txt corpus.text_field=foo", "text_field"),
    ("check quick-start corpus.source=lines.jsonl corpus.text_per=block", "text_per"),
    ("check quick-start corpus.source=[a.jsonl,b.csv] corpus.text_per=block", "text_per"),
    ("check SINGLE --detect 1", "detect"),
    ("check SINGLE --spread 1", "spread"),
    ("compare SCORES --baseline a --replicate items --chance t=0.5", "chance"),
    ("compare SCORES --baseline a --replicate items --margin 0.01", "margin"),
]
"""Commands with an option that has no effect beside the rest of the command, and its name."""

REFUSED = [
    ("adapt bundled:encoder bundled:wikipedia --arms words-30,words-30", "an arm is given twice"),
    ("adapt bundled:encoder bundled:wikipedia --runs 6 --seeds 3-8", "no effect beside them"),
    (
        "adapt bundled:encoder bundled:wikipedia --keep none --replay 0.2 --out out",
        "and there is none",
    ),
    ("adapt bundled:encoder bundled:wikipedia --head-steps 5", "has one already"),
    ("adapt bundled:encoder bundled:wikipedia --tasks banking77", "did you mean --task?"),
    ("study quick-start --training.steps 3", "settings are given as training.steps=3"),
    ("inspect the_cat --ratio linear(30%,15%)", "write shares as numbers: linear(0.3,0.15)"),
    ("generate TINY --length 4 --steps 5", "too many steps"),
    ("inspect the_cat --texts 3", "a number of texts is given for one text"),
    ("check quick-start --rehearse --no-timing", "leave out one of them"),
    ("status out --dry-run", "use it with --drop-checkpoints"),
    ("compare SCORES --baseline a --replicate items --column seed=x --column seed=y", "twice"),
    ("compare SCORES --baseline a --replicate items --chance t=1 --chance t=0", "given twice"),
    ("compare SCORES --baseline a --replicate items --contrast b:a --contrast b:a", "given once"),
    ("compare SCORES --baseline a --replicate items --lower u", "unknown task"),
    ("compare SCORES --baseline a --replicate items --out out", "no page"),
]
"""Commands that are refused, and what is said."""

ALWAYS = {
    "check": "task out timing as_json",
    "new": "out",
    "adapt": "task policy new_words trim_tokens student_layers control keep steps patience lengths "
    "limit out jobs processes dry_run timing as_json",
    "study": "out only_seeds engine jobs processes retries stages dry_run as_json",
    "pretrain": "out processes as_json",
    "finetune": "task out processes as_json",
    "learn": "out processes as_json",
    "annotate": "wanted out engine jobs limit function html as_json",
    "export": "tokenizer epochs max_length seed words form out limit as_json",
    # It replaces the tokenizer of the old folder, if that has one.
    "convert": "tokenizer as_json",
    "change": "wanted as_json",
    "evaluate": "measures text as_json",
    "generate": "prompt order temperature as_json",
    "inspect": "policy budget corruption tokenizer seed words html as_json",
    "status": "drop as_json",
    "report": "html as_json",
    "compare": "baseline replicate as_json",
    "list": "as_json",
}
"""The options of each command that have an effect whatever the other options are."""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Inputs of commands, by the words that stand for them."""
    folder = tmp_path_factory.mktemp("places")
    model("bert").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    scores = folder / "scores.csv"
    scores.write_text("arm,seed,t\n" + "".join(f"{a},{n},0.5\n" for n in range(40) for a in "ab"))
    text = folder / "plain.txt"
    text.write_text("A text.\n")
    single = folder / "single.yaml"
    single.write_text("corpus:\n  source: bundled:wikipedia\n")
    paths = {"TINY": folder, "SCORES": scores, "TEXT": text, "SINGLE": single}
    return {word: str(path) for word, path in paths.items()}


def words_of(command: str, places: dict[str, str]) -> list[str]:
    return [places.get(word, word) for word in command.split()]


@pytest.mark.parametrize(("command", "name"), IDLE)
def test_options_that_cannot_apply_are_refused(command, name, places, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert maskwise(*words_of(command, places)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{name} has no effect" in line
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("command", "said"), REFUSED)
def test_of_two_options_none_is_ignored(command, said, places, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert maskwise(*words_of(command, places)) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]
    assert not [*tmp_path.iterdir()]


def test_every_option_is_used_or_refused():
    """An option may have no effect only where a test shows that it is refused.

    For a new option, the tables ``IDLE`` and ``REFUSED`` get each situation in which it would be
    ignored. If there is none, ``ALWAYS`` gets it.
    """
    tested = defaultdict(set)
    for line in (line for line, _ in (*IDLE, *REFUSED)):
        tested[line.split()[0]].update(re.findall(r"--([a-z-]+)", line))
    for name, command in typer.main.get_command(app).commands.items():
        always = ALWAYS[name].split()
        for option in command.params:
            if option.param_type_name != "option" or option.name == "help":
                continue
            spelt = {each.removeprefix("--") for each in option.opts}
            assert (option.name in always) or spelt & tested[name], f"{name} {option.opts}"
        assert {*always} <= {option.name for option in command.params}, name


def test_of_two_values_of_a_setting_the_last_one_counts_and_this_is_said(capfd):
    twice = ["training.steps=8", "training.batch_size=4", "training.steps=9"]
    twice += ["training.batch_size=4"]
    assert maskwise("check", "quick-start", *twice, "--no-timing", "--json") == 0
    printed, said = capfd.readouterr()
    assert "  steps: 9\n" in json.loads(printed)["recipe"]
    [line] = [line for line in said.splitlines() if "given twice" in line]
    assert line == "training.steps is given twice, and the last value counts: 9"
    # The section before a setting may be left out.
    for first in ("epochs=3", "finetune.epochs=3"):
        assert maskwise("finetune", "nowhere", "--task", "banking77", first, "epochs=4") == 2
        assert "epochs is given twice, and the last value counts: 4" in capfd.readouterr().err


def test_a_source_of_several_may_use_a_field(tmp_path):
    sources = "corpus.source=[a.jsonl,b.txt]"
    for setting in ("corpus.text_per=line", "corpus.text_field=body"):
        read_recipe("quick-start", [sources, setting])
    read_recipe("quick-start", [f"corpus.source={tmp_path}", "corpus.text_per=line"])


def test_a_policy_is_not_learned_into_the_folder_of_another_command(tmp_path, capfd):
    with OutputFolder(tmp_path, "pretrain", "maskwise pretrain mine").used({}):
        (tmp_path / "recipe.yaml").write_text("extends: quick-start\n")
    before = sorted(tmp_path.iterdir())
    assert maskwise("learn", "learn-supervised", "--out", tmp_path) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "the folder of another call; got maskwise pretrain mine;" in line
    assert sorted(tmp_path.iterdir()) == before


def test_bad_input_that_only_a_worker_sees(inputs, tmp_path, capfd):
    """That one document cannot be split is seen when the text is prepared."""
    (inputs / "one.txt").write_text("A single document of a few words.")
    few = [f"corpus.source={inputs}/one.txt", "corpus.length=8"]
    for command in (["study", "finetune.max_length=8", "--jobs", 1], ["pretrain"]):
        out = tmp_path / "out"
        assert maskwise(command[0], inputs / "recipe.yaml", *few, "--out", out, *command[1:]) == 2
        last = capfd.readouterr().err.splitlines()[-1]
        assert last.startswith("maskwise: some documents are held out") and not out.exists()
        assert "give about 15 documents or more" in last


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["study", "RECIPE", "masking.rato=0.3"], "did you mean 'ratio'"),
        (["study", "RECIPE", "finetune.max_length=64"], "≤ 32"),
        (["study", "RECIPE", "model.architecture=brt"], "did you mean 'bert'"),
        (["study", "RECIPE", "model.settings.hiden_size=8"], "did you mean 'hidden_size'"),
        (["study", "RECIPE", "masking.policy=salient"], "needs the annotation layer 'salient'"),
        (
            ["study", "RECIPE", "study.arms.x.masking.policy=phrase"],
            "needs the annotation layer 'phrase'",
        ),
        (["study", "RECIPE", "study.arms.x.corpus.source=nowhere.txt"], "does not exist"),
        (["study", "RECIPE", "model.settings.hidden_size=17"], "cannot build"),
        (["pretrain", "RECIPE", "model.settings.hidden_size=17"], "cannot build"),
        (
            ["study", "RECIPE", "model.settings.vocab_size=10"],
            "tokenizer and model do not match",
        ),
        (
            ["pretrain", "RECIPE", "model.settings.vocab_size=10"],
            "tokenizer and model do not match",
        ),
        (
            ["study", "RECIPE", "model.pretrained=/nowhere/at/all"],
            "there is no model or tokenizer in '/nowhere/at/all'",
        ),
        (["study", "RECIPE", "--engine", "cloud"], "unknown engine"),
        (["study", "RECIPE", "--engine", "cloud", "--dry-run"], "unknown engine"),
        (["study", "RECIPE", "--jobs", "0"], "--jobs"),
        (["pretrain", "RECIPE", "training.batch_size=8", "training.accumulate=3"], "multiple of"),
        (["study", "nowhere.yaml"], "does not exist; got /"),
        (["study", "quickstart"], "unknown recipe 'quickstart'"),
        (["study", "RECIPE", "study.arms={}"], "has no arms to compare"),
        (["study", "RECIPE", "tasks=[bankng77]"], "bankng77"),
        (["study", "RECIPE", "tasks=[topics]"], "or give a file or a folder that exists"),
        (["study", "RECIPE", "objective={a: {objective: MLM}}"], "did you mean 'mlm'"),
        (
            ["study", "RECIPE", "tasks=[ud-pos, ud-pos(train_rows=100)]"],
            "two tasks are called 'ud-pos'",
        ),
        (["study", "RECIPE", "tasks=[ud-pos(rows=100)]"], "'rows'"),
        (
            ["finetune", "nowhere", "--task", "banking77"],
            "there is no model or tokenizer in 'nowhere'",
        ),
        (["finetune", "nowhere", "--task", "nothing.csv"], "does not exist"),
        (["finetune", "nowhere", "--task", "banking77", "epoch=3"], "did you mean 'epochs'"),
        (["finetune", "nowhere", "--task", "banking77", "seeds=3"], "use --runs"),
        (
            ["study", "RECIPE", "model.hidden_size=8"],
            "override model.hidden_size=8: unknown setting",
        ),
        (["finetune", "nowhere"], "--task"),
        (
            ["compare", "s.csv", "--baseline", "a", "--replicate", "items", "--chance", "t=half"],
            "--chance needs a number after the task; got half; allowed: the score of guessing; for",
        ),
        (["list", "polices"], "did you mean 'policies'"),
        (["list"], "allowed: policies, annotators, "),
        (["stuudy"], "stuudy"),
    ],
)
def test_bad_arguments(arguments, said, inputs, tmp_path, capfd):
    arguments = [str(inputs / "recipe.yaml") if part == "RECIPE" else part for part in arguments]
    if arguments[0] in ("study", "pretrain", "finetune"):
        arguments += ["--out", str(tmp_path / "out")]
    assert maskwise(*arguments) == 2
    out, err = capfd.readouterr()
    assert said in err and err.count("\n") == 1 and not out and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["study", "pretrain", "finetune"])
def test_a_folder_that_holds_something_else_is_left_alone(command, inputs, tmp_path, capfd):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    what = (
        ["nowhere", "--task", inputs / "task.jsonl"]
        if command == "finetune"
        else [inputs / "recipe.yaml"]
    )
    for place, said in ((out, "contains something else"), (out / "thesis.tex", "is a file")):
        assert maskwise(command, *what, "--out", place) == 2
        err = capfd.readouterr().err
        assert said in err and err.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["thesis.tex"] and (
        out / "thesis.tex"
    ).read_text() == "precious"


def test_the_process_ends_with_2_and_one_line(tmp_path):
    process = start("study", "masking.ratio=1.5", "--out", tmp_path / "out")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and not out and err.count("\n") == 1 and "1.5" in err


# Single runs
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "said"),
    [((6.0, 6.2), True), ((5.9, 6.2), False), ((None, None), False), ((), False)],
)
def test_a_model_that_has_learned_only_word_frequencies_is_said(losses, said, monkeypatch, capfd):
    lines = [
        {
            "masks": "token",
            "ratio": 0.15 * (1 + n),
            "loss": 7.0 if loss is None else loss,
            "unigram": None if loss is None else 6.0,
            "targets": 90,
        }
        for n, loss in enumerate(losses)
    ]
    result = {"heldout": lines, "checkpoint": "out/checkpoint", "seconds": 1.0}
    monkeypatch.setattr("maskwise.studies.single.run_pretrain", lambda *_, **__: result)
    assert maskwise("pretrain", "quick-start") == 0
    captured = capfd.readouterr()
    assert ("has not learned from context" in captured.out + captured.err) == said


def test_pretrain_and_finetune(inputs, tmp_path, capfd):
    out, tuned = tmp_path / "run", tmp_path / "tuned"
    recipe = inputs / "recipe.yaml"
    assert maskwise("pretrain", recipe, *SHORT, "--out", out, "--json") == 0
    result = json.loads(capfd.readouterr().out)
    assert {line["masks"] for line in result["heldout"]} == {"token", "whole-word"}
    assert sorted(p.name for p in out.iterdir()) == [
        ".identity.json",
        ".lock",
        "checkpoint",
        "done.json",
        "metrics.jsonl",
        "recipe.yaml",
        "stage.json",
        "stages",
    ]
    assert damage(out / "checkpoint") is None
    assert read_recipe(out / "recipe.yaml").training.steps == 10
    model = AutoModelForMaskedLM.from_pretrained(out / "checkpoint")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(out / "checkpoint"))
    # The same again does nothing; another text of the same name, or another recipe, is refused.
    assert maskwise("pretrain", recipe, *SHORT, "--out", out, "--json") == 0
    assert json.loads(capfd.readouterr().out) == result
    assert maskwise("pretrain", recipe, *SHORT, "masking.ratio=0.2", "--out", out) == 2
    assert "other values of masking.ratio" in capfd.readouterr().err
    # A setting that only the earlier recipe has is another value, too.
    kept = (out / IDENTITY).read_text()
    before = json.loads(kept)
    before["of"]["model"]["settings"]["norm_eps"] = 1e-4
    (out / IDENTITY).write_text(json.dumps(before))
    assert maskwise("pretrain", recipe, *SHORT, "--out", out) == 2
    assert "other values of model.settings.norm_eps" in capfd.readouterr().err
    (out / IDENTITY).write_text(kept)
    [corpus] = [path for path in inputs.iterdir() if path.name.startswith("corpus")]
    text = corpus.read_bytes()
    corpus.write_bytes(text + text.splitlines(keepends=True)[0].replace(b"a", b"o"))
    assert maskwise("pretrain", recipe, *SHORT, "--out", out) == 2
    assert "with other values of corpus_content;" in capfd.readouterr().err
    corpus.write_bytes(text)
    assert maskwise("report", out) == 0 and (out / "report.html").stat().st_size > 100_000
    capfd.readouterr()

    arguments = [
        out / "checkpoint",
        "epochs=1",
        "max_length=32",
        "--runs",
        2,
        "--out",
        tuned,
        "--json",
    ]
    assert maskwise("finetune", *arguments, "--task", inputs / "task.jsonl") == 0
    [record] = json.loads(capfd.readouterr().out)
    # What is recorded of single test items is not printed.
    recorded = read_lines(tuned / "records.jsonl")[0]
    assert len(recorded.pop("item_sums")) == 10 and recorded.pop("item_sizes") == [2]
    assert record == recorded
    assert not [*unversioned(out), *unversioned(tuned)]
    assert (
        record["task"] == "task" and len(record["fine_tuning"]) == 2 and record["test_items"] == 10
    )
    classifier = AutoModelForSequenceClassification.from_pretrained(
        tuned / "task" / "seed-1" / "checkpoint"
    )
    assert classifier.config.id2label == {0: "a", 1: "b"}


def test_pretrain_goes_on_where_it_stopped(inputs, tmp_path, monkeypatch):
    recipe, whole, parted = inputs / "recipe.yaml", tmp_path / "whole", tmp_path / "parted"
    assert maskwise("pretrain", recipe, *SHORT, "--out", whole) == 0

    with monkeypatch.context() as patched:  # after the state of step 5 has been written
        patched.setattr("maskwise.studies.pretraining.save_checkpoint", _interrupt)
        assert maskwise("pretrain", recipe, *SHORT, "--out", parted) == 130
    assert list((parted / "resume").glob("step-*5")) and not (parted / "checkpoint").exists()
    assert maskwise("pretrain", recipe, *SHORT, "--out", parted) == 0
    names = ("model.safetensors", "config.json", "tokenizer.json")
    assert all(
        (parted / "checkpoint" / n).read_bytes() == (whole / "checkpoint" / n).read_bytes()
        for n in names
    )


def _interrupt(*arguments: object, **more: object) -> None:
    raise KeyboardInterrupt


def _fail(*arguments: object, **more: object) -> None:
    raise MaskwiseError("this setting cannot be", do="take another")


def _diverge(*arguments: object, folder: Path, **more: object) -> None:
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 2}\n')
    _fail()


def test_a_run_that_failed_before_its_first_state_gives_way_to_the_mended_recipe(
    inputs, tmp_path, monkeypatch, capfd
):
    """What it logged, which says why it failed, stays until then."""
    recipe, out = inputs / "recipe.yaml", tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("maskwise.studies.work.pretrain", _diverge)
        assert maskwise("pretrain", recipe, *SHORT, "masking.ratio=0.2", "--out", out) == 2
    assert (out / "metrics.jsonl").is_file()
    assert maskwise("learn", "learn-supervised", "--out", out) == 2
    assert maskwise("pretrain", recipe, *SHORT, "masking.ratio=0.3", "--out", out) == 0
    assert "ratio: 0.3" in (out / "recipe.yaml").read_text()
    assert read_lines(out / "metrics.jsonl")[-1]["step"] == 10
    # What is done is kept.
    capfd.readouterr()
    assert maskwise("pretrain", recipe, *SHORT, "masking.ratio=0.2", "--out", out) == 2
    assert "with other values of masking.ratio; give a new folder" in capfd.readouterr().err


def test_a_run_that_failed_before_it_trained_leaves_its_folder_to_others(
    inputs, tmp_path, monkeypatch
):
    recipe, out = inputs / "recipe.yaml", tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("maskwise.studies.work.pretrain", _fail)
        assert maskwise("pretrain", recipe, *SHORT, "masking.ratio=0.2", "--out", out) == 2
    assert not out.exists()
    # A signal that comes before the first state leaves the text, and the folder to the same call.
    with monkeypatch.context() as patched:
        patched.setattr("maskwise.studies.work.pretrain", _interrupt)
        assert maskwise("pretrain", recipe, *SHORT, "--out", out) == 130
    assert maskwise("pretrain", recipe, *SHORT, "masking.ratio=0.2", "--out", out) == 2
    assert maskwise("pretrain", recipe, *SHORT, "--out", out) == 0


def test_a_run_that_ends_while_another_one_waits_keeps_its_folder(
    inputs, tmp_path, monkeypatch, capfd
):
    """The other one, of a different recipe, returned its result."""
    recipe, out = inputs / "recipe.yaml", tmp_path / "out"
    used = OutputFolder.used

    def waits(folder, *place, **options):
        with monkeypatch.context() as patched:
            patched.setattr(OutputFolder, "used", used)
            assert maskwise("pretrain", recipe, *SHORT, "--out", out) == 0
        return used(folder, *place, **options)

    monkeypatch.setattr(OutputFolder, "used", waits)
    assert maskwise("pretrain", recipe, *SHORT, "masking.ratio=0.3", "--out", out) == 2
    assert "with other values of masking.ratio;" in capfd.readouterr().err
    assert "ratio: 0.3" not in (out / "recipe.yaml").read_text()


def test_a_run_that_has_saved_a_state_keeps_its_folder(inputs, tmp_path, monkeypatch, capfd):
    recipe, out = inputs / "recipe.yaml", tmp_path / "out"
    with monkeypatch.context() as patched:  # after the state of step 5 has been written
        patched.setattr("maskwise.studies.pretraining.save_checkpoint", _fail)
        assert maskwise("pretrain", recipe, *SHORT, "--out", out) == 2
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capfd.readouterr()
    assert maskwise("pretrain", recipe, *SHORT, "masking.ratio=0.3", "--out", out) == 2
    assert "with other values of masking.ratio;" in capfd.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_two_runs_do_not_share_a_folder(inputs, tmp_path, monkeypatch, capfd):
    """Before its first state nothing in the folder says that the first one lives."""
    recipe, out = inputs / "recipe.yaml", tmp_path / "out"
    codes: list[int] = []

    def meanwhile(*arguments: object, folder: Path, **more: object) -> None:
        for ratio in (0.15, 0.3):
            same = (*SHORT, f"masking.ratio={ratio}", "--out", out)
            codes.append(maskwise("pretrain", recipe, *same))
        _diverge(folder=folder)

    monkeypatch.setattr("maskwise.studies.work.pretrain", meanwhile)
    monkeypatch.setattr("maskwise.base.folders.RELEASE_SECONDS", 0.1)
    assert maskwise("pretrain", recipe, *SHORT, "--out", out) == 2 and codes == [2, 2]
    said = capfd.readouterr().err
    assert "this process, or one of the same name, works" in said
    assert "with other values of masking.ratio" in said
    assert "ratio: 0.15" in (out / "recipe.yaml").read_text()


@pytest.mark.slow
def test_pretrain_under_torchrun(inputs, tmp_path):
    """Two processes on the CPU give the model of one: the same data and masks, each target weighed
    alike.
    """
    recipe, alone, both = inputs / "recipe.yaml", tmp_path / "alone", tmp_path / "both"
    rates = (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
    )  # dropout differs between ranks, as it should
    short = SHORT + [f"model.settings.{rate}=0.0" for rate in rates]
    assert maskwise("pretrain", recipe, *short, "--out", alone) == 0
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command += ["-m", "maskwise", "pretrain", str(recipe), *short, "--out", str(both), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["steps"] == 10  # one process speaks
    assert damage(both / "checkpoint") is None
    losses = [
        [line["loss"] for line in json.loads((f / "done.json").read_text())["heldout"]]
        for f in (alone, both)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    AutoModelForMaskedLM.from_pretrained(both / "checkpoint")


@pytest.mark.parametrize(
    "command",
    [
        "study quick-start",
        "adapt bundled:encoder corpus.jsonl",
        "finetune bundled:encoder --task task.jsonl",
        "check quick-start",
    ],
)
def test_ranks_are_refused_by_what_starts_processes(command, inputs, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(inputs)
    out = [] if "check" in command else ["--out", tmp_path / "out"]
    assert maskwise(*command.split(), *out) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "WORLD_SIZE=2" in said and "--processes 2" in said
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert maskwise("inspect", "some text here", "--html", tmp_path / "file" / "page.html") == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "policies"], "nothing is left half-written"),
        (["pretrain", "quick-start"], "the same command resumes"),
        (["adapt", "m", "a b.txt"], "resumes the work: maskwise adapt m 'a b.txt'"),
        (["adapt", "m", "a b.txt", "--dry-run"], "nothing is left half-written"),
    ],
)
def test_after_ctrl_c_a_command_says_what_is_kept(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("maskwise.cli.app", interrupt)
    assert maskwise(*arguments) == 130
    assert said in capfd.readouterr().err
