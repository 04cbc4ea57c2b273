"""Recorded scores come out again: a change of the code that moves what a model scores is seen.

Masks, losses and rows have golden values (``test_golden``), which a change of fine-tuning can leave
as they are while every score moves: since a task draws its whole head anew (b31762f0), for example,
ModernBERT scores up to 3 points more. So each kind of task is fine-tuned here from a bundled model,
whose weights are fixed, and short trainings are compared by their held-out loss; both with four
seeds, in float32, on one thread.

On the processor that ``recorded_arms.json`` names, the bits are equal. On another one, sums are
rounded in another way, and the mean of the four lies within half a point, or .02 nats.

``python tests/test_recorded_arms.py NAME …`` records anew (all arms without a name, as on another
machine). A change that moves an arm is declared in CHANGELOG.md, with its size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from maskwise.base.devices import cpu_name
from maskwise.tasks import FinetuneSettings
from maskwise.tasks.finetuning import evaluate_tasks
from maskwise.tasks.loading import KINDS, load_task
from tiny import maskwise, read_lines, write_lines

RECORD = Path(__file__).with_name("recorded_arms.json")
SEEDS = 4
HALF_A_POINT = 0.005
NATS = 0.02
ENCODER, SEQ2SEQ = "bundled:encoder", "bundled:seq2seq"

# Tasks
# ----------------------------------------------------------------------------
# All but one are made of the same questions of bank customers, with eight intents.

Rows = list[dict[str, Any]]


class Intent(NamedTuple):
    text: str
    words: str
    """The name of the intent, such as "activate my card"."""


@cache
def intents() -> dict[str, list[Intent]]:
    """The rows of eight intents: 96 for training, 40 for dev and 160 for test."""
    task = load_task("banking77(train_rows=240)")
    few = task.labels[:8]
    # Rows of all 20 intents take turns.
    first = {"train": 240, "dev": 100, "test": 400}
    return {
        split: [
            Intent(row.text, row.label.replace("_", " "))
            for row in task.splits[split][:count]
            if row.label in few
        ]
        for split, count in first.items()
    }


def others(rows: Sequence[Intent], number: int, count: int) -> list[Intent]:
    """Rows of other intents, which are not those of one another either."""
    found = {rows[number].words: rows[number]}
    place = number
    while len(found) <= count:
        place = (place + 37) % len(rows)
        found.setdefault(rows[place].words, rows[place])
    return [*found.values()][1:]


def labelled(rows: Sequence[Intent]) -> Rows:
    return [{"text": row.text, "label": row.words} for row in rows]


def several_labels(rows: Sequence[Intent]) -> Rows:
    """Each label applies to a part of the texts, and none to some."""
    made = []
    for row in rows:
        holds = {
            "asks": row.text.endswith("?"),
            "I": "I" in row.text.split(),
            "card": "card" in row.text,
        }
        made.append({"text": row.text, "labels": [label for label, true in holds.items() if true]})
    return made


def lengths(rows: Sequence[Intent]) -> Rows:
    return [{"text": row.text, "label": len(row.text) / 100} for row in rows]


def beginnings(rows: Sequence[Intent]) -> Rows:
    """A text and its first words; the score is the share of these words."""
    made = []
    for number, row in enumerate(rows):
        words = row.text.split()
        kept = max(1, len(words) * (number % 5) // 4)
        begin = " ".join(words[:kept])
        made.append({"sentence1": row.text, "sentence2": begin, "score": kept / len(words)})
    return made


def choices(rows: Sequence[Intent]) -> Rows:
    made = []
    for number, row in enumerate(rows):
        named = sorted([row.words, *(other.words for other in others(rows, number, 1))])
        made.append({"question": row.text, "choices": named, "answer": row.words})
    return made


def contexts(rows: Sequence[Intent]) -> Rows:
    made = []
    for number, row in enumerate(rows):
        texts = sorted([row.text, *(other.text for other in others(rows, number, 1))])
        made.append({"question": row.words, "context": " ".join(texts), "answer": row.text})
    return made


def named(rows: Sequence[Intent]) -> Rows:
    return [{"question": row.text, "answer": row.words} for row in rows]


def keywords(rows: Sequence[Intent]) -> Rows:
    return [{"question": row.text, "answer": row.words.split()[0].lower()} for row in rows]


def halves(rows: Sequence[Intent]) -> Rows:
    """The first and the last words of a text, with half of the words in both."""
    made = []
    for row in rows:
        words = row.text.split()
        cut = len(words) // 4
        made.append({"query": " ".join(words[: -cut or None]), "passage": " ".join(words[cut:])})
    return made


class Labelled(NamedTuple):
    model: str
    rows: Callable[[Sequence[Intent]], Rows] | str
    """Makes the rows of a split; or a bundled task."""
    metric: str | None = None


TASKS = {
    "token-classification": Labelled(ENCODER, "ud-pos(train_rows=60, test_rows=100)"),
    "multiple-choice": Labelled(ENCODER, choices),
    "question-answering": Labelled(ENCODER, contexts),
    "generation": Labelled(SEQ2SEQ, named, metric="nats"),
    "similarity": Labelled(ENCODER, beginnings),
    "regression": Labelled(ENCODER, lengths),
    "multi-label": Labelled(ENCODER, several_labels),
    "sequence-classification": Labelled(ENCODER, labelled),
    "cloze-qa": Labelled(ENCODER, keywords, metric="f1"),
    "zero-shot-similarity": Labelled(ENCODER, beginnings),
    "sentence-embedding": Labelled(ENCODER, labelled),
    "retrieval": Labelled(ENCODER, halves),
}


def scores(folder: Path, kind: str) -> list[float]:
    """The score of each seed on test; one if the encoder is not trained."""
    model, make, metric = TASKS[kind]
    source = make if isinstance(make, str) else written(folder, make)
    task = load_task(source, kind=kind, metric=metric)
    settings = FinetuneSettings(precision="no", steps=20, batch_size=8)
    (record,) = evaluate_tasks(model, [task], settings=settings, seeds=SEEDS)
    return record["fine_tuning"]


def written(folder: Path, make: Callable[[Sequence[Intent]], Rows]) -> Path:
    lines = [{"split": split, **line} for split, rows in intents().items() for line in make(rows)]
    write_lines(folder / "rows.jsonl", lines)
    return folder / "rows.jsonl"


# Trainings
# ----------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "corpus": {"source": "bundled:wikipedia", "limit": 120, "length": 64, "held_out": 0.2},
    "masking": {"policy": "whole-word", "ratio": 0.3},
    "training": {
        "steps": 25,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "precision": "no",
        "eval_every": 25,
        "log_every": 25,
        "save_every": 0,
    },
    "evaluation": {"ratios": [0.15], "masks": ["token"], "rows": 64},
}
NEW: dict[str, Any] = {
    "tokenizer": {"vocab_size": 1024},
    "model": {
        "architecture": "modernbert",
        "settings": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "layer_types": ["full_attention", "full_attention"],
        },
    },
    "training": RECIPE["training"] | {"steps": 50, "eval_every": 50, "learning_rate": 4e-3},
}
TRAININGS: dict[str, dict[str, Any]] = {
    "a new encoder": NEW,
    "an encoder": {"model": {"pretrained": ENCODER}},
    "five objectives": {
        **NEW,
        "corpus": {**RECIPE["corpus"], "layers": ["salient"]},
        "objective": {"mlm": {}, "emlm": {}, "atd": {}, "dtd": {}, "cse": {}},
        "sampler": "uniform",
    },
    "an encoder-decoder": {
        "model": {"pretrained": SEQ2SEQ},
        "objective": "denoise",
        "masking": {"policy": "span", "ratio": 0.3, "corruption": "infill"},
    },
}


def held_out_losses(folder: Path, name: str) -> list[float]:
    """The loss on held-out text after each of the trainings, in nats a target."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, **TRAININGS[name]}))
    losses = []
    for seed in range(SEEDS):
        out = folder / str(seed)
        assert maskwise("pretrain", recipe, f"training.seed={seed}", "--out", out) == 0
        losses.append(read_lines(out / "metrics.jsonl")[-1]["loss"])
    return losses


