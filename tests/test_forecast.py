"""How long stages take: one key of what their time depends on, and what is measured counts more
than what is scaled.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from maskwise.base.constants import jobs_here
from maskwise.base.devices import begin_peak_memory, hardware, peak_memory
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation.sets import Pairs
from maskwise.recipe import read_recipe
from maskwise.studies import costs, dry_run, make_plan, rehearsal
from maskwise.studies.costs import (
    CHANGE_NO_TIME,
    Forecast,
    Seconds,
    StageRates,
    at_once,
    summary,
    until_end,
)
from maskwise.studies.forecast import check, lines_of
from maskwise.studies.rehearsal import Rehearsal, rehearse
from maskwise.studies.scheduler import StudyProgress
from maskwise.studies.stages import Stage, named
from maskwise.studies.store import StageStore
from maskwise.studies.text_sample import Samples
from maskwise.studies.work import run_stage
from maskwise.tasks import load_task
from maskwise.tasks.settings import FinetuneSettings
from maskwise.training import TrainingSettings
from processes import PATIENCE, forked
from tiny import WORDS, maskwise, write_inputs, write_lines

SMALL = ["study.seeds=1", "study.arms={a: {}}"]


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_inputs(tmp_path / "in")


def forecast_of(recipe: Path, *overrides: str) -> Forecast:
    stages = make_plan(read_recipe(recipe, [*SMALL, *overrides])).stages()
    return Forecast({stage.name: stage for stage in stages}, StageStore(recipe.parent))


def of_kind(kind: str, forecast: Forecast) -> list[str]:
    return [name for name, stage in forecast.named.items() if stage.kind == kind]


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("training.compile=true", {"pretrain"}),
        ("training.activation_checkpointing=true", {"pretrain"}),
        ("training.shard=true", {"pretrain"}),
        ("training.precision=bf16", {"pretrain"}),
        ("training.batch_size=4", {"pretrain"}),
        ("corpus.length=16", {"prepare", "pretrain", "evaluate"}),
        ("corpus.attention=row", {"prepare", "pretrain", "evaluate"}),
        ("corpus.limit=30", {"prepare", "pretrain", "evaluate", "overlap"}),
        ("corpus.held_out=0.3", {"prepare", "pretrain", "evaluate", "overlap"}),
        ("training.patience=2", {"evaluate"}),
        ("model.settings.hidden_size=24", {"pretrain", "evaluate", "finetune"}),
        ("objective=denoise masking.corruption=t5", {"pretrain", "evaluate", "finetune"}),
        ("masking.corruption=mask-only", {"pretrain"}),
        ("masking.ratio=0.5", set()),
        ("finetune.max_length=8", {"finetune"}),
        ("training.learning_rate=0.1", set()),
        ("training.steps=7", set()),
        ("training.weight_decay=0.1", set()),
    ],
)
def test_the_key_holds_all_that_time_depends_on(override, changes, recipe):
    before = forecast_of(recipe)
    after = forecast_of(recipe, *override.split())
    for kind in {stage.kind for stage in before.named.values()}:
        keys = [[*map(each.key, of_kind(kind, each))] for each in (before, after)]
        assert (keys[0] != keys[1]) == (kind in changes)


@pytest.mark.parametrize(
    "more",
    [
        ["phases=[{}, {training.learning_rate: 0.1}]"],
        ["training.decay=wsd", "training.lengths=[0.25, 0.5, 1]"],
    ],
)
def test_low_rank_training_is_timed_for_each_model(more, recipe):
    """Later phases and parts name only their adapter, so a model had the rates of any other."""
    asked = ["model.adapter=lora(rank=2)", *more]
    small, large = (
        forecast_of(recipe, *asked, f"model.settings.hidden_size={size}") for size in (16, 32)
    )
    for kind in ("pretrain", "evaluate"):
        keys = [{*map(each.key, of_kind(kind, each))} for each in (small, large)]
        assert keys[0] and not keys[0] & keys[1]


def test_an_edited_plug_in_is_timed_again():
    """The time of its former code was taken for that of the new one."""
    text = Stage("prepare", {"corpus": {}, "tokenizer": {}})
    what = {"training": {"steps": 9}, "model": {}, "model_content": None}
    codes = [{}, {"plug_ins": {"objective o": "1"}}, {"plug_ins": {"objective o": "2"}}]
    stages = [Stage("pretrain", what | code, (text.name,)) for code in codes]
    forecast = Forecast({stage.name: stage for stage in (text, *stages)}, StageStore(Path("none")))
    assert len({forecast.key(stage.name) for stage in stages}) == 3


def test_the_policy_that_scores_a_text_decides_its_time():
    """A text was as fast to score by a large policy as by a small one."""
    text = Stage("prepare", {"corpus": {}, "tokenizer": {}})
    learned = [
        Stage("learn", {"learning": {"policy": {"settings": size}}}, (text.name,))
        for size in (16, 512)
    ]
    scored = [Stage("prepare", {"corpus": {}}, (text.name, each.name)) for each in learned]
    stages = {stage.name: stage for stage in (text, *learned, *scored)}
    forecast = Forecast(stages, StageStore(Path("none")))
    assert len({forecast.key(stage.name) for stage in scored}) == 2


def test_the_rates_of_a_text_are_not_those_of_another(recipe, tmp_path, monkeypatch):
    """Evaluations on a large text were said to take what they took on a small one. The texts of
    the runs of one arm, such as invented worlds, are alike, and timed once."""
    lines = (recipe.parent / "corpus.jsonl").read_text().splitlines(keepends=True)
    for seed in range(3):
        (tmp_path / f"{seed}.jsonl").write_text("".join(lines[seed:]))
    asked = ["study.seeds=3", "study.arms={a: {}, b: {corpus.source: bundled:wikipedia}}"]
    asked += ["tasks=[]", "study.baseline=a", f"corpus.source={tmp_path}/{{seed}}.jsonl"]
    link = read_recipe(recipe, asked)
    plan = make_plan(link)
    forecast = Forecast({stage.name: stage for stage in plan.stages()}, StageStore(tmp_path))
    timed = []

    def rates(self, stage, budget):
        timed.append(stage.kind)
        return {"seconds": len(timed), "step": len(timed)}

    monkeypatch.setattr(Rehearsal, "rates", rates)
    assert rehearse([plan], forecast, Rehearsal(tmp_path)) == {}
    assert timed.count("pretrain") == 2
    own, other = {}, {}
    for name in of_kind("pretrain", forecast):
        text = forecast.named[forecast.named[name].needs[0]].what["corpus"]["source"]
        of = other if text == "bundled:wikipedia" else own
        of[forecast.key(name)] = forecast.seconds(name)
    assert len(own) == 3 and len({*own.values()}) == 1
    assert len(other) == 1 and {*own.values()} != {*other.values()}


def finish(name: str, forecast: Forecast, **result: object) -> None:
    folder = forecast.store.folder(name)
    folder.mkdir(parents=True)
    (folder / "done.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"processes": 8},
        {"hardware": hardware() | {"accelerator": "another GPU"}},
        {"hardware": None},
    ],
)
def test_a_dry_run_does_not_count_on_the_speed_of_other_machines(elsewhere, recipe, monkeypatch):
    """The seconds of stages on a GPU, or of eight processes, were those of this processor."""
    before = forecast_of(recipe, "study.seeds=3", "tasks=[]")
    first, second, third = of_kind("pretrain", before)
    before.keep(first, {"start": 0.0, "step": 1.0, "judge": 0.0})
    finish(first, before, seconds=0.5, **elsewhere)
    here, anywhere = (Forecast(before.named, before.store, here=here) for here in (True, False))
    assert here.seconds(second) == 40.0 and anywhere.seconds(second) == 0.5
    assert here.finished == anywhere.finished == {first: 0.5}
    finish(second, before, seconds=7.0, hardware=hardware() | {"memory_gib": 0.1})
    assert Forecast(before.named, before.store, here=True).seconds(third) == 7.0
    passed = []
    monkeypatch.setattr(
        "maskwise.studies.forecast.Forecast",
        lambda *given, here: passed.append(here) or Forecast(*given, here=here),
    )
    for engine in ("local", "ray"):
        dry_run(read_recipe(recipe, [*SMALL, "tasks=[]"]), Path("none"), jobs=1, engine=engine)
    assert passed == [True, False]


def test_a_run_that_patience_ended_says_nothing_of_whole_runs(recipe):
    """Forty steps were said to take the time of ten."""
    named: dict[str, Stage] = {}
    for patience in ("null", "1", "2"):
        named |= forecast_of(recipe, "tasks=[]", f"training.patience={patience}").named
    forecast = Forecast(named, StageStore(recipe.parent))
    whole, ended, other = of_kind("pretrain", forecast)
    forecast.keep(whole, {"start": 0.0, "step": 1.0, "judge": 0.0})
    forecast.add(ended, 0.5)
    assert [forecast.seconds(name) for name in (whole, ended, other)] == [40.0, 0.5, 40.0]


def test_more_jobs_than_cores_end_no_earlier(recipe, monkeypatch):
    """Sixteen jobs on two cores were said to end in an eighth of the time."""
    asked = read_recipe(recipe, ["study.seeds=5", "study.arms={a: {}}", "tasks=[]"])
    stages = {stage.name: stage for stage in make_plan(asked).stages()}
    forecast = Forecast(stages, StageStore(recipe.parent / "none"))
    ready = sum(stage.kind == "prepare" for stage in stages.values())
    for name, stage in stages.items():
        seconds = {"step": 1.0} if stage.kind == "pretrain" else {"seconds": 0.0}
        forecast.keep(name, {"seconds": 100.0 / ready} if stage.kind == "prepare" else seconds)
    monkeypatch.setattr("maskwise.studies.costs.cards_here", list)
    monkeypatch.setattr("maskwise.studies.costs.cores_here", lambda: 2)
    found = [dry_run(asked, Path("none"), jobs=jobs) for jobs in (1, 2, 3, 8)]
    # 100 s alone, then five trainings of 40 s.
    assert [each["seconds"] - 8.0 for each in found] == [300.0, 220.0, 220.0, 220.0]
    assert {each["stages"]["pretrain"]["seconds"] for each in found} == {200.0}
    assert at_once(100) == 2
    # A GPU may have room for several.
    monkeypatch.setattr("maskwise.studies.costs.cards_here", lambda: ["0"])
    assert at_once(100) == 100


def test_finished_runs_forecast_those_of_other_seeds_with_other_texts(recipe):
    """The content of a text was a part of the key, so a study of worlds had no time left."""
    lines = (recipe.parent / "corpus.jsonl").read_text().splitlines()
    for seed in range(2):
        (recipe.parent / f"corpus-{seed}.jsonl").write_text("\n".join(lines[seed:]))
    source = f"corpus.source={recipe.parent}/corpus-{{seed}}.jsonl"
    forecast = forecast_of(recipe, "study.seeds=2", "tasks=[]", "study.arms={a: {}}", source)
    first, second = of_kind("pretrain", forecast)
    forecast.add(first, 5.0)
    assert forecast.known(second) is None and forecast.seconds(second) == 5.0
    # Where stages can be timed, other texts do not count.
    forecast.keep(second, {"start": 0.0, "step": 1.0, "judge": 0.0})
    assert forecast.seconds(second) == 40.0


@pytest.mark.parametrize(
    "rates",
    [5, None, {}, {"seconds": "x"}, {"seconds": None}, {"step": float("nan")}, {"memory_gib": 1}],
)
def test_damaged_rates_are_measured_again(rates, recipe):
    """They ended every forecast with a traceback."""
    before = forecast_of(recipe)
    first, *_ = before.named
    before.keep(first, {"seconds": 1.0})
    kept = dict.fromkeys(map(before.key, before.named), rates)
    before.file.write_text(json.dumps(kept))
    forecast = forecast_of(recipe)
    assert {*map(forecast.seconds, forecast.named)} == {None}
    assert forecast.memory_gib(forecast.named) is None
    forecast.keep(first, {"seconds": 1.0})
    assert forecast_of(recipe).seconds(first) == 1.0


def forecast_of_trials() -> Forecast:
    """40 stages, of which each has rates of its own."""
    trials = [Stage("prepare", {"trial": number}) for number in range(40)]
    return Forecast({stage.name: stage for stage in trials}, StageStore(Path("stages")))


def keep_rates(part: slice, barrier: Any) -> None:
    """Measure some stages, in a process of its own.

    After each read, the other process has time to write.
    """
    forecast = forecast_of_trials()
    read = costs.read_json

    def read_slowly(path: Path) -> Any:
        found = read(path)
        time.sleep(0.001)
        return found

    costs.read_json = read_slowly  # type: ignore[attr-defined]
    for name in [*forecast.named][part]:
        barrier.wait(PATIENCE)
        forecast.keep(name, {"seconds": 1.0})


@pytest.mark.process
def test_two_processes_keep_what_both_measure():
    """Each read the file, and wrote it without what the other had added in between."""
    barrier = multiprocessing.get_context("fork").Barrier(2)
    ends = [forked(keep_rates, half, barrier) for half in (slice(20), slice(20, 40))]
    for end in ends:
        end()
    both = forecast_of_trials()
    assert both.rates.keys() == {*map(both.key, both.named)} and len(both.rates) == 40


def test_the_memory_is_that_of_the_stages_that_will_run(recipe, tmp_path):
    """It was that of the largest model in a folder of shared stages."""
    asked = read_recipe(recipe, [*SMALL, "tasks=[]"])
    planned = {stage.name: stage for stage in make_plan(asked).stages()}
    large = forecast_of(recipe, "tasks=[]", "model.settings.hidden_size=32").named
    forecast = Forecast(planned | large, StageStore(tmp_path))
    for names, size in ((large, 30.0), (planned, 0.5)):
        for name in names:
            rates = {"seconds": 1.0, "step": 1.0, "memory_gib": size}
            forecast.keep(name, rates)
    for name, stage in large.items():
        (tmp_path / "shared" / name).mkdir(parents=True)
        (tmp_path / "shared" / name / "stage.json").write_text(json.dumps(stage.as_dict()))
    found = dry_run(asked, Path("none"), cache=tmp_path / "shared")
    assert found["memory_gib"] == 0.5


def test_stages_that_do_not_fit_into_memory_together_are_named(recipe, tmp_path, monkeypatch):
    asked = read_recipe(recipe, ["study.seeds=4", "study.arms={a: {}}", "tasks=[]"])
    stages = {stage.name: stage for stage in make_plan(asked).stages()}
    forecast = Forecast(stages, StageStore(tmp_path))
    for name in stages:
        forecast.keep(name, {"seconds": 1.0, "step": 1.0, "memory_gib": 3.0})
    monkeypatch.setattr("maskwise.studies.forecast.memory", lambda: 8 * 2**30)
    monkeypatch.setattr("maskwise.studies.forecast.cards_here", list)
    doubts = {jobs: dry_run(asked, Path("none"), jobs=jobs)["doubts"] for jobs in (2, 4)}
    (doubt,) = doubts[4]
    assert doubts[2] == [] and "12 GiB" in doubt["what"] and "2" in doubt["do"]


def test_the_peak_of_memory_begins_anew():
    """What the program used before, such as a larger arm, was remembered for a small model."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux can begin anew")
    cpu = torch.device("cpu")
    much = np.ones(2**28, np.uint8)
    before = peak_memory(cpu)
    del much
    begin_peak_memory(cpu)
    assert peak_memory(cpu) < before - 2**27


