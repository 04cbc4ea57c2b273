"""The benches run, check what they time, and show it; their figures are not a test's business."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gpu as gpu_bench
import pytest
import seq2seq_parts
import train as train_bench
from rich.console import Console

from maskwise.bench import bench_mask, render_mask
from maskwise.masking import CORRUPTIONS, POLICIES


@pytest.mark.slow
def test_bench_mask_times_every_member_beside_the_peer() -> None:
    result = json.loads(json.dumps(bench_mask(batches=2, repetitions=2, vocab_size=1000)))
    names = {r["name"] for r in result["results"]}
    assert {f"maskwise, {name}" for name in POLICIES} | {
        "transformers",
        "transformers, whole words",
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
    console = Console(width=80, record=True)
    console.print(render_mask(result))
    shown = console.export_text()
    assert "…" not in shown, "names are folded, not cut"
    assert "load average" in shown and "fixed piece of work" in shown
    assert "8 × 4096" in shown and result["hardware"]["processor"] in shown


def test_bench_train_times_both_on_both_texts() -> None:
    """In miniature: every line is there, all start from the same weights, and the shown table has
    them all.
    """
    small = train_bench._bert("tiny", 1, 64, 2)._replace(batch_size=8, length=32)
    result = train_bench.bench_train(shapes=[small], rounds=2, vocabulary=512, documents=120)
    names = {row["name"] for row in result["contestants"]}
    assert {"maskwise", "transformers.Trainer fp32"} <= names and result["matmul_flops"] > 1e8
    assert len(result["contestants"]) == 2 * len(names)
    losses = [row["loss"] for row in result["contestants"]]
    assert max(losses) - min(losses) < 0.5 and all(math.isfinite(loss) for loss in losses)
    for row in result["contestants"]:
        assert ("mfu" in row) == (row["name"] == "maskwise")  # two steps are too few for a figure
        assert row["ms_per_step"] > 0 and row["memory_gib"] > 0
        assert row["rounds"] == 2 and row["spread"] > 0
        least, most = row["ours_over_it_range"]
        assert least <= row["ours_over_it"] <= most
        if row["name"] == "maskwise":
            assert row["mfu"] > 0 and row["masking_share"] > 0 and row["sampler_share"] > 0
    assert not result["left_out"] and len(result["noise"]["probe_milliseconds"]) == 3


def test_the_script_for_a_gpu_runs_every_part_here_in_miniature(tmp_path: Path) -> None:
    lines = gpu_bench.bench(tmp_path, seconds=300, smoke=True)
    assert [line for line in lines if "error" in line or "left_out" in line] == []
    parts = {line["part"] for line in lines}
    assert {"machine", "waits", "several objectives", "trace"} <= parts
    assert {f"{family}-base, 128: maskwise compiled" for family in gpu_bench.FAMILIES} <= parts
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == len(lines)
    assert (tmp_path / "trace.json.gz").stat().st_size > 1000
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    assert min(rates) > 0


@pytest.mark.parametrize("who", [seq2seq_parts.PEER, "maskwise, packed rows"])
def test_the_parts_of_a_step_add_up(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seq2seq.DOCUMENTS", 40)
    monkeypatch.setattr(seq2seq_parts, "EPOCHS", 2)
    figures = seq2seq_parts.parts_of("bart", "spans", who)
    parts = {part: figures[part] for part in seq2seq_parts.PARTS}
    assert sum(parts.values()) == pytest.approx(figures["sum"], abs=0.1)
    # Both halves are seen in both directions, and the loss is more than the optimiser.
    assert all(parts[part] > 0.5 for part in parts if "encoder" in part or "decoder" in part)
    assert parts["head and loss"] > parts["optimiser"] > 0
