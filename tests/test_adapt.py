"""adapt: a recipe with sensible arms, an answer in a sentence, folders for transformers and
sentence-transformers.
"""

from __future__ import annotations

import json
import random
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from maskwise.cli.terminal import plan_lines, time_limit
from maskwise.errors import MaskwiseError
from maskwise.families import most_tokens
from maskwise.models import load_config
from maskwise.starts import resolve_start
from maskwise.study.adapt import (
    adapt_recipe,
    answer_of,
    best_arm,
    cut_rows,
    kept_of,
    next_of,
    save_adapted,
    smaller_plan,
    write_pairs,
)
from maskwise.study.plan import make_plan
from maskwise.study.statistics import prospects_of
from maskwise.study.timing import _TIMERS
from maskwise.tasks import load_task
from tiny import WORDS, load_json, maskwise, write_lines


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    draw = random.Random(0)
    lines = []
    for number in range(60):
        topic = WORDS[5 * (number % 16) :][:12]
        body = ". ".join(" ".join(draw.choices(topic, k=7)).capitalize() for _ in range(4)) + "."
        lines.append({"title": " ".join(draw.sample(topic, 3)), "text": body})
    write_lines(tmp_path / "texts.jsonl", lines)
    return tmp_path / "texts.jsonl"


def test_a_bad_task_is_found_before_the_texts_are_read(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.study.adapt.look_at", lambda texts: pytest.fail("read"))
    write_lines(tmp_path / "one.jsonl", [{"text": f"text {n}", "label": "a"} for n in range(30)])
    for task, said in (
        ("nothing.csv", "does not exist"),
        (f"{tmp_path}/one.jsonl", "at least two classes"),
        (f"{tmp_path}/one.jsonl(label='other')", "unknown label column"),
    ):
        with pytest.raises(MaskwiseError, match=said):
            adapt_recipe("bundled:encoder", str(texts), [task])


def test_the_recipe_fits_the_model(texts: Path, tmp_path: Path) -> None:
    recipe = adapt_recipe("bundled:encoder", str(texts), pairs=tmp_path / "pairs.jsonl")
    assert [*recipe.study.arms] == ["words-30"] and recipe.study.seeds == 6
    with pytest.raises(
        MaskwiseError, match=r"adapt needs an encoder; got bart, .*; use the recipe intermediate"
    ):
        adapt_recipe("bundled:seq2seq", str(texts))
    assert recipe.study.pairs == [("words-30", "no-pretraining")]
    assert prospects_of(recipe)[0]["decidable"]  # without a search
    pairs = tmp_path / "pairs.jsonl"
    others = adapt_recipe("bundled:encoder", str(texts), pairs=pairs, arms=["tsdae", "token-30"])
    assert [*others.study.arms] == ["tsdae", "token-30"]
    assert others.study.pairs == [("tsdae", "no-pretraining")]
    assert recipe.training.learning_rate == 1e-3 and others.arm("tsdae", seed=0).judged_on() == ()
    with pytest.raises(MaskwiseError, match=r"unknown arm 'words'; allowed: .*words-30"):
        adapt_recipe("bundled:encoder", str(texts), pairs=pairs, arms=["words"])
    task = load_task(recipe.tasks[0])
    assert task.kind.name == "retrieval" and task.test_items == 60 and 0 < task.majority < 0.1
    learned = adapt_recipe(
        "bundled:encoder", str(texts), ["banking77"], overrides=["training.batch_size=4"]
    )
    assert learned.tasks == ("banking77",) and learned.training.batch_size == 4
    (tmp_path / "short.txt").write_text("\n".join(f"word {n}" for n in range(30)))
    with pytest.raises(MaskwiseError, match="nothing to evaluate on"):
        adapt_recipe("bundled:encoder", str(tmp_path / "short.txt"), pairs=tmp_path / "p.jsonl")


def test_adapt_answers_and_saves_both_folders(
    texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = [
        "training.batch_size=4",
        "evaluation.rows=4",
        "corpus.length=32",
        "corpus.held_out=0.2",
    ]
    out = tmp_path / "out"
    command = ["adapt", "bundled:encoder", texts, *small, "--steps", 2, "--seeds", 1, "--out", out]
    command += ["--arms", "words-30,token-15,tsdae"]
    assert maskwise(*command, "--dry-run") == 0
    # a table; JSON where it is asked for
    printed = capfd.readouterr()
    assert printed.out.lstrip().startswith("stages")
    assert "min in all" in printed.out and "GiB" in printed.out
    assert not [*tmp_path.glob("*pairs*")]  # nothing was written
    assert maskwise(*command, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert "steps per run" in said["answer"] and said["next"].startswith(
        "Next: a decision needs at least 6 runs"
    )
    again = shlex.split(said["next"].split(": ")[-1])
    assert (
        str(texts) in again and again[again.index("--out") :][1] == str(out) and str(out) in again
    )
    assert maskwise(*again[1:], "--dry-run", "--json") == 0
    assert json.loads(capfd.readouterr().out)["contrasts"][0]["runs"] == 6
    scores = {
        line["arm"]
        for line in map(json.loads, (out / "records.jsonl").open())
        if line["kind"] == "score"
    }
    assert scores == {"token-15", "words-30", "tsdae", "no-pretraining"}
    if said["best"]:
        whole, sentences = map(Path, said["folders"])
        AutoModelForMaskedLM.from_pretrained(whole)
        assert "held-out text" in (whole / "README.md").read_text()
        assert "SentenceTransformer(FOLDER)" in (sentences / "README.md").read_text()
        AutoTokenizer.from_pretrained(sentences)
        width = AutoModel.from_pretrained(sentences).config.hidden_size
        assert (
            load_json(sentences / "1_Pooling" / "config.json")["word_embedding_dimension"] == width
        )
        assert [m["type"].rpartition(".")[2] for m in load_json(sentences / "modules.json")] == [
            "Transformer",
            "Pooling",
        ]


SCORES = {"words-30": 0.70, "token-15": 0.66, "no-pretraining": 0.68}


def write_scores(out: Path, by_arm: dict[str, dict[int, float]], metric: str = "accuracy") -> Path:
    lines = [
        {
            "kind": "score",
            "arm": arm,
            "seed": seed,
            "task": "task",
            "metric": metric,
            "score": score,
        }
        for arm, scores in by_arm.items()
        for seed, score in scores.items()
    ]
    out.mkdir(exist_ok=True)
    write_lines(out / "records.jsonl", lines)
    arms = {arm: {} for arm in by_arm if arm != "no-pretraining"}
    study = {"arms": arms, "seeds": list(range(6)), "tasks": {"task": {"metric": metric}}}
    (out / "study.json").write_text(json.dumps(study))
    return out


def test_an_arm_with_failed_runs_does_not_win_by_its_survivors(tmp_path: Path) -> None:
    scores = {arm: dict.fromkeys(range(6), score) for arm, score in SCORES.items()}
    assert best_arm(write_scores(tmp_path, {**scores, "tsdae": {5: 0.71}})) == "words-30"
    assert (
        best_arm(write_scores(tmp_path, {**scores, "tsdae": dict.fromkeys(range(6), 0.71)}))
        == "tsdae"
    )
    assert best_arm(write_scores(tmp_path, {"no-pretraining": {0: 0.1}})) is None
    assert (
        best_arm(write_scores(tmp_path, {**scores, "no-pretraining": dict.fromkeys(range(6), 0.7)}))
        is None
    )


def test_arms_are_compared_on_the_runs_that_all_finished(tmp_path: Path) -> None:
    """The start failed with seed 1, with which words-30 was lucky; in nats, lower is better."""
    scores = {
        "no-pretraining": {0: 0.5, 2: 0.5},
        "words-30": {0: 0.5, 1: 0.9, 2: 0.5},
        "tsdae": dict.fromkeys(range(3), 0.6),
    }
    assert best_arm(write_scores(tmp_path, scores)) == "tsdae"
    scores["tsdae"] = dict.fromkeys(range(3), 0.4)
    assert best_arm(write_scores(tmp_path, scores)) is None
    assert best_arm(write_scores(tmp_path, scores, metric="nats")) == "tsdae"


def test_what_is_saved_is_a_run_that_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders = {seed: out / f"stages/pretrain-{seed}" for seed in (0, 1, 2)}
    for folder in folders.values():
        folder.mkdir(parents=True)
    runs = {str(seed): f"stages/{folder.name}" for seed, folder in folders.items()}
    (out / "study.json").write_text(json.dumps({"arms": {"tsdae": {"runs": runs}}}))
    with pytest.raises(MaskwiseError, match="no run of tsdae has a checkpoint"):
        save_adapted(out, "tsdae")
    (folders[0] / "checkpoint").mkdir()  # not finished
    (folders[1] / "done.json").write_text('{"seconds": 1}')  # its checkpoint was removed
    (folders[2] / "done.json").write_text('{"seconds": 1}')
    (folders[2] / "checkpoint").symlink_to(resolve_start("bundled:encoder"))
    whole, _ = save_adapted(out, "tsdae")
    AutoModelForMaskedLM.from_pretrained(whole)


def test_a_dry_run_leaves_the_pairs_of_an_earlier_study(
    texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in texts.read_text().splitlines()]
    pairs = write_pairs(str(texts), tmp_path / "out-pairs.jsonl")
    before = pairs.read_bytes()
    write_lines(
        tmp_path / "other.jsonl", [{**line, "text": f"Other {line['text']}"} for line in lines]
    )
    for source, same in ((texts, True), (tmp_path / "other.jsonl", False)):
        recipe = adapt_recipe("bundled:encoder", str(source), pairs=pairs, aside=tmp_path / "aside")
        assert recipe.tasks[0].startswith(str(pairs)) == same
        assert pairs.read_bytes() == before
    assert (
        maskwise(
            "adapt",
            "bundled:encoder",
            tmp_path / "other.jsonl",
            "--dry-run",
            "--out",
            tmp_path / "out",
        )
        == 0
    )
    assert pairs.read_bytes() == before


def test_the_steps_reach_the_phase_of_a_new_head(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.study.adapt.has_head", lambda model: False)
    for steps, head in ((50, 50), (2000, 600)):
        recipe = adapt_recipe(
            "bundled:encoder", str(texts), pairs=tmp_path / "pairs.jsonl", steps=steps
        )
        assert [link.training.steps for link in recipe.arm("words-30", seed=0).links()] == [
            head,
            steps,
        ]
    # one training of the head for all runs, and further training of each
    counted: dict[str, set[str]] = {"none": set(), "encoder": set()}
    for stage in make_plan(recipe).stages():
        if stage.kind == "pretrain":
            counted[stage.what["training"]["freeze"]].add(stage.name)
    assert (len(counted["encoder"]), len(counted["none"])) == (1, 6)
    given = adapt_recipe(
        "bundled:encoder", str(texts), pairs=tmp_path / "pairs.jsonl", head_steps=7
    )
    assert given.arm("words-30", seed=0).links()[0].training.steps == 7


def test_labelled_rows_are_cut_only_where_the_model_takes_no_more(
    texts: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.jsonl"
    lines = []
    for number in range(60):
        text = f"{number:03} " + "word " * (20 + 180 * (number % 2))
        lines.append({"text": text, "label": number % 2})
    write_lines(labels, lines)
    recipe = adapt_recipe("bundled:encoder", str(texts), [str(labels)])
    tokenizer = AutoTokenizer.from_pretrained(resolve_start("bundled:encoder"))
    sizes = [len(tokenizer(line["text"])["input_ids"]) for line in lines]
    room = most_tokens(load_config("bundled:encoder", kind=None))
    assert max(sizes) > 200 and recipe.finetune.max_length == min(max(sizes), room)
    # The rows of the dev split are not measured.
    assert 0.4 < cut_rows(recipe)["labels"] < 0.6
    short = adapt_recipe(
        "bundled:encoder", str(texts), [str(labels)], overrides=["finetune.max_length=64"]
    )
    (share,) = cut_rows(short).values()
    plan: dict[str, Any] = {"seconds": 7300.0, "memory_gib": 1.5, "jobs": 2, "unknown": []}
    plan |= {"cut": cut_rows(short), "max_length": 64}
    first, cut = plan_lines(plan, "2h")
    assert "about 122 min" in first and "1.5 GiB" in first
    assert cut.startswith(f"{share:.1%} of the rows of") and "64 tokens" in cut
    assert plan_lines(plan | {"seconds": None, "unknown": ["learn"]}, "2h") == [
        "Time unknown: learn could not be timed."
    ]
    assert "nothing smaller" in plan_lines(plan | {"smaller": None}, "2h")[-1]


def test_the_smaller_plan_is_the_least_change_that_fits(texts: Path, tmp_path: Path) -> None:
    recipe = adapt_recipe(
        "bundled:encoder", str(texts), pairs=tmp_path / "p.jsonl", arms=["token-15", "tsdae"]
    )

    def seconds_of(overrides: list[str], steps: int) -> float:
        assert overrides[0] == "study.arms=token-15"
        # A new head takes no longer above 600 steps, so the time is no straight line.
        tuning = 100 if "finetune.steps=250" in overrides else 1000
        return 10 * steps + 5 * min(steps, 300) + tuning

    small = smaller_plan(recipe, seconds_of, 5000)
    assert small is not None and 4700 < small["seconds"] <= 5000
    assert small["seconds"] == seconds_of(small["overrides"], small["steps"])
    assert small["overrides"] == ["study.arms=token-15"]
    tuned = smaller_plan(recipe, seconds_of, 2000)
    assert tuned is not None and "finetune.steps=250" in tuned["overrides"]
    assert smaller_plan(recipe, seconds_of, 500) is None


def test_a_plan_above_the_time_is_followed_by_a_command_that_fits(
    texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every step takes a second, so that a plan takes hours.
    entry = {"start": 0.0, "step": 1.0, "judge": 0.0, "memory_gib": 0.5}
    for kind, seconds in (
        ("pretrain", {}),
        ("finetune", {"seconds": 1}),
        ("evaluate", {"seconds": 1}),
    ):
        timer = partial(lambda entry, *_: entry, seconds or entry)
        monkeypatch.setitem(_TIMERS, kind, timer)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "my texts.jsonl"
    text.write_bytes(texts.read_bytes())
    command = ["adapt", "bundled:encoder", text, "--out", tmp_path / "my out", "--time", "20m"]
    # The new --steps replaces training.steps, but no setting that only ends like it.
    kept = "learning.supervised.training.steps=7"
    command.append(kept)
    assert maskwise(*command, "--steps", 900, "--jobs", 2, "--dry-run", "--json") == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["seconds"] > 1200 >= plan["smaller"]["seconds"] and plan["memory_gib"] == 0.5
    assert [*plan["cut"].values()] == [0.0]
    assert maskwise(*command, "--steps", 900, "--jobs", 2, "--dry-run") == 0
    printed = capfd.readouterr().out.splitlines()
    assert printed[-1] == plan["smaller"]["command"]
    program, *words = shlex.split(printed[-1])
    assert program == "maskwise" and str(text) in words
    assert kept in words
    assert maskwise(*words, "--dry-run", "--json") == 0
    again = json.loads(capfd.readouterr().out)
    assert again["seconds"] == plan["smaller"]["seconds"] and "smaller" not in again


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45", 2700), ("90s", 90)]
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-2h", "10s", "NaT", "2 parsecs"])
def test_what_is_no_time_is_one_line(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert maskwise("adapt", "bundled:encoder", "any.txt", "--time", text) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "--time" in line and repr(text) in line and "1h30m" in line


def test_the_answer_is_a_sentence_for_every_verdict(texts: Path, tmp_path: Path) -> None:
    recipe = adapt_recipe("bundled:encoder", str(texts), pairs=tmp_path / "pairs.jsonl")
    row = {
        "primary": True,
        "outcome": "tasks",
        "sentence": "One is better.",
        "arm": "words-30",
    }
    for verdict, better, begins in (
        ("decided", "arm", "Yes, further training helps. One is better. Training takes"),
        ("decided", "baseline", "No, further training hurts"),
        ("no difference that matters", None, "No, it makes"),
        ("open", None, "These runs cannot tell"),
        ("not comparable", None, "One is better."),
    ):
        result = {"contrasts": [{**row, "verdict": verdict, "better": better}], "seconds": 600}
        assert answer_of(result, recipe).startswith(begins)


@pytest.mark.parametrize(
    ("row", "failures", "ends"),
    [
        (
            ("decided", "arm", 6, None),
            [],
            ["maskwise", "finetune", "o 1/model", "--task", "a b.csv"],
        ),
        (
            ("decided", "baseline", 6, None),
            [],
            ["finetune", "bundled:encoder", "--task", "a b.csv"],
        ),
        (
            ("no difference that matters", None, 6, None),
            [],
            ["bundled:encoder", "--task", "a b.csv"],
        ),
        (("open", None, 3, 9), [], ["same", "6"]),
        (("open", None, 6, 8), [], ["study.seeds=[6,7,8,9,10,11,12,13]", "o 1-2"]),
        (("open", None, 6, None), [], ["same", "o 1-2", "1200"]),
        (("not comparable", None, 6, None), [], ["finetune.search_rate=true", "o 1-2"]),
        (("not comparable", None, 0, None), [{}], ["same"]),
    ],
)
def test_the_next_step_is_a_complete_command(
    texts: Path, tmp_path: Path, row: Any, failures: Any, ends: list[str]
) -> None:
    names = ("verdict", "better", "n", "runs_to_decide")
    line = {**dict(zip(names, row)), "primary": True, "outcome": "tasks", "arm": "words-30"}
    result = {"contrasts": [line], "failures": failures}
    recipe = adapt_recipe("bundled:encoder", str(texts), pairs=tmp_path / "pairs.jsonl")

    def command(change: str = "same", **options: object) -> str:
        return shlex.join([change, *map(str, options.values())])

    said = next_of(result, recipe, ["a b.csv"], Path("o 1"), command)
    assert said.startswith("Next: ") and shlex.split(said)[-len(ends) :] == ends
    assert next_of(result, recipe, [], Path("o 1"), command).startswith("Next: ")


def test_a_model_that_is_saved_is_not_praised_beyond_the_verdict() -> None:
    folders = [Path("out/model"), Path("out/sentence-model")]
    assert "may be due to chance" in kept_of("tsdae", folders, helps=None)
    assert "nothing" in kept_of(None, (), helps=None)
    assert kept_of("tsdae", folders, helps="tsdae").endswith(
        "saved in out/model and out/sentence-model."
    )
    assert "words-30 is shown to help; the lead" in kept_of("tsdae", folders, helps="words-30")
