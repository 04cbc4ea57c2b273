"""The benches run, check what they time, and show it; their figures are not a test's business."""

from __future__ import annotations

import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import gpu as gpu_bench
import gpu_trace
import pytest
import quick_step
import seq2seq
import torch
import train as train_bench
from figures import spread
from gpu_variants import BUCKET
from mask import bench_mask, mask_notes, mask_rows
from transformers import AttentionInterface, PreTrainedModel

from maskwise.masking import CORRUPTIONS, POLICIES
from maskwise.text import read_documents, train_tokenizer
from test_packed_collator import varlen

pytestmark = pytest.mark.script


@pytest.mark.slow
def test_bench_mask_times_every_member_beside_the_peer() -> None:
    result = json.loads(json.dumps(bench_mask(batches=2, repetitions=2, vocab_size=1000)))
    names = {r["name"] for r in result["results"]}
    assert {f"maskwise, {name}" for name in POLICIES} | {
        "transformers",
        "transformers, whole words",
        "transformers, masking step from tensors",
        "maskwise, token, from three columns",
        "maskwise, token, from a line",
        "maskwise, token, from lists",
        "maskwise, whole-word, from lists",
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
    assert any(r["spread"] > 0 for r in result["results"])
    assert result["repetitions"] == 2 and len(result["noise"]["probe_milliseconds"]) == 3
    notes = " ".join(mask_notes(result))
    assert "fixed piece of work" in notes and result["hardware"]["cpu"] in notes
    assert len(mask_rows(result)) == len(result["results"])
    assert "8 × 4096" in {row[2] for row in mask_rows(result)}


def test_the_tokens_of_trainer_are_those_that_it_reads() -> None:
    small = train_bench.bert("tiny", 1, 64, 2)._replace(batch_size=8, length=32, steps=2)
    documents = [*read_documents("bundled:wikipedia", limit=120)]
    tokenizer = train_tokenizer((document.text for document in documents), vocab_size=512)
    contest = train_bench.Contest(small, "varied", documents, tokenizer)
    read = [len(text["input_ids"]) for text in contest.texts]
    assert len(read) == 8 * (train_bench.WARM + 2)
    assert contest.tokens(f"{train_bench.PEER} fp32") == 8 * sum(read) / len(read)
    rows = contest.rows[train_bench.PEER]
    first = rows.line(range(len(read))).columns()["attention_mask"].sum() / len(read)
    mean = rows.tokens / len(rows)
    assert abs(sum(read) / len(read) - mean) < abs(first - mean), "from all of the text"


def test_bench_train_times_both_on_both_texts() -> None:
    """In miniature: every line is there, and all start from the same weights."""
    small = train_bench.bert("tiny", 1, 64, 2)._replace(batch_size=8, length=32)
    result = train_bench.bench_train([small], rounds=2, vocabulary=512, documents=120)
    sides = {(row["name"], row["precision"]) for row in result["contestants"]}
    assert {("maskwise", "fp32"), ("transformers.Trainer", "fp32")} <= sides
    assert {precision for _, precision in sides} == set(result["matmul_flops"])
    assert min(result["matmul_flops"].values()) > 1e8
    assert len(result["contestants"]) == 2 * len(sides)
    assert [row["text"] for row in result["best_over_best"]] == ["full", "varied"]
    losses = [row["loss"] for row in result["contestants"]]
    assert max(losses) - min(losses) < 0.5 and all(math.isfinite(loss) for loss in losses)
    # A rounded spread can be 0, but not that of every line.
    assert max(row["spread"] for row in result["contestants"]) > 0
    for row in result["contestants"]:
        assert row["ms_per_step"] > 0 and row["memory_gib"] > 0
        assert row["rounds"] == 2
        for clock in ("", "processor_"):
            least, most = row[f"{clock}ours_over_it_range"]
            assert least <= row[f"{clock}ours_over_it"] <= most
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


# --- the benchmark for GPUs


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_every_part_here_in_miniature(tmp_path: Path) -> None:
    lines = gpu_bench.bench(tmp_path, seconds=600, smoke=True)
    assert [line for line in lines if "error" in line] == []
    # Packed rows of the peer need a kernel that only GPUs have; the record says so.
    left_out = {line["part"] for line in lines if "left_out" in line}
    names = [line["part"] for line in lines]
    assert left_out == {name for name in names if "Trainer" in name and "packed" in name} != set()
    assert set(lines[-1]["without_result"]) == left_out
    parts = {line["part"] for line in lines}
    assert {"machine", "waits", "several objectives", "end"} <= parts
    promised = {f"{family}-base, {length}" for family, length in gpu_bench.PROMISED}
    for name in promised:
        for side in ("maskwise", "transformers.Trainer, as it is"):
            assert {f"{name}: {side}", f"{name}: {side}, compiled"} <= parts
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == len(lines)
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    assert min(rates) > 0
    for line in lines:
        if "rates" in line:
            assert line["rounds"] == len(line["rates"]) == gpu_bench.ROUNDS
    traces = [line["trace"] for line in lines if "trace" in line]
    assert [each["file"] for each in traces] == [
        "trace-bert.json.gz",
        "trace-bert-bf16.json.gz",
        "trace-modernbert.json.gz",
        "trace-modernbert-bf16.json.gz",
    ]
    for each in traces:
        assert (tmp_path / each["file"]).stat().st_size > 1000
        assert sum(each["ms_by_class"].values()) == pytest.approx(each["ms_per_step"], rel=0.01)
    several = next(line for line in lines if line["part"] == "several objectives")
    assert set(several["ms_alone"]) == set(gpu_bench.OBJECTIVES)
    assert len(several["ms_of_each_step"]) == 6
    assert {each["size"] for each in lines[-1]["ratios"]} == promised
    little = {part.removeprefix(f"{gpu_bench.LITTLE}: ") for part in parts}
    assert {"maskwise", "maskwise, compiled", "maskwise, compiled, CUDA graphs"} <= little


def test_on_a_gpu_what_was_promised_is_measured_first(tmp_path: Path) -> None:
    bench = gpu_bench.Bench(smoke=True)
    bench.smoke = False
    names = [part.name for part in bench.parts(tmp_path)]
    assert len(names) == len(set(names))
    assert names[:2] == ["machine", "bert-base, 128: maskwise, compiled"]
    first = names[1:11]
    assert all(name.startswith(("bert-base, 128", "modernbert-base, 1024")) for name in first)
    # Nothing of the peer is compiled before what needs no compilation.
    assert not any("Trainer" in name and "compiled" in name for name in names[:12])
    assert any("Trainer, as it is, compiled" in name for name in names[12:14])


def test_a_side_without_memory_gets_half_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = gpu_bench.Bench(smoke=True)
    shape = bench.shape("bert", 128)
    plain = gpu_bench.Contest.run

    def full(contest: gpu_bench.Contest, *given: Any, **named: Any) -> Any:
        if contest.shape.batch_size > 2:
            raise torch.OutOfMemoryError
        return plain(contest, *given, **named)

    monkeypatch.setattr(gpu_bench.Contest, "run", full)
    line = bench.timed(shape, gpu_bench.OURS)
    assert shape.batch_size == 4 and line["batch"].startswith("2 × ")
    assert line["tokens_per_second"] > 0


def test_with_cuda_graphs_blocks_get_offsets_of_few_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The documents that are added have no tokens, so the loss stays the same."""
    modes: list[str | None] = []

    def compiled(function: Any, **named: Any) -> Any:
        if named.get("fullgraph"):
            modes.append(named.get("mode"))
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    bench = gpu_bench.Bench(smoke=True)
    contest = bench.contest(bench.little())
    lengths = []
    plain = gpu_bench.Laps.observe

    def observe(laps: Any, batch: Any, outcome: Any) -> None:
        lengths.append(len(batch.ends[0]))
        assert batch.ends[0][-1] == batch.input_ids.numel()
        plain(laps, batch, outcome)

    monkeypatch.setattr(gpu_bench.Laps, "observe", observe)
    losses = []
    for graphs in (False, True):
        side = gpu_bench.OURS._replace(compiled=True, graphs=graphs)
        losses.append(contest.run(side, bench, 1, traced=False).loss)
    half = len(lengths) // 2
    assert {length % BUCKET for length in lengths[half:]} == {0}
    assert {length % BUCKET for length in lengths[:half]} != {0}
    assert modes == [None, None, "reduce-overhead", "reduce-overhead"]
    assert losses[0] == losses[1]


def test_each_side_counts_the_tokens_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows have little padding; grouped rows have less than rows in any order."""
    bench = gpu_bench.Bench(smoke=True)
    contest = bench.contest(bench.shape("bert", 128)._replace(batch_size=16))
    monkeypatch.setattr(train_bench, "WARM", 0)
    shares = []
    for side in (gpu_bench.OURS, *gpu_bench.PEERS[:2]):
        laps = contest.run(side, bench, 1, traced=False)
        assert len(laps.tokens) == 1
        shares.append(laps.tokens[0] / laps.positions[0])
    ours, grouped, plain = shares
    assert 1 > ours > plain > 0.3 and grouped > plain


def test_the_peer_trains_on_packed_lines_where_it_has_a_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for flash attention, which only GPUs have."""
    AttentionInterface.register("flash_attention_2", varlen)
    monkeypatch.setattr(gpu_bench, "has_ragged_peer", lambda: True)
    # transformers would look for the library.
    monkeypatch.setattr(
        PreTrainedModel,
        "set_attn_implementation",
        lambda model, name: setattr(model.config, "_attn_implementation", name),
    )
    bench = gpu_bench.Bench(smoke=True)
    with warnings.catch_warnings():
        # That masks depend on the number of workers does not matter here.
        warnings.simplefilter("ignore")
        line = bench.timed(bench.shape("modernbert", 1024), gpu_bench.PEERS[2])
    # Only the special tokens are no text.
    assert 1 < line["positions_per_second"] / line["tokens_per_second"] < 1.4


def test_a_part_without_time_is_named(tmp_path: Path) -> None:
    *lines, last = gpu_bench.bench(tmp_path, seconds=-1, smoke=True)
    assert {line["left_out"] for line in lines} == {"no time"}
    assert set(last["without_result"]) == {line["part"] for line in lines}


def test_a_part_that_takes_too_long_is_interrupted_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> dict[str, Any]:
        """Takes exceptions for results, as some libraries do."""
        try:
            time.sleep(30)
        except Exception:
            return {"caught": True}
        return {}

    parts = [gpu_bench.Part("slow", slow, 0.2), gpu_bench.Part("quick", lambda: {"a": 1}, 9.0)]
    monkeypatch.setattr(gpu_bench.Bench, "parts", lambda self, out: iter(parts))
    slow_line, quick_line, last = gpu_bench.bench(tmp_path, seconds=20, smoke=True)
    assert slow_line["left_out"].startswith("interrupted") and slow_line["seconds"] < 5
    assert quick_line["a"] == 1
    assert list(last["without_result"]) == ["slow"]


def test_a_trace_is_summarised_by_class_of_kernel() -> None:
    def event(category: str, name: str, ts: float, dur: float, **more: Any) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": ts, "dur": dur, "tid": 1, **more}

    square, wide = [[8, 16], [16, 8]], [[8, 16], [16, 99]]
    events = [
        event("cpu_op", "aten::mm", 0, 5, args={"External id": 1, "Input Dims": square}),
        event("cpu_op", "aten::mm", 6, 5, args={"External id": 2, "Input Dims": wide}),
        event("kernel", "nvjet_hsh_128x256", 100, 40, args={"External id": 1}),
        event("kernel", "nvjet_hsh_128x256", 140, 20, args={"External id": 2}),
        event("kernel", "void flash_bwd_dq_kernel", 170, 30, args={}),
        # Half of it runs beside the kernel before it.
        event("kernel", "triton_per_fused_mm_native_layer_norm_1", 190, 20, args={}),
        event("kernel", "void multi_tensor_apply_kernel<FusedAdam>", 210, 30, args={}),
        event("gpu_memcpy", "Memcpy HtoD", 240, 10, args={}),
        event("kernel", "mystery", 290, 10, args={}),
        {"ph": "i", "cat": "kernel", "name": "not a span", "ts": 0},
    ]
    found = gpu_trace.summarise(events, steps=2, vocabulary=99)
    microseconds = {name: 2000 * ms for name, ms in found["ms_by_class"].items()}
    assert microseconds == pytest.approx(
        {
            "GEMM": 40,
            "head": 20,
            "attention": 30,
            "elementwise": 10,
            "optimiser": 30,
            "copies": 10,
            "idle": 50,
            "other": 10,
        }
    )
    assert found["ms_per_step"] == 0.1 and found["kernels_per_step"] == 3.5
    assert found["explained"] == 0.95
    assert gpu_trace.summarise([], steps=1, vocabulary=9)["left_out"] == "no kernels"


def test_the_tokens_of_denoising_are_those_of_all_rows_that_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were counted in the first rows, as many as fill the batches of an epoch."""
    monkeypatch.setattr(seq2seq, "DOCUMENTS", 20)
    contest = seq2seq.Contest("t5", "full text")
    for who, rows in contest.rows.items():
        last = contest.epoch(who) * seq2seq.BATCH_SIZE
        assert len(rows) > last, "some rows fill no batch"
        used = last if who == seq2seq.PEER else len(rows)
        written = int((contest.masked(who).labels != seq2seq.IGNORE).sum())
        assert contest.work(who)[1] == pytest.approx(written / used * seq2seq.BATCH_SIZE)


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
