"""The benches run, check what they time, and show it; their figures are not a test's business."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gpu as gpu_bench
import pytest
import quick_step
import seq2seq
import torch
import train as train_bench

from maskwise.bench import bench_mask, mask_notes, mask_rows, spread
from maskwise.masking import CORRUPTIONS, POLICIES


@pytest.mark.slow
def test_bench_mask_times_every_member_beside_the_peer() -> None:
    result = json.loads(json.dumps(bench_mask(batches=2, repetitions=2, vocab_size=1000)))
    names = {r["name"] for r in result["results"]}
    assert {f"maskwise, {name}" for name in POLICIES} | {
        "transformers",
        "transformers, whole words",
        "transformers, masking step from tensors",
    } <= names
    assert {f"maskwise, shown as {name}" for name in CORRUPTIONS} <= names
    simple = {
        (r["layout"], r["length"]) for r in result["results"] if r["name"] == "maskwise, whole-word"
    }
    layouts = {
        (layout, length) for layout in ("documents", "packed", "sentences") for length in (128, 512)
    }
    assert simple == layouts | {("documents", 4096)}
    assert all(r["milliseconds"] > 0 and r["times_random"] > 0 for r in result["results"])
    assert all(r["spread"] > 0 for r in result["results"])
    assert result["repetitions"] == 2 and len(result["noise"]["probe_milliseconds"]) == 3
    notes = " ".join(mask_notes(result))
    assert "fixed piece of work" in notes and result["hardware"]["cpu"] in notes
    assert len(mask_rows(result)) == len(result["results"])
    assert "8 × 4096" in {row[2] for row in mask_rows(result)}


def test_bench_train_times_both_on_both_texts() -> None:
    """In miniature: every line is there, and all start from the same weights."""
    small = train_bench.bert("tiny", 1, 64, 2)._replace(batch_size=8, length=32)
    result = train_bench.bench_train([small], rounds=2, vocabulary=512, documents=120)
    names = {row["name"] for row in result["contestants"]}
    assert {"maskwise", "transformers.Trainer fp32"} <= names and result["matmul_flops"] > 1e8
    assert len(result["contestants"]) == 2 * len(names)
    losses = [row["loss"] for row in result["contestants"]]
    assert max(losses) - min(losses) < 0.5 and all(math.isfinite(loss) for loss in losses)
    # A rounded spread can be 0, but not that of every line.
    assert max(row["spread"] for row in result["contestants"]) > 0
    for row in result["contestants"]:
        assert row["ms_per_step"] > 0 and row["memory_gib"] > 0
        assert row["rounds"] == 2
        least, most = row["ours_over_it_range"]
        assert least <= row["ours_over_it"] <= most
        # Two steps are too few for a figure.
        assert (row.get("mfu", 0) > 0) == (row["name"] == "maskwise")
    assert len(result["noise"]["probe_milliseconds"]) == 3


def test_fine_tuning_is_timed_beside_the_trainer_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_step, "SIZES", {"small": (1, 64)})
    found = quick_step.beside_trainer(rounds=2, warm=1, timed=3, task="banking77(train_rows=80)")
    ours, random, grouped = found["sizes"]["small"]
    assert [ours["name"], random["name"]] == ["maskwise", "Trainer"]
    # Rows of similar length need less padding; Trainer groups those of larger data sets only.
    assert random["padding"] > 2 * ours["padding"]
    for line in (ours, random, grouped):
        for clock in ("wall", "processor"):
            figures = line[clock]
            least, most = figures["ours_over_it_range"]
            assert least <= figures["ours_over_it"] <= most
            assert figures["best"] >= figures["median"] > 0
    assert ours["wall"]["ours_over_it_range"] == [1, 1]
    # Three steps from the same weights have nearly the same loss.
    assert ours["loss"] == pytest.approx(random["loss"], rel=0.2)
    assert len(found["noise"]["probe_milliseconds"]) == 3


def test_the_spread_is_the_range_over_the_median() -> None:
    assert spread([2.0, 4.0, 5.0]) == 0.75


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_every_part_here_in_miniature(tmp_path: Path) -> None:
    lines = gpu_bench.bench(tmp_path, seconds=300, smoke=True)
    assert [line for line in lines if "error" in line or "left_out" in line] == []
    parts = {line["part"] for line in lines}
    assert {"machine", "waits", "several objectives", "trace"} <= parts
    promised = {f"{family}-base, {length}" for family, length in gpu_bench.PROMISED}
    assert {f"{name}: maskwise compiled" for name in promised} <= parts
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == len(lines)
    assert (tmp_path / "trace.json.gz").stat().st_size > 1000
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    assert min(rates) > 0


def test_on_a_gpu_what_was_promised_is_measured_first(tmp_path: Path) -> None:
    bench = gpu_bench.Bench(smoke=True)
    bench.smoke = False
    names = [name for name, _ in bench.parts(tmp_path)]
    assert names[:2] == ["machine", "waits"]
    promised = names[2:6] + names[9:13]
    assert all(name.startswith(("bert-base, 128", "modernbert-base, 1024")) for name in promised)
    # Nothing is compiled before all that needs no compilation, except the other shapes.
    assert not any("compiled" in name for name in names[:9])
    both = {name for name in names if "base" in name}
    assert len(both) == 2 * 3 * 2 * 2


def test_a_side_without_memory_gets_half_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = gpu_bench.Bench(smoke=True)
    shape = bench.shape("bert", 128)
    plain = train_bench.Contest.time

    def full(contest: train_bench.Contest, name: str) -> None:
        if contest.shape.batch_size > 2:
            raise torch.OutOfMemoryError
        plain(contest, name)

    monkeypatch.setattr(train_bench.Contest, "time", full)
    line = bench.timed(shape, train_bench.OURS)
    assert shape.batch_size == 4 and line["batch"].startswith("2 × ")
    assert line["tokens_per_second"] > 0


@pytest.mark.slow
def test_a_part_without_time_is_named(tmp_path: Path) -> None:
    lines = gpu_bench.bench(tmp_path, seconds=-1, smoke=True)
    assert {line["left_out"] for line in lines} == {"no time"}


@pytest.mark.slow
def test_denoising_is_timed_beside_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seq2seq, "DOCUMENTS", 20)
    found = seq2seq.bench_seq2seq("t5", rounds=1)
    assert len(found["contestants"]) == len(seq2seq.FORMATS) * len(seq2seq.LAYOUTS)
    for line in found["contestants"]:
        assert line["tokens_per_second"] > 0
        assert (line["rate_over_peer"] == 1) == (line["name"] == seq2seq.PEER)
    spans, full = found["formats"]
    assert full["written"] > spans["written"] and full["encoder_flops"] == spans["encoder_flops"]
