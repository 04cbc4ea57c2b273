"""The benches run, check what they time, and show it; their figures are not a test's business."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from maskwise import bench
from maskwise.bench import train as bench_train_module
from maskwise.errors import MaskwiseError
from maskwise.masking import CORRUPTIONS, POLICIES


@pytest.mark.slow
def test_bench_mask_times_every_member_beside_the_peer() -> None:
    result = json.loads(json.dumps(bench.run("mask", batches=2, vocab_size=1000)))
    names = {r["name"] for r in result["results"]}
    assert {f"maskwise, {name}" for name in POLICIES} | {"transformers", "transformers, whole words"} <= names
    assert {f"maskwise, shown as {name}" for name in CORRUPTIONS} <= names
    simple = {(r["layout"], r["length"]) for r in result["results"] if r["name"] == "maskwise, whole-word"}
    layouts = {(layout, length) for layout in ("documents", "packed", "sentences") for length in (128, 512)}
    assert simple == layouts | {("documents", 4096)}
    assert all(r["milliseconds"] > 0 and r["times_random"] > 0 for r in result["results"])
    console = Console(width=80, record=True)
    console.print(bench.render(result))
    shown = console.export_text()
    assert "…" not in shown, "names are folded, not cut"
    assert "8 × 4096" in shown and result["hardware"]["processor"] in shown


def test_unknown_bench() -> None:
    with pytest.raises(MaskwiseError, match=r"unknown bench 'masks'; allowed: .*mask"):
        bench.run("masks")


def test_bench_train_times_both_on_both_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In miniature: every line is there, all start from the same weights, and the shown table has them all."""
    monkeypatch.setattr(bench_train_module, "SIZES", {"tiny": (1, 64, 2)})
    result = bench.run(
        "train", sizes=("tiny",), rounds=1, batch_size=8, length=32, vocabulary=512, documents=120
    )
    names = {row["name"] for row in result["contestants"]}
    assert {"maskwise", "transformers.Trainer fp32"} <= names and result["matmul_flops"] > 1e8
    assert len(result["contestants"]) == 2 * len(names)
    losses = [row["loss"] for row in result["contestants"]]
    assert max(losses) - min(losses) < 0.5 and all(math.isfinite(loss) for loss in losses)
    for row in result["contestants"]:
        assert ("share_of_matmul" in row) == (row["name"] == "maskwise")  # two steps are too few for a figure
    assert bench.render(result).row_count == len(result["contestants"])
