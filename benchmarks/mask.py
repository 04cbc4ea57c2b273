"""The speed of masking on one core, compared with transformers' collator.

    OMP_NUM_THREADS=1 python benchmarks/mask.py [--json]

The rows come from the bundled sample, tokenised by a small WordPiece tokenizer, in three layouts:
one document per row, packed rows of five documents, and packed rows of sentences with 20 tokens.
The contestants are policies (what is masked) and corruptions (how masked tokens are shown) of
maskwise, and transformers' collator. All of them mask the same rows. transformers' collator reads
lists of dicts, with special_tokens_mask, as its documentation advises, and character offsets for
whole words, and spends most of its time on making tensors of them. So what is read decides much of
a ratio, and the contestants of maskwise named ``token`` and ``whole-word`` are timed with four
inputs: tensors of twelve columns; tensors of the three columns that they read; a ``Line``, as in
maskwise's own training; and lists of dicts, as the collator reads them. The masking step of the
collator alone, from tensors, is a contestant, too.

Times are CPU seconds on one thread, because wall time on a shared machine includes other processes.
Contestants take turns, because other processes use the same caches and should slow all contestants
equally. By default, each contestant is timed in three repetitions. The report shows how much the
times vary and how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterable
from functools import partial
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from figures import Contestants, Figures, in_turn, noise_of, probe, spread, surroundings
from rich.progress import track
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from maskwise.base.printing import err_console
from maskwise.cli.terminal import print_table
from maskwise.masking import CORRUPTIONS, POLICIES, MaskedBatch, Masker, Vocabulary
from maskwise.masking.gather import gather
from maskwise.text.documents import read_documents
from maskwise.text.pieces import tokenise
from maskwise.text.source import bundled_path
from maskwise.text.tokenizers import train_tokenizer

RATIO = 0.15
PEER = "transformers"
PEER_WORDS = "transformers, whole words"
PEER_STEP = "transformers, masking step from tensors"
FROM_LISTS = ", from lists"
FROM_COLUMNS = ", from three columns"
FROM_LINE = ", from a line"
READ = ("input_ids", "word_ids", "example_id")
"""The columns that the policies token and whole-word read."""
LAYOUTS = ("documents", "packed", "sentences")
WITH_ARGUMENTS = {
    "mixture": "mixture(whole-word, span, token)",
    "group-weighted": "group-weighted(pos, 17)",
}
POLICY_FOR = {
    "infill": "span(poisson=3.0)",
    "t5": "t5-span",
    "permute-sentences": "sentence",
}
"""Masking policy with which each corruption is timed. Other corruptions use ``token``."""


def bench_mask(*, batches: int = 20, repetitions: int = 3, vocab_size: int = 8192) -> Figures:
    """Time every policy and corruption on batches of 32 × 512 tokens.

    The policies ``token`` and ``whole-word`` are timed on other shapes, too.

    Args:
        batches: the number of timed batches per contestant and repetition (a tenth of it for rows
            of 4,096 tokens).
        repetitions: the number of times that each contestant is timed.
        vocab_size: the vocabulary size of the WordPiece tokenizer, which is trained on the sample.

    Returns:
        A dict with ``results``, ``repetitions``, ``noise`` (see ``noise_of``) and ``hardware``.
        ``results`` has one dict per contestant and shape: ``name``, ``layout``, ``rows``,
        ``length``, ``milliseconds`` (CPU time per batch: the median over repetitions of the median
        over batches), ``spread`` (the range of the repetitions' medians, divided by
        ``milliseconds``), ``tokens_per_second``, ``times_random``, ``times_whole_word`` and
        ``times_step`` (speed relative to transformers' random and whole-word masking, and to its
        random masking from tensors).
    """
    # One thread, as in a worker of a data loader.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sample = Sample(vocab_size)
        vocabulary = Vocabulary.of(sample.tokenizer)
        maskers = _maskers(vocabulary)
        whole_word = {"whole-word": maskers["whole-word"]}
        simple = {"token": maskers["token"], **whole_word}
        few = max(3, batches // 10)
        usual = BatchShape(32, 512, "documents")
        probes = [probe()]
        timed: Timed = {}
        for _ in track(range(repetitions), "timing", console=err_console):
            _contest(timed, sample, maskers, batches, usual, simple)
            for layout in LAYOUTS:
                for length in (128, 512):
                    shape = BatchShape(32, length, layout)
                    if shape != usual:
                        _contest(timed, sample, simple, batches, shape, simple)
            _contest(timed, sample, whole_word, few, BatchShape(8, 4096, "documents"))
            probes.append(probe())
        return {
            "results": _results(timed),
            "repetitions": repetitions,
            "noise": noise_of(probes),
            "hardware": surroundings(),
        }
    finally:
        torch.set_num_threads(threads)


class BatchShape(NamedTuple):
    """The shape of batches, and their layout (``LAYOUTS``)."""

    rows: int
    length: int
    layout: str


Timed = dict[tuple[str, BatchShape], list[float]]
"""Seconds per batch in each repetition, keyed by contestant and shape."""


class Sample:
    """The bundled sample as batches of any shape.

    Batches have synthetic annotation layers (one value per token), which are the input of policies.

    Args:
        vocab_size: the vocabulary size of the WordPiece tokenizer, which is trained on the sample.
    """

    def __init__(self, vocab_size: int):
        documents = list(read_documents(bundled_path("wikipedia")))
        texts = [document.text for document in documents]
        self.tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
        ids = []
        words = []
        first = 0
        for tokens in tokenise(documents, self.tokenizer, batch_size=1):
            word_ids = tokens.columns["word_ids"]
            # A row may contain several documents, so no two documents may share word numbers.
            numbered = np.where(word_ids >= 0, word_ids + first, -1)
            first = int(numbered.max(initial=first)) + 1
            ids.append(tokens.columns["input_ids"])
            words.append(numbered)
        self.ids = np.concatenate(ids).astype(np.int64)
        self.words = np.concatenate(words).astype(np.int64)
        # The corruption t5 needs sentinels.
        names = [f"<extra_id_{number}>" for number in range(120)]
        self.tokenizer.add_special_tokens({"additional_special_tokens": names})

    def batches(self, rows: int, length: int, layout: str) -> list[dict[str, Tensor]]:
        """Return the whole sample in batches of one shape, with [SEP] after each document."""
        room = length - 2
        count = len(self.ids) // (rows * room)
        # The padding makes room for [CLS] and [SEP].
        frame = ((0, 0), (0, 0), (1, 1))
        ids = np.pad(np.resize(self.ids, (count, rows, room)), frame)
        word = np.pad(np.resize(self.words, (count, rows, room)), frame)
        piece = {"documents": length, "packed": length // 5, "sentences": 20}[layout]
        column = np.arange(length)
        closing = (column % piece == piece - 1) | (column == length - 1)
        ids[..., 0] = self.tokenizer.cls_token_id
        ids[..., closing] = self.tokenizer.sep_token_id
        word[..., closing] = -1
        word[..., 0] = -1
        pieces = column // piece
        layers = {
            "input_ids": ids,
            "word_ids": word,
            # These values are arbitrary, because the time does not depend on them.
            "sentence": np.where(word >= 0, word // 20, -1),
            "salient": np.where(word % 10 < 2, word // 10, -1),
            "phrase": np.where(word % 6 < 3, word // 6, -1),
            "pos": np.where(word >= 0, word % 17, -1),
            "frequency": ids * 31 % 1000 + 1.0,
        }
        for name in ("weight", "learned", "informativeness", "difference"):
            layers[name] = (word * 7919 % 997 + 1) / 500
        batches = []
        for number in range(count):
            batch = {name: torch.from_numpy(values[number]) for name, values in layers.items()}
            example = np.arange(number * rows, (number + 1) * rows)
            if layout != "documents":
                # In a packed row, each document is an example with its own number of targets.
                example = example[:, None] * length + pieces
            batch["example_id"] = torch.from_numpy(example)
            batches.append(batch)
        return batches


def _maskers(vocabulary: Vocabulary) -> dict[str, Masker]:
    maskers = {}
    for name in POLICIES.without_plugins():
        spec = WITH_ARGUMENTS.get(name, name)
        maskers[name] = Masker(vocabulary, policy=spec, ratio=RATIO)
    for name in CORRUPTIONS.without_plugins():
        spec = POLICY_FOR.get(name, "token")
        maskers[f"shown as {name}"] = Masker(vocabulary, policy=spec, corruption=name, ratio=RATIO)
    return maskers


def _contest(
    timed: Timed,
    sample: Sample,
    maskers: dict[str, Masker],
    number: int,
    shape: BatchShape,
    simple: Iterable[str] = (),
) -> None:
    """Time the maskers and transformers' collator for one repetition, on batches of one shape.

    Args:
        simple: the names of maskers that read ``READ``, which are timed with every input.
    """
    batches = sample.batches(*shape)
    calls = _peers(sample, batches)
    for name, masker in maskers.items():
        calls[f"maskwise, {name}"] = partial(_mask, masker, batches)
    columns = [{name: batch[name] for name in READ} for batch in batches]
    inputs: dict[str, list[Any]] = {
        FROM_COLUMNS: columns,
        FROM_LINE: [gather(batch, Vocabulary.of(sample.tokenizer)) for batch in columns],
        FROM_LISTS: [_rows_of(batch) for batch in columns],
    }
    for name, (of, given) in product(simple, inputs.items()):
        calls[f"maskwise, {name}{of}"] = partial(_mask, maskers[name], given)
    seconds = in_turn(calls, batches=number)
    for name, spent in seconds.items():
        timed.setdefault((name, shape), []).append(spent)


def _results(timed: Timed) -> list[Figures]:
    """Summarise the repetitions of each contestant and shape."""
    results = []
    for (name, shape), seconds in timed.items():
        spent = median(seconds)
        results.append(
            {
                "name": name,
                **shape._asdict(),
                "milliseconds": round(spent * 1e3, 4),
                "spread": spread(seconds),
                "tokens_per_second": round(shape.rows * shape.length / spent),
                "times_random": round(median(timed[PEER, shape]) / spent, 2),
                "times_whole_word": round(median(timed[PEER_WORDS, shape]) / spent, 2),
                "times_step": round(median(timed[PEER_STEP, shape]) / spent, 2),
            }
        )
    return results


def _mask(masker: Masker, batches: list[Any], number: int) -> MaskedBatch:
    # Every call makes new masks. If masks were repeated, the CPU would learn to predict branches.
    return masker(batches[number % len(batches)], epoch=number // len(batches))


def _rows_of(batch: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Return a batch as a list of dicts."""
    columns = zip(*(values.tolist() for values in batch.values()), strict=True)
    return [dict(zip(batch, row, strict=True)) for row in columns]