@pytest.mark.skipif(sys.platform != "linux", reason="the program reads the file of Linux")
def test_the_peak_of_memory_is_of_this_process_alone():
    """The peak of the program that started a stage was counted as the stage's."""
    much = np.ones(2**29, np.uint8)
    code = "import torch; from maskwise.base.devices import peak_memory;"
    code += "print(peak_memory(torch.device('cpu')))"
    peak = int(subprocess.check_output([sys.executable, "-c", code]))
    assert 2**26 < peak < len(much)


def test_what_changes_no_time_is_a_setting():
    assert TrainingSettings.model_fields.keys() > CHANGE_NO_TIME


def test_what_was_done_counts_more_than_what_was_timed(recipe):
    named: dict[str, Stage] = {}
    for steps in (100, 50):
        more = (f"training.steps={steps}", "training.eval_every=0")
        named |= forecast_of(recipe, *more).named
    forecast = Forecast(named, StageStore(recipe.parent))
    whole, half = of_kind("pretrain", forecast)
    assert forecast.seconds(half) is None
    forecast.add(whole, 100.0)
    assert forecast.seconds(half) is None
    forecast.keep(whole, {"start": 5.0, "step": 0.5, "judge": 2.0})
    assert forecast.seconds(half) == 32.0  # from steps that were timed
    assert Forecast(named, StageStore(recipe.parent)).seconds(half) == 32.0  # which the cache keeps
    assert forecast.seconds(whole) == 100.0  # whole stages of this size
    forecast.add(half, 40.0)
    assert forecast.seconds(half) == 40.0


