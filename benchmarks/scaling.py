"""Tokens per second and memory against model size, length and processes, as a Markdown table.

    python benchmarks/scaling.py [--json FILE] [--quick]

Each cell trains BERT in processes of its own with one thread each, and on random tokens, because
what is read costs nothing here: 2 steps that do not count, then 5. Memory is the peak of a process
above what it had before there was a model, by /proc (Linux alone). Tokens per second are of all
processes together, by the clock of the fastest step; and per second of a processor, which a busy
machine moves less. The whole takes about three minutes of processor time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from maskwise.bench import surroundings
from maskwise.masking import MaskedBatch
from maskwise.masking.batch import IGNORE, AnnotatedBatch
from maskwise.models import build_model, config_of
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training import TrainingSettings, leave
from maskwise.training.data import Step
from maskwise.training.engine import Engine

VOCABULARY, WARM, STEPS, TOKENS = 8192, 2, 5, 2048
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512)}
"""Layers and width."""


class Cell(NamedTuple):
    """One training. ``way``: DDP, FSDP2 (``training.shard``), or "twice"
    (``training.activation_checkpointing``).
    """

    size: str
    length: int
    processes: int = 1
    way: str = ""


CELLS = (
    *(Cell(size, 128) for size in SIZES),
    Cell("mini", 512),
    Cell("mini", 2048),
    Cell("mini", 512, way="twice"),
    Cell("mini", 2048, way="twice"),
    *(Cell(size, 128, 2, way) for size in ("mini", "small") for way in ("DDP", "FSDP2")),
)


def batch_of(rows: int, length: int, seed: int) -> MaskedBatch:
    """Rows of random tokens, 15 % of them targets."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, VOCABULARY, size=(rows, length))
    labels = np.where(draw.random(ids.shape) < 0.15, ids, IGNORE)
    everything = np.ones(ids.size, bool)
    source = AnnotatedBatch(
        (rows, length),
        ids.ravel(),
        None,
        everything,
        everything,
        np.arange(rows) * length,
        np.arange(rows),
    )
    targets = int((labels != IGNORE).sum())
    tensors = torch.from_numpy(ids), torch.from_numpy(labels)
    return MaskedBatch(*tensors, None, source, torch.zeros(rows), targets=targets)


def train(cell: Cell) -> dict[str, float]:
    """What one process of a cell measures."""
    layers, width = SIZES[cell.size]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory("VmRSS")
    rows = TOKENS // cell.length
    settings = TrainingSettings(
        steps=100,
        batch_size=rows * cell.processes,
        precision="no",
        shard=cell.way == "FSDP2",
        activation_checkpointing=cell.way == "twice",
    )
    torch.manual_seed(0)
    model = build_model(
        config_of(
            {
                "model_type": "bert",
                "vocab_size": VOCABULARY,
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": width // 64,
                "intermediate_size": 4 * width,
                "max_position_embeddings": cell.length,
            }
        )
    )
    engine, wall, work = Engine(MaskedLanguageModelling(model), settings), [], []
    for number in range(WARM + STEPS):
        batch = batch_of(rows, cell.length, number)
        began, spent = time.perf_counter(), time.process_time()
        engine.update(Step(number, [batch], batch.targets, {}, batch.targets), lambda *_: None)
        wall.append(time.perf_counter() - began)
        work.append(time.process_time() - spent)
    peak = _memory("VmHWM") - before
    weights = sum(p.numel() for p in model.parameters())
    engine.wrapped = None
    leave()
    return {
        "seconds": min(wall[WARM:]),
        "processor": min(work[WARM:]),
        "mib": peak / 2**10,
        "weights": weights,
    }


def _memory(name: str) -> float:
    """KiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[name].split()[0])


def measured(cell: Cell) -> dict[str, Any]:
    """A cell: its processes are copies of this one, which has imported everything and computed
    nothing.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    pipes = []
    for rank in range(cell.processes):
        ours, theirs = context.Pipe(duplex=False)
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(cell.processes),
            "LOCAL_WORLD_SIZE": str(cell.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        context.Process(
            target=_child, args=(cell, theirs, variables if cell.processes > 1 else {})
        ).start()
        theirs.close()
        pipes.append(ours)
    found = [pipe.recv() for pipe in pipes]
    tokens = TOKENS * cell.processes
    return {
        **cell._asdict(),
        "weights": int(found[0]["weights"]),
        "tokens_per_second": round(tokens / max(each["seconds"] for each in found)),
        "tokens_per_processor_second": round(tokens / sum(each["processor"] for each in found)),
        "mib_of_a_process": round(max(each["mib"] for each in found)),
    }


def _child(cell: Cell, pipe: Any, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    pipe.send(train(cell))
    os._exit(0)


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield (
        "| model | weights | rows of | processes | tokens/s | tokens/s of a processor | MiB of "
        "a process |"
    )
    yield "|---|---|---|---|---|---|---|"
    for line in lines:
        way = {"twice": "1, activations twice", "": "1"}.get(
            line["way"], f"{line['processes']}, {line['way']}"
        )
        layers, width = SIZES[line["size"]]
        figures = (
            line["tokens_per_second"],
            line["tokens_per_processor_second"],
            line["mib_of_a_process"],
        )
        cells = [
            f"{line['size']} ({layers} × {width})",
            f"{line['weights'] / 1e6:.1f} M",
            str(line["length"]),
            way,
        ]
        yield f"| {' | '.join([*cells, *(f'{figure:,}' for figure in figures)])} |"


def main() -> None:
    """Measure every cell, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="the first cell alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [measured(cell) for cell in CELLS[: 1 if given.quick else None]]
    sys.stdout.write("\n".join(table(lines)) + "\n")
    if given.json:
        result = {
            "tokens_of_a_process": TOKENS,
            "load": os.getloadavg(),
            "cells": lines,
            "hardware": surroundings(["torch", "transformers", "accelerate"]),
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