# Record and comparison
# ----------------------------------------------------------------------------


class Arm(NamedTuple):
    measure: Callable[[Path, str], list[float]]
    tolerance: float
    """How far from the record the mean of the seeds may be on another processor."""


ARMS = {
    kind: Arm(scores, NATS if task.metric == "nats" else HALF_A_POINT)
    for kind, task in TASKS.items()
}
ARMS |= dict.fromkeys(TRAININGS, Arm(held_out_losses, NATS))


def machine() -> dict[str, str]:
    """What bits depend on."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"processor": f"{cpu_name()}, {instructions}", "torch": torch.__version__}


def test_every_kind_is_recorded() -> None:
    known = json.loads(RECORD.read_text())["arms"]
    assert set(TASKS) == set(KINDS.without_plugins())
    assert set(known) == set(ARMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARMS)
def test_recorded_arms(name: str, tmp_path: Path) -> None:
    record = json.loads(RECORD.read_text())
    measured, known = ARMS[name].measure(tmp_path, name), record["arms"][name]
    assert len(measured) == len(known)
    moved = fmean(measured) - fmean(known)
    assert abs(moved) <= ARMS[name].tolerance, f"moved by {moved:+.4f} from {fmean(known):.4f}"
    if machine() == record["machine"]:
        assert measured == known


def main(*names: str) -> None:
    """Record arms anew. All bits of a record are of one machine, so another one records all."""
    import conftest  # one thread, offline
    from maskwise.jobs import pools

    pools.ENGINES["local"] = conftest.SamePool
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if names and record.get("machine") != machine():
        sys.exit(f"{RECORD.name} is of {record.get('machine')}: record all arms, without a name")
    arms = record["arms"] if names else {}
    for name in names or ARMS:
        with TemporaryDirectory() as folder:
            arms[name] = ARMS[name].measure(Path(folder), name)
    lines = [f"  {json.dumps(name)}: {json.dumps(arms[name])}" for name in ARMS]
    content = ",\n".join(lines)
    RECORD.write_text(
        f'{{\n "machine": {json.dumps(machine())},\n "arms": {{\n{content}\n }}\n}}\n'
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
