"""Test sets from files, and minimal pairs. Cloze sets are in ``cloze``.

The two sentences of a minimal pair differ in one point of grammar. A model should assign the higher
probability to the correct sentence. Files have BLiMP's format (Warstadt et al. 2020): JSON lines or
a TSV with the columns ``sentence_good`` and ``sentence_bad``. The score of a sentence is the sum of
the log p of its tokens, each masked together with the later tokens of its word. The accuracy of
random guessing is 0.5, and a tie counts as 0.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

import torch

from maskwise.base.errors import MaskwiseError, counted, require_known
from maskwise.base.folders import bundled_file
from maskwise.base.specs import read_options, user_path
from maskwise.evaluation.measure import Measure
from maskwise.evaluation.scoring import evenly_spaced, log_probabilities
from maskwise.masking.gather import gather
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models.families import most_tokens
from maskwise.results.measurements import Measurement
from maskwise.text.encoding import encode
from maskwise.text.source import read_records
from maskwise.text.tables import FieldValues

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Scores that differ by less than this number of nats are tied. Rounding errors are smaller, and
# real differences are far larger.
TIE = 1e-4
# Reasons for skipping an item.
LONG, UNKNOWN = "longer than the model", "unknown characters"
# Sets that come with maskwise, made by scripts/build_evaluation.py.
BUNDLED_SETS = ("pairs",)
GOOD, BAD = "sentence_good", "sentence_bad"
# Columns that name the grammatical phenomenon of a pair. The first existing column is used.
GROUPS = ("phenomenon", "linguistics_term", "UID")
# The default of ``items``: the maximum number of pairs from a file.
ITEMS = 1000


S = TypeVar("S", bound=Measure)
T = TypeVar("T")


def load_set(spec: str, read: Callable[..., S]) -> S:
    """Read a test set from a spec, such as ``bundled:pairs`` or ``facts.jsonl(items=500)``.

    Args:
        spec: a bundled set or a file, optionally with arguments for ``read``.
        read: a function that reads the file, such as ``Pairs.read``.

    Raises:
        MaskwiseError: the file or bundled set does not exist, or ``read`` has no such argument.
    """
    source, options = read_options(spec, read, kind="evaluation set", example="items=500")
    return read(_path(source), **options)


def _path(source: str) -> Path:
    if source.startswith("bundled:"):
        name = source.removeprefix("bundled:")
        require_known("bundled evaluation set", name, BUNDLED_SETS)
        return bundled_file(f"{name}.jsonl.gz")
    path = user_path(source)
    if not path.is_file():
        raise MaskwiseError(
            f"no evaluation file {source!r}", do="give a .jsonl or .tsv file, or bundled:pairs"
        )
    return path


def read_set(path: Path) -> list[FieldValues]:
    """Read the records in a file; raise an error if there are none."""
    records = read_records(path)
    if not records:
        raise MaskwiseError(f"evaluation file {path} is empty")
    return records


def name_of_set(path: Path) -> str:
    """Return the name of a set: ``trex`` for ``/x/trex.jsonl.gz``."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def evenly(items: list[T], count: int | None) -> list[T]:
    """Return at most ``count`` evenly spaced items."""
    if count is None or count >= len(items):
        return items
    if count < 1:
        raise MaskwiseError("too few items in an evaluation set", got=count, allowed="≥ 1")
    return [items[place] for place in evenly_spaced(count, of=len(items)).tolist()]


def require_scored(kept: int, skipped: Mapping[str, int], where: str) -> None:
    """Check that at least one item can be scored.

    Raises:
        MaskwiseError: no item can be scored.
    """
    if not kept:
        raise MaskwiseError(f"no item of {where} can be scored", got=counted(skipped))


@dataclass(frozen=True)
class Pairs(Measure):
    """N minimal pairs.

    Attributes:
        name: the name of the set.
        good, bad: (N,) the correct and the incorrect sentences.
        groups: (N,) the phenomenon of each pair; "" if unknown.
        total: the number of pairs in the file.

    >>> from maskwise.evaluation.sets import load_set
    >>> pairs = load_set("bundled:pairs(items=2)", Pairs.read)
    >>> pairs.good[0], pairs.bad[0], pairs.total
    ('The river was very old.', 'The river were very old.', 204)
    """

    name: str
    good: tuple[str, ...]
    bad: tuple[str, ...]
    groups: tuple[str, ...]
    total: int

    @classmethod
    def read(cls, path: Path, items: int | None = ITEMS) -> Pairs:
        """Read at most ``items`` evenly spaced pairs from a file.

        Raises:
            MaskwiseError: the file is empty or cannot be read, a column is missing, or a sentence
                is empty.
        """
        records = read_set(path)
        for number, record in enumerate(records, start=1):
            where = f"row {number} of {path}"
            for column in (GOOD, BAD):
                text = record.get(column)
                if not isinstance(text, str) or not text.strip():
                    raise MaskwiseError(
                        f"{where} has no text under {column}",
                        got=repr(text) if column in record else ", ".join(map(str, record)),
                        allowed=f"{GOOD}, {BAD}",
                    )
        group = next((column for column in GROUPS if column in records[0]), "")
        kept = evenly(records, items)
        return cls(
            name_of_set(path),
            tuple(record[GOOD] for record in kept),
            tuple(record[BAD] for record in kept),
            tuple(str(record.get(group, "")) for record in kept),
            len(records),
        )

    def texts(self) -> list[tuple[str, ...]]:
        return [(text,) for text in self.good]

    def part(self, count: int) -> Pairs:
        kept = evenly([*zip(self.good, self.bad, self.groups)], count)
        good, bad, groups = zip(*kept)
        return replace(self, good=good, bad=bad, groups=groups)

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        """Return one row with the accuracy over all pairs and for each group of pairs.

        A pair is skipped if one of its sentences is too long for the model or has an [UNK].
        ``items`` is the number of scored pairs, and ``skipped`` the number of skipped pairs.

        Raises:
            MaskwiseError: no pair can be scored.
        """
        room = most_tokens(model.config)
        skipped = Counter[str]()
        kept = []
        good_rows = []
        bad_rows = []
        pairs = zip(encode(tokenizer, self.good), encode(tokenizer, self.bad), strict=True)
        for number, (good_row, bad_row) in enumerate(pairs):
            both = (good_row["input_ids"], bad_row["input_ids"])
            if max(map(len, both)) > room:
                skipped[LONG] += 1
            elif any(tokenizer.unk_token_id in ids for ids in both):
                skipped[UNKNOWN] += 1
            else:
                kept.append(number)
                good_rows.append(good_row)
                bad_rows.append(bad_row)
        require_scored(len(kept), skipped, f"pairs {self.name!r}")
        batch = gather([*good_rows, *bad_rows], Vocabulary.of(tokenizer))
        log_p = log_probabilities(model, batch, mask=tokenizer.mask_token_id, within_word=True)
        good, bad = log_p.double().sum(1).view(2, -1)
        tied = (good - bad).abs() < TIE
        right = torch.where(tied, 0.5, (good > bad).double()).tolist()
        by_group: dict[str, list[float]] = {}
        for number, score in zip(kept, right):
            by_group.setdefault(self.groups[number], []).append(score)
        groups = {}
        for name, scores in sorted(by_group.items()):
            groups[name] = {"value": fmean(scores), "items": len(scores)}
        return [
            Measurement(
                measure=self.name,
                metric="accuracy",
                value=fmean(right),
                chance=0.5,
                items=len(kept),
                facts={
                    "of": self.total,
                    "ties": int(tied.sum()),
                    "skipped": dict(skipped),
                    "groups": groups,
                },
            )
        ]
