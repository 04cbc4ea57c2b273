"""The studies for a GPU: what a call runs, what it records when its time ends, and what is next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu_claims
import pytest

from maskwise.annotate.kept import Store
from maskwise.base.folders import read_json, write_json, write_lines
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies.design import Design
from maskwise.studies.store import StageStore
from maskwise.text import read_documents
from processes import runs, wait_for
from tiny import read_lines

pytestmark = pytest.mark.script

ROOT = Path(__file__).resolve().parent.parent


def recipe(name: str, *changes: str) -> Recipe:
    return read_recipe(str(gpu_claims.RECIPES / f"{name}.yaml"), changes)


def test_the_studies_differ_in_what_they_ask_only() -> None:
    decay, words = (recipe(name) for name in gpu_claims.STUDIES)
    assert decay.model == words.model and decay.training == words.training
    assert decay.finetune == words.finetune and decay.study.seed_list == words.study.seed_list
    for each in (decay, words):
        for arm in each.study.arms:
            masking = each.arm(arm, seed=0).masking
            assert masking.corruption == "bert"
        assert len(each.study.seed_list) == 24
    assert {words.arm(arm, seed=0).masking.ratio for arm in words.study.arms} == {0.15}
    # The pilot's seeds are not those of the studies, and its middle rate is theirs by default.
    pilot = recipe(gpu_claims.PILOT)
    assert not set(pilot.study.seed_list) & set(decay.study.seed_list)
    assert pilot.arm("15, once", seed=0).training == decay.arm("constant-15", seed=0).training


def test_the_layers_are_those_of_the_bundled_text() -> None:
    """They were made beforehand; a changed text would be an error, on a card at the latest."""
    store = Store(ROOT / "benchmarks" / "layers" / "wikipedia-pos")
    documents = list(read_documents("bundled:wikipedia", limit=20))
    found = store.annotate([document.text for document in documents])
    for document, layers in zip(documents, found, strict=True):
        spans = layers["pos"]
        assert len(spans.start) > 0.15 * len(document.text.split())
        assert int(spans.end.max()) <= len(document.text)


def test_the_pilot_chooses_the_rate_with_the_lowest_mean_loss(tmp_path: Path) -> None:
    study = recipe(gpu_claims.PILOT)
    arms = {name: {"overrides": overrides} for name, overrides in study.study.arms.items()}
    write_json(tmp_path / "study.json", {"arms": arms})
    losses = {"half": (4.4, 4.0), "once": (4.5, 3.8), "twice": (4.3, 4.3)}
    records = []
    for rate, (at_15, at_30) in losses.items():
        for seed in (1000, 1001):
            for ratio, loss in (("15", at_15), ("30", at_30)):
                arm = f"{ratio}, {rate}"
                line = {"kind": "heldout", "arm": arm, "seed": seed, "measure": "token"}
                for split, value in (("test", loss), ("unigram", 6.0)):
                    records.append(line | {"ratio": 0.15, "split": split, "value": value})
    start = {"kind": "heldout", "arm": "no-pretraining", "seed": 1000, "measure": "token"}
    records.append(start | {"split": "test", "value": 0.1})
    write_lines(tmp_path / "records.jsonl", records)
    chosen = gpu_claims.choice(tmp_path)
    assert chosen["chosen"] == "once" and chosen["means"]["once"] == 4.15
    assert chosen["gain_at_15"] == 1.5
    assert chosen["rates"] == dict(zip(gpu_claims.RATES, (1.1e-3, 7.0e-3)))


def test_a_study_that_is_stopped_records_its_complete_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call, with the results alone, runs the other seeds."""
    asked: list[str] = []
    name = "published-decay"

    def run(command: Any, log: Path, *, seconds: float) -> int | None:
        seeds = command[command.index("--only-seeds") + 1]
        folder = Path(command[command.index("--out") + 1])
        asked.append(seeds)
        log.write_text("a log")
        whole = read_recipe(command[4], command[5 : command.index("--out")])
        design = Design(
            whole, StageStore(folder / "stages"), seeds=[int(seed) for seed in seeds.split(",")]
        )
        for _ in design.plans():
            pass
        before = list(read_lines(folder / "records.jsonl")) if len(asked) > 2 else []
        if len(asked) == 1:
            # The time is up: all of seed 900 has ended, and all but one stage of seed 901.
            for done in design.runs:
                for stage in done.stages[: None if done.seed == 900 else -1]:
                    written = StageStore(folder / "stages").folder(stage)
                    write_json(written / "done.json", {"seconds": 1, "measurements": []})
            return None
        records = [{"kind": "cost", "arm": one.arm, "seed": one.seed} for one in design.runs]
        write_lines(folder / "records.jsonl", before + records)
        arms = {one.arm: {} for one in design.runs}
        write_json(folder / "study.json", {"seeds": whole.study.seed_list, "arms": arms})
        return 0

    monkeypatch.setattr(gpu_claims, "called", run)
    first = gpu_claims.Claims(tmp_path / "out", tmp_path / "work", seconds=1000, jobs=2, smoke=True)
    (tmp_path / "out").mkdir()
    assert not first.study(name, {})
    assert asked == ["900,901", "900"]
    assert gpu_claims.recorded_seeds(tmp_path / "out" / name) == {900}
    again = gpu_claims.Claims(
        tmp_path / "out2", tmp_path / "work2", seconds=1000, jobs=2, smoke=True
    )
    pilot = {"rates": {gpu_claims.RATES[0]: 1e-3}, "gain_at_15": 1.0}
    write_json(tmp_path / "out" / "pilot.json", pilot)
    assert again.run(tmp_path / "out", only=name) == 0
    assert asked[2:] == ["901"]
    lines = [json.loads(line) for line in (tmp_path / "out2" / "claims.jsonl").open()]
    assert lines[-1]["recorded"] == [900, 901] and lines[-1]["recorded_before"] == 1
    assert read_json(tmp_path / "out2" / "pilot.json") == pilot


