"""Forecasts of stages, compared with the processor seconds that the stages take.

    nice -n 5 python benchmarks/forecasts.py [--only CASE] > forecasts.json

Every stage of the recipes in ``CASES`` is rehearsed, as ``maskwise check`` does, and then runs as a
whole: one after the other, in one process and in one thread. The measured rates of
earlier calls are not used. Both seconds are processor time, which contains no work of other
processes, although these slow memory and shared cores.

The files of tasks and of facts are made from the first articles of the bundled Wikipedia. Of the
repository, the distribution maskwise-data is needed (models and further tasks).
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
import typer
from command import run
from figures import Figures, probe, surroundings

from maskwise.base.errors import MaskwiseError, require_known
from maskwise.base.printing import quietly
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies.costs import Forecast
from maskwise.studies.plan import make_plan
from maskwise.studies.rehearsal import Rehearsal
from maskwise.studies.stages import KINDS, named
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text.documents import read_documents

NEAR, FAR = 1.5, 3.0
"""A good forecast is within the first factor of the seconds; none should be beyond the second."""

QUICK = ["training.steps=100", "training.eval_every=50", "corpus.limit=600"]
WORLD = ["training.steps=60", "study.gate=null", "study.search=null"]

CASES: dict[str, tuple[str, list[str]]] = {
    "words and tags": (
        "decay",
        [
            "training.steps=100",
            "evaluation.measures=[\"pairs('bundled:pairs')\"]",
            "study.arms={one: {}}",
        ],
    ),
    "facts, bounds and topics": (
        "decay",
        [
            *QUICK,
            "objective=diffusion",
            "evaluation.ratios=[0.15]",
            "evaluation.masks=[token, diffusion]",
            "evaluation.measures=[\"cloze('facts.jsonl')\", bound(4), pseudo-perplexity(8), "
            "word-loss(20)]",
            "tasks=['trivia(train_rows=300)', 'similar.jsonl(kind=\"similarity\")']",
            "study.arms={one: {}}",
        ],
    ),
    "five objectives in two phases": (
        "mometas",
        [
            "training.steps=60",
            "training.eval_every=0",
            "phases.1.training.steps=40",
            "corpus.limit=600",
            "tasks=['banking77(train_rows=200)', 'clinc150(kind=\"sentence-embedding\")', "
            "'wikigold(train_rows=200)']",
            "study.arms={uniform: {}}",
        ],
    ),
    "a sampler with probes": (
        "mometas",
        [
            "training.steps=60",
            "training.eval_every=30",
            "sampler=mometas(every=10)",
            "phases=null",
            "corpus.limit=600",
            "corpus.layers=[]",
            "objective={mlm: , rtd: }",
            "tasks=['wnut17(train_rows=200, test_rows=200)']",
            "study.arms={one: {}}",
        ],
    ),
    "a policy that is online": (
        "ptw",
        [
            *QUICK,
            "training.patience=1",
            "training.eval_every=50",
            "corpus.length=128",
            "tasks=[]",
            "finetune.seeds=3",
            "study.arms={ptw: {masking.policy: pos-weighted}}",
        ],
    ),
    "a policy from labels": (
        "learn-supervised",
        [*WORLD, "study.arms={one: {masking.policy: \"learned(take='top-1')\"}}"],
    ),
    "a policy from meta-gradients": (
        "learn-meta",
        [
            *WORLD,
            "learning.meta.steps=20",
            "learning.meta.tries=2",
            "study.arms={one: {masking.policy: learned}}",
        ],
    ),
    "an encoder-decoder and written answers": (
        "intermediate",
        [
            "training.steps=25",
            "corpus.limit=300",
            "tasks=[\"trivia(kind='generation', beams=1, max_target=8, train_rows=200, "
            'test_rows=200)"]',
            "study.arms={own: {}}",
        ],
    ),
    "a small model further trained": (
        "continual",
        [
            "training.steps=40",
            "corpus.limit=600",
            "tasks=['ud-pos(train_rows=300)', 'questions.jsonl(kind=\"question-answering\")']",
            "finetune.eval_every=50",
            "finetune.max_length=96",
            "study.arms={words: {masking.policy: whole-word}}",
            "study.contrasts=[[words, no-pretraining]]",
            "study.baseline=words",
        ],
    ),
    "next tokens, then masked tokens": (
        "clm-detour",
        [
            "phases.0.training.steps=30",
            "corpus.limit=600",
            "tasks=['choices.jsonl(kind=\"multiple-choice\")']",
            "study.arms={detour: {}}",
            "study.baseline=detour",
            "study.contrasts=[[detour, no-pretraining]]",
        ],
    ),
    "letters of proteins": (
        "protein-family",
        [
            "training.steps=100",
            "training.eval_every=50",
            "study.arms={rtd: {objective: {rtd: {}, mlm: {}}, sampler: uniform}}",
        ],
    ),
    "contrast of sentences": (
        "decay",
        [
            *QUICK,
            "objective={tsdae: {}, cse: {}}",
            "sampler=uniform",
            "corpus.layout=document",
            "training.group_by_length=true",
            "finetune.search_rate=true",
            "tasks=['banking77(train_rows=400)']",
            "finetune.seeds=2",
            "study.arms={one: {}}",
        ],
    ),
}
"""Recipes and their settings, keyed by what is special about them."""

ALONE = ["study.seeds=1", "study.gate=null", "study.contrasts=[]", "study.baseline=null"]
"""Settings of all cases. The settings of a case come after them."""


def main(only: Annotated[str, typer.Option(help="The name of a case.")] = "") -> Figures:
    if only:
        require_known("case", only, CASES)
    torch.set_num_threads(1)
    probed = [probe()]
    lines = []
    failed = {}
    before = Path.cwd()
    for case, (recipe, overrides) in CASES.items():
        if only and only != case:
            continue
        with tempfile.TemporaryDirectory(prefix="maskwise-") as name:
            os.environ["XDG_CACHE_HOME"] = name
            os.chdir(name)
            write_files()
            try:
                for line in compared(read_recipe(recipe, [*ALONE, *overrides]), Path(name)):
                    line = {"case": case, **line}
                    sys.stderr.write(f"{json.dumps(line)} {factor_of(line):.2f}\n")
                    lines.append(line)
            except MaskwiseError as error:
                failed[case] = str(error)
                sys.stderr.write(f"{case}: {error}\n")
            finally:
                os.chdir(before)
        probed.append(probe())
    return {
        **surroundings(),
        "load": os.getloadavg()[0],
        "probe_milliseconds": probed,
        **summary(lines),
        # The stages of these cases are missing, from the first one that failed.
        "failed": failed,
        "stages": lines,
    }


def compared(recipe: Recipe, folder: Path) -> Iterator[Figures]:
    """Forecast and run the stages of a recipe; yield both seconds.

    A stage is left out if the rates of an earlier one hold for it, and no later one needs it.
    """
    stages = named(make_plan(recipe).stages())
    store = StageStore(folder / "stages")
    forecast = Forecast(stages, store)
    rehearsal = Rehearsal(folder / "rehearsal")
    rehearsal.whole |= stages
    for stage in stages.values():
        known = forecast.seconds(stage.name) is not None
        if known and KINDS[stage.kind].output is None:
            continue
        began = time.process_time()
        if not known:
            with suppress(MaskwiseError):
                forecast.keep(stage.name, rehearsal.rates(stage, math.inf))
        spent = time.process_time() - began
        predicted = forecast.seconds(stage.name)
        began = time.process_time()
        with quietly():
            run_stage(stage, store)
        yield {
            "kind": stage.kind,
            "work": str(stage.what.get("task", "")),
            "forecast": None if predicted is None else round(predicted, 2),
            "seconds": round(time.process_time() - began, 2),
            "timing": round(spent, 2),
        }


def factor_of(line: Figures) -> float:
    """Return how many times the longer of both times is as long as the other."""
    if line["forecast"] is None:
        return math.inf
    times = sorted((max(0.01, line["forecast"]), max(0.01, line["seconds"])))
    return times[1] / times[0]


def summary(lines: list[Figures]) -> Figures:
    """Sum up how many forecasts are near, and the worst of them. A missing one counts as far."""
    factors = [factor_of(line) for line in lines]
    known = [factor for factor in factors if factor != math.inf]
    worst = factors.index(max(known)) if known else None
    return {
        "count": len(lines),
        "near": sum(factor <= NEAR for factor in factors),
        "far": sum(factor > FAR for factor in factors),
        "without_forecast": len(factors) - len(known),
        "worst": None if worst is None else {**lines[worst], "factor": round(factors[worst], 2)},
    }


def write_files() -> None:
    """Write files of tasks and facts into the current folder."""
    articles = [document.text for document in read_documents("bundled:wikipedia", limit=400)]
    texts = [text[:400] for text in articles if len(text) > 400]
    facts = []
    similar = []
    questions = []
    choices = []
    for number, text in enumerate(texts):
        words = text.split()
        split = ("train", "train", "train", "dev", "test")[number % 5]
        answer = words[7].strip(".,;:()\"'")
        before, found, after = text[:110].partition(f" {answer} ")
        if found:
            masked = f"{before} [MASK] {after}".strip()
            facts.append({"obj_label": answer, "masked_sentences": [masked], "sub_label": words[0]})
        similar.append(
            {"split": split, "text": text[:120], "text_pair": text[60:180], "score": number % 6}
        )
        question = f"Which word follows {words[6]}?"
        questions.append(
            {
                "split": split,
                "context": text,
                "question": question,
                "answers": {"text": [answer], "answer_start": [text.index(answer)]},
            }
        )
        others = [words[place % len(words)] for place in (3, 11, 17)]
        choices.append(
            {"split": split, "question": question, "choices": [answer, *others], "label": 0}
        )
    tables = {"facts": facts, "similar": similar, "questions": questions, "choices": choices}
    for name, rows in tables.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        Path(f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    run(main, __doc__)