def test_check_times_each_phase_in_rows_of_its_own(recipe):
    asked = ["corpus.length=64", "phases=[{}, {corpus.length: 16}]", "tasks=[]"]
    asked += ["training.eval_every=0"]
    forecast = forecast_of(recipe, *asked)
    phases = of_kind("pretrain", forecast)
    forecast.add(phases[0], 60.0)
    assert forecast.seconds(phases[1]) is None
    assert not check(str(recipe), [*SMALL, *asked])["time"]["unknown"]
    assert {*map(forecast.key, phases)} <= forecast_of(recipe, *asked).rates.keys()
    planned = dry_run(read_recipe(recipe, [*SMALL, *asked]), Path("none"), jobs=1)
    assert planned["unknown"] == []


def test_a_forecast_of_several_processes_says_that_it_is_of_single_ones(recipe):
    asked = read_recipe(recipe, [*SMALL, "tasks=[]", "training.eval_every=0"])
    alone = dry_run(asked, Path("none"))
    assert alone["processes"] == 1 and alone["jobs"] == jobs_here()
    found = check(str(recipe), [*SMALL, "tasks=[]", "training.eval_every=0"], processes=2)
    assert found["time"]["jobs"] == jobs_here(2) and found["time"]["processes"] == 2
    assert "2 that train it together were not timed" in dict(lines_of(found))["time"]


