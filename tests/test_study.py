"""Studies: nothing is run twice, an interruption changes no number, a failing run takes no other
down.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from maskwise import jobs
from maskwise.errors import MaskwiseError
from maskwise.evaluation import fixed_maskers
from maskwise.folders import damage
from maskwise.masking import IGNORE
from maskwise.recipe import read_recipe
from maskwise.study import Stage, make_plan
from maskwise.study.pretraining import rows_with
from maskwise.study.stages import prepare_stage, pretrain_stage
from maskwise.text import Prepared
from processes import PATIENCE, SamePool, in_group, wait_for
from tiny import load_json, maskwise, read_lines, start, write_inputs

SCHEMA = {
    "score": {
        "kind",
        "arm",
        "seed",
        "task",
        "metric",
        "score",
        "fine_tuning",
        "dev",
        "others",
        "item_error",
    },
    "cost": {"kind", "arm", "seed", "steps", "tokens", "targets", "flops"},
    "heldout": {"kind", "arm", "seed", "masks", "ratio", "loss", "unigram", "targets", "per_byte"},
    "failure": {"kind", "arm", "seed", "stage", "error"},
    "overlap": {
        "kind",
        "task",
        "corpus",
        "items",
        "overlapping",
        "short",
        "documents",
        "n",
        "examples",
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A whole study, uninterrupted, through the command line."""
    out = tmp_path_factory.mktemp("study") / "out"
    assert maskwise("study", recipe, "--out", out, "--jobs", 1) == 0
    return out


# What a study leaves
# ----------------------------------------------------------------------------


def test_a_study_leaves_the_files_that_the_documentation_names(finished):
    study, summary = (load_json(finished / name) for name in ("study.json", "summary.json"))
    assert study["baseline"] == "token-15" and study["seeds"] == [0, 1] and study["seconds"] > 0
    assert study["arms"]["token-15"]["ratio"] == "constant(0.15)"
    assert study["tasks"]["task"]["test_items"] == 10
    records = read_lines(finished / "records.jsonl")
    assert all(set(record) == SCHEMA[record["kind"]] for record in records)
    # Two arms and the reference, two seeds, one task; two kinds of held-out masks for the arms
    # only.
    assert sum(r["kind"] == "score" for r in records) == 6
    assert sum(r["kind"] == "heldout" for r in records) == 16  # at two ratios each
    costs = {(r["arm"], r["seed"]): r for r in records if r["kind"] == "cost"}
    assert set(costs) == {(arm, seed) for arm in ("token-15", "words-30") for seed in (0, 1)}
    assert costs["words-30", 0]["targets"] / costs["token-15", 0]["targets"] == pytest.approx(
        2, rel=0.1
    )
    assert [row["outcome"] for row in summary["contrasts"] if row["primary"]] == ["tasks"]
    stages = {path.name for path in (finished / "stages").iterdir()} - {".lock"}
    timings = read_lines(finished / "timings.jsonl")
    assert {line["stage"] for line in timings} == stages
    assert all(
        line["seconds"] > 0 and line["fraction"] == 1 and line["purpose"] == "main"
        for line in timings
    )
    samples = load_json(finished / "samples.json")
    assert set(samples) == {"token-15", "words-30"}
    assert {piece["state"] for row in samples["token-15"] for piece in row["pieces"]} >= {
        "shown",
        "masked",
    }


