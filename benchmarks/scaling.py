"""Tokens per second and memory for different model sizes, row lengths and numbers of processes.

    python benchmarks/scaling.py [--json FILE] [--quick]

For each combination (a cell), BERT trains on random tokens for 2 untimed steps and then 5 timed
steps, in new processes with one thread each. The tokens are random because reading text is not part
of this measurement. Memory is the peak of a process minus its memory before the model was built,
from /proc (only on Linux). Tokens per second are the tokens of all processes divided by the wall
time of the fastest step. A busy machine affects the tokens per second of processor time less. All
cells take about three minutes of processor time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from command import memory, run
from figures import Figures, surroundings

from maskwise.masking import MaskedBatch
from maskwise.masking.batch import IGNORE
from maskwise.masking.line import Line
from maskwise.models.loading import build_model, config_of
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training import TrainingSettings, leave
from maskwise.training.data import Step
from maskwise.training.engine import Engine

VOCABULARY, WARM, STEPS, TOKENS = 8192, 2, 5, 2048
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512)}
"""Name of a model size → number of layers, and width."""


class Cell(NamedTuple):
    """A training run to time.

    ``way`` is how it trains: "DDP", "FSDP2" (``training.shard``) or "twice", which computes the
    activations twice (``training.activation_checkpointing``).
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
    """Return rows of random tokens, of which 15 % are targets."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, VOCABULARY, size=(rows, length))
    labels = np.where(draw.random(ids.shape) < 0.15, ids, IGNORE)
    everything = np.ones(ids.size, bool)
    starts = np.arange(rows) * length
    source = Line(
        (rows, length), ids.ravel(), None, everything, everything, starts, np.arange(rows)
    )
    return MaskedBatch.unmasked(source, torch.from_numpy(labels), int((labels != IGNORE).sum()))


def train(cell: Cell, variables: dict[str, str]) -> Figures:
    """Train in one process of a cell, and return its figures.

    Args:
        cell: the cell.
        variables: environment variables for distributed training; empty for a single process.
    """
    os.environ.update(variables)
    layers, width = SIZES[cell.size]
    before = memory("VmRSS")
    rows = TOKENS // cell.length
    settings = TrainingSettings(
        steps=100,
        batch_size=rows * cell.processes,
        precision="no",
        shard=cell.way == "FSDP2",
        activation_checkpointing=cell.way == "twice",
    )
    torch.manual_seed(0)
    config = {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "max_position_embeddings": cell.length,
    }
    model = build_model(config_of(config))
    engine = Engine(MaskedLanguageModelling(model), settings)
    wall = []
    work = []
    for number in range(WARM + STEPS):
        batch = batch_of(rows, cell.length, number)
        began, spent = time.perf_counter(), time.process_time()
        count = batch.targets
        sums = engine.summed({"targets": count, "counted": count})
        engine.update(Step(number, [batch], count, {}, count, sums), lambda *_: None)
        wall.append(time.perf_counter() - began)
        work.append(time.process_time() - spent)
    peak = memory("VmHWM") - before
    engine.wrapped = None
    leave()
    return {
        "seconds": min(wall[WARM:]),
        "processor": min(work[WARM:]),
        "mib": peak,
        "weights": sum(p.numel() for p in model.parameters()),
    }


def measured(cell: Cell) -> Figures:
    """Return the figures of a cell.

    The processes of the cell are forks of this process, which has imported all libraries but has
    computed nothing.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(cell.processes):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(cell.processes),
            "LOCAL_WORLD_SIZE": str(cell.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        ranks.append((cell, variables if cell.processes > 1 else {}))
    with multiprocessing.get_context("fork").Pool(cell.processes) as pool:
        found = pool.starmap(train, ranks, chunksize=1)
    tokens = TOKENS * cell.processes
    return {
        **cell._asdict(),
        "weights": found[0]["weights"],
        "tokens_per_second": round(tokens / max(each["seconds"] for each in found)),
        "tokens_per_processor_second": round(tokens / sum(each["processor"] for each in found)),
        "mib_of_a_process": round(max(each["mib"] for each in found)),
    }


def main(
    json_file: Annotated[Path | None, typer.Option("--json")] = None, quick: bool = False
) -> None:
    """Measure all cells, or with ``quick`` only the first cell, and print the figures."""
    torch.set_num_threads(1)
    lines = []
    for cell in CELLS[: 1 if quick else None]:
        lines.append(measured(cell))
        sys.stdout.write(f"{lines[-1]}\n")
    if json_file:
        result = {
            "tokens_of_a_process": TOKENS,
            "load": os.getloadavg(),
            "cells": lines,
            "hardware": surroundings(),
        }
        json_file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main, __doc__)
