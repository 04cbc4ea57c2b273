"""``maskwise bench mask``: masking throughput on one core, against transformers'
``DataCollatorForLanguageModeling``.

Rows are the bundled sample, cut by a small WordPiece trained in the run, in three layouts: one
document a row ([CLS], running text, [SEP]); packed rows, the default of every recipe (five
documents a row, each closed by [SEP]); and packed rows of sentences of 20 tokens. Every contestant
gets the same rows. The peer gets what it takes, lists of dicts, and for whole words the character
offsets that it finds words by; ours gets tensors or the same lists. The peer's bare masking step,
from tensors that are already padded and marked, is timed too. Every timed result of ours is checked
against the contract (budget, no special tokens, whole words, labels).

Times are processor seconds of one thread. Wall time on a shared machine is mostly about the
neighbours. Processor time leaves them out except for the caches that they spoil, so contestants
take turns, a few batches each.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from maskwise.masking import (
    CORRUPTIONS,
    IGNORE,
    POLICIES,
    MaskedBatch,
    Masker,
    UnitKind,
    Vocabulary,
)
from maskwise.masking.diffusion import Noising
from maskwise.text.documents import bundled_path, read_documents
from maskwise.text.tokenizers import tokenise, train_tokenizer
from maskwise.training.speed import cpu_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RATIO = 0.15
PEER, PEER_WORDS = "transformers", "transformers, whole words"
PEER_STEP = "transformers, masking step from tensors"
LAYOUTS = ("documents", "packed", "sentences")
DOCUMENTS, SENTENCE = 5, 20
"""Documents in a packed row; tokens of a sentence."""


def _piece_tokens(layout: str, length: int) -> int:
    """Tokens of a document piece, [SEP] included."""
    return {"documents": length, "packed": length // DOCUMENTS, "sentences": SENTENCE}[layout]


_SPECS = {
    "mixture": "mixture(whole-word, span, token)",
    "group-weighted": "group-weighted(pos, 17)",
}
_DIFFUSION: dict[str, dict[str, Any]] = {
    "diffusion": {},
    "diffusion, bernoulli": {"budget": "bernoulli"},
    "diffusion, weighted": {"policy": "weighted(units='token')", "budget": "bernoulli"},
    "diffusion, salient first": {"policy": "salient", "fill": "random", "budget": "bernoulli"},
}
_POLICY_FOR = {
    "infill": "span(poisson=3.0)",
    "t5": "t5-span",
    "ul2": "ul2",
    "permute-sentences": "sentence",
}


def bench_mask(*, batches: int = 60, vocab_size: int = 8192) -> dict[str, Any]:
    """Time every policy and corruption at 32 × 512, tokens and whole words in every layout, too.

    Args:
        batches: timed batches of each contestant (a tenth of it for the long rows).
        vocab_size: of the WordPiece that is trained.

    Returns:
        ``results``, one dict per contestant: ``name``, ``layout``, ``rows``, ``length``,
        ``milliseconds`` (median processor time of a batch), ``tokens_per_second``, ``times_random``
        and ``times_whole_word`` (how many times the peer's random and whole-word masking); and
        ``hardware``.

    Raises:
        AssertionError: a timed result breaks the contract.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ids, words, tokenizer = _text(vocab_size)
        text = (tokenizer, ids, words)
        results = _Contest(*text, rows=32, length=512).run(batches)
        simple = ("token", "whole-word")
        for layout, length in (
            ("packed", 512),
            ("sentences", 512),
            *((layout, 128) for layout in LAYOUTS),
        ):
            contest = _Contest(*text, rows=32, length=length, only=simple, layout=layout)
            results += contest.run(batches)
        long = _Contest(*text, rows=8, length=4096, only=("whole-word",))
        results += long.run(max(3, batches // 10))
        return {
            "results": results,
            "hardware": surroundings(("torch", "transformers", "numpy", "maskwise")),
        }
    finally:
        torch.set_num_threads(threads)


def _text(vocab_size: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Token ids and running word numbers of the whole sample, and its tokenizer with sentinels and
    mode tokens."""
    documents = list(read_documents(bundled_path("wikipedia")))
    tokenizer = train_tokenizer([d.text for d in documents], vocab_size=vocab_size)
    parts, words, last = [], [], 0
    for tokens in tokenise(documents, tokenizer):
        parts.append(tokens.input_ids)
        word_ids = tokens.columns()["word_ids"]
        words.append(np.where(word_ids >= 0, word_ids + last, -1))
        last = int(words[-1].max(initial=last)) + 1
    names = [f"<extra_id_{i}>" for i in range(120)] + ["[R]", "[S]", "[X]"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    return np.concatenate(parts).astype(np.int64), np.concatenate(words).astype(np.int64), tokenizer


def in_turn(
    contestants: dict[str, Callable[[int], object]],
    *,
    batches: int,
    check: Callable[[str, int, object], None],
    turn: int = 10,
) -> dict[str, float]:
    """Median processor seconds of each contestant over ``batches`` calls with the numbers 0, 1, 2,
    …

    Args:
        contestants: what to call, by name.
        batches: how many calls of each are timed.
        check: gets (name, number, result) of every timed call, outside the time.
        turn: calls of one contestant in a row; one more before them is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for first in range(0, batches, turn):
        for name, call in contestants.items():
            call(first)
            results = []
            for number in range(first, min(first + turn, batches)):
                start = time.process_time_ns()
                result = call(number)
                seconds[name].append((time.process_time_ns() - start) / 1e9)
                results.append(result)
            for number, result in enumerate(results, first):
                check(name, number, result)
    return {name: median(spent) for name, spent in seconds.items()}


def surroundings(packages: Sequence[str]) -> dict[str, object]:
    """What the figures depend on: processor, threads, versions, date."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


class _Contest:
    """All contestants on batches of one shape."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ids: np.ndarray,
        words: np.ndarray,
        *,
        rows: int,
        length: int,
        only: tuple[str, ...] | None = None,
        layout: str = "documents",
    ):
        self.tokenizer, self.rows, self.length, self.layout = tokenizer, rows, length, layout
        self.vocabulary = Vocabulary.of(tokenizer)
        count = len(ids) // (rows * (length - 2))
        shape = (count, rows, length - 2)
        # the first tokens that fill whole batches
        cut = (np.resize(line, shape) for line in (ids, words))
        self.batches = [self._batch(i, b, w) for i, (b, w) in enumerate(zip(*cut))]
        self.lists = [self._as_lists(batch) for batch in self.batches]
        self.maskers = self._maskers(only)

    def _batch(self, number: int, ids: np.ndarray, words: np.ndarray) -> dict[str, Tensor]:
        rows, frame = self.rows, ((0, 0), (1, 1))
        ids, word = np.pad(ids, frame), np.pad(words, frame, constant_values=-1)
        ids[:, 0], ids[:, -1] = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        column, size = np.arange(self.length), _piece_tokens(self.layout, self.length)
        closing = (column % size == size - 1) & (column < self.length - 1)
        ids[:, closing], word[:, closing] = self.tokenizer.sep_token_id, -1
        # Made layers: what they hold does not matter to the time.
        columns = {
            "input_ids": ids,
            "word_ids": word,
            "sentence": np.where(word >= 0, word // 20, -1),
            "salient": np.where(word % 10 < 2, word // 10, -1),
            "phrase": np.where(word % 6 < 3, word // 6, -1),
            "weight": (word * 7919 % 997 + 1) / 500,
            "learned": (word * 6007 % 991 + 1) / 500,
            "frequency": ids * 31 % 1000 + 1.0,
            "pos": np.where(word >= 0, word % 17, -1),
            "informativeness": (word * 31 % 101 + 1) / 50,
            "difference": (word * 17 % 89 + 1) / 45,
        }
        named = {
            name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()
        }
        first = torch.arange(rows) + number * rows
        if self.layout == "documents":
            return named | {"example_id": first}
        return named | {
            "example_id": first[:, None] * self.length + torch.from_numpy(column // size)
        }

    def _as_lists(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Rows as a data set gives them; offsets with a gap before each word, as the peer wants
        them.
        """
        words = batch["word_ids"]
        starts = torch.ones_like(words)
        starts[:, 1:] = (words[:, 1:] != words[:, :-1]).long()
        end = torch.arange(1, self.length + 1) + starts.cumsum(1)
        end[words < 0] = 0
        offsets = torch.stack((end - (words >= 0).long(), end), 2)
        return [
            {"input_ids": i, "word_ids": w, "offset_mapping": o, "example_id": e}
            for i, w, o, e in zip(
                *(x.tolist() for x in (batch["input_ids"], words, offsets, batch["example_id"]))
            )
        ]

    def _maskers(self, only: tuple[str, ...] | None) -> dict[str, Masker]:
        """By name; the first is ours at its simplest, which others are measured by."""
        if only is not None:
            return {f"maskwise, {name}": self._masker(name, "bert") for name in only}
        made = {
            f"maskwise, {name}": self._masker(_SPECS.get(name, name), "bert") for name in POLICIES
        }
        made["maskwise, whole-word, budget exact"] = self._masker(
            "whole-word", "bert", budget="exact"
        )
        for name in CORRUPTIONS:
            made.setdefault(
                f"maskwise, shown as {name}", self._masker(_POLICY_FOR.get(name, "token"), name)
            )
        noisings = {
            f"maskwise, {name}": Noising(self.vocabulary, **more)
            for name, more in _DIFFUSION.items()
        }
        return made | noisings

    def _masker(self, policy: str, corruption: str, *, budget: str = "expected") -> Masker:
        return Masker(
            self.vocabulary, policy=policy, corruption=corruption, budget=budget, ratio=RATIO
        )

    def run(self, batches: int) -> list[dict[str, Any]]:
        found = in_turn(self._contestants(), batches=batches, check=self._check)
        out = []
        for name, seconds in found.items():
            times = {
                key: round(found[peer] / seconds, 2)
                for key, peer in (("times_random", PEER), ("times_whole_word", PEER_WORDS))
                if peer in found
            }
            tokens = self.rows * self.length
            out.append(
                {
                    "name": name,
                    "layout": self.layout,
                    "rows": self.rows,
                    "length": self.length,
                    "milliseconds": round(seconds * 1e3, 4),
                    "tokens_per_second": round(tokens / seconds),
                    **times,
                }
            )
        return out

    def _contestants(self) -> dict[str, Callable[[int], Any]]:
        plain = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=RATIO)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it will only mask, never replace or keep
            words = DataCollatorForLanguageModeling(
                self.tokenizer, mlm_probability=RATIO, whole_word_mask=True
            )
        lists = self.lists
        bare = [[{"input_ids": row["input_ids"]} for row in batch] for batch in lists]
        with_offsets = [
            [{k: row[k] for k in ("input_ids", "offset_mapping")} for row in batch]
            for batch in lists
        ]
        special = self.batches[0]["word_ids"] < 0

        def step(n: int) -> Any:
            return plain.torch_mask_tokens(
                self.batches[n % len(bare)]["input_ids"].clone(), special_tokens_mask=special
            )

        calls: dict[str, Callable[[int], Any]] = {
            PEER: lambda n: plain(bare[n % len(bare)]),
            PEER_WORDS: lambda n: words(with_offsets[n % len(bare)]),
            PEER_STEP: step,
        }
        for name, masker in self.maskers.items():
            calls[name] = partial(_mask, masker, self.batches)
        for policy, more in (("token", ()), ("whole-word", ("word_ids",))):
            if f"maskwise, {policy}" in self.maskers:
                columns = ("input_ids", "example_id", *more)
                rows = [[{k: row[k] for k in columns} for row in batch] for batch in lists]
                calls[f"maskwise, {policy}, from lists"] = partial(
                    _mask, self.maskers[f"maskwise, {policy}"], rows
                )
        return calls

    def _check(self, name: str, number: int, out: Any) -> None:
        """The contract, on the very batch that was timed."""
        if not isinstance(out, MaskedBatch):
            return
        batch = self.batches[number % len(self.batches)]
        masker = self.maskers[name.removesuffix(", from lists")]
        ids, chosen = batch["input_ids"], out.selected
        table = torch.from_numpy(self.vocabulary.eligible)
        eligible = table[ids]
        assert not (chosen & ~eligible).any(), f"{name}: a special token was chosen"
        share = float(chosen.sum() / eligible.sum())
        if masker.budget == "exact" and not isinstance(masker, Noising):
            assert ((chosen.sum(1) - eligible.sum(1) * RATIO) < 1).all(), f"{name}: over the budget"
        if name.split(", ")[1] in ("token", "whole-word") and len(name.split(", ")) == 2:
            # Pieces round for themselves, so that a batch of many short ones strays a little.
            bound = 0.005 if self.layout == "documents" and self.length >= 512 else 0.02
            assert abs(share - RATIO) < bound, f"{name}: the budget is not used"
        if masker.policy.unit_kind == UnitKind.WORD:
            word, before = (
                batch["word_ids"],
                torch.nn.functional.pad(batch["word_ids"], (1, 0), value=-1)[:, :-1],
            )
            run = ((word != before) & (word >= 0)).cumsum(1)
            size = torch.zeros(len(ids), self.length + 1, dtype=torch.long)
            both = [size.scatter_add(1, run, m.long()) for m in (chosen, eligible)]
            assert ((both[0] == 0) | (both[0] == both[1])).all(), f"{name}: half a word"
        if str(masker.corruption).startswith("Bert"):
            restored = torch.where(out.labels == IGNORE, out.input_ids, out.labels)
            assert torch.equal(restored, ids), f"{name}: labels do not restore the text"
            assert torch.equal(out.labels != IGNORE, chosen), (
                f"{name}: targets are not what was chosen"
            )
            shown = out.input_ids[chosen]
            assert (table[shown] | (shown == self.vocabulary.mask)).all(), f"{name}: bad token"


def _mask(masker: Masker, batches: list[Any], number: int) -> MaskedBatch:
    """Every call has another (batch, epoch), so that no branch is learned from the last one."""
    return masker(batches[number % len(batches)], epoch=number // len(batches))


def render_mask(result: dict[str, Any]) -> RenderableType:
    """The figures as a table."""
    hardware = result["hardware"]
    title = f"Masking on one core: {hardware['processor']}, torch {hardware['versions']['torch']}"
    caption = "× random, × whole words: times as fast as the peer's random and whole-word masking"
    table = Table(
        title=title, title_justify="left", caption=caption, box=None, padding=(0, 1, 0, 0)
    )
    table.add_column("contestant", min_width=22)
    table.add_column("rows")
    for column in ("shape", "ms a batch", "M tokens/s", "× random", "× whole words"):
        table.add_column(column, justify="right")
    for r in result["results"]:
        table.add_row(
            r["name"],
            r["layout"],
            f"{r['rows']} × {r['length']}",
            f"{r['milliseconds']:.3f}",
            f"{r['tokens_per_second'] / 1e6:.2f}",
            f"{r['times_random']:.1f}",
            f"{r['times_whole_word']:.1f}",
        )
    return table
