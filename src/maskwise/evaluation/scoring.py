"""What the measures share: log p(token | the rest) for every token, masked one at a time, and what a test set is.

A row of n tokens makes n copies, each with one token masked. All copies are built by index arithmetic, in
batches of copies of similar width, and the vocabulary head runs only where the mask is.

In words of several pieces, a piece is easy to guess from the pieces behind it ("##rates" gives "Soc" away),
which makes long rare words look likely. ``within_word`` masks those too: all pieces of the word from the
target on, so that a word's score is the chain rule from left to right (Kauf & Ivanova 2023,
"PLL-word-l2r"; Salazar et al. 2020 is the plain one).

Cost: one forward pass of the row per token; some 0.1 ms at the size of the quick start.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.masking import AnnotatedBatch
from maskwise.models import masked_logits
from maskwise.specs import read_options
from maskwise.text.labelled import Record, read_records

TOKENS = 16384
"""Positions in one forward pass."""
TIE = 1e-4
"""Nats below which two scores are equal: more than rounding, far less than any preference."""
LONG, UNKNOWN = "longer than the model", "unknown characters"
"""Why an item is left out. It is counted under this name."""
DAMAGED = "is the checkpoint damaged?"
BUNDLED_SETS = ("pairs",)
"""Small sets of our own that come with maskwise; scripts/build_evaluation.py makes them."""


class Measurement(TypedDict):
    """One figure of one checkpoint; (name, metric) is unique among the records of an evaluation.

    ``chance`` is the figure of a model that ignores the text. ``of`` is how many items the file holds, ``items`` how
    many were scored, ``skipped`` why others were not.
    """

    kind: Literal["evaluation"]
    name: str
    metric: str
    value: float
    items: int
    chance: float | None
    higher_is_better: bool
    of: NotRequired[int]
    skipped: NotRequired[dict[str, int]]
    ties: NotRequired[int]
    groups: NotRequired[dict[str, dict[str, float]]]


class TestSet(ABC):
    """A measure over items out of a file. Subclasses are dataclasses with a classmethod ``read``."""

    __test__ = False  # no class of tests, whatever pytest thinks of its name
    name: str

    @abstractmethod
    def texts(self) -> list[tuple[str, ...]]:
        """For the overlap check: what must not stand in a corpus."""

    @abstractmethod
    def content(self) -> str:
        """A hash of all that a score depends on."""

    @abstractmethod
    def score(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[Measurement]:
        """The figures of a masked language model in evaluation mode.

        Raises:
            MaskwiseError: no item can be scored.
        """


S = TypeVar("S", bound=TestSet)


def log_probabilities(
    model: nn.Module, batch: AnnotatedBatch, *, mask: int, within_word: bool = False, tokens: int = TOKENS
) -> Tensor:
    """(B, L) float32: log p of every eligible token while it is masked; 0 elsewhere.

    Special tokens, padding and [UNK] are not scored.

    Args:
        model: a masked language model in evaluation mode.
        batch: rows padded on the right; with ``word_ids`` if ``within_word``.
        mask: the id of [MASK].
        within_word: also hide the pieces of the same word behind the target.
        tokens: positions in one forward pass.
    """
    width_B = _widths(batch)
    row_T, column_T = batch.tensor("eligible").nonzero().unbind(1)
    ids_BL, log_p_BL = batch.tensor("input_ids"), torch.zeros(batch.shape)
    words_BL = None
    if within_word:
        words_BL = torch.from_numpy(
            batch.layer("word_ids", policy="pseudo-log-likelihood").reshape(batch.shape)
        )
    for part in by_width(width_B[row_T], tokens):
        row, column = row_T[part], column_T[part]
        width = int(width_B[row].max())
        ids, place = ids_BL[row, :width], torch.arange(width)
        hidden = place == column.unsqueeze(1)
        if words_BL is not None:
            words = words_BL[row, :width]
            own = words.gather(1, column.unsqueeze(1))
            hidden |= (words == own) & (own >= 0) & (place > column.unsqueeze(1))
        shown = torch.where(hidden, mask, ids)
        attention = place < width_B[row].unsqueeze(1)
        log_p = predictions(model, shown, attention, torch.arange(len(row)), column)
        truth = ids.gather(1, column.unsqueeze(1)).to(log_p.device)
        log_p_BL[row, column] = log_p.gather(1, truth).squeeze(1).cpu()
    return log_p_BL


def predictions(model: nn.Module, ids: Tensor, attention: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """log p (M, V) float32 at the places (row, column), each (M,), of rows ``ids`` (N, L); on the model's device.

    Raises:
        MaskwiseError: the model gives no numbers. (They would compare as neither better nor worse, and rank first.)
    """
    device = next(model.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": attention.long().to(device)}
    log_p = masked_logits(model, inputs, row.to(device), column.to(device)).float().log_softmax(-1)
    if log_p[:, :1].isnan().any():  # one logit that is no number makes its whole row so
        raise MaskwiseError("the model's predictions are no numbers", got="nan", do=DAMAGED)
    return log_p


def by_width(width: Tensor, tokens: int) -> Iterator[Tensor]:
    """Indices of rows of similar width, the widest first, at most ``tokens`` positions together."""
    order = width.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, int(width[order[start]])))
        yield order[start : start + count]
        start += count


def _widths(batch: AnnotatedBatch) -> Tensor:
    return batch.tensor("present").sum(1)


# Test sets by name: ``bundled:pairs``, a file, and options behind either: ``facts.jsonl(items=500)``


def load_set(spec: str, read: Callable[..., S]) -> S:
    """``read(path, **options)`` of a spec.

    Raises:
        MaskwiseError: no such file or bundled set, or an option that the reader does not have.
    """
    source, options = read_options(spec, read, kind="evaluation set", example="items=500")
    return read(_path(source), **options)


def _path(source: str) -> Path:
    if source.startswith("bundled:"):
        name = source.removeprefix("bundled:")
        if name not in BUNDLED_SETS:
            raise unknown_name("bundled evaluation set", name, BUNDLED_SETS)
        return Path(__file__).parent.parent / "data" / f"{name}.jsonl.gz"
    path = Path(source).expanduser()
    if not path.is_file():
        raise MaskwiseError(
            f"no evaluation file {source!r}", do="give a .jsonl or .tsv file, or bundled:pairs"
        )
    return path


def read_set(path: Path) -> list[Record]:
    """The records of a file; at least one."""
    records = read_records(path)
    if not records:
        raise MaskwiseError(f"evaluation file {path} holds nothing")
    return records


def name_of(path: Path) -> str:
    """``/x/trex.jsonl.gz`` → ``trex``."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def evenly(items: list[Record], count: int | None) -> list[Record]:
    """At most ``count`` items, evenly spread."""
    if count is None or count >= len(items):
        return items
    if count < 1:
        raise MaskwiseError("items must be a number of items", got=count, allowed="≥ 1")
    return [items[place * len(items) // count] for place in range(count)]


def require_scored(kept: int, skipped: Mapping[str, int], where: str) -> None:
    """
    Raises:
        MaskwiseError: nothing is left to be scored.
    """
    if not kept:
        why = ", ".join(f"{count} × {reason}" for reason, count in Counter(skipped).most_common())
        raise MaskwiseError(f"no item of {where} can be scored", got=why)
