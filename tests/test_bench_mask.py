"""The bench of masking runs, checks what it times, and shows it; its figures are not a test's business."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from maskwise import bench
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
