"""Golden values: a refactoring may change none of them; a change that is meant renews them and says so.

``python tests/test_golden.py masks`` (or ``losses``, ``study``, all three without a name) writes ``golden.json`` anew;
the commit that does it says which values moved, and why. Masks are whole numbers and must be equal to the bit. Losses
and records are compared to five digits, since another processor may round another way.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from masking_tools import (
    AWKWARD,
    CORRUPTION_SPECS,
    POLICY_SPECS,
    masker,
    packed,
    padded,
    per_row,
    random_rows,
)
from maskwise.masking.select import BUDGETS
from tiny import maskwise, read_lines, write_inputs

GOLDEN = Path(__file__).with_name("golden.json")
LAYOUTS = ("document", "packed")
ROWS = list(AWKWARD.values()) + random_rows(6, seed=3)
PACKED_ROWS = [row for name, row in AWKWARD.items() if name != "nothing at all"] + random_rows(12, seed=4)
STUDY_SETTINGS = (
    "study.seeds=1",
    "finetune.seeds=1",
    "training.steps=20",
    "training.eval_every=0",
    "corpus.layout=document",
)


def mask_hash(policy: str, corruption: str, layout: str) -> str:
    """The masks of all budgets as one hash, over inputs and labels of the tokens that are not padding."""
    digest = hashlib.sha256()
    for budget in BUDGETS:
        made = masker(policy, corruption, budget=budget, ratio=0.3, seed=11)
        if layout == "document":
            digest.update(repr(per_row(made(padded(ROWS), epoch=2), ROWS)).encode())
            digest.update(repr(per_row(made(padded(ROWS), step=5, total_steps=9), ROWS)).encode())
        else:
            rows = packed(PACKED_ROWS, width=48)
            shown = made(rows, epoch=3)
            inside = rows["attention_mask"].bool()
            digest.update(repr([shown.input_ids[inside].tolist(), shown.labels[inside].tolist()]).encode())
    return digest.hexdigest()[:12]


def all_masks() -> dict[str, str]:
    """By "policy corruption layout"; packed rows for corruptions that keep lengths, whose rows keep their layout."""
    return {
        f"{policy} {corruption} {layout}": mask_hash(policy, corruption, layout)
        for policy in POLICY_SPECS
        for corruption in CORRUPTION_SPECS
        for layout in LAYOUTS
        if layout == "document" or masker("token", corruption).corruption.keeps_length
    }


def losses(folder: Path, layout: str) -> list[float]:
    """The losses of twelve steps, one line of metrics each."""
    recipe = write_inputs(folder)
    settings = ("training.steps=12", "training.log_every=1", "training.save_every=0", "training.eval_every=0")
    words = ("masking.policy=whole-word", "masking.budget=expected", "masking.ratio=linear(0.5, 0.2)")
    out = folder / layout
    assert maskwise("pretrain", recipe, *settings, *words, f"corpus.layout={layout}", "--out", out) == 0
    metrics = next(path for path in out.rglob("metrics.jsonl"))
    return [line["loss"] for line in read_lines(metrics) if line["kind"] == "train"]


def records(folder: Path) -> list[dict[str, Any]]:
    """What a study of one seed measured."""
    recipe = write_inputs(folder)
    assert maskwise("study", recipe, *STUDY_SETTINGS, "--out", folder / "out", "--jobs", 1) == 0
    return read_lines(folder / "out" / "records.jsonl")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("policy", POLICY_SPECS)
def test_masks(policy: str, golden: dict[str, Any]) -> None:
    mine = {key: value for key, value in golden["masks"].items() if key.split()[0] == policy}
    assert mine, f"no golden masks of {policy}: run python tests/test_golden.py masks"
    assert {key: mask_hash(*key.split()) for key in mine} == mine


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses(layout: str, tmp_path: Path, golden: dict[str, Any]) -> None:
    assert losses(tmp_path, layout) == pytest.approx(golden["losses"][layout], rel=1e-5)


def test_records_of_a_study(tmp_path: Path, golden: dict[str, Any]) -> None:
    measured = records(tmp_path)
    assert len(measured) == len(golden["study"])
    for record, known in zip(measured, golden["study"], strict=True):
        known["corpus"] = record.get("corpus", "")  # a path in a temporary folder
        for name, value in known.items():
            if name != "corpus":
                numbers = isinstance(value, float) or (isinstance(value, list) and value)
                assert record[name] == (pytest.approx(value, rel=1e-4) if numbers else value), (name, record)


def main(*wanted: str) -> None:
    """Write golden values anew, all or those that are named."""
    values: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    with TemporaryDirectory() as folder:
        makers = {
            "masks": all_masks,
            "losses": lambda: {layout: losses(Path(folder) / "losses", layout) for layout in LAYOUTS},
            "study": lambda: records(Path(folder) / "study"),
        }
        for name in wanted or makers:
            values[name] = makers[name]()
    GOLDEN.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