def test_texts_that_differ_have_samples_of_their_own(recipe, tmp_path):
    """A sample was shared by texts of equal length, whatever their sources and words."""
    first = read_recipe(recipe, SMALL)
    samples = Samples(first, tmp_path / "samples")
    known = samples.of(first)
    for more in ("corpus.words=spaces", "corpus.limit=40", "corpus.source=bundled:wikipedia"):
        assert samples.of(read_recipe(recipe, [*SMALL, more])) is not known
    assert samples.of(read_recipe(recipe, [*SMALL, "training.steps=7"])) is known


@pytest.mark.slow
def test_the_targets_of_an_arm_are_counted_on_its_own_text(recipe):
    """They were counted on the text of the recipe, in which another source of a mix has no rows."""
    corpus = recipe.parent / "corpus.jsonl"
    mix = {str(corpus): 0.5, "bundled:wikipedia": 0.5}
    arms = {"own": {}, "mixed": {"corpus.source": mix}, "short": {"corpus.length": 16}}
    asked = ["study.seeds=1", f"study.arms={json.dumps(arms)}", "study.contrasts=[]"]
    found = check(str(recipe), [*asked, "tasks=[]"])["arms"]
    assert {name for name, facts in found.items() if facts.get("error")} == set()
    assert found["short"]["tokens_per_step"] < found["own"]["tokens_per_step"]
    assert found["mixed"]["tokens_per_step"] != found["own"]["tokens_per_step"]


