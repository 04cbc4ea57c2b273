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
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import IDENTITY, UNFINISHED, USED, OutputFolder, damage, read_json
from maskwise.base.specs import with_options
from maskwise.evaluation import fixed_maskers
from maskwise.jobs import pools
from maskwise.recipe import read_recipe
from maskwise.studies import Stage, make_plan
from maskwise.studies.probed import rows_with
from maskwise.studies.stages import prepare_stage, pretrain_stage
from maskwise.text import Prepared
from processes import PATIENCE, SamePool, forked, in_group, wait_for
from tiny import load_json, maskwise, read_lines, records_of, start, unversioned, write_inputs

COLUMNS = {
    *("kind", "arm", "seed", "measure", "value", "metric", "unit", "higher_is_better", "split"),
}
ITEMS = {"chance", "items", "item_error", "fine_tuning", "item_sums", "item_sizes"}
SCHEMA = {
    "task": COLUMNS | ITEMS,
    "task dev": COLUMNS | {"chance", "fine_tuning"},
    "task further": COLUMNS | {"items"},
    "heldout": COLUMNS | {"ratio", "items", "per_byte"},
    "heldout unigram": COLUMNS | {"ratio", "items"},
    "cost": {"kind", "arm", "seed", "steps", "tokens", "targets", "flops", "flops_formulas"},
    "failure": {"kind", "arm", "seed", "stage", "error"},
    "overlap": {
        "kind",
        "task",
        "corpus",
        "items",
        "overlapping",
        "covered",
        "short",
        "documents",
        "n",
        "run",
        "run_words",
        "examples",
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A whole study, uninterrupted, through the command line."""
    out = tmp_path_factory.mktemp("study") / "out"
    assert maskwise("study", recipe, "--out", out, "--jobs", 1) == 0
    return out


@pytest.mark.slow
def test_another_task_does_not_train_again(recipe, finished, tmp_path, capsys):
    """A folder holds one study. Its error says how another one uses the finished stages."""
    [task] = read_recipe(recipe).tasks
    other = f"tasks=[{task}(train_rows=8)]"
    assert maskwise("study", recipe, other, "--out", finished, "--jobs", 1) == 2
    cache = f"study.cache={finished}/stages"
    assert cache in capsys.readouterr().err
    # A copy, because other tests compare the stages of the finished study with its files.
    stages = shutil.copytree(finished / "stages", tmp_path / "stages")
    cache = f"study.cache={stages}"
    out = tmp_path / "out"
    before = {stage.name for stage in stages.iterdir()}
    assert maskwise("study", recipe, other, cache, "--out", out, "--jobs", 1) == 0
    trained = {line["stage"] for line in read_lines(out / "timings.jsonl")} - before
    assert {name.partition("-")[0] for name in trained} == {"finetune", "overlap"}


def test_an_arm_without_training_shows_no_masks(recipe, tmp_path):
    given = ("training.steps=4", "tasks=[]", "study.seeds=1")
    idle = "{training.steps: 0, masking.ratio: linear-decay(0.3)}"
    arms = f"study.arms={{token-15: {{}}, idle: {idle}}}"
    out = tmp_path / "out"
    assert maskwise("study", recipe, *given, arms, "--out", out, "--jobs", 1) == 0
    assert "idle" not in load_json(out / "samples.json")


# What a study leaves
# ----------------------------------------------------------------------------


def test_a_study_leaves_the_files_that_the_documentation_names(finished):
    study, summary = (load_json(finished / name) for name in ("study.json", "summary.json"))
    assert study["baseline"] == "token-15" and study["seeds"] == [0, 1] and study["seconds"] > 0
    assert study["tasks"]["task"]["test_items"] == 10
    records = read_lines(finished / "records.jsonl")
    counts: Counter[str] = Counter()
    for record in records:
        split = record.get("split", "test")
        kind = record["kind"] if split == "test" else f"{record['kind']} {split}"
        assert set(record) == SCHEMA[kind]
        counts[kind] += 1
    # Two arms and the reference, two seeds, one task with two further metrics; two kinds of
    # held-out masks at two ratios, for the arms only.
    scores = {"task": 6, "task dev": 6, "task further": 12}
    assert counts == scores | {"heldout": 16, "heldout unigram": 16, "cost": 4, "overlap": 1}
    assert [row["outcome"] for row in summary["contrasts"] if row["primary"]] == ["tasks"]
    stages = {path.name for path in (finished / "stages").iterdir()} - {"plan.json"}
    timings = read_lines(finished / "timings.jsonl")
    assert {line["stage"] for line in timings} == stages
    assert {line["purpose"] for line in timings} == {"main"}
    samples = load_json(finished / "samples.json")
    assert set(samples) == {"token-15", "words-30"}
    states = {piece["state"] for row in samples["token-15"] for piece in row["pieces"]}
    assert states >= {"shown", "masked"}


def test_a_version_says_the_format_of_every_file(finished):
    assert not unversioned(finished)
    kinds = {path.name for path in finished.rglob("*")}
    assert kinds >= {"study.json", "plan.json", "stage.json", "done.json", "columns.json"}


@pytest.mark.parametrize("newer", ["study.json", "stages/pretrain-*/done.json"])
@pytest.mark.parametrize("command", ["report", "status", "study"])
def test_a_study_of_a_newer_version_is_refused(newer, command, recipe, finished, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    path = sorted(out.glob(newer))[0]
    path.write_text(json.dumps(load_json(path) | {"format": 2}))
    kept = {path: path.read_bytes() for path in out.rglob("*.json*")}
    # A page needs no results of stages.
    refused = (command, newer) != ("report", "stages/pretrain-*/done.json")
    given = [recipe, "--out", out, "--jobs", 1] if command == "study" else [out]
    assert maskwise(command, *given) == (2 if refused else 0)
    if refused:
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(path) in line and "format 2" in line and "newer maskwise" in line
        assert {path: path.read_bytes() for path in kept} == kept


def test_the_page_needs_nothing_else(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "words-30" in page and "<script" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?https?:""", page)


def test_report_computes_the_verdicts_of_complete_records(finished, tmp_path, capfd):
    out = tmp_path / "record"
    out.mkdir()
    for name in ("study.json", "records.jsonl"):
        shutil.copy(finished / name, out)
    assert maskwise("report", out) == 0
    assert load_json(finished / "summary.json")["headline"] in (out / "report.html").read_text()
    # It writes the page, and nothing else.
    assert {path.name for path in out.iterdir()} == {"study.json", "records.jsonl", "report.html"}
    capfd.readouterr()
    assert maskwise("report", out, "--json") == 0
    assert json.loads(capfd.readouterr().out) == read_json(finished / "summary.json")


@pytest.mark.parametrize("change", [{"seeds": [0, 1, 99]}, {"seeds": [0], "contrasts": []}])
def test_report_computes_no_verdicts_of_records_that_do_not_fit(change, finished, tmp_path):
    out = tmp_path / "record"
    out.mkdir()
    study = load_json(finished / "study.json")
    study |= change
    (out / "study.json").write_text(json.dumps(study))
    shutil.copy(finished / "records.jsonl", out)
    assert maskwise("report", out) == 0
    assert not (out / "summary.json").exists()


def test_a_second_run_does_nothing_and_finds_the_same(finished, recipe, monkeypatch, capfd):
    monkeypatch.setitem(pools.ENGINES, "local", None)  # no worker is started
    files = [finished / name for name in ("records.jsonl", "study.json", "samples.json")]
    stages = [path for path in (finished / "stages").rglob("*") if path.name != ".lock"]

    def state() -> list[Any]:
        return [path.read_bytes() for path in files] + [path.stat().st_mtime_ns for path in stages]

    before = state()
    assert maskwise("study", recipe, "--out", finished, "--json") == 0
    assert before == state()
    out, err = capfd.readouterr()
    assert json.loads(out)["baseline"] == "token-15"
    assert "pretrain" not in err and "finetune" not in err, "no stage is reported"


WITHOUT_MASKWISE = """
import json, sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer
checkpoint, *files = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
assert tokenizer.mask_token_id is not None and model.config.vocab_size == len(tokenizer)
losses = []
for file in files:
    batch = load_file(file)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits
    losses.append(float(torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)))
assert "maskwise" not in sys.modules
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_a_checkpoint_needs_no_maskwise_and_gives_the_same_loss(finished, tmp_path):
    stage = next((finished / "stages").glob("pretrain-*"))
    assert damage(stage / "checkpoint") is None and not (stage / "resume").exists()
    what = load_json(stage / "stage.json")
    data = Prepared.open(finished / "stages" / what["needs"][0] / "data")
    evaluation = what["how"]["evaluation"]
    maskers = fixed_maskers(
        data.tokenizer, masks=evaluation["masks"], ratio=evaluation["ratios"][0]
    )
    alone = data.held_out.laid("document")  # as documents of packed rows are read, too
    judged = alone.line(rows_with(alone, data.held_out, evaluation["rows"]))
    files = []
    for kind, masker in maskers.items():
        files.append(tmp_path / f"{kind}.safetensors")
        save_file({k: v.contiguous() for k, v in dict(masker(judged, epoch=0)).items()}, files[-1])
    command = [sys.executable, "-c", WITHOUT_MASKWISE, stage / "checkpoint", *files]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    reported = {line["masks"]: line["loss"] for line in load_json(stage / "done.json")["heldout"]}
    losses = dict(zip(maskers, json.loads(ran.stdout), strict=True))
    assert losses == pytest.approx(reported, abs=1e-5)


# Stages
# ----------------------------------------------------------------------------


SAME = ("training.log_every=1", "training.eval_every=5", "evaluation.rows=8", "study.seeds=5")


@pytest.mark.parametrize(
    ("override", "prepared", "pretrained"),
    [
        *((override, True, True) for override in (*SAME, "name=other")),
        ("training.steps=41", True, False),
        ("masking.ratio=0.2", True, False),
        ("model.settings.hidden_size=32", True, False),
        ("masking.budget=exact", True, False),
        ("corpus.length=33", False, False),
    ],
)
def test_a_name_stands_for_all_that_matters(override, prepared, pretrained, recipe):
    def names(*overrides: str) -> tuple[str, str]:
        one = read_recipe(recipe, overrides).arm("token-15", seed=0)
        text = prepare_stage(one)
        return text.name, pretrain_stage(one, text).name

    before, after = names(), names(override)
    same = (before[0] == after[0], before[1] == after[1])
    assert same == (prepared, pretrained)


def test_a_plan_runs_every_arm_before_the_second_of_any(recipe):
    plan = make_plan(read_recipe(recipe))
    assert [run.seed for run in plan.runs] == [0, 0, 0, 1, 1, 1]
    names = {stage.name for stage in plan.stages()}

    def shared(*overrides: str) -> set[str]:
        """The kinds of stages that another study has, too."""
        other = make_plan(read_recipe(recipe, overrides))
        return {stage.kind for stage in other.stages() if stage.name in names}

    # the reference is shared too
    assert shared("training.steps=7") == {"prepare", "finetune", "overlap"}
    [task] = read_recipe(recipe).tasks
    few = json.dumps([with_options(task, train_rows=8)])
    assert shared(f"tasks={few}") == {"prepare", "pretrain", "evaluate"}
    same = Stage.from_dict(json.loads(json.dumps(plan.stages()[-1].as_dict())))
    assert same.name == plan.stages()[-1].name
    with pytest.raises(MaskwiseError, match="has no arms to compare"):
        make_plan(read_recipe(recipe, ["study.arms={}"]))


# Interruptions
# ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.process
def test_ctrl_c_and_kill_change_no_number(finished, recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    study = ("study", recipe, "--out", out, "--jobs", 1)
    _interrupted(study, out)
    _is_unfinished(out)
    _killed(study, out)
    _is_unfinished(out)
    monkeypatch.setitem(pools.ENGINES, "local", SamePool)
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


@pytest.mark.process
def test_four_processes_share_a_study_although_one_is_killed(finished, recipe, tmp_path):
    out = tmp_path / "out"
    fork = multiprocessing.get_context("fork")

    def run() -> None:
        os.setsid()
        pools.ENGINES["local"] = SamePool
        sys.exit(maskwise("study", recipe, "--out", out, "--jobs", 1))

    processes = [fork.Process(target=run) for _ in range(4)]
    for process in processes:
        process.start()
    killed, *others = processes
    # By then, three processes train.
    metrics = "stages/pretrain-*/metrics.jsonl"
    wait_for(lambda: len([*out.glob(metrics)]) > 2 or not killed.is_alive())
    killed.kill()
    for process in processes:
        process.join(PATIENCE)
    assert killed.exitcode == -signal.SIGKILL
    assert [process.exitcode for process in others] == [0, 0, 0]
    assert (out / "records.jsonl").read_bytes() == (finished / "records.jsonl").read_bytes()
    study = load_json(out / "study.json")
    assert study["pending"] == [] and "earlier_hardware" not in study
    # The last one has ended the study, and removed the lock of the one that was killed.
    assert [path.name for path in out.glob(".*")] == [IDENTITY]
    assert not [*out.rglob("*.partial")]
    # Nobody did the work of another one again.
    for path in out.glob(metrics):
        steps = [line["step"] for line in read_lines(path) if line["kind"] == "train"]
        assert steps == sorted({*steps})


@pytest.mark.process
def test_processes_that_begin_at_the_same_time_agree_on_the_study(finished, recipe, tmp_path):
    """A process had joined before it wrote its study, and another one compared its own, which was
    the same, with that of an earlier call.
    """
    out = shutil.copytree(finished, tmp_path / "out")
    joined, ended = tmp_path / "joined", tmp_path / "ended"
    study = ("study", recipe, "study.seeds=1", "--out", out, "--jobs", 1)

    def is_written() -> bool:
        return load_json(out / "study.json")["seeds"] == [0]

    def first() -> int:
        alone = OutputFolder.alone

        @contextmanager
        def slow(folder):
            if joined.exists():
                wait_for(lambda: is_written() or ended.exists())
            with alone(folder):
                yield
            joined.touch()

        OutputFolder.alone = slow
        return maskwise(*study)

    def second() -> int:
        wait_for(joined.exists)
        code = maskwise(*study)
        ended.touch()
        return code

    codes = [end() for end in (forked(second), forked(first))]
    assert codes == [0, 0]
    assert is_written()


def test_a_folder_that_others_use_is_not_changed_by_another_study(finished, recipe, capfd):
    import fcntl

    before = (finished / "records.jsonl").read_bytes()
    used = finished / UNFINISHED / f".other-1{USED}"
    used.parent.mkdir()
    with used.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert maskwise("study", recipe, "study.seeds=3", "--out", finished, "--jobs", 1) == 2
        [line] = capfd.readouterr().err.splitlines()
        assert "another study is running" in line and "other-1" in line and "study.seeds" in line
        # The same study is shared.
        assert maskwise("study", recipe, "--out", finished, "--jobs", 1) == 0
        assert "other-1" in capfd.readouterr().err
    assert (finished / "records.jsonl").read_bytes() == before and used.exists()
    assert maskwise("study", recipe, "--out", finished, "--jobs", 1) == 0
    assert not used.exists()


# Failures
# ----------------------------------------------------------------------------


def test_a_failing_run_takes_no_other_down(recipe, tmp_path, capfd):
    out = tmp_path / "out"
    arms = "study.arms={token-15: {}, wild: {training.learning_rate: 1.0e+30}}"
    assert maskwise("study", recipe, arms, "study.seeds=1", "--out", out, "--jobs", 1) == 1
    assert "failed: wild, seed 0: the loss is not finite" in capfd.readouterr().err
    [failure] = records_of(out, "failure")
    assert set(failure) == SCHEMA["failure"] and failure["arm"] == "wild"
    assert "lower the" in failure["error"]
    assert {r["arm"] for r in records_of(out, "task")} == {"token-15", "no-pretraining"}
    assert "the loss is not finite" in (out / "report.html").read_text()
    assert "Traceback" in (out / "stages" / failure["stage"] / "error.txt").read_text()