def test_a_seed_is_recorded_if_all_arms_ran_and_none_failed(tmp_path: Path) -> None:
    """A seed with a failure alone counted as complete."""
    write_json(tmp_path / "study.json", {"seeds": [0, 1, 2, 3], "arms": {"a": {}, "b": {}}})
    ran = [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("b", 2)]
    records = [{"kind": "cost", "arm": arm, "seed": seed} for arm, seed in ran]
    failures = [{"kind": "failure", "arm": "b", "seed": seed} for seed in (2, 3)]
    write_lines(tmp_path / "records.jsonl", records + failures)
    assert gpu_claims.recorded_seeds(tmp_path) == {0}


def test_at_the_floor_nothing_is_compared(tmp_path: Path) -> None:
    write_json(tmp_path / "before" / "pilot.json", {"rates": {}, "gain_at_15": 0.2})
    claims = gpu_claims.Claims(
        tmp_path / "out", tmp_path / "work", seconds=1000, jobs=2, smoke=False
    )
    assert claims.run(tmp_path / "before") == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "claims.jsonl").open()]
    assert len(lines) == 2 and all("word frequencies" in line["left_out"] for line in lines)


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    claims = gpu_claims.Claims(tmp_path, tmp_path / "work", seconds=5, jobs=2, smoke=True)
    assert claims.run(None) == 3
    lines = [json.loads(line) for line in (tmp_path / "claims.jsonl").open()]
    assert [line["left_out"] for line in lines] == [
        "no time",
        "the pilot has chosen no rate",
        "the pilot has chosen no rate",
    ]


def test_a_command_that_takes_too_long_ends_with_all_its_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = tmp_path / "child"
    command = ["bash", "-c", f"sleep 3600 & echo $! > {child}; wait"]
    assert gpu_claims.called(command, log, seconds=3.0) is None
    wait_for(lambda: not runs(int(child.read_text())))
    assert gpu_claims.called(["bash", "-c", "echo bad; exit 2"], log, seconds=5.0) == 2
    assert gpu_claims.last_words(log) == "bad"


@pytest.mark.slow
def test_both_studies_run_here_in_miniature(tmp_path: Path) -> None:
    claims = gpu_claims.Claims(tmp_path, tmp_path / "work", seconds=900, jobs=2, smoke=True)
    assert claims.run(None) == 0
    for name in gpu_claims.STUDIES:
        kinds = {record["kind"] for record in read_lines(tmp_path / name / "records.jsonl")}
        assert {"task", "heldout", "cost"} <= kinds and "failure" not in kinds