def _peers(sample: Sample, batches: list[dict[str, Tensor]]) -> Contestants:
    plain = DataCollatorForLanguageModeling(sample.tokenizer, mlm_probability=RATIO)
    with warnings.catch_warnings():
        # transformers warns that whole-word masking replaces all selected tokens with [MASK].
        warnings.simplefilter("ignore")
        whole = DataCollatorForLanguageModeling(
            sample.tokenizer, mlm_probability=RATIO, whole_word_mask=True
        )
    bare = []
    with_offsets = []
    for batch in batches:
        ids, words = batch["input_ids"], batch["word_ids"]
        starts = torch.ones_like(words)
        starts[:, 1:] = (words[:, 1:] != words[:, :-1]).long()
        # transformers finds word boundaries at gaps between offsets.
        end = torch.arange(1, words.shape[1] + 1) + starts.cumsum(1)
        offsets = torch.stack((end - 1, end), 2) * (words >= 0)[..., None]
        rows = []
        # Without this column, the collator looks up each token of each batch in Python.
        for row, special in zip(ids.tolist(), (words < 0).long().tolist(), strict=True):
            rows.append({"input_ids": row, "special_tokens_mask": special})
        bare.append(rows)
        with_offsets.append(
            [
                {**row, "offset_mapping": places}
                for row, places in zip(rows, offsets.tolist(), strict=True)
            ]
        )
    special = batches[0]["word_ids"] < 0

    def masking_step(number: int) -> object:
        ids = batches[number % len(batches)]["input_ids"].clone()
        return plain.torch_mask_tokens(ids, special_tokens_mask=special)

    return {
        PEER: lambda number: plain(bare[number % len(bare)]),
        PEER_WORDS: lambda number: whole(with_offsets[number % len(bare)]),
        PEER_STEP: masking_step,
    }