def test_every_measure_of_an_evaluation_is_timed_on_some_of_its_items(recipe, monkeypatch):
    """The time of minimal pairs, facts and other measures was not counted at all."""
    scored = []
    monkeypatch.setattr(rehearsal, "ROWS", (2, 4))
    real = Pairs.measure

    def measure(self, model, tokenizer, **given):
        scored.append(len(self.good))
        return real(self, model, tokenizer)

    monkeypatch.setattr(Pairs, "measure", measure)
    pairs = [{"sentence_good": WORDS[n], "sentence_bad": WORDS[n + 1]} for n in range(20)]
    write_lines(recipe.parent / "pairs.jsonl", pairs)
    measures = [f"pairs({str(recipe.parent / 'pairs.jsonl')!r})"]
    asked = [f"evaluation.measures={json.dumps(measures)}", "tasks=[]", "phases=none"]
    assert check(str(recipe), [*SMALL, *asked])["unknown"] == []
    assert {*scored} == {2, 4}


@pytest.mark.parametrize("method", [pytest.param("supervised", marks=pytest.mark.slow), "meta"])
def test_learning_of_a_policy_is_rehearsed(method, tmp_path):
    """It had no forecast, so the time of such a study was unknown. The text that the policy scores
    and the training with it are rehearsed with a policy that few steps learned."""
    asked = ["study.seeds=1", "study.gate=null", "study.contrasts=[]", "study.search=null"]
    asked += ["study.arms={one: {masking.policy: learned}}", "tokenizer.vocab_size=512"]
    asked += ["corpus.limit=60", "training.steps=4", "training.batch_size=8", "evaluation.rows=4"]
    asked += ["finetune.steps=4", "finetune.seeds=1"]
    asked += [f"model.settings.{size}_size=32" for size in ("hidden", "intermediate")]
    if method == "meta":
        asked += ["learning.meta.warm=0", "learning.meta.dev_examples=8", "learning.meta.steps=4"]
    plan = make_plan(read_recipe(f"learn-{method}", asked))
    forecast = Forecast(named(plan.stages()), StageStore(tmp_path))
    small = Rehearsal(tmp_path / "rehearsal")
    assert rehearse([plan], forecast, small) == {}
    (learn,) = of_kind("learn", forecast)
    # On a busy machine, the line through both sizes may begin at no seconds.
    assert forecast.rates[forecast.key(learn)]["start"] >= 0 and forecast.seconds(learn) > 0
    (scored,) = (name for name in of_kind("prepare", forecast) if forecast.named[name].needs)
    assert "learned" in small.prepared(scored).training.pieces.columns


