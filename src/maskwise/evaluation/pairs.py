"""Minimal pairs: two sentences that differ in one point of grammar; the model should find the right one likelier.

Files in BLiMP's format (Warstadt et al. 2020): JSON lines with ``sentence_good`` and ``sentence_bad``, or a
TSV with these columns. The score is the sum of log-probabilities, left to right within words; chance is one
half, and a tie counts half.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskwise.errors import MaskwiseError
from maskwise.evaluation.scoring import LONG, TIE, UNKNOWN, log_probabilities
from maskwise.evaluation.sources import name_of, read_set, require_scored, some
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models import most_tokens
from maskwise.text import encode

GOOD, BAD = "sentence_good", "sentence_bad"
GROUPS = ("phenomenon", "linguistics_term", "UID")
"""Columns that say what a pair is about; the first one that is there."""
ITEMS = 1000
"""Pairs of a file that are used if the spec does not say."""


@dataclass(frozen=True)
class Pairs:
    """N minimal pairs.

    Attributes:
        name: of the set. good, bad: (N,) sentences. groups: (N,) what each is about ("" if not said).
        total: how many the file holds.
    """

    name: str
    good: tuple[str, ...]
    bad: tuple[str, ...]
    groups: tuple[str, ...]
    total: int

    def texts(self) -> list[str]:
        """For the overlap check: what must not stand in a corpus."""
        return list(self.good)

    def content(self) -> str:
        """A hash of all that a score depends on."""
        plain = json.dumps([self.good, self.bad, self.groups])
        return hashlib.sha256(plain.encode()).hexdigest()[:16]


def read_pairs(path: Path, items: int | None = ITEMS) -> Pairs:
    """Pairs from a file; at most ``items`` of them, evenly spread.

    Raises:
        MaskwiseError: an empty or unreadable file, missing columns, or a sentence that is no text.
    """
    records = read_set(path)
    for number, record in enumerate(records, start=1):
        for column in (GOOD, BAD):
            if column not in record:
                got = ", ".join(map(str, record))
                raise MaskwiseError(
                    f"row {number} of {path} has no {column}", got=got, allowed=f"{GOOD}, {BAD}"
                )
            if not isinstance(record[column], str) or not record[column].strip():
                raise MaskwiseError(f"row {number} of {path}: {column} is no text", got=repr(record[column]))
    group = next((column for column in GROUPS if column in records[0]), None)
    kept = some(records, items)
    return Pairs(
        name_of(path), tuple(record[GOOD] for record in kept), tuple(record[BAD] for record in kept),
        tuple(str(record.get(group, "")) for record in kept), len(records),
    )  # fmt: skip


def score_pairs(model: Any, tokenizer: Any, pairs: Pairs) -> list[dict[str, Any]]:
    """One record: accuracy, by group too.

    A pair with a sentence that is longer than the model or has an unknown token ([UNK]) is left out of both
    the score and ``items``, and counted in ``skipped``.

    Raises:
        MaskwiseError: if no pair is left.
    """
    rows = encode(tokenizer, [*pairs.good, *pairs.bad])
    room, unknown = most_tokens(model.config), tokenizer.unk_token_id
    why = [
        LONG if len(row["input_ids"]) > room else UNKNOWN if unknown in row["input_ids"] else None
        for row in rows
    ]
    count = len(pairs.good)
    reasons = [first or second for first, second in zip(why[:count], why[count:])]
    skipped = Counter(reason for reason in reasons if reason)
    kept = [number for number, reason in enumerate(reasons) if reason is None]
    require_scored(len(kept), skipped, f"pairs {pairs.name!r}")
    batch = AnnotatedBatch.of(
        [rows[number] for number in kept] + [rows[count + number] for number in kept],
        Vocabulary.of(tokenizer),
    )
    log_p = log_probabilities(model, batch, mask=tokenizer.mask_token_id, within_word=True).double().sum(1)
    good, bad = log_p.view(2, -1)
    tied = (good - bad).abs() < TIE
    right = torch.where(tied, 0.5, (good > bad).double())
    groups = [pairs.groups[number] for number in kept]
    by_group = {
        name: {"value": float(right[where].mean()), "items": len(where)}
        for name in sorted(set(groups))
        if (where := [place for place, group in enumerate(groups) if group == name])
    }
    return [
        {
            "kind": "evaluation", "name": pairs.name, "metric": "accuracy",
            "value": float(right.mean()), "items": len(kept), "of": pairs.total, "chance": 0.5,
            "higher_is_better": True, "ties": int(tied.sum()), "skipped": dict(skipped),
            "groups": by_group,
        }
    ]  # fmt: skip