HEADS = (
    *("contestant", "rows", "shape", "ms per batch", "M tokens/s"),
    *("× random", "× whole words", "× step"),
)


def mask_rows(result: Figures) -> list[tuple[str, ...]]:
    """Return the result of ``bench_mask`` as the rows of a table with the columns ``HEADS``."""
    rows = list[tuple[str, ...]]()
    for row in result["results"]:
        rows.append(
            (
                row["name"],
                row["layout"],
                f"{row['rows']} × {row['length']}",
                f"{row['milliseconds']:.3f}",
                f"{row['tokens_per_second'] / 1e6:.2f}",
                f"{row['times_random']:.1f}",
                f"{row['times_whole_word']:.1f}",
                f"{row['times_step']:.2f}",
            )
        )
    return rows


def mask_notes(result: Figures) -> list[str]:
    """Return lines about the machine and the accuracy of the figures."""
    widest = max(row["spread"] for row in result["results"])
    noise = result["noise"]["probe_spread"]
    return [
        f"Masking on one core: {result['hardware']['cpu']}",
        "× random, × whole words: speed relative to transformers' random and whole-word masking",
        "× step: speed relative to the random masking of transformers from tensors alone",
        f"Between repetitions, figures varied by up to {widest:.0%}, and the time of a fixed piece "
        f"of work by {noise:.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the record")
    given = parser.parse_args()
    result = {"bench": "mask"} | bench_mask()
    if given.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        print_table(HEADS, mask_rows(result))
        sys.stdout.write("\n".join(mask_notes(result)) + "\n")


if __name__ == "__main__":
    main()