def test_samplers_are_timed_on_a_sample_with_few_held_out_rows(recipe, monkeypatch):
    asked = [*SMALL, "tasks=[]", "objective={mlm: , rtd: }", "sampler=mometas(every=4)"]
    asked += ["corpus.length=16", "corpus.held_out=0.4", "evaluation.rows=20"]
    monkeypatch.setattr(rehearsal, "SAMPLE_CHARACTERS", 20_000)
    assert check(str(recipe), asked)["time"]["unknown"] == []


def test_an_arm_whose_targets_are_unknown_stays_in_the_table(recipe, capfd):
    """Arms with a sampler left the table of check without a word."""
    arms = "study.arms={one: {sampler: uniform}}"
    asked = ["study.seeds=1", "tasks=[]", "objective={mlm: , rtd: }", arms]
    arm = check(str(recipe), asked, timing=False)["arms"]["one"]
    assert arm["targets_per_step"] is None and "sampler" in arm["why"]
    assert maskwise("check", recipe, *asked, "--no-timing") == 0
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("one "))
    assert "uniform" in line and "unknown" in line and "sampler" in line


def test_a_sampler_that_always_draws_one_objective_has_known_targets(recipe):
    arms = "{one: {sampler: single(rtd)}, two: {sampler: 'shares(0, 2)'}, three: {sampler: single}}"
    masks = "objective={mlm: {masking: {ratio: 0.5}}, rtd: {masking: {ratio: 0.2}}}"
    asked = ["tasks=[]", masks, f"study.arms={arms}", "study.baseline=one", "phases=none"]
    found = check(str(recipe), ["study.seeds=1", *asked], timing=False)["arms"]
    assert [round(found[arm]["share"], 1) for arm in ("one", "two", "three")] == [0.2, 0.2, 0.5]


ELSEWHERE = 60.0


def line_of(stage: Stage) -> float:
    """Seconds of a stage that are a line in each number."""
    seconds = 5.0 + 2 * (stage.setting("training.steps") or stage.setting("finetune.steps") or 0)
    seconds += 0.5 * (stage.setting("evaluation.rows") or 0)
    return seconds + 0.25 * stage.what.get("rows", 0)


@pytest.fixture
def lines(recipe, monkeypatch, tmp_path):
    """The forecasts of small stages that take the seconds of ``line_of``, and ``ELSEWHERE`` in
    other processes.
    """
    small = Rehearsal(tmp_path / "rehearsal")
    here = {"process": 0.0, "clock": 0.0}

    def run(stage: Stage, store: StageStore) -> None:
        # A compiler would take long.
        if not stage.setting("training.compile"):
            run_stage(stage, store)
        here["process"] += line_of(stage)
        here["clock"] += line_of(stage) + ELSEWHERE

    monkeypatch.setattr(rehearsal, "run_stage", run)
    clocks = {"process_time": lambda: here["process"], "perf_counter": lambda: here["clock"]}
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(**clocks))

    def rates(kind: str, *overrides: str) -> tuple[Stage, StageRates]:
        forecast = forecast_of(recipe, *overrides)
        small.whole |= forecast.named
        name, *_ = of_kind(kind, forecast)
        return forecast.named[name], small.rates(forecast.named[name], 0.0)

    return rates


def test_the_seconds_of_a_training_are_a_line_through_two_sizes(lines):
    """Seconds that do not depend on the steps, such as of compiling, are not multiplied by them."""
    _, rates = lines("pretrain", "tasks=[]", "evaluation.rows=40", "corpus.held_out=0.4")
    assert rates["start"] == pytest.approx(5.0) and rates["step"] == pytest.approx(2.0)
    rows = rates["judge"] / 0.5
    assert 1 <= rows <= 40