def test_the_page_needs_nothing_else(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "words-30" in page and "<script" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?https?:""", page)


def test_a_second_run_does_nothing_and_finds_the_same(finished, recipe, monkeypatch):
    monkeypatch.setitem(jobs.ENGINES, "local", None)  # no worker is started
    before = {
        path: path.stat().st_mtime_ns
        for path in (finished / "stages").rglob("*")
        if path.name != ".lock"
    }
    files = {
        name: (finished / name).read_bytes()
        for name in ("records.jsonl", "study.json", "samples.json")
    }
    assert maskwise("study", recipe, "--out", finished) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert files == {name: (finished / name).read_bytes() for name in files}


def test_json_on_stdout_and_nothing_else(finished, recipe, capfd):
    assert maskwise("study", recipe, "--out", finished, "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["baseline"] == "token-15" and err == ""


def test_every_checkpoint_is_whole_and_no_state_is_left(finished):
    checkpoints = list((finished / "stages").glob("pretrain-*/checkpoint"))
    assert len(checkpoints) == 4
    for folder in checkpoints:
        assert damage(folder) is None
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: transformers") and "`constant(0." in card
    assert not list((finished / "stages").rglob("resume")) and not list(finished.rglob("*.partial"))


def test_metrics_say_what_was_masked(finished):
    runs = load_json(finished / "study.json")["arms"]
    for arm, ratio in (("token-15", 0.15), ("words-30", 0.3)):
        lines = read_lines(finished / runs[arm]["runs"]["1"] / "metrics.jsonl")
        assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(5, 41, 5))
        assert [line["step"] for line in lines if line["kind"] == "eval"] == [20, 20, 40, 40]
        realised = [line["ratio"] for line in lines if line["kind"] == "train"]
        assert sum(realised) / len(realised) == pytest.approx(ratio, abs=0.02)


def test_a_checkpoint_needs_no_maskwise_and_gives_the_same_loss(finished, tmp_path):
    stage = next((finished / "stages").glob("pretrain-*"))
    what = load_json(stage / "stage.json")
    data = Prepared.open(finished / "stages" / what["needs"][0] / "data")
    evaluation = what["how"]["evaluation"]
    maskers = fixed_maskers(
        data.tokenizer, masks=evaluation["masks"], ratio=evaluation["ratios"][0]
    )
    alone = data.held_out.laid("document")  # as documents of packed rows are read, too
    judged = alone.batch(rows_with(alone, data.held_out, evaluation["rows"]))
    for kind, masker in maskers.items():
        tensors = {f"0.{k}": v.contiguous() for k, v in dict(masker(judged, epoch=0)).items()}
        save_file(tensors, tmp_path / f"{kind}.safetensors")
    code = f"""
import json, sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder = {str(stage / "checkpoint")!r}
model = AutoModelForMaskedLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.mask_token_id is not None and model.config.vocab_size == len(tokenizer)
losses = {{}}
for kind in ("token", "whole-word"):
    tensors, total, count = load_file({str(tmp_path)!r} + f"/{{kind}}.safetensors"), 0.0, 0
    for number in sorted({{name.split(".")[0] for name in tensors}}):
        batch = {{name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(number
        + ".")}}
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        where = labels != {IGNORE}
        total += float(torch.nn.functional.cross_entropy(logits[where], labels[where],
        reduction="sum"))
        count += int(where.sum())
    losses[kind] = total / count
assert "maskwise" not in sys.modules
print(json.dumps(losses))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(ran.stdout)
    reported = {line["masks"]: line["loss"] for line in load_json(stage / "done.json")["heldout"]}
    assert found == pytest.approx(reported, abs=1e-5)


# Stages
# ----------------------------------------------------------------------------


def test_a_name_stands_for_all_that_matters(recipe, tmp_path):
    def names(*overrides: str) -> tuple[str, str]:
        one = read_recipe(recipe, overrides).arm("token-15", seed=0)
        prepared = prepare_stage(one)
        return prepared.name, pretrain_stage(one, prepared).name

    prepared, pretrained = names()
    assert names() == (prepared, pretrained)
    for same in (
        "training.log_every=1",
        "training.eval_every=5",
        "evaluation.rows=8",
        "study.seeds=5",
        "name=other",
    ):
        assert names(same) == (prepared, pretrained), same
    for other in (
        "training.steps=41",
        "masking.ratio=0.2",
        "model.settings.hidden_size=32",
        "masking.fill=random",
    ):
        assert names(other)[0] == prepared and names(other)[1] != pretrained, other
    assert names("corpus.length=33")[0] != prepared
    tasks = read_recipe(recipe).tasks
    plans = [
        make_plan(read_recipe(recipe, [f"tasks=[{t}]"])).stages()
        for t in (*tasks, f"{tasks[0]}(train_rows=8)")
    ]
    shared = {stage.name for stage in plans[0]} & {stage.name for stage in plans[1]}
    assert {name.split("-")[0] for name in shared} == {"prepare", "pretrain", "evaluate"}
    copied = tmp_path / "inputs"
    write_inputs(copied)
    corpus = copied / "corpus.jsonl"
    before = names(f"corpus.source={corpus}")
    facts = corpus.stat()
    corpus.write_text(corpus.read_text().replace("a", "e", 1))  # as many bytes as before
    os.utime(corpus, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert names(f"corpus.source={corpus}")[0] != before[0]


def test_a_plan_names_shared_work_once_and_runs_every_arm_before_the_second_of_any(recipe):
    plan = make_plan(read_recipe(recipe))
    # One corpus, 2 × 2 pre-trainings, each evaluated, 3 × 2 fine-tunings, one look for test items
    # in the corpus.
    assert len(plan.stages()) == 1 + 4 + 4 + 6 + 1
    assert [run.seed for run in plan.runs] == [0, 0, 0, 1, 1, 1]
    other = make_plan(read_recipe(recipe, ["training.steps=7"]))
    shared = {stage.name for stage in plan.stages()} & {stage.name for stage in other.stages()}
    assert {name.split("-")[0] for name in shared} == {
        "prepare",
        "finetune",
        "overlap",
    }  # the reference is shared too
    same = Stage.from_dict(json.loads(json.dumps(plan.stages()[-1].as_dict())))
    assert same.name == plan.stages()[-1].name
    with pytest.raises(MaskwiseError, match="compares nothing"):
        make_plan(read_recipe(recipe, ["study.arms={}"]))


def test_a_changed_study_does_its_own_part_only(finished, recipe, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = set((out / "stages").iterdir())
    assert (
        maskwise(
            "study",
            recipe,
            "tasks=[]",
            "study.arms.token-30.masking.ratio=0.3",
            "--out",
            out,
            "--jobs",
            1,
        )
        == 0
    )
    new = {path.name.split("-")[0] for path in set((out / "stages").iterdir()) - before}
    assert new == {"pretrain", "evaluate"} and len(set((out / "stages").iterdir()) - before) == 4
    assert {r["arm"] for r in read_lines(out / "records.jsonl")} == {
        "token-15",
        "words-30",
        "token-30",
    }


# Interruptions
# ----------------------------------------------------------------------------


@pytest.mark.process
def test_ctrl_c_and_kill_change_no_number(finished, recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    study = ("study", recipe, "--out", out, "--jobs", 1)
    _interrupted(study, out)
    _is_unfinished(out)
    _killed(study, out)
    _is_unfinished(out)
    monkeypatch.setitem(jobs.ENGINES, "local", SamePool)
    assert maskwise(*study) == 0
    assert (out / "records.jsonl").read_bytes() == (finished / "records.jsonl").read_bytes()
    for metrics in finished.glob("stages/*/metrics.jsonl"):
        ours, theirs = (read_lines(f / metrics.relative_to(finished)) for f in (out, finished))
        timeless = {"seconds": 0, "speed": 0}
        assert [line | timeless for line in ours] == [line | timeless for line in theirs]
    assert not list(out.rglob("*.partial"))


def _is_unfinished(out: Path) -> None:
    assert not (out / "records.jsonl").exists()
    assert load_json(out / "study.json")["arms"]
    assert maskwise("report", out) == 0  # a smaller page


def _interrupted(study: tuple[Any, ...], out: Path) -> None:
    """Press Ctrl-C as soon as a study trains; its workers must then end."""
    process = start(*study)
    wait_for(lambda: _lines(out) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody in the group
    _, err = process.communicate(timeout=PATIENCE)
    assert (
        process.returncode == 130
        and "the same command resumes" in err
        and "Traceback" not in err
        # The workers leave it to the study to say so.
        and "SIGTERM" not in err
    )
    wait_for(lambda: not in_group(process.pid))


def _killed(study: tuple[Any, ...], out: Path) -> None:
    """Kill a study, in a copy of this process, as soon as it trains on; its workers must then
    end.
    """
    before = _lines(out)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: (os.setsid(), maskwise(*study))
    )
    process.start()
    assert process.pid
    wait_for(lambda: _lines(out) > before or not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    wait_for(lambda: not in_group(process.pid))


def _lines(out: Path) -> int:
    """Lines of metrics: they stay where they are, and a state to resume from may come and go
    unseen.
    """
    return sum(path.read_text().count("\n") for path in out.glob("stages/pretrain-*/metrics.jsonl"))


def test_two_studies_do_not_write_into_one_folder(finished, recipe, capfd):
    import fcntl

    with (finished / "stages" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert maskwise("study", recipe, "--out", finished) == 2
    assert "another study is running" in capfd.readouterr().err


# Failures
# ----------------------------------------------------------------------------


def test_a_failing_run_takes_no_other_down(recipe, tmp_path, capfd):
    out = tmp_path / "out"
    arms = "study.arms={token-15: {}, wild: {training.learning_rate: 1.0e+30}}"
    assert maskwise("study", recipe, arms, "study.seeds=1", "--out", out, "--jobs", 1) == 1
    assert "failed: wild, seed 0: the loss is not finite" in capfd.readouterr().err
    records = read_lines(out / "records.jsonl")
    [failure] = [record for record in records if record["kind"] == "failure"]
    assert (
        set(failure) == SCHEMA["failure"]
        and failure["arm"] == "wild"
        and "lower the" in failure["error"]
    )
    assert {r["arm"] for r in records if r["kind"] == "score"} == {"token-15", "no-pretraining"}
    assert "the loss is not finite" in (out / "report.html").read_text()
    assert "Traceback" in (out / "stages" / failure["stage"] / "error.txt").read_text()
