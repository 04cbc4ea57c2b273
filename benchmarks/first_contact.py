"""Accuracy of two predictions of `maskwise check`: the time of a study, and the end of the plateau.

At first, the loss of a model from random weights stays near the loss of predicting tokens from
their frequencies (the unigram loss). This part of the training is the plateau.

    python benchmarks/first_contact.py minutes  RECIPE …        predicted and measured time
    python benchmarks/first_contact.py plateau         targets until a model leaves the plateau

Both commands print JSON. ``minutes`` runs the recipes; ``plateau`` takes about a quarter of an hour
on one core. A recipe may be followed by overrides: "quick-start study.seeds=2".
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from command import run, worked
from figures import Figures, surroundings

from maskwise.base.constants import PLATEAU_NATS
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_lines
from maskwise.recipe import read_recipe
from maskwise.studies import run_study
from maskwise.studies.costs import PLATEAU_VOCABULARY, plateau_targets
from maskwise.studies.forecast import check
from maskwise.studies.single import run_pretrain


def minutes(*recipes: str) -> Any:
    """Return the predicted and measured seconds of whole studies, with one stage on each core.

    ``work`` is the processor time of all stages. On a busy machine, only this figure can be
    compared.
    """
    table = {}
    for words in recipes:
        name, *overrides = words.split()
        times = check(name, overrides)["time"]
        predicted = sum(kind["seconds"] for kind in times["stages"].values())
        with tempfile.TemporaryDirectory() as folder:
            began, before = time.perf_counter(), worked()
            run_study(read_recipe(name, overrides), Path(folder) / "out")
            took, work = time.perf_counter() - began, worked() - before
        table[words] = {
            "predicted": times["seconds"],
            "took": round(took, 1),
            "predicted_work": round(predicted, 1),
            "work": round(work, 1),
        }
        sys.stderr.write(f"{words}: {table[words]}\n")
    return table


CASES = [
    # (Corpus, size of the vocabulary, masking ratio, steps). The prediction of ``check`` was fitted
    # to all cases but the last two.
    ("bundled:wikipedia", 512, 0.30, 500),
    ("bundled:wikipedia", 1024, 0.30, 600),
    ("bundled:wikipedia", 2048, 0.30, 800),
    ("../shared/data/wikinews_en", 1024, 0.30, 600),
    ("../shared/data/wikinews_en", 2048, 0.30, 800),
]
FITTED = 3
EVERY, ROWS = 20, 64
"""Number of steps between two evaluations of the held-out loss, and of rows in an evaluation."""


def plateau() -> Any:
    """Return the number of targets until the held-out loss is 0.3 nats below the unigram loss, and
    the prediction of ``check``.
    """
    lines = []
    for corpus, vocabulary, ratio, steps in CASES:
        targets = _leaves(corpus, vocabulary, ratio, steps)
        line = {
            "corpus": Path(corpus).name,
            "vocabulary": vocabulary,
            "targets": targets,
            "rule": round(plateau_targets(vocabulary)),
        }
        lines.append(line)
        sys.stderr.write(f"{line}\n")
    known = [line for line in lines[:FITTED] if line["targets"]]
    sizes = np.log([line["vocabulary"] / PLATEAU_VOCABULARY for line in known])
    power, level = np.polyfit(sizes, np.log([line["targets"] for line in known]), 1)
    for line in lines:
        fitted = float(np.exp(level) * (line["vocabulary"] / PLATEAU_VOCABULARY) ** power)
        line["fitted"] = round(fitted)
    fit = {"targets_at_1024": round(float(np.exp(level))), "power": round(float(power), 3)}
    return {**fit, "cases": lines}


def _leaves(corpus: str, vocabulary: int, ratio: float, steps: int) -> int | None:
    settings = [
        f"corpus.source={corpus}",
        "corpus.limit=1500",
        f"tokenizer.vocab_size={vocabulary}",
        f"masking.ratio={ratio}",
        f"training.steps={steps}",
        "training.log_every=5",
        "training.save_every=0",
        f"training.eval_every={EVERY}",
        f"evaluation.ratios=[{ratio}]",
        "evaluation.masks=[token]",
        f"evaluation.rows={ROWS}",
        "tasks=[]",
        "study.arms={}",
        "study.contrasts=[]",
        "study.gate=null",
        "study.baseline=null",
    ]
    with tempfile.TemporaryDirectory() as name:
        run_pretrain(read_recipe("quick-start", settings), Path(name))
        lines = list(read_lines(Path(name) / "metrics.jsonl"))
    # The loss between two evaluations is interpolated.
    seen = before = last = 0.0
    for line in lines:
        if line["kind"] == "train":
            seen += line["targets"]
        elif line["kind"] == "eval":
            gap = line["unigram"] - line["loss"]
            if gap >= PLATEAU_NATS:
                return round(before + (seen - before) * (PLATEAU_NATS - last) / (gap - last))
            before, last = seen, gap
    return None


def main(
    part: Literal["minutes", "plateau"],
    recipes: Annotated[list[str] | None, typer.Argument()] = None,
) -> Figures:
    """Measure the accuracy of one of the predictions."""
    if bool(recipes) != (part == "minutes"):
        raise MaskwiseError(
            "minutes needs recipes, and plateau has its own",
            got=f"{part} {' '.join(recipes or ())}".strip(),
            allowed="minutes RECIPE …, or plateau",
        )
    result = minutes(*recipes) if recipes else plateau()
    return {**surroundings(), part: result, "load": os.getloadavg()[0]}


if __name__ == "__main__":
    run(main, __doc__)