@pytest.mark.parametrize(
    ("asked", "counts"),
    [
        (["training.compile=true"], True),
        (["corpus.stream=true", "training.workers=2"], True),
        (["corpus.stream=true", "training.workers=0"], False),
    ],
)
def test_what_other_processes_do_for_a_stage_is_timed(lines, asked, counts):
    """The time to annotate and tokenise a stream, and to compile, was not counted."""
    _, rates = lines("pretrain", "tasks=[]", "corpus.held_out=0.4", *asked)
    assert rates["start"] == pytest.approx(5.0 + counts * ELSEWHERE)


def test_test_rows_are_answered_once_and_dev_rows_at_every_evaluation(lines):
    """Test rows were counted as often as dev rows, in fine-tuning with ``eval_every``."""
    seconds = {}
    for every in (0, 1):
        asked = ("finetune.seeds=2", f"finetune.eval_every={every}")
        stage, rates = lines("finetune", *asked)
        seconds[every] = rates["seconds"]
    task = load_task(stage.what["task"])
    dev, test = len(task.splits["dev"]), len(task.splits["test"])
    steps = FinetuneSettings(**stage.what["finetune"]).training(task, seed=0).steps
    assert seconds[0] == pytest.approx(2 * (5 + 2 * steps + 0.25 * (dev + test) / 2))
    assert seconds[1] - seconds[0] == pytest.approx(2 * 0.25 * steps * dev / 2)


def test_a_step_that_would_fill_the_memory_is_not_timed(recipe, monkeypatch):
    asked = [*SMALL, "corpus.length=32", "tasks=[]", "training.eval_every=0", "phases=none"]
    monkeypatch.setattr(rehearsal, "memory", lambda: 1000)
    found = check(str(recipe), asked)
    # The stages after it need its checkpoint.
    assert found["time"]["unknown"] == ["pretrain", "evaluate"]
    # The reason was not said, and the advice was to measure again.
    assert "training.accumulate" in dict(lines_of(found))["time"]
    head = check(str(recipe), [*asked, "training.freeze=encoder"])
    assert head["time"]["unknown"] == []


def test_the_end_is_that_of_workers_that_take_one_stage_after_another():
    """The longest chain, or the shared work, was said to be the end; both are too short."""
    first, *others = [Stage("pretrain", {"n": n}) for n in range(4)]
    after = [Stage("pretrain", other.what, (first.name,)) for other in others]
    planned = {stage.name: stage for stage in (first, *after)}
    seconds = dict.fromkeys(planned, 4.0) | {first.name: 10.0}
    assert until_end(planned, seconds, 1) == 22.0
    assert until_end(planned, seconds, 2) == 18.0
    assert until_end(planned, seconds, 8) == 14.0
    assert until_end(planned, {}, 2) == 0.0
    # Without the first stage, which is finished, two workers have one and two stages.
    del seconds[first.name]
    assert until_end(planned, seconds, 2) == 8.0


def test_a_long_stage_that_comes_last_is_not_begun_earlier():
    stages = [Stage("pretrain", {"n": n}) for n in range(3)]
    planned = {stage.name: stage for stage in stages}
    assert until_end(planned, dict(zip(planned, [1.0, 1.0, 10.0])), 2) == 11.0


def test_plans_run_one_after_another():
    """Two plans with one stage each use one worker at a time."""
    one, two = [Stage("overlap", {"n": n}) for n in range(2)]
    planned = {stage.name: stage for stage in (one, two)}
    seconds: Seconds = dict.fromkeys(planned, 30.0)
    together = summary(planned, seconds, 2, [planned.keys()], {})["seconds"]
    apart = summary(planned, seconds, 2, [{one.name}, {two.name}], {})["seconds"]
    assert apart - together == 30.0


