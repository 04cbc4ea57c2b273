"""How long are the texts that models of masked diffusion write, and how long are held-out texts?

    python benchmarks/written_lengths.py OUT [--texts 100] > lengths.json

OUT is the folder of a study of masked diffusion. Each model that learned where texts end writes
texts without a prompt, as long as its rows allow, at temperature 1. For each model and order of
writing, the result has the mean length in tokens, the share of texts that fill all places, and
``distance``: the mean absolute difference between the sorted lengths of written texts and those of
as many held-out texts (the Wasserstein distance). The first entry has the lengths of the held-out
texts.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from command import run
from numpy.typing import NDArray

from maskwise.base.folders import read_json
from maskwise.masks.generate import Writer
from maskwise.recipe import read_recipe
from maskwise.text import Document
from maskwise.text.rows import holds_out
from maskwise.text.tokenizers import load_tokenizer

ORDERS = ("random", "confidence")
FRAME = 2
"""The special tokens around a text."""


def main(out: Path, texts: int = 100, jobs: int = 2) -> list[dict[str, object]]:
    """Measure the lengths of held-out texts, and of those that each model writes."""
    kept, length = held_out_of(out)
    places = length - FRAME
    runs = runs_of(out)
    tokenizer = load_tokenizer(next(iter(runs)))
    ids = tokenizer([each.text for each in kept], add_special_tokens=False)["input_ids"]
    held_out = np.minimum(np.array([len(each) for each in ids]), places)
    found = [{"texts": len(held_out), **facts(held_out, held_out, places)}]
    with ProcessPoolExecutor(jobs) as pool:
        wanted = [(folder, order) for folder in runs for order in ORDERS]
        lengths = pool.map(written_lengths, *zip(*wanted), repeat(places), repeat(texts))
        for (folder, order), written in zip(wanted, lengths):
            if written is not None:
                of = {"run": runs[folder], "order": order}
                found.append({**of, **facts(written, held_out, places)})
    return found


def held_out_of(out: Path) -> tuple[list[Document], int]:
    """Return the held-out documents of a study, and the length of its rows."""
    corpus = read_recipe({"corpus": read_json(out / "study.json")["recipe"]["corpus"]}).corpus
    kept = [each for each in corpus.documents() if holds_out(each, corpus.held_out)]
    return kept, corpus.length


def runs_of(out: Path) -> dict[str, str]:
    """Return the names of the trained runs of a study, by the folders of their checkpoints."""
    stages = read_json(out / "stages" / "plan.json")["stages"]
    return {
        str(out / "stages" / name / "checkpoint"): stage["run"]
        for name, stage in stages.items()
        if stage["kind"] == "pretrain"
    }


def written_lengths(folder: str, order: str, places: int, texts: int) -> NDArray[np.int64] | None:
    """Return the lengths of the texts that a model writes; None if it has learned no ends."""
    torch.set_num_threads(1)
    writer = Writer(folder)
    if not writer.ends:
        return None
    return np.array([length_of(writer, places, order, seed) for seed in range(texts)])


def length_of(writer: Writer, places: int, order: str, seed: int) -> int:
    """Write a text without a prompt, and return the number of its tokens."""
    *_, last = writer.write(length=places, order=order, seed=seed)
    return len(last.ids) - int((last.ids == writer.vocabulary.eos).sum()) - 1


def facts(lengths: NDArray[np.int64], held_out: NDArray[np.int64], places: int) -> dict[str, float]:
    """Return the mean length, the share that fills all places, and the distance."""
    shares = (np.arange(len(lengths)) + 0.5) / len(lengths)
    wanted = np.quantile(held_out, shares, method="inverted_cdf")
    return {
        "mean": float(lengths.mean()),
        "full": float((lengths == places).mean()),
        "distance": float(np.abs(np.sort(lengths) - wanted).mean()),
    }


if __name__ == "__main__":
    run(main, __doc__)
