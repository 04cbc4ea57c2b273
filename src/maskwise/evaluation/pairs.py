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

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from maskwise.errors import MaskwiseError
from maskwise.evaluation.scoring import (
    LONG,
    TIE,
    UNKNOWN,
    Measurement,
    TestSet,
    evenly,
    log_probabilities,
    name_of,
    read_set,
    require_scored,
)
from maskwise.masking.gather import gather
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models import most_tokens
from maskwise.text import encode

GOOD, BAD = "sentence_good", "sentence_bad"
GROUPS = ("phenomenon", "linguistics_term", "UID")
"""Columns that say what a pair is about; the first one that is there."""
ITEMS = 1000
"""Pairs of a file that are used if the spec does not say."""


@dataclass(frozen=True)
class Pairs(TestSet):
    """N minimal pairs.

    Attributes:
        name: of the set. good, bad: (N,) sentences. groups: (N,) what each is about ("" if not said).
        total: how many the file holds.

    >>> from maskwise.evaluation.scoring import load_set
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
        """Pairs from a file; at most ``items`` of them, evenly spread.

        Raises:
            MaskwiseError: an empty or unreadable file, missing columns, or a sentence that is no text.
        """
        records = read_set(path)
        for number, record in enumerate(records, start=1):
            where = f"row {number} of {path}"
            for column in (GOOD, BAD):
                if column not in record:
                    got = ", ".join(map(str, record))
                    raise MaskwiseError(f"{where} has no {column}", got=got, allowed=f"{GOOD}, {BAD}")
                if not isinstance(record[column], str) or not record[column].strip():
                    raise MaskwiseError(f"{where}: {column} is no text", got=repr(record[column]))
        group = next((column for column in GROUPS if column in records[0]), "")
        kept = evenly(records, items)
        return cls(
            name_of(path), tuple(record[GOOD] for record in kept), tuple(record[BAD] for record in kept),
            tuple(str(record.get(group, "")) for record in kept), len(records),
        )  # fmt: skip

    def texts(self) -> list[tuple[str, ...]]:
        return [(text,) for text in self.good]

    def content(self) -> str:
        plain = json.dumps([self.good, self.bad, self.groups])
        return hashlib.sha256(plain.encode()).hexdigest()[:16]

    def score(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[Measurement]:
        """One record: accuracy, by group too.

        A pair with a sentence that is longer than the model or has an unknown token ([UNK]) is left out of both
        the score and ``items``, and counted in ``skipped``.

        Raises:
            MaskwiseError: no pair is left.
        """
        rows = encode(tokenizer, [*self.good, *self.bad])
        room, unknown = most_tokens(model.config), tokenizer.unk_token_id
        why = [
            LONG if len(row["input_ids"]) > room else UNKNOWN if unknown in row["input_ids"] else None
            for row in rows
        ]
        count = len(self.good)
        reasons = [first or second for first, second in zip(why[:count], why[count:])]
        skipped = Counter(reason for reason in reasons if reason)
        kept = [number for number, reason in enumerate(reasons) if reason is None]
        require_scored(len(kept), skipped, f"pairs {self.name!r}")
        both = [rows[number] for number in kept] + [rows[count + number] for number in kept]
        batch = gather(both, Vocabulary.of(tokenizer))
        log_p = log_probabilities(model, batch, mask=tokenizer.mask_token_id, within_word=True)
        good, bad = log_p.double().sum(1).view(2, -1)
        tied = (good - bad).abs() < TIE
        right = torch.where(tied, 0.5, (good > bad).double())
        places: dict[str, list[int]] = {}
        for place, number in enumerate(kept):
            places.setdefault(self.groups[number], []).append(place)
        groups = {
            name: {"value": float(right[places[name]].mean()), "items": len(places[name])}
            for name in sorted(places)
        }
        return [
            {
                "kind": "evaluation", "name": self.name, "metric": "accuracy", "value": float(right.mean()),
                "items": len(kept), "of": self.total, "chance": 0.5, "higher_is_better": True,
                "ties": int(tied.sum()), "skipped": dict(skipped), "groups": groups,
            }
        ]  # fmt: skip