def test_the_held_out_rows_are_those_of_the_documents_that_are_held_out(tmp_path, monkeypatch):
    """With few documents, their share is far from the setting."""
    words = {False: " ".join(WORDS[:40]), True: " ".join(WORDS * 20)}
    texts = [{"id": str(n), "text": f"{words[n % 20 == 7]} {n}."} for n in range(160)]
    write_lines(tmp_path / "long.jsonl", texts)
    asked = [f"corpus.source={tmp_path / 'long.jsonl'}", "corpus.held_out=0.2"]
    link = read_recipe(write_inputs(tmp_path / "in"), [*SMALL, *asked])
    whole = Samples(link, tmp_path / "whole").first
    counts = whole.part.counts
    sizes = (len(document.text) for document in link.corpus.held_out_documents())
    assert counts.held_out == sum(sizes) and abs(counts.held_out / counts.characters - 0.2) > 0.02
    assert whole.held_out_rows == len(whole.data.held_out)
    monkeypatch.setattr(rehearsal, "SAMPLE_CHARACTERS", counts.characters // 2)
    part = Samples(link, tmp_path / "part").first
    assert part.part.times > 1 and part.held_out_rows == pytest.approx(whole.held_out_rows, rel=0.1)


# The table
# ----------------------------------------------------------------------------


@pytest.fixture
def table(recipe, tmp_path):
    plan = make_plan(read_recipe(recipe, SMALL))
    return partial(StudyProgress, plan, StageStore(tmp_path), jobs=2)


@pytest.mark.parametrize("weights", [0, 2000])
def test_the_first_line_of_metrics_is_seen_however_long(weights, table, tmp_path):
    progress = table()
    name, *_ = of_kind("pretrain", progress.forecast)
    line = {"kind": "train", "step": 5} | dict.fromkeys(map(str, range(weights)), "a weight")
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + '\n{"kind": "train", "st')
    assert progress.store.last_line(name)["step"] == 5


def test_a_plan_begins_with_a_line_of_what_it_will_take(table, capfd):
    forecast = table().forecast
    for name in forecast.named:
        forecast.keep(name, {"seconds": 100.0, "start": 100.0})
    with table():
        pass
    said = capfd.readouterr().err
    assert f"0 of {len(forecast.named)} stages" in said and "about" in said


def test_a_log_has_a_line_a_minute(table, capfd, monkeypatch):
    progress = table()
    printed = []
    for seconds in (0, 59, 60, 61, 119, 121):
        now = progress.began + seconds
        monkeypatch.setattr("maskwise.studies.scheduler.time.perf_counter", lambda now=now: now)
        progress.update((), ())
        printed.append(bool(capfd.readouterr().err))
    assert printed == [False, False, True, False, False, True]


def test_a_study_is_planned_once(recipe, monkeypatch):
    """A dry run before it, for one line of the time, read every text and task a second time."""
    checked: list[str] = []

    def stop(recipe: object, out: object, **more: object) -> list[str]:
        checked.append("run")
        raise MaskwiseError("far enough")

    monkeypatch.setattr("maskwise.studies.run.check_study", stop)
    monkeypatch.delattr("maskwise.studies.forecast.check_study")
    assert maskwise("study", recipe, *SMALL, "--out", "out") == 2
    assert checked == ["run"]


def test_a_plan_is_printed_before_stages_are_timed(recipe, monkeypatch, capsys):
    """Nothing was said for the seconds in which stages are timed, and Ctrl-C left nothing."""

    def interrupted(*_: object, **more: object) -> None:
        said = capsys.readouterr()
        assert "targets per step" in said.out and "work time" not in said.out
        assert re.search(r"time +\d+ runs?, .* to .* with", said.out)
        raise KeyboardInterrupt

    command = ("check", recipe, *SMALL)
    monkeypatch.setattr("maskwise.studies.forecast.rehearse_stages", interrupted)
    assert maskwise(*command) == 130
    # Without timing, the plan is whole, and its time is a range.
    assert maskwise(*command, "--no-timing") == 0
    said = capsys.readouterr().out
    assert said.index("targets per step") < said.index("work time") < said.index(" with 2 stages")


def test_a_rehearsal_that_is_asked_for_runs_every_stage(recipe, monkeypatch):
    """A stage whose time is known from another study is run, too, and what fails ends the check."""
    asked = [*SMALL, "tasks=[]"]
    assert check(str(recipe), asked)["unknown"] == []
    rehearsed = []

    def rates(self: Rehearsal, stage: Stage, budget: float) -> StageRates:
        rehearsed.append(stage.kind)
        if stage.kind == "evaluate":
            raise MaskwiseError("no such file")
        return {"seconds": 1.0, "start": 1.0, "step": 1.0}

    monkeypatch.setattr(Rehearsal, "rates", rates)
    check(str(recipe), asked)
    assert rehearsed == []
    with pytest.raises(MaskwiseError, match="no such file"):
        check(str(recipe), asked, rehearse=True)
    assert {*rehearsed} == {"prepare", "pretrain", "evaluate"}
    assert maskwise("check", recipe, *asked, "--rehearse") == 2
